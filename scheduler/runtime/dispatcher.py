"""The dispatcher shell: read -> decode -> place -> reserve -> settle. No lock, no round trip a job.

A batch costs one blocking read, made ahead by reader.py, and one script call, made by placer.py. Sessions that turn out
to be bound cost one read of their bindings a batch, and jobs that find no room one question to `open`. What this shell
remembers of a partition is dropped when the partition is lost or gained.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

from scheduler.clock import SYSTEM_CLOCK, Clock, ServerTime
from scheduler.config import Settings
from scheduler.errors import InvalidInput, ServerReplaced
from scheduler.loop import Loop, Timers, end_tasks
from scheduler.protocol import keys, messages
from scheduler.protocol.documents import DispatcherBeat, encode_beat
from scheduler.runtime.behind import LOOK_MS, Behind
from scheduler.runtime.dispatch_state import Knowledge
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.intake_streams import Intakes
from scheduler.runtime.partitions import Partitions
from scheduler.runtime.placer import Placer
from scheduler.runtime.reader import Batch, Reader
from scheduler.runtime.refusals import Refusals
from scheduler.runtime.report import Report
from scheduler.runtime.snapshots import Snapshots
from scheduler.runtime.strays import uncount_strays
from scheduler.runtime.sweep import Sweep, expired
from scheduler.runtime.waiting.limits import changed_limits, limits_of
from scheduler.runtime.waiting.overflow import Skipped
from scheduler.runtime.waiting.queues import Cause, any_may_move, gains, may_move, tier_of
from scheduler.runtime.waiting.undecided import Undecided
from scheduler.runtime.waiting.waiting_jobs import Waiting
from scheduler.session.bindings import Bindings, parse
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.dispatcher")

SWEEP_MS: Final = 1_000
INTAKES_MS: Final = 500  # between two looks whether the intakes take entries
CATCH_UP_MS: Final = 50  # between two reads of a snapshot that is to be another one
RECLASSIFIED_AT_ONCE_MAX: Final = 256  # waiting jobs whose pool may be another one now, decided anew in one step


class Dispatcher:
    """One dispatcher of a cell. `open` first, then `run_once` again and again, then `close`.

    Args: store; settings; layout, as stored; owner, name+boot, unique to this life of the process; random, for
    drawing nodes and for jitter; clock, its own.
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
        self.waiting = Waiting(self._limits_of, self._tier_of)
        self.skipped = Skipped(settings.waiting_class_max, settings.waiting_max)
        self.bindings = Bindings(settings.sessions_max, settings.session_ttl_ms)
        self.snapshots = Snapshots(store.control, self.wake)
        self.partitions = Partitions(store.cell, owner, layout.partitions, settings, clock, self._forget, self._gained)
        self._behind = Behind(store, self.partitions, self.snapshots)
        self._store = store
        self._settings = settings
        self._clock = clock
        self._random = random
        self._layout = layout
        self._refusals = Refusals(store.cell, self.partitions, layout, settings.batch_max, clock)
        self._known = Knowledge(store.reads, clock, self.partitions, self.waiting, self.skipped, self.bindings)
        self._placer = Placer(store, settings, self._known, self._refusals, random, clock)
        self._sweep = Sweep(self.waiting, settings)
        self._undecided = Undecided(self.waiting.members)
        self._reader: Reader | None = None
        self._intakes = Intakes(store.cell, store.reads, self.partitions)
        self._looks = Loop("streams", self._look_at_streams, INTAKES_MS, random)
        self._beats = Loop("heartbeat", self._beat, settings.heartbeat_ms, random)
        self._tasks: list[asyncio.Task[None]] = []
        self._timers = Timers("sweep", "behind")
        self._server_time = ServerTime()
        self._stepped_ms = clock.ms()

    @property
    def report(self) -> Report:
        """What it has done so far."""
        return self._placer.report

    async def open(self) -> None:
        """Take the cursor of `freed`, the snapshot and our share of the partitions, and begin to read ahead."""
        freed_cursor = await self._store.reads.last_id(self._store.cell.keys.freed)
        self._reader = Reader(
            self._store.reads,
            self._store.paced(),
            self._settings,
            self._clock,
            freed_cursor,
            self.bindings,
            lambda: self._known.must_read,
        )
        try:
            await self.snapshots.load()
        except InvalidInput as error:
            logger.error("the published snapshot is ignored until the leader has written it again: %s", error)
        await self._beat()
        await self._keep()
        # Heartbeats last, see close.
        running = (self._reader.run(), self.snapshots.run(), self._looks.run(), self._beats.run())
        self._tasks = [asyncio.create_task(each) for each in running]

    async def close(self) -> None:
        """Leave, and give up every partition at once; what was read and not placed stays in the intake.

        In this order: who hears that partitions were given up must see that they are not wished to be ours. A heartbeat
        that is under way comes first too, for after the last one it would make us seem alive.
        """
        self._beats.stop()
        await asyncio.gather(*self._tasks[-1:], return_exceptions=True)
        await self.end()
        await self._store.control.beat(self._document(), self.owner, leaves=True)
        await self.partitions.give_up()

    async def end(self) -> None:
        """End what runs beside the steps, without a word to the server."""
        if self._reader is not None:
            self._reader.stop()
        self.snapshots.stop()
        self._looks.stop()
        self._beats.stop()
        await end_tasks(self._tasks)

    async def run_once(self) -> Report:
        """One step: keep what is ours, take the next batch, and place what can be placed. Returns the counts so far."""
        assert self._reader is not None
        self._stepped_ms = self._clock.ms()
        if self._behind.is_other() or self._reader.doubted or self._timers.is_due("behind", LOOK_MS):
            await self._behind.look(self._reader)
        await self._keep()
        batch = await self._reader.next(self._idle_ms())
        try:
            await self._handle(batch)
        except ServerReplaced:
            self.partitions.begin_anew(self.partitions.held)
        except Exception:
            # What is in memory may be half done, and the intake has everything: begin again from there.
            await self.partitions.give_up()
            raise
        self.report.waiting = len(self.waiting)
        self.report.skipped = self.skipped.skipped
        self.report.rejected = self._refusals.ended
        self.report.sweep_hits = self.waiting.sweep_hits
        return self.report

    async def _handle(self, batch: Batch) -> None:
        """Place what waits and was woken, then what is new."""
        self._swap()
        await self._reclassify()
        newcomers = self._take(batch)
        self._refusals.add(self._sweep.overdue(self._clock.ms()))
        self._refusals.add(self._sweep.unservable(self._known.index))
        self._wake(batch)
        others: Sequence[Job] = newcomers
        if self.waiting.busy and newcomers:
            others = await self._placer.waiters_beside(newcomers)
        await self._placer.waiters(self._keep)
        await self._placer.newcomers(others, self._keep, self._more)
        await self._placer.waiters(self._keep)
        if self._is_due:
            await self._read_again()
            await self._placer.waiters(self._keep)
        await self._refusals.end()

    def _idle_ms(self) -> float:
        """For how long there is nothing to do, unless something is read: until the next timer or deadline."""
        if self.waiting.busy or self._sweep.busy or self._undecided or self._is_due:
            return 0
        idle_ms = min(self._timers.next_ms(), self.partitions.next_ms())
        deadline_ms = self.waiting.deadlines.next_ms()
        return idle_ms if deadline_ms is None else min(idle_ms, deadline_ms - self._clock.ms() + 1)

    def _limits_of(self, job: Job, job_class: JobClass) -> tuple[str, ...]:
        return limits_of(job, job_class, self._known.index)

    def _tier_of(self, job_class: JobClass, node: str) -> int:
        return tier_of(self._known.index, job_class, node)

    # ---- what was read, and what the world tells ----

    def _more(self) -> list[Job]:
        """The jobs of the next batch, if there is one in hand and nothing else is due: a backlog is no reason to wait
        for the last answers of each batch.
        """
        assert self._reader is not None
        if self._idle_ms() <= 0 or (batch := self._reader.next_ready()) is None:
            return []
        self._swap()
        newcomers = self._take(batch)
        self._wake(batch)
        return newcomers

    @property
    def _is_due(self) -> bool:
        """Whether a part of what was scanned past is to be read again."""
        return self.skipped.is_due(self.waiting.count, len(self.waiting), self._clock.ms())

    async def _read_again(self) -> None:
        """Read a part of what was scanned past, and place those that there is memory for now."""
        assert self._reader is not None
        read, read_to = await self._reader.again(self.skipped.cursors())
        refused = self._refusals.entries()
        found = [
            job
            for job in read
            if self.skipped.is_skipped(job)
            and not self.waiting.holds(job)
            and (job.partition, job.entry_id) not in refused
        ]
        await self._known.read([job.session_id for job in found])
        jobs = self.skipped.admit(self._in_time(found), self._cause_of, self.waiting.count, len(self.waiting))
        await self._placer.newcomers(jobs, self._keep, again=True)
        self.skipped.went_on(read_to, self.waiting.count, len(self.waiting), self._clock.ms())

    def _cause_of(self, job: Job) -> Cause:
        return self.waiting.cause(job, self._known.classify(job, self._clock.ms()))

    def _take(self, batch: Batch) -> list[Job]:
        """The jobs of a batch that are still ours and in time, with what is known of their sessions."""
        self.report.read += len(batch.jobs) + len(batch.refused)
        self._refusals.add(batch.refused)
        # Once memory is full, what was read ahead may be older than what was written and forgotten since.
        is_news = len(self.bindings) < self._settings.sessions_max
        jobs = [job for job in batch.jobs if self.partitions.holds(job.partition, job.epoch)]
        for job in jobs if is_news else ():
            if job.session_id in batch.bindings and job.session_id not in self.bindings:
                self.bindings.learn(job.session_id, parse(batch.bindings[job.session_id]))
        return self._in_time(jobs)

    def _in_time(self, jobs: Iterable[Job]) -> list[Job]:
        """Those whose deadline has not passed; the others are refused."""
        now_ms = self._clock.ms()
        in_time = []
        for job in jobs:
            if job.deadline_at_ms is not None and job.deadline_at_ms <= now_ms:
                self._refusals.add([expired(job)])
            else:
                in_time.append(job)
        return in_time

    def _wake(self, batch: Batch) -> None:
        loads = self._known.loads
        for node in batch.freed:
            if node in loads:
                loads[node] = max(0, loads[node] - 1)
        self.waiting.wake(batch.freed, self._known.index.serves)
        self.waiting.limits.tell(batch.limits)
        if batch.gap:
            self.waiting.ask_all()
        if batch.handed_over or batch.gap:
            self.partitions.hasten()
            self._beats.wake()  # perhaps its owner has left, and what it had should be ours now

    def _swap(self) -> None:
        """Take the newest snapshot: a class that gained a node is tried, and jobs whose pool may be another one now are
        decided anew.
        """
        new, old = self.snapshots.index, self._known.index
        if new is old:
            return
        self._known.index = new
        self._known.forget_counted(self._clock.ms())
        for job_class, gained in gains(self.waiting.classes(), old, new):
            self.waiting.wake_class(job_class, gained)
        self.waiting.limits.tell_pools(changed_limits(old.pools, new.pools))
        for job_class in may_move(self.waiting.members.classes(), old, new):
            self._undecided.add(job_class)
        if self.skipped and any_may_move(old, new):
            self.skipped.look_again()

    async def _reclassify(self) -> None:
        """Decide some jobs anew whose pool may be another one now, also those that wait behind others: when their turn
        comes, their class must be the one by which they would be placed.
        """
        if not self._undecided:
            return
        waiters = self._undecided.next(RECLASSIFIED_AT_ONCE_MAX)
        await self._known.read([waiter.job.session_id for waiter in waiters])
        now_ms = self._clock.ms()
        for waiter in waiters:
            self._known.reclassify(waiter, now_ms)
        self._undecided.decided()

    # ---- what runs on timers ----

    async def _keep(self) -> None:
        """Claims, another snapshot if the cell asks for one, and the sweep, each when it is due."""
        self._intakes.begin_anew()
        await self.partitions.keep()
        if self._known.is_outdated:
            await self._catch_up()
        if self._timers.is_due("sweep", SWEEP_MS):
            await self._look()

    async def _catch_up(self) -> None:
        """Read the snapshot that the cell asks for. Called between calls of those who wait, as `_swap` has to be."""
        try:
            await self.snapshots.load()
        except InvalidInput as error:
            logger.warning("the published snapshot cannot be read: %s", error)
        self._swap()
        if self._known.is_outdated:  # it is about to be published again
            await asyncio.sleep(CATCH_UP_MS / 1000)

    def _gained(self, partition: int, epoch: int) -> None:
        assert self._reader is not None
        self._reader.own(partition, epoch)

    def _forget(self, partitions: frozenset[int]) -> None:
        """Forget everything about partitions; their sessions are another owner's, or are read anew."""
        if self._reader is not None:
            for partition in partitions:
                self._reader.drop(partition)
        self.waiting.drop_partitions(partitions)
        self.skipped.forget(partitions)
        self._refusals.forget(partitions)
        count, cells = self._layout.partitions, self._layout.cells
        sessions = self.bindings.sessions()
        self.bindings.forget([each for each in sessions if keys.partition_of(each, count, cells) in partitions])

    async def _beat(self) -> None:
        """Say that we live, and learn who else does. Who takes no step for a whole lease must not seem alive."""
        if self._clock.ms() - self._stepped_ms > self._settings.partition_lease_ms:
            return
        sent_ms = self._clock.ms()
        beaten = await self._store.control.beat(self._document(), self.owner)
        step_ms = self._server_time.told(beaten.now_ms, sent_ms, self._clock.ms())
        if self.partitions.see(beaten.live, stepped=step_ms != 0):
            self.wake()

    def _document(self) -> bytes:
        name, _, boot = self.owner.partition("+")
        times, now_ms = self._placer.times, self._clock.ms()
        beat = DispatcherBeat(
            name,
            boot,
            self.waiting.by_pool(),
            self._known.index.version,
            times.decisions.p99_of_late(now_ms),
            times.session_waits.p99_of_late(now_ms),
        )
        return encode_beat(beat)

    async def _look_at_streams(self) -> None:
        """Partitions that take no entry any more are rebuilt beside the steps, and claimed anew by the next one."""
        if await self._intakes.look():
            self.wake()

    async def _look(self) -> None:
        """The sweep. What the nodes were believed to hold is forgotten too: it grows stale."""
        self._known.loads.clear()
        self._known.forget_counted(self._clock.ms())
        self._refusals.retry()
        self._sweep.judge(self._known.index, self._undecided, self._clock.ms())
        if self._reader is not None:
            await self._sweep.look(self._known.index, self._store.reads, self._reader)
        limits = list(dict.fromkeys(limit for limit, _ in self.waiting.limits.settled()))
        await uncount_strays(limits, self._store.reads, self._store.cell, self._random)

    def wake(self) -> None:
        """Let a step that waits for work end now."""
        if self._reader is not None:
            self._reader.nudge()
