"""How much is read at once."""

from __future__ import annotations

from scheduler.store.pace import BYTES_MAX, BYTES_MIN, FIRST_BYTES, LONG_MS, QUICK_MS, SLOW_FOR_MS, Pace


def slow(now_ms: float = 0) -> Pace:
    """A pace that was found to be slow."""
    pace = Pace()
    pace.gave_up(now_ms)
    return pace


def test_all_is_read_at_once_until_that_was_slow_and_again_a_while_later() -> None:
    """Ten seconds after the last sign of it."""
    assert not Pace().is_slow(0)
    assert slow().is_slow(SLOW_FOR_MS - 1)
    assert not slow().is_slow(SLOW_FOR_MS)


def test_quick_reads_that_leave_something_grow() -> None:
    """Up to a bound; one that left nothing says nothing of the link."""
    pace = slow()
    pace.read(0, QUICK_MS - 1, is_all=True)
    assert pace.bytes_max == FIRST_BYTES
    pace.read(0, QUICK_MS - 1, is_all=False)
    assert pace.bytes_max == 2 * FIRST_BYTES
    for _ in range(20):
        pace.read(0, 1, is_all=False)
    assert pace.bytes_max == BYTES_MAX


def test_long_reads_and_those_that_fail_shrink() -> None:
    """Down to one entry, which every read brings."""
    pace = slow()
    pace.read(0, LONG_MS + 1, is_all=True)
    assert pace.bytes_max == FIRST_BYTES / 2
    pace.timed_out(0)
    assert pace.bytes_max == FIRST_BYTES / 4
    for _ in range(20):
        pace.timed_out(0)
    assert pace.bytes_max == BYTES_MIN


def test_it_stays_slow_while_something_is_left_or_takes_long() -> None:
    """Only reads that are quick and bring all there is end it."""
    pace = slow()
    pace.read(9_000, 1, is_all=False)
    assert pace.is_slow(SLOW_FOR_MS)
    pace.read(9_500, LONG_MS + 1, is_all=True)
    assert pace.is_slow(9_500 + SLOW_FOR_MS - 1)
    pace.read(9_500 + SLOW_FOR_MS, 1, is_all=True)
    assert not pace.is_slow(9_500 + SLOW_FOR_MS)


def test_what_was_learned_is_kept_while_it_is_slow() -> None:
    """Another failure of the same kind does not begin anew; the next time does."""
    pace = slow()
    pace.read(0, 1, is_all=False)
    pace.gave_up(5_000)
    assert pace.bytes_max == 2 * FIRST_BYTES
    pace.gave_up(60_000)
    assert pace.bytes_max == FIRST_BYTES
