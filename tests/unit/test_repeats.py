"""Of lines that many jobs cause alike the first are logged, and the rest are counted."""

from __future__ import annotations

import logging

import pytest

from scheduler.repeats import KINDS_MAX, TOLD_MAX, WINDOW_MS, Repeats
from tests.clock import HandClock

LOGGER = logging.getLogger("tests.repeats")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines so far, which are then forgotten."""
    assert {record.levelname for record in caplog.records} <= {"WARNING"}
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


def test_the_first_of_a_kind_are_told_and_the_rest_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Until the window ends; then it begins anew."""
    clock = HandClock()
    repeats = Repeats(LOGGER, clock)
    for number in range(TOLD_MAX + 5):
        repeats.warn("jobs fail", lambda number=number: f"job {number} fails")  # type: ignore[misc]
    repeats.warn("jobs die", lambda: "job 7 dies")
    assert told(caplog) == [*[f"job {number} fails" for number in range(TOLD_MAX)], "job 7 dies"]

    clock.go(WINDOW_MS - 1)
    repeats.step()
    assert told(caplog) == []
    clock.go(1)
    repeats.step()
    assert told(caplog) == ["jobs fail: 5 times more within 30 s"]
    repeats.warn("jobs fail", lambda: "another")
    assert told(caplog) == ["another"]


def test_what_was_counted_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody would tell it later."""
    clock = HandClock()
    repeats = Repeats(LOGGER, clock)
    for _ in range(TOLD_MAX + 2):
        repeats.warn("jobs fail", lambda: "one")
    told(caplog)
    clock.go(4_000)
    repeats.close()
    repeats.close()
    assert told(caplog) == ["jobs fail: 2 times more within 4 s"]


def test_kinds_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Errors of types that are made as one goes must not fill the memory; they are one kind."""
    repeats = Repeats(LOGGER, HandClock())
    for number in range(KINDS_MAX + TOLD_MAX + 3):
        repeats.warn(f"kind {number}", lambda: "line")
    assert len(told(caplog)) == KINDS_MAX + TOLD_MAX
    repeats.close()
    assert told(caplog) == ["of more kinds than are told apart: 3 times more within 0 s"]


def test_a_line_is_made_only_where_it_is_logged() -> None:
    """A traceback costs more than counting."""
    repeats = Repeats(LOGGER, HandClock())
    made = []
    for _ in range(TOLD_MAX + 5):
        repeats.warn("kind", lambda: str(made.append(1)))  # type: ignore[func-returns-value]
    assert len(made) == TOLD_MAX
