"""Lines that are alike: the first ones are logged, the rest are counted and told as one line.

A fleet whose every job fails would otherwise fill a disk with one traceback, and hide what else is wrong.

- `Repeats` writes lines that many jobs cause: whoever writes one names its kind, and one that is counted is not even
  made.
- `LastSieve` is for a handler of the commands, and counts all other lines: those of one logger, level and format are
  alike, whatever ids are in them. Lines at debug level are wanted, all of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.visible import HAS_LINES

TOLD_MAX: Final = 10  # lines of a kind in a window, of those that name their kind
WINDOW_MS: Final = 30_000
LINES_MAX: Final = 100  # of all others
SIEVE_MS: Final = 10_000
KINDS_MAX: Final = 200  # what comes beyond is one kind
_IS_COUNTED: Final = "is_counted"


class _Window(msgspec.Struct):
    """since_ms: when it began; told, counted: lines in it that were logged, and that were not; last: of the latter."""

    since_ms: float
    told: int = 0
    counted: int = 0
    last: logging.LogRecord | None = None

    def takes(self, told_max: int) -> bool:
        """Whether one more line is logged; it is counted in any case."""
        is_told = self.told < told_max
        self.told += is_told
        self.counted += not is_told
        return is_told


class Repeats:
    """One writer of such lines, at WARNING.

    Args: logger; clock, the process's own.
    """

    def __init__(self, logger: logging.Logger, clock: Clock) -> None:
        self._logger = logger
        self._clock = clock
        self._windows: dict[str, _Window] = {}

    def warn(self, kind: str, line: Callable[[], str], *, has_lines: bool = False) -> None:
        """Log a line, or count it when its kind had many of late.

        Args: kind, what such lines have in common, in words for a person; line, makes it where it is to be logged;
        has_lines, whether it has several, see HAS_LINES.
        """
        if kind not in self._windows and len(self._windows) >= KINDS_MAX:
            kind = "of more kinds than are told apart"
        window = self._windows.setdefault(kind, _Window(self._clock.ms()))
        if window.takes(TOLD_MAX):
            self._logger.warning("%s", line(), extra=_marks(has_lines))
        elif self._logger.isEnabledFor(logging.DEBUG):
            self._logger.debug("%s", line(), extra=_marks(has_lines))

    def step(self) -> None:
        """End the windows whose time is over; to be called now and then."""
        if self._windows:
            self._end(self._clock.ms() - WINDOW_MS)

    def close(self) -> None:
        """Tell what was counted: nobody will ask again."""
        self._end(float("inf"))

    def _end(self, until_ms: float) -> None:
        over = {kind: window for kind, window in self._windows.items() if window.since_ms <= until_ms}
        for kind, window in over.items():
            del self._windows[kind]
            if window.counted:
                seconds = (self._clock.ms() - window.since_ms) / 1000
                self._logger.warning("%s: %d times more within %.0f s", kind, window.counted, seconds, extra=_marks())


def _marks(has_lines: bool = False) -> Mapping[str, bool]:
    return {_IS_COUNTED: True, HAS_LINES: has_lines}


class LastSieve(logging.Filter):
    """Args: handler, which gets the counts; clock; start_timer, calls once after so many seconds, in another thread."""

    def __init__(
        self,
        handler: logging.Handler,
        clock: Clock = SYSTEM_CLOCK,
        start_timer: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        super().__init__()
        self._handler = handler
        self._clock = clock
        self._start_timer = start_timer or _start_timer
        self._windows: dict[tuple[str, int, str], _Window] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is let through."""
        if record.levelno <= logging.DEBUG or hasattr(record, _IS_COUNTED):
            return True
        kind, now_ms = (record.name, record.levelno, str(record.msg)), self._clock.ms()
        with self._lock:
            window = self._windows.get(kind)
            if window is None or (not window.counted and now_ms - window.since_ms >= SIEVE_MS):
                window = self._begin(kind, now_ms)
            if window.takes(LINES_MAX):
                return True
            is_first = window.last is None
            window.last = record
        if is_first:
            self._start_timer(max(0.0, window.since_ms + SIEVE_MS - now_ms) / 1000, lambda: self._tell(kind))
        return False

    def _begin(self, kind: tuple[str, int, str], now_ms: float) -> _Window:
        if len(self._windows) >= KINDS_MAX:  # lines whose text is made before they are logged are each a kind
            self._windows = {each: window for each, window in self._windows.items() if window.counted}
        self._windows[kind] = window = _Window(now_ms)
        return window

    def _tell(self, kind: tuple[str, int, str]) -> None:
        """Say how many were left out, and let the next ones through."""
        with self._lock:
            window = self._windows.pop(kind, None)
        if window is None or window.last is None:
            return
        last = window.last
        count = logging.LogRecord(
            last.name, last.levelno, last.pathname, last.lineno,
            "%d more lines like this within %d s: %s", (window.counted, SIEVE_MS // 1000, last.getMessage()), None,
        )  # fmt: skip
        setattr(count, _IS_COUNTED, True)
        self._handler.handle(count)

    def flush(self) -> None:
        """Tell all that was left out so far, as at the end of a process."""
        for kind in list(self._windows):
            self._tell(kind)


def _start_timer(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
