"""Pure. Decides; never performs. How much of streams is read at once: all of it while that is quick, and by bytes for
a while after it was not.

A quick reader pays nothing for this. On a slow link, or where somebody has put huge entries into a stream, one read of
many entries would take longer than leases last, and keep small ones waiting behind large ones.
"""

from __future__ import annotations

from typing import Final

SLOW_FOR_MS: Final = 10_000  # after the last sign of it: to find out again costs half a second
QUICK_MS, LONG_MS = 200, 1_000
FIRST_BYTES: Final = 2**16
BYTES_MIN: Final = 2**14
BYTES_MAX: Final = 2**23


class Pace:
    """One reader's. bytes_max: that one read by bytes may bring."""

    def __init__(self) -> None:
        self.bytes_max = FIRST_BYTES
        self._slow_until_ms = float("-inf")

    def is_slow(self, now_ms: float) -> bool:
        """Whether to read by bytes."""
        return now_ms < self._slow_until_ms

    def gave_up(self, now_ms: float) -> None:
        """A read of whatever was there was too large, or nothing came of it."""
        if not self.is_slow(now_ms):
            self.bytes_max = FIRST_BYTES
        self._slow_until_ms = now_ms + SLOW_FOR_MS

    def timed_out(self, now_ms: float) -> None:
        """Nothing came of a read by bytes."""
        self.bytes_max = max(BYTES_MIN, self.bytes_max // 2)
        self._slow_until_ms = now_ms + SLOW_FOR_MS

    def read(self, now_ms: float, took_ms: float, is_all: bool) -> None:
        """A read by bytes has ended. is_all: it left nothing out."""
        if took_ms > LONG_MS:
            self.bytes_max = max(BYTES_MIN, self.bytes_max // 2)
        elif took_ms < QUICK_MS and not is_all:
            self.bytes_max = min(BYTES_MAX, self.bytes_max * 2)
        if took_ms > LONG_MS or not is_all:
            self._slow_until_ms = now_ms + SLOW_FOR_MS
