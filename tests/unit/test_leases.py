"""When a node may start, must renew and must stop."""

from __future__ import annotations

import math

import pytest

from scheduler.leases import (
    Reservation,
    ServerClock,
    first_lease_ends_ms,
    is_left_behind,
    may_run,
    renewal_due,
    to_stop,
)

MARGIN_MS = 1_000


def reservation(ends_ms: float, length_ms: int = 15_000, token: int = 1) -> Reservation:
    """One that this node runs."""
    return Reservation(f"j{token}", token, ends_ms, 15_000, length_ms)


def test_nothing_is_known_of_the_time_before_the_first_answer() -> None:
    """So a first lease has ended, as far as is known."""
    latest_ms = ServerClock().latest_ms(123.0)
    assert latest_ms == math.inf
    ends_ms = first_lease_ends_ms(10**15, 5_000, latest_ms, 123.0)
    assert ends_ms is not None
    assert not may_run(reservation(ends_ms), 123.0, MARGIN_MS)


def test_time_goes_on_from_when_the_request_was_sent() -> None:
    """An answer that took long makes the bound later, never earlier; a millisecond makes up for one cut down."""
    clock = ServerClock()
    clock.heard(now_ms=10_000, sent_ms=500.0)
    assert [clock.latest_ms(monotonic_ms) for monotonic_ms in (500.0, 600.0, 5_500.0)] == [10_001, 10_101, 15_001]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        pytest.param([(10_000, 500.0), (10_300, 790.0)], 10_511, id="a newer answer replaces an older one"),
        pytest.param([(10_300, 790.0), (10_000, 500.0)], 10_511, id="an older one that comes later does not"),
        pytest.param([(10_000, 500.0), (10_004, 500.0)], 10_505, id="of two sent at once the last one counts"),
        pytest.param([(10_000, 500.0), (9_000, 900.0)], 9_101, id="a server whose clock was set back is followed"),
    ],
)
def test_the_answer_to_the_newest_request_counts(answers: list[tuple[int, float]], expected: float) -> None:
    """Answers of concurrent calls may come in any order."""
    clock = ServerClock()
    for now_ms, sent_ms in answers:
        clock.heard(now_ms, sent_ms)
    assert clock.latest_ms(1_000.0) == expected


@pytest.mark.parametrize(
    ("own_ms", "starts", "stops"),
    [(18_999.9, True, False), (19_000.0, False, True), (20_000.0, False, True), (25_000.0, False, True)],
)
def test_a_handler_ends_a_margin_before_its_lease(own_ms: float, starts: bool, stops: bool) -> None:
    """What may not start any more must stop, at the same instant."""
    held = reservation(20_000)
    assert may_run(held, own_ms, MARGIN_MS) is starts
    assert to_stop([held], own_ms, MARGIN_MS) == ([held] if stops else [])


@pytest.mark.parametrize(("own_ms", "runs"), [(19_699.0, True), (19_700.0, False)])
def test_the_margin_is_half_of_a_short_lease_at_most(own_ms: float, runs: bool) -> None:
    """A pool can have shorter leases than the node's margin was made for; its jobs run all the same."""
    assert may_run(reservation(20_000, length_ms=600), own_ms, MARGIN_MS) is runs


def test_only_those_stop_whose_lease_ends() -> None:
    """The others run on."""
    held = [reservation(20_000, token=1), reservation(30_000, token=2), reservation(19_500, token=3)]
    assert to_stop(held, 19_200, MARGIN_MS) == [held[0], held[2]]


@pytest.mark.parametrize(
    ("own_ms", "due"), [(5_000.0, False), (9_999.0, False), (10_000.0, True), (19_000.0, True), (math.inf, True)]
)
def test_renewal_is_due_after_a_third_of_a_lease(own_ms: float, due: bool) -> None:
    """Of any lease: one call renews them all."""
    assert renewal_due([reservation(60_000), reservation(20_000)], own_ms) is due


def test_a_first_lease_is_shorter_and_renewed_earlier() -> None:
    """A third of the lease in force counts, not of the full one."""
    assert renewal_due([reservation(20_000, length_ms=3_000)], 17_999.0) is False
    assert renewal_due([reservation(20_000, length_ms=3_000)], 18_000.0) is True


def test_without_reservations_nothing_is_due() -> None:
    """Not even before the first answer."""
    assert (renewal_due([], math.inf), to_stop([], math.inf, MARGIN_MS)) == (False, [])


@pytest.mark.parametrize(
    ("latest_ms", "ends_ms"),
    [
        pytest.param(100_000, 5_700.0, id="it was just made"),
        pytest.param(103_000, 2_700.0, id="it was on its way for a while"),
        pytest.param(109_000, -3_300.0, id="it came too late"),
        pytest.param(99_999, None, id="the server's clock, or what is known of it, was stepped since"),
        pytest.param(100_000 - 3_600_000, None, id="by an hour"),
    ],
)
def test_the_end_of_a_first_lease_by_the_own_clock(latest_ms: float, ends_ms: float | None) -> None:
    """It was made for 5 s and ends at 105,000 by the server; 700 by the own clock is now."""
    assert first_lease_ends_ms(105_000, 5_000, latest_ms, 700.0) == ends_ms


@pytest.mark.parametrize(
    ("started_ms", "until_ms", "before_ms", "is_left"),
    [
        pytest.param(9_000, 24_000, 24_000, True, id="nobody has renewed it since"),
        pytest.param(9_000, 25_000, 24_000, False, id="somebody has"),
        pytest.param(9_000, 20_000, 24_000, False, id="also by a clock that went back"),
        pytest.param(11_000, 26_000, None, False, id="it was reserved and renewed since"),
        pytest.param(None, 26_000, None, True, id="it was reserved since and nobody has started it"),
        pytest.param(None, 26_000, 26_000, True, id="it was never started"),
    ],
)
def test_whoever_renews_is_alive(started_ms: int | None, until_ms: int, before_ms: int | None, is_left: bool) -> None:
    """No time is compared with another: a lease that is another one now was renewed since this life began."""
    assert is_left_behind(started_ms, until_ms, before_ms) is is_left
