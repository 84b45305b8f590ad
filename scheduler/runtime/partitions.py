"""The partitions that this dispatcher holds: claimed on a timer, each under an epoch that every script call names."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from scheduler import calls
from scheduler.store.cell import Cell

logger = logging.getLogger("scheduler.dispatcher")


class Partitions:
    """What is held, and under which epoch.

    Args: cell; owner, name+boot; count of partitions; gained(partition, epoch) and lost(partition), called on each
    change.
    """

    def __init__(
        self, cell: Cell, owner: str, count: int, gained: Callable[[int, int], None], lost: Callable[[int], None]
    ) -> None:
        self.owner = owner
        self._cell = cell
        self._count = count
        self._gained = gained
        self._lost = lost
        self._epochs: dict[int, int] = {}
        self._clock_offset_ms = 0.0

    def __len__(self) -> int:
        return len(self._epochs)

    def holds(self, partition: int, epoch: int) -> bool:
        """Whether what was read under `epoch` is still ours to place."""
        return self._epochs.get(partition) == epoch

    def server_ms(self) -> int:
        """About the server's time: for deadlines of jobs, which wait much longer than this is wrong."""
        return int(time.monotonic() * 1000 + self._clock_offset_ms)

    async def claim(self) -> None:
        """Take what is free, renew what is ours, and learn what was lost."""
        now_ms, answers = await self._cell.claim(self.owner, range(self._count))
        self._clock_offset_ms = now_ms - time.monotonic() * 1000
        for answer in answers:
            if isinstance(answer, calls.HeldByOther):
                self.lose(answer.partition)
            elif not self.holds(answer.partition, answer.epoch):
                self.lose(answer.partition)
                self._epochs[answer.partition] = answer.epoch
                self._gained(answer.partition, answer.epoch)

    def lose(self, partition: int) -> bool:
        """Hold a partition no more. Returns whether it was held."""
        if self._epochs.pop(partition, None) is None:
            return False
        logger.info("partition %d is not ours any more", partition)
        self._lost(partition)
        return True

    async def give_up(self) -> None:
        """Hand everything over at once, so that the next owner need not wait for the lease.

        Who claims again, perhaps we, does so under another epoch: nothing that was read before is placed after that.
        """
        held = list(self._epochs)
        self._epochs.clear()
        for partition in held:
            self._lost(partition)
        if held:
            await self._cell.claim(self.owner, (), held)
