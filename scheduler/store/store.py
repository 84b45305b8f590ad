"""A scheduler's data in one server: the control plane, the cells, and plain reads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from scheduler import calls, keys
from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.config import DEFAULTS, Settings
from scheduler.errors import ServerUnavailable
from scheduler.store.cell import Cell
from scheduler.store.connection import PATIENCE_MS, Connection
from scheduler.store.control import Control
from scheduler.store.log_lines import keep_visible
from scheduler.store.paced import PacedReads
from scheduler.store.reads import Reads
from scheduler.url import ServerUrl

logger = logging.getLogger("scheduler.store")

_LAYOUT_POLL_MS: Final = 100
_LAYOUT_TOLD_MS: Final = 3_000  # of waiting for a layout, before that is told


class Store:
    """Opened by `open_store`. `control` is the control plane; `cell` and `reads` belong to cell 0, the only one so
    far.
    """

    def __init__(self, connection: Connection, settings: Settings, clock: Clock = SYSTEM_CLOCK) -> None:
        self.connection = connection
        self.settings = settings
        self._clock = clock
        self.control = Control(connection, settings)
        self.cell = Cell(connection, settings)
        self.reads = Reads(connection, self.cell.keys)

    async def __aenter__(self) -> Store:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self.connection.close()

    def new_reads(self) -> Reads:
        """Reads with a blocking connection of their own, for a second reader beside `reads`."""
        return Reads(self.connection, self.cell.keys)

    def paced(self, *, bodies_later: bool = False) -> PacedReads:
        """Reads of one reader whose entries can be large."""
        return PacedReads(self.reads, self.connection, self.settings, self._clock, bodies_later=bodies_later)

    async def layout(self, wait_ms: int | None = None) -> calls.Layout:
        """The stored layout, once a manager has written it.

        Args: wait_ms, for how long (None: for ever). Raises: ServerUnavailable when nobody wrote it in time.
        """
        waited_ms = 0
        while (layout := await self.control.read_layout()) is None:
            missing = (
                f"{self.connection.url}: no scheduler was started there (namespace {self.settings.namespace!r}): "
                f"expected a running manager, such as `scheduler up`"
            )
            if wait_ms is not None and waited_ms >= wait_ms:
                raise ServerUnavailable(missing)
            if waited_ms == _LAYOUT_TOLD_MS:
                logger.warning("%s; waiting for one", missing)
            await asyncio.sleep(_LAYOUT_POLL_MS / 1000)
            waited_ms += _LAYOUT_POLL_MS
        return layout

    def partition_of(self, session_id: str, layout: calls.Layout) -> int:
        """The partition of a session."""
        return keys.partition_of(session_id, layout.partitions, layout.cells)


async def open_store(
    url: str | ServerUrl,
    settings: Settings = DEFAULTS,
    patience_ms: int | None = PATIENCE_MS,
    clock: Clock = SYSTEM_CLOCK,
    connect: Callable[[str | ServerUrl, int | None, Clock], Connection] = Connection,
) -> Store:
    """Connect and check the server.

    Args: url; settings; patience_ms and clock, as of Connection; connect, makes the connection of these three.
    Raises: InvalidInput, ServerUnavailable, ServerRefused.
    """
    keep_visible()
    connection = connect(url, patience_ms, clock)
    try:
        await connection.check()
    except BaseException:
        await connection.close()
        raise
    return Store(connection, settings, clock)
