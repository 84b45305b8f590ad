"""Pure. Decides; never performs. Waiting jobs that may belong to another pool since a snapshot came.

They are decided anew, some in each step, from the first of their class to the last. Snapshots may come faster than
that: another one begins no class from the front again, but has all of it decided once more afterwards. So each has its
turn.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from scheduler.runtime.intake import JobClass
from scheduler.runtime.waiting.queues import Waiter, WaitersByClass


class Undecided:
    """Args: waiters, all that wait."""

    def __init__(self, waiters: WaitersByClass) -> None:
        self._waiters = waiters
        self._left: dict[JobClass, deque[Waiter]] = {}
        self._again: set[JobClass] = set()
        self._named: dict[JobClass, int] = {}

    def __bool__(self) -> bool:
        return bool(self._left)

    def __contains__(self, job_class: object) -> bool:
        """Whether some jobs of a class are not decided yet."""
        return job_class in self._left

    def add(self, job_class: JobClass) -> None:
        """All that wait in a class now are to be decided anew."""
        if job_class in self._left:
            self._again.add(job_class)
        else:
            self._left[job_class] = deque(self._waiters.of(job_class))

    def next(self, count: int) -> list[Waiter]:
        """Those who are next, `count` at most, and still in their class. They are named again until `decided`."""
        named: list[Waiter] = []
        self._named = {}
        for job_class, left in self._left.items():
            first = list(islice(left, count - sum(self._named.values())))
            self._named[job_class] = len(first)
            named += [waiter for waiter in first if waiter.job_class == job_class and waiter.state != "left"]
        return named

    def decided(self) -> None:
        """Those who were named last are decided."""
        for job_class, count in self._named.items():
            left = self._left[job_class]
            for _ in range(count):
                left.popleft()
            if not left:
                del self._left[job_class]
                if job_class in self._again:
                    self._again.remove(job_class)
                    self.add(job_class)
        self._named = {}
