"""How long things take: counted by size, and when those that are long are told.

Pure: no server, no clock.

A histogram has four buckets for each doubling, so that what it says is right within a fifth, at any size and in a few
hundred bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

BUCKETS_A_DOUBLING: Final = 4
BUCKETS_MAX: Final = 4 * 40  # the last one is for all that is larger
WINDOW_MS: Final = 10_000  # what is told of late is of one to two of these
TOLD_EVERY_MS: Final = 60_000


class Histogram(msgspec.Struct):
    """How many values there were of each size. Values below 1 are taken for 0."""

    count: int = 0
    max: float = 0.0
    buckets: dict[int, int] = {}

    def add(self, value: float, count: int = 1) -> None:
        """Count a value, `count` times."""
        if not count:
            return
        bucket = 0 if value < 1 else min(1 + int(BUCKETS_A_DOUBLING * math.log2(value)), BUCKETS_MAX)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += count
        self.max = max(self.max, value)

    @property
    def p50(self) -> float:
        """Half of the values are not above this."""
        return self.quantile(0.5)

    @property
    def p99(self) -> float:
        """One of a hundred is above this."""
        return self.quantile(0.99)

    def quantile(self, share: float) -> float:
        """The upper end of the bucket in which this share of the values is reached; 0 when there are none."""
        below = 0
        for bucket in sorted(self.buckets):
            below += self.buckets[bucket]
            if below >= share * self.count:
                return min(2 ** (bucket / BUCKETS_A_DOUBLING), self.max) if bucket else 0.0
        return 0.0


def merged(histograms: Iterable[Histogram]) -> Histogram:
    """All values of several histograms."""
    whole = Histogram()
    for each in histograms:
        whole.count += each.count
        whole.max = max(whole.max, each.max)
        for bucket, count in each.buckets.items():
            whole.buckets[bucket] = whole.buckets.get(bucket, 0) + count
    return whole


class Timing:
    """One kind of time. Args: total, where all of it is counted; limit, above which it is counted and told."""

    def __init__(self, total: Histogram, limit: float) -> None:
        self.total = total
        self._limit = limit
        self._of_late = (Histogram(), Histogram())
        self._window_ms = -math.inf
        self._told_ms = -math.inf
        self._above = Histogram()

    def add(self, value: float, now_ms: float, count: int = 1) -> Histogram | None:
        """Count a value. Returns: all that were above the limit since that was returned last, which is not often."""
        self._turn(now_ms)
        self.total.add(value, count)
        self._of_late[0].add(value, count)
        if value <= self._limit:
            return None
        self._above.add(value, count)
        if now_ms - self._told_ms < TOLD_EVERY_MS:
            return None
        self._told_ms = now_ms
        above, self._above = self._above, Histogram()
        return above

    def p99_of_late(self, now_ms: float) -> int:
        """What one of a hundred was above in the last seconds, rounded up."""
        self._turn(now_ms)
        return math.ceil(merged(self._of_late).p99)

    def _turn(self, now_ms: float) -> None:
        windows = (now_ms - self._window_ms) / WINDOW_MS
        if windows >= 1:
            self._of_late = (Histogram(), self._of_late[0] if windows < 2 else Histogram())
            self._window_ms = now_ms
