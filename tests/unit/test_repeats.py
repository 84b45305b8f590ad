"""Thousands of the same log line become a count."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest

from scheduler.clock import Clock
from scheduler.repeats import KINDS_MAX, LINES_MAX, WINDOW_MS, Repeats


class Now(Clock):
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.at_ms = 0.0

    def ms(self) -> float:
        """Its time."""
        return self.at_ms


class Shown(logging.Handler):
    """What is shown, and the timers that were started."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.timers: list[Callable[[], None]] = []
        self.clock = Now()
        self.repeats = Repeats(self, self.clock, lambda _, call: self.timers.append(call))
        self.addFilter(self.repeats)

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def shown() -> Iterator[Shown]:
    """A handler of a logger of its own."""
    handler = Shown()
    logger = logging.getLogger("scheduler.test_repeats")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.handlers = [handler]
    yield handler
    logger.handlers.clear()


logger = logging.getLogger("scheduler.test_repeats")


def test_thousands_of_the_same_line_become_a_count(shown: Shown) -> None:
    """The first ones are shown, whatever their ids; how many more there were is told with the last of them."""
    for number in range(LINES_MAX + 4_000):
        logger.warning("job %d is dead", number)
    assert (len(shown.lines), len(shown.timers)) == (LINES_MAX, 1)
    shown.timers.pop()()
    last = LINES_MAX + 3_999
    assert shown.lines[LINES_MAX:] == [f"WARNING 4000 more lines like this within 10 s: job {last} is dead"]
    logger.warning("job %d is dead", 1)
    assert shown.lines[-1] == "WARNING job 1 is dead"


def test_other_lines_are_shown_all_the_same(shown: Shown) -> None:
    """Of another level or another text; and all that somebody asked for by the level debug."""
    for number in range(LINES_MAX + 1):
        logger.warning("one %d", number)
        logger.debug("two %d", number)
    logger.info("one %d", 1)
    logger.warning("three")
    assert shown.lines[-2:] == ["INFO one 1", "WARNING three"]
    assert sum(line.startswith("DEBUG") for line in shown.lines) == LINES_MAX + 1


def test_a_line_now_and_then_is_shown_for_ever(shown: Shown) -> None:
    """The count begins anew with each time."""
    for _ in range(3 * LINES_MAX):
        logger.info("once a second")
        shown.clock.at_ms += 1_000
    assert (len(shown.lines), shown.timers) == (3 * LINES_MAX, [])
    assert WINDOW_MS / 1_000 < LINES_MAX


def test_what_is_counted_is_told_at_the_end_and_bounded(shown: Shown) -> None:
    """Lines whose text is made before they are logged are all of their own kind."""
    for _ in range(LINES_MAX + 1):
        logger.warning("the same")
    for number in range(3 * KINDS_MAX):
        logger.warning(f"made {number}")
    assert len(shown.repeats._windows) <= KINDS_MAX + 1
    shown.repeats.flush()
    assert shown.lines[-1] == "WARNING 1 more lines like this within 10 s: the same"
