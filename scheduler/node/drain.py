"""The time that leaving may take in all, and what each of its parts may take of it.

Whoever asked a node to leave kills it after a while: Kubernetes and Heroku after 30 s, others after 10 s or 5 s. So
everything counts: jobs that run have the most of the time, then handlers that were stopped have some for their own
clean-up, and the rest is for telling the server what became of them. Short times have a floor, or nothing could be
given back at all: a drain of no time takes up to STOP_MS_MIN and REPORT_MS_MIN.
"""

from __future__ import annotations

from typing import Final

from scheduler.clock import Clock

DRAIN_MS_MAX: Final = 25_000
AFTER_JOBS_MS_MAX: Final = 5_000  # at most so long before the end jobs are stopped,
REPORT_MS_MAX: Final = 2_000  # and handlers that do not stop are left alone;
AFTER_JOBS_SHARE: Final = 5  # of a short drain that is a fifth of it,
REPORT_SHARE: Final = 10  # and a tenth
STOP_MS_MIN: Final = 500
REPORT_MS_MIN: Final = 1_000


class Drain:
    """Counts from `begin`, which may be called again. total_ms: for everything."""

    def __init__(self, total_ms: int, clock: Clock) -> None:
        self.total_ms = total_ms
        self._clock = clock
        self._until_ms: float | None = None

    def begin(self) -> None:
        """From now on, or from when it was first called."""
        if self._until_ms is None:
            self._until_ms = self._clock.ms() + self.total_ms

    @property
    def jobs_ms(self) -> float:
        """For how long jobs may still run."""
        return self._left_ms(min(AFTER_JOBS_MS_MAX, self.total_ms / AFTER_JOBS_SHARE), 0)

    @property
    def handlers_ms(self) -> float:
        """For how long to wait for handlers that were stopped."""
        return self._left_ms(min(REPORT_MS_MAX, self.total_ms / REPORT_SHARE), STOP_MS_MIN)

    @property
    def report_ms(self) -> float:
        """For how long to try to reach the server."""
        return self._left_ms(0, REPORT_MS_MIN)

    def _left_ms(self, before_ms: float, floor_ms: int) -> float:
        until_ms = self._clock.ms() + self.total_ms if self._until_ms is None else self._until_ms
        return max(floor_ms, until_ms - before_ms - self._clock.ms())
