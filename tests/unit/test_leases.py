"""When a node may start, must renew and must stop."""

from __future__ import annotations

import math

import pytest

from scheduler.node.leases import Reservation, is_left_behind, may_run, renewal_due, to_stop

MARGIN_MS = 1_000


def reservation(ends_ms: float, length_ms: int = 15_000, token: int = 1) -> Reservation:
    """One that this node runs."""
    return Reservation(f"j{token}", token, ends_ms, 15_000, length_ms)


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
