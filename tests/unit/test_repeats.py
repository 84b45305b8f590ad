"""Of lines that many jobs cause alike the first are logged, and the rest are counted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from scheduler.repeats import KINDS_MAX, LINES_MAX, SIEVE_MS, TOLD_MAX, WINDOW_MS, LastSieve, Repeats
from tests.clock import HandClock

LOGGER = logging.getLogger("tests.repeats")
SIEVED = logging.getLogger("scheduler.test_sieve")


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


# ---- all other lines ----


class Shown(logging.Handler):
    """What is shown, and the timers that were started."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.timers: list[Callable[[], None]] = []
        self.clock = HandClock()
        self.sieve = LastSieve(self, self.clock, lambda _, call: self.timers.append(call))
        self.addFilter(self.sieve)

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def shown() -> Iterator[Shown]:
    """A handler of a logger of its own."""
    handler = Shown()
    SIEVED.setLevel(logging.DEBUG)
    SIEVED.propagate = False
    SIEVED.handlers = [handler]
    yield handler
    SIEVED.handlers.clear()


def test_thousands_of_the_same_line_become_a_count(shown: Shown) -> None:
    """The first ones are shown, whatever their ids; how many more there were is told with the last of them."""
    for number in range(LINES_MAX + 4_000):
        SIEVED.warning("job %d is dead", number)
    assert (len(shown.lines), len(shown.timers)) == (LINES_MAX, 1)
    shown.timers.pop()()
    last = LINES_MAX + 3_999
    assert shown.lines[LINES_MAX:] == [f"WARNING 4000 more lines like this within 10 s: job {last} is dead"]
    SIEVED.warning("job %d is dead", 1)
    assert shown.lines[-1] == "WARNING job 1 is dead"


def test_other_lines_are_shown_all_the_same(shown: Shown) -> None:
    """Of another level or another text; and all that somebody asked for by the level debug."""
    for number in range(LINES_MAX + 1):
        SIEVED.warning("one %d", number)
        SIEVED.debug("two %d", number)
    SIEVED.info("one %d", 1)
    SIEVED.warning("three")
    assert shown.lines[-2:] == ["INFO one 1", "WARNING three"]
    assert sum(line.startswith("DEBUG") for line in shown.lines) == LINES_MAX + 1


def test_a_line_now_and_then_is_shown_for_ever(shown: Shown) -> None:
    """The count begins anew with each time."""
    for _ in range(3 * LINES_MAX):
        SIEVED.info("once a second")
        shown.clock.go(1_000)
    assert (len(shown.lines), shown.timers) == (3 * LINES_MAX, [])
    assert SIEVE_MS / 1_000 < LINES_MAX


def test_what_is_counted_is_told_at_the_end_and_bounded(shown: Shown) -> None:
    """Lines whose text is made before they are logged are all of their own kind."""
    for _ in range(LINES_MAX + 1):
        SIEVED.warning("the same")
    for number in range(3 * KINDS_MAX):
        SIEVED.warning(f"made {number}")
    assert len(shown.sieve._windows) <= KINDS_MAX + 1
    shown.sieve.flush()
    assert shown.lines[-1] == "WARNING 1 more lines like this within 10 s: the same"


def test_lines_that_were_counted_by_their_writer_pass(shown: Shown) -> None:
    """They all have one format, and are of many kinds."""
    repeats = Repeats(SIEVED, HandClock())
    for number in range(LINES_MAX + 1):
        repeats.warn(f"kind {number}", lambda number=number: f"line {number}")  # type: ignore[misc]
    assert len(shown.lines) == LINES_MAX + 1
