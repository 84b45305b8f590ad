"""One stateful model of the data plane's scripts: any order of calls keeps the guarantees.

Two dispatchers, two nodes and a handful of jobs call the scripts on a real server, late, twice, with what they knew
earlier, and with faults between. After each step everything in the server is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from scheduler.protocol import keys, messages
from scheduler.protocol.documents import decode_job
from scheduler.protocol.lifecycle import TERMINAL, TRANSITIONS
from scheduler.protocol.snapshot import Reason
from scheduler.store.store import Store
from tests.dumps import dump, job_id_of
from tests.lua.picture import CELL, Picture
from tests.seeds import (
    RETENTION_MS,
    Opening,
    reject,
    reject_item,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_entry,
    seed_lapsed,
    seed_record,
    submit_item,
)

NODES: Final = ("n1", "n2")
SESSIONS: Final = {"s0": 0, "s1": 1}
JOBS: Final = [f"j{i}" for i in range(6)]
CANDIDATES: Final = (NODES, ("n1",), ("n2",))
# What can befall a job besides the scripts, and in which states.
FAULTS: Final = {
    "cancel": {"none", "queued", "reserved"},
    "lost_body": {"reserved", "delayed"},
    "retention": TERMINAL,
    "time": {"reserved"},
}
WAITS: Final = ("full", "limited", "behind", "fenced")
# Answers to a repeat that ask nothing more of the caller.
QUIET: Final = ("stale", "duplicate", "gone", "unchanged")

owners = st.sampled_from(["d1", "d2"])
partitions = st.sampled_from([0, 1])
nodes = st.sampled_from(NODES)
choices = st.sampled_from(["first", "freest"])
indices = st.integers(0, 7)
rarely = st.integers(0, 5).map(lambda number: number == 5)
# Even jobs belong to one session and odd ones to the other; now and then a job comes from the wrong one.
job_and_session = st.tuples(st.integers(0, 5), rarely).map(lambda drawn: (f"j{drawn[0]}", f"s{sum(drawn) % 2}"))
verdicts = st.sampled_from(["retry_later", "finish", "retry", "expire", "reboot", "give_back", "dead"])

Call = Callable[[], Awaitable[Sequence[Any]]]
LIMITS: Final[tuple[int | None, ...]] = (1, 0, None, 2)  # of sessions, by pool; None: not counted


def word(answer: Any) -> str:
    """An answer as its word."""
    if isinstance(answer, str):
        return answer
    return str(getattr(answer, "why", type(answer).__name__))


class Machine(RuleBasedStateMachine):
    """What dispatchers, nodes and the leader know, and the rules by which they act on it."""

    runner: ClassVar[asyncio.Runner]
    store: ClassVar[Store]

    def __init__(self) -> None:
        super().__init__()
        self.do(self.store.connection.commands.flushall())
        self.now = Picture({})
        self.epochs: dict[tuple[str, int], int] = {}
        self.boots = dict.fromkeys(NODES, 1)
        self.known_boots = dict.fromkeys(NODES, "1-x")
        self.entries: list[tuple[str, str, str]] = []  # (entry, job_id, session) of everything ever read
        self.reservations: list[tuple[messages.ReserveItem, str, int]] = []  # with node and token
        self.raw: set[str] = set()
        self.lost: set[str] = set()
        self.tokens: dict[str, int] = {}
        self.ended: dict[str, int] = {}
        self.last: tuple[str, Call, Sequence[Any]] | None = None
        for node in NODES:
            self.act("capacity", partial(self.tell, node, 1, "ready"))
        for owner, partition in (("d1", 0), ("d2", 1)):
            self.take(owner, partition)
        # Every story begins with a job that runs, one that waits and one that is delayed: the rest comes of itself.
        self.submit([("j0", "s0"), ("j1", "s1"), ("j2", "s0")], "a")
        self.place("first", [], False, 0)
        self.end([(7, "retry_later")], False, False)

    def do(self, awaitable: Awaitable[Any]) -> Any:
        """Run to its end."""

        async def wait() -> Any:
            return await awaitable

        return self.runner.run(wait())

    # ---- acting and looking ----

    def act(self, script: str, call: Call) -> Sequence[Any]:
        """Call a script, check every guarantee, and remember the call for a repeat."""
        answers: Sequence[Any] = self.do(call())
        self.look(script)
        self.last = (script, call, answers)
        return answers

    def look(self, script: str) -> None:
        """Compare what is there now with the guarantees, and with what was there before `script`."""
        before, self.now = self.now, Picture(self.do(dump(self.store)))
        self.raw = (self.raw | self.passed(before)) & set(self.now.intake)
        self.lost = {job for job in self.lost if self.now.state(job) in ("reserved", "delayed")}
        assert self.now.contradictions(self.lost, self.raw) == []
        self.check_transitions(script, before)
        woken = {node for nodes in self.now.freed[len(before.freed) :] for node in nodes}
        assert self.now.open - before.open <= woken
        told = {limit for limits in self.now.freed_limits[len(before.freed_limits) :] for limit in limits}
        assert {
            f"{kind}:{name}" for (kind, name), jobs in before.held.items() if jobs.keys() - self.now.jobs_held()
        } <= told

    def passed(self, before: Picture) -> set[str]:
        """Entries that their record named before, and no more: another one of the job was read first."""
        named = {job: record.get("entry", "") for job, record in before.records.items()}
        return {entry for job, entry in named.items() if self.now.records.get(job, {}).get("entry") != entry}

    def check_transitions(self, script: str, before: Picture) -> None:
        """Every change of a state is a row of the table; tokens rise; each end is told once."""
        rows = {(row.state, row.next_state) for row in TRANSITIONS if row.script == script}
        for job in {*before.records, *self.now.records}:
            old, new = before.state(job), self.now.state(job)
            assert old == new or (old, new) in rows, f"{script}: {job} from {old} to {new}"
            if new in TERMINAL and old != new:
                self.ended[job] = self.ended.get(job, 0) + 1
            token = int(self.now.records.get(job, {}).get("token", 0))
            if new == "reserved" and old != new:
                assert token > self.tokens.get(job, 0)
            assert token >= int(before.records.get(job, {}).get("token", 0)) or new == "none"
            self.tokens[job] = max(token, self.tokens.get(job, 0))
        assert dict(self.now.outcomes) == self.ended

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat(self) -> None:
        """The reply was lost: the same call again changes nothing and asks nothing more."""
        assert self.last is not None
        script, call, first = self.last
        before = self.now
        again = self.do(call())
        self.look(script)
        assert self.now.timeless() == before.timeless()
        for old, new in zip(first, again, strict=True):
            assert word(new) == word(old) or word(new) in QUIET

    # ---- producers ----

    @rule(wanted=st.lists(job_and_session, min_size=1, max_size=4), nonce=st.sampled_from(["a", "b"]))
    def submit(self, wanted: list[tuple[str, str]], nonce: str) -> None:
        """A producer submits; the same job may come from both sessions, and twice."""
        items = [submit_item(job, session, partition=SESSIONS[session], nonce=nonce) for job, session in wanted]
        owned = {job: self.now.records[job]["session"] for job, _ in wanted if self.now.state(job) != "none"}
        answers = self.act("submit", lambda: self.store.cell.submit(items))
        for (job, session), answer in zip(wanted, answers, strict=True):
            new = job not in owned
            assert (word(answer) == "job_id_taken") == (owned.setdefault(job, session) != session)
            assert not new or isinstance(answer, messages.Submitted)

    @rule(wanted=job_and_session, misplaced=rarely)
    def add_by_hand(self, wanted: tuple[str, str], misplaced: bool) -> None:
        """Somebody adds an entry, perhaps a copy, perhaps to the wrong partition."""
        job, session = wanted
        partition = 1 - SESSIONS[session] if misplaced else SESSIONS[session]
        entry_id = self.do(seed_entry(self.store, job, session, partition=partition))
        self.raw.add(f"{partition}/{entry_id}")
        self.look("XADD")
        self.last = None

    # ---- dispatchers ----

    def take(self, owner: str, partition: int) -> None:
        """Claim, and remember the epoch if it was granted."""

        async def call() -> Sequence[Any]:
            return (await self.store.cell.claim(owner, [partition]))[1]

        (answer,) = self.act("claim", call)
        if isinstance(answer, messages.Owned):
            held = self.epochs.get((owner, partition))
            others = [epoch for (_, p), epoch in self.epochs.items() if p == partition]
            assert answer.epoch == held or answer.epoch > max(others, default=0)
            self.epochs[owner, partition] = answer.epoch

    @rule(owner=owners, partition=partitions, way=st.sampled_from(["claim", "after_the_lease", "give_up"]))
    def own(self, owner: str, partition: int, way: str) -> None:
        """A dispatcher claims, perhaps after the lease of the one before, or gives up what it may not even hold."""

        async def give_up() -> Sequence[Any]:
            return (await self.store.cell.claim(owner, [], [partition]))[1]

        if way == "give_up":
            self.act("claim", give_up)
            return
        if way == "after_the_lease":
            epoch, holder = self.now.owners[partition]
            self.do(self.store.connection.commands.hset(CELL.owners, str(partition), f"{epoch} {holder} 1"))
        self.take(owner, partition)

    @rule(choice=choices, late=st.lists(indices, max_size=2), other=rarely, turn=indices)
    def place(self, choice: str, late: list[int], other: bool, turn: int) -> None:
        """Dispatchers, owners or not, place all that they read, and perhaps entries that they read long ago."""
        self.promote_all()
        for partition in (0, 1):
            self.place_from(partition, choice, late, other, turn)

    def place_from(self, partition: int, choice: str, late: list[int], other: bool, turn: int) -> None:
        """Read a partition and reserve."""
        owner = "d1" if other else self.now.owners.get(partition, (0, "-"))[1]
        if owner == "-":
            owner = "d2"
            self.take(owner, partition)
        read = [
            (entry, job_id_of(fields, entry.partition("/")[0], entry.partition("/")[2]), self.session_of(entry))
            for entry, fields in self.now.intake.items()
            if entry.startswith(f"{partition}/")
        ]
        old = [self.entries[-1 - i % len(self.entries)] for i in late] if self.entries else []
        self.entries += [each for each in read if each not in self.entries]
        items = [
            reserve_item(
                entry.partition("/")[2],
                self.epochs.get((owner, int(entry.partition("/")[0])), 0),
                job,
                session,
                partition=int(entry.partition("/")[0]),
                candidates=CANDIDATES[(turn + number) % len(CANDIDATES)],
                choice=choice,
                limits=self.limits_of(session, turn + number),
            )
            for number, (entry, job, session) in enumerate([*old, *read])
        ]
        if items:
            self.settle(items, self.reserve(items))

    def session_of(self, entry: str) -> str:
        """The session that an intake entry's document names."""
        return decode_job(self.now.intake[entry]["job"].encode()).session_id

    def settle(self, items: list[messages.ReserveItem], answers: Sequence[Any]) -> None:
        """Reject what reserve said to reject, as its owner does."""
        refused = [
            reject_item(item.entry_id, item.epoch, reason, job, item.session_id, partition=item.partition)
            for item, answer in zip(items, answers, strict=True)
            for reason, job in (
                ("cancelled", item.job_id),
                ("job_id_taken", f"~0-{item.partition}-{item.entry_id}"),
            )
            if word(answer) == ("cancelling" if reason == "cancelled" else reason)
        ]
        if refused:
            self.act("reject", lambda: reject(self.store, *refused))

    def reserve(self, items: list[messages.ReserveItem]) -> Sequence[Any]:
        """One call, and what must hold of its answers as a whole."""
        before, boots = self.now, dict(self.known_boots)
        answers = self.act("reserve", lambda: reserve(self.store, items, boots))
        told = [
            (item, answer) for item, answer in zip(items, answers, strict=True) if isinstance(answer, messages.Reserved)
        ]
        placed = [(item, answer) for item, answer in told if answer.used >= 0]
        left = set(before.intake) - set(self.now.intake)
        if not placed:
            # On a busy machine the connection repeats a call whose reply was late: this answer tells of what it did.
            placed = list(
                {entry: each for each in told if (entry := f"{each[0].partition}/{each[0].entry_id}") in left}.values()
            )
        tokens = [answer.token for _, answer in placed]
        assert tokens == sorted(set(tokens))
        for node in {answer.node for _, answer in placed}:
            slots, boot = before.capacities[node]
            assert (len(self.now.slots[node]) <= slots, boot) == (True, boots[node])
        self.check_order(items, answers, boots, before)
        taken = {f"{item.partition}/{item.entry_id}" for item, _ in placed}
        doubles = {f"{i.partition}/{i.entry_id}" for i, a in zip(items, answers, strict=True) if word(a) == "duplicate"}
        assert taken <= set(before.intake)
        assert left <= taken | doubles
        self.reservations += [(item, answer.node, answer.token) for item, answer in placed]
        return answers

    def limits_of(self, session: str, turn: int) -> tuple[tuple[str, str, int], ...]:
        """What a job counts for: by pools with and without a limit."""
        most = LIMITS[turn % len(LIMITS)]
        return () if most is None else (("session", session, most),)

    def check_order(
        self, items: list[messages.ReserveItem], answers: Sequence[Any], boots: dict[str, str], before: Picture
    ) -> None:
        """Only the owner places; after a job that waits no later one of its session is placed; full means full."""
        waiting: set[str] = set()
        for item, answer in zip(items, answers, strict=True):
            assert (word(answer) == "fenced") == (before.owners.get(item.partition, (0, ""))[0] != item.epoch)
            if word(answer) in WAITS:
                waiting.add(item.session_id)
            assert item.session_id not in waiting or getattr(answer, "used", -1) < 0
            if word(answer) == "full":
                candidates = [node for group in item.candidates for node in group]
                assert [node for node in candidates if self.now.room(node, boots[node]) > 0] == []
            if word(answer) == "limited":
                own = item.limits[0][2]
                limits = [most for most in (own, *self.now.held["session", item.session_id].values()) if most]
                assert len(self.now.held["session", item.session_id]) >= min(limits)

    @precondition(lambda self: self.entries)
    @rule(index=indices, reason=st.sampled_from(["expired", "cancelled"]), other=rarely)
    def refuse(self, index: int, reason: str, other: bool) -> None:
        """A dispatcher rejects an entry that it read, now or long ago."""
        entry, job, session = self.entries[-1 - index % len(self.entries)]
        partition, _, entry_id = entry.partition("/")
        owner = "d1" if other else self.now.owners.get(int(partition), (0, "d1"))[1]
        epoch = self.epochs.get((owner, int(partition)), 0)
        item = reject_item(entry_id, epoch, reason, job, session, partition=int(partition))
        self.act("reject", lambda: reject(self.store, item))

    # ---- nodes and the reaper ----

    def chosen(self, index: int, late: bool) -> tuple[messages.ReserveItem, str, int]:
        """A live reservation if there is one, or any that was ever given."""
        live = [each for each in self.reservations if self.is_live(each[0].job_id, each[1], each[2])]
        several = self.reservations if late or not live else live
        return several[-1 - index % len(several)]

    @precondition(lambda self: self.reservations)
    @rule(index=indices, late=st.booleans())
    def renew(self, index: int, late: bool) -> None:
        """A node renews what it was given, now or long ago."""
        item, node, token = self.chosen(index, late)
        live = self.is_live(item.job_id, node, token)

        async def call() -> Sequence[Any]:
            return (await self.store.cell.renew(node, [(item.job_id, token)]))[2]

        (answer,) = self.act("renew", call)
        assert isinstance(answer, messages.Renewed) == live

    def is_live(self, job: str, node: str, token: int) -> bool:
        """Whether this token is the reservation of its job."""
        record = self.now.records.get(job, {})
        held = (record.get("state"), record.get("node"), record.get("token"))
        return held == ("reserved", node, str(token))

    @precondition(lambda self: self.reservations)
    @rule(several=st.lists(st.tuples(indices, verdicts), min_size=1, max_size=4), late=st.booleans(), early=rarely)
    def end(self, several: list[tuple[int, str]], late: bool, early: bool) -> None:
        """Nodes and reapers end reservations, now or long after they were given, and perhaps before they may."""
        chosen = {}
        for index, verdict in several:
            item, node, token = self.chosen(index, late)
            chosen[item.job_id] = (item, node, token, verdict)
            if verdict == "expire" and not early and self.is_live(item.job_id, node, token):
                self.do(seed_lapsed(self.store, item.job_id, node))
                self.look("time")
        endings = [self.ending(*each, early) for each in chosen.values()]
        expected = [self.verdict_on(ending, early) for ending in endings]
        answers = self.act("release", lambda: release(self.store, *endings))
        assert [word(answer) for answer in answers] == expected

    def ending(
        self, item: messages.ReserveItem, node: str, token: int, verdict: str, early: bool
    ) -> messages.ReleaseItem:
        """An ending of a reservation; a reboot is told by the boot after that of the record, or by the same."""
        boot = int(self.now.records.get(item.job_id, {}).get("boot", "0-x").split("-")[0])
        return release_item(
            token,
            "retry" if verdict == "retry_later" else verdict,  # type: ignore[arg-type]
            item.job_id,
            item.session_id,
            node=node,
            partition=item.partition,
            boot=f"{boot + (not early)}-x",
            delay_ms=60_000 if verdict == "retry_later" else 0,
        )

    def verdict_on(self, ending: messages.ReleaseItem, early: bool) -> str:
        """The answer that an ending must get."""
        record = self.now.records.get(ending.job_id, {})
        if not record.get("state"):
            return "unknown"
        if (record.get("last_token"), record.get("last_verdict")) == (str(ending.token), ending.verdict):
            return "Released"
        if not self.is_live(ending.job_id, ending.node, ending.token):
            return "stale"
        lapsed = self.now.slots[ending.node][ending.job_id] <= 1
        refused = (ending.verdict == "expire" and not lapsed) or (ending.verdict == "reboot" and early)
        return "busy" if refused else "Released"

    def delayed(self) -> list[str]:
        """The jobs that wait for their next attempt."""
        return sorted(job for job in self.now.records if self.now.state(job) == "delayed")

    @precondition(lambda self: self.delayed())
    @rule()
    def promote(self) -> None:
        """Time passes: every delayed job is due and promoted."""
        self.promote_all()

    def promote_all(self) -> None:
        """What a reaper does, as if every delay were over."""
        delayed = self.delayed()
        if not delayed:
            return
        self.do(self.store.connection.commands.zadd(CELL.delayed, dict.fromkeys(delayed, 1)))
        items = [(job, keys.partition_of_entry(self.now.records[job]["entry"]), "") for job in delayed]
        answers = self.act("promote", lambda: self.store.cell.promote(items, RETENTION_MS))
        assert answers == ["dead" if self.now.state(job) == "dead" else "promoted" for job in delayed]

    # ---- the leader ----

    async def tell(self, node: str, slots: int, reason: Reason) -> list[str]:
        """What the leader says of a node in its present boot."""
        boot = f"{self.boots[node]}-x"
        return await self.store.cell.capacity(1, [messages.CapacityItem(node, slots, boot, reason)])

    @rule(node=nodes, slots=st.integers(0, 3), news=st.sampled_from(["capacity", "boot", "snapshot"]))
    def manage(self, node: str, slots: int, news: str) -> None:
        """A node gets more or fewer slots, is drained, or boots anew; the dispatchers learn of boots by a snapshot."""
        if news == "snapshot":
            self.known_boots = {each: f"{boot}-x" for each, boot in self.boots.items()}
            return
        self.boots[node] += news == "boot"
        self.act("capacity", lambda: self.tell(node, slots, "ready" if slots else "draining"))

    # ---- faults and operators ----

    @rule(index=indices, fault=st.sampled_from(sorted(FAULTS)))
    def disturb(self, index: int, fault: str) -> None:
        """Somebody asks for the end of a job or deletes its body; its lease lapses, or its retention is over."""
        possible = sorted(job for job in [*JOBS, *self.now.records] if self.now.state(job) in FAULTS[fault])
        if not possible:
            return
        job = possible[index % len(possible)]
        record = self.now.records.get(job, {})
        if fault == "cancel":
            self.do(seed_record(self.store, job, cancel=1))
        elif fault == "retention":
            self.do(self.store.connection.commands.delete(CELL.job(job), CELL.result(job)))
        elif fault == "time":
            self.do(seed_lapsed(self.store, job, record["node"]))
        else:
            stream = CELL.parked if record["state"] == "delayed" else CELL.inbox(record["node"])
            self.do(self.store.connection.commands.xdel(stream, record.get("parked_id") or record["inbox_id"]))
            self.lost.add(job)
        self.look(fault)
        self.last = None


def test_any_order_of_calls_keeps_the_guarantees(opening: Opening) -> None:
    """Capacity, slots, bodies, transitions, tokens, order, waking and repeats hold after every step."""
    with asyncio.Runner() as runner:
        store = runner.run(opening())
        try:
            run_state_machine_as_test(
                type("BoundMachine", (Machine,), {"runner": runner, "store": store}),
                settings=settings(
                    max_examples=20,
                    stateful_step_count=40,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(store.close())
