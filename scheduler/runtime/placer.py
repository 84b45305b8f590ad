"""Place -> reserve -> settle: what becomes of jobs that were read, and of those that wait.

One script call places up to `batch_max` jobs; nothing else is asked on the way. While a call is under way the next one
is made ready, of other partitions than those in the call: a session is in one partition, so what is sent before the
answer can pass no job of its session. Jobs that wait are tried in calls of their own, one after the other; beside the
first of these, newcomers that need not wait have theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random
from typing import Final

from scheduler import calls
from scheduler.config import Settings
from scheduler.runtime import placement
from scheduler.runtime.calling import Answer, Call, Caller
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Class, Job
from scheduler.runtime.limits import limits_of
from scheduler.runtime.lines import Cause
from scheduler.runtime.partitions import Partitions
from scheduler.runtime.placement import Draws
from scheduler.runtime.refusals import Refusals
from scheduler.runtime.report import Report, Times
from scheduler.runtime.skipped import Skipped
from scheduler.runtime.tries import Try, bound_by, chunks, refusal_of
from scheduler.runtime.waiting import Waiter, Waiting
from scheduler.session.bindings import Bindings, parse
from scheduler.store.store import Store

AT_ONCE_MAX: Final = 32
"""Jobs of a call that is not worth a task of its own, beside which the next one would be made ready."""


class Placer:
    """Places for one dispatcher, with what it knows: partitions, waiting jobs, bindings, and `index`, the snapshot.

    loads: node -> slots believed in use.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        partitions: Partitions,
        waiting: Waiting,
        skipped: Skipped,
        bindings: Bindings,
        refusals: Refusals,
        random: Random,
    ) -> None:
        self.report = Report()
        self.times = Times(self.report)
        self.index = Index()
        self.loads: dict[str, int] = {}
        self._store = store
        self._settings = settings
        self._partitions = partitions
        self._waiting = waiting
        self._skipped = skipped
        self._bindings = bindings
        self._refusals = refusals
        self._random = random
        self._caller = Caller(store.cell, self.report, bindings, self._tries_as_bound)

    # ---- newcomers ----

    async def newcomers(
        self,
        jobs: Sequence[Job],
        keep: Callable[[], Awaitable[None]],
        more: Callable[[], Sequence[Job]] = lambda: (),
        again: bool = False,
    ) -> None:
        """Place jobs that were just read. Those that must wait keep their place behind the earlier ones of their
        session.

        Args: jobs, in the order of their partitions; keep, what is to be done between calls of waiting jobs; more,
        asked for jobs that were read meanwhile, none when something else is to be done first; again, whether these were
        scanned past before.
        """
        under_way: list[Call] = []
        try:
            while jobs:
                if self._skipped and not again:
                    # Now already, so that what is left shares few calls; what is skipped meanwhile is seen later.
                    await self.know([job.session_id for job in jobs])
                    jobs = self._scan_past(jobs)
                for chunk in chunks(jobs, self._settings.batch_max, self._partitions.lane):
                    await self._place(chunk, under_way, keep, again)
                jobs = more()
            await self._land(under_way)
        finally:
            await _drop(under_way)

    async def _place(
        self, jobs: Sequence[Job], under_way: list[Call], keep: Callable[[], Awaitable[None]], again: bool
    ) -> None:
        """Send a call for these jobs, and settle the one before it meanwhile."""
        if under_way and any(job.partition in under_way[0].partitions for job in jobs):
            await self._land(under_way)
        if self._waiting.busy:
            await self._land(under_way)
            await self.waiters(keep)
        if self.must_know:
            await self.know([job.session_id for job in jobs])
        started_s = time.perf_counter()
        tries = self._tries(jobs if again else self._scan_past(jobs))
        self.times.decided(started_s, len(jobs))
        call = self._call(tries, again)
        if not under_way and len(tries) <= AT_ONCE_MAX:
            await self._settle_all(call, await self._caller.answers(call))
            return
        under_way.append(self._begin(call))
        if len(under_way) > 1:
            await self._land(under_way, 1)

    async def _land(self, under_way: list[Call], count: int | None = None) -> None:
        """Settle the first `count` calls, all by default, in the order in which they were sent."""
        for _ in range(len(under_way) if count is None else count):
            answers = under_way[0].answers
            assert answers is not None
            await asyncio.wait([answers])
            await self._settle_all(under_way.pop(0), answers.result())

    @property
    def must_know(self) -> bool:
        """Whether bindings are read before jobs are tried: while most are stored, or jobs wait, which is by class."""
        return self._bindings.likely_stored or len(self._waiting) > 0 or bool(self._skipped)

    async def know(self, sessions: Sequence[str]) -> None:
        """Read the bindings that memory has no more, for a session without one would move. The others are used, so that
        none of them is forgotten for these. As owner of their partitions nobody but we can change them.
        """
        missing = [session for session in dict.fromkeys(sessions) if session not in self._bindings]
        if missing:
            stored = await self._store.reads.bindings(missing)
            now_ms = _now_ms()
            for session in sessions:
                self._bindings.get(session, now_ms)
            for session, binding in zip(missing, stored, strict=True):
                self._bindings.learn(session, parse(binding))

    def _scan_past(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Leave out those that must not be placed before what was skipped has been read again."""
        if not self._skipped:
            return jobs
        kept = []
        now_ms = _now_ms()
        for job in jobs:
            held = self._partitions.holds(job.partition, job.epoch)
            if held and self._passes_over(job, self.classify(job, now_ms)):
                self._skipped.skip(job)
            elif held:
                kept.append(job)
        return kept

    def classify(self, job: Job, now_ms: float) -> Class:
        """The class of a job by what is known now; now_ms: monotonic."""
        binding, _ = self._bindings.get(job.session_id, now_ms)
        return placement.classify(job, binding, self.index)

    def _passes_over(self, job: Job, wanted: Class) -> bool:
        causes: list[Cause] = [wanted]
        causes += [(limit, wanted.pool) for limit in limits_of(job, wanted, self.index.pools)]
        return self._skipped.passes_over(job.session_id, causes)

    def _tries(self, jobs: Sequence[Job]) -> list[Try]:
        """Candidates for each job that may be tried now."""
        now_ms = _now_ms()
        draws = Draws(self.loads, self._random, len(jobs))
        tries: list[Try] = []
        held: set[str] = set()
        last: dict[str, Class] = {}
        for job in jobs:
            if not self._partitions.holds(job.partition, job.epoch):
                continue
            binding, fresh = self._bindings.get(job.session_id, now_ms)
            wanted = placement.classify(job, binding, self.index)
            placed = None
            if job.session_id not in held and not self._waiting.must_wait(job, wanted):
                placed = placement.place(job, wanted, binding, self.index, draws)
            if placed is None:
                held.add(job.session_id)
            follows = last.get(job.session_id) == wanted and not job.avoid
            unread = binding is None and job.session_id not in self._bindings
            tries.append(Try(job, wanted, None, placed, binding, fresh, unread, follows))
            if self.index.policy(wanted.pool).strategy == "affinity":
                last[job.session_id] = wanted
        return tries

    # ---- those that wait ----

    async def waiters(self, keep: Callable[[], Awaitable[None]]) -> None:
        """Try those that wait and were woken, until nobody is left who should be tried now."""
        while self._waiting.busy:
            await keep()
            under_way: list[Call] = []
            try:
                await self._send_waiters(under_way)
                await self._land(under_way)
            finally:
                await _drop(under_way)

    async def waiters_beside(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Try those that wait, once, and beside them newcomers that need not wait: a class for which there is hardly
        any room must not delay the others by an answer each time. Returns: the other newcomers.
        """
        first, rest = jobs[: self._settings.batch_max], jobs[self._settings.batch_max :]
        await self.know([job.session_id for job in first])
        now, later = self._apart(first)
        under_way: list[Call] = []
        try:
            if now:
                started_s = time.perf_counter()
                tries = self._tries(now)
                self.times.decided(started_s, len(now))
                under_way.append(self._begin(self._call(tries)))
            await self._send_waiters(under_way)
            await self._land(under_way)
        finally:
            await _drop(under_way)
        return [*later, *rest]

    def _apart(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
        """Newcomers that may be tried now, and those that come after: with a job of a session all later ones of it."""
        now: list[Job] = []
        later: list[Job] = []
        held: set[str] = set()
        now_ms = _now_ms()
        for job in jobs:
            wanted = self.classify(job, now_ms)
            waits = job.session_id in held or self._waiting.must_wait(job, wanted)
            if waits or self._passes_over(job, wanted):
                held.add(job.session_id)
                later.append(job)
            else:
                now.append(job)
        return now, later

    async def _send_waiters(self, under_way: list[Call]) -> None:
        """Ask for those who ask, and send a call for those whose turn it is."""
        asking = self._waiting.asking()
        if asking:
            await self._ask(asking)
        tries = []
        chosen = self._waiting.tries(self._settings.batch_max)
        await self.know([waiter.job.session_id for waiter in chosen])
        started_s = time.perf_counter()
        for waiter in chosen:
            attempt = self._try_waiter(waiter)
            if attempt is not None:
                tries.append(attempt)
        self.times.decided(started_s, len(chosen))
        under_way.append(self._begin(self._call(tries)))

    def _try_waiter(self, waiter: Waiter) -> Try | None:
        """Candidates for a waiter, None when it parks or asks instead."""
        binding, fresh = self._bindings.get(waiter.job.session_id, _now_ms())
        if waiter.hint is None:
            wanted = placement.classify(waiter.job, binding, self.index)
            if wanted != waiter.wanted:
                self._waiting.reclassify(waiter, wanted)
                return None
            draws = Draws(self.loads, self._random)
            found = placement.place(waiter.job, wanted, binding, self.index, draws)
            if found is None:
                self._waiting.park(waiter)
                return None
        else:
            found = placement.place_among(
                waiter.job, waiter.wanted, binding, self.index, waiter.hint, self.loads, self._random
            )
            if found is None:
                waiter.complete = False
                self._waiting.still_full(waiter, waiter.hint)
                return None
        return Try(waiter.job, waiter.wanted, waiter, found, binding, fresh)

    async def _ask(self, waiters: list[Waiter]) -> None:
        """Ask `open` for the eligible nodes of every asking class, in one question; the first of a class is told them
        for all of it.
        """
        names: dict[str, bool] = {}
        for wanted in {waiter.wanted for waiter in waiters}:
            names.update(dict.fromkeys((node.id for node in self.index.eligible(wanted)), False))
        if names:
            names = dict(zip(names, await self._store.reads.are_open(list(names)), strict=True))
            self._believe(names)
        told: set[Class] = set()
        for waiter in waiters:
            nodes: list[str] = []
            if waiter.wanted not in told and waiter.status != "left":
                told.add(waiter.wanted)
                nodes = [node.id for node in self.index.eligible(waiter.wanted) if names.get(node.id)]
                self._random.shuffle(nodes)
            self._waiting.answer_open(waiter, tuple(nodes))

    def _believe(self, is_open: Mapping[str, bool]) -> None:
        """What is known now of nodes: whether they have room."""
        for name, has_room in is_open.items():
            node = self.index.nodes.get(name)
            if node is not None and (not has_room or self.loads.get(name, 0) >= node.slots):
                self.loads[name] = node.slots - has_room

    # ---- reserve ----

    def _call(self, tries: list[Try], again: bool = False) -> Call:
        partitions = frozenset([each.job.partition for each in tries])
        return Call(tries, partitions, _now_ms(), self.index, self._waiting.limits.mark, again)

    def _begin(self, call: Call) -> Call:
        """Send a call, to be settled later."""
        call.answers = asyncio.create_task(self._caller.answers(call))
        return call

    async def _tries_as_bound(self, jobs: Sequence[Job]) -> tuple[list[Try], Index]:
        await self.know([job.session_id for job in jobs])
        return self._tries(jobs), self.index

    # ---- settle ----

    async def _settle_all(self, call: Call, answers: Sequence[Answer | None]) -> None:
        for each, answer in zip(call.tries, answers, strict=True):
            self._settle(each, answer, call)
        self.times.settled(call.tries, answers)
        self.times.promoted(self._waiting.promoted)
        await self._refusals.end()

    def _settle(self, each: Try, answer: Answer | None, call: Call) -> None:
        job, waiter = each.job, each.waiter
        if not self._partitions.holds(job.partition, job.epoch):
            return
        if isinstance(answer, calls.Reserved):
            self._placed(each, answer, call.sent_ms)
        elif answer is None or answer.why in calls.HOLDS_BACK:
            if answer is not None and answer.why == "full" and each.placement is not None:
                self._believe(dict.fromkeys(each.placement.candidates, False))
            if waiter is None:
                self._wait(each, answer, call)
            else:
                self._wait_again(each, waiter, answer, call)
        elif answer.why == "fenced":
            self._partitions.lose(job.partition)
        else:
            refusal = refusal_of(job, answer, self._store.cell.cell)
            if refusal is not None:
                self._refusals.add([refusal])
            if waiter is not None:
                self._waiting.leave(waiter)

    def _wait(self, each: Try, answer: calls.Refused | None, call: Call) -> None:
        """A newcomer that was not placed. answer: None when it was held back behind others, or no node can serve it."""
        job, wanted, waiting = each.job.without_body(), each.wanted, self._waiting
        self._count(answer)
        if call.index is not self.index:
            # Another snapshot came while the call was under way: what it said of another class is of no use.
            wanted = self.classify(job, call.sent_ms)
            answer = answer if wanted == each.wanted else None
        if not call.again and self._skip(job, wanted, answer):
            return
        if answer is not None and answer.why == "limited":
            waiting.newly_limited(job, wanted, call.sent_ms, answer.limit, call.mark)
        elif answer is None and waiting.must_wait(job, wanted):
            waiting.queue(job, wanted, call.sent_ms)
        else:
            waiting.tried_in_vain(job, wanted, call.sent_ms)

    def _skip(self, job: Job, wanted: Class, answer: calls.Refused | None) -> bool:
        """Scan past a newcomer if memory has no place for it, or for an earlier job of its session."""
        cause = self._waiting.cause(job, wanted)
        if answer is not None and answer.why == "limited" and cause == wanted:
            cause = (answer.limit, wanted.pool)
        if self._skipped.is_full(self._waiting.count(cause), len(self._waiting)):
            self._skipped.skip(job, cause)
        elif self._skipped and self._passes_over(job, wanted):
            self._skipped.skip(job)
        else:
            return False
        return True

    def _wait_again(self, each: Try, waiter: Waiter, answer: calls.Refused | None, call: Call) -> None:
        """One of those that wait was tried in vain."""
        assert each.placement is not None
        assert answer is not None
        self._count(answer)
        if answer.why == "limited":
            self._waiting.still_limited(waiter, answer.limit, call.mark)
        else:
            self._waiting.still_full(waiter, each.placement.candidates)

    def _count(self, answer: calls.Refused | None) -> None:
        if answer is not None and answer.why == "limited":
            self.report.limited += 1
        elif answer is not None:
            self.report.full += 1

    def _placed(self, each: Try, answer: calls.Reserved, now_ms: float) -> None:
        job = each.job
        self.report.placed += 1
        if answer.used >= 0:
            self.loads[answer.node] = answer.used
            if each.unread:
                self._bindings.weigh(is_stored=False)
            binding = self._bindings.peek(job.session_id) or each.binding  # a repeat in the call made us forget it
            after = bound_by(each, binding, answer)
            if not each.fresh or after != binding:
                self._bindings.wrote(job.session_id, after, now_ms)
        else:
            self._bindings.forget([job.session_id])  # a repeat, which does not tell where the session is bound now
        if each.waiter is not None:
            self._waiting.leave(each.waiter, placed=answer.node)
            if answer.used >= answer.slots > 0:
                self._waiting.filled(answer.node)


async def _drop(under_way: Sequence[Call]) -> None:
    """End the calls whose answers nobody will settle: what they did is found in the records."""
    answers = [call.answers for call in under_way if call.answers is not None]
    for each in answers:
        each.cancel()
    await asyncio.gather(*answers, return_exceptions=True)


def _now_ms() -> float:
    return time.monotonic() * 1000
