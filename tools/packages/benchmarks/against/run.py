"""Heat after heat, until enough is known of each benchmark or the time is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from benchmarks.against.held import Heat
from benchmarks.against.judgement import Row, can_wait, is_enough, rows_of
from benchmarks.against.measures import Benchmark, Document, Pair


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. rounds: pairs of each heat; heats_max: of each benchmark, None for no limit but the time."""

    benchmarks: tuple[Benchmark, ...]
    minutes: float
    rounds: int
    heats_max: int | None = None


class Found(msgspec.Struct, frozen=True):
    """What came of it. old_facts, new_facts: of the machine and the libraries, as each side tells them."""

    rows: list[Row]
    heats: dict[str, list[list[Pair]]]
    minutes: float
    old_facts: Document
    new_facts: Document


class _Course:
    """How far a benchmark is. seconds: that all of its heats took; heat_s: the last one."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self.heats: list[list[Pair]] = []
        self.seconds = 0.0
        self.heat_s = 0.0

    @property
    def rows(self) -> list[Row]:
        return rows_of(self.benchmark, self.heats)

    def add(self, heat: Heat, seconds: float) -> None:
        self.heats.append(heat.pairs)
        self.seconds += seconds
        self.heat_s = seconds


def measure(
    plan: Plan,
    run_heat: Callable[[Benchmark, int], Heat],
    tell: Callable[[str], None],
    clock_s: Callable[[], float],
) -> Found:
    """Run heats. Next is a benchmark whose verdict is open, and of those the one that has had the least of its share.

    A heat is not begun when it would end after the time, as long as the last one of its benchmark took.

    Args: plan; run_heat, of a benchmark, and how many it has had; tell, of a line about each; clock_s.
    """
    courses = [_Course(benchmark) for benchmark in plan.benchmarks]
    from_s, last = clock_s(), Heat([], {}, {})
    open_courses = list(courses)
    while True:
        left_s = plan.minutes * 60 - (clock_s() - from_s)
        open_courses = [each for each in open_courses if not _is_over(each, plan, left_s)]
        if not open_courses:
            break
        course = min(open_courses, key=_turn)
        heat_from_s = clock_s()
        last = run_heat(course.benchmark, len(course.heats))
        course.add(last, clock_s() - heat_from_s)
        tell(progress(course.rows, max(0.0, plan.minutes - (clock_s() - from_s) / 60)))
    return Found(
        rows=[row for each in courses for row in each.rows],
        heats={each.benchmark.name: each.heats for each in courses},
        minutes=(clock_s() - from_s) / 60,
        old_facts=last.old_facts,
        new_facts=last.new_facts,
    )


def _turn(course: _Course) -> tuple[bool, float]:
    """The lowest is next."""
    return can_wait(course.rows, len(course.heats)), course.seconds / course.benchmark.weight


def _is_over(course: _Course, plan: Plan, left_s: float) -> bool:
    heats = len(course.heats)
    if left_s <= 0 or left_s < course.heat_s or heats == plan.heats_max:
        return True
    return heats > 0 and is_enough(course.rows, heats)


def progress(rows: Sequence[Row], minutes_left: float) -> str:
    """A line about a benchmark that goes on."""
    row = rows[0]
    words = f"{row.benchmark}: {row.heats} heat{'' if row.heats == 1 else 's'}"
    if row.ratio is not None:
        words += f", {row.measure.unit} new / old {row.ratio.low:.3f} to {row.ratio.high:.3f}"
    return f"{words}; {minutes_left:.1f} minutes left"
