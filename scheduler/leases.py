"""Pure. Decides; never performs. A node's own bound on the server's time, which reservations are renewed or stopped,
and which of an earlier life are kept.

No handler runs past its lease: the bound on the server's time is the `now_ms` of an answer plus the own monotonic
time since that request was *sent*, so it is never too low, however long the answer took or the process was stopped.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class ServerClock:
    """An upper bound of the server's time, from the newest answer."""

    def __init__(self) -> None:
        self._now_ms = 0.0
        self._sent_ms: float | None = None

    def heard(self, now_ms: int, sent_ms: float) -> None:
        """An answer said `now_ms` (server time); its request was sent at `sent_ms` (own monotonic time)."""
        if self._sent_ms is None or sent_ms >= self._sent_ms:
            # The server cut its time down to whole milliseconds; a bound has to make up for that.
            self._now_ms, self._sent_ms = now_ms + 1, sent_ms

    def latest_ms(self, monotonic_ms: float) -> float:
        """The server's time is at most this. Infinite before the first answer: nothing may be started then."""
        if self._sent_ms is None:
            return float("inf")
        return self._now_ms + (monotonic_ms - self._sent_ms)


class Reservation(msgspec.Struct):
    """A reservation of this node. length_ms: of the lease in force, first `start_ms`, later the full one. is_started:
    whether its handler was called.
    """

    job_id: str
    token: int
    lease_until_ms: int
    lease_ms: int
    length_ms: int
    is_started: bool = False


def to_stop(reservations: Iterable[Reservation], latest_ms: float, margin_ms: int) -> list[Reservation]:
    """Those whose lease may end within the margin."""
    return [each for each in reservations if not may_run(each, latest_ms, margin_ms)]


def renewal_due(reservations: Iterable[Reservation], latest_ms: float) -> bool:
    """Whether a third of some lease has passed; then all are renewed, in one call."""
    return any(latest_ms >= each.lease_until_ms - each.length_ms * 2 / 3 for each in reservations)


def may_run(reservation: Reservation, latest_ms: float, margin_ms: int) -> bool:
    """Whether a handler may start or go on: an assignment can arrive late.

    The margin is half of the lease at most: pools can have shorter leases than the node's own settings were made for.
    """
    return latest_ms < reservation.lease_until_ms - min(margin_ms, reservation.length_ms // 2)


def was_renewed_since(boot_ms: int, started_ms: int | None, lease_until_ms: int, lease_ms: int) -> bool:
    """Whether a reservation was renewed at `boot_ms` or later: who holds it is alive then.

    A renewal gives `lease_ms` from its own time on, so it took place that long before the lease ends. Only the first
    lease has another length; it is the one in force as long as nothing is started.

    Args: boot_ms, server time; started_ms and lease_ms, as the record has them; lease_until_ms, as the slot has it.
    """
    return started_ms is not None and lease_until_ms - lease_ms >= boot_ms
