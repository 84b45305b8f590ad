"""The snapshot cache: one index, replaced by reference when another version is published. Reading it costs nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError

from scheduler.errors import SchedulerError
from scheduler.runtime.index import Index
from scheduler.store.control import Control

logger = logging.getLogger("scheduler.snapshots")

_PAUSE_AFTER_ERROR_MS: Final = 200


class Snapshots:
    """Follows the published version. `index` is the newest; `changed` is called after each replacement."""

    def __init__(self, control: Control, changed: Callable[[], None] = lambda: None) -> None:
        self.index = Index()
        self._control = control
        self._changed = changed
        self._stopping = False

    def stop(self) -> None:
        """End after the read that is under way."""
        self._stopping = True

    async def load(self) -> None:
        """Read the snapshot if its version differs, up or down, from the one in hand."""
        snapshot = await self._control.read_snapshot()
        if snapshot.version != self.index.version:
            self.index = Index(snapshot, self.index)
            self._changed()

    async def run(self) -> None:
        """Load now and after each publication, until `stop`."""
        cursor = seen = "0"
        failing = False
        while not self._stopping:
            try:
                cursor = await self._control.last_delta() if cursor == "0" else cursor
                await self.load()
                failing = False
                while not self._stopping:
                    seen = await self._control.wait_for_delta(cursor)
                    # Ids can fall back with a server's clock, so silence of the stream proves nothing: compare too.
                    if seen != cursor or await self._control.read_version() != self.index.version:
                        break
                cursor = seen if seen != cursor else "0"
            except (RedisError, OSError, SchedulerError) as error:
                logger.log(logging.DEBUG if failing else logging.ERROR, "following the snapshot failed: %s", error)
                failing = True
                cursor = "0"
                await asyncio.sleep(_PAUSE_AFTER_ERROR_MS / 1000)
