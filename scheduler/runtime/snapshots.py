"""The snapshot cache: one index, replaced by reference when another version is published. Reading it costs nothing.

The index is revised by the deltas that lead on from its version. Whatever does not fit makes it read the whole: another
version before, an entry that only tells of a change, a stream that is silent although the version differs, up or down.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from redis.exceptions import RedisError

from scheduler.errors import SchedulerError, ServerRefused, ServerUnavailable
from scheduler.protocol.deltas import chain
from scheduler.runtime.index import Index
from scheduler.store.control import Control, version_entry
from scheduler.store.meanings import is_temporary
from scheduler.store.reads import position

logger = logging.getLogger("scheduler.snapshots")

_PAUSE_AFTER_ERROR_MS: Final = 200


class Snapshots:
    """Follows the published version.

    Args: control; replaced, which is set after each replacement.
    index: the newest.
    loads: how often the whole was read.
    """

    def __init__(self, control: Control, replaced: asyncio.Event | None = None) -> None:
        self.index = Index()
        self.loads = 0
        self._control = control
        self._replaced = replaced or asyncio.Event()
        self._seen = version_entry(0)
        self._doubted = False
        self._stopping = False

    def begin_anew(self) -> None:
        """Read the whole again, after the read that is under way, and all deltas from the first."""
        self._doubted = True

    def stop(self) -> None:
        """End after the read that is under way."""
        self._stopping = True

    async def load(self) -> None:
        """Read the whole; the index is replaced if the version differs, up or down, from the one in hand.

        Read again if the index was replaced meanwhile: what was read may be older than that.
        """
        before = None
        while before is not self.index:
            before = self.index
            snapshot = await self._control.read_snapshot()
            self.loads += 1
        if snapshot.version != self.index.version:
            self.swap(Index(snapshot, self.index))

    async def follow(self) -> None:
        """Wait for what is published next, at most a second, and have it in the index."""
        if self._doubted:
            self._doubted = False
            await self.load()
            self._seen = version_entry(0)
        cursor = max(self._seen, version_entry(self.index.version), key=position)
        deltas, seen = await self._control.read_deltas(cursor)
        if next_deltas := chain(self.index.version, deltas):
            self.swap(self.index.revised(next_deltas))
        elif deltas:
            await self.load()
        elif await self._control.read_version() != self.index.version:
            # Versions can fall back with a server that lost writes, so silence of the stream proves nothing.
            await self.load()
            seen = version_entry(0)
        self._seen = seen

    async def run(self) -> None:
        """Follow until `stop`."""
        has_complained = False
        while not self._stopping:
            try:
                await self.follow()
                has_complained = False
            except (RedisError, OSError, SchedulerError) as error:
                is_told = isinstance(error, ServerUnavailable | ServerRefused) or is_temporary(error)  # by the store
                level = logging.DEBUG if has_complained or is_told else logging.ERROR
                logger.log(level, "following the snapshot failed: %s", error)
                has_complained = has_complained or not is_told
                await asyncio.sleep(_PAUSE_AFTER_ERROR_MS / 1000)

    def swap(self, index: Index) -> None:
        """Replace the index: whoever reads it gets the one or the other."""
        self.index = index
        self._replaced.set()
