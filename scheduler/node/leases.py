"""Pure. Decides; never performs. A node's leases as deadlines of its own clock: which may run, which are renewed or
stopped; and which of an earlier life are kept.

No handler runs past its lease. Each lease becomes a deadline of the node's own clock: a time when it was surely not
made yet, plus its length, so never too late, however long an answer took or the process was stopped, and whatever the
server's clock does. For a renewal that is when it was *sent*; for the first lease, when the last read was sent that
brought all that was there.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Reservation(msgspec.Struct):
    """A reservation of this node.

    ends_ms: of its lease, by the node's own clock. lease_ms: how long renewed leases are. length_ms: of the lease in
    force, first `start_ms` of its pool, later `lease_ms`. is_started: whether its handler was called.
    """

    job_id: str
    token: int
    ends_ms: float
    lease_ms: int
    length_ms: int
    is_started: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """That of the attempt."""
        return self.job_id, self.token


def may_run(reservation: Reservation, own_ms: float, margin_ms: int) -> bool:
    """Whether a handler may start or go on: an assignment can arrive late.

    The margin is half of the lease at most: pools can have shorter leases than the node's own settings were made for.
    """
    return own_ms < reservation.ends_ms - min(margin_ms, reservation.length_ms // 2)


def to_stop(reservations: Iterable[Reservation], own_ms: float, margin_ms: int) -> list[Reservation]:
    """Those whose lease ends within the margin."""
    return [each for each in reservations if not may_run(each, own_ms, margin_ms)]


def renewal_due(reservations: Iterable[Reservation], own_ms: float) -> bool:
    """Whether a third of some lease has passed; then all are renewed, in one call."""
    return any(own_ms >= each.ends_ms - each.length_ms * 2 / 3 for each in reservations)


def is_left_behind(started_ms: int | None, lease_until_ms: int, held_until_ms: int | None) -> bool:
    """Whether nobody has renewed a reservation of an earlier life since this life began: who holds it is dead, or cut
    off.

    Args: started_ms, of the record, None before the first renewal; lease_until_ms, as the slot has it now;
    held_until_ms, as it had it when this life began, None when there was no such slot.
    """
    return started_ms is None or lease_until_ms == held_until_ms
