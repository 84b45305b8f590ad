"""Pure. Decides; never performs. Which jobs wait, in what order, and which of them are tried now.

Rules (docs/GUARANTEES.md promises the order of sessions and that no job waits beside a free slot):
- Only the first waiting job of a session competes; later ones queue behind it, whatever their class.
- Newcomers do not pass competing jobs of their class, nor those who wait for a limit that they fall under.
- A job parks only after `open` said that no eligible node has room. `freed` events are handed in one at a time between
  calls, in stream order, so that none can fall between that question and the parking.
- A wake (class, node) ends only when no waiter of the class is left, when a try with that node among its candidates
  found no room, or when one took its last slot. So a freed slot that others take costs one try in vain at most, and
  never leaves a waiter behind.
- A waiter may park without a question of its own behind one of its class that is to find out. When that one leaves
  although no event had announced room, the next of the class asks: the first who is parked, or who parks again.
- A job that is limited waits for that limit alone (limits.py), and is tried afresh when its turn comes.

A waiter is `behind` (of its session), `limited`, `parked` (room is awaited), `ready` (to be tried), `trying` (in a
call) or `asking` (tried in vain, `open` is to be asked). Memory holds ids and the class; the body stays in the intake.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from scheduler.runtime.intake import Class, Job
from scheduler.runtime.limits import Limits
from scheduler.runtime.lines import Cause, Deadlines, Line, WaitersByClass, order_of, shared_out
from scheduler.runtime.lines import Waiter as Waiter

WAKE_CANDIDATES_MAX: Final = 16  # nodes tried by one woken job; others are for other jobs, or stay pending


class Waiting:
    """All waiting jobs of one dispatcher.

    Args: limits_of, the limits that a job counts against, as `<kind>:<id>`; tier_of, which place the pool of a node has
    among those that may serve a class.
    waited: how many there were; sweep_hits: how many were placed only because the sweep looked; promoted: who became
    the first of its session, for whoever takes the time.
    """

    def __init__(
        self,
        limits_of: Callable[[Job, Class], tuple[str, ...]] = lambda job, wanted: (),
        tier_of: Callable[[Class, str], int] = lambda wanted, node: 0,
    ) -> None:
        self.sweep_hits = 0
        self.waited = 0
        self.limits = Limits()
        self.deadlines = Deadlines()
        self.members = WaitersByClass()
        self.promoted: list[Waiter] = []
        self._limits_of = limits_of
        self._tier_of = tier_of
        self._sessions: dict[str, deque[Waiter]] = {}
        self._lines: dict[Class, Line] = {}
        self._ready: deque[Waiter] = deque()
        self._asking: list[Waiter] = []
        self._order = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for line in self._sessions.values() for waiter in line)

    def classes(self) -> list[Class]:
        """Every class in which a job competes."""
        return list(self._lines)

    def by_pool(self) -> dict[str, int]:
        """Competing jobs by preferred pool, for reports."""
        counts: dict[str, int] = {}
        for wanted, line in self._lines.items():
            counts[wanted.pool] = counts.get(wanted.pool, 0) + line.competing
        return counts

    # ---- newcomers ----

    def must_wait(self, job: Job, wanted: Class) -> bool:
        """Whether a newcomer has to queue: behind its session, for a limit, or behind competing jobs of its class."""
        before = job.session_id in self._sessions or (bool(self._lines) and wanted in self._lines)
        return before or (bool(self.limits) and self._limit_before(job, wanted) is not None)

    def cause(self, job: Job, wanted: Class) -> Cause:
        """What a newcomer would wait for, if it had to."""
        if job.session_id in self._sessions:
            return "", job.session_id
        limit = self._limit_before(job, wanted) if self.limits else None
        return (limit, wanted.pool) if limit is not None else wanted

    def count(self, cause: Cause) -> int:
        """How many wait for the same."""
        if isinstance(cause, Class):
            line = self._lines.get(cause)
            return line.competing if line is not None else 0
        limit, pool = cause
        return self.limits.count(limit, pool) if limit else len(self._sessions.get(pool, ()))

    def of_session(self, session_id: str) -> list[Waiter]:
        """The waiting jobs of a session, in their order."""
        return list(self._sessions.get(session_id, ()))

    def holds(self, job: Job) -> bool:
        """Whether this entry waits: later ones of its session come after it, so it is not later than the last."""
        for waiter in reversed(self._sessions.get(job.session_id, ())):
            if waiter.job.partition == job.partition:
                return order_of(job.entry_id) <= order_of(waiter.job.entry_id)
        return False

    def queue(self, job: Job, wanted: Class, now_ms: float) -> Waiter:
        """A newcomer that must wait without being tried: behind its session, else for a limit, else in its class."""
        waiter = self._add(job, wanted, now_ms)
        if waiter.status != "behind":
            limit = self._limit_before(job, wanted)
            if limit is not None:
                self.limits.park(waiter, limit)
            else:
                self._compete(waiter)
                self._park(waiter)
        return waiter

    def tried_in_vain(self, job: Job, wanted: Class, now_ms: float) -> Waiter:
        """A newcomer that was tried and not placed: the first of its session asks `open`, later ones queue behind
        it.
        """
        waiter = self._add(job, wanted, now_ms)
        if waiter.status != "behind":
            self._compete(waiter)
            self._ask(waiter)
        return waiter

    def newly_limited(self, job: Job, wanted: Class, now_ms: float, limit: str, mark: int) -> Waiter:
        """A newcomer that was answered `limited` by a call that was sent at `mark`."""
        waiter = self._add(job, wanted, now_ms)
        if waiter.status != "behind":
            self.limits.refuse(waiter, limit, mark)
        return waiter

    def _add(self, job: Job, wanted: Class, now_ms: float) -> Waiter:
        self._order += 1
        self.waited += 1
        waiter = Waiter(job, wanted, self._order, now_ms)
        self._size += 1
        self.members.add(waiter)
        line = self._sessions.get(job.session_id)
        if line is None:
            self._sessions[job.session_id] = deque((waiter,))
            waiter.status = "ready"
        else:
            line.append(waiter)
        self.deadlines.add(waiter, self._size)
        return waiter

    def _limit_before(self, job: Job, wanted: Class) -> str | None:
        """The limit for which others wait, before a job that falls under it."""
        for limit in self._limits_of(job, wanted):
            if self.limits.count(limit, wanted.pool):
                return limit
        return None

    # ---- tries ----

    def wake(self, nodes: Iterable[str], serves: Callable[[Class, str], bool]) -> None:
        """Nodes got room. serves: whether a node may take jobs of a class."""
        freed = list(dict.fromkeys(nodes))
        if freed:
            for wanted, line in self._lines.items():
                line.announce([node for node in freed if serves(wanted, node)])

    def wake_class(self, wanted: Class, nodes: Iterable[str], swept: bool = False) -> None:
        """Nodes have room for one class: they are new to it, or (swept) a look found what no event told."""
        line = self._lines.get(wanted)
        if line is not None:
            line.announce(nodes, swept)

    def ask_all(self) -> None:
        """Events may have been missed: the first who is parked asks `open`, class by class, and limits are tried."""
        self.limits.tell_all()
        for line in self._lines.values():
            self._ask_next(line)

    def tries(self, limit: int) -> list[Waiter]:
        """The waiters to be tried in the next call, at most `limit`; they are `trying` until told otherwise."""
        chosen: list[Waiter] = []
        while self._ready and len(chosen) < limit:
            waiter = self._ready.popleft()
            if waiter.status == "ready":
                waiter.status = "trying"
                chosen.append(waiter)
        for wanted in [wanted for wanted, line in self._lines.items() if line.wakes and line.parked]:
            if len(chosen) < limit:
                chosen += self._wake_up(wanted, limit - len(chosen))
        if self.limits.busy:
            chosen += self._let_go(limit - len(chosen))
        return chosen

    def _wake_up(self, wanted: Class, limit: int) -> list[Waiter]:
        line = self._lines[wanted]
        hints = shared_out(list(line.wakes), lambda node: self._tier_of(wanted, node), WAKE_CANDIDATES_MAX)
        line.pace = max(2 * line.pace, sum(map(len, hints)))
        woken: list[Waiter] = []
        while line.parked and (room := min(line.pace, limit) - len(woken)) > 0:
            first = line.parked[:room]
            del line.parked[: len(first)]
            for waiter in first:
                hint = hints[len(woken) // WAKE_CANDIDATES_MAX % len(hints)]
                waiter.status, waiter.hint, waiter.complete = "trying", hint, True
                waiter.woken, waiter.swept = True, line.swept
                full = self._limit_before(waiter.job, wanted) if self.limits and waiter.let_go is None else None
                if full is None:
                    woken.append(waiter)
                else:
                    self._stop_competing(waiter)
                    self.limits.park(waiter, full)
        return woken

    def _let_go(self, limit: int) -> list[Waiter]:
        """Those whose turn it is at a limit: tried afresh, or parked behind others of their class."""
        chosen = []
        for waiter in self.limits.let_go(limit):
            if waiter.wanted in self._lines:
                self._compete(waiter)
                self._park(waiter)
            else:
                waiter.status, waiter.hint, waiter.complete, waiter.woken = "trying", None, False, False
                chosen.append(waiter)
        return chosen

    @property
    def busy(self) -> bool:
        """Whether some waiter is to be tried or asked for now; newcomers come after those."""
        while self._ready and self._ready[0].status != "ready":
            self._ready.popleft()
        if self._ready or self._asking or self.limits.busy:
            return True
        return any(line.wakes and line.parked for line in self._lines.values())

    def asking(self) -> list[Waiter]:
        """The waiters for whom `open` is to be asked."""
        asking = dict.fromkeys(waiter for waiter in self._asking if waiter.status == "asking")
        self._asking = []
        return list(asking)

    def answer_open(self, waiter: Waiter, open_nodes: tuple[str, ...]) -> None:
        """What `open` said of a waiter's eligible nodes: they wake its class, and it parks until its turn."""
        if waiter.status == "left":
            return
        line = self._lines[waiter.wanted]
        line.asks = False
        line.announce(open_nodes)
        self._park(waiter)

    def still_full(self, waiter: Waiter, candidates: Iterable[str]) -> None:
        """A try found no room on any of `candidates`, so their wakes are spent for this class."""
        if waiter.status == "left":
            return
        self._compete(waiter)
        line = self._lines[waiter.wanted]
        for node in candidates:
            line.wakes.pop(node, None)
        line.pace = 0
        if waiter.complete:
            self._park(waiter)
        else:
            self._ask(waiter)

    def filled(self, node: str) -> None:
        """One of those that wait took the last slot of a node. What frees one after that is told after this: no event
        is handed in while a call of waiting jobs is under way.
        """
        for line in self._lines.values():
            line.wakes.pop(node, None)

    def still_limited(self, waiter: Waiter, limit: str, mark: int) -> None:
        """A try in a call that was sent at `mark` found a limit full; the room that woke its class is for others."""
        if waiter.status != "left":
            self._step_aside(waiter)
            self.limits.refuse(waiter, limit, mark)

    def once_more(self, waiter: Waiter) -> None:
        """A try was turned away unanswered: it is made afresh in the next call."""
        if waiter.status != "left":
            self._compete(waiter)
            self._make_ready(waiter)

    def park(self, waiter: Waiter) -> None:
        """No node can serve it at all: it waits for a snapshot that has one."""
        if waiter.status != "left":
            self._compete(waiter)
            self._park(waiter)

    def leave(self, waiter: Waiter, placed: str = "") -> None:
        """Placed (on that node), rejected, cancelled, gone: the next of its session competes, and is tried at once
        unless its class waits.
        """
        if waiter.status == "left":
            return
        if placed and waiter.swept and (waiter.hint is None or placed in waiter.hint):
            self.sweep_hits += 1
        line = self._sessions[waiter.job.session_id]
        was_first = line[0] is waiter
        if line[-1] is waiter:
            line.pop()
        else:
            line.remove(waiter)
        self._size -= 1
        if was_first:
            self._step_aside(waiter, bool(placed))
        self.members.remove(waiter)
        waiter.status = "left"
        if not line:
            del self._sessions[waiter.job.session_id]
        elif was_first:
            self.promoted.append(line[0])
            self._start_competing(line[0])

    # ---- changes of the world ----

    def reclassify(self, waiter: Waiter, wanted: Class) -> None:
        """Another snapshot, another class: who waited in the old one takes its place in the new one."""
        if waiter.status == "left":
            return
        waits = waiter.status != "behind"
        if waits:
            self._step_aside(waiter)
        self.members.remove(waiter)
        waiter.wanted = wanted
        self.members.add(waiter)
        if waits:
            self._start_competing(waiter)

    def drop_partitions(self, partitions: Collection[int]) -> None:
        """Forget every job of these partitions: they are another owner's business now.

        The last go first: then none of them competes for a moment before it goes too.
        """
        for waiter in [waiter for waiter in self if waiter.job.partition in partitions][::-1]:
            self.leave(waiter)

    def parked(self, wanted: Class) -> list[Waiter]:
        """The parked waiters of a class, first come first."""
        line = self._lines.get(wanted)
        return list(line.parked) if line else []

    def settled_classes(self) -> list[Class]:
        """Classes whose jobs all wait for an event: what the sweep looks at."""
        return [wanted for wanted, line in self._lines.items() if len(line.parked) == line.competing and not line.wakes]

    # ---- inside ----

    def _start_competing(self, waiter: Waiter) -> None:
        """The first of its session now. It waits without a try only behind others: of its class, or of a limit."""
        limit = self._limit_before(waiter.job, waiter.wanted) if self.limits else None
        if limit is not None:
            self.limits.park(waiter, limit)
            return
        passes = waiter.wanted not in self._lines
        self._compete(waiter)
        if passes:
            self._make_ready(waiter)
        else:
            self._park(waiter)

    def _step_aside(self, waiter: Waiter, placed: bool = False) -> None:
        """The first of a session leaves the line that it is in."""
        if waiter.parked_at is not None:
            self.limits.remove(waiter)
        elif waiter.competes:
            self._stop_competing(waiter)
        self.limits.ended(waiter, placed)

    def _compete(self, waiter: Waiter) -> None:
        if not waiter.competes:
            waiter.competes = True
            self._lines.setdefault(waiter.wanted, Line()).competing += 1

    def _stop_competing(self, waiter: Waiter) -> None:
        """A waiter leaves its class. If others parked behind its try or its question, the next of them asks."""
        line = self._lines[waiter.wanted]
        waiter.competes = False
        line.competing -= 1
        if line.competing == 0:
            del self._lines[waiter.wanted]
        elif waiter.status == "parked":
            del line.parked[bisect.bisect_left(line.parked, waiter)]
        elif not waiter.woken:
            self._ask_next(line)

    def _ask(self, waiter: Waiter) -> None:
        waiter.status, waiter.woken = "asking", False
        self._asking.append(waiter)

    def _ask_next(self, line: Line) -> None:
        """The first of the parked asks; when all are in a call, the first of them who parks again."""
        line.asks = not line.parked
        if line.parked:
            self._ask(line.parked.pop(0))

    def _park(self, waiter: Waiter) -> None:
        line = self._lines[waiter.wanted]
        waiter.status, waiter.hint, waiter.woken = "parked", None, False
        if line.asks:
            line.asks = False
            self._ask(waiter)
        else:
            bisect.insort(line.parked, waiter)

    def _make_ready(self, waiter: Waiter) -> None:
        waiter.status, waiter.hint, waiter.complete = "ready", None, False
        waiter.woken, waiter.swept = False, False
        self._ready.append(waiter)
