"""Looks after the intakes of a dispatcher's partitions: one that takes no entries any more is rebuilt."""

from __future__ import annotations

from typing import Final

from scheduler.protocol.keys import is_absurd
from scheduler.runtime.partitions import Partitions
from scheduler.store.cell import Cell
from scheduler.store.reads import Reads, position
from scheduler.store.rebuilding import rebuild

MARGIN_MS: Final = 10_000  # the ids that a stream gives between two looks are at most so far ahead


class Intakes:
    """Looks after the intakes of a dispatcher's partitions, beside its steps.

    rebuilt: partitions whose intake was rebuilt, which are to be claimed anew.
    """

    def __init__(self, cell: Cell, reads: Reads, partitions: Partitions) -> None:
        self._cell = cell
        self._reads = reads
        self._partitions = partitions
        self.rebuilt: set[int] = set()
        self._above_ms: dict[int, int] = {}

    async def look(self) -> bool:
        """Rebuild intakes that take no entries any more. Returns: whether partitions are to be claimed anew."""
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
                self.rebuilt.add(partition)
        # While another dispatcher owns a partition, its intake may give higher ids.
        epochs = self._partitions.epochs
        self._above_ms = {partition: ms for partition, ms in self._above_ms.items() if partition in epochs}
        return bool(self.rebuilt)

    def begin_anew(self) -> None:
        """Claim anew what was rebuilt: its entries may have other ids now, below the cursor."""
        rebuilt, self.rebuilt = frozenset(self.rebuilt), set()
        self._partitions.begin_anew(rebuilt)
