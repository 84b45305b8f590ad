"""Reads ahead: the next entries are read and decoded while the last batch is placed.

One blocking XREAD reads the intakes and `freed`; where bindings must be known, one more call reads those that are not.
All that was read during a step is one batch. When a read takes too long, the next ones are bounded by bytes
(`store/paced_reads.py`).

Reading does not change the streams, so nothing is lost with a batch that is thrown away: the next owner reads from the
start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from redis.exceptions import TimeoutError as RedisTimeoutError

from scheduler.clock import Clock
from scheduler.config import Settings
from scheduler.errors import SchedulerError, ServerRefused, ServerUnavailable
from scheduler.loop import end_tasks
from scheduler.protocol.messages import Entry, RejectItem
from scheduler.runtime import intake
from scheduler.runtime.intake import Job
from scheduler.session.bindings import Bindings
from scheduler.store.meanings import is_temporary
from scheduler.store.paced_reads import PacedReads
from scheduler.store.reads import Part, Reads, StreamEntry

logger = logging.getLogger("scheduler.dispatcher")

STALL_MS: Final = 1_000
DECODED_AT_ONCE_MAX: Final = 32
_PAUSE_AFTER_ERROR_MS: Final = 100


class Batch(msgspec.Struct, frozen=True):
    """What was read since the last batch.

    jobs: in the order of their partitions.
    refused: entries that are no jobs.
    bindings: as stored, of sessions that were not known.
    freed: nodes that got room.
    limits: those that got room.
    handed_over: whether a dispatcher gave partitions up.
    gap: whether events of `freed` may have been missed.
    """

    jobs: tuple[Job, ...] = ()
    refused: tuple[RejectItem, ...] = ()
    bindings: dict[str, bytes | None] = {}
    freed: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    handed_over: bool = False
    gap: bool = False


class PendingEvents(msgspec.Struct, frozen=True):
    """What the events of `freed` name that are in the stream and not handed over yet."""

    nodes: frozenset[str]
    limits: frozenset[str]


NOTHING: Final = Batch()


class Reader:
    """Cursors over the owned partitions and over `freed`, and the batch in hand that was not taken yet.

    Args:
        reads: of the cell.
        paced: reads of the cell whose answers can be large.
        settings: of the dispatcher.
        clock: the process's own.
        freed_cursor: taken before the first reserve.
        bindings: that are remembered.
        work: is set when something is in hand. It may be set from outside too, so that `next` returns.

    doubted: whether a read failed, after which the server may have less than it had.
    reads_bindings: whether bindings that are not remembered are read with the jobs.
    """

    def __init__(
        self,
        reads: Reads,
        paced: PacedReads,
        settings: Settings,
        clock: Clock,
        freed_cursor: str,
        bindings: Bindings,
        work: asyncio.Event | None = None,
    ) -> None:
        self._reads = reads
        self._paced = paced
        self._settings = settings
        self._clock = clock
        self._known = bindings
        self._epochs: dict[int, int] = {}
        self._cursors: dict[int, str] = {}
        self._freed = freed_cursor
        self._handed_freed = freed_cursor
        self._hand = NOTHING
        self._hand_freed = freed_cursor
        self._work = work or asyncio.Event()
        self._taken = asyncio.Event()
        self._reading: set[asyncio.Task[dict[str, Part]]] = set()
        self._read_or_changed: asyncio.Future[None] | None = None
        self._heard_at_ms = clock.ms()
        self._missed = False
        self._stopping = False
        self.doubted = False
        self.reads_bindings = True

    def own(self, partition: int, epoch: int) -> None:
        """Read a partition, from its start when the epoch is new. A read that blocks gives way to one with it."""
        if self._epochs.get(partition) != epoch:
            self._epochs[partition] = epoch
            self._cursors[partition] = "0"
            _wake(self._read_or_changed)

    def drop(self, partition: int) -> None:
        """Stop reading a partition."""
        self._epochs.pop(partition, None)
        self._cursors.pop(partition, None)

    def change(self, dropped: Iterable[int], gained: Mapping[int, int]) -> None:
        """Stop reading the partitions in dropped, and read those in gained (partition -> epoch) from their start."""
        for partition in dropped:
            self.drop(partition)
        for partition, epoch in gained.items():
            self.own(partition, epoch)

    def cursors(self) -> dict[str, str]:
        """Up to where each stream was read: the intakes of our partitions, and `freed`."""
        keys = self._reads.keys
        return {keys.jobs(partition): cursor for partition, cursor in self._cursors.items()} | {keys.freed: self._freed}

    def restart_freed(self, last_id: str) -> None:
        """Read `freed` from this id on; earlier events may have been missed."""
        self._freed = self._hand_freed = self._handed_freed = last_id
        self._missed = True
        _wake(self._read_or_changed)

    def stop(self) -> None:
        """End after the read that is under way."""
        self._stopping = True

    def nudge(self) -> None:
        """Let `next` return now, with nothing if nothing was read."""
        self._work.set()

    async def next(self, timeout_ms: float) -> Batch:
        """The batch in hand, or the one that comes within `timeout_ms`; after that an empty one."""
        if timeout_ms <= 0:
            await asyncio.sleep(0)
        elif not self._work.is_set():
            late = asyncio.get_running_loop().call_later(timeout_ms / 1000, self.nudge)
            try:
                await self._work.wait()
            finally:
                late.cancel()
        return self.next_ready() or NOTHING

    def next_ready(self) -> Batch | None:
        """The batch in hand, None when it is empty."""
        batch, self._hand = self._hand, NOTHING
        self._handed_freed = self._hand_freed
        self._work.clear()
        self._taken.set()
        return batch if batch is not NOTHING else None

    async def _put(self, batch: Batch) -> None:
        """Add what was read to the batch in hand, once the two together are no larger than one read may be."""
        while self._hand.jobs and len(self._hand.jobs) + len(batch.jobs) > self._settings.read_ahead_max:
            self._taken.clear()
            await self._taken.wait()
        self._hand = batch if self._hand is NOTHING else _both(self._hand, batch)
        self._hand_freed = self._freed
        self._work.set()

    async def peek_freed(self) -> PendingEvents:
        """The events that are in the stream but not handed over yet, for the sweep."""
        key = self._reads.keys.freed
        read = await self._reads.streams({key: self._handed_freed}, count=self._settings.freed_max, block_ms=None)
        events = read.get(key, [])
        return PendingEvents(frozenset(_named(b"nodes", events)), frozenset(_named(b"limits", events)))

    async def again(self, cursors: Mapping[int, str]) -> tuple[list[Job], dict[int, str | None]]:
        """Read entries again. They are as many as one call takes, because the step waits until they are decoded.
        What is read ahead stays as it is.

        cursors: partition -> the id after which to read.
        Returns: the jobs, and to which id each partition was read, None when it had no more entries.
        """
        streams = {self._reads.keys.jobs(partition): partition for partition in cursors}
        count = max(1, self._settings.batch_max // max(1, len(cursors)))
        starts = {stream: cursors[partition] for stream, partition in streams.items()}
        read = await self._paced.read(starts, count, None)
        more = {
            streams[stream]: part.last_id or cursors[streams[stream]]
            for stream, part in read.items()
            if not part.is_end
        }
        # Entries of which only the head is read were refused when they were new.
        jobs, _ = await self._decode(self._entries(read, streams, self._epochs))
        return list(jobs), {partition: more.get(partition) for partition in cursors}

    async def run(self) -> None:
        """Read until `stop`."""
        try:
            await self._run()
        finally:
            await end_tasks(list(self._reading))

    async def _run(self) -> None:
        is_failing = has_complained = False
        while not self._stopping:
            try:
                batch = await self._read()
            except Exception as error:
                # These are logged by the store.
                is_logged = isinstance(error, ServerUnavailable | ServerRefused) or is_temporary(error)
                level = logging.DEBUG if has_complained or is_logged else logging.ERROR
                is_expected = is_logged or isinstance(error, SchedulerError)
                logger.log(level, "reading the intake failed: %s", _in_words(error), exc_info=not is_expected)
                has_complained = has_complained or not is_logged
                self._missed = is_failing = self.doubted = True
                self.nudge()
                await asyncio.sleep(_PAUSE_AFTER_ERROR_MS / 1000)
                continue
            if is_failing:
                logger.log(logging.INFO if has_complained else logging.DEBUG, "the intake is read again")
                is_failing = has_complained = False
            if batch != NOTHING:
                await self._put(batch)

    async def _read(self) -> Batch:
        keys = self._reads.keys
        epochs = dict(self._epochs)
        partitions = {keys.jobs(partition): partition for partition in epochs}
        cursors = {stream: self._cursors[partition] for stream, partition in partitions.items()}
        cursors[keys.freed] = self._freed
        count = max(1, self._settings.read_ahead_max // max(1, len(partitions)))
        read = await self._wait_for_entries(cursors, count)
        # Looked at after the read, because a process is most likely paused while it blocks in one.
        now_ms = self._clock.ms()
        if now_ms - self._heard_at_ms > STALL_MS:
            self._missed = True
        self._heard_at_ms = now_ms

        freed = read.pop(keys.freed, None)
        events = freed.entries if freed else []
        if freed and not freed.is_end:
            events += await self._rest_of(events)
        entries = self._entries(read, partitions, epochs)
        jobs, refused = await self._decode(entries)
        refused += self._refuse_heads(read, partitions, epochs)
        bindings = await self._bindings(jobs)

        # The cursors move only now, so that after a failure all of it is read again. That of a partition which was lost
        # or claimed anew meanwhile stays: what was read of it has the old epoch.
        for stream, part in read.items():
            partition = partitions[stream]
            if self._epochs.get(partition) == epochs[partition] and self._cursors[partition] == cursors[stream]:
                self._cursors[partition] = part.last_id or cursors[stream]
        if events and self._freed == cursors[keys.freed]:
            self._freed = events[-1][0]
        gap, self._missed = self._missed, False
        if not entries and not refused and not events and not gap:
            return NOTHING
        handed_over = any(b"partitions" in fields for _, fields in events)
        nodes, limits = _named(b"nodes", events), _named(b"limits", events)
        return Batch(jobs, refused, bindings, tuple(nodes), tuple(limits), handed_over, gap)

    async def _wait_for_entries(self, cursors: Mapping[str, str], count: int) -> dict[str, Part]:
        """Read, and block while there is nothing. Returns: nothing, when a partition was gained meanwhile. The read
        then ends by itself beside the next one. It is not cancelled, because the client may go on reading all the same.
        """
        until = self._read_or_changed = asyncio.get_running_loop().create_future()
        read = asyncio.create_task(self._read_and_wake(cursors, count, until))
        self._reading.add(read)
        read.add_done_callback(self._reading.discard)
        await until
        if read.done():
            return read.result()
        read.add_done_callback(_ignore)
        return {}

    async def _read_and_wake(
        self, cursors: Mapping[str, str], count: int, until: asyncio.Future[None]
    ) -> dict[str, Part]:
        """Read, and resolve `until`. A task that waited for the read would run one turn of the event loop later."""
        try:
            return await self._paced.read(cursors, count, first=self._reads.keys.freed)
        finally:
            _wake(until)

    def _entries(
        self, read: Mapping[str, Part], partitions: Mapping[str, int], epochs: Mapping[int, int]
    ) -> list[Entry]:
        return [
            Entry(partitions[stream], epochs[partitions[stream]], identifier, fields)
            for stream, part in read.items()
            for identifier, fields in part.entries
        ]

    def _refuse_heads(
        self, read: Mapping[str, Part], partitions: Mapping[str, int], epochs: Mapping[int, int]
    ) -> tuple[RejectItem, ...]:
        """A refusal of each entry that is too large to be read."""
        return tuple(
            [
                intake.refuse_head(
                    Entry(partitions[stream], epochs[partitions[stream]], head.id, head.fields),
                    head,
                    self._reads.keys.cell,
                    self._settings,
                )
                for stream, part in read.items()
                for head in part.heads
            ]
        )

    async def _rest_of(self, events: list[StreamEntry]) -> list[StreamEntry]:
        """The events after a read of `freed` that was full. The stream is short, so events may be gone before they are
        read; none are while the entry that was read last is still there.
        """
        rest, whole = await self._reads.rest_of(
            self._reads.keys.freed, self._freed, events[-1][0] if events else self._freed, self._settings.freed_max
        )
        self._missed = self._missed or not whole
        return rest

    async def _decode(self, entries: list[Entry]) -> tuple[tuple[Job, ...], tuple[RejectItem, ...]]:
        """Decode entries. One that cannot be decoded is refused alone. Other tasks have their turn meanwhile."""
        cell, settings = self._reads.keys.cell, self._settings
        jobs, refused = [], []
        times_ms: tuple[int, float] | None = None
        for number, entry in enumerate(entries):
            if number % DECODED_AT_ONCE_MAX == DECODED_AT_ONCE_MAX - 1:
                await asyncio.sleep(0)
            try:
                decoded = intake.decode(entry, cell, settings)
            except Exception as error:
                logger.exception("entry %s of partition %d cannot be decoded", entry.id, entry.partition)
                decoded = intake.refuse(entry, cell, "invalid", f"it cannot be decoded: {error!r}")
            if isinstance(decoded, Job):
                if decoded.deadline_at_ms is not None:
                    # Asked after the read, and only if a job has a deadline.
                    times_ms = times_ms or (await self._reads.now_ms(), self._clock.ms())
                    decoded = intake.by_own_clock(decoded, entry, *times_ms)
                jobs.append(decoded)
            else:
                refused.append(decoded)
        return tuple(jobs), tuple(refused)

    async def _bindings(self, jobs: tuple[Job, ...]) -> dict[str, bytes | None]:
        """The stored bindings of sessions that are not known. As we own their partitions, no other process changes them
        after this read. Once memory is full, our own changes may be forgotten before the batch is placed: then bindings
        are read when it is.
        """
        if len(self._known) >= self._settings.sessions_max or not self.reads_bindings:
            return {}
        unknown = list(dict.fromkeys(job.session_id for job in jobs if job.session_id not in self._known))
        return dict(zip(unknown, await self._reads.bindings(unknown), strict=True)) if unknown else {}


def _in_words(error: Exception) -> str:
    """What a log says of an error: some have no text of their own."""
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "the server did not answer in time"
    return str(error) or type(error).__name__


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _ignore(read: asyncio.Task[dict[str, Part]]) -> None:
    """Take the outcome of a read that is not waited for any more, or asyncio would log its error."""
    if not read.cancelled():
        read.exception()


def _both(first: Batch, second: Batch) -> Batch:
    """Two batches as one."""
    return Batch(
        first.jobs + second.jobs,
        first.refused + second.refused,
        first.bindings | second.bindings,
        first.freed + second.freed,
        first.limits + second.limits,
        first.handed_over or second.handed_over,
        first.gap or second.gap,
    )


def _named(field: bytes, events: list[StreamEntry]) -> dict[str, None]:
    """The names in a field of events, where they stand with spaces between; each once, in order."""
    return {name: None for _, fields in events for name in fields.get(field, b"").decode(errors="replace").split()}
