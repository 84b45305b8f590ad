"""The own clock of a process: monotonic, for waits, leases and durations.

It has nothing to do with the server's time, which comes only from the server's answers. Where the system has a clock
that runs on while the machine is suspended, it is that one: a machine that slept for a minute must know it, for its
leases went on. The timers of the event loop stand still meanwhile, so they end late, as after a pause.
"""

from __future__ import annotations

import time
from typing import Final

# Linux has such a clock under a name of its own; the monotonic one of macOS runs on, but time.monotonic() does not.
_RUNS_ON: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock:
    """Own time, from an origin that means nothing. A run on virtual time hands in a clock of its own."""

    def ms(self) -> float:
        """Milliseconds."""
        return time.clock_gettime(_RUNS_ON) * 1000

    def us(self) -> int:
        """Whole microseconds."""
        return time.clock_gettime_ns(_RUNS_ON) // 1000


SYSTEM_CLOCK: Final = Clock()
