"""What is measured: the benchmarks, the work that both commits are given, and the figures in what they print.

Nothing of the other commit is imported. All that is known of it is its command line, the lines of progress it prints
after each round, and its JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from benchmarks.measure import BenchmarkFailed

Name = Literal["dispatch", "lifecycle", "latency"]
Kind = Literal["throughput", "cpu", "latency"]
Figures = Mapping[str, float]
"""The figures of one round, by the name of the measure."""
Document = Mapping[str, Any]


class Pair(msgspec.Struct, frozen=True):
    """A round of the old side and one of the new side, one right after the other."""

    old: Figures
    new: Figures


PAYLOAD_BYTES: Final = 200
BATCH: Final = 64
RATE_PER_S: Final = 1_000
LATENCY_SECONDS: Final = 0.3
"""Beside the time in which jobs do not count yet; `--quick` ends a round after its 1,000 jobs in any case."""


class Measure(msgspec.Struct, frozen=True):
    """A figure of each round. name: in the JSON of this command; unit: as the table shows it."""

    name: str
    kind: Kind
    unit: str


SPEED: Final = Measure("jobs_per_s", "throughput", "jobs/s")
CPU: Final = (Measure("server_us", "cpu", "server us/job"), Measure("client_us", "cpu", "client us/job"))
TIMES: Final = (Measure("p50_ms", "latency", "p50 ms"), Measure("p99_ms", "latency", "p99 ms"))


class Benchmark(msgspec.Struct, frozen=True, kw_only=True):
    """One of the benchmarks, with its work.

    jobs: of each round
    round_line: how the line begins that is printed when a round is over, the one to warm up included
    weight: its share of the time, by those of the others
    same: which of the inputs that the command prints are the work, and must be alike
    """

    name: Name
    jobs: int
    nodes: int
    sessions: int
    round_line: str
    measures: tuple[Measure, ...]
    weight: int
    same: tuple[str, ...]

    def arguments(self, rounds: int) -> list[str]:
        """What is typed behind `./tools/bench` for so many rounds that count."""
        fleet: dict[str, float] = {"--nodes": self.nodes, "--sessions": self.sessions, "--payload-bytes": PAYLOAD_BYTES}
        if self.name != "latency":
            work = fleet | {"--jobs": self.jobs, "--batch": BATCH, "--rounds": rounds}
            return [self.name, "--json", *_words(work)]
        # Its rounds are told together, but each rate has figures of its own: so each round has a rate of its own.
        rates = [word for number in range(rounds) for word in ("--rate", str(RATE_PER_S + number))]
        work = fleet | {"--share": 50, "--rounds": 1, "--seconds": LATENCY_SECONDS}
        return [self.name, "--json", "--quick", *rates, *_words(work)]


def _words(options: Mapping[str, float]) -> list[str]:
    return [word for option, value in options.items() for word in (option, f"{value}")]


_BACKLOG: Final = ("jobs", "batch", "nodes", "sessions", "payload_bytes")
_PACED: Final = ("jobs_max", "seconds", "nodes", "sessions", "payload_bytes")


def benchmarks(*, quick: bool) -> tuple[Benchmark, ...]:
    """All of them. Rounds are short, so that both sides of a pair meet the same noise."""
    return (
        Benchmark(
            name="dispatch",
            jobs=1_000 if quick else 5_000,
            nodes=20 if quick else 200,
            sessions=5_000,
            round_line=r"(warm-up|round \d+ of \d+): dispatch",
            measures=(SPEED, *CPU),
            weight=2,
            same=_BACKLOG,
        ),
        Benchmark(
            name="lifecycle",
            jobs=300 if quick else 5_000,
            nodes=20 if quick else 200,
            sessions=5_000,
            round_line=r"(warm-up|round \d+ of \d+): relay .*lifecycle",
            measures=(SPEED, *CPU),
            weight=2,
            same=_BACKLOG,
        ),
        Benchmark(
            name="latency",
            jobs=1_000,
            nodes=20 if quick else 200,
            sessions=500,
            round_line=r"at most |[\d,]+ jobs/s: ",
            measures=(*TIMES, *CPU),
            weight=1,
            same=_PACED,
        ),
    )


def figures_of(benchmark: Benchmark, document: Document, rounds: int) -> list[Figures]:
    """The figures of each round in what the command printed with `--json`; a measure that it lacks is left out.

    Raises: BenchmarkFailed when the document is none of this command.
    """
    try:
        found = [_known(benchmark, each) for each in _rounds(benchmark.name, document)]
    except (KeyError, TypeError, AttributeError) as error:
        raise BenchmarkFailed(f"its JSON is not understood: {type(error).__name__} {error}") from None
    if len(found) != rounds:
        raise BenchmarkFailed(f"its JSON has {len(found)} rounds: expected {rounds}")
    return found


def _rounds(name: Name, document: Document) -> Sequence[Mapping[str, Any]]:
    if name == "dispatch":
        rounds: Sequence[Mapping[str, Any]] = document["dispatch"]["rounds"]
        return rounds
    if name == "lifecycle":
        return document.get("rounds") or [{SPEED.name: speed} for speed in document["lifecycle"]]
    rows = [row for row in document["rows"] if row["design"] == "dispatch" and row["share"] is None]
    return [row | row["latency"] for row in rows]


def _known(benchmark: Benchmark, found: Mapping[str, Any]) -> Figures:
    names = [measure.name for measure in benchmark.measures]
    return {name: float(found[name]) for name in names if found.get(name) is not None}


def check_same_work(benchmark: Benchmark, old: Document, new: Document) -> None:
    """Both sides did the same work, as far as both tell. Raises: BenchmarkFailed."""
    one, other = old.get("inputs", {}), new.get("inputs", {})
    for name in benchmark.same:
        if name in one and name in other and one[name] != other[name]:
            found = f"{one[name]} on the old side, {other[name]} on the new"
            raise BenchmarkFailed(f"{benchmark.name}: {name} = {found}: expected the same work")
