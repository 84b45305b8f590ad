"""Thousands of the same log line become a count, here and nowhere else: `handler.addFilter(Repeats(handler))`.

The same line is one of the same logger, level and format: its ids may differ. LINES_MAX of them in WINDOW_MS are let
through; how many more there were is told at the end of that time. Lines at debug level are wanted, all of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from scheduler.clock import SYSTEM_CLOCK, Clock

WINDOW_MS: Final = 10_000
LINES_MAX: Final = 100
KINDS_MAX: Final = 1_000  # of lines that are counted at a time

_Kind = tuple[str, int, str]
_IS_COUNT: Final = "is_count_of_repeats"


class _Window:
    """Lines of one kind since `since_ms`. last: the one that was left out last."""

    __slots__ = ("count", "last", "since_ms")

    def __init__(self, since_ms: float) -> None:
        self.since_ms = since_ms
        self.count = 0
        self.last: logging.LogRecord | None = None


class Repeats(logging.Filter):
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
        self._windows: dict[_Kind, _Window] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is let through."""
        if record.levelno <= logging.DEBUG or hasattr(record, _IS_COUNT):
            return True
        kind, now_ms = (record.name, record.levelno, str(record.msg)), self._clock.ms()
        with self._lock:
            window = self._windows.get(kind)
            if window is None or (window.last is None and now_ms - window.since_ms >= WINDOW_MS):
                window = self._begin(kind, now_ms)
            window.count += 1
            if window.count <= LINES_MAX:
                return True
            is_first = window.last is None
            window.last = record
        if is_first:
            self._start_timer(max(0.0, window.since_ms + WINDOW_MS - now_ms) / 1000, lambda: self._tell(kind))
        return False

    def _begin(self, kind: _Kind, now_ms: float) -> _Window:
        if len(self._windows) >= KINDS_MAX:
            self._windows = {each: window for each, window in self._windows.items() if window.last is not None}
        self._windows[kind] = window = _Window(now_ms)
        return window

    def _tell(self, kind: _Kind) -> None:
        """Say how many were left out, and let the next ones through."""
        with self._lock:
            window = self._windows.pop(kind, None)
        if window is None or window.last is None:
            return
        last, left_out = window.last, window.count - LINES_MAX
        count = logging.LogRecord(
            last.name, last.levelno, last.pathname, last.lineno,
            "%d more lines like this within %d s: %s", (left_out, WINDOW_MS // 1000, last.getMessage()), None,
        )  # fmt: skip
        setattr(count, _IS_COUNT, True)
        self._handler.handle(count)

    def flush(self) -> None:
        """Tell all that was left out so far, as at the end of a process."""
        for kind in list(self._windows):
            self._tell(kind)


def _start_timer(seconds: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
