"""The dispatcher: places the jobs of its partitions on nodes. No lock, no round trip per job.

A step takes a batch that was read ahead (reader.py), applies what it says, decides attempts (attempts.py), reserves,
applies the answers (dispatch_state.py) and rejects. A batch costs one blocking read and one script call of up to
`batch_max` jobs. Sessions that turn out to be bound cost one read of their bindings per batch, and jobs that find no
room one question about the nodes that could serve them.

While a call is under way the next one is made ready, of other partitions than those in the call: a session is in one
partition, so what is sent before the answer can pass no job of its session. Jobs that wait are tried in calls of their
own, one after the other; beside the first of these, newcomers that need not wait have theirs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.config import Settings
from scheduler.errors import InvalidInput, ServerReplaced
from scheduler.loop import Loop, Timers, end_tasks
from scheduler.protocol import messages
from scheduler.runtime import attempts
from scheduler.runtime.behind import LOOK_MS
from scheduler.runtime.dispatch_state import DispatchState
from scheduler.runtime.intake import Job
from scheduler.runtime.partitions import Partitions
from scheduler.runtime.placement.attempt import Answer, Call
from scheduler.runtime.reader import Batch, Reader
from scheduler.runtime.report import Report
from scheduler.runtime.server_calls import ServerCalls
from scheduler.runtime.snapshots import Snapshots
from scheduler.runtime.upkeep import Upkeep
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.dispatcher")

SWEEP_MS: Final = 1_000
INTAKES_MS: Final = 500  # between two looks whether the intakes take entries
CATCH_UP_MS: Final = 50  # between two reads of a snapshot that is to be another one
RECLASSIFY_BATCH_MAX: Final = 256  # waiting jobs whose pool may be another one now, decided anew in one step
AWAITED_MAX: Final = 32
"""Attempts of a call that is not worth a task of its own, beside which the next one would be made ready."""

UnderWay = list[tuple[Call, asyncio.Task[list[Answer | None]]]]


class Dispatcher:
    """One dispatcher of a cell. `open` first, then `run_once` again and again, then `close`.

    Args:
        store: the server.
        settings: of the process.
        layout: as stored.
        owner: name+boot, unique to this life of the process.
        random: for drawing nodes and for jitter.
        clock: the process's own.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        layout: messages.Layout,
        owner: str,
        random: Random,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.owner = owner
        self._work = asyncio.Event()
        self.partitions = Partitions(store.cell, owner, layout.partitions, settings, clock)
        self.snapshots = Snapshots(store.control, self._work)
        self.state = DispatchState(settings, layout, store.cell.cell, self.partitions, clock)
        self._server = ServerCalls(store.cell, store.reads, layout, settings.batch_max)
        self._upkeep = Upkeep(store, settings, self.state, self.snapshots, owner, random, self._work)
        self._store = store
        self._settings = settings
        self._clock = clock
        self._random = random
        self._reader: Reader | None = None
        self._looks = Loop("streams", self._upkeep.look_at_streams, INTAKES_MS, random)
        self._heartbeats = Loop("heartbeat", self._upkeep.heartbeat, settings.heartbeat_ms, random)
        self._tasks: list[asyncio.Task[None]] = []
        self._timers = Timers("sweep", "behind")

    @property
    def report(self) -> Report:
        """What it has done so far."""
        return self.state.report

    @property
    def reader(self) -> Reader:
        """What reads ahead. Only after `open`."""
        assert self._reader is not None
        return self._reader

    async def open(self) -> None:
        """Take the cursor of `freed`, the snapshot and our share of the partitions, and begin to read ahead."""
        freed_cursor = await self._store.reads.last_id(self._store.cell.keys.freed)
        self._reader = Reader(
            self._store.reads,
            self._store.paced(),
            self._settings,
            self._clock,
            freed_cursor,
            self.state.bindings,
            self._work,
        )
        self._reader.reads_bindings = self.state.must_read_bindings
        try:
            await self.snapshots.load()
        except InvalidInput as error:
            logger.error("the published snapshot is ignored until the leader has written it again: %s", error)
        await self._upkeep.heartbeat()
        await self._keep()
        # Heartbeats last, see close.
        loops = (self._reader.run(), self.snapshots.run(), self._looks.run(), self._heartbeats.run())
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def close(self) -> None:
        """Leave, and give up every partition at once; what was read and not placed stays in the intake.

        In this order: a dispatcher that reads that partitions were given up must see that we are gone, or it would
        leave them to us. A heartbeat that is under way ends first, because after the last one it would make us seem
        alive.
        """
        self._heartbeats.stop()
        await asyncio.gather(*self._tasks[-1:], return_exceptions=True)
        await self.end()
        await self._upkeep.heartbeat(leaves=True)
        await self.partitions.give_up()

    async def end(self) -> None:
        """End what runs beside the steps. Nothing is sent to the server."""
        if self._reader is not None:
            self._reader.stop()
        self.snapshots.stop()
        self._looks.stop()
        self._heartbeats.stop()
        await end_tasks(self._tasks)

    def wake(self) -> None:
        """Let a step that waits for work end now."""
        self._work.set()

    # ---- a step ----

    async def run_once(self) -> Report:
        """One step: take a batch -> apply what it says -> decide attempts -> reserve -> apply answers -> reject.

        Returns: the counts so far.
        """
        state, reader = self.state, self.reader
        self._upkeep.stepped_ms = self._clock.ms()
        if self._upkeep.behind.is_other() or reader.doubted or self._timers.is_due("behind", LOOK_MS):
            await self._upkeep.behind.look(reader)
        await self._keep()
        batch = await reader.next(self._idle_ms())
        try:
            await self._handle(batch)
        except ServerReplaced:
            self.partitions.begin_anew(self.partitions.held)
        except Exception:
            # What is in memory may be half done, and the intake has everything: begin again from there.
            await self.partitions.give_up()
            raise
        finally:
            self._apply_partitions()
        state.report.waiting = len(state.waiting)
        state.report.deferred = state.overflow.deferred
        state.report.calls = self._server.reserve_calls
        state.report.sweep_hits = state.waiting.sweep_hits
        reader.reads_bindings = state.must_read_bindings
        return state.report

    async def _handle(self, batch: Batch) -> None:
        """Place jobs that wait and may have room now, then those that are new."""
        state, index = self.state, self.snapshots.index
        if state.index is not index:
            state.apply_snapshot(index)
        if state.undecided:
            await self._reclassify()
        newcomers: Sequence[Job] = self._apply(batch)
        if state.waiting.deadlines:
            state.reject(self._upkeep.sweep.overdue(self._clock.ms()))
        if self._upkeep.sweep.busy:
            state.reject(self._upkeep.sweep.unservable(state.index))
        if state.waiting.busy and newcomers:
            newcomers = await self._place_waiting_beside(newcomers)
        await self._place_waiting()
        await self._place_newcomers(newcomers)
        await self._place_waiting()
        if state.must_read_again:
            await self._read_again()
            await self._place_waiting()
        await self._reject()

    def _apply(self, batch: Batch) -> list[Job]:
        """Apply what a batch says. Returns: its jobs that are still ours and in time."""
        if batch.handed_over or batch.gap:
            self.partitions.claim_now()
            self._heartbeats.wake()  # the dispatcher that gave partitions up may have left: some should be ours now
        return self.state.apply_batch(batch)

    def _idle_ms(self) -> float:
        """For how long there is nothing to do, unless something is read: until the next timer or deadline."""
        state = self.state
        if state.waiting.busy or self._upkeep.sweep.busy or state.undecided or state.must_read_again:
            return 0
        idle_ms = min(self._timers.next_ms(), self.partitions.next_ms())
        deadline_ms = state.waiting.deadlines.next_ms() if state.waiting.deadlines else None
        return idle_ms if deadline_ms is None else min(idle_ms, deadline_ms - self._clock.ms() + 1)

    # ---- newcomers ----

    async def _place_newcomers(self, jobs: Sequence[Job], is_again: bool = False) -> None:
        """Place jobs that were just read, and those that are read meanwhile. Jobs that must wait keep their place
        behind the earlier ones of their session.

        Args:
            jobs: in the order of their partitions.
            is_again: whether they were deferred before.
        """
        under_way: UnderWay = []
        try:
            while jobs:
                if self.state.overflow and not is_again:
                    # Before the jobs are divided into calls, so that those that remain need few.
                    await self._read_bindings(jobs)
                    jobs = attempts.defer(self.state, jobs, self._clock.ms())
                for chunk in attempts.chunks(jobs, self._settings.batch_max, self.partitions.lane):
                    await self._place(chunk, under_way, is_again)
                jobs = [] if is_again else self._next_jobs()
            await self._land(under_way)
        finally:
            await _drop(under_way)

    def _next_jobs(self) -> Sequence[Job]:
        """The jobs of the next batch, if there is one in hand and nothing else is due. With a backlog the last answers
        of a batch are then not waited for before the next one.
        """
        if self._idle_ms() <= 0 or (batch := self.reader.next_ready()) is None:
            return []
        self.state.apply_snapshot(self.snapshots.index)
        return self._apply(batch)

    async def _place(self, jobs: Sequence[Job], under_way: UnderWay, is_again: bool) -> None:
        """Send a call for these jobs, and apply the answers to the one before it meanwhile."""
        state = self.state
        if under_way and any(job.partition in under_way[0][0].partitions for job in jobs):
            await self._land(under_way)
        if state.waiting.busy:
            await self._land(under_way)
            await self._place_waiting()
        if state.must_read_bindings:
            await self._read_bindings(jobs)
        started_ms = self._clock.ms()
        kept = jobs if is_again else attempts.defer(state, jobs, started_ms)
        call = attempts.call_for(state, attempts.decide(state, kept, self._random, started_ms), started_ms, is_again)
        state.decided(started_ms, len(jobs))
        if not under_way and len(call.attempts) <= AWAITED_MAX:
            await self._apply_answers(call, await self._reserve(call))
            return
        self._begin(call, under_way)
        if len(under_way) > 1:
            await self._land(under_way, 1)

    async def _read_again(self) -> None:
        """Read a part of what was deferred, and place those that there is memory for now."""
        state = self.state
        jobs, read_to = await self.reader.again(state.overflow.cursors())
        deferred = state.deferred_of(jobs)
        await self._read_bindings(deferred)
        await self._place_newcomers(state.admit(deferred), is_again=True)
        state.overflow.advance(read_to, state.waiting.count, len(state.waiting), self._clock.ms())

    # ---- jobs that wait ----

    async def _place_waiting(self) -> None:
        """Try jobs that wait and may have room, until there are none to be tried now. None is tried while the cell asks
        for a snapshot that is not published yet.
        """
        while self.state.waiting.busy:
            await self._keep()
            if self.state.is_outdated:
                return
            under_way: UnderWay = []
            try:
                await self._send_waiting(under_way)
                await self._land(under_way)
            finally:
                await _drop(under_way)

    async def _place_waiting_beside(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Try jobs that wait, once, and beside them newcomers that need not wait. A class that is short of room would
        otherwise delay every other class by a round trip in each step.

        Returns: the newcomers that were not tried.
        """
        first, rest = jobs[: self._settings.batch_max], jobs[self._settings.batch_max :]
        await self._read_bindings(first)
        now, later = attempts.split(self.state, first, self._clock.ms())
        under_way: UnderWay = []
        try:
            if now:
                started_ms = self._clock.ms()
                decided = attempts.decide(self.state, now, self._random, started_ms)
                self.state.decided(started_ms, len(now))
                self._begin(attempts.call_for(self.state, decided, self._clock.ms()), under_way)
            await self._send_waiting(under_way)
            await self._land(under_way)
        finally:
            await _drop(under_way)
        return [*later, *rest]

    async def _send_waiting(self, under_way: UnderWay) -> None:
        """Ask where the asking jobs have room, and send a call for those whose turn it is."""
        state = self.state
        if asking := state.waiting.asking():
            has_room = await self._server.have_room(attempts.nodes_to_ask(state, asking))
            state.apply_open(asking, attempts.open_nodes(state, asking, has_room, self._random), has_room)
        waiters = state.waiting.next_attempts(self._settings.batch_max)
        await self._read_bindings(waiter.job for waiter in waiters)
        started_ms = self._clock.ms()
        decided = attempts.decide_waiting(state, waiters, self._random, started_ms)
        state.decided(started_ms, len(waiters))
        self._begin(attempts.call_for(state, decided, self._clock.ms()), under_way)

    async def _reclassify(self) -> None:
        """Decide the class anew of some jobs whose pool may be another one now, even of those that wait behind others:
        when their turn comes, they must wait in the class by which they are placed.
        """
        waiters = self.state.undecided.next(RECLASSIFY_BATCH_MAX)
        await self._read_bindings(waiter.job for waiter in waiters)
        self.state.reclassify(waiters, self._clock.ms())
        self.state.undecided.decided()

    # ---- calls ----

    async def _reserve(self, call: Call) -> list[Answer | None]:
        """The answer to each attempt of a call, None for one that was held back.

        A session whose binding is not known is taken for a new one, because most are. The script says which sessions
        are bound after all, and their attempts are decided anew. This saves a read of bindings before each call.
        """
        state, life = self.state, self.partitions.life
        answers = await self._server.reserve(call.attempts, call.index, state.kinds(call.index), life)
        bound = state.apply_lookups(call, answers)
        if bound:
            jobs = [call.attempts[number].job for number in bound]
            await self._read_bindings(jobs)
            decided = attempts.decide(state, jobs, self._random, self._clock.ms())
            numbers = {call.attempts[number].job.key: number for number in bound}
            second_answers = await self._server.reserve(decided, state.index, state.kinds(state.index), life)
            for attempt, answer in zip(decided, second_answers, strict=True):
                number = numbers[attempt.job.key]
                call.attempts[number], answers[number] = attempt, answer
        return answers

    def _begin(self, call: Call, under_way: UnderWay) -> None:
        """Send a call, whose answers are applied later."""
        under_way.append((call, asyncio.create_task(self._reserve(call))))

    async def _land(self, under_way: UnderWay, count: int | None = None) -> None:
        """Apply the answers to the first `count` calls, all by default, in the order in which they were sent."""
        for _ in range(len(under_way) if count is None else count):
            await asyncio.wait([under_way[0][1]])
            call, answers = under_way.pop(0)
            await self._apply_answers(call, answers.result())

    async def _apply_answers(self, call: Call, answers: Sequence[Answer | None]) -> None:
        self.state.apply_answers(call, answers)
        self._apply_partitions()
        await self._reject()

    async def _reject(self) -> None:
        """End the jobs that are to be rejected."""
        for part in self._server.cut(self.state.take_rejections()):
            items = [item for item in part if self.partitions.holds(item.partition, item.epoch)]
            if items:
                self.state.apply_rejected(items, await self._server.reject(items, self.partitions.life))

    async def _read_bindings(self, jobs: Iterable[Job]) -> None:
        """Read the bindings of the sessions of these jobs, where they are not known."""
        sessions = [job.session_id for job in jobs]
        if unread := self.state.unread(sessions):
            self.state.apply_bindings(sessions, unread, await self._server.bindings(unread))

    # ---- what runs on timers ----

    async def _keep(self) -> None:
        """Claims, another snapshot if the cell asks for one, and the sweep, each when it is due."""
        if self._upkeep.intakes.rebuilt:
            self._upkeep.intakes.begin_anew()
        if self.partitions.next_ms() <= 0:
            await self.partitions.claim()
        self._apply_partitions()
        if self.state.is_outdated:
            await self._catch_up()
        if self._timers.is_due("sweep", SWEEP_MS):
            await self._upkeep.look(self.reader)

    def _apply_partitions(self) -> None:
        """Forget what is known of partitions that were lost or gained, and read those that were gained."""
        if self.partitions.has_changes:
            dropped, gained = self.partitions.take_changes()
            self.state.forget(dropped)
            self.reader.change(dropped, gained)

    async def _catch_up(self) -> None:
        """Read the snapshot that the cell asks for. No call of jobs that wait is under way, as for any snapshot."""
        try:
            await self.snapshots.load()
        except InvalidInput as error:
            logger.warning("the published snapshot cannot be read: %s", error)
        self.state.apply_snapshot(self.snapshots.index)
        if self.state.is_outdated:  # it is about to be published again
            await asyncio.sleep(CATCH_UP_MS / 1000)


async def _drop(under_way: UnderWay) -> None:
    """End the calls whose answers are not applied any more: what they did is found in the records."""
    tasks = [task for _, task in under_way]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
