"""Which jobs wait, in what order, and which of them are tried now.

Pure: no server, no clock.

Rules (docs/GUARANTEES.md promises the order of sessions, and that no job waits beside a free slot):

- Only the first waiting job of a session competes. Later ones queue behind it, whatever their class.
- Newcomers do not pass competing jobs of their class, or jobs that wait for a limit that they count for.
- A job blocks only after the server said that no eligible node has room. Events are applied one batch at a time between
  calls, in stream order, so none can fall between that question and the blocking.
- A class remembers a node with room until the class has no waiters, an attempt with that node among its candidates
  found no room, or an attempt took the last slot of the node. A freed slot that another job takes therefore costs at
  most one attempt without success, and no waiter is forgotten.
- A waiter may block without a question of its own behind one of its class that asks or is in a call. When that one
  leaves without the news of an event, the next of the class asks: the first blocked one, or else the first that blocks.
- A job that is limited waits for that limit alone (limits.py). Its candidates are chosen afresh when its turn comes.

The states of a waiter and the events between them are in queues.py. Memory holds the ids and the class of a job; its
body stays in the intake.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.waiting.limits import Limits, limits_of
from scheduler.runtime.waiting.queues import (
    Cause,
    ClassQueue,
    Deadlines,
    Waiter,
    WaitersByClass,
    entry_order,
    shared_out,
)

CANDIDATES_MAX: Final = 16  # nodes that one unblocked job tries; the rest are for other jobs, or stay remembered
BEYOND_SHARE: Final = 8  # this part of waiting_max may wait beyond it, a few jobs of each cause,
BEYOND_MIN: Final = 256  # and at least so many
FEW_MAX: Final = 256  # jobs of a cause that may: enough to make a pass over millions of entries worth it,
FEW_SHARE: Final = 16  # and at most this part of all that may


class MemoryBounds:
    """How many jobs may wait: for the same cause, and in all.

    Beyond that, a few jobs of each class and each limit are remembered, or a flood for one class would keep the jobs of
    the other classes from free slots. Their number has a bound of its own, because clients can name any number of
    classes. Classes that no node serves get half of it.

    share_max: jobs that may wait for the same cause.
    waiting_max: jobs that may wait in all.
    """

    def __init__(self, share_max: int, waiting_max: int) -> None:
        self.share_max = share_max
        self.waiting_max = waiting_max
        self._beyond_max = max(waiting_max // BEYOND_SHARE, BEYOND_MIN)
        self._few = min(FEW_MAX, self._beyond_max // FEW_SHARE, max(1, share_max // 2))

    def are_full(self, cause: Cause, count: int, waiting: int) -> bool:
        """Whether there is no memory for one more job with a cause.

        Args:
            cause: that it would wait for.
            count: how many jobs wait for it.
            waiting: how many jobs wait in all.
        """
        if waiting < self.waiting_max:
            return count >= self.share_max
        return count >= self.share_kept(cause) or waiting >= self.most(cause)

    def share_kept(self, cause: Cause) -> int:
        """How many jobs may wait for a cause when memory is full: a few of a class or limit, one of a session."""
        if isinstance(cause, JobClass):
            return self._few if cause.pool else 1
        return self._few if cause[0] else 1

    def most(self, cause: Cause) -> int:
        """How many jobs may wait in all, for a newcomer with this cause. Jobs that no node serves leave room for those
        that could be served.
        """
        is_unserved = isinstance(cause, JobClass) and not cause.pool
        return self.waiting_max + (self._beyond_max // 2 if is_unserved else self._beyond_max)


class Waiting:
    """All waiting jobs of one dispatcher.

    index: the snapshot by which limits hold a job, and by which some nodes come first.
    arrivals: how many jobs have waited so far.
    sweep_hits: how many were placed only because the sweep looked.
    limits: the jobs that wait for limits.
    deadlines: of the waiting jobs.
    members: the waiting jobs by class.
    promoted: waiters that became the first of their session; the caller takes the time and clears the list.
    """

    def __init__(self, index: Index | None = None) -> None:
        self.index = index or Index()
        self.arrivals = 0
        self.sweep_hits = 0
        self.limits = Limits()
        self.deadlines = Deadlines()
        self.members = WaitersByClass()
        self.promoted: list[Waiter] = []
        self._sessions: dict[str, deque[Waiter]] = {}
        self._queues: dict[JobClass, ClassQueue] = {}
        self._ready: deque[Waiter] = deque()
        self._asking: list[Waiter] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for session in self._sessions.values() for waiter in session)

    def classes(self) -> list[JobClass]:
        """Every class in which a job competes."""
        return list(self._queues)

    def by_pool(self) -> dict[str, int]:
        """Competing jobs by preferred pool, for reports."""
        counts: dict[str, int] = {}
        for job_class, queue in self._queues.items():
            counts[job_class.pool] = counts.get(job_class.pool, 0) + queue.competing
        return counts

    # ---- newcomers ----

    def must_wait(self, job: Job, job_class: JobClass) -> bool:
        """Whether a newcomer has to queue: behind its session, for a limit, or behind competing jobs of its class."""
        before = job.session_id in self._sessions or (bool(self._queues) and job_class in self._queues)
        return before or (bool(self.limits) and self._limit_before(job, job_class) is not None)

    def cause(self, job: Job, job_class: JobClass) -> Cause:
        """What a newcomer would wait for, if it had to."""
        if job.session_id in self._sessions:
            return "", job.session_id
        limit = self._limit_before(job, job_class) if self.limits else None
        return (limit, job_class.pool) if limit is not None else job_class

    def count(self, cause: Cause) -> int:
        """How many jobs wait for a cause."""
        if isinstance(cause, JobClass):
            queue = self._queues.get(cause)
            return queue.competing if queue is not None else 0
        limit, name = cause
        return self.limits.count(limit, name) if limit else len(self._sessions.get(name, ()))

    def of_session(self, session_id: str) -> list[Waiter]:
        """The waiting jobs of a session, in their order."""
        return list(self._sessions.get(session_id, ()))

    def holds(self, job: Job) -> bool:
        """Whether this entry waits. Of its session later entries come after it, so it waits if it is not above the last
        one of its partition.
        """
        for waiter in reversed(self._sessions.get(job.session_id, ())):
            if waiter.job.partition == job.partition:
                return entry_order(job.entry_id) <= entry_order(waiter.job.entry_id)
        return False

    def queue(self, job: Job, job_class: JobClass, now_ms: float) -> Waiter:
        """Add a newcomer that must wait without an attempt: behind its session, else for a limit, else in its class."""
        waiter = self._add(job, job_class, now_ms)
        if waiter.state == "new":
            limit = self._limit_before(job, job_class)
            if limit is not None:
                self.limits.hold(waiter, limit)
            else:
                self._compete(waiter)
                self._block(waiter)
        return waiter

    def found_no_room(self, job: Job, job_class: JobClass, now_ms: float) -> Waiter:
        """Add a newcomer that found no room: the first of its session asks, later ones queue behind it."""
        waiter = self._add(job, job_class, now_ms)
        if waiter.state == "new":
            self._compete(waiter)
            self._ask(waiter)
        return waiter

    def found_limit_full(self, job: Job, job_class: JobClass, now_ms: float, limit: str, mark: int) -> Waiter:
        """Add a newcomer that was answered `limited`. mark: of its call."""
        waiter = self._add(job, job_class, now_ms)
        if waiter.state == "new":
            self.limits.refuse(waiter, limit, mark)
        return waiter

    def _add(self, job: Job, job_class: JobClass, now_ms: float) -> Waiter:
        self.arrivals += 1
        waiter = Waiter(job, job_class, self.arrivals, now_ms)
        self._size += 1
        self.members.add(waiter)
        session = self._sessions.get(job.session_id)
        if session is None:
            self._sessions[job.session_id] = deque((waiter,))
        else:
            session.append(waiter)
            waiter.change("follow")
        self.deadlines.add(waiter, self._size)
        return waiter

    def _limit_before(self, job: Job, job_class: JobClass) -> str | None:
        """A limit of a job that earlier jobs wait for, None when there is none."""
        for limit in limits_of(job, job_class, self.index):
            if self.limits.count(limit, job_class.pool):
                return limit
        return None

    # ---- attempts ----

    def unblock(self, nodes: Iterable[str], serves: Callable[[JobClass, str], bool]) -> None:
        """An event: nodes got room. serves: whether a node may take jobs of a class."""
        roomy = list(dict.fromkeys(nodes))
        if roomy:
            for job_class, queue in self._queues.items():
                queue.unblock([node for node in roomy if serves(job_class, node)])

    def unblock_class(self, job_class: JobClass, nodes: Iterable[str], is_swept: bool = False) -> None:
        """Nodes have room for one class: they are new to it, or (is_swept) the sweep found room that no event named."""
        queue = self._queues.get(job_class)
        if queue is not None:
            queue.unblock(nodes, is_swept)

    def ask_all(self) -> None:
        """Events may have been missed: the first blocked waiter of each class asks, and all limits are tried."""
        self.limits.notify_all()
        for queue in self._queues.values():
            self._ask_next(queue)

    def next_attempts(self, count: int) -> list[Waiter]:
        """The waiters of the next call, at most `count`; they are `trying` until an answer is applied."""
        chosen: list[Waiter] = []
        while self._ready and len(chosen) < count:
            waiter = self._ready.popleft()
            if waiter.state == "ready":
                waiter.change("attempt")
                chosen.append(waiter)
        for job_class in [job_class for job_class, queue in self._queues.items() if queue.may_place]:
            if len(chosen) < count:
                chosen += self._attempt_blocked(job_class, count - len(chosen))
        if self.limits.busy:
            chosen += self._attempt_limited(count - len(chosen))
        return chosen

    def _attempt_blocked(self, job_class: JobClass, count: int) -> list[Waiter]:
        queue = self._queues[job_class]
        hints = shared_out(list(queue.nodes), lambda node: self.index.tier_of(job_class, node), CANDIDATES_MAX)
        queue.burst = max(2 * queue.burst, sum(map(len, hints)))
        chosen: list[Waiter] = []
        while queue and (room := min(queue.burst, count) - len(chosen)) > 0:
            for waiter in queue.pop(room):
                waiter.change("attempt")
                waiter.hint, waiter.is_hint_complete = hints[len(chosen) // CANDIDATES_MAX % len(hints)], True
                waiter.is_woken, waiter.is_swept = True, queue.is_swept
                is_free = not self.limits or waiter.admitted_by is not None
                limit = None if is_free else self._limit_before(waiter.job, job_class)
                if limit is None:
                    chosen.append(waiter)
                else:
                    self._stop_competing(waiter)
                    self.limits.hold(waiter, limit)
        return chosen

    def _attempt_limited(self, count: int) -> list[Waiter]:
        """Waiters that limits admit: with fresh candidates, or blocked if jobs of their class compete."""
        chosen = []
        for waiter in self.limits.admit(count):
            if waiter.job_class in self._queues:
                self._compete(waiter)
                self._block(waiter)
            else:
                waiter.change("attempt")
                waiter.hint, waiter.is_hint_complete, waiter.is_woken = None, False, False
                chosen.append(waiter)
        return chosen

    @property
    def busy(self) -> bool:
        """Whether a waiter is to be tried or to ask now; newcomers come after these."""
        return bool(self._asking) or self.limits.busy or self._is_any_ready() or self._may_any_place()

    def _is_any_ready(self) -> bool:
        return any(waiter.state == "ready" for waiter in self._ready)

    def _may_any_place(self) -> bool:
        return any(queue.may_place for queue in self._queues.values())

    def asking(self) -> list[Waiter]:
        """Take the waiters for which the server is to be asked where there is room."""
        asking = dict.fromkeys(waiter for waiter in self._asking if waiter.state == "asking")
        self._asking = []
        return list(asking)

    def apply_open(self, waiter: Waiter, open_nodes: tuple[str, ...]) -> None:
        """Apply the answer to a waiter that asked: these nodes have room. They unblock its class, in which it blocks
        until its turn.
        """
        if waiter.state == "left":
            return
        queue = self._queues[waiter.job_class]
        queue.must_ask = False
        queue.unblock(open_nodes)
        self._block(waiter)

    def still_full(self, waiter: Waiter, candidates: Iterable[str]) -> None:
        """An attempt found no room on any of the candidates. The class forgets that they may have room."""
        if waiter.state == "left":
            return
        self._compete(waiter)
        queue = self._queues[waiter.job_class]
        for node in candidates:
            queue.nodes.pop(node, None)
        queue.burst = 0
        if waiter.is_hint_complete:
            self._block(waiter)
        else:
            self._ask(waiter)

    def filled(self, node: str) -> None:
        """A waiter took the last slot of a node. Every class forgets that the node may have room.

        Events are not applied while a call of waiting jobs is under way, so an event about a slot that is freed later
        comes after this.
        """
        for queue in self._queues.values():
            queue.nodes.pop(node, None)

    def still_limited(self, waiter: Waiter, limit: str, mark: int) -> None:
        """An attempt found a limit full: the room that it was tried on stays for the rest of its class.

        mark: of its call.
        """
        if waiter.state != "left":
            self._step_aside(waiter)
            self.limits.refuse(waiter, limit, mark)

    def try_again(self, waiter: Waiter) -> None:
        """An attempt was sent back because the snapshot is outdated: it is made afresh in the next call."""
        if waiter.state != "left":
            self._compete(waiter)
            self._prepare(waiter)

    def block(self, waiter: Waiter) -> None:
        """No node can serve a waiter at all: it waits for a snapshot with one that can."""
        if waiter.state != "left":
            self._compete(waiter)
            self._block(waiter)

    def leave(self, waiter: Waiter, placed: str = "") -> None:
        """A waiter is placed, rejected, cancelled or gone. The next of its session competes, and is tried at once
        unless its class waits.

        placed: the node that it was placed on, "" if it was not.
        """
        if waiter.state == "left":
            return
        if placed and waiter.is_swept and (waiter.hint is None or placed in waiter.hint):
            self.sweep_hits += 1
        session = self._sessions[waiter.job.session_id]
        was_first = session[0] is waiter
        if session[-1] is waiter:
            session.pop()
        else:
            session.remove(waiter)
        self._size -= 1
        if was_first:
            self._step_aside(waiter, bool(placed))
        self.members.remove(waiter)
        waiter.change("leave")
        if not session:
            del self._sessions[waiter.job.session_id]
        elif was_first:
            self.promoted.append(session[0])
            session[0].change("lead")
            self._start_competing(session[0])

    # ---- changes of snapshot and partitions ----

    def reclassify(self, waiter: Waiter, job_class: JobClass) -> None:
        """Move a waiter to its place in another class, which another snapshot or binding gives it."""
        if waiter.state == "left":
            return
        is_first = waiter.state != "behind"
        if is_first:
            self._step_aside(waiter)
            waiter.change("move")
        self.members.remove(waiter)
        waiter.job_class = job_class
        self.members.add(waiter)
        if is_first:
            self._start_competing(waiter)

    def drop_partitions(self, partitions: Collection[int]) -> None:
        """Forget every job of these partitions, which have another owner now.

        The last go first, or the next of a session would compete for a moment before it goes too.
        """
        for waiter in [waiter for waiter in self if waiter.job.partition in partitions][::-1]:
            self.leave(waiter)

    def blocked(self, job_class: JobClass) -> list[Waiter]:
        """The blocked waiters of a class, in the order of their turns."""
        return list(self._queues.get(job_class, ()))

    def settled_classes(self) -> list[JobClass]:
        """Classes whose jobs all wait for an event. The sweep looks at these."""
        return [job_class for job_class, queue in self._queues.items() if queue.is_settled]

    # ---- inside ----

    def _start_competing(self, waiter: Waiter) -> None:
        """A waiter is the first of its session now. It is tried at once unless jobs compete in its class or wait for a
        limit that it counts for.
        """
        limit = self._limit_before(waiter.job, waiter.job_class) if self.limits else None
        if limit is not None:
            self.limits.hold(waiter, limit)
            return
        is_first = waiter.job_class not in self._queues
        self._compete(waiter)
        if is_first:
            self._prepare(waiter)
        else:
            self._block(waiter)

    def _step_aside(self, waiter: Waiter, is_placed: bool = False) -> None:
        """Take the first of a session out of the queue that it is in."""
        if waiter.limit_queue is not None:
            self.limits.remove(waiter)
        elif waiter.competes:
            self._stop_competing(waiter)
        self.limits.ended(waiter, is_placed)

    def _compete(self, waiter: Waiter) -> None:
        if not waiter.competes:
            waiter.competes = True
            self._queues.setdefault(waiter.job_class, ClassQueue()).competing += 1

    def _stop_competing(self, waiter: Waiter) -> None:
        """Take a waiter out of the queue of its class. If waiters blocked behind its attempt or its question, the next
        of them asks.
        """
        queue = self._queues[waiter.job_class]
        waiter.competes = False
        queue.competing -= 1
        if queue.competing == 0:
            del self._queues[waiter.job_class]
        elif waiter.state == "blocked":
            queue.remove(waiter)
        elif not waiter.is_woken:
            self._ask_next(queue)

    def _ask(self, waiter: Waiter) -> None:
        waiter.change("ask")
        waiter.is_woken = False
        self._asking.append(waiter)

    def _ask_next(self, queue: ClassQueue) -> None:
        """Let the first blocked waiter ask; when none is blocked, the first that blocks again."""
        queue.must_ask = not queue
        for waiter in queue.pop(1):
            self._ask(waiter)

    def _block(self, waiter: Waiter) -> None:
        queue = self._queues[waiter.job_class]
        waiter.hint, waiter.is_woken = None, False
        if queue.must_ask:
            queue.must_ask = False
            self._ask(waiter)
        else:
            waiter.change("block")
            queue.push(waiter)

    def _prepare(self, waiter: Waiter) -> None:
        waiter.change("prepare")
        waiter.hint, waiter.is_hint_complete = None, False
        waiter.is_woken, waiter.is_swept = False, False
        self._ready.append(waiter)
