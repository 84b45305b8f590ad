"""Lines that many jobs cause alike: the first ones are logged, the rest are counted and told as one line.

A fleet whose every job fails would otherwise fill a disk with one traceback, and hide what else is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import msgspec

from scheduler.clock import Clock

TOLD_MAX: Final = 10  # lines of a kind in a window
WINDOW_MS: Final = 30_000
KINDS_MAX: Final = 200  # what comes beyond is one kind


class _Kind(msgspec.Struct):
    """since_ms: when its window began; told and counted: lines in it that were logged, and that were not."""

    since_ms: float
    told: int = 0
    counted: int = 0


class Repeats:
    """One writer of such lines, at WARNING.

    Args: logger; clock, the process's own.
    """

    def __init__(self, logger: logging.Logger, clock: Clock) -> None:
        self._logger = logger
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def warn(self, kind: str, line: Callable[[], str]) -> None:
        """Log a line, or count it when its kind had many of late.

        Args: kind, what such lines have in common, in words for a person; line, makes it where it is to be logged.
        """
        if kind not in self._kinds and len(self._kinds) >= KINDS_MAX:
            kind = "of more kinds than are told apart"
        found = self._kinds.setdefault(kind, _Kind(self._clock.ms()))
        if found.told < TOLD_MAX:
            found.told += 1
            self._logger.warning("%s", line())
        else:
            found.counted += 1
            if self._logger.isEnabledFor(logging.DEBUG):
                self._logger.debug("%s", line())

    def step(self) -> None:
        """End the windows whose time is over; to be called now and then."""
        if self._kinds:
            self._end(self._clock.ms() - WINDOW_MS)

    def close(self) -> None:
        """Tell what was counted: nobody will ask again."""
        self._end(float("inf"))

    def _end(self, until_ms: float) -> None:
        over = {kind: found for kind, found in self._kinds.items() if found.since_ms <= until_ms}
        for kind, found in over.items():
            del self._kinds[kind]
            if found.counted:
                self._logger.warning(
                    "%s: %d times more within %.0f s", kind, found.counted, (self._clock.ms() - found.since_ms) / 1000
                )
