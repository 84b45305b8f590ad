"""What happens in a run: jobs, and faults, drawn from a seed or read from a text.

Each kind of thing is drawn from a stream of chance of its own, so a scenario with one more kind keeps the others as
they were. A fault is a line, such as `3.120 dispatcher0 lost_after reserve`: a time in seconds, who, what, for a
command also which one, and for how long. A line means the same whatever else is in the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import msgspec

from tests.simulation.network import DEATHS, WIRES

MANAGERS: Final = ("manager0", "manager1")
DISPATCHERS: Final = ("dispatcher0", "dispatcher1")
REAPERS: Final = ("reaper0", "reaper1")
NODES: Final = ("n0", "n1", "n2", "n3")
ROLES: Final = (*MANAGERS, *DISPATCHERS, *REAPERS)
SEATS: Final = (*ROLES, *NODES)
PRODUCER: Final = "producer"
LOAD_FROM_S: Final = 3.0
LIMITS: Final = ("limit", "limit_one", "limit_tenants", "limit_none")
"""What an operator does to limits, see fleet.py."""
CALLS: Final = {
    "manager": ("lead", "take", "capacity", "publish", "hgetall", "*"),
    "dispatcher": ("beat", "claim", "xread", "reserve", "reject", "mget", "smismember", "*"),
    "reaper": ("beat", "release", "promote", "leave", "time", "*"),
    "n": ("beat", "renew", "release", "xread", "leave", "hmget", "*"),
    "producer": ("submit", "hgetall", "xread", "*"),
}
"""What each kind of process sends, so that a rare script is hit as often as a poll."""
STREAMS: Final = (
    "jobs:0", "jobs:1", "jobs:2", "inbox:n0", "inbox:n3", "freed", "results", "parked", "dead",
    "heartbeats", "commands", "deltas",
)  # fmt: skip


DELETED: Final = (
    "open", "delayed", "capacity", "owners", "freed", "slots:n0", "slots:n3", "held", "leader_epoch", "parked",
    "jobs:0", "jobs:1", "inbox:n0", "inbox:n3", "job", "results", "dead",
    "leader", "snapshot", "version", "deltas", "layout", "config", "heartbeats", "commands", "answers", "dispatchers",
)  # fmt: skip
"""Keys that somebody deletes; `held` is all of those, `job` the record of one job."""


class JobPlan(msgspec.Struct, frozen=True):
    """One job. way: `submit` or `xadd`, `twice` for both, `twice_raw` in the other order, or a kind of broken entry.
    does: see work.py.
    """

    number: int
    at_s: float
    session: str
    pair: str
    does: str
    way: str = "submit"
    tenant: str = ""
    features: tuple[str, ...] = ()
    priority: int = 0
    deadline_ms: int | None = None
    preferred: str = ""
    again_s: float = 0.0  # so much later it is submitted again

    @property
    def job_id(self) -> str:
        """Its id."""
        return f"j{self.number}"


class Event(msgspec.Struct, frozen=True, order=True):
    """A fault. call: of a command; s: how long, or by how much."""

    at_s: float
    who: str
    what: str
    call: str = ""
    s: float = 0.0

    def __str__(self) -> str:
        rest = (f" {self.call}" if self.call else "") + (f" {self.s:g}" if self.s else "")
        return f"{self.at_s:.3f} {self.who} {self.what}{rest}"


def parse_event(line: str) -> Event:
    """The reverse of str(event). Raises: ValueError, with what was expected."""
    words = line.split()
    if len(words) < 3 or not _is_number(words[0]):
        raise ValueError(f"{line!r}: expected a fault, as in `3.120 dispatcher0 late reserve 4.2`")
    at_s, who, what, *rest = words
    call = rest.pop(0) if rest and not _is_number(rest[0]) else ""
    if len(rest) > 1 or not all(map(_is_number, rest)):
        raise ValueError(f"{line!r}: expected one number at most behind the fault, got {' '.join(rest)!r}")
    known = FAULTS.get(who, frozenset())
    if what not in known:
        expected = f"one of {', '.join(sorted(known))}" if known else f"one of {', '.join(FAULTS)} before it"
        raise ValueError(f"{line!r}: {who} has no fault {what!r}; expected {expected}")
    return Event(float(at_s), who, what, call, float(rest[0]) if rest else 0.0)


def _is_number(word: str) -> bool:
    return word.removeprefix("-").replace(".", "", 1).isdigit()


class Plan(msgspec.Struct, frozen=True):
    """A run. pools, memory: which of the configurations of fleet.py; drawn: of how many jobs these are some; events: in
    their order.
    """

    seed: int
    scenario: str
    pools: str
    memory: str
    drawn: int
    jobs: tuple[JobPlan, ...]
    events: tuple[Event, ...]

    @property
    def ends_s(self) -> float:
        """When nothing happens any more but that what is there comes to its end."""
        times_s = [job.at_s + job.again_s for job in self.jobs]
        times_s += [event.at_s + (0.0 if event.what == "clock" else event.s) for event in self.events]
        return max(times_s, default=LOAD_FROM_S)


class Scenario(msgspec.Struct, frozen=True):
    """What may happen. kinds: of faults -> how many a run, about; once: kinds that happen once, in the first half of
    the load, each with a process that is killed in the seconds after it; jobs: how many.
    """

    name: str
    kinds: tuple[tuple[str, float], ...]
    once: tuple[str, ...] = ()
    pools: tuple[str, ...] = ("none", "gold", "limits", "rivals")
    broken: float = 0.0  # share of jobs that are no jobs
    doubled: float = 0.0  # share of jobs sent both ways, under one id
    deadlines: float = 0.06  # share of jobs with a deadline
    jobs: int = 120
    load_s: float = 20.0


# ---- faults ---------------------------------------------------------------------------------------------------------


def _wire(random: Random, at_s: float) -> Event:
    who = random.choice((*SEATS, *NODES, *DISPATCHERS, PRODUCER))
    calls = CALLS[who.rstrip("0123456789")]
    what = random.choice(WIRES)
    s = (
        round(math.exp(random.uniform(math.log(0.05), math.log(12.0))), 3)
        if what in ("late", "late_reply", "delayed")
        else 0.0
    )
    return Event(at_s, who, what, random.choice(calls), s)


def _to(what: str, seats: Sequence[str], low_s: float, high_s: float) -> Callable[[Random, float], Event]:
    def draw(random: Random, at_s: float) -> Event:
        return Event(at_s, random.choice(seats), what, "", round(random.uniform(low_s, high_s), 3))

    return draw


def _dies(random: Random, at_s: float) -> Event:
    """A manager is killed in the middle of what it does for a command."""
    call = random.choice(("count", "count", "publish", "zscan", "hmget"))
    return Event(at_s, random.choice(MANAGERS), random.choice(DEATHS), call, round(random.uniform(0.2, 8.0), 3))


def _count_wire(random: Random, at_s: float) -> Event:
    return Event(at_s, random.choice(MANAGERS), random.choice(WIRES), "count", round(random.uniform(0.05, 12.0), 3))


def _limits(random: Random, at_s: float) -> Event:
    return Event(at_s, "operator", random.choice(LIMITS))


def _one_of(what: str, values: Sequence[float]) -> Callable[[Random, float], Event]:
    def draw(random: Random, at_s: float) -> Event:
        return Event(at_s, "server", what, "", random.choice(values))

    return draw


def _absurd(what: str) -> Callable[[Random, float], Event]:
    def draw(random: Random, at_s: float) -> Event:
        return Event(at_s, "stream", what, random.choice(STREAMS))

    return draw


def _delete(random: Random, at_s: float) -> Event:
    return Event(at_s, "server", "delete", random.choice(DELETED))


KINDS: Final[dict[str, Callable[[Random, float], Event]]] = {
    "wire": _wire,
    "reset": _to("reset", SEATS, 0, 0),
    "cut": _to("cut", SEATS, 0.3, 12),
    "kill": _to("kill", SEATS, 0.2, 8),
    "pause": _to("pause", SEATS, 0.3, 20),
    "stop": _to("stop", SEATS, 0.2, 4),
    "twin": _to("twin", NODES, 0, 0),
    "roll": _to("roll", ("all",), 0, 0),
    "pause_server": _to("pause", ("server",), 0.2, 8),
    "slow_server": _to("slow", ("server",), 1, 5),
    "scripts": _to("scripts", ("server",), 0, 0),
    "readonly": _to("readonly", ("server",), 0.5, 8),
    "loading": _to("loading", ("server",), 0.2, 3),
    "restart": _to("restart", ("server",), 0.2, 3),
    # The worst days: the clock, lost writes, ids.
    "clock": _one_of("clock", (-3600.0, -10.0, -1.0, 1.0, 10.0, 3600.0)),
    "sleep": _to("sleep", SEATS, 20, 20),
    "lose": _one_of("lose", (1.0,)),
    "empty": _to("empty", ("server",), 0.2, 3),
    "flush": _to("flush", ("server",), 0, 0),
    "full": _to("full", ("server",), 1, 8),
    "maxid": _absurd("maxid"),
    "future": _absurd("future"),
    "limit": _to("limit", ("operator",), 0, 0),
    "delete": _delete,
    "limits": _limits,
    "dies": _dies,
    "count_wire": _count_wire,
}

_ON_SEATS: Final = frozenset({"reset", "cut", "kill", "pause", "sleep", "stop", "twin", *WIRES, *DEATHS})
_ON_SERVER: Final = frozenset(
    {"pause", "slow", "scripts", "readonly", "loading", "restart", "clock", "lose", "empty", "flush", "full", "delete"}
)
FAULTS: Final[dict[str, frozenset[str]]] = dict.fromkeys(SEATS, _ON_SEATS) | {
    PRODUCER: frozenset(WIRES),
    "server": _ON_SERVER,
    "stream": frozenset({"maxid", "future"}),
    "operator": frozenset(LIMITS),
    "all": frozenset({"roll"}),
}
"""Who -> what can happen to it."""

_SURVIVED: Final = (
    ("wire", 70.0), ("reset", 4.0), ("cut", 2.0), ("kill", 5.0), ("pause", 2.0), ("stop", 1.0), ("twin", 1.0),
    ("roll", 0.3), ("pause_server", 0.7), ("slow_server", 0.7), ("scripts", 0.7), ("readonly", 0.5), ("loading", 0.3),
    ("restart", 0.5), ("limits", 0.5), ("dies", 0.3),
)  # fmt: skip
_PROCESSES: Final = (("kill", 8.0), ("pause", 4.0), ("stop", 2.0), ("twin", 2.0), ("roll", 0.5), ("wire", 10.0))
_SERVER: Final = (
    ("pause_server", 2.0), ("slow_server", 2.0), ("scripts", 2.0), ("readonly", 2.0), ("loading", 1.0),
    ("restart", 2.0), ("wire", 20.0), ("kill", 2.0),
)  # fmt: skip
_WORST: Final = tuple((name, 0.4) for name in ("clock", "sleep", "lose", "empty", "flush", "full", "maxid", "future"))


_LIMIT: Final = (
    ("limit", 2.0), ("limits", 3.0), ("kill", 3.0), ("dies", 2.0), ("wire", 5.0), ("count_wire", 1.0),
)  # fmt: skip


def _alone(kind: str, jobs: int = 60, deadlines: float = 0.06) -> Scenario:
    """One kind of the worst days, and now and then a process that ends."""
    kinds = (("kill", 3.0), ("wire", 5.0))
    return Scenario(kind, kinds, (kind,), broken=0.03, jobs=jobs, deadlines=deadlines)


SCENARIOS: Final[dict[str, Scenario]] = {
    each.name: each
    for each in (
        Scenario("mixed", _SURVIVED, broken=0.04),
        Scenario("calm", ()),
        Scenario("wires", (("wire", 150.0), ("reset", 10.0), ("cut", 5.0)), broken=0.04),
        Scenario("processes", _PROCESSES, broken=0.04),
        Scenario("server", _SERVER, broken=0.04),
        *map(_alone, ("clock", "sleep", "lose", "empty", "flush", "full", "maxid")),
        _alone("future", jobs=120, deadlines=0.5),
        Scenario("keys", (("delete", 4.0), ("kill", 1.0), ("wire", 5.0)), ("delete",), broken=0.03, jobs=60),
        Scenario("limit", _LIMIT, pools=("none", "gold", "limits"), jobs=60),
        Scenario("doubled", (("kill", 3.0), ("wire", 10.0)), doubled=0.2, jobs=60),
        Scenario("worst", (*_SURVIVED, *_WORST), broken=0.04, doubled=0.05),
    )
}


# ---- drawing --------------------------------------------------------------------------------------------------------


def draw(seed: int, scenario: Scenario, jobs: int | None = None) -> Plan:
    """The plan of a seed. jobs: how many, by default as the scenario has them."""
    count = scenario.jobs if jobs is None else jobs
    pools = _stream(seed, "pools").choice(scenario.pools)
    memory = _stream(seed, "memory").choice(("roomy", "roomy", "tight"))
    return Plan(
        seed, scenario.name, pools, memory, count, _draw_jobs(seed, scenario, count), _draw_events(seed, scenario)
    )


def _stream(seed: int, *name: object) -> Random:
    return Random("/".join(map(str, ("plan", seed, *name))))


def _draw_events(seed: int, scenario: Scenario) -> tuple[Event, ...]:
    """Most kinds as a Poisson process, from a little before the load until a little after it."""
    events: list[Event] = []
    span_s = scenario.load_s + 5.0
    for kind, a_run in scenario.kinds:
        random = _stream(seed, "kind", kind)
        at_s = LOAD_FROM_S - 1.0 + random.expovariate(a_run / span_s)
        while at_s < LOAD_FROM_S - 1.0 + span_s:
            events.append(KINDS[kind](random, round(at_s, 3)))
            at_s += random.expovariate(a_run / span_s)
    for kind in scenario.once:
        random = _stream(seed, "once", kind)
        at_s = LOAD_FROM_S + random.uniform(1.0, scenario.load_s / 2)
        events.append(KINDS[kind](random, round(at_s, 3)))
        events.append(KINDS["kill"](random, round(at_s + random.uniform(0.1, 4.0), 3)))
    return tuple(sorted(events))


def _draw_jobs(seed: int, scenario: Scenario, count: int) -> tuple[JobPlan, ...]:
    """Some one by one, some in bursts, in few sessions."""
    random = _stream(seed, "jobs")
    times_s: list[float] = []
    while len(times_s) < count:
        at_s = LOAD_FROM_S + random.uniform(0, scenario.load_s)
        times_s += [at_s] * (random.randint(5, 25) if random.random() < 0.06 else 1)
    return tuple(_draw_job(seed, scenario, number, at_s) for number, at_s in enumerate(sorted(times_s[:count])))


def _draw_job(seed: int, scenario: Scenario, number: int, at_s: float) -> JobPlan:
    random = _stream(seed, "job", number)
    session = random.randrange(14)
    way = "submit" if random.random() < 0.75 else "xadd"
    if random.random() < scenario.broken:
        way = random.choice(("no_job", "no_json", "no_session", "too_large", "bad_pair", "bad_id", "other_partition"))
    elif random.random() < scenario.doubled:
        way = random.choice(("twice", "twice_raw"))
    return JobPlan(
        number=number,
        at_s=round(at_s, 3),
        session=f"s{session}",
        pair="en:de" if session % 5 == 4 else "en:zh",
        does=_draw_work(random),
        way=way,
        tenant=("", "acme", "globex", "")[session % 4],
        features=("asr",) if random.random() < 0.05 else (),
        priority=random.choice((0, 0, 0, 0, 1, 5)),
        deadline_ms=random.choice((500, 3_000, 20_000)) if random.random() < scenario.deadlines else None,
        preferred=random.choice(NODES) if random.random() < 0.05 else "",
        again_s=round(random.uniform(0.01, 8.0), 3) if random.random() < 0.08 else 0.0,
    )


def _draw_work(random: Random) -> str:
    draw = random.random()
    if draw < 0.78:
        return f"work {random.expovariate(5.0):.3f}"
    if draw < 0.86:
        return f"work {random.uniform(4.0, 20.0):.3f}"
    if draw < 0.92:
        return f"fail {random.randint(1, 4)} {random.uniform(0.01, 0.3):.3f}"
    return random.choice(("reject", "exit", "hang", "deaf 6.0", "block 2.0", "block 9.0", "retry 700", "big 20000"))
