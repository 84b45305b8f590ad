"""How long things take: what is counted, and when it is warned about."""

from __future__ import annotations

import logging
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.protocol.messages import Refused, Reserved
from scheduler.runtime.placement.attempt import Call, PlacementAttempt
from scheduler.runtime.placement.candidates import Placement
from scheduler.runtime.waiting.queues import Waiter
from scheduler.runtime.waiting.waiting_jobs import Waiting
from scheduler.timings import TOLD_EVERY_MS, WINDOW_MS, Histogram, Timing, merged
from tests.unit.arrange import a_class, a_job, a_state

FOUND = Placement((("n1",),))


def counted(*values: float) -> Histogram:
    """A histogram of these values."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def test_a_histogram_of_nothing() -> None:
    """Says so."""
    assert (Histogram().count, Histogram().p50, Histogram().p99, Histogram().max) == (0, 0, 0, 0)


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=200), st.floats(0.01, 1))
def test_quantiles_are_right_within_a_fifth(values: list[float], share: float) -> None:
    """At any size, and never above the largest value."""
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    assert exact * 0.999 <= counted(*values).quantile(share) <= min(exact * 1.2, max(values))


def test_most_values_are_nothing() -> None:
    """Values below 1 are taken for 0, and many at once are counted in one go."""
    histogram = counted(0.3, 200)
    histogram.add(0, 997)
    histogram.add(5, 0)
    assert (histogram.count, histogram.p50, histogram.p99, histogram.max) == (999, 0, 0, 200)


def test_what_is_larger_than_all_buckets_is_in_the_last_one() -> None:
    """However large."""
    assert len(counted(1e30, 1e40).buckets) == 1


def test_histograms_add_up() -> None:
    """As if all had been counted by one."""
    random = Random(1)
    values = [random.expovariate(0.01) for _ in range(100)]
    assert merged([counted(*values[:30]), counted(*values[30:])]) == counted(*values)


def test_what_is_told_of_late_is_forgotten() -> None:
    """After one to two windows; the total remembers all."""
    timing = Timing(Histogram(), limit=1e9)
    timing.add(100, 0)
    timing.add(7, WINDOW_MS)
    told = [timing.p99_of_late(at_ms) for at_ms in (WINDOW_MS, 2 * WINDOW_MS, 3 * WINDOW_MS, 9 * WINDOW_MS)]
    assert told == [100, 7, 0, 0]
    assert timing.total.count == 2


def test_long_times_are_counted_and_told_once_a_minute() -> None:
    """Each of those above the limit, and what is told is all of them since the last time."""
    timing = Timing(Histogram(), limit=10)
    values = ((10, 0), (11, 1), (500, 2), (12, TOLD_EVERY_MS), (12, TOLD_EVERY_MS + 1), (9, 3 * TOLD_EVERY_MS))
    told = [timing.add(value, now_ms) for value, now_ms in values]
    assert [(each.count, each.max) if each else None for each in told] == [None, (1, 11), None, None, (3, 500), None]


def waited(ms: float) -> Waiter:
    """One that waits, and was behind its session for so long."""
    waiter = Waiting().found_no_room(a_job(), a_class(), 1_000)
    waiter.first_ms += ms
    return waiter


def test_the_wait_for_the_session_is_counted_for_each_that_was_placed(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing for newcomers, nor for those that only waited for room; who was not placed is counted when it is."""
    state = a_state()
    waiters = [None, waited(0), waited(40), waited(90), waited(500), None]
    tries = [PlacementAttempt(a_job(), a_class(), waiter, FOUND) for waiter in waiters]
    tries.insert(2, PlacementAttempt(a_job(), a_class(), None, None))
    with caplog.at_level(logging.INFO):
        placed = Reserved("n1", 1, 1)
        call = Call(tries, frozenset({0}), 0, state.index, 0)
        state.apply_answers(call, [placed, placed, None, placed, placed, Refused("full"), placed])
    waits = state.report.session_wait_ms
    assert (waits.count, waits.p50, waits.max) == (5, 0, 90)
    assert [record.message for record in caplog.records] == [
        "1 jobs waited more than 10 ms for an earlier one of their session, half of them 40 ms, the longest 40 ms: job "
        "j1 of session s1 is the last of them"
    ]


def test_who_becomes_the_first_of_its_session_is_told() -> None:
    """So that the time can be taken by who has a clock."""
    state = a_state()
    waiting = state.waiting
    first = waiting.found_no_room(a_job("j1"), a_class(), 0)
    second = waiting.queue(a_job("j2"), a_class(), 5)
    assert waiting.promoted == []
    waiting.leave(first, placed="n1")
    assert waiting.promoted == [second]
    state.apply_answers(Call([], frozenset(), 0, state.index, 0), [])
    assert waiting.promoted == []
    assert second.first_ms > second.since_ms
