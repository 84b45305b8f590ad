"""Jobs that are to be ended by the dispatcher itself: refused, past their deadline, served by nobody, cancelled.

Collected while a batch is placed, ended by `reject.lua` afterwards. What cannot be ended now is kept for the next
sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec

from scheduler.clock import Clock
from scheduler.protocol import keys, messages
from scheduler.repeats import Repeats
from scheduler.runtime.partitions import Partitions
from scheduler.store.cell import Cell
from scheduler.store.connection import or_each_alone
from scheduler.store.cutting import cut

logger = logging.getLogger("scheduler.dispatcher")

BURIED_BYTES_MAX: Final = (
    32 * 2**20
)  # of entries in a call: the server reads each whole to cut it, some 100 ms for these


class Refusals:
    """What is refused and has not ended yet.

    Args: cell; partitions, whose epochs fence each call; layout, for the retentions; batch_max, entries of one call;
    clock, the process's own.
    """

    def __init__(
        self, cell: Cell, partitions: Partitions, layout: messages.Layout, batch_max: int, clock: Clock
    ) -> None:
        self.ended = 0
        self._repeats = Repeats(logger, clock)
        self._cell = cell
        self._partitions = partitions
        self._layout = layout
        self._batch_max = batch_max
        self._refused: list[messages.RejectItem] = []
        self._stuck: list[messages.RejectItem] = []

    def add(self, items: Iterable[messages.RejectItem]) -> None:
        """To be ended by the next `end`."""
        self._refused += items

    def entries(self) -> set[tuple[int, str]]:
        """(partition, entry id) of what has not ended yet."""
        return {(item.partition, item.entry_id) for item in self._refused + self._stuck}

    def retry(self) -> None:
        """What could not be ended is tried again by the next `end`."""
        self._repeats.step()
        self._refused += self._stuck
        self._stuck = []

    def forget(self, partitions: Collection[int]) -> None:
        """Drop what belongs to partitions that are not ours any more."""
        self._refused = [item for item in self._refused if item.partition not in partitions]
        self._stuck = [item for item in self._stuck if item.partition not in partitions]

    async def end(self) -> None:
        """End what was added so far."""
        refused, self._refused = self._refused, []
        for part in cut(refused, lambda item: item.size_bytes, self._batch_max, BURIED_BYTES_MAX):
            batch = [item for item in part if self._partitions.holds(item.partition, item.epoch)]
            if batch:
                answers = await or_each_alone(
                    batch, self._reject, lambda _: "broken", own_key=lambda item: self._cell.keys.job(item.job_id)
                )
                for item, answer in zip(batch, answers, strict=True):
                    self._settle(item, answer)

    async def _reject(self, batch: Sequence[messages.RejectItem]) -> list[str]:
        layout = self._layout
        return await self._cell.reject(batch, layout.retention_ms, layout.dead_retention_ms, self._partitions.life)

    def _settle(self, item: messages.RejectItem, answer: str) -> None:
        generated = keys.generated_job_id(self._cell.cell, item.partition, item.entry_id)
        if answer == "fenced":
            self._partitions.lose(item.partition)
        elif answer in ("duplicate", "broken") and item.job_id != generated:
            # The record under its id is another entry's, or unreadable: it ends under an id of its own.
            self._refused.append(msgspec.structs.replace(item, job_id=generated))
        elif answer in ("busy", "broken"):
            logger.error("job %s cannot be ended (%s): %s", item.job_id, item.reason, answer)
            self._stuck.append(item)
        else:
            self.ended += 1
            if answer == "rejected":
                self._tell(item)

    def _tell(self, item: messages.RejectItem) -> None:
        """A job that dies is a loss to somebody, one that was cancelled is not."""
        if item.reason == "cancelled":
            logger.info("job %s of session %s is cancelled: %s", item.job_id, item.session_id, item.detail)
            return
        whose = f" of session {item.session_id}" if item.session_id else ""  # what is no document names none
        line = f"job {item.job_id}{whose} is dead, {item.reason}: {item.detail}"
        self._repeats.warn(f"jobs are dead, {item.reason}", lambda: line)
