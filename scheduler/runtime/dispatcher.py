"""The dispatcher shell: read -> decode -> place -> reserve -> settle. One task; no lock, no round trip a job.

A batch costs one blocking read (made ahead by reader.py) and one script call. Sessions that are new to this
dispatcher cost one read of their bindings a batch, and jobs that find no room one question to `open`. What this shell
remembers of a partition is dropped when the partition is lost or gained.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import msgspec

from scheduler import keys, model
from scheduler.config import Settings
from scheduler.loop import end_tasks
from scheduler.runtime import intake, placement
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Class, Job
from scheduler.runtime.reader import Batch, Reader
from scheduler.runtime.snapshots import Snapshots
from scheduler.runtime.waiting import Waiter, Waiting
from scheduler.session.bindings import Binding, Bindings, parse, prefix
from scheduler.store.connection import ScriptFailed
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


class _Try(msgspec.Struct, frozen=True):
    """One job of a call. waiter: None for a newcomer. placement: None when it is held back from this call."""

    job: Job
    wanted: Class
    waiter: Waiter | None
    placement: placement.Placement | None


class Dispatcher:
    """One dispatcher of a cell. `open` first, then `run_once` again and again, then `close`.

    Args: store; settings; layout, as stored; owner, name+boot, unique to this life of the process; random, for
    drawing nodes.
    """

    def __init__(
        self, store: Store, settings: Settings, layout: model.Layout, owner: str, random: Random | None = None
    ) -> None:
        self.owner = owner
        self.report = Report()
        self.waiting = Waiting()
        self.bindings = Bindings(settings.sessions_max, settings.session_ttl_ms)
        self.snapshots = Snapshots(store.control, self._nudge)
        self._store = store
        self._settings = settings
        self._layout = layout
        self._random = random or Random()
        self._index: Index = self.snapshots.index
        self._epochs: dict[int, int] = {}
        self._loads: dict[str, int] = {}
        self._refused: list[model.RejectItem] = []
        self._no_node_since: dict[Class, float] = {}
        self._reader: Reader | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._due = {"claim": 0.0, "beat": 0.0, "sweep": 0.0}
        self._clock_offset_ms = 0.0

    async def open(self) -> None:
        """Take the cursor of `freed`, the snapshot and the partitions, and begin to read ahead."""
        freed_cursor = await self._store.reads.last_id(self._store.cell.keys.freed)
        self._reader = Reader(self._store.reads, self._settings, freed_cursor)
        await self.snapshots.load()
        await self._keep()
        self._tasks = [asyncio.create_task(self._reader.run()), asyncio.create_task(self.snapshots.run())]

    async def close(self) -> None:
        """Give up every partition at once; what was read and not placed stays in the intake."""
        if self._reader is not None:
            self._reader.stop()
        self.snapshots.stop()
        await end_tasks(self._tasks)
        owned = list(self._epochs)
        self._epochs.clear()
        if owned:
            await self._store.cell.claim(self.owner, (), owned)

    async def run_once(self) -> Report:
        """One step: keep what is ours, take the next batch, and place what can be placed. Returns the counts so far."""
        assert self._reader is not None
        await self._keep()
        batch = await self._reader.next((min(self._due.values()) - time.monotonic()) * 1000)
        self._swap()
        newcomers = self._decode(batch)
        self._wake(batch)
        await self._try_waiting()
        for start in range(0, len(newcomers), self._settings.batch_max):
            await self._try_newcomers(newcomers[start : start + self._settings.batch_max])
            await self._try_waiting()
        await self._reject_refused()
        self._reader.paused = len(self.waiting) >= self._settings.waiting_max
        self.report.waiting = len(self.waiting)
        self.report.sweep_hits = self.waiting.sweep_hits
        return self.report

    # ---- decode, and what the world tells ----

    def _decode(self, batch: Batch) -> list[Job]:
        jobs = []
        now_ms = self._server_ms()
        for entry in batch.entries:
            decoded = intake.decode(entry, self._store.cell.cell, self._settings)
            if isinstance(decoded, model.RejectItem):
                self._refused.append(decoded)
            elif decoded.deadline_at_ms is not None and decoded.deadline_at_ms <= now_ms:
                self._refused.append(_expired(decoded))
            else:
                jobs.append(decoded)
        self.report.read += len(batch.entries)
        return jobs

    def _wake(self, batch: Batch) -> None:
        for node in batch.freed:
            if node in self._loads:
                self._loads[node] = max(0, self._loads[node] - 1)
        self.waiting.wake(batch.freed, self._index.serves)
        if batch.gap:
            self.waiting.ask_all()

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
        jobs = [job for job in jobs if self._epochs.get(job.partition) == job.epoch]
        await self._load_bindings(jobs)
        now_ms = _now_ms()
        tries: list[_Try] = []
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
            tries.append(_Try(job, wanted, None, placed))
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

    def _place_waiter(self, waiter: Waiter) -> _Try | None:
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
        return _Try(waiter.job, waiter.wanted, waiter, found)

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

    async def _reserve(self, tries: list[_Try]) -> None:
        """One script call for those that have candidates; then settle all, in their order."""
        now_ms = _now_ms()
        sent = [each for each in tries if each.placement is not None]
        items = [self._item(each, now_ms) for each in sent]
        answers: dict[int, model.Reserved | model.Refused] = {}
        if items:
            answers = {id(each): answer for each, answer in zip(sent, await self._call(items), strict=True)}
        for each in tries:
            self._settle(each, answers.get(id(each)), now_ms)
        await self._reject_refused()

    def _item(self, each: _Try, now_ms: float) -> model.ReserveItem:
        job, found = each.job, each.placement
        assert found is not None
        binding, fresh = self.bindings.get(job.session_id, now_ms)
        wanted = each.wanted
        stored = prefix(wanted.pool, job.src_lang, job.tgt_lang)
        if job.avoid and binding is not None and binding.node not in found.candidates:
            stored = ""  # an attempt that keeps away from its node does not move the session
        same = binding is not None and binding.pool == wanted.pool and binding.fits(job.src_lang, job.tgt_lang)
        return model.ReserveItem(
            partition=job.partition,
            epoch=job.epoch,
            entry_id=job.entry_id,
            job_id=job.job_id,
            session_id=job.session_id,
            tenant_id=job.tenant_id,
            reply_to=job.reply_to,
            pool=wanted.pool,
            candidates=found.candidates,
            choice=found.choice,
            binding=stored,
            bound_node=binding.node if binding is not None and same and fresh else "",
        )

    async def _call(self, items: list[model.ReserveItem]) -> list[model.Reserved | model.Refused]:
        """Reserve; after an error inside the script each job alone, so that only the one at fault suffers."""
        self.report.calls += 1
        index = self._index
        try:
            return await self._store.cell.reserve(items, index.boots, index.pools, index.version)
        except ScriptFailed as error:
            if len(items) > 1:
                logger.error("a batch of %d jobs failed, each is tried alone: %s", len(items), error)
                return [answer for item in items for answer in await self._call([item])]
            self._refused.append(_failed(items[0], str(error)))
            return [model.Refused("gone")]

    def _settle(self, each: _Try, answer: model.Reserved | model.Refused | None, now_ms: float) -> None:
        job, waiter = each.job, each.waiter
        if self._epochs.get(job.partition) != job.epoch:
            return
        if isinstance(answer, model.Reserved):
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
            self._lose(job.partition)
        else:
            if answer.why == "job_id_taken":
                taken = keys.generated_job_id(self._store.cell.cell, job.partition, job.entry_id)
                detail = f"job_id {job.job_id!r} belongs to another session"
                self._refused.append(intake.refuse_job(job, "job_id_taken", detail, taken))
            elif answer.why == "cancelling":
                self._refused.append(intake.refuse_job(job, "cancelled", "cancelled before it was placed"))
            if waiter is not None:
                self.waiting.leave(waiter)

    def _placed(self, each: _Try, answer: model.Reserved, now_ms: float) -> None:
        job = each.job
        self.report.placed += 1
        if answer.used >= 0:
            self._loads[answer.node] = answer.used
            binding, _ = self.bindings.get(job.session_id, now_ms)
            keeps = (
                job.avoid and binding is not None and each.placement and binding.node not in each.placement.candidates
            )
            if not keeps:
                bound = Binding(each.wanted.pool, job.src_lang, job.tgt_lang, answer.node)
                self.bindings.wrote(job.session_id, bound, now_ms)
        if each.waiter is not None:
            self.waiting.leave(each.waiter, placed=True)

    async def _reject_refused(self) -> None:
        """End what was refused. What cannot be ended now is kept and tried again."""
        refused, self._refused = self._refused, []
        for start in range(0, len(refused), self._settings.batch_max):
            batch = refused[start : start + self._settings.batch_max]
            batch = [item for item in batch if self._epochs.get(item.partition) == item.epoch]
            if not batch:
                continue
            layout = self._layout
            answers = await self._store.cell.reject(batch, layout.retention_ms, layout.dead_retention_ms)
            for item, answer in zip(batch, answers, strict=True):
                if answer == "busy":
                    logger.error("job %s cannot be ended (%s): no stream takes it", item.job_id, item.reason)
                    self._refused.append(item)
                elif answer == "fenced":
                    self._lose(item.partition)
                else:
                    self.report.rejected += 1
                    logger.info("job %s is rejected: %s: %s", item.job_id, item.reason, item.detail)

    # ---- what runs on timers ----

    async def _keep(self) -> None:
        """Claims, heartbeats and the sweep, each when it is due."""
        settings = self._settings
        if self._is_due("claim", settings.partition_lease_ms / 3):
            await self._claim()
        if self._is_due("beat", settings.heartbeat_ms):
            await self._beat()
        if self._is_due("sweep", SWEEP_MS):
            await self._sweep()

    def _is_due(self, what: str, every_ms: float) -> bool:
        now = time.monotonic()
        if now < self._due[what]:
            return False
        self._due[what] = now + every_ms / 1000
        return True

    async def _claim(self) -> None:
        now_ms, answers = await self._store.cell.claim(self.owner, range(self._layout.partitions))
        self._clock_offset_ms = now_ms - _now_ms()
        for answer in answers:
            if isinstance(answer, model.HeldByOther):
                if answer.partition in self._epochs:
                    self._lose(answer.partition)
            elif self._epochs.get(answer.partition) != answer.epoch:
                self._lose(answer.partition)
                self._epochs[answer.partition] = answer.epoch
                assert self._reader is not None
                self._reader.own(answer.partition, answer.epoch)

    def _lose(self, partition: int) -> None:
        """Forget everything about a partition; its sessions are another owner's, or are read anew."""
        if self._epochs.pop(partition, None) is None:
            return
        logger.info("partition %d is not ours any more", partition)
        if self._reader is not None:
            self._reader.drop(partition)
        self.waiting.drop_partition(partition)
        self._refused = [item for item in self._refused if item.partition != partition]
        self.bindings.forget(
            [session for session in self.bindings.sessions() if self._partition_of(session) == partition]
        )
        self._due["claim"] = 0.0

    async def _beat(self) -> None:
        name, _, boot = self.owner.partition("+")
        beat = model.DispatcherBeat(name, boot, self.waiting.by_pool(), self._index.version)
        await self._store.control.beat(model.encode_beat(beat), self.owner)

    async def _sweep(self) -> None:
        """The safety net: deadlines, classes that nobody can serve, and room that no event told of."""
        self._loads.clear()
        overdue = self.waiting.overdue(self._server_ms())
        self._refuse_waiters(overdue, lambda waiter: _expired(waiter.job))
        self._refuse_unservable()
        settled = [wanted for wanted in self.waiting.settled_classes() if self._index.eligible(wanted)]
        names = list(dict.fromkeys(node.id for wanted in settled for node in self._index.eligible(wanted)))
        if not names or self._reader is None:
            return
        are_open = dict(zip(names, await self._store.reads.are_open(names), strict=True))
        if not any(are_open.values()):
            return
        told = await self._reader.peek_freed()
        for wanted in settled:
            untold = [node.id for node in self._index.eligible(wanted) if are_open[node.id] and node.id not in told]
            if untold:
                logger.debug("the sweep found room for %s on %s", wanted, untold)
                self.waiting.wake_class(wanted, untold, swept=True)

    def _refuse_unservable(self) -> None:
        """Jobs of classes that had no eligible node for the time of grace."""
        now_ms = _now_ms()
        unservable = [wanted for wanted in self.waiting.classes() if not self._index.eligible(wanted)]
        self._no_node_since = {wanted: self._no_node_since.get(wanted, now_ms) for wanted in unservable}
        for wanted, since_ms in self._no_node_since.items():
            if now_ms - since_ms >= self._settings.no_node_grace_ms:
                self._refuse_waiters(self.waiting.parked(wanted), lambda waiter: _no_node(waiter.job))

    def _refuse_waiters(self, waiters: Sequence[Waiter], refuse: Callable[[Waiter], model.RejectItem]) -> None:
        for waiter in waiters:
            self._refused.append(refuse(waiter))
            self.waiting.leave(waiter)

    def _partition_of(self, session_id: str) -> int:
        return keys.partition_of(session_id, self._layout.partitions, self._layout.cells)

    def _server_ms(self) -> int:
        return int(_now_ms() + self._clock_offset_ms)

    def _nudge(self) -> None:
        if self._reader is not None:
            self._reader.nudge()


def _now_ms() -> float:
    return time.monotonic() * 1000


def _expired(job: Job) -> model.RejectItem:
    return intake.refuse_job(job, "expired", f"its deadline passed at {job.deadline_at_ms} (server time, ms)")


def _no_node(job: Job) -> model.RejectItem:
    languages = f"{job.src_lang}:{job.tgt_lang}" if job.src_lang else "no languages"
    features = f", features {', '.join(job.features)}" if job.features else ""
    return intake.refuse_job(job, "no_compatible_node", f"no node serves {languages}{features}")


def _failed(item: model.ReserveItem, error: str) -> model.RejectItem:
    return model.RejectItem(
        item.partition,
        item.epoch,
        item.entry_id,
        item.job_id,
        item.session_id,
        item.tenant_id,
        item.reply_to,
        "invalid",
        error,
    )
