"""The own clock of a process: monotonic, for waits, leases and durations.

It has nothing to do with the server's time, which comes only from the server's answers. Where the system has a clock
that runs on while the machine is suspended, it is that one: a machine that slept for a minute must know it, for its
leases went on. The timers of the event loop stand still meanwhile, so they end late, as after a pause.
"""

from __future__ import annotations

import threading
import time
from typing import Final

# Linux has such a clock under a name of its own; the monotonic one of macOS runs on, but time.monotonic() does not.
_RUNS_ON: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


STEP_MS_MIN: Final = 20.0  # a clock that is set right by less was not stepped
SLEW: Final = 0.1  # of the time that passed: no service sets a clock right faster without a step


class Clock:
    """Own time, from an origin that means nothing. A run on virtual time hands in a clock of its own."""

    def ms(self) -> float:
        """Milliseconds."""
        return time.clock_gettime(_RUNS_ON) * 1000

    def us(self) -> int:
        """Whole microseconds."""
        return time.clock_gettime_ns(_RUNS_ON) // 1000

    def processor_ms(self) -> float:
        """For how many milliseconds this process, with all of its threads, has had a processor."""
        return time.process_time() * 1000


class ThreadClock:
    """How long the thread that makes it has had a processor since then. Any thread may ask, while that one lives."""

    def __init__(self) -> None:
        clock_of = getattr(time, "pthread_getcpuclockid", None)  # not on macOS, where nothing is counted
        self._clock: int | None = None if clock_of is None else clock_of(threading.get_ident())
        self._began_ms = self._ms()

    def used_ms(self) -> float:
        """Milliseconds."""
        return self._ms() - self._began_ms

    def _ms(self) -> float:
        return 0.0 if self._clock is None else time.clock_gettime(self._clock) * 1000


class ServerTime:
    """The server's clock beside our own: whether it was stepped, or ours stood still.

    An answer that tells the server's time was made between its request and its arrival, so it says within which bounds
    the server's clock is ahead of ours. Answers agree while both clocks run; bounds that exclude each other are a step.
    """

    def __init__(self) -> None:
        self._bounds_ms: tuple[float, float] | None = None
        self._told_at_ms = 0.0

    def told(self, now_ms: int, sent_ms: float, arrived_ms: float) -> float:
        """An answer said `now_ms` (server time); its request was sent and it arrived then, by our own clock.

        Returns: by how much the server's clock was stepped since the last one at least, in milliseconds: below 0 if it
        went back, 0 if it was not.
        """
        least_ms, most_ms = now_ms - arrived_ms, now_ms + 1 - sent_ms
        if self._bounds_ms is None:
            step_ms = 0.0
        else:
            slewed_ms = SLEW * (arrived_ms - self._told_at_ms) + STEP_MS_MIN
            before_least_ms, before_most_ms = self._bounds_ms[0] - slewed_ms, self._bounds_ms[1] + slewed_ms
            step_ms = max(0.0, least_ms - before_most_ms) + min(0.0, most_ms - before_least_ms)
            if not step_ms:
                least_ms, most_ms = max(least_ms, before_least_ms), min(most_ms, before_most_ms)
        self._bounds_ms, self._told_at_ms = (least_ms, most_ms), arrived_ms
        return step_ms


SYSTEM_CLOCK: Final = Clock()
