"""The phases of a node, and the one table of what leads from one to the next.

Pure: no server, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from scheduler.errors import IllegalTransition

Phase = Literal["joining", "serving", "draining", "left", "replaced", "stopped"]
Event = Literal["boot", "drain", "drained", "resumed", "leave", "replace", "stop"]

TRANSITIONS: Final[Mapping[tuple[Phase, Event], Phase]] = {
    # the word that a manager has taken this boot in
    ("joining", "boot"): "serving",
    # the node's own wish to leave
    ("joining", "drain"): "draining",
    ("serving", "drain"): "draining",
    ("draining", "drain"): "draining",
    # words of the manager
    ("serving", "drained"): "draining",
    ("draining", "drained"): "draining",
    ("draining", "resumed"): "serving",
    # the server has taken the node out
    ("draining", "leave"): "left",
    ("stopped", "leave"): "left",
    # a later boot has taken over
    ("joining", "replace"): "replaced",
    ("serving", "replace"): "replaced",
    ("draining", "replace"): "replaced",
    ("stopped", "replace"): "replaced",
    ("replaced", "replace"): "replaced",
    # the process ends its part, or the server takes no word of it any more
    ("joining", "stop"): "stopped",
    ("serving", "stop"): "stopped",
    ("draining", "stop"): "stopped",
    ("stopped", "stop"): "stopped",
    ("left", "stop"): "left",
    ("replaced", "stop"): "replaced",
}


class Phases:
    """The phase of one node. It changes in `change` alone."""

    def __init__(self) -> None:
        self.phase: Phase = "joining"

    def can(self, event: Event) -> bool:
        """Whether the table has a row for an event now."""
        return (self.phase, event) in TRANSITIONS

    def change(self, event: Event) -> Phase:
        """Take the phase that follows, and return it.

        Raises: IllegalTransition, and changes nothing, when the table has no row.
        """
        phase = TRANSITIONS.get((self.phase, event))
        if phase is None:
            raise IllegalTransition(f"{event!r} of a node that is {self.phase!r}: not in the transition table")
        self.phase = phase
        return phase
