"""Where log lines go: to stderr, one line each, unless the user's module configures logging by itself.

- `--log-level` is the level of everybody: of this package and of the loggers of handlers.
- A configuration that the user's module makes when it is imported (basicConfig, dictConfig, a handler of its own) is
  respected: its handlers get our lines too, its levels stay, and nothing is told twice.
- Thousands of the same line become a count (repeats.py).
- No line brings a secret of a URL or a control character to a terminal. Times have their offset to UTC.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import textwrap
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from scheduler.console import terminal
from scheduler.errors import without_credentials
from scheduler.repeats import LastSieve
from scheduler.visible import HAS_LINES, visible, visible_lines

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_OURS: Final = "scheduler"


class Formatter(logging.Formatter):
    """Time with offset, level, logger and message on one line; a traceback keeps its lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """ISO 8601 in local time."""
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def formatException(self, ei: Any) -> str:
        """A traceback, set in, so that no line of it looks like another record."""
        return textwrap.indent(super().formatException(ei), "  ")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without what follows it."""
        return (visible_lines if getattr(record, HAS_LINES, False) else visible)(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """All of it."""
        return without_credentials(visible_lines(super().format(record)))


class StderrHandler(logging.Handler):
    """Writes to what stderr is at that time, what no handler of somebody else gets."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Formatter())
        sieve = LastSieve(self)
        self.addFilter(sieve)
        atexit.register(sieve.flush)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if _is_told_elsewhere(record):
            return
        try:
            terminal.write_line(self.format(record), err=True)
        except Exception:
            with contextlib.suppress(Exception):  # a stderr that was closed, say, must not end who logs
                self.handleError(record)


def _is_told_elsewhere(record: logging.LogRecord) -> bool:
    """Whether a handler between the record's logger and the root has it already."""
    logger: logging.Logger | None = logging.getLogger(record.name)
    while logger is not None and logger.parent is not None:
        if any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def log_to_stderr(level: str) -> None:
    """Log to stderr from now on, everybody from `level` up."""
    root = logging.getLogger()
    if _own_handler() is None:
        root.addHandler(StderrHandler())
    root.setLevel(level.upper())
    logging.getLogger(_OURS).setLevel(level.upper())  # also where a module of the user gives another one to the root


@contextlib.contextmanager
def configurable_by_import() -> Iterator[None]:
    """While a module of the user is imported: what it configures replaces what `log_to_stderr` did.

    basicConfig does nothing where there is a handler, so ours makes way, and comes back when there is no other one.
    """
    root, own, last = logging.getLogger(), _own_handler(), logging.lastResort
    if own is None:
        yield
        return
    root.removeHandler(own)
    before, level = list(root.handlers), root.level
    logging.lastResort = own
    try:
        yield
    finally:
        logging.lastResort = last
        for handler in root.handlers[:]:
            if root.level == level and handler not in before and _says_nothing(handler):
                root.removeHandler(handler)
        if all(handler in before or isinstance(handler, logging.NullHandler) for handler in root.handlers):
            root.addHandler(own)
        _enable_ours()


def _own_handler() -> StderrHandler | None:
    return next((each for each in logging.getLogger().handlers if isinstance(each, StderrHandler)), None)


def _says_nothing(handler: logging.Handler) -> bool:
    """Whether it is the one of basicConfig without arguments, which `logging.info("...")` calls by itself."""
    if type(handler) is not logging.StreamHandler or handler.stream is not sys.stderr:
        return False
    return handler.formatter is not None and handler.formatter._fmt == logging.BASIC_FORMAT


def _enable_ours() -> None:
    """dictConfig and fileConfig switch off every logger that they do not name, unless they are told not to."""
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and f"{name}.".startswith(f"{_OURS}."):
            logger.disabled = False
