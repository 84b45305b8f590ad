"""The time that leaving may take."""

from __future__ import annotations

from itertools import pairwise

import pytest

from scheduler.clock import Clock
from scheduler.node.drain import DRAIN_MS_MAX, REPORT_MS_MIN, STOP_MS_MIN, Drain

KILLED_MS = 30_000  # after the first signal, by Kubernetes and Heroku


class OwnClock(Clock):
    """One that is set."""

    def __init__(self) -> None:
        self.now_ms = 1_000.0

    def ms(self) -> float:
        """The time that was set."""
        return self.now_ms


@pytest.mark.parametrize(
    ("total_ms", "parts"),
    [
        (25_000, (20_000, 23_000, 25_000)),
        (60_000, (55_000, 58_000, 60_000)),
        (3_000, (2_400, 2_700, 3_000)),
        (100, (80, STOP_MS_MIN, REPORT_MS_MIN)),
        (0, (0, STOP_MS_MIN, REPORT_MS_MIN)),
    ],
)
def test_each_part_ends_before_the_next(total_ms: int, parts: tuple[float, float, float]) -> None:
    """Jobs have the most; the shortest drain has some time for giving back."""
    drain = Drain(total_ms, OwnClock())
    drain.begin()
    assert (drain.jobs_ms, drain.handlers_ms, drain.report_ms) == parts
    assert all(before <= after for before, after in pairwise(parts))


def test_what_one_part_takes_the_others_do_not_have() -> None:
    """Begun twice, it counts from the first time."""
    clock = OwnClock()
    drain = Drain(25_000, clock)
    assert drain.jobs_ms == 20_000
    drain.begin()
    clock.now_ms += 19_000
    drain.begin()
    assert (drain.jobs_ms, drain.handlers_ms, drain.report_ms) == (1_000, 4_000, 6_000)
    clock.now_ms += 60_000
    assert (drain.jobs_ms, drain.handlers_ms, drain.report_ms) == (0, STOP_MS_MIN, REPORT_MS_MIN)


def test_the_default_ends_before_anybody_kills() -> None:
    """With some seconds for the end of the process."""
    assert DRAIN_MS_MAX <= KILLED_MS - 5_000
