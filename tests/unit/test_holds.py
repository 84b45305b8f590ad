"""Handlers that hold their process up: who is named, and whose start the server is told of first."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.clock import Clock
from scheduler.node.handlers import Job
from scheduler.node.holds import Holds
from tests.unit.test_handlers import a_job


class OwnClock(Clock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_ms = 1_000.0

    def ms(self) -> float:
        """What it was set to."""
        return self.now_ms


def plain(job: Job) -> None:
    """A handler in a thread."""


async def asynchronous(job: Job) -> None:
    """One in the event loop."""


NAME = f"{plain.__module__}.plain"


def holds(handler: Any = plain) -> tuple[Holds, OwnClock]:
    """With first leases of six seconds."""
    clock = OwnClock()
    return Holds(handler, 6_000, clock), clock


def ran(known: Holds, clock: OwnClock, length_ms: float, job: Job | None = None) -> None:
    """A run of that length."""
    job = job or a_job()
    known.began(job)
    clock.now_ms += length_ms
    known.ended(job)


def test_the_first_start_is_told_and_those_of_short_runs_are_not() -> None:
    """A renewal for each job would cost what nobody needs."""
    known, clock = holds()
    before = known.is_told_first(a_job())
    ran(known, clock, 1_999)
    assert (before, known.is_told_first(a_job())) == (True, False)


def test_starts_of_long_runs_are_told_until_many_short_ones_followed() -> None:
    """They are renewed anyway, a third of their first lease later."""
    known, clock = holds()
    ran(known, clock, 2_000)
    assert known.is_told_first(a_job())
    ran(known, clock, 1)
    assert not known.is_told_first(a_job())
    ran(known, clock, 20_000)
    for _ in range(20):
        ran(known, clock, 1)
        assert known.is_told_first(a_job())
    for _ in range(40):
        ran(known, clock, 1)
    assert not known.is_told_first(a_job())


def test_the_start_of_a_job_that_comes_again_is_told() -> None:
    """It may be what ended the node before."""
    known, clock = holds()
    ran(known, clock, 1)
    assert known.is_told_first(a_job(reservation=b"7 1-a 5000 3/1-1 2 1 1 4000"))


def test_after_a_handler_has_held_the_process_up_all_starts_are_told() -> None:
    """However short the runs that follow."""
    known, clock = holds()
    ran(known, clock, 1)
    assert known.watch(501, []) is not None
    known.watch(0, [])
    assert known.is_told_first(a_job())


def test_a_pause_in_which_nothing_ran_teaches_nothing() -> None:
    """The machine slept, say."""
    known, clock = holds()
    ran(known, clock, 1)
    known.watch(0, [])
    told = known.watch(60_000, [])
    assert told == "nothing of this process ran for 60000 ms, no lease was renewed: it was paused, or is too busy"
    assert not known.is_told_first(a_job())


@pytest.mark.parametrize("late_ms", [0, 100, 500])
def test_a_little_late_is_nothing(late_ms: float) -> None:
    """Timers are never exact."""
    known, _ = holds()
    known.began(a_job())
    assert known.watch(late_ms, []) is None


def test_the_handler_that_had_the_processor_is_named_with_its_job() -> None:
    """And not those that waited beside it; also when it has ended meanwhile."""
    known, clock = holds()
    bad, waiting = a_job(job_id=b"bad"), a_job(job_id=b"waiting")
    known.began(waiting)
    ran(known, clock, 9_000, bad)
    told = known.watch(8_900, [(waiting, 3.0), (bad, 4_200.0)]) or ""
    assert told.startswith(
        f"{NAME} held Python's lock (GIL) for 8900 ms, for job bad (attempt 1): no lease was renewed"
    )


def test_where_nobody_computed_all_that_ran_are_named() -> None:
    """An extension that waits with the lock, or a pause."""
    known, _ = holds()
    for number in range(5):
        known.began(a_job(job_id=f"j{number}".encode()))
    told = known.watch(9_000, [(a_job(job_id=b"j0"), 2.0)]) or ""
    assert "it was paused, or" in told
    assert told.endswith("for job j4 (attempt 1), j3 (attempt 1), j2 (attempt 1) and 2 more")


def test_an_async_handler_is_named_with_what_it_blocked() -> None:
    """Those that ran since the last look, and not those before."""
    known, clock = holds(asynchronous)
    ran(known, clock, 5, a_job(job_id=b"before"))
    known.watch(0, [])
    ran(known, clock, 5, a_job(job_id=b"bad"))
    told = known.watch(1_234, []) or ""
    assert told.startswith("the event loop was blocked for 1234 ms; a handler that computes must not be async: ")
    assert told.endswith(".asynchronous ran, for job bad (attempt 1)")
