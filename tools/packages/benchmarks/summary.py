"""Pure. Rounds become figures: of one benchmark, of two side by side, and of where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

import msgspec

from benchmarks.measure import CommandUse, Round
from benchmarks.sampling import Function, Sampler

TOP: Final = 15
SENT_BY_US: Final = frozenset({"evalsha", "xread", "mget", "smismember", "get", "xrevrange", "info", "client", "hello"})
"""What a dispatcher sends; the server runs every other command inside a script."""


class Spread(msgspec.Struct, frozen=True):
    """A figure of several rounds."""

    median: float
    min: float
    max: float


class Figures(msgspec.Struct, frozen=True):
    """A benchmark: jobs a second, CPU microseconds a job of server and client, and cores that others kept busy."""

    jobs_per_s: Spread
    server_us: Spread
    client_us: Spread
    others_cores: Spread | None
    rounds: tuple[dict[str, float | None], ...]


class Ratio(msgspec.Struct, frozen=True):
    """Jobs a second of the dispatcher as a share of the relay's: of the medians, and in each round."""

    of_medians: float
    rounds: tuple[float, ...]


class FunctionCost(msgspec.Struct, frozen=True):
    """CPU microseconds a job of a function of ours: with the libraries it calls, itself alone, with all it calls."""

    function: str
    charged_us: float
    own_us: float
    within_us: float


class CommandCost(msgspec.Struct, frozen=True):
    """Calls and microseconds a job of a command at the server. in_script: its time is part of that of evalsha."""

    command: str
    calls: float
    us: float
    in_script: bool


class Profile(msgspec.Struct, frozen=True):
    """Where the time of some rounds went, in microseconds a job.

    client_us: all CPU time of the client; packages: the same by the library that ran; functions: the dearest of ours.
    server_us: all CPU time of the server; commands, with `lua` for what scripts take beside their commands, and
    `network` for all that is no command: sockets and protocol.
    """

    jobs_per_s: float
    samples: int
    client_us: float
    packages: dict[str, float]
    functions: tuple[FunctionCost, ...]
    server_us: float
    commands: tuple[CommandCost, ...]


def figures(rounds: Sequence[Round]) -> Figures:
    """The figures of a benchmark's rounds."""
    return Figures(
        jobs_per_s=_spread(rounds, lambda each: each.jobs_per_s, 1),
        server_us=_spread(rounds, lambda each: each.server_us, 2),
        client_us=_spread(rounds, lambda each: each.client_us, 2),
        others_cores=_others(rounds),
        rounds=tuple(_row(each) for each in rounds),
    )


def _row(each: Round) -> dict[str, float | None]:
    return {
        "seconds": round(each.seconds, 4),
        "jobs_per_s": round(each.jobs_per_s, 1),
        "server_us": round(each.server_us, 2),
        "client_us": round(each.client_us, 2),
        "others_cores": None if each.others_cores is None else round(each.others_cores, 2),
    }


def _others(rounds: Sequence[Round]) -> Spread | None:
    if any(each.others_cores is None for each in rounds):
        return None
    return _spread(rounds, lambda each: each.others_cores or 0.0, 2)


def _spread(rounds: Sequence[Round], value: Callable[[Round], float], digits: int) -> Spread:
    values = [value(each) for each in rounds]
    return Spread(round(median(values), digits), round(min(values), digits), round(max(values), digits))


def ratio(dispatch: Sequence[Round], relay: Sequence[Round]) -> Ratio:
    """Of rounds that were run in pairs."""
    of_medians = median(each.jobs_per_s for each in dispatch) / median(each.jobs_per_s for each in relay)
    each_round = (mine.jobs_per_s / floor.jobs_per_s for mine, floor in zip(dispatch, relay, strict=True))
    return Ratio(round(of_medians, 3), tuple(round(value, 3) for value in each_round))


def together(rounds: Sequence[Round]) -> Round:
    """Several rounds as one."""
    commands: dict[str, CommandUse] = {}
    for each in rounds:
        for name, use in each.commands.items():
            before = commands.get(name, CommandUse(0, 0))
            commands[name] = CommandUse(before.calls + use.calls, before.us + use.us)
    return Round(
        jobs=sum(each.jobs for each in rounds),
        seconds=sum(each.seconds for each in rounds),
        server_cpu_us=sum(each.server_cpu_us for each in rounds),
        client_cpu_us=sum(each.client_cpu_us for each in rounds),
        others_cpu_us=None,
        commands=commands,
    )


def profile(rounds: Sequence[Round], sampler: Sampler) -> Profile:
    """Where the time of rounds went during which the sampler looked."""
    sampled = together(rounds)
    us_a_sample = sampled.client_us / max(1, sampler.samples)
    packages: Counter[str] = Counter()
    for function, count in sampler.own.items():
        packages[function.package] += count
    functions = tuple(
        FunctionCost(
            f"{function.module}.{function.name}".replace(".<locals>", ""),
            round(count * us_a_sample, 2),
            round(sampler.own[function] * us_a_sample, 2),
            round(sampler.within[function] * us_a_sample, 2),
        )
        for function, count in _by_cost(sampler.charged)[:TOP]
    )
    return Profile(
        jobs_per_s=round(sampled.jobs_per_s, 1),
        samples=sampler.samples,
        client_us=round(sampled.client_us, 2),
        packages={name: round(count * us_a_sample, 2) for name, count in packages.most_common()},
        functions=functions,
        server_us=round(sampled.server_us, 2),
        commands=_commands(sampled),
    )


def _by_cost(counts: Counter[Function]) -> list[tuple[Function, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _commands(sampled: Round) -> tuple[CommandCost, ...]:
    """Commands by their cost; those of scripts after those that were sent, with what is left of both."""
    sent, inside = _split(sampled.commands)
    in_scripts = sum(use.us for use in inside.values())
    scripts = sent.get("evalsha", CommandUse(0, 0))
    lua = CommandUse(scripts.calls, scripts.us - in_scripts)
    network = CommandUse(0, round(sampled.server_cpu_us) - sum(use.us for use in sent.values()))
    rows = [*_ordered(sent, False, sampled.jobs), *_ordered({"network": network}, False, sampled.jobs)]
    return (*rows, *_ordered({"lua": lua}, True, sampled.jobs), *_ordered(inside, True, sampled.jobs))


def _split(commands: Mapping[str, CommandUse]) -> tuple[dict[str, CommandUse], dict[str, CommandUse]]:
    """What was sent, and what scripts ran. A subcommand is one of its command: `client|setinfo`."""
    sent = {name: use for name, use in commands.items() if name.partition("|")[0] in SENT_BY_US}
    return sent, {name: use for name, use in commands.items() if name not in sent}


def _ordered(commands: Mapping[str, CommandUse], in_script: bool, jobs: int) -> list[CommandCost]:
    """The dearest first; what is hardly used is left out."""
    costs = [
        CommandCost(name, round(use.calls / jobs, 3), round(use.us / jobs, 2), in_script)
        for name, use in commands.items()
    ]
    return sorted((cost for cost in costs if abs(cost.us) >= 0.01), key=lambda cost: -cost.us)
