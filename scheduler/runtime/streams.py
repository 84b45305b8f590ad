"""Streams that take no entry any more, because somebody wrote one with an id that no clock gives: found, and rebuilt.

The highest id of a stream never falls, also when its entry is deleted. So the stream is copied beside itself, in calls
that are short, and the copy takes its place in the step that sees that nothing is missing. An intake is rebuilt by its
owner, who claims it anew after that and reads it from the start; inboxes, parked and dead bodies by the reapers. Feeds
and `freed` are made anew by the scripts that write them, an inbox that is short too, and the leader's streams by it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from scheduler.clock import Clock
from scheduler.keys import is_absurd
from scheduler.runtime.partitions import Partitions
from scheduler.store.cell import Cell
from scheduler.store.reads import Reads, position

logger = logging.getLogger("scheduler.streams")

LOOK_MS: Final = 1_000
CALLS_MAX: Final = 10_000  # of one try to rebuild a stream, which goes on with the next look
MARGIN_MS: Final = 10_000  # ids that a stream gives between two looks are no further ahead
INBOXES_MIN: Final = 20  # that one look asks for at least; of more, some have their turn a second later
INBOXES_MAX: Final = 1_000
CALL_MS: Final = 10  # that a call should take, and with it the server: it makes two bodies of each stream


async def rebuild(
    cell: Cell, stream: str, last_id: str, field: str, hold: tuple[int, int] | None = None, above_ms: int = 0
) -> bool:
    """Rebuild a stream. Any number of processes may do so at once, and each goes on where the last one stopped.

    Args: cell; stream; last_id, what is absurd; field, of a record, that names an entry of the stream; hold,
    (partition, epoch) of an intake; above_ms, above all ids that it gave before, 0 for unknown. Returns: whether it
    takes entries again.
    """
    logger.warning("stream %s has the id %s, which no clock gives, and takes no entry: it is rebuilt", stream, last_id)
    job_ids: tuple[bytes, ...] = ()
    for _ in range(CALLS_MAX):
        found = await cell.rebuild(stream, field, job_ids, hold, above_ms)
        if found.answer == "records":
            job_ids = tuple(dict.fromkeys((*job_ids, *found.job_ids)))  # it names those that are missing
        elif found.answer == "rebuilt":
            kept, renamed = found.entries, found.renamed
            logger.warning("stream %s takes entries again: %d kept their ids, %d have new ones", stream, kept, renamed)
            return True
        elif found.answer != "copying":
            return found.answer == "open"
    return False


class Intakes:
    """Looks after the partitions that a dispatcher holds, beside its steps."""

    def __init__(self, cell: Cell, reads: Reads, partitions: Partitions) -> None:
        self._cell = cell
        self._reads = reads
        self._partitions = partitions
        self._rebuilt: set[int] = set()
        self._above_ms: dict[int, int] = {}

    async def look(self) -> bool:
        """Rebuild what takes no entry any more. Returns whether something is to be claimed anew."""
        held = sorted(self._partitions.epochs.items())
        streams = [self._cell.keys.jobs(partition) for partition, _ in held]
        last_ids = await self._reads.last_ids(streams) if streams else []
        now_ms = self._partitions.server_ms()
        for hold, stream, last_id in zip(held, streams, last_ids, strict=True):
            partition = hold[0]
            if not last_id:
                continue
            if not is_absurd(last_id, now_ms):
                self._above_ms[partition] = max(self._above_ms.get(partition, 0), position(last_id)[0] + MARGIN_MS)
            elif await rebuild(self._cell, stream, last_id, "entry", hold, self._above_ms.get(partition, 0)):
                self._rebuilt.add(partition)
        # Whoever holds it meanwhile may give more.
        self._above_ms = {each: ms for each, ms in self._above_ms.items() if each in self._partitions.epochs}
        return bool(self._rebuilt)

    def begin_anew(self) -> None:
        """Claim anew what was rebuilt: what was read of it may have other ids now, and cursors stand above them."""
        rebuilt, self._rebuilt = frozenset(self._rebuilt), set()
        if rebuilt:
            self._partitions.begin_anew(rebuilt)


class Streams:
    """A reaper's look at what has no owner: inboxes, parked and dead bodies."""

    def __init__(self, cell: Cell, reads: Reads, clock: Clock) -> None:
        self._cell = cell
        self._reads = reads
        self._clock = clock
        self._due_ms = 0.0
        self._position = 0
        self._at_once = INBOXES_MIN

    async def look(self, nodes: Sequence[str], now_ms: int) -> None:
        """Rebuild what takes no entry any more, once a second; of the inboxes a part, as many as are told fast.

        Args: nodes, all that there are, in an order that stays; now_ms, of the server.
        """
        if self._clock.ms() < self._due_ms:
            return
        self._due_ms = self._clock.ms() + LOOK_MS
        if self._position >= len(nodes):
            self._position = 0
        chosen = nodes[self._position : self._position + self._at_once]
        self._position += self._at_once
        keys = self._cell.keys
        fields = {keys.inbox(node): "assignment" for node in chosen} | {keys.parked: "parked_id", keys.dead: "dead_id"}
        asked_at_ms = self._clock.ms()
        last_ids = await self._reads.last_ids(list(fields))
        is_long = self._clock.ms() - asked_at_ms > CALL_MS
        self._at_once = max(self._at_once // 2, INBOXES_MIN) if is_long else min(2 * self._at_once, INBOXES_MAX)
        for (stream, field), last_id in zip(fields.items(), last_ids, strict=True):
            if is_absurd(last_id, now_ms):
                await rebuild(self._cell, stream, last_id, field)
