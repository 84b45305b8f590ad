"""The pure files of `against`: intervals are the known ones, the rules hold at their limits, noise is told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from benchmarks.against import report
from benchmarks.against.held import Heat
from benchmarks.against.interval import LIKELY, SURE, Interval, interval_of_ratios, median_of_ratios, rank_of_end
from benchmarks.against.judgement import Decision, Row, Verdict, decide, is_enough, rows_of, verdict_of
from benchmarks.against.measures import CPU, SPEED, TIMES, Benchmark, Pair, benchmarks, check_same_work, figures_of
from benchmarks.against.run import Found, Plan, measure
from benchmarks.against.sides import Code
from benchmarks.measure import BenchmarkFailed
from hypothesis import given
from hypothesis import strategies as st

RATIOS = st.lists(st.floats(0.01, 100), min_size=1, max_size=60)
DISPATCH, LIFECYCLE, LATENCY = benchmarks(quick=False)
FACTS = dict.fromkeys(("cpu", "cores", "system", "server", "python", "redis-py", "hiredis", "uvloop"), "x")
OPPOSITE: dict[Verdict, Verdict] = {"slower": "faster", "faster": "slower", "no slower": "no slower"}

# ---- the interval ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "rank"),
    [(0, 0), (5, 0), (6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (17, 5), (20, 6), (25, 8), (30, 10), (40, 14),
     (50, 18), (100, 40)],
)  # fmt: skip
def test_the_ends_of_the_interval_are_those_of_the_printed_tables(count: int, rank: int) -> None:
    """Two-sided, at least 95 %; with fewer than six values there is none."""
    assert rank_of_end(count) == rank


@given(count=st.integers(10, 400))
def test_no_narrower_interval_would_do(count: int) -> None:
    """The next one covers the median less often than it should."""

    def covered(rank: int) -> float:
        outside = sum(math.comb(count, below) for below in range(rank))
        return 1 - 2 * outside / (1 << count)

    for outside_one_in, probability in ((LIKELY, 0.95), (SURE, 0.995)):
        rank = rank_of_end(count, outside_one_in)
        assert covered(rank) >= probability > covered(rank + 1)


def test_the_interval_of_known_values() -> None:
    """The third smallest and the third largest of twelve, whatever their order."""
    values = [float(value) for value in (7, 1, 12, 3, 9, 5, 11, 2, 8, 4, 10, 6)]
    assert interval_of_ratios(values) == Interval(3, math.sqrt(6 * 7), 10)
    assert interval_of_ratios(values[:5]) is None


@given(ratios=RATIOS)
def test_the_median_is_one_of_the_values_or_between_two(ratios: list[float]) -> None:
    """And lies within the interval."""
    middle = median_of_ratios(ratios)
    assert sum(ratio <= middle * (1 + 1e-9) for ratio in ratios) * 2 >= len(ratios)
    assert sum(ratio >= middle * (1 - 1e-9) for ratio in ratios) * 2 >= len(ratios)
    interval = interval_of_ratios(ratios)
    assert interval is None or interval.low <= middle <= interval.high


@given(ratios=RATIOS)
def test_exchanged_sides_have_the_reciprocal_interval(ratios: list[float]) -> None:
    """So neither side has an advantage."""
    one, other = interval_of_ratios(ratios), interval_of_ratios([1 / ratio for ratio in ratios])
    if one is None or other is None:
        assert one is other
    else:
        assert (other.low, other.median, other.high) == pytest.approx((1 / one.high, 1 / one.median, 1 / one.low))


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    """Of ratios with many outliers, as rounds on a busy machine have."""
    random = Random(1)
    covered = 0
    for _ in range(1_000):
        interval = interval_of_ratios([math.exp(random.gauss(0, random.choice((0.05, 0.5)))) for _ in range(30)])
        assert interval is not None
        covered += interval.low <= 1 <= interval.high
    assert 0.94 < covered / 1_000 < 0.98


# ---- the rules -------------------------------------------------------------------------------------------------------


def verdict(kind: Any, low: float, high: float) -> Verdict:
    """The verdict on an interval that is a hundredth longer on both sides when it has to be sure."""
    middle = (low + high) / 2
    return verdict_of(kind, Interval(low, middle, high), Interval(low / 1.01, middle, high * 1.01))


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("throughput", 0.96, 0.969, "slower"),
        ("throughput", 0.5, 0.96, "slower"),
        ("throughput", 0.95, 0.979, "undecided"),
        ("throughput", 0.945, 0.98, "no slower"),
        ("throughput", 0.99, 1.02, "no slower"),
        ("throughput", 0.96, 1.001, "undecided"),
        ("throughput", 0.8, 1.3, "undecided"),
        ("throughput", 1.04, 1.3, "faster"),
        ("cpu", 1.03, 1.2, "no slower"),
        ("cpu", 1.031, 1.2, "undecided"),
        ("cpu", 1.041, 1.2, "slower"),
        ("cpu", 0.5, 2.0, "no slower"),
        ("cpu", 0.9, 0.965, "no slower"),
        ("cpu", 0.9, 0.95, "faster"),
        ("latency", 1.05, 1.4, "no slower"),
        ("latency", 1.051, 1.4, "undecided"),
        ("latency", 1.061, 1.4, "slower"),
        ("latency", 0.8, 0.94, "faster"),
    ],
)
def test_a_measure_is_judged_by_its_interval(kind: Any, low: float, high: float, expected: str) -> None:
    """Throughput must be known closely; the others need not. What is slower is surely so."""
    assert verdict(kind, low, high) == expected


@given(kind=st.sampled_from(["throughput", "cpu", "latency"]), ends=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)))
def test_exchanged_sides_have_the_opposite_verdict(kind: Any, ends: tuple[float, float]) -> None:
    """What is slower one way is faster the other way, except that widths of throughput are not reciprocal."""
    low, high = sorted(ends)
    one, other = verdict(kind, low, high), verdict(kind, 1 / high, 1 / low)
    if "undecided" not in (one, other):
        assert other == OPPOSITE[one]
    else:
        assert not {one, other} & {"slower", "faster"}


def test_too_few_heats_decide_nothing() -> None:
    """Whatever they are."""
    assert verdict_of("cpu", None, None) == "undecided"
    assert verdict_of("cpu", Interval(1.2, 1.3, 1.4), None) == "undecided"
    assert verdict_of("cpu", Interval(0.7, 0.8, 0.9), None) == "no slower"


def row(benchmark: str, measure: Any, low: float | None, high: float = 0) -> Row:
    """A row with this interval; None where a side does not measure it."""
    if low is None:
        return Row(benchmark=benchmark, measure=measure, heats=0, old=None, new=1, ratio=None, verdict=None)
    ratio = Interval(low, (low + high) / 2, high)
    found = verdict(measure.kind, low, high)
    return Row(benchmark=benchmark, measure=measure, heats=30, old=1, new=1, ratio=ratio, verdict=found)


SERVER, CLIENT = CPU
P50, P99 = TIMES
NARROW, WIDE = (0.985, 1.015), (0.9, 1.1)


@pytest.mark.parametrize(
    ("rows", "expected", "words"),
    [
        ([("d", SPEED, *NARROW), ("d", SERVER, *WIDE), ("l", P99, 0.5, 2)], "no slower", []),
        ([("d", SPEED, *WIDE), ("d", SERVER, *NARROW), ("d", CLIENT, *NARROW)], "no slower", ["its CPU time decides"]),
        ([("d", SPEED, *WIDE), ("d", SERVER, *NARROW), ("d", CLIENT, *WIDE)], "undecided", ["client us/job"]),
        ([("d", SPEED, *WIDE), ("d", SERVER, None), ("d", CLIENT, None)], "undecided", ["and not both sides measure"]),
        ([("d", SPEED, *NARROW), ("l", SPEED, *WIDE), ("l", SERVER, *WIDE)], "undecided", ["l: the interval"]),
        ([("d", SPEED, *WIDE), ("d", SERVER, 1.05, 1.5)], "slower", ["server us/job new / old is 1.275"]),
        ([("d", SPEED, *NARROW), ("d", SERVER, 1.035, 1.06)], "undecided", ["beyond 1.03, but not surely"]),
        ([("d", SPEED, 0.8, 0.9), ("l", P50, 1.1, 1.2)], "slower", ["d: jobs/s", "l: p50 ms"]),
        ([("d", SPEED, 1.1, 1.3), ("d", SERVER, *WIDE)], "faster", ["d: jobs/s"]),
        ([("d", SPEED, 1.1, 1.3), ("l", SPEED, *WIDE)], "undecided", ["l: the interval"]),
    ],
)  # fmt: skip
def test_all_rows_together(rows: Sequence[tuple[Any, ...]], expected: str, words: list[str]) -> None:
    """Slower when one is; CPU time decides for its own benchmark only, when it is known closely."""
    decision = decide([row(*each) for each in rows])
    assert decision.verdict == expected
    assert len(decision.reasons) == len(words)
    assert all(each in reason for each, reason in zip(words, decision.reasons, strict=True))


def test_a_benchmark_without_heats_is_undecided() -> None:
    """The time was over before."""
    decision = decide(rows_of(LATENCY, []))
    assert decision == Decision("undecided", ("latency: 0 of at least 6 heats were measured",))


# ---- what benchmarks print -------------------------------------------------------------------------------------------

ROUNDS = [{"jobs_per_s": 100.0, "server_us": 30.0, "client_us": 40.0, "seconds": 1.0, "others_cores": None}]
PACED = [
    {"design": design, "share": share, "latency": {"p50_ms": 1.0, "p99_ms": 2.0, "p999_ms": 3.0}}
    for design, share in (("relay", None), ("dispatch", None), ("relay", 50), ("dispatch", 50))
]


@pytest.mark.parametrize(
    ("benchmark", "document", "expected"),
    [
        (DISPATCH, {"dispatch": {"rounds": ROUNDS}}, {"jobs_per_s": 100, "server_us": 30, "client_us": 40}),
        (LIFECYCLE, {"lifecycle": [90], "relay": [500]}, {"jobs_per_s": 90}),
        (LIFECYCLE, {"rounds": ROUNDS, "lifecycle": [100]}, {"jobs_per_s": 100, "server_us": 30, "client_us": 40}),
        (LIFECYCLE, {"rounds": [{"jobs_per_s": 9, "client_us": None}], "lifecycle": [9]}, {"jobs_per_s": 9}),
        (LATENCY, {"rows": PACED}, {"p50_ms": 1, "p99_ms": 2}),
        (
            LATENCY,
            {"rows": [each | {"server_us": 3, "client_us": 4} for each in PACED]},
            {"p50_ms": 1, "p99_ms": 2, "server_us": 3, "client_us": 4},
        ),
    ],
)
def test_what_a_commit_measures_is_read(
    benchmark: Benchmark, document: dict[str, Any], expected: dict[str, float]
) -> None:
    """Also of commits whose `lifecycle` and `latency` tell no CPU time."""
    assert figures_of(benchmark, document, 1) == [expected]


@pytest.mark.parametrize("document", [{}, {"dispatch": None}, {"dispatch": {"rounds": []}}])
def test_a_document_that_is_none_is_refused(document: dict[str, Any]) -> None:
    """Nothing is guessed."""
    with pytest.raises(BenchmarkFailed, match="its JSON"):
        figures_of(DISPATCH, document, 1)


def test_sides_that_do_not_do_the_same_are_not_compared() -> None:
    """As far as both tell what they do."""
    check_same_work(DISPATCH, {"inputs": {"jobs": 5, "batch": 64}}, {"inputs": {"jobs": 5, "other": 1}})
    with pytest.raises(BenchmarkFailed, match="dispatch: jobs = 5 on the old side, 6 on the new: expected the same"):
        check_same_work(DISPATCH, {"inputs": {"jobs": 5}}, {"inputs": {"jobs": 6}})


def test_a_measure_that_one_side_lacks_has_no_verdict() -> None:
    """And it takes no part in the decision."""
    rows = rows_of(LIFECYCLE, [[Pair({"jobs_per_s": 10}, {"jobs_per_s": 10, "server_us": 3})]] * 6)
    assert [(each.old, each.new, each.verdict) for each in rows] == [
        (10, 10, "no slower"), (None, 3, None), (None, None, None),
    ]  # fmt: skip


# ---- when to stop ----------------------------------------------------------------------------------------------------


def quiet(ratio: float) -> Callable[[Benchmark, int], list[Pair]]:
    """Heats in which every ratio is this one."""

    def heat(benchmark: Benchmark, _: int) -> list[Pair]:
        names = [measure.name for measure in benchmark.measures]
        return [Pair(dict.fromkeys(names, 1.0), dict.fromkeys(names, ratio))] * 4

    return heat


def noisy(random: Random, slower: float, sigma: float) -> Callable[[Benchmark, int], list[Pair]]:
    """Heats with noise, in which a job of the new side costs so many times as much as one of the old side."""

    def side(benchmark: Benchmark, cost: float) -> dict[str, float]:
        factors = {measure: cost * math.exp(random.gauss(0, sigma)) for measure in benchmark.measures}
        return {m.name: 1 / factor if m.kind == "throughput" else factor for m, factor in factors.items()}

    def heat(benchmark: Benchmark, _: int) -> list[Pair]:
        process = math.exp(random.gauss(0, sigma / 3))  # for as long as the two live
        return [Pair(side(benchmark, 1), side(benchmark, slower * process)) for _ in range(4)]

    return heat


def simulated(heat: Callable[[Benchmark, int], list[Pair]], minutes: float = 30, heat_s: float = 10) -> Found:
    """A whole comparison, on a clock of its own."""
    now_s = 0.0

    def run(benchmark: Benchmark, number: int) -> Heat:
        nonlocal now_s
        now_s += heat_s
        return Heat(heat(benchmark, number), FACTS, FACTS)

    plan = Plan(benchmarks=benchmarks(quick=False), minutes=minutes, rounds=4)
    return measure(plan, run, lambda _: None, lambda: now_s)


def test_a_quiet_machine_needs_the_least_number_of_heats() -> None:
    """Ten of each benchmark."""
    found = simulated(quiet(1.0))
    assert {name: len(heats) for name, heats in found.heats.items()} == {"dispatch": 10, "lifecycle": 10, "latency": 10}
    assert decide(found.rows).verdict == "no slower"


def test_time_is_shared_and_not_exceeded() -> None:
    """On a machine where nothing gets narrow enough; latency, which need not, has half as much as the others."""
    found = simulated(noisy(Random(1), 1, 0.9))
    heats = {name: len(heats) for name, heats in found.heats.items()}
    assert sum(heats.values()) == 180
    assert heats["dispatch"] == pytest.approx(heats["lifecycle"], abs=1)
    assert heats["latency"] == pytest.approx(heats["dispatch"] / 2, abs=1)
    assert found.minutes <= 30
    assert decide(found.rows).verdict == "undecided"


def test_a_heat_that_would_end_too_late_is_not_begun() -> None:
    """The first one of each benchmark is, as long as there is time."""
    found = simulated(quiet(1.0), minutes=0.3)
    assert sorted(len(heats) for heats in found.heats.values()) == [0, 1, 1]


def test_intervals_are_looked_at_after_set_numbers_of_heats() -> None:
    """Narrow ones in between do not stop anything, and nothing does before the first look."""
    rows = rows_of(DISPATCH, [[Pair({"jobs_per_s": 1.0}, {"jobs_per_s": 1.0})]] * 10)
    assert [heats for heats in range(1, 50) if is_enough(rows, heats)] == [10, 14, 20, 28, 40]
    wide = rows_of(DISPATCH, [[Pair({"jobs_per_s": 1.0}, {"jobs_per_s": 0.9 + heat / 25})] for heat in range(10)])
    assert not any(is_enough(wide, heats) for heats in range(1, 50))


def test_open_verdicts_go_first() -> None:
    """A benchmark whose CPU times are known closely waits, although its throughput is not."""

    def heat(benchmark: Benchmark, number: int) -> list[Pair]:
        figures = {"jobs_per_s": 1 + number % 2, "server_us": 1.0, "p50_ms": 1.0, "p99_ms": 1.0}
        if benchmark.name != "lifecycle":
            figures["client_us"] = 1.0
        return [Pair(dict.fromkeys(figures, 1.0), figures)]

    found = simulated(heat)
    heats = {name: len(heats) for name, heats in found.heats.items()}
    assert (heats["dispatch"], heats["latency"]) == (10, 10)
    assert heats["lifecycle"] == 160
    assert decide(found.rows).reasons[0].endswith("and not both sides measure client us/job")


@pytest.mark.parametrize("sigma", [0.02, 0.4])
def test_the_same_code_is_not_found_slower(sigma: float) -> None:
    """Whatever the noise."""
    random = Random(1)
    verdicts = {decide(simulated(noisy(random, 1, sigma)).rows).verdict for _ in range(6)}
    assert not verdicts & {"slower", "faster"}


def test_code_that_is_a_tenth_slower_is_found() -> None:
    """On a machine with noise."""
    random = Random(1)
    assert {decide(simulated(noisy(random, 1.1, 0.1)).rows).verdict for _ in range(4)} == {"slower"}


def test_a_heat_is_one_value() -> None:
    """The geometric mean of its pairs, however many they are: they share two processes."""
    pairs = [Pair({"jobs_per_s": 100}, {"jobs_per_s": speed}) for speed in (50, 200, 121)]
    (speed, *_) = rows_of(DISPATCH, [pairs] * 6)
    assert speed.ratio is not None
    assert (speed.heats, speed.old, speed.new) == (6, 100, 121)
    assert speed.ratio.median == pytest.approx(1.21 ** (1 / 3))


# ---- what is printed -------------------------------------------------------------------------------------------------


def test_a_comparison_is_told_in_80_columns() -> None:
    """The sides, a line for each measure, what one of them does not measure, and the verdict."""
    missing = row("lifecycle", SERVER, None)
    rows = [*(row("dispatch", measure, 0.985, 1.015) for measure in (SPEED, *CPU)), missing]
    plan = Plan(benchmarks=benchmarks(quick=False), minutes=30, rounds=4)
    found = Found(rows=rows, heats={}, minutes=12.3, old_facts=FACTS | {"server": "valkey 9.0"}, new_facts=FACTS)
    old, new = Code("k", "f6244dd What it does" + " and more" * 20, "f"), Code("k", "working tree", "f", 3)
    lines = list(report.lines(old, new, plan, found, decide(rows)))
    assert max(map(len, lines)) <= 80
    assert "dispatch  server us/job     1.00     1.00  1.000 0.985 to 1.015    30 no slower" in lines
    assert "not measured by the benchmarks of the old side: lifecycle server us/job" in lines
    assert "server differs: valkey 9.0 on the old side, x on the new one" in lines
    assert "no slower, after 12.3 minutes" in lines
    document = report.document(old, new, plan, found, decide(rows))
    assert (document["verdict"], document["minutes"]) == ("no slower", 12.3)
