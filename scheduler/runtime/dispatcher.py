"""The dispatcher shell: read -> decode -> place -> reserve -> settle. One task; no lock, no round trip a job.

A batch costs one blocking read (made ahead by reader.py) and one script call. Sessions that are new to this
dispatcher cost one read of their bindings a batch, and jobs that find no room one question to `open`. What this shell
remembers of a partition is dropped when the partition is lost or gained.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from random import Random
from typing import Final

import msgspec

from scheduler import calls, keys, model
from scheduler.config import Settings
from scheduler.loop import Loop, Timers, end_tasks
from scheduler.runtime import intake, placement
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job
from scheduler.runtime.partitions import Partitions
from scheduler.runtime.reader import Batch, Reader
from scheduler.runtime.refusals import Refusals
from scheduler.runtime.snapshots import Snapshots
from scheduler.runtime.sweep import Sweep, expired
from scheduler.runtime.tries import Try, keeps_binding, refusal_of, reserve_item
from scheduler.runtime.waiting import Waiter, Waiting
from scheduler.session.bindings import Binding, Bindings, parse
from scheduler.store.connection import or_each_alone
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.dispatcher")

SWEEP_MS: Final = 1_000


class Report(msgspec.Struct):
    """What a dispatcher has done since its start."""

    read: int = 0
    placed: int = 0
    full: int = 0
    rejected: int = 0
    calls: int = 0
    sweep_hits: int = 0
    waiting: int = 0


class Dispatcher:
    """One dispatcher of a cell. `open` first, then `run_once` again and again, then `close`.

    Args: store; settings; layout, as stored; owner, name+boot, unique to this life of the process; random, for
    drawing nodes.
    """

    def __init__(
        self, store: Store, settings: Settings, layout: calls.Layout, owner: str, random: Random | None = None
    ) -> None:
        self.owner = owner
        self.report = Report()
        self.waiting = Waiting()
        self.bindings = Bindings(settings.sessions_max, settings.session_ttl_ms)
        self.snapshots = Snapshots(store.control, self.wake)
        self.partitions = Partitions(
            store.cell, owner, layout.partitions, settings.partition_lease_ms, self._forget, self._gained
        )
        self._store = store
        self._settings = settings
        self._layout = layout
        self._random = random or Random()
        self._index: Index = self.snapshots.index
        self._loads: dict[str, int] = {}
        self._refusals = Refusals(store.cell, self.partitions, layout, settings.batch_max)
        self._sweep = Sweep(self.waiting, settings)
        self._reader: Reader | None = None
        self._beats = Loop("heartbeat", self._beat, settings.heartbeat_ms)
        self._tasks: list[asyncio.Task[None]] = []
        self._timers = Timers("sweep")
        self._stepped_ms = _now_ms()

    async def open(self) -> None:
        """Take the cursor of `freed`, the snapshot and our share of the partitions, and begin to read ahead."""
        freed_cursor = await self._store.reads.last_id(self._store.cell.keys.freed)
        self._reader = Reader(self._store.reads, self._settings, freed_cursor)
        await self.snapshots.load()
        await self._beat()
        await self._keep()
        running = (self._reader.run(), self.snapshots.run(), self._beats.run())
        self._tasks = [asyncio.create_task(each) for each in running]

    async def close(self) -> None:
        """Leave, and give up every partition at once; what was read and not placed stays in the intake.

        In this order: who hears that partitions were given up must see that they are not wished to be ours.
        """
        if self._reader is not None:
            self._reader.stop()
        self.snapshots.stop()
        self._beats.stop()
        await end_tasks(self._tasks)
        await self._store.control.beat(self._document(), self.owner, leaves=True)
        await self.partitions.give_up()

    async def run_once(self) -> Report:
        """One step: keep what is ours, take the next batch, and place what can be placed. Returns the counts so far."""
        assert self._reader is not None
        self._stepped_ms = _now_ms()
        await self._keep()
        batch = await self._reader.next(self._idle_ms())
        try:
            await self._handle(batch)
        except Exception:
            # What is in memory may be half done, and the intake has everything: begin again from there.
            await self.partitions.give_up()
            raise
        self._reader.paused = len(self.waiting) >= self._settings.waiting_max
        self.report.waiting = len(self.waiting)
        self.report.rejected = self._refusals.ended
        self.report.sweep_hits = self.waiting.sweep_hits
        return self.report

    async def _handle(self, batch: Batch) -> None:
        """Place what waits and was woken, then what is new."""
        self._swap()
        newcomers = self._decode(batch)
        self._refusals.add(self._sweep.overdue(self.partitions.server_ms()))
        self._wake(batch)
        await self._try_waiting()
        for start in range(0, len(newcomers), self._settings.batch_max):
            await self._try_newcomers(newcomers[start : start + self._settings.batch_max])
            await self._try_waiting()
        await self._refusals.end()

    def _idle_ms(self) -> float:
        """For how long there is nothing to do, unless something is read: until the next timer or deadline."""
        if self.waiting.busy:
            return 0
        idle_ms = min(self._timers.next_ms(), self.partitions.next_ms())
        deadline_ms = self.waiting.next_deadline_ms()
        return idle_ms if deadline_ms is None else min(idle_ms, deadline_ms - self.partitions.server_ms() + 1)

    # ---- decode, and what the world tells ----

    def _decode(self, batch: Batch) -> list[Job]:
        jobs = []
        now_ms = self.partitions.server_ms()
        for entry in batch.entries:
            decoded = self._decode_one(entry)
            if isinstance(decoded, calls.RejectItem):
                self._refusals.add([decoded])
            elif decoded.deadline_at_ms is not None and decoded.deadline_at_ms <= now_ms:
                self._refusals.add([expired(decoded)])
            else:
                jobs.append(decoded)
        self.report.read += len(batch.entries)
        return jobs

    def _decode_one(self, entry: calls.Entry) -> Job | calls.RejectItem:
        """Whatever is wrong with an entry is wrong with that one alone."""
        try:
            return intake.decode(entry, self._store.cell.cell, self._settings)
        except Exception as error:
            logger.exception("entry %s of partition %d cannot be decoded", entry.id, entry.partition)
            return intake.refuse(entry, self._store.cell.cell, "invalid", f"it cannot be decoded: {error!r}")

    def _wake(self, batch: Batch) -> None:
        for node in batch.freed:
            if node in self._loads:
                self._loads[node] = max(0, self._loads[node] - 1)
        self.waiting.wake(batch.freed, self._index.serves)
        if batch.gap:
            self.waiting.ask_all()
        if batch.handed_over or batch.gap:
            self.partitions.hasten()
            self._beats.wake()  # perhaps its owner has left, and what it had should be ours now

    def _swap(self) -> None:
        """Take the newest snapshot; a class that gained a node is tried, one that lost its last node is decided
        anew.
        """
        new, old = self.snapshots.index, self._index
        if new is old:
            return
        self._index = new
        for wanted in self.waiting.classes():
            known = {(node.id, node.boot) for node in old.eligible(wanted)}
            gained = [node.id for node in new.eligible(wanted) if (node.id, node.boot) not in known]
            self.waiting.wake_class(wanted, gained)
        # Also those behind others: when their turn comes, their class must be one that somebody can serve.
        for waiter in [waiter for waiter in self.waiting if not new.eligible(waiter.wanted)]:
            self._classify_again(waiter)

    def _classify_again(self, waiter: Waiter) -> None:
        binding, _ = self.bindings.get(waiter.job.session_id, _now_ms())
        wanted = placement.classify(waiter.job, binding, self._index)
        if wanted != waiter.wanted:
            self.waiting.reclassify(waiter, wanted)

    # ---- place ----

    async def _try_newcomers(self, jobs: list[Job]) -> None:
        """Place jobs that were just read. Those that must wait keep their place behind the earlier ones of their
        session.
        """
        jobs = [job for job in jobs if self.partitions.holds(job.partition, job.epoch)]
        await self._load_bindings(jobs)
        now_ms = _now_ms()
        tries: list[Try] = []
        held: set[str] = set()
        for job in jobs:
            binding, _ = self.bindings.get(job.session_id, now_ms)
            wanted = placement.classify(job, binding, self._index)
            placed = None
            if job.session_id not in held and not self.waiting.must_wait(job, wanted):
                placed = placement.place(
                    job, wanted, binding, self._index, self._loads, self._settings.candidates_max, self._random
                )
            if placed is None:
                held.add(job.session_id)
            tries.append(Try(job, wanted, None, placed))
        await self._reserve(tries)

    async def _try_waiting(self) -> None:
        """Try those that wait and were woken, until nobody is left who should be tried now."""
        while self.waiting.busy:
            await self._keep()
            asking = self.waiting.asking()
            if asking:
                await self._ask(asking)
            tries = []
            for waiter in self.waiting.tries(self._settings.batch_max):
                attempt = self._place_waiter(waiter)
                if attempt is not None:
                    tries.append(attempt)
            await self._reserve(tries)

    def _place_waiter(self, waiter: Waiter) -> Try | None:
        """Candidates for a waiter, None when it parks or asks instead."""
        binding, _ = self.bindings.get(waiter.job.session_id, _now_ms())
        if waiter.hint is None:
            wanted = placement.classify(waiter.job, binding, self._index)
            if wanted != waiter.wanted:
                self.waiting.reclassify(waiter, wanted)
                return None
            found = placement.place(
                waiter.job, wanted, binding, self._index, self._loads, self._settings.candidates_max, self._random
            )
            if found is None:
                self.waiting.park(waiter)
                return None
        else:
            found = placement.place_among(
                waiter.job, waiter.wanted, binding, self._index, waiter.hint, self._loads, self._random
            )
            if found is None:
                waiter.complete = False
                self.waiting.still_full(waiter, waiter.hint)
                return None
        return Try(waiter.job, waiter.wanted, waiter, found)

    async def _load_bindings(self, jobs: list[Job]) -> None:
        """One read a batch for the sessions that this dispatcher does not know yet."""
        unknown = list(dict.fromkeys(job.session_id for job in jobs if job.session_id not in self.bindings))
        if unknown:
            for session_id, stored in zip(unknown, await self._store.reads.bindings(unknown), strict=True):
                self.bindings.learn(session_id, parse(stored))

    async def _ask(self, waiters: list[Waiter]) -> None:
        """Ask `open` for the eligible nodes of every asking class, in one question."""
        names: dict[str, bool] = {}
        for wanted in {waiter.wanted for waiter in waiters}:
            names.update(dict.fromkeys((node.id for node in self._index.eligible(wanted)), False))
        if names:
            names = dict(zip(names, await self._store.reads.are_open(list(names)), strict=True))
        for waiter in waiters:
            nodes = [node.id for node in self._index.eligible(waiter.wanted) if names.get(node.id)]
            self._random.shuffle(nodes)
            self.waiting.answer_open(waiter, tuple(nodes))

    # ---- reserve and settle ----

    async def _reserve(self, tries: list[Try]) -> None:
        """One script call for those that have candidates; then settle all, in their order."""
        now_ms = _now_ms()
        sent = [each for each in tries if each.placement is not None]
        items = [
            reserve_item(each, each.placement, *self.bindings.get(each.job.session_id, now_ms))
            for each in sent
            if each.placement is not None
        ]
        answers: dict[int, calls.Reserved | calls.Refused] = {}
        if items:
            answers = {id(each): answer for each, answer in zip(sent, await self._call(items), strict=True)}
        for each in tries:
            self._settle(each, answers.get(id(each)), now_ms)
        await self._refusals.end()

    async def _call(self, items: list[calls.ReserveItem]) -> list[calls.Reserved | calls.Refused]:
        """Reserve; after an error inside the script each job alone, still in the order of each session."""
        index = self._index
        blocked: set[str] = set()

        async def call(batch: Sequence[calls.ReserveItem]) -> list[calls.Reserved | calls.Refused]:
            if batch[0].session_id in blocked:
                return [calls.Refused("behind")]
            self.report.calls += 1
            answers = await self._store.cell.reserve(batch, index.boots, index.pools, index.version)
            if isinstance(answers[0], calls.Refused) and answers[0].why in ("full", "behind", "limited"):
                blocked.add(batch[0].session_id)
            return answers

        return await or_each_alone(items, call, lambda _: calls.Refused("broken"))

    def _settle(self, each: Try, answer: calls.Reserved | calls.Refused | None, now_ms: float) -> None:
        job, waiter = each.job, each.waiter
        if not self.partitions.holds(job.partition, job.epoch):
            return
        if isinstance(answer, calls.Reserved):
            self._placed(each, answer, now_ms)
        elif answer is None:
            # Held back: it waits behind its session or class, or no node can serve it.
            if self.waiting.must_wait(job, each.wanted):
                self.waiting.queue(job, each.wanted, now_ms)
            else:
                self.waiting.tried_in_vain(job, each.wanted, now_ms)
        elif answer.why in ("full", "behind", "limited"):
            self.report.full += 1
            assert each.placement is not None
            if waiter is None:
                self.waiting.tried_in_vain(job, each.wanted, now_ms)
            else:
                self.waiting.still_full(waiter, each.placement.candidates)
        elif answer.why == "fenced":
            self.partitions.lose(job.partition)
        else:
            refusal = refusal_of(job, answer, self._store.cell.cell)
            if refusal is not None:
                self._refusals.add([refusal])
            if waiter is not None:
                self.waiting.leave(waiter)

    def _placed(self, each: Try, answer: calls.Reserved, now_ms: float) -> None:
        job = each.job
        self.report.placed += 1
        if answer.used >= 0:
            self._loads[answer.node] = answer.used
            binding, _ = self.bindings.get(job.session_id, now_ms)
            if not keeps_binding(each, binding):
                bound = Binding(each.wanted.pool, job.src_lang, job.tgt_lang, answer.node)
                self.bindings.wrote(job.session_id, bound, now_ms)
        if each.waiter is not None:
            self.waiting.leave(each.waiter, placed=True)

    # ---- what runs on timers ----

    async def _keep(self) -> None:
        """Claims and the sweep, each when it is due."""
        await self.partitions.keep()
        if self._timers.is_due("sweep", SWEEP_MS):
            await self._look()

    def _gained(self, partition: int, epoch: int) -> None:
        assert self._reader is not None
        self._reader.own(partition, epoch)

    def _forget(self, partitions: frozenset[int]) -> None:
        """Forget everything about partitions; their sessions are another owner's, or are read anew."""
        if self._reader is not None:
            for partition in partitions:
                self._reader.drop(partition)
        self.waiting.drop_partitions(partitions)
        self._refusals.forget(partitions)
        count, cells = self._layout.partitions, self._layout.cells
        sessions = self.bindings.sessions()
        self.bindings.forget([each for each in sessions if keys.partition_of(each, count, cells) in partitions])

    async def _beat(self) -> None:
        """Say that we live, and learn who else does. Who takes no step for a whole lease must not seem alive."""
        if _now_ms() - self._stepped_ms > self._settings.partition_lease_ms:
            return
        beaten = await self._store.control.beat(self._document(), self.owner)
        if self.partitions.see(beaten.live):
            self.wake()

    def _document(self) -> bytes:
        name, _, boot = self.owner.partition("+")
        return model.encode_beat(model.DispatcherBeat(name, boot, self.waiting.by_pool(), self._index.version))

    async def _look(self) -> None:
        """The sweep. What the nodes were believed to hold is forgotten too: it grows stale."""
        self._loads.clear()
        self._refusals.retry()
        self._refusals.add(self._sweep.unservable(self._index, _now_ms()))
        if self._reader is not None:
            await self._sweep.look(self._index, self._store.reads, self._reader)

    def wake(self) -> None:
        """Let a step that waits for work end now."""
        if self._reader is not None:
            self._reader.nudge()


def _now_ms() -> float:
    return time.monotonic() * 1000
