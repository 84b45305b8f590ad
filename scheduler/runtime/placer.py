"""Place -> reserve: when jobs that were read, and those that wait, are tried, and in which calls.

One script call places up to `batch_max` jobs; nothing else is asked on the way. While a call is under way the next one
is made ready, of other partitions than those in the call: a session is in one partition, so what is sent before the
answer can pass no job of its session. Jobs that wait are tried in calls of their own, one after the other; beside the
first of these, newcomers that need not wait have theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final

from scheduler.clock import Clock
from scheduler.config import Settings
from scheduler.runtime.calling import Call, Caller
from scheduler.runtime.dispatch_state import Knowledge
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.placement import candidates
from scheduler.runtime.placement.attempt import Try, chunks
from scheduler.runtime.placement.candidates import Draws
from scheduler.runtime.refusals import Refusals
from scheduler.runtime.report import Report, Times
from scheduler.runtime.settling import Settler
from scheduler.runtime.waiting.waiting_jobs import Waiter
from scheduler.store.store import Store

AT_ONCE_MAX: Final = 32
"""Jobs of a call that is not worth a task of its own, beside which the next one would be made ready."""


class Placer:
    """Places for one dispatcher.

    Args: store; settings; known, by which it decides; refusals, for what ends; random, for drawing nodes; clock, the
    process's own.
    report: what was done so far. times: how long it took.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        known: Knowledge,
        refusals: Refusals,
        random: Random,
        clock: Clock,
    ) -> None:
        self.report = Report()
        self.times = Times(self.report, clock)
        self._clock = clock
        self._reads = store.reads
        self._settings = settings
        self._known = known
        self._waiting = known.waiting
        self._random = random
        self._caller = Caller(store.cell, self.report, known, self._tries_as_bound)
        self._settler = Settler(known, refusals, self.report, self.times, store.cell.cell)

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
                if self._known.skipped and not again:
                    # Now already, so that what is left shares few calls; what is skipped meanwhile is seen later.
                    await self._known.read([job.session_id for job in jobs])
                    jobs = self._scan_past(jobs)
                for chunk in chunks(jobs, self._settings.batch_max, self._known.partitions.lane):
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
        if self._known.must_read:
            await self._known.read([job.session_id for job in jobs])
        started_ms = self._clock.ms()
        tries = self._tries(jobs if again else self._scan_past(jobs))
        self.times.decided(started_ms, len(jobs))
        call = self._call(tries, again)
        if not under_way and len(tries) <= AT_ONCE_MAX:
            await self._settler.settle(call, await self._caller.answers(call))
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
            await self._settler.settle(under_way.pop(0), answers.result())

    def _scan_past(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Leave out those that must not be placed before what was skipped has been read again."""
        if not self._known.skipped:
            return jobs
        kept = []
        now_ms = self._clock.ms()
        for job in jobs:
            held = self._known.partitions.holds(job.partition, job.epoch)
            if held and self._known.passes_over(job, self._known.classify(job, now_ms)):
                self._known.skipped.skip(job)
            elif held:
                kept.append(job)
        return kept

    def _tries(self, jobs: Sequence[Job]) -> list[Try]:
        """Candidates for each job that may be tried now."""
        now_ms = self._clock.ms()
        partitions, bindings, index = self._known.partitions, self._known.bindings, self._known.index
        draws = Draws(self._known.loads, self._random, len(jobs))
        tries: list[Try] = []
        held: set[str] = set()
        earlier: dict[str, JobClass] = {}
        for job in jobs:
            if not partitions.holds(job.partition, job.epoch):
                continue
            binding, fresh = bindings.get(job.session_id, now_ms)
            job_class = candidates.classify(job, binding, index)
            placed = None
            if job.session_id not in held and not self._waiting.must_wait(job, job_class):
                placed = candidates.place(job, job_class, binding, index, draws)
            if placed is None:
                held.add(job.session_id)
            before = earlier.get(job.session_id)
            follows, together = False, ""
            if before is not None:
                binds = index.policy(job_class.pool).strategy == "affinity"
                follows = before == job_class and binds and not job.avoid
                together = "" if follows else candidates.together(job_class, before, binds)
            unread = binding is None and job.session_id not in bindings
            tries.append(Try(job, job_class, None, placed, binding, fresh, unread, follows, together))
            earlier[job.session_id] = job_class
        return tries

    # ---- those that wait ----

    async def waiters(self, keep: Callable[[], Awaitable[None]]) -> None:
        """Try those that wait and were woken, until nobody is left who should be tried now. None is while the cell asks
        for a snapshot that is not there yet.
        """
        while self._waiting.busy:
            await keep()
            if self._known.is_outdated:
                return
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
        await self._known.read([job.session_id for job in first])
        now, later = self._apart(first)
        under_way: list[Call] = []
        try:
            if now:
                started_ms = self._clock.ms()
                tries = self._tries(now)
                self.times.decided(started_ms, len(now))
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
        now_ms = self._clock.ms()
        for job in jobs:
            job_class = self._known.classify(job, now_ms)
            waits = job.session_id in held or self._waiting.must_wait(job, job_class)
            if waits or self._known.passes_over(job, job_class):
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
        await self._known.read([waiter.job.session_id for waiter in chosen])
        started_ms = self._clock.ms()
        for waiter in chosen:
            attempt = self._try_waiter(waiter)
            if attempt is not None:
                tries.append(attempt)
        self.times.decided(started_ms, len(chosen))
        under_way.append(self._begin(self._call(tries)))

    def _try_waiter(self, waiter: Waiter) -> Try | None:
        """Candidates for a waiter, None when it parks or asks instead."""
        binding, fresh = self._known.bindings.get(waiter.job.session_id, self._clock.ms())
        if waiter.hint is None:
            job_class = candidates.classify(waiter.job, binding, self._known.index)
            if job_class != waiter.job_class:
                self._waiting.reclassify(waiter, job_class)
                return None
            draws = Draws(self._known.loads, self._random)
            found = candidates.place(waiter.job, job_class, binding, self._known.index, draws)
            if found is None:
                self._waiting.park(waiter)
                return None
        else:
            found = candidates.place_among(
                waiter.job, waiter.job_class, binding, self._known.index, waiter.hint, self._known.loads, self._random
            )
            if found is None:
                waiter.complete = False
                self._waiting.still_full(waiter, waiter.hint)
                return None
        return Try(waiter.job, waiter.job_class, waiter, found, binding, fresh)

    async def _ask(self, waiters: list[Waiter]) -> None:
        """Ask `open` for the eligible nodes of every asking class, in one question; the first of a class is told them
        for all of it.
        """
        names: dict[str, bool] = {}
        for job_class in dict.fromkeys(waiter.job_class for waiter in waiters):
            names.update(dict.fromkeys((node.id for node in self._known.index.eligible(job_class)), False))
        if names:
            names = dict(zip(names, await self._reads.are_open(list(names)), strict=True))
            self._known.believe(names)
        told: set[JobClass] = set()
        for waiter in waiters:
            nodes: list[str] = []
            if waiter.job_class not in told and waiter.status != "left":
                told.add(waiter.job_class)
                nodes = [node.id for node in self._known.index.eligible(waiter.job_class) if names.get(node.id)]
                self._random.shuffle(nodes)
            self._waiting.answer_open(waiter, tuple(nodes))

    # ---- reserve ----

    def _call(self, tries: list[Try], again: bool = False) -> Call:
        partitions = frozenset([each.job.partition for each in tries])
        return Call(tries, partitions, self._clock.ms(), self._known.index, self._waiting.limits.mark, again)

    def _begin(self, call: Call) -> Call:
        """Send a call, to be settled later."""
        call.answers = asyncio.create_task(self._caller.answers(call))
        return call

    async def _tries_as_bound(self, jobs: Sequence[Job]) -> tuple[list[Try], Index]:
        await self._known.read([job.session_id for job in jobs])
        return self._tries(jobs), self._known.index


async def _drop(under_way: Sequence[Call]) -> None:
    """End the calls whose answers nobody will settle: what they did is found in the records."""
    answers = [call.answers for call in under_way if call.answers is not None]
    for each in answers:
        each.cancel()
    await asyncio.gather(*answers, return_exceptions=True)
