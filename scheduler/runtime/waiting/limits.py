"""Jobs that wait for a limit: `reserve` answered them with `limited`.

Pure: no server, no clock.

Such a job waits for that limit alone and is not in the queue of its class. An event that names the limit admits the
first of its queue to an attempt; when that one is placed, the next is admitted, until one is limited again.

The jobs of a session or a tenant are counted in all pools together, but each pool has its own maximum: a limit can be
full for one pool alone. While a job runs under a limit of its session, that limit holds for all jobs of the session,
whatever their pool.

A job that finds no room when it is admitted is in the queue of its class from then on. Meanwhile no more jobs of the
class are admitted than were placed since the limit was full, so that a long queue does not move over as a whole.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Final

from scheduler.protocol.snapshot import Pool
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.waiting.queues import LimitQueue, Waiter

SESSION: Final = "session:"


def counted_by(job: Job, pool: Pool, kinds: Container[str]) -> tuple[tuple[str, str, int], ...]:
    """(kind, id, most) of each limit that a job counts for, by the policy of its pool; most is 0 where that sets none.

    kinds: of limits that are counted.
    """
    counted: tuple[tuple[str, str, int], ...] = ()
    if "session" in kinds:
        counted += (("session", job.session_id, pool.session_concurrency),)
    if "tenant" in kinds and job.tenant_id:
        counted += (("tenant", job.tenant_id, pool.tenant_concurrency),)
    return counted


def limits_of(job: Job, job_class: JobClass, index: Index) -> tuple[str, ...]:
    """The limits that may hold a job back, as `<kind>:<id>`: of its session if any pool limits sessions, and of its
    tenant by the policy of the pool that its session prefers.
    """
    policy = index.pools.get(job_class.pool)
    if policy is None or not index.counted:
        return ()
    counted = counted_by(job, policy, index.counted)
    return tuple([f"{kind}:{name}" for kind, name, most in counted if most or kind == "session"])


def has_room(limit: str, used: int, least: int, pool: str, index: Index) -> bool:
    """Whether a limit has room for a job of a pool.

    Args:
        limit: as `<kind>:<id>`.
        used: how many jobs count for it.
        least: the smallest limit of the pools of these jobs, 0 for none.
        pool: of the job.
        index: with the policies of pools.
    """
    policy = index.pools.get(pool)
    if policy is None:
        return False
    if not limit.startswith(SESSION):
        return policy.tenant_concurrency == 0 or used < policy.tenant_concurrency
    return "session" not in index.counted or all(used < most for most in (policy.session_concurrency, least) if most)


def changed_limits(old: Mapping[str, Pool], new: Mapping[str, Pool]) -> list[str]:
    """The pools whose limits differ now, also those that are new or gone."""

    def limits(pool: Pool | None) -> tuple[int, int] | None:
        return (pool.session_concurrency, pool.tenant_concurrency) if pool is not None else None

    return [name for name in {**old, **new} if limits(old.get(name)) != limits(new.get(name))]


class Limits:
    """All limits that some job waits for, and which of them may have room."""

    def __init__(self) -> None:
        self._queues: dict[str, LimitQueue] = {}
        self._roomy: dict[str, None] = {}
        self._notices = 0
        self._last_notice: frozenset[str] | None = frozenset()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def count(self, limit: str, pool: str) -> int:
        """How many wait for a limit in a pool."""
        queue = self._queues.get(limit)
        return queue.counts.get(pool, 0) if queue is not None else 0

    # ---- waiters ----

    def hold(self, waiter: Waiter, limit: str) -> None:
        """Add a waiter to the queue of a limit. The limit may have room although jobs wait for it, when those are of
        classes that wait for nodes.
        """
        queue = self._queue(limit)
        waiter.change("limit")
        queue.push(waiter)
        waiter.limit_queue = queue
        if waiter.job_class.pool in queue.pools:
            self._roomy[limit] = None

    def refuse(self, waiter: Waiter, limit: str, mark: int) -> None:
        """Hold a waiter that a call found limited. It is tried when an event names the limit.

        If an event named it while the call was under way, it is tried at once, because there may be room since then.

        mark: of the call.
        """
        self.hold(waiter, limit)
        queue = self._queue(limit)
        queue.burst = 1
        if self._was_named(limit, mark):
            self._unblock(queue, (waiter.job_class.pool,))
        else:
            queue.pools.discard(waiter.job_class.pool)

    def remove(self, waiter: Waiter) -> None:
        """Take a waiter out of the queue of its limit."""
        queue, waiter.limit_queue = waiter.limit_queue, None
        assert queue is not None
        queue.remove(waiter)
        self._drop_empty(queue)

    def ended(self, waiter: Waiter, is_placed: bool) -> None:
        """End the attempt of a waiter, if a limit admitted it. The next of the limit may have its turn."""
        queue, waiter.admitted_by = waiter.admitted_by, None
        if queue is not None:
            queue.ended(waiter.job_class, is_placed)
            if queue and queue.pools:
                self._roomy[queue.limit] = None

    # ---- whose turn it is ----

    @property
    def mark(self) -> int:
        """A mark for a call that is sent now: events that come later are counted above it."""
        return self._notices

    def notify(self, limits: Iterable[str]) -> None:
        """An event: these limits may have room."""
        named = dict.fromkeys(limits)
        if named:
            self._notices += 1
            self._last_notice = frozenset(named)
            for queue in [self._queues[limit] for limit in named if limit in self._queues]:
                self._unblock(queue, queue.counts)

    def notify_all(self) -> None:
        """Events may have been missed: every limit may have room."""
        self._notices += 1
        self._last_notice = None
        for queue in self._queues.values():
            self._unblock(queue, queue.counts)

    def notify_pools(self, pools: Iterable[str]) -> None:
        """The limits of these pools have changed, so there may be room for their jobs. In the limit of a session there
        may be room for jobs of any pool, because a job of these pools may run there.
        """
        changed = frozenset(pools)
        if changed:
            self._notices += 1
            self._last_notice = None
            for queue in self._queues.values():
                is_session = queue.limit.startswith(SESSION)
                self._unblock(queue, queue.counts if is_session else changed.intersection(queue.counts))

    def sweep(self, limit: str, pool: str) -> None:
        """The sweep found room that no event named."""
        queue = self._queues.get(limit)
        if queue is not None and pool in queue.counts:
            self._unblock(queue, (pool,), is_swept=True)

    @property
    def busy(self) -> bool:
        """Whether there may be waiters to admit."""
        return bool(self._roomy)

    def admit(self, count: int) -> list[Waiter]:
        """The next waiters to be tried, at most `count`, of each limit in order."""
        chosen: list[Waiter] = []
        for limit in list(self._roomy):
            queue = self._queues[limit]
            while len(chosen) < count and (waiter := queue.pop()) is not None:
                waiter.admitted_by, waiter.limit_queue, waiter.is_swept = queue, None, queue.is_swept
                chosen.append(waiter)
            self._drop_empty(queue)
            if len(chosen) >= count:
                break
            self._roomy.pop(limit, None)
        return chosen

    def settled(self) -> list[tuple[str, str]]:
        """(limit, pool) where all jobs wait for an event. The sweep looks at these."""
        queues = self._queues.items()
        return [(limit, pool) for limit, queue in queues for pool in queue.counts if pool not in queue.pools]

    # ---- inside ----

    def _queue(self, limit: str) -> LimitQueue:
        queue = self._queues.get(limit)
        if queue is None:
            queue = self._queues[limit] = LimitQueue(limit)
        return queue

    def _drop_empty(self, queue: LimitQueue) -> None:
        if not queue and self._queues.get(queue.limit) is queue:
            del self._queues[queue.limit]
            self._roomy.pop(queue.limit, None)

    def _unblock(self, queue: LimitQueue, pools: Iterable[str], is_swept: bool = False) -> None:
        roomy = set(pools)
        if roomy:
            queue.is_swept = is_swept and not queue.pools
            queue.pools |= roomy
            self._roomy[queue.limit] = None

    def _was_named(self, limit: str, mark: int) -> bool:
        """Whether an event named a limit after `mark`. Only the last notice is remembered; a limit counts as named by
        earlier ones. Few calls are older than one notice.
        """
        if mark == self._notices:
            return False
        return mark < self._notices - 1 or self._last_notice is None or limit in self._last_notice
