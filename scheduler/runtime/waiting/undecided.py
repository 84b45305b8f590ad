"""Pure. Decides; never performs. Waiting jobs that may belong to another pool since a snapshot came.

They are decided anew, some in each step, from the first of their class to the last. Snapshots may come faster than
that: another one begins no class from the front again, but has all of it decided once more afterwards. So each has its
turn.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from scheduler.runtime.intake import Class
from scheduler.runtime.waiting.queues import Waiter, WaitersByClass


class Undecided:
    """Args: waiters, all that wait."""

    def __init__(self, waiters: WaitersByClass) -> None:
        self._waiters = waiters
        self._left: dict[Class, deque[Waiter]] = {}
        self._again: set[Class] = set()
        self._named: dict[Class, int] = {}

    def __bool__(self) -> bool:
        return bool(self._left)

    def __contains__(self, wanted: object) -> bool:
        """Whether some jobs of a class are not decided yet."""
        return wanted in self._left

    def add(self, wanted: Class) -> None:
        """All that wait in a class now are to be decided anew."""
        if wanted in self._left:
            self._again.add(wanted)
        else:
            self._left[wanted] = deque(self._waiters.of(wanted))

    def next(self, count: int) -> list[Waiter]:
        """Those who are next, `count` at most, and still in their class. They are named again until `decided`."""
        named: list[Waiter] = []
        self._named = {}
        for wanted, left in self._left.items():
            first = list(islice(left, count - sum(self._named.values())))
            self._named[wanted] = len(first)
            named += [waiter for waiter in first if waiter.wanted == wanted and waiter.status != "left"]
        return named

    def decided(self) -> None:
        """Those who were named last are decided."""
        for wanted, count in self._named.items():
            left = self._left[wanted]
            for _ in range(count):
                left.popleft()
            if not left:
                del self._left[wanted]
                if wanted in self._again:
                    self._again.remove(wanted)
                    self.add(wanted)
        self._named = {}
