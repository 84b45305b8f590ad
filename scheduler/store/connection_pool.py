"""The connections of one client: callers take turns, and all connections are closed at the end.

Two things that the blocking pool of redis-py does otherwise. When a caller is cancelled just as its turn comes, nobody
is told of that turn, and everybody else may wait for ever. And when it was closed, it connects again for whoever comes
later, so that whatever still runs then leaves open connections behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import RedisSSLContext

from scheduler.errors import ServerUnavailable
from scheduler.store.fast_connection import PACKING


class Pool(ConnectionPool):
    """At most `max_connections`; more callers at once wait for their turn. Closed once, it stays closed.

    classes: the class that redis-py would use -> the one that is used. met: told, each time a connection is made, the
    run_id of the server process that it leads to. tls: of connections that use it, in the place of one for each.
    """

    def __init__(
        self,
        max_connections: int,
        classes: Mapping[Any, Any] = PACKING,
        met: Callable[[str], None] | None = None,
        tls: RedisSSLContext | None = None,
        **options: Any,
    ) -> None:
        super().__init__(max_connections=max_connections, **options)
        self._met = met
        self._tls = tls
        self.connection_class = classes[self.connection_class]
        self._turns = asyncio.Semaphore(self.max_connections)
        self._closed = False

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """A connection that is ready; `release` must follow. Raises: ServerUnavailable when the pool is closed."""
        await self._turns.acquire()
        connection = None
        try:
            self._check_open()
            connection = self.get_available_connection()  # type: ignore[no-untyped-call]
            await self.ensure_connection(connection)
            self._check_open()
        except BaseException:
            await self.release(connection)
            raise
        return connection

    def make_connection(self) -> Any:
        """A new one, which tells whom it has met."""
        connection: Any = super().make_connection()  # type: ignore[no-untyped-call]
        if self._met is not None:
            connection.met = self._met
        if self._tls is not None:
            connection.ssl_context = self._tls
        return connection

    def pieces(self) -> int:
        """Of replies that came so far, on all connections."""
        connections: list[Any] = [*self._in_use_connections, *self._available_connections]
        return sum(each.pieces for each in connections)

    def _check_open(self) -> None:
        if self._closed:
            raise ServerUnavailable("the connections to the server are closed")

    async def release(self, connection: Any) -> None:
        """Give a turn back, with its connection if it has got one. Never waits, so nothing can come in between."""
        if connection is not None:
            self._in_use_connections.remove(connection)
            self._available_connections.append(connection)
            if self._closed:
                await connection.disconnect(nowait=True)
        self._turns.release()

    async def aclose(self) -> None:
        """Close all connections, also those in use, whose callers fail. Waits for nobody, whatever the server does."""
        self._closed = True
        used: Any
        for used in self._in_use_connections:
            used.abort()  # its caller sees that, and gives it back
        for idle in tuple(self._available_connections):
            await idle.disconnect(nowait=True)
