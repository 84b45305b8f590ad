"""A scheduler's data in one server: the control plane, the cells, and plain reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.config import DEFAULTS, Settings
from scheduler.errors import ServerUnavailable
from scheduler.protocol import keys, messages
from scheduler.store.cell import Cell
from scheduler.store.connection import PATIENCE_MS, Connection
from scheduler.store.control import Control
from scheduler.store.log_lines import keep_visible
from scheduler.store.paced_reads import PacedReads
from scheduler.store.reads import Reads
from scheduler.store.telling import Call
from scheduler.url import ServerUrl

_LAYOUT_POLL_MS: Final = 100


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

    async def layout(self, wait_ms: int | None = None) -> messages.Layout:
        """The stored layout, once a manager has written it.

        Args: wait_ms, for how long (None: for ever). Raises: ServerUnavailable when nobody wrote it in time.
        """
        missing = (
            f"no scheduler was started there (namespace {self.settings.namespace!r}): expected a running manager, such "
            f"as `scheduler up`"
        )
        waited_ms = 0
        waiting: Call | None = None
        layout = None
        try:
            while (layout := await self.control.read_layout()) is None:
                waiting = waiting or self.connection.missing(missing, wait_ms)
                if wait_ms is not None and waited_ms >= wait_ms:
                    raise ServerUnavailable(f"{self.connection.url}: {missing}")
                await asyncio.sleep(_LAYOUT_POLL_MS / 1000)
                waited_ms += _LAYOUT_POLL_MS
        finally:
            if waiting is not None:
                self.connection.found(waiting, is_there=layout is not None)
        return layout

    def partition_of(self, session_id: str, layout: messages.Layout) -> int:
        """The partition of a session."""
        return keys.partition_of(session_id, layout.partitions, layout.cells)


async def open_store(
    url: str | ServerUrl,
    settings: Settings = DEFAULTS,
    patience_ms: int | None = PATIENCE_MS,
    clock: Clock = SYSTEM_CLOCK,
    connect: Callable[[str | ServerUrl, int | None, Clock], Connection] = Connection,
    *,
    waits_while_busy: bool = False,
) -> Store:
    """Connect and check the server.

    Args: url; settings; patience_ms and clock, as of Connection; connect, makes the connection of these three;
    waits_while_busy, for a server that answers that it cannot do it now as long as it takes.
    Raises: InvalidInput, ServerUnavailable, ServerNotReady, ServerRefused.
    """
    keep_visible()
    connection = connect(url, patience_ms, clock)
    if waits_while_busy:
        connection.later_ms = None
    try:
        await connection.check()
    except BaseException:
        await connection.close()
        raise
    return Store(connection, settings, clock)
