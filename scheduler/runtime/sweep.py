"""The sweep: once a second it looks at waiting jobs for classes that no node serves and for room that no event named.
It also ends jobs whose deadline has passed.

The look for room is a safety net. Whenever it leads to a placement, an event was lost; its hits are counted, and are 0
in tests. What one look does is bounded, however many jobs wait: the rest has its turn a step or a second later.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Final, Generic, TypeVar

from scheduler.config import Settings
from scheduler.protocol.messages import RejectItem
from scheduler.runtime import intake
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.reader import Reader
from scheduler.runtime.waiting.limits import has_room
from scheduler.runtime.waiting.queues import Waiter
from scheduler.runtime.waiting.unserved import Unserved
from scheduler.runtime.waiting.waiting_jobs import Waiting
from scheduler.store.reads import Reads

logger = logging.getLogger("scheduler.dispatcher")

T = TypeVar("T")

ENDED_AT_ONCE_MAX: Final = 256  # waiting jobs that one step refuses
NODES_AT_ONCE_MAX: Final = 10_000  # nodes of classes that one look asks for
LIMITS_AT_ONCE_MAX: Final = 500  # limits that one look asks for
MARKS_MAX: Final = 1_000  # of how many jobs had come to their class at a time, within the time of grace


class Sweep:
    """The looks at one dispatcher's waiting jobs."""

    def __init__(self, waiting: Waiting, settings: Settings) -> None:
        self._waiting = waiting
        self._settings = settings
        self._no_node_since_ms: dict[JobClass, float] = {}
        self._marks: deque[tuple[float, int]] = deque()  # (when, how many had come to their class by then)
        self._given_up: dict[JobClass, int] = {}  # class -> the number of the last of its jobs that is given up
        self._unserved = Unserved(settings.no_node_grace_ms)
        self._classes = _Turn[JobClass]()
        self._limits = _Turn[tuple[str, str]]()

    # ---- what ends ----

    def overdue(self, now_ms: float) -> list[RejectItem]:
        """Take some of the jobs out of the waiting whose deadline has passed, by our own clock."""
        return self._leave(self._waiting.deadlines.overdue(now_ms, ENDED_AT_ONCE_MAX), intake.expired)

    @property
    def busy(self) -> bool:
        """Whether `unservable` has more jobs to take out."""
        return bool(self._given_up)

    def judge(self, index: Index, undecided: Container[JobClass], now_ms: float) -> None:
        """Give up the jobs that have been in a class for the time of grace while no node served it.

        Args:
            index: of the snapshot.
            undecided: classes whose jobs are about to be decided anew.
            now_ms: monotonic.
        """
        members = self._waiting.members
        unservable = [
            job_class for job_class in members.classes() if not index.eligible(job_class) and job_class not in undecided
        ]
        self._no_node_since_ms = {job_class: self._no_node_since_ms.get(job_class, now_ms) for job_class in unservable}
        self._unserved.look(
            self._no_node_since_ms,
            lambda job_class: len(members.of(job_class)),
            lambda job_class: _is_served(job_class, index),
            now_ms,
        )
        grace_ms = self._settings.no_node_grace_ms
        number = self._came_before(now_ms - grace_ms, now_ms)
        for job_class, since_ms in self._no_node_since_ms.items():
            if now_ms - since_ms >= grace_ms and members.first(job_class, number, 1):
                self._given_up[job_class] = number

    def _came_before(self, then_ms: float, now_ms: float) -> int:
        """The number of the last waiter that had come to its class by `then_ms`. A mark of now is set."""
        if not self._marks or (now_ms - self._marks[-1][0]) * MARKS_MAX >= now_ms - then_ms:
            self._marks.append((now_ms, self._waiting.members.arrivals))
        while len(self._marks) > 1 and self._marks[1][0] <= then_ms:
            self._marks.popleft()
        when_ms, number = self._marks[0]
        return number if when_ms <= then_ms else 0

    def unservable(self, index: Index) -> list[RejectItem]:
        """Take some of the jobs out of the waiting that were given up, unless a node serves their class now.

        The earliest go first. Of those that go in one step the last goes first, or the next of a session would compete
        for a moment before it goes too.
        """
        refused: list[RejectItem] = []
        for job_class, number in list(self._given_up.items()):
            if not index.eligible(job_class):
                first = self._waiting.members.first(job_class, number, ENDED_AT_ONCE_MAX - len(refused))
                refused += self._leave(reversed(first), no_node)[::-1]
                if len(refused) >= ENDED_AT_ONCE_MAX:
                    break
            del self._given_up[job_class]
        return refused

    def _leave(self, waiters: Iterable[Waiter], refuse: Callable[[Job], RejectItem]) -> list[RejectItem]:
        refused = []
        for waiter in waiters:
            refused.append(refuse(waiter.job))
            self._waiting.leave(waiter)
        return refused

    # ---- room that no event named ----

    async def look(self, index: Index, reads: Reads, reader: Reader) -> None:
        """Unblock jobs that wait although there is room that no event on its way names."""
        settled = [job_class for job_class in self._waiting.settled_classes() if index.eligible(job_class)]
        classes = self._classes.take(settled, NODES_AT_ONCE_MAX, lambda job_class: len(index.eligible(job_class)))
        limits = self._limits.take(self._waiting.limits.settled(), LIMITS_AT_ONCE_MAX, lambda _: 1)
        nodes = list(dict.fromkeys(node.id for job_class in classes for node in index.eligible(job_class)))
        flags = await reads.are_open(nodes) if nodes else []
        are_open = {node for node, flag in zip(nodes, flags, strict=True) if flag}
        roomy = await _with_room(limits, index, reads) if limits else []
        if not are_open and not roomy:
            return
        pending = await reader.peek_freed()
        for job_class in classes:
            eligible = [node.id for node in index.eligible(job_class)]
            unnamed = [node for node in eligible if node in are_open and node not in pending.nodes]
            if unnamed:
                logger.debug("the sweep found room for %s on %s", job_class, unnamed)
                self._waiting.unblock_class(job_class, unnamed, is_swept=True)
        for limit, pool in roomy:
            if limit not in pending.limits:
                logger.debug("the sweep found room in the limit %s", limit)
                self._waiting.limits.sweep(limit, pool)


def _is_served(job_class: JobClass, index: Index) -> bool:
    """Whether a node of any pool could serve a class."""
    scope = index.scope_of(job_class.tenant)
    return bool(index.members(job_class.src_lang, job_class.tgt_lang, job_class.features, scope))


class _Turn(Generic[T]):
    """Goes round a list that changes, a part at a time."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, items: list[T], at_once_max: int, cost_of: Callable[[T], int]) -> list[T]:
        """The next items, until their costs reach the maximum."""
        start = self._next if self._next < len(items) else 0
        chosen: list[T] = []
        cost = 0
        for item in items[start:] + items[:start]:
            if cost >= at_once_max:
                break
            chosen.append(item)
            cost += cost_of(item)
        self._next = start + len(chosen)
        return chosen


async def _with_room(limits: Sequence[tuple[str, str]], index: Index, reads: Reads) -> list[tuple[str, str]]:
    """The (limit, pool) of these where the limit has room for a job of the pool."""
    used = await reads.held_sizes([limit for limit, _ in limits])
    return [
        (limit, pool)
        for (limit, pool), (count, least) in zip(limits, used, strict=True)
        if has_room(limit, count, least, pool, index)
    ]


def no_node(job: Job) -> RejectItem:
    """The refusal of a job that no node can serve; it says what it needs."""
    languages = f"{job.src_lang}:{job.tgt_lang}" if job.src_lang else "a job without languages"
    features = f", features {', '.join(job.features)}" if job.features else ""
    return intake.refuse_job(job, "no_compatible_node", f"no node serves {languages}{features}")
