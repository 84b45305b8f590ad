"""Pure. Decides; never performs. Who waits for which limit: jobs that `reserve` answered with `limited`.

Such a job waits for that limit alone; it takes no part in the line of its class. An event that tells the limit lets the
first of its line try, and when that one is placed the next, until one is limited again. What a session or a tenant
holds is counted in all pools together, but each pool says how much that may be: what is found full is full for one. A
limit of a session also holds for those that come beside a job that runs under it, whatever their pool.

A job that finds no room when it is let go stands in the line of its class from then on. No more of that class are let
go meanwhile than have been placed since the limit was full, so that a long line does not move over as a whole.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Final

from scheduler.protocol.snapshot import Pool
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.waiting.queues import LimitLine, Waiter

SESSION: Final = "session:"


def counted_by(job: Job, pool: Pool, kinds: Container[str]) -> tuple[tuple[str, str, int], ...]:
    """(kind, id, most) of each limit that a job counts for, by the policy of its pool; most 0: which has none. kinds:
    those that are counted.
    """
    counted: tuple[tuple[str, str, int], ...] = ()
    if "session" in kinds:
        counted += (("session", job.session_id, pool.session_concurrency),)
    if "tenant" in kinds and job.tenant_id:
        counted += (("tenant", job.tenant_id, pool.tenant_concurrency),)
    return counted


def limits_of(job: Job, job_class: JobClass, index: Index) -> tuple[str, ...]:
    """Those that may hold a job back, as `<kind>:<id>`: of its session if any pool limits sessions, and of its tenant
    by the policy of the pool that its session prefers.
    """
    policy = index.pools.get(job_class.pool)
    if policy is None or not index.counted:
        return ()
    counted = counted_by(job, policy, index.counted)
    return tuple([f"{kind}:{name}" for kind, name, most in counted if most or kind == "session"])


def has_room(limit: str, used: int, least: int, pool: str, index: Index) -> bool:
    """Whether a limit of which `used` are held leaves room for a job of a pool. least: the smallest limit of the pools
    of those jobs, 0 for none.
    """
    policy = index.pools.get(pool)
    if policy is None:
        return False
    if not limit.startswith(SESSION):
        return policy.tenant_concurrency == 0 or used < policy.tenant_concurrency
    return "session" not in index.counted or all(used < most for most in (policy.session_concurrency, least) if most)


def changed_limits(old: Mapping[str, Pool], new: Mapping[str, Pool]) -> list[str]:
    """The pools whose limits are others now; also such as are new or gone."""

    def limits(pool: Pool | None) -> tuple[int, int] | None:
        return (pool.session_concurrency, pool.tenant_concurrency) if pool is not None else None

    return [name for name in {**old, **new} if limits(old.get(name)) != limits(new.get(name))]


class Limits:
    """All limits that somebody waits for, and which of them may have room."""

    def __init__(self) -> None:
        self._lines: dict[str, LimitLine] = {}
        self._woken: dict[str, None] = {}
        self._hand_overs = 0
        self._told: frozenset[str] | None = frozenset()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def count(self, limit: str, pool: str) -> int:
        """How many wait for a limit in a pool."""
        line = self._lines.get(limit)
        return line.counts.get(pool, 0) if line is not None else 0

    # ---- who waits ----

    def park(self, waiter: Waiter, limit: str) -> None:
        """A waiter joins those who wait for a limit. There may be room in it while all others are those of a class
        that waits for nodes.
        """
        line = self._line(limit)
        line.add(waiter)
        waiter.status, waiter.parked_at = "limited", line
        if waiter.job_class.pool in line.woken:
            self._woken[limit] = None

    def refuse(self, waiter: Waiter, limit: str, mark: int) -> None:
        """A call that was sent at `mark` was answered that this limit is full: the waiter is tried when it is told.

        Unless it was told meanwhile: that event is spent, and there may be room since that answer.
        """
        self.park(waiter, limit)
        line = self._line(limit)
        line.pace = 1
        if self._was_told(limit, mark):
            self._wake(line, (waiter.job_class.pool,))
        else:
            line.woken.discard(waiter.job_class.pool)

    def remove(self, waiter: Waiter) -> None:
        """A waiter is limited no more."""
        line, waiter.parked_at = waiter.parked_at, None
        assert line is not None
        line.remove(waiter)
        self._drop_empty(line)

    def ended(self, waiter: Waiter, placed: bool) -> None:
        """If a waiter was let go by a limit, that is over, and perhaps the next one's turn."""
        line, waiter.let_go = waiter.let_go, None
        if line is not None:
            line.ended(waiter.job_class, placed)
            if line.queues and line.woken:
                self._woken[line.limit] = None

    # ---- whose turn it is ----

    @property
    def mark(self) -> int:
        """To be remembered with a call: what is told from now on is younger than the call."""
        return self._hand_overs

    def tell(self, limits: Iterable[str]) -> None:
        """These limits may have room."""
        told = dict.fromkeys(limits)
        if told:
            self._hand_overs += 1
            self._told = frozenset(told)
            for line in [self._lines[limit] for limit in told if limit in self._lines]:
                self._wake(line, line.counts)

    def tell_all(self) -> None:
        """Every limit may have room: events may have been missed."""
        self._hand_overs += 1
        self._told = None
        for line in self._lines.values():
            self._wake(line, line.counts)

    def tell_pools(self, pools: Iterable[str]) -> None:
        """These pools have other limits than before, so there may be room in all that they limit; for any pool in a
        session, where one of their jobs may run.
        """
        changed = frozenset(pools)
        if changed:
            self._hand_overs += 1
            self._told = None
            for line in self._lines.values():
                self._wake(line, line.counts if line.limit.startswith(SESSION) else changed.intersection(line.counts))

    def sweep(self, limit: str, pool: str) -> None:
        """A look found room that no event had announced."""
        line = self._lines.get(limit)
        if line is not None and pool in line.counts:
            self._wake(line, (pool,), swept=True)

    @property
    def busy(self) -> bool:
        """Whether somebody may be to be let go."""
        return bool(self._woken)

    def let_go(self, count: int) -> list[Waiter]:
        """The next to be tried, at most `count`, of each limit in their order."""
        chosen: list[Waiter] = []
        for limit in list(self._woken):
            line = self._lines[limit]
            while len(chosen) < count and (waiter := line.next()) is not None:
                line.remove(waiter)
                line.out[waiter.job_class] = line.out.get(waiter.job_class, 0) + 1
                waiter.let_go, waiter.parked_at, waiter.swept = line, None, line.swept
                chosen.append(waiter)
            self._drop_empty(line)
            if len(chosen) >= count:
                break
            self._woken.pop(limit, None)
        return chosen

    def settled(self) -> list[tuple[str, str]]:
        """(limit, pool) of which everybody waits for an event: what the sweep looks at."""
        return [(limit, pool) for limit, line in self._lines.items() for pool in line.counts if pool not in line.woken]

    # ---- inside ----

    def _line(self, limit: str) -> LimitLine:
        line = self._lines.get(limit)
        if line is None:
            line = self._lines[limit] = LimitLine(limit)
        return line

    def _drop_empty(self, line: LimitLine) -> None:
        if not line.queues and self._lines.get(line.limit) is line:
            del self._lines[line.limit]
            self._woken.pop(line.limit, None)

    def _wake(self, line: LimitLine, pools: Iterable[str], swept: bool = False) -> None:
        told = set(pools)
        if told:
            line.swept = swept and not line.woken
            line.woken |= told
            self._woken[line.limit] = None

    def _was_told(self, limit: str, mark: int) -> bool:
        """Whether a limit was told after `mark`; in doubt it was. A call is seldom older than one hand-over."""
        if mark == self._hand_overs:
            return False
        return mark < self._hand_overs - 1 or self._told is None or limit in self._told
