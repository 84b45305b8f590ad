"""The transition table: complete, without dead ends, and with the body of a job in one place."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from scheduler.errors import IllegalTransition
from scheduler.protocol.lifecycle import TERMINAL, TRANSITIONS, State, Transition, transition

STATES: tuple[State, ...] = get_args(State)
EVENTS = sorted({row.event for row in TRANSITIONS})


def reachable(start: State) -> set[State]:
    """The states that a job can come to from `start`, with `start`."""
    found = {start}
    while more := {row.next_state for row in TRANSITIONS if row.state in found} - found:
        found |= more
    return found


def test_every_state_can_be_reached() -> None:
    """From nothing."""
    assert reachable("none") == set(STATES)


def test_every_state_has_an_end() -> None:
    """No state is a trap: every job can still end, and is forgotten in the end."""
    assert {
        state: "none" in reachable(state) and bool(reachable(state) & TERMINAL) for state in STATES
    } == dict.fromkeys(STATES, True)


def test_a_terminal_state_ends_by_retention_or_requeue_only() -> None:
    """Only a dead job has a body to requeue."""
    assert {(row.state, row.script, row.next_state) for row in TRANSITIONS if row.state in TERMINAL} == {
        ("completed", "retention", "none"),
        ("failed", "retention", "none"),
        ("cancelled", "retention", "none"),
        ("dead", "retention", "none"),
        ("dead", "requeue", "queued"),
    }


def test_each_state_has_its_place_for_the_body() -> None:
    """One, but for jobs without a record, and for dead ones whose body was lost."""
    places: dict[str, set[str]] = {}
    for row in TRANSITIONS:
        places.setdefault(row.next_state, set()).add(row.body)
    assert places == {
        "none": {"intake", "none"},
        "queued": {"intake"},
        "reserved": {"inbox"},
        "delayed": {"parked"},
        "completed": {"none"},
        "failed": {"none"},
        "cancelled": {"none"},
        "dead": {"dead", "none"},
    }


def test_no_event_is_ambiguous() -> None:
    """A state and an event name one row."""
    assert len({(row.state, row.event) for row in TRANSITIONS}) == len(TRANSITIONS)


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: f"{row.state}-{row.event}")
def test_every_row_is_found(row: Transition) -> None:
    """By its state and its event."""
    assert transition(row.state, row.event) == row


def test_everything_else_is_illegal() -> None:
    """Whatever the table does not name raises and says what was tried."""
    legal = {(row.state, row.event) for row in TRANSITIONS}
    for state, event in product(STATES, [*EVENTS, "unheard_of"]):
        if (state, event) not in legal:
            with pytest.raises(IllegalTransition, match=f"'{event}' in state '{state}'"):
                transition(state, event)
