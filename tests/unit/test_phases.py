"""The phases of a node: the table says what leads where, and nothing else does."""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

import scheduler
from scheduler.errors import IllegalTransition
from scheduler.node.phases import TRANSITIONS, Event, Phase, Phases

PHASES: tuple[Phase, ...] = get_args(Phase)
EVENTS: tuple[Event, ...] = get_args(Event)


@pytest.mark.parametrize(("phase", "event"), [*product(PHASES, EVENTS)])
def test_the_table_alone_says_what_follows(phase: Phase, event: Event) -> None:
    """What it does not have raises, and changes nothing."""
    phases = Phases()
    phases.phase = phase
    follows = TRANSITIONS.get((phase, event))
    assert phases.can(event) == (follows is not None)
    if follows is None:
        with pytest.raises(IllegalTransition, match=f"{event!r} of a node that is {phase!r}"):
            phases.change(event)
        assert phases.phase == phase
    else:
        assert (phases.change(event), phases.phase) == (follows, follows)


def test_every_phase_can_be_reached_and_left() -> None:
    """From the first one; and in each the process can stop."""
    reached: set[Phase] = {"joining"}
    while more := {follows for (phase, _), follows in TRANSITIONS.items() if phase in reached} - reached:
        reached |= more
    assert reached == set(PHASES)
    assert {phase for phase, event in TRANSITIONS if event == "stop"} == set(PHASES)


def test_one_function_sets_the_phase() -> None:
    """And what makes it."""
    setters = [
        path.name
        for path in (Path(scheduler.__file__).parent / "node").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "phase" and isinstance(node.ctx, ast.Store)
    ]
    assert setters == ["phases.py", "phases.py"]
