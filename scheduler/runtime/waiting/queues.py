"""Pure. Decides; never performs. One waiting job, and the lines it can be in: of its class, and of a limit."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Final, Literal

from scheduler.runtime.index import Index, Members
from scheduler.runtime.intake import Job, JobClass

DEADLINES_SPARE: Final = 1_000  # deadlines of those who left that may be kept beside as many as there are waiters

Cause = JobClass | tuple[str, str]
"""What a job waits for: room for its class; a limit, in a pool; or ("", session_id), an earlier job of its session."""

Status = Literal["behind", "limited", "parked", "ready", "trying", "asking", "left"]


Order = tuple[int, int]


def order_of(entry_id: str) -> Order:
    """The id of an entry as numbers that can be compared."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


class Waiter:
    """One waiting job.

    competes: whether it is one of the line of its class. hint: the nodes to try, None to place it afresh. complete:
    whether the hint names every node that may have room. woken: whether the hint comes from a wake; swept: from one
    that no event had announced. first_ms: since when nothing of its session is before it. parked_at: the line of the
    limit that it waits for. let_go: the line of a limit that lets it try now, until that try has an end.
    """

    __slots__ = (
        "competes",
        "complete",
        "first_ms",
        "hint",
        "job",
        "job_class",
        "key",
        "let_go",
        "order",
        "parked_at",
        "since_ms",
        "status",
        "swept",
        "woken",
    )  # fmt: skip

    def __init__(self, job: Job, job_class: JobClass, order: int, since_ms: float) -> None:
        self.job = job
        self.job_class = job_class
        self.order = order
        self.key = (-job.priority, order)
        self.since_ms = since_ms
        self.first_ms = since_ms
        self.status: Status = "behind"
        self.competes = False
        self.hint: tuple[str, ...] | None = None
        self.complete = False
        self.woken = False
        self.swept = False
        self.parked_at: LimitLine | None = None
        self.let_go: LimitLine | None = None

    def __lt__(self, other: Waiter) -> bool:
        return self.key < other.key


class Line:
    """The competing waiters of one class: parked ones in order, how many compete in all, and pending wakes.

    asks: the next who parks asks first, because the one who was to find out left while nobody was parked.
    pace: jobs tried in the next call, doubled as long as wakes last. swept: no event had announced the wakes.
    """

    __slots__ = ("asks", "competing", "pace", "parked", "swept", "wakes")

    def __init__(self) -> None:
        self.asks = False
        self.parked: list[Waiter] = []
        self.competing = 0
        self.wakes: dict[str, None] = {}
        self.pace = 0
        self.swept = False

    def announce(self, nodes: Iterable[str], swept: bool = False) -> None:
        """These nodes may have room: the parked waiters are to be tried on them."""
        told = dict.fromkeys(nodes)
        if told:
            self.swept = swept and not self.wakes
            self.wakes.update(told)


class LimitLine:
    """Those who wait for one limit, in order, by class.

    woken: pools for which it may have room. out: how many of a class were let go whose try has no end yet. pace: how
    many of a class may be out at once. swept: no event had announced that there may be room.
    """

    __slots__ = ("counts", "limit", "out", "pace", "queues", "swept", "woken")

    def __init__(self, limit: str) -> None:
        self.limit = limit
        self.queues: dict[JobClass, list[Waiter]] = {}
        self.counts: dict[str, int] = {}
        self.woken: set[str] = set()
        self.out: dict[JobClass, int] = {}
        self.pace = 1
        self.swept = False

    def add(self, waiter: Waiter) -> None:
        """Keep a waiter at its place."""
        pool = waiter.job_class.pool
        self.counts[pool] = self.counts.get(pool, 0) + 1
        bisect.insort(self.queues.setdefault(waiter.job_class, []), waiter)

    def remove(self, waiter: Waiter) -> None:
        """Take a waiter out."""
        job_class = waiter.job_class
        queue = self.queues[job_class]
        del queue[bisect.bisect_left(queue, waiter)]
        if not queue:
            del self.queues[job_class]
        self.counts[job_class.pool] -= 1
        if not self.counts[job_class.pool]:
            del self.counts[job_class.pool]

    def next(self) -> Waiter | None:
        """The first of those who may be let go now."""
        heads = [queue[0] for job_class, queue in self.queues.items() if self._may_go(job_class)]
        return min(heads) if heads else None

    def _may_go(self, job_class: JobClass) -> bool:
        return job_class.pool in self.woken and self.out.get(job_class, 0) < self.pace

    def ended(self, job_class: JobClass, placed: bool) -> None:
        """A try of one who was let go has an end."""
        self.out[job_class] -= 1
        if not self.out[job_class]:
            del self.out[job_class]
        self.pace += placed


def tier_of(index: Index, job_class: JobClass, node: str) -> int:
    """Which place the pool of a node has among those that may serve a class: 0 for its own, then its fallback pools."""
    tiers = index.tiers(job_class.pool)
    known = index.nodes.get(node)
    return tiers.index(known.pool) if known is not None and known.pool in tiers else len(tiers)


def gains(classes: Iterable[JobClass], old: Index, new: Index) -> Iterator[tuple[JobClass, list[str]]]:
    """What each class has to be tried on in a new snapshot: nodes that did not serve it before, or in another boot."""
    if old.pools == new.pools:
        changed = [node.id for node in new.nodes.values() if node != old.nodes.get(node.id)]
    else:
        changed = list(new.nodes)
    for job_class in classes:
        served = [node for node in changed if new.serves(job_class, node)]
        yield (
            job_class,
            [node for node in served if old.boots.get(node) != new.boots[node] or not old.serves(job_class, node)],
        )


def may_move(classes: Iterable[JobClass], old: Index, new: Index) -> Iterator[JobClass]:
    """Classes whose jobs may belong to another pool in a new snapshot.

    Their own pool cannot serve them any more, another one can, or counts for more beside it, or tenants prefer other
    pools.
    """
    if (old.overrides, old.scopes) != (new.overrides, new.scopes):
        yield from classes
        return
    for job_class in classes:
        before, after = old.members_of(job_class), new.members_of(job_class)
        if after is not before and after.keys() != {job_class.pool} and _weights(before) != _weights(after):
            yield job_class


def any_may_move(old: Index, new: Index) -> bool:
    """Whether some job, of whatever class, may belong to another pool in a new snapshot."""
    if old.overrides != new.overrides or old.scopes != new.scopes:
        return True
    before, after = _places(old), _places(new)
    return before != after and len({place[0] for place in (*before.values(), *after.values())}) > 1


def _places(index: Index) -> dict[str, tuple[object, ...]]:
    """Of each node what the choice between pools depends on, its pool first."""
    return {name: (node.pool, node.slots, node.pairs, node.features) for name, node in index.nodes.items()}


def _weights(members: Members) -> dict[str, int]:
    """What the choice between pools depends on: a node that was started again alters nothing."""
    return {pool: each.slots for pool, each in members.items()}


class WaitersByClass:
    """All waiters by class, whatever each of them waits for, in the order in which they came to it.

    came: how many times one came to a class; the number of each is that of its own coming.
    """

    def __init__(self) -> None:
        self.came = 0
        self._classes: dict[JobClass, dict[Waiter, int]] = {}

    def classes(self) -> list[JobClass]:
        """Every class of which a job waits."""
        return list(self._classes)

    def add(self, waiter: Waiter) -> None:
        """A waiter has this class now."""
        self.came += 1
        self._classes.setdefault(waiter.job_class, {})[waiter] = self.came

    def remove(self, waiter: Waiter) -> None:
        """A waiter left, or is about to have another class."""
        members = self._classes[waiter.job_class]
        del members[waiter]
        if not members:
            del self._classes[waiter.job_class]

    def of(self, job_class: JobClass) -> Collection[Waiter]:
        """All of a class."""
        return self._classes.get(job_class, {})

    def first(self, job_class: JobClass, number: int, count: int) -> list[Waiter]:
        """The first of a class, `count` at most, as far as they came with this number or before."""
        members = self._classes.get(job_class, {}).items()
        return [waiter for waiter, own in islice(members, count) if own <= number]


class Deadlines:
    """The deadlines of waiting jobs, by the dispatcher's own clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Waiter]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, waiter: Waiter, waiting: int) -> None:
        """Remember the deadline of a waiter, if it has one. waiting: how many there are.

        Those of waiters who left are dropped when they pile up; rarely, because that looks at all of them.
        """
        if waiter.job.deadline_at_ms is None:
            return
        heapq.heappush(self._heap, (waiter.job.deadline_at_ms, waiter.order, waiter))
        if len(self._heap) > 2 * waiting + DEADLINES_SPARE:
            self._heap = [each for each in self._heap if each[2].status != "left"]
            heapq.heapify(self._heap)

    def overdue(self, now_ms: float, count: int) -> list[Waiter]:
        """At most `count` waiters whose deadline has passed, earliest first; each is named once."""
        overdue: list[Waiter] = []
        while self._heap and self._heap[0][0] <= now_ms and len(overdue) < count:
            waiter = heapq.heappop(self._heap)[2]
            if waiter.status != "left":
                overdue.append(waiter)
        return overdue

    def next_ms(self) -> int | None:
        """The earliest deadline."""
        while self._heap and self._heap[0][2].status == "left":
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


def shared_out(nodes: list[str], tier_of: Callable[[str], int], most: int) -> list[tuple[str, ...]]:
    """Nodes in parts of at most `most`, for so many of the woken each: all of the best tier that there is, or else as
    many as go into one part, of this tier and the next ones. tier_of: 0 is the best.
    """
    if len(nodes) <= most:
        return [tuple(nodes)]
    tiers = {node: tier_of(node) for node in nodes}
    ordered = sorted(nodes, key=tiers.__getitem__)
    best = [node for node in ordered if tiers[node] == tiers[ordered[0]]]
    if len(best) <= most:
        return [tuple(ordered[:most])]
    return [tuple(best[at : at + most]) for at in range(0, len(best), most)]
