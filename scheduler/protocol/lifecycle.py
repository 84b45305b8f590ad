"""The states of a job, and the one table of its transitions. The scripts that change a state run on it.

Pure.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from scheduler.errors import IllegalTransition

State = Literal["none", "queued", "reserved", "delayed", "completed", "failed", "dead", "cancelled"]
Body = Literal["intake", "inbox", "parked", "dead", "none"]
Verdict = Literal["finish", "retry", "expire", "reboot", "give_back", "dead"]

TERMINAL: Final[frozenset[str]] = frozenset({"completed", "failed", "dead", "cancelled"})


class Transition(NamedTuple):
    """One row: in `state`, `event` of `script` leads to `next_state`, and the body of the job is then at `body`."""

    state: State
    event: str
    script: str
    next_state: State
    body: Body


TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition("none", "xadd", "XADD", "none", "intake"),
    Transition("none", "submitted", "submit", "queued", "intake"),
    Transition("none", "reserved", "reserve", "reserved", "inbox"),
    Transition("queued", "reserved", "reserve", "reserved", "inbox"),
    Transition("none", "refused", "reserve", "none", "intake"),
    Transition("queued", "refused", "reserve", "queued", "intake"),
    Transition("none", "rejected", "reject", "dead", "dead"),
    Transition("queued", "rejected", "reject", "dead", "dead"),
    Transition("none", "rejected_cancelled", "reject", "cancelled", "none"),
    Transition("queued", "rejected_cancelled", "reject", "cancelled", "none"),
    Transition("queued", "deferred", "defer", "delayed", "parked"),
    Transition("reserved", "renewed", "renew", "reserved", "inbox"),
    Transition("reserved", "completed", "release", "completed", "none"),
    Transition("reserved", "failed", "release", "failed", "none"),
    Transition("reserved", "requeued", "release", "queued", "intake"),
    Transition("reserved", "parked", "release", "delayed", "parked"),
    Transition("reserved", "given_up", "release", "dead", "dead"),
    Transition("reserved", "body_lost", "release", "dead", "none"),
    Transition("reserved", "cancelled", "release", "cancelled", "none"),
    Transition("reserved", "cancel_requested", "cancel", "reserved", "inbox"),
    Transition("queued", "cancelled", "cancel", "cancelled", "none"),
    Transition("delayed", "cancelled", "cancel", "cancelled", "none"),
    Transition("delayed", "promoted", "promote", "queued", "intake"),
    Transition("delayed", "body_lost", "promote", "dead", "none"),
    Transition("dead", "requeued", "requeue", "queued", "intake"),
    Transition("completed", "forgotten", "retention", "none", "none"),
    Transition("failed", "forgotten", "retention", "none", "none"),
    Transition("dead", "forgotten", "retention", "none", "none"),
    Transition("cancelled", "forgotten", "retention", "none", "none"),
)
_ROWS: Final = {(row.state, row.event): row for row in TRANSITIONS}


def transition(state: State, event: str) -> Transition:
    """The row of `state` and `event`. Raises: IllegalTransition when the table has none."""
    row = _ROWS.get((state, event))
    if row is None:
        raise IllegalTransition(f"{event!r} in state {state!r}: not in the transition table")
    return row
