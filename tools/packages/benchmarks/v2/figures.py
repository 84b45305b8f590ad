"""Pure. Decides; never performs. Rounds become figures, and figures become claims that are reached or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, Final

import msgspec
from hdrh.histogram import HdrHistogram

from benchmarks.summary import Spread
from benchmarks.v2.account import Errors, Measured
from benchmarks.v2.rows import OURS, V2
from benchmarks.verdict import Claim

LATENCY_US_MAX: Final = 600_000_000
_DIGITS: Final = 3
_US: Final = 1_000_000
THROUGHPUT_MIN: Final = 10.0
P99_MAX: Final = 0.1
MEAN_MAX: Final = 0.5
CROWDED: Final = 64
CALM: Final = (1, 8)

Rounds = Mapping[tuple[int, str], Sequence[Measured]]


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds, of all rounds together."""

    jobs: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class RowFigures(msgspec.Struct, frozen=True):
    """A design with so many jobs in flight: medians and spread of the rounds, and latencies of all of them together.

    server_us, scheduler_us, load_us: CPU time a job; others_cores: that other processes kept busy.
    """

    jobs_per_s: Spread
    mean_ms: Spread
    p99_ms: Spread
    latency: Latency
    server_us: Spread
    scheduler_us: Spread
    load_us: Spread
    others_cores: Spread | None
    errors: Errors


def figures(rounds: Rounds) -> dict[tuple[int, str], RowFigures]:
    """The figures of all rows."""
    return {which: _figures(measured) for which, measured in rounds.items()}


def _figures(rounds: Sequence[Measured]) -> RowFigures:
    return RowFigures(
        jobs_per_s=_spread(rounds, _speed, 1),
        mean_ms=_spread(rounds, _mean_ms, 3),
        p99_ms=_spread(rounds, _p99_ms, 3),
        latency=latency([value for each in rounds for value in each.latencies_us]),
        server_us=_spread(rounds, lambda each: each.server_us / max(1, each.jobs), 1),
        scheduler_us=_spread(rounds, lambda each: each.scheduler_us / max(1, each.jobs), 1),
        load_us=_spread(rounds, lambda each: each.load_us / max(1, each.jobs), 1),
        others_cores=_others(rounds),
        errors=_together([each.errors for each in rounds]),
    )


def claims(rounds: Rounds, found: Mapping[tuple[int, str], RowFigures]) -> list[Claim]:
    """What is claimed of ours beside v2, as far as both were measured."""
    listed: list[Claim] = []
    for in_flight in sorted({in_flight for in_flight, _ in rounds}):
        if not {(in_flight, V2.name), (in_flight, OURS.name)} <= rounds.keys():
            continue
        listed += _claims_of(in_flight, rounds, found)
    return listed


def _claims_of(in_flight: int, rounds: Rounds, found: Mapping[tuple[int, str], RowFigures]) -> list[Claim]:
    ours, theirs = found[in_flight, OURS.name], found[in_flight, V2.name]
    pairs = list(zip(rounds[in_flight, OURS.name], rounds[in_flight, V2.name], strict=True))

    def of_rounds(value: Callable[[Measured], float]) -> tuple[float, ...]:
        return tuple(_ratio(value(one), value(other)) for one, other in pairs)

    listed = []
    words = f"dispatch by v2, {in_flight} in flight"
    if in_flight >= CROWDED:
        speed = _ratio(ours.jobs_per_s.median, theirs.jobs_per_s.median)
        p99 = _ratio(ours.latency.p99_ms, theirs.latency.p99_ms)
        listed.append(Claim(f"jobs/s, {words}", speed, THROUGHPUT_MIN, is_least=True, rounds=of_rounds(_speed)))
        listed.append(Claim(f"p99, {words}", p99, P99_MAX, rounds=of_rounds(_p99_ms)))
    elif in_flight in CALM:
        mean = _ratio(ours.mean_ms.median, theirs.mean_ms.median)
        listed.append(Claim(f"mean latency, {words}", mean, MEAN_MAX, rounds=of_rounds(_mean_ms)))
    listed.append(Claim(f"errors of dispatch, {in_flight} in flight", ours.errors.total, theirs.errors.total))
    return listed


def _ratio(one: float, other: float) -> float:
    return round(one / other, 3) if other else float("inf")


def _speed(each: Measured) -> float:
    return each.jobs / each.seconds


def _mean_ms(each: Measured) -> float:
    return fmean(each.latencies_us) / 1_000 if each.latencies_us else 0.0


def _p99_ms(each: Measured) -> float:
    return latency(each.latencies_us).p99_ms


def latency(values_us: Sequence[int]) -> Latency:
    """By a histogram of three significant digits."""
    histogram: Any = HdrHistogram(1, LATENCY_US_MAX, _DIGITS)
    for value in values_us:
        histogram.record_value(max(1, min(value, LATENCY_US_MAX)))
    p50, p99, p999 = (histogram.get_value_at_percentile(percent) / 1_000 for percent in (50, 99, 99.9))
    mean_ms = fmean(values_us) / 1_000 if values_us else 0.0
    return Latency(len(values_us), round(mean_ms, 3), p50, p99, p999, max(values_us, default=0) / 1_000)


def _together(each: Sequence[Errors]) -> Errors:
    fields = [field.name for field in msgspec.structs.fields(Errors)]
    return Errors(*(sum(getattr(one, name) for one in each) for name in fields))


def _others(rounds: Sequence[Measured]) -> Spread | None:
    if any(each.others_us is None for each in rounds):
        return None
    return _spread(rounds, lambda each: (each.others_us or 0.0) / _US / each.seconds, 2)


def _spread(rounds: Sequence[Measured], value: Callable[[Measured], float], digits: int) -> Spread:
    values = [value(each) for each in rounds]
    return Spread(round(median(values), digits), round(min(values), digits), round(max(values), digits))
