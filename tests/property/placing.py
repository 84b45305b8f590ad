"""Place, reserve, settle, and those that wait: the half of a driver that is runtime/placer.py and
settling.py, synchronous.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple, Protocol

from scheduler.calls import Refused as NotPlaced
from scheduler.calls import Reserved
from scheduler.runtime import placement
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Class, Job
from scheduler.runtime.limits import limits_of
from scheduler.runtime.lines import tier_of as place_of
from scheduler.runtime.skipped import Skipped
from scheduler.runtime.tries import Try, chunks
from scheduler.runtime.waiting import Waiter, Waiting
from scheduler.session.bindings import Binding, Bindings
from tests.property.cell import Cell, MemoryPlan

BATCH_MAX: Final = 3
SESSIONS_MAX: Final = 4
ROUNDS_MAX: Final = 500


class Call(NamedTuple):
    """A call that was sent, with the answers that it will be given.

    chosen_by: the snapshot of then; mark: what had been told of limits by then; again: whether its jobs had been
    scanned past before.
    """

    tries: list[Try]
    answers: list[Reserved | NotPlaced]
    chosen_by: Index
    mark: int
    again: bool


class Between(Protocol):
    def __call__(self, timers: bool = False) -> None: ...


class Placing:
    """Places for one driver. between: lets something else happen; timers: also what is on timers."""

    def __init__(self, cell: Cell, between: Between, random: Random, memory: MemoryPlan) -> None:
        self.memory = memory
        self.batch_max = BATCH_MAX
        self.skipped = Skipped(memory.share, memory.total, memory.bits)
        self.waiting = Waiting(self.limits_of, self.tier_of)
        self.bindings = Bindings(SESSIONS_MAX, 1_000_000)
        self.index = Index(cell.snapshot)
        self.epochs = dict(cell.epochs)
        self.refused: list[Job] = []
        self.loads: dict[str, int] = {}
        self.tries_in_vain = 0
        self.cell = cell
        self._between = between
        self._random = random

    def limits_of(self, job: Job, wanted: Class) -> tuple[str, ...]:
        return limits_of(job, wanted, self.index.pools)

    def tier_of(self, wanted: Class, node: str) -> int:
        return place_of(self.index, wanted, node)

    # ---- what the other half does ----

    def keep(self) -> None:
        """What is to be done between calls of waiting jobs."""
        raise NotImplementedError

    def more(self) -> list[Job]:
        """Jobs that were read meanwhile."""
        raise NotImplementedError

    def lose(self, partition: int) -> None:
        """A partition is not ours any more."""
        raise NotImplementedError

    def check_newcomers(self, tries: Sequence[Try], again: bool) -> None:
        """Newcomers are about to be tried."""
        raise NotImplementedError

    def check_turns(self, chosen: Sequence[Waiter]) -> None:
        """Those are about to be tried that wait."""
        raise NotImplementedError

    def check_bindings(self, sent: Sequence[Try]) -> None:
        """A call is about to be sent."""
        raise NotImplementedError

    # ---- newcomers ----

    def _newcomers(self, jobs: Sequence[Job], again: bool = False) -> None:
        """As placer.py: a call is made ready, and may be answered, before the one before it is settled."""
        self._between()
        under_way: list[Call] = []
        while jobs:
            if self.skipped and not again:
                self._know([job.session_id for job in jobs])
                jobs = self._scan_past(jobs)
            for chunk in chunks(jobs, BATCH_MAX, lambda partition: partition % 2):
                partitions = {job.partition for job in chunk}
                if under_way and any(each.job.partition in partitions for each in under_way[0].tries):
                    self._land(under_way)
                if self.waiting.busy:
                    self._land(under_way)
                    self._try_waiting()
                self._know([job.session_id for job in chunk])
                tries = self._tries(chunk if again else self._scan_past(chunk))
                self.check_newcomers(tries, again)
                under_way.append(self._send(tries, again))
                if len(under_way) > 1:
                    self._land(under_way, 1)
            for _ in range(2):  # an event, and a read that brings it, before the last call is settled
                self._between()
            jobs = [] if again else self.more()
        self._land(under_way)

    def _land(self, under_way: list[Call], count: int | None = None) -> None:
        for _ in range(len(under_way) if count is None else count):
            self._settle_all(under_way.pop(0))

    def _know(self, sessions: Sequence[str]) -> None:
        """Read the bindings that memory has not, or has no more."""
        missing = [session for session in dict.fromkeys(sessions) if session not in self.bindings]
        for session in sessions if missing else ():
            self.bindings.get(session, 0)
        for session in missing:
            self.bindings.learn(session, self.cell.bindings.get(session))

    def _scan_past(self, jobs: Sequence[Job]) -> list[Job]:
        kept = []
        for job in jobs:
            binding, _ = self.bindings.get(job.session_id, 0)
            wanted = placement.classify(job, binding, self.index)
            if self.epochs.get(job.partition) == job.epoch and self._passes_over(job, wanted):
                self.skipped.skip(job)
            else:
                kept.append(job)
        return kept

    def _passes_over(self, job: Job, wanted: Class) -> bool:
        causes = [(limit, wanted.pool) for limit in self.limits_of(job, wanted)]
        return self.skipped.passes_over(job.session_id, [wanted, *causes])

    def _tries(self, jobs: Sequence[Job]) -> list[Try]:
        draws = placement.Draws(self.loads, self._random, len(jobs))
        tries: list[Try] = []
        held: set[str] = set()
        for job in jobs:
            if self.epochs.get(job.partition) != job.epoch:
                continue
            binding, _ = self.bindings.get(job.session_id, 0)
            wanted = placement.classify(job, binding, self.index)
            found = None
            if job.session_id not in held and not self.waiting.must_wait(job, wanted):
                found = placement.place(job, wanted, binding, self.index, draws)
            if found is None:
                held.add(job.session_id)
            tries.append(Try(job, wanted, None, found))
        return tries

    def _try_waiting(self) -> None:
        rounds = 0
        while self.waiting.busy:
            rounds += 1
            assert rounds < ROUNDS_MAX, "the waiting are tried without end"
            self.keep()
            self._settle_all(self._send_waiters())

    def _try_waiting_beside(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """As placer.py: newcomers that need not wait are in a call of their own meanwhile. Returns: the others."""
        first, rest = jobs[:BATCH_MAX], jobs[BATCH_MAX:]
        self._know([job.session_id for job in first])
        now, later = self._apart(first)
        under_way: list[Call] = []
        if now:
            tries = self._tries(now)
            self.check_newcomers(tries, False)
            under_way.append(self._send(tries))
        under_way.append(self._send_waiters())
        self._land(under_way)
        return [*later, *rest]

    def _apart(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
        now: list[Job] = []
        later: list[Job] = []
        held: set[str] = set()
        for job in jobs:
            binding, _ = self.bindings.get(job.session_id, 0)
            wanted = placement.classify(job, binding, self.index)
            waits = job.session_id in held or self.waiting.must_wait(job, wanted)
            if waits or self._passes_over(job, wanted):
                held.add(job.session_id)
                later.append(job)
            else:
                now.append(job)
        return now, later

    def _send_waiters(self) -> Call:
        asking = self.waiting.asking()
        if asking:
            self._ask(asking)
        tries = []
        chosen = self.waiting.tries(BATCH_MAX)
        self.check_turns(chosen)
        self._know([waiter.job.session_id for waiter in chosen])
        for waiter in chosen:
            attempt = self._place_waiter(waiter)
            if attempt is not None:
                tries.append(attempt)
        return self._send(tries)

    def _place_waiter(self, waiter: Waiter) -> Try | None:
        binding, _ = self.bindings.get(waiter.job.session_id, 0)
        job, wanted = waiter.job, waiter.wanted
        if waiter.hint is None:
            wanted = placement.classify(job, binding, self.index)
            if wanted != waiter.wanted:
                self.waiting.reclassify(waiter, wanted)
                return None
            draws = placement.Draws(self.loads, self._random)
            found = placement.place(job, wanted, binding, self.index, draws)
            if found is None:
                self.waiting.park(waiter)
                return None
        else:
            found = placement.place_among(job, wanted, binding, self.index, waiter.hint, self.loads, self._random)
            if found is None:
                waiter.complete = False
                self.waiting.still_full(waiter, waiter.hint)
                return None
        return Try(job, wanted, waiter, found)

    def _ask(self, waiters: list[Waiter]) -> None:
        self._between()
        is_open = set(self.cell.open)
        for waiter in waiters:
            nodes = [node.id for node in self.index.eligible(waiter.wanted) if node.id in is_open]
            self._random.shuffle(nodes)
            self.waiting.answer_open(waiter, tuple(nodes))

    def _send(self, tries: list[Try], again: bool = False) -> Call:
        sent = [each for each in tries if each.placement is not None]
        mark = self.waiting.limits.mark
        if not sent:
            return Call(tries, [], self.index, mark, again)
        self._between()
        self.check_bindings(sent)
        return Call(tries, self.cell.reserve(sent, self.index), self.index, mark, again)

    def _settle_all(self, call: Call) -> None:
        answered = iter(call.answers)
        for each in call.tries:
            self._settle(each, next(answered) if each.placement is not None else None, call)
        self._reject_refused()

    def _settle(self, each: Try, answer: Reserved | NotPlaced | None, call: Call) -> None:
        job, waiter = each.job, each.waiter
        if self.epochs.get(job.partition) != job.epoch:
            return
        if isinstance(answer, Reserved):
            self.loads[answer.node] = answer.used
            self.bindings.wrote(job.session_id, Binding(each.wanted.pool, job.src_lang, job.tgt_lang, answer.node), 0)
            if waiter is not None:
                self.waiting.leave(waiter, placed=answer.node)
                if answer.filled:
                    self.waiting.filled(answer.node)
        elif answer is None or answer.why in ("full", "behind", "limited"):
            if waiter is None:
                self._wait(each, answer, call)
            else:
                assert answer is not None
                assert each.placement is not None
                self.tries_in_vain += 1
                if answer.why == "limited":
                    self.waiting.still_limited(waiter, answer.limit, call.mark)
                else:
                    self.waiting.still_full(waiter, each.placement.candidates)
        elif answer.why == "fenced":
            self.lose(job.partition)
        else:
            if answer.why == "cancelling":
                self._refuse(job)
            if waiter is not None:
                self.waiting.leave(waiter)

    def _wait(self, each: Try, answer: NotPlaced | None, call: Call) -> None:
        job, wanted = each.job, each.wanted
        if call.chosen_by is not self.index:
            binding, _ = self.bindings.get(job.session_id, 0)
            wanted = placement.classify(job, binding, self.index)
            answer = answer if wanted == each.wanted else None
        limited = answer is not None and answer.why == "limited"
        if not call.again:
            cause = self.waiting.cause(job, wanted)
            if limited and cause == wanted and answer is not None:
                cause = (answer.limit, wanted.pool)
            full = self.skipped.is_full(self.waiting.count(cause), len(self.waiting))
            if full or self._passes_over(job, wanted):
                self.skipped.skip(job, cause if full else None)
                return
        if limited and answer is not None:
            self.waiting.newly_limited(job, wanted, 0, answer.limit, call.mark)
        elif answer is None and self.waiting.must_wait(job, wanted):
            self.waiting.queue(job, wanted, 0)
        else:
            self.waiting.tried_in_vain(job, wanted, 0)

    def _reject_refused(self) -> None:
        refused, self.refused = self.refused, []
        for job in refused:
            if self.epochs.get(job.partition) == job.epoch:
                self._between()
                if not self.cell.reject(job):
                    self.lose(job.partition)

    def _refuse(self, job: Job) -> None:
        self.refused.append(job)
        self.cell.ending.add(job.job_id)
