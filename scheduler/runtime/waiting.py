"""Pure. Decides; never performs. Which jobs wait, in what order, and which of them are tried now.

Rules (DESIGN.md, guarantees 5 and 7):
- Only the first waiting job of a session competes; later ones queue behind it, whatever their class.
- Newcomers do not pass competing jobs of their class.
- A job parks only after `open` said that no eligible node has room. `freed` events are handed in one at a time between
  calls, in stream order, so that none can fall between that question and the parking.
- A wake (class, node) ends only when no waiter of the class is left, or when a try with that node among its
  candidates found no room. So one freed slot costs one try too many at most, and never leaves a waiter behind.
- A waiter may park without a question of its own behind one of its class that is to find out. When that one leaves
  although no event had announced room, the next of the class asks: the first who is parked, or who parks again.

A waiter is `behind` (of its session), `parked` (room is awaited), `ready` (to be tried), `trying` (in a call) or
`asking` (tried in vain, `open` is to be asked). Memory holds ids and the class; the body stays in the intake.
"""

from __future__ import annotations

import bisect
import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, Literal

from scheduler.runtime.intake import Class, Job

WAKE_CANDIDATES_MAX: Final = 16  # nodes tried by one woken job; the others stay pending
TRIES_A_WAKE: Final = 2  # jobs tried at once for each freed node
DEADLINES_SPARE: Final = 1_000  # deadlines of those who left that may be kept beside as many as there are waiters

Status = Literal["behind", "parked", "ready", "trying", "asking", "left"]


class Waiter:
    """One waiting job.

    hint: the nodes to try, None to place it afresh. complete: whether the hint names every node that may have room.
    woken: whether the hint comes from a wake; swept: from one that no event had announced.
    """

    __slots__ = ("complete", "hint", "job", "key", "order", "since_ms", "status", "swept", "wanted", "woken")

    def __init__(self, job: Job, wanted: Class, order: int, since_ms: float) -> None:
        self.job = job
        self.wanted = wanted
        self.order = order
        self.key = (-job.priority, order)
        self.since_ms = since_ms
        self.status: Status = "behind"
        self.hint: tuple[str, ...] | None = None
        self.complete = False
        self.woken = False
        self.swept = False

    def __lt__(self, other: Waiter) -> bool:
        return self.key < other.key


class _Line:
    """The competing waiters of one class: parked ones in order, how many compete in all, and pending wakes.

    asks: the next who parks asks first, because the one who was to find out left while nobody was parked.
    pace: jobs tried in the next call, doubled as long as wakes last.
    """

    __slots__ = ("asks", "competing", "pace", "parked", "swept", "wakes")

    def __init__(self) -> None:
        self.asks = False
        self.parked: list[Waiter] = []
        self.competing = 0
        self.wakes: dict[str, None] = {}
        self.pace = 0
        self.swept = False


class Waiting:
    """All waiting jobs of one dispatcher.

    waited: how many there were; sweep_hits: how many were placed only because the sweep looked.
    """

    def __init__(self) -> None:
        self.sweep_hits = 0
        self.waited = 0
        self._sessions: dict[str, deque[Waiter]] = {}
        self._lines: dict[Class, _Line] = {}
        self._ready: deque[Waiter] = deque()
        self._asking: list[Waiter] = []
        self._deadlines: list[tuple[int, int, Waiter]] = []
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
        """Whether a newcomer has to queue: behind its session, or behind competing jobs of its class."""
        return job.session_id in self._sessions or wanted in self._lines

    def queue(self, job: Job, wanted: Class, now_ms: float) -> Waiter:
        """A newcomer that must wait without being tried: behind its session, else parked in its class."""
        waiter = self._add(job, wanted, now_ms)
        if waiter.status != "behind":
            self._park(waiter)
        return waiter

    def tried_in_vain(self, job: Job, wanted: Class, now_ms: float) -> Waiter:
        """A newcomer that was tried and not placed: the first of its session asks `open`, later ones queue behind
        it.
        """
        waiter = self._add(job, wanted, now_ms)
        if waiter.status != "behind":
            self._ask(waiter)
        return waiter

    def _add(self, job: Job, wanted: Class, now_ms: float) -> Waiter:
        self._order += 1
        self.waited += 1
        waiter = Waiter(job, wanted, self._order, now_ms)
        self._size += 1
        line = self._sessions.get(job.session_id)
        if line is None:
            self._sessions[job.session_id] = deque((waiter,))
            self._compete(waiter)
            waiter.status = "asking"
        else:
            line.append(waiter)
        if job.deadline_at_ms is not None:
            heapq.heappush(self._deadlines, (job.deadline_at_ms, waiter.order, waiter))
            self._forget_deadlines()
        return waiter

    def _forget_deadlines(self) -> None:
        """Drop the deadlines of those who left, so that far ones do not pile up; rarely, because it looks at all."""
        if len(self._deadlines) > 2 * self._size + DEADLINES_SPARE:
            self._deadlines = [each for each in self._deadlines if each[2].status != "left"]
            heapq.heapify(self._deadlines)

    # ---- tries ----

    def wake(self, nodes: Iterable[str], serves: Callable[[Class, str], bool]) -> None:
        """Nodes got room. serves: whether a node may take jobs of a class."""
        freed = list(dict.fromkeys(nodes))
        for wanted, line in self._lines.items():
            self._announce(line, [node for node in freed if serves(wanted, node)])

    def wake_class(self, wanted: Class, nodes: Iterable[str], swept: bool = False) -> None:
        """Nodes have room for one class: they are new to it, or (swept) a look found what no event told."""
        line = self._lines.get(wanted)
        if line is not None:
            self._announce(line, nodes, swept)

    def ask_all(self) -> None:
        """Events may have been missed: every competing job that is parked asks `open`, class by class."""
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
        for line in self._lines.values():
            if line.wakes and line.parked and len(chosen) < limit:
                chosen += self._wake_up(line, limit - len(chosen))
        return chosen

    def _wake_up(self, line: _Line, limit: int) -> list[Waiter]:
        hint = tuple(line.wakes)[:WAKE_CANDIDATES_MAX]
        line.pace = max(2 * line.pace, TRIES_A_WAKE * len(hint))
        count = min(line.pace, limit, len(line.parked))
        woken = line.parked[:count]
        del line.parked[:count]
        for waiter in woken:
            waiter.status, waiter.hint, waiter.complete = "trying", hint, True
            waiter.woken, waiter.swept = True, line.swept
        return woken

    @property
    def busy(self) -> bool:
        """Whether some waiter is to be tried or asked for now; newcomers come after those."""
        if any(waiter.status == "ready" for waiter in self._ready) or self._asking:
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
        self._announce(line, open_nodes)
        self._park(waiter)

    def still_full(self, waiter: Waiter, candidates: Iterable[str]) -> None:
        """A try found no room on any of `candidates`, so their wakes are spent for this class."""
        if waiter.status == "left":
            return
        line = self._lines[waiter.wanted]
        for node in candidates:
            line.wakes.pop(node, None)
        line.pace = 0
        if waiter.complete:
            self._park(waiter)
        else:
            self._ask(waiter)

    def park(self, waiter: Waiter) -> None:
        """No node can serve it at all: it waits for a snapshot that has one."""
        if waiter.status != "left":
            self._park(waiter)

    def leave(self, waiter: Waiter, placed: bool = False) -> None:
        """Placed, rejected, cancelled, gone: the next of its session competes, and is tried at once unless its class
        waits.
        """
        if waiter.status == "left":
            return
        if placed and waiter.swept:
            self.sweep_hits += 1
        line = self._sessions[waiter.job.session_id]
        was_first = line[0] is waiter
        line.remove(waiter)
        self._size -= 1
        if was_first:
            self._stop_competing(waiter)
        waiter.status = "left"
        if not line:
            del self._sessions[waiter.job.session_id]
        elif was_first:
            self._start_competing(line[0])

    # ---- changes of the world ----

    def reclassify(self, waiter: Waiter, wanted: Class) -> None:
        """Another snapshot, another class: a competing waiter is tried afresh."""
        if waiter.status == "behind":
            waiter.wanted = wanted
        elif waiter.status != "left":
            self._stop_competing(waiter)
            waiter.wanted = wanted
            self._compete(waiter)
            self._make_ready(waiter)

    def drop_partitions(self, partitions: Collection[int]) -> None:
        """Forget every job of these partitions: they are another owner's business now."""
        for waiter in [waiter for waiter in self if waiter.job.partition in partitions]:
            self.leave(waiter)

    def overdue(self, now_ms: int) -> list[Waiter]:
        """Waiters whose deadline has passed, whether they compete or not."""
        overdue = []
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            waiter = heapq.heappop(self._deadlines)[2]
            if waiter.status != "left":
                overdue.append(waiter)
        return overdue

    def next_deadline_ms(self) -> int | None:
        """The earliest deadline of a waiting job, in server time."""
        while self._deadlines and self._deadlines[0][2].status == "left":
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def parked(self, wanted: Class) -> list[Waiter]:
        """The parked waiters of a class, first come first."""
        line = self._lines.get(wanted)
        return list(line.parked) if line else []

    def settled_classes(self) -> list[Class]:
        """Classes whose jobs all wait for an event: what the sweep looks at."""
        return [wanted for wanted, line in self._lines.items() if len(line.parked) == line.competing and not line.wakes]

    # ---- inside ----

    def _start_competing(self, waiter: Waiter) -> None:
        """A waiter became the first of its session. It parks without a try only behind others of its class."""
        passes = waiter.wanted not in self._lines
        self._compete(waiter)
        if passes:
            self._make_ready(waiter)
        else:
            self._park(waiter)

    def _compete(self, waiter: Waiter) -> None:
        self._lines.setdefault(waiter.wanted, _Line()).competing += 1

    def _stop_competing(self, waiter: Waiter) -> None:
        """A waiter leaves its class. If others parked behind its try or its question, the next of them asks."""
        line = self._lines[waiter.wanted]
        line.competing -= 1
        if line.competing == 0:
            del self._lines[waiter.wanted]
        elif waiter.status == "parked":
            del line.parked[bisect.bisect_left(line.parked, waiter)]
        elif not waiter.woken:
            self._ask_next(line)

    def _announce(self, line: _Line, nodes: Iterable[str], swept: bool = False) -> None:
        """These nodes may have room for a class: its parked waiters are tried on them."""
        told = dict.fromkeys(nodes)
        if told:
            line.swept = swept and not line.wakes
            line.wakes.update(told)

    def _ask(self, waiter: Waiter) -> None:
        waiter.status, waiter.woken = "asking", False
        self._asking.append(waiter)

    def _ask_next(self, line: _Line) -> None:
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
