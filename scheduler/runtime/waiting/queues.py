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

DEADLINES_SPARE: Final = 1_000  # deadlines of waiters that left, kept beside twice as many as there are waiters

Cause = JobClass | tuple[str, str]
"""What a job waits for: room for its class, a limit (`<kind>:<id>`) in a pool, or an earlier job of its session
("", session_id).
"""

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

    key: its place in a queue: the more urgent first, then the earlier.
    since_ms: since when it waits.
    first_ms: since when no job of its session is before it.
    competes: whether it is in the queue of its class, blocked or not.
    hint: the nodes to try, None to choose candidates afresh.
    is_hint_complete: whether the hint names every node that may have room.
    is_woken: whether the hint comes from an event, or from the sweep.
    is_swept: whether no event named that room.
    limit_queue: the queue of the limit that it waits for.
    admitted_by: the queue of the limit that admitted it to its attempt, until that ends.
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
        """Change the state as the table says. Raises: IllegalTransition, when it has no such row; nothing changes."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise IllegalTransition(f"{event!r} of a waiting job that is {self.state!r}: not in the transition table")
        self.state = state


class ClassQueue:
    """The competing waiters of one class: the blocked ones in order, and the nodes that may have room for them.

    Which waiter is next is decided here alone.

    competing: how many compete in all, blocked or not.
    nodes: those that may have room, in the order of the events that named them.
    must_ask: whether the next waiter that blocks asks first, because the one that was to ask left while none was
        blocked.
    burst: how many waiters the next call takes; doubled as long as room lasts.
    is_swept: whether the sweep found the nodes, and no event named them.
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
        """Add a blocked waiter at its place."""
        bisect.insort(self._blocked, waiter)

    def pop(self, count: int) -> list[Waiter]:
        """Take out the next waiters, `count` at most."""
        first = self._blocked[:count]
        del self._blocked[:count]
        return first

    def remove(self, waiter: Waiter) -> None:
        """Take out a blocked waiter."""
        del self._blocked[bisect.bisect_left(self._blocked, waiter)]

    @property
    def may_place(self) -> bool:
        """Whether a waiter is blocked although nodes may have room."""
        return bool(self.nodes) and bool(self._blocked)

    @property
    def is_settled(self) -> bool:
        """Whether all waiters wait for an event."""
        return len(self._blocked) == self.competing and not self.nodes

    def unblock(self, nodes: Iterable[str], is_swept: bool = False) -> None:
        """These nodes may have room: try the blocked waiters on them."""
        roomy = dict.fromkeys(nodes)
        if roomy:
            self.is_swept = is_swept and not self.nodes
            self.nodes.update(roomy)


class LimitQueue:
    """The waiters of one limit, in order, by class. Which of them is next is decided here alone.

    counts: waiters by pool.
    pools: those for which the limit may have room.
    in_flight: by class, how many waiters were admitted and are in an attempt.
    burst: how many waiters of a class may be in flight at once.
    is_swept: whether the sweep found the room, and no event named it.
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
        """Whether there are waiters."""
        return bool(self._queues)

    def push(self, waiter: Waiter) -> None:
        """Add a waiter at its place."""
        pool = waiter.job_class.pool
        self.counts[pool] = self.counts.get(pool, 0) + 1
        bisect.insort(self._queues.setdefault(waiter.job_class, []), waiter)

    def remove(self, waiter: Waiter) -> None:
        """Take out a waiter."""
        job_class = waiter.job_class
        queue = self._queues[job_class]
        del queue[bisect.bisect_left(queue, waiter)]
        if not queue:
            del self._queues[job_class]
        self.counts[job_class.pool] -= 1
        if not self.counts[job_class.pool]:
            del self.counts[job_class.pool]

    def pop(self) -> Waiter | None:
        """Take out the first waiter that may be admitted now; it is in flight then."""
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
        """End the attempt of a waiter that was admitted. Each placement lets one more try at once."""
        self.in_flight[job_class] -= 1
        if not self.in_flight[job_class]:
            del self.in_flight[job_class]
        self.burst += is_placed


class WaitersByClass:
    """All waiters by class, whatever they wait for, in the order in which they came to their class.

    arrivals: how many times a waiter came to a class. A waiter's number is that of its own arrival.
    """

    def __init__(self) -> None:
        self.arrivals = 0
        self._classes: dict[JobClass, dict[Waiter, int]] = {}

    def classes(self) -> list[JobClass]:
        """Every class with a waiting job."""
        return list(self._classes)

    def add(self, waiter: Waiter) -> None:
        """Add a waiter to its class."""
        self.arrivals += 1
        self._classes.setdefault(waiter.job_class, {})[waiter] = self.arrivals

    def remove(self, waiter: Waiter) -> None:
        """Take out a waiter that left, or that is about to have another class."""
        members = self._classes[waiter.job_class]
        del members[waiter]
        if not members:
            del self._classes[waiter.job_class]

    def of(self, job_class: JobClass) -> Collection[Waiter]:
        """All waiters of a class."""
        return self._classes.get(job_class, {})

    def first(self, job_class: JobClass, number: int, count: int) -> list[Waiter]:
        """The first waiters of a class, `count` at most, of those with this number or a lower one."""
        members = self._classes.get(job_class, {}).items()
        return [waiter for waiter, own in islice(members, count) if own <= number]


class Deadlines:
    """The deadlines of waiting jobs, by the dispatcher's own clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Waiter]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, waiter: Waiter, waiting: int) -> None:
        """Remember the deadline of a waiter, if it has one.

        Deadlines of waiters that left are dropped when there are many. That is rare, because it looks at all of them.

        waiting: how many waiters there are.
        """
        if waiter.job.deadline_at_ms is None:
            return
        heapq.heappush(self._heap, (waiter.job.deadline_at_ms, waiter.order, waiter))
        if len(self._heap) > 2 * waiting + DEADLINES_SPARE:
            self._heap = [entry for entry in self._heap if entry[2].state != "left"]
            heapq.heapify(self._heap)

    def overdue(self, now_ms: float, count: int) -> list[Waiter]:
        """Take out the waiters whose deadline has passed, at most `count`, the earliest deadline first."""
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
    """Divide nodes into parts of at most `most`, each of which is for as many waiters.

    The parts have all nodes of the best tier. If these fit into one part, nodes of the next tiers fill it up.

    tier_of: the tier of a node; 0 is the best.
    """
    if len(nodes) <= most:
        return [tuple(nodes)]
    tiers = {node: tier_of(node) for node in nodes}
    ordered = sorted(nodes, key=tiers.__getitem__)
    best = [node for node in ordered if tiers[node] == tiers[ordered[0]]]
    if len(best) <= most:
        return [tuple(ordered[:most])]
    return [tuple(best[at : at + most]) for at in range(0, len(best), most)]
