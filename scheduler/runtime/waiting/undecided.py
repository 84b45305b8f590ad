"""Waiting jobs that may belong to another pool since the last snapshot.

Pure: no server, no clock.

They are decided anew, some in each step, from the first of their class to the last. Snapshots may come faster than
that. Another one does not begin a class from its front again; the class is decided a second time afterwards. Thus every
job has its turn.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from scheduler.runtime.intake import JobClass
from scheduler.runtime.waiting.queues import Waiter, WaitersByClass


class Undecided:
    """The jobs that are to be decided anew.

    waiters: all that wait.
    """

    def __init__(self, waiters: WaitersByClass) -> None:
        self._waiters = waiters
        self._remaining: dict[JobClass, deque[Waiter]] = {}
        self._repeated: set[JobClass] = set()
        self._chosen: dict[JobClass, int] = {}

    def __bool__(self) -> bool:
        return bool(self._remaining)

    def __contains__(self, job_class: object) -> bool:
        """Whether some jobs of a class are not decided yet."""
        return job_class in self._remaining

    def add(self, job_class: JobClass) -> None:
        """Have all jobs that wait in a class now decided anew."""
        if job_class in self._remaining:
            self._repeated.add(job_class)
        else:
            self._remaining[job_class] = deque(self._waiters.of(job_class))

    def next(self, count: int) -> list[Waiter]:
        """The next waiters, `count` at most, that are still in their class. They stay the next ones until `decided`."""
        chosen: list[Waiter] = []
        self._chosen = {}
        for job_class, remaining in self._remaining.items():
            first = list(islice(remaining, count - sum(self._chosen.values())))
            self._chosen[job_class] = len(first)
            chosen += [waiter for waiter in first if waiter.job_class == job_class and waiter.state != "left"]
        return chosen

    def decided(self) -> None:
        """Go on behind the waiters that `next` returned last."""
        for job_class, count in self._chosen.items():
            remaining = self._remaining[job_class]
            for _ in range(count):
                remaining.popleft()
            if not remaining:
                del self._remaining[job_class]
                if job_class in self._repeated:
                    self._repeated.remove(job_class)
                    self.add(job_class)
        self._chosen = {}
