"""The snapshot cache: one index, replaced by reference when another version is published. Reading it costs nothing.

The index is revised by the deltas that follow its version. The whole snapshot is read when they do not fit: a delta
follows another version, an entry has no delta, or the stream is silent although the published version differs.
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

    Args:
        control: where snapshots are published.
        replaced: is set after each replacement.

    index: the newest.
    loads: how often a whole snapshot was read.
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
        """Read the whole snapshot again, after the read that is under way, and all deltas from the first."""
        self._doubted = True

    def stop(self) -> None:
        """End after the read that is under way."""
        self._stopping = True

    async def load(self) -> None:
        """Read the whole snapshot, and replace the index if the version is another one, higher or lower.

        It is read again if the index was replaced meanwhile, because it may be older than that.
        """
        before = None
        while before is not self.index:
            before = self.index
            snapshot = await self._control.read_snapshot()
            self.loads += 1
        if snapshot.version != self.index.version:
            self.swap(Index(snapshot, self.index))

    async def follow(self) -> None:
        """Wait at most a second for what is published next, and apply it to the index."""
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
                # These are logged by the store.
                is_logged = isinstance(error, ServerUnavailable | ServerRefused) or is_temporary(error)
                level = logging.DEBUG if has_complained or is_logged else logging.ERROR
                logger.log(level, "following the snapshot failed: %s", error)
                has_complained = has_complained or not is_logged
                await asyncio.sleep(_PAUSE_AFTER_ERROR_MS / 1000)

    def swap(self, index: Index) -> None:
        """Replace the index."""
        self.index = index
        self._replaced.set()
