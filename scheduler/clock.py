"""The own clock of a process: monotonic, for waits, leases and durations.

It has nothing to do with the server's time, which comes only from the server's answers.
"""

from __future__ import annotations

import time
from typing import Final


class Clock:
    """Own time, from an origin that means nothing. A run on virtual time hands in a clock of its own."""

    def ms(self) -> float:
        """Milliseconds."""
        return time.monotonic() * 1000

    def us(self) -> int:
        """Whole microseconds."""
        return time.monotonic_ns() // 1000


SYSTEM_CLOCK: Final = Clock()
