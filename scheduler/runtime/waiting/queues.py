"""One waiting job with its states, and the queues that it can be in: of its class, and of a limit.

Pure: no server, no clock.

A waiter's state changes in `Waiter.change` alone, by the table TRANSITIONS.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, Literal

from scheduler.errors import IllegalTransition
from scheduler.runtime.intake import Job, JobClass

DEADLINES_SPARE: Final = 1_000  # deadlines of waiters that left, kept beside as many as there are waiters

Cause = JobClass | tuple[str, str]
"""What a job waits for: room for its class; a limit, in a pool; or ("", session_id), an earlier job of its session."""

State = Literal["new", "behind", "limited", "blocked", "ready", "trying", "asking", "left"]
Event = Literal["follow", "lead", "limit", "block", "ask", "prepare", "attempt", "move", "leave"]

TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    # a newcomer, or the first of its session from now on, or one of another class than before
    ("new", "follow"): "behind",
    ("new", "limit"): "limited",
    ("new", "block"): "blocked",
    ("new", "ask"): "asking",
    ("new", "prepare"): "ready",
    # behind an earlier job of its session
    ("behind", "lead"): "new",
    ("behind", "leave"): "left",
    # waits for room under a limit
    ("limited", "attempt"): "trying",
    ("limited", "block"): "blocked",
    ("limited", "ask"): "asking",
    ("limited", "move"): "new",
    ("limited", "leave"): "left",
    # waits for a node with room
    ("blocked", "attempt"): "trying",
    ("blocked", "ask"): "asking",
    ("blocked", "move"): "new",
    ("blocked", "leave"): "left",
    # is attempted in the next call
    ("ready", "attempt"): "trying",
    ("ready", "move"): "new",
    ("ready", "leave"): "left",
    # is in a call
    ("trying", "limit"): "limited",
    ("trying", "block"): "blocked",
    ("trying", "ask"): "asking",
    ("trying", "prepare"): "ready",
    ("trying", "move"): "new",
    ("trying", "leave"): "left",
    # found no room: the server is asked which nodes have some
    ("asking", "block"): "blocked",
    ("asking", "move"): "new",
    ("asking", "leave"): "left",
}

EntryOrder = tuple[int, int]


def entry_order(entry_id: str) -> EntryOrder:
    """The id of an entry as numbers that can be compared."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


class Waiter:
    """One waiting job.

    competes: whether it is one of the queue of its class.
    hint: the nodes to try, None to place it afresh.
    is_hint_complete: whether the hint names every node that may have room.
    is_woken: whether the hint comes from an event or a look that told of room.
    is_swept: whether no event had told of that room.
    first_ms: since when nothing of its session is before it.
    limit_queue: the queue of the limit that it waits for.
    admitted_by: the queue of a limit that lets it try now, until that attempt has an end.
    """

    __slots__ = (
        "admitted_by", "competes", "first_ms", "hint", "is_hint_complete", "is_swept", "is_woken", "job", "job_class",
        "key", "limit_queue", "order", "since_ms", "state",
    )  # fmt: skip

    def __init__(self, job: Job, job_class: JobClass, order: int, since_ms: float) -> None:
        self.job = job
        self.job_class = job_class
        self.order = order
        self.key = (-job.priority, order)
        self.since_ms = since_ms
        self.first_ms = since_ms
        self.state: State = "new"
        self.competes = False
        self.hint: tuple[str, ...] | None = None
        self.is_hint_complete = False
        self.is_woken = False
        self.is_swept = False
        self.limit_queue: LimitQueue | None = None
        self.admitted_by: LimitQueue | None = None

    def __lt__(self, other: Waiter) -> bool:
        return self.key < other.key

    def change(self, event: Event) -> None:
        """Take the state that follows. Raises: IllegalTransition, and changes nothing, when the table has none."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise IllegalTransition(f"{event!r} of a waiting job that is {self.state!r}: not in the transition table")
        self.state = state


class ClassQueue:
    """The competing waiters of one class: those that are blocked in order, and the nodes that may have room for them.

    Which waiter is next is decided here alone.

    competing: how many compete in all, blocked or not.
    nodes: that may have room, in the order in which they were told.
    must_ask: the next waiter that blocks asks first, because the one that was to find out left while none was blocked.
    burst: waiters of the next call, doubled as long as room lasts.
    is_swept: no event had told of the nodes.
    """

    __slots__ = ("_blocked", "burst", "competing", "is_swept", "must_ask", "nodes")

    def __init__(self) -> None:
        self._blocked: list[Waiter] = []
        self.competing = 0
        self.nodes: dict[str, None] = {}
        self.must_ask = False
        self.burst = 0
        self.is_swept = False

    def __len__(self) -> int:
        """How many are blocked."""
        return len(self._blocked)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(self._blocked)

    def push(self, waiter: Waiter) -> None:
        """A waiter is blocked: it takes its place."""
        bisect.insort(self._blocked, waiter)

    def pop(self, count: int) -> list[Waiter]:
        """The next ones, `count` at most; they are taken out."""
        first = self._blocked[:count]
        del self._blocked[:count]
        return first

    def remove(self, waiter: Waiter) -> None:
        """A blocked waiter leaves."""
        del self._blocked[bisect.bisect_left(self._blocked, waiter)]

    @property
    def may_place(self) -> bool:
        """Whether somebody is blocked beside nodes that may have room."""
        return bool(self.nodes) and bool(self._blocked)

    @property
    def is_settled(self) -> bool:
        """Whether all wait for an event."""
        return len(self._blocked) == self.competing and not self.nodes

    def unblock(self, nodes: Iterable[str], is_swept: bool = False) -> None:
        """These nodes may have room: the blocked waiters are to be tried on them."""
        roomy = dict.fromkeys(nodes)
        if roomy:
            self.is_swept = is_swept and not self.nodes
            self.nodes.update(roomy)


class LimitQueue:
    """The waiters of one limit, in order, by class. Which of them is next is decided here alone.

    counts: waiters by pool.
    pools: for which it may have room.
    in_flight: how many of a class were admitted whose attempt has no end yet.
    burst: how many of a class may be in flight at once.
    is_swept: no event had told that there may be room.
    """

    __slots__ = ("_queues", "burst", "counts", "in_flight", "is_swept", "limit", "pools")

    def __init__(self, limit: str) -> None:
        self.limit = limit
        self._queues: dict[JobClass, list[Waiter]] = {}
        self.counts: dict[str, int] = {}
        self.pools: set[str] = set()
        self.in_flight: dict[JobClass, int] = {}
        self.burst = 1
        self.is_swept = False

    def __bool__(self) -> bool:
        """Whether somebody waits."""
        return bool(self._queues)

    def push(self, waiter: Waiter) -> None:
        """A waiter takes its place."""
        pool = waiter.job_class.pool
        self.counts[pool] = self.counts.get(pool, 0) + 1
        bisect.insort(self._queues.setdefault(waiter.job_class, []), waiter)

    def remove(self, waiter: Waiter) -> None:
        """A waiter leaves."""
        job_class = waiter.job_class
        queue = self._queues[job_class]
        del queue[bisect.bisect_left(queue, waiter)]
        if not queue:
            del self._queues[job_class]
        self.counts[job_class.pool] -= 1
        if not self.counts[job_class.pool]:
            del self.counts[job_class.pool]

    def pop(self) -> Waiter | None:
        """The first of those that may be admitted now; it is taken out and in flight."""
        heads = [queue[0] for job_class, queue in self._queues.items() if self._may_admit(job_class)]
        if not heads:
            return None
        waiter = min(heads)
        self.remove(waiter)
        self.in_flight[waiter.job_class] = self.in_flight.get(waiter.job_class, 0) + 1
        return waiter

    def _may_admit(self, job_class: JobClass) -> bool:
        return job_class.pool in self.pools and self.in_flight.get(job_class, 0) < self.burst

    def ended(self, job_class: JobClass, is_placed: bool) -> None:
        """The attempt of a waiter that was admitted has an end."""
        self.in_flight[job_class] -= 1
        if not self.in_flight[job_class]:
            del self.in_flight[job_class]
        self.burst += is_placed


class WaitersByClass:
    """All waiters by class, whatever each of them waits for, in the order in which they came to it.

    arrivals: how many times one came to a class; the number of each is that of its own arrival.
    """

    def __init__(self) -> None:
        self.arrivals = 0
        self._classes: dict[JobClass, dict[Waiter, int]] = {}

    def classes(self) -> list[JobClass]:
        """Every class of which a job waits."""
        return list(self._classes)

    def add(self, waiter: Waiter) -> None:
        """A waiter has this class now."""
        self.arrivals += 1
        self._classes.setdefault(waiter.job_class, {})[waiter] = self.arrivals

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

        Deadlines of waiters that left are dropped when they pile up; rarely, because that looks at all of them.
        """
        if waiter.job.deadline_at_ms is None:
            return
        heapq.heappush(self._heap, (waiter.job.deadline_at_ms, waiter.order, waiter))
        if len(self._heap) > 2 * waiting + DEADLINES_SPARE:
            self._heap = [entry for entry in self._heap if entry[2].state != "left"]
            heapq.heapify(self._heap)

    def overdue(self, now_ms: float, count: int) -> list[Waiter]:
        """At most `count` waiters whose deadline has passed, earliest first; each is named once."""
        overdue: list[Waiter] = []
        while self._heap and self._heap[0][0] <= now_ms and len(overdue) < count:
            waiter = heapq.heappop(self._heap)[2]
            if waiter.state != "left":
                overdue.append(waiter)
        return overdue

    def next_ms(self) -> int | None:
        """The earliest deadline."""
        while self._heap and self._heap[0][2].state == "left":
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None


def shared_out(nodes: list[str], tier_of: Callable[[str], int], most: int) -> list[tuple[str, ...]]:
    """Nodes in parts of at most `most`, for as many of the woken each: all of the best tier that there is, or else as
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
