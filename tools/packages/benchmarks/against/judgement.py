"""The rules: from ratios of paired rounds to a verdict on each measure, and on all of them; and when enough is known.

Each pair of rounds, one right after the other, has a ratio new / old. The pairs of a heat are run by the same two
processes, and two processes of the same code differ by some percent for as long as they live, so the pairs of a heat
are no independent values, and an interval over pairs would be too narrow (Kalibera and Jones, Rigorous benchmarking in
reasonable time, 2013). Therefore each heat is one value, the geometric mean of its pairs, and the rules
judge the 95 % interval of the median of those:

- throughput is *no slower* when the interval contains or exceeds 0.98 and is narrower than 0.04;
- CPU time is *no slower* when its interval contains or stays below 1.03, p50 and p99 when theirs contain or stay below
  1.05;
- a measure is *slower* when its whole 99.5 % interval is beyond the limit. A comparison has ten measures: with 95 %
  each, a commit would too often be slower than itself in one of them;
- *faster* is what would be slower with old and new exchanged;
- everything else is *undecided*: throughput with a wider interval, and a measure that is beyond its limit with the 95 %
  interval alone;
- where the interval of throughput is wider, the CPU times of the same benchmark decide, if each interval is narrower
  than 0.04.

The width of intervals alone decides when to stop, never their position, after a minimum of heats and at counts that are
fixed before. A comparison that stopped at its first verdict would sooner or later find a difference that is not there;
an interval of a width that was set before keeps its probability (Chow and Robbins, On the asymptotic theory of
fixed-width sequential confidence intervals for the mean, 1965).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import geometric_mean, median
from typing import Final, Literal

import msgspec

from benchmarks.against.interval import SURE, Interval, interval_of_ratios
from benchmarks.against.measures import Benchmark, Kind, Measure, Pair

Verdict = Literal["no slower", "slower", "faster", "undecided"]

LIMIT: Final[Mapping[Kind, float]] = {"throughput": 0.98, "cpu": 1.03, "latency": 1.05}
WIDTH_MAX: Final = 0.04
"""Of throughput, and of the CPU times that decide in its place."""
ENOUGH_WIDTH: Final[Mapping[Kind, float]] = {"throughput": WIDTH_MAX, "latency": 0.1}
"""A benchmark is over when its intervals are narrower. The verdict on latency does not need that."""
LOOKS: Final = (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320)
"""The counts of heats at which the widths are looked at."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A measure of a benchmark.

    old, new: medians of all rounds, None where a side does not measure it
    ratio: new / old, None for too few heats
    verdict: None where a side does not measure it
    """

    benchmark: str
    measure: Measure
    heats: int
    old: float | None
    new: float | None
    ratio: Interval | None
    verdict: Verdict | None


class Decision(msgspec.Struct, frozen=True):
    """The verdict on all rows. reasons: a line each, for people."""

    verdict: Verdict
    reasons: tuple[str, ...]


def verdict_of(kind: Kind, ratio: Interval | None, sure: Interval | None) -> Verdict:
    """The verdict on one measure. ratio: its 95 % interval; sure: that of 99.5 %; None for too few heats."""
    if ratio is None:
        return "undecided"
    if sure is not None and is_beyond(kind, sure):
        return "slower"
    if sure is not None and is_beyond(kind, Interval(1 / sure.high, 1 / sure.median, 1 / sure.low)):
        return "faster"
    is_close = kind != "throughput" or ratio.width < WIDTH_MAX
    return "no slower" if is_close and not is_beyond(kind, ratio) else "undecided"


def is_beyond(kind: Kind, ratio: Interval) -> bool:
    """Whether all of an interval is on the slower side of the limit."""
    return ratio.high < LIMIT[kind] if kind == "throughput" else ratio.low > LIMIT[kind]


def rows_of(benchmark: Benchmark, heats: Sequence[Sequence[Pair]]) -> list[Row]:
    """The measures of a benchmark. heats: the pairs of each."""
    return [_row(benchmark, measure, heats) for measure in benchmark.measures]


def _row(benchmark: Benchmark, measure: Measure, heats: Sequence[Sequence[Pair]]) -> Row:
    name = measure.name
    old = [pair.old[name] for pairs in heats for pair in pairs if pair.old.get(name)]
    new = [pair.new[name] for pairs in heats for pair in pairs if pair.new.get(name)]
    found = (
        [pair.new[name] / pair.old[name] for pair in pairs if pair.old.get(name) and pair.new.get(name)]
        for pairs in heats
    )
    ratios = [geometric_mean(of_heat) for of_heat in found if of_heat]
    ratio = interval_of_ratios(ratios)
    is_missing = bool(heats) and not (old and new)
    return Row(
        benchmark=benchmark.name,
        measure=measure,
        heats=len(ratios),
        old=median(old) if old else None,
        new=median(new) if new else None,
        ratio=ratio,
        verdict=None if is_missing else verdict_of(measure.kind, ratio, interval_of_ratios(ratios, SURE)),
    )


def is_enough(rows: Sequence[Row], heats: int) -> bool:
    """Whether a benchmark can stop: at one of the set looks, its intervals are narrow enough."""
    if heats not in LOOKS:
        return False
    widths = [(row.ratio, ENOUGH_WIDTH.get(row.measure.kind)) for row in rows if row.verdict is not None]
    return all(width is None or (ratio is not None and ratio.width < width) for ratio, width in widths)


def can_wait(rows: Sequence[Row], heats: int) -> bool:
    """Whether the verdict on a benchmark is known without its throughput, because its CPU times are known closely."""
    cpu = [row.ratio for row in rows if row.measure.kind == "cpu"]
    has_throughput = any(row.measure.kind == "throughput" for row in rows)
    return has_throughput and heats >= LOOKS[0] and all(each is not None and each.width < WIDTH_MAX for each in cpu)


def decide(rows: Sequence[Row]) -> Decision:
    """The verdict on all of them: slower when one is, else undecided when a benchmark is, else faster when a row is."""
    slower = tuple(_words(row) for row in rows if row.verdict == "slower")
    if slower:
        return Decision("slower", slower)
    names = dict.fromkeys(row.benchmark for row in rows)
    found = [_undecided([row for row in rows if row.benchmark == name]) for name in names]
    undecided = tuple(reason for is_decided, reason in found if not is_decided)
    if undecided:
        return Decision("undecided", undecided)
    notes = tuple(reason for _, reason in found if reason)
    faster = tuple(_words(row) for row in rows if row.verdict == "faster")
    return Decision("faster" if faster else "no slower", faster + notes)


def _undecided(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether a benchmark in which nothing is slower is decided, and what is to be said of it, if anything."""
    name = rows[0].benchmark
    few = [row for row in rows if row.verdict is not None and row.ratio is None]
    if few:
        return False, f"{name}: {few[0].heats} of at least 6 heats were measured"
    wide = [row for row in rows if row.verdict == "undecided"]
    close = [row for row in wide if row.ratio is not None and is_beyond(row.measure.kind, row.ratio)]
    if close:
        return False, f"{_words(close[0])}: beyond {LIMIT[close[0].measure.kind]}, but not surely"
    if not wide:
        return True, ""
    words = f"{name}: the interval of {wide[0].measure.unit} is wider than {WIDTH_MAX}"
    cpu = [row for row in rows if row.measure.kind == "cpu"]
    unknown = [row.measure.unit for row in cpu if row.ratio is None]
    if unknown or not cpu:
        return False, f"{words}, and not both sides measure {' and '.join(unknown)}"
    too_wide = [row.measure.unit for row in cpu if row.ratio is not None and row.ratio.width >= WIDTH_MAX]
    if too_wide:
        return False, f"{words}, and so is that of {' and '.join(too_wide)}"
    return True, f"{words}; its CPU time decides"


def _words(row: Row) -> str:
    assert row.ratio is not None
    return (
        f"{row.benchmark}: {row.measure.unit} new / old is {row.ratio.median:.3f} "
        f"({row.ratio.low:.3f} to {row.ratio.high:.3f})"
    )
