"""Pure. Decides; never performs. Whom it hits next, and what is done to him."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random
from typing import Final, Literal, NamedTuple

import msgspec

Role = Literal["manager", "dispatcher", "reaper", "node"]
ROLES: Final[tuple[Role, ...]] = ("manager", "dispatcher", "reaper", "node")

State = Literal["starting", "running", "paused", "absent"]
"""Of the process in a seat; a paused one wakes by itself later, and somebody takes an empty seat later."""

Kind = Literal["kill", "lose", "pause", "replace", "stop", "leave"]
KINDS: Final[tuple[Kind, ...]] = ("kill", "lose", "pause", "replace", "stop", "leave")
KINDS_OF: Final[Mapping[Role, tuple[Kind, ...]]] = {
    "manager": ("kill", "pause", "replace"),
    "dispatcher": ("kill", "pause", "replace", "stop", "leave"),
    "reaper": ("kill", "pause", "replace"),
    "node": ("kill", "lose", "pause", "replace"),
}
WAKE_SHARE: Final = 0.75
"""Of those that were replaced while they were paused, how many wake again; the others are killed as they lie."""


class Seat(NamedTuple):
    """A seat as it is now."""

    role: Role
    state: State


class Act(msgspec.Struct, frozen=True):
    """What is done to the process in a seat.

    kind: `kill`, and a new process takes its place at once, a node under the same name; `lose`, for nodes: killed, and
    one with another name takes its place, so that nobody but a reaper ends what it held; `pause`, and it wakes two
    leases later; `replace`: a new process takes its place while it is paused. Dispatchers come and go besides: `stop`,
    told to end in order while a new process takes its place; `leave`, the same, but the seat is empty for two leases.
    wakes: for `replace`, whether the old one wakes two leases later.
    """

    seat: str
    kind: Kind
    wakes: bool = True


def draw(random: Random, seats: Mapping[str, Seat], only: Collection[Role] = ROLES) -> Act | None:
    """The next act: each role is as likely as any other, however many play it, and so is each of its seats. Who does
    not run can only be killed.

    Args: seats, by name; only, the roles that may be hit. Returns: None when nobody is there to be hit.
    """
    there = {name: seat for name, seat in seats.items() if seat.role in only and seat.state != "absent"}
    if not there:
        return None
    hit = random.choice(sorted({seat.role for seat in there.values()}))
    name = random.choice(sorted(name for name, seat in there.items() if seat.role == hit))
    role, state = there[name]
    kind = random.choice(KINDS_OF[role]) if state == "running" else "kill"
    return Act(name, kind, wakes=random.random() < WAKE_SHARE)
