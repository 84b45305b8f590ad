"""Pure. Decides; never performs. Whom it hits next, and what is done to him."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random
from typing import Final, Literal

import msgspec

Role = Literal["manager", "dispatcher", "reaper", "node"]
ROLES: Final[tuple[Role, ...]] = ("manager", "dispatcher", "reaper", "node")

State = Literal["starting", "running", "paused"]
"""Of the process in a seat; a paused one wakes by itself later."""

Kind = Literal["kill", "lose", "pause", "replace"]
KINDS: Final[tuple[Kind, ...]] = ("kill", "lose", "pause", "replace")
WAKE_SHARE: Final = 0.75
"""Of those that were replaced while they were paused, how many wake again; the others are killed as they lie."""


class Act(msgspec.Struct, frozen=True):
    """What is done to the process in a seat.

    kind: `kill`, and a new process takes its place at once, a node under the same name; `lose`, for nodes: killed, and
    one with another name takes its place, so that nobody but a reaper ends what it held; `pause`, and it wakes two
    leases later; `replace`: a new process takes its place while it is paused. wakes: for `replace`, whether the old
    one wakes two leases later.
    """

    seat: str
    kind: Kind
    wakes: bool = True


def draw(random: Random, states: Mapping[str, State], nodes: Collection[str]) -> Act:
    """The next act: each seat is as likely as any other; one that does not run can only be killed.

    Args: states, seat -> state of the process in it, not empty; nodes, the seats of nodes.
    """
    seat = random.choice(sorted(states))
    kinds = KINDS if seat in nodes else tuple(kind for kind in KINDS if kind != "lose")
    kind = random.choice(kinds) if states[seat] == "running" else "kill"
    return Act(seat, kind, wakes=random.random() < WAKE_SHARE)
