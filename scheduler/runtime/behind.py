"""Notices that the server has less than was read from it, and forgets what was read.

A server may come back without its last writes, or without any, and a stream may be deleted. The next entries may then
have lower ids than those that were read, so the cursor stays above them and they are never read; and what is remembered
of jobs is wrong. There are two signs:

- Another server process answers. This is exact, and known with each connection.
- A cursor is above the highest id that its stream has ever had. All cursors are compared once a second, and after each
  read that failed.

The partition is then claimed anew, as after a take-over. Of `freed` the next events are read, as after a gap.
"""

from __future__ import annotations

import logging
from typing import Final

from scheduler.errors import InvalidInput
from scheduler.runtime.partitions import Partitions, counted
from scheduler.runtime.reader import Reader
from scheduler.runtime.snapshots import Snapshots
from scheduler.store.reads import is_behind
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.dispatcher")

LOOK_MS: Final = 1_000
NOTHING_HELD: Final = "what was read from the one before is forgotten"


class Behind:
    """The looks of one dispatcher at its server.

    Args:
        store: the server.
        partitions: are claimed anew.
        snapshots: are read anew.
    """

    def __init__(self, store: Store, partitions: Partitions, snapshots: Snapshots) -> None:
        self._store = store
        self._partitions = partitions
        self._snapshots = snapshots
        partitions.life = store.connection.life

    def is_other(self) -> bool:
        """Whether another server process answers than the one that was read from."""
        return self._store.connection.life != self._partitions.life

    async def look(self, reader: Reader) -> None:
        """Compare what was read with what is there, and begin anew where the two disagree."""
        if self.is_other():
            await self._begin_anew(reader)
            return
        reader.doubted = False
        cursors = reader.cursors()
        last_ids = dict(zip(cursors, await self._store.reads.last_ids(list(cursors)), strict=True))
        if self.is_other():
            await self._begin_anew(reader)
            return
        behind = {stream for stream, cursor in cursors.items() if is_behind(last_ids[stream], cursor)}
        keys = self._store.cell.keys
        for stream in sorted(behind):
            what = "what comes next is read" if stream == keys.freed else "the partition is claimed anew"
            logger.warning(
                "%s ends at %s, and was read up to %s: %s; %s",
                stream, last_ids[stream] or "nothing", cursors[stream],
                await self._store.reads.why_behind(cursors[stream]), what,
            )  # fmt: skip
        if keys.freed in behind:
            reader.restart_freed(last_ids[keys.freed] or "0")
        lost = frozenset(partition for partition in self._partitions.held if keys.jobs(partition) in behind)
        if lost:
            self._partitions.begin_anew(lost)

    async def _begin_anew(self, reader: Reader) -> None:
        """Forget everything: another process may have anything, and what was read from the one before must not be sent
        to it.

        The snapshot is read before anything is placed. The one in hand may have a higher version than the server has
        now, and the cell would count for limits as that version says.
        """
        life = self._store.connection.life
        freed = self._store.cell.keys.freed
        held = self._partitions.held
        logger.warning(
            "another server process answers: %s",
            f"{counted(len(held), 'partition')} claimed anew" if held else NOTHING_HELD,
        )
        self._partitions.begin_anew(held)
        reader.restart_freed((await self._store.reads.last_ids([freed]))[0] or "0")
        try:
            await self._snapshots.load()
        except InvalidInput as error:
            logger.error("the published snapshot is ignored until the leader has written it again: %s", error)
        self._snapshots.begin_anew()
        self._partitions.life = life
