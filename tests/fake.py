"""The server of the simulation in this process, on the real clock, for tests that need no server program.

The store, its pool and redis-py's connections are the real ones, down to the bytes; where a socket would be, the bytes
are handed over. There is no thread and no port.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from redis.asyncio.connection import Connection as RedisConnection

from scheduler.store.connection import Connection
from scheduler.store.fast_connection import HiredisMixin
from tests.simulation.server import WALL_ORIGIN_S, Server
from tests.transport import InProcessTransport

URL: Final = "redis://in-this-process:6379/0"
_AT_ONCE_S: Final = 0.001  # a timer of the event loop is no finer


class RealTime:
    """The time of the running event loop, in the place of a world."""

    @property
    def now_s(self) -> float:
        """Seconds, of the monotonic clock that event loops use."""
        return time.monotonic()

    def call_at(self, when_s: float, call: Callable[..., object], *arguments: object) -> asyncio.Handle:
        """Call at that time, or in the next turn if that is now."""
        loop = asyncio.get_running_loop()
        if when_s - self.now_s < _AT_ONCE_S:
            return loop.call_soon(call, *arguments)
        return loop.call_at(when_s, call, *arguments)


def start_fake() -> Server:
    """A server without data, whose clock says what that of the machine says."""
    server = Server(RealTime())
    server.shift_s = time.time() - WALL_ORIGIN_S - server.world.now_s
    return server


def connecting(server: Server) -> Callable[..., Connection]:
    """What makes connections to the server, in the place of `Connection`."""

    class InProcess(HiredisMixin, RedisConnection):
        async def _connect(self) -> None:
            self._reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(self._reader)
            link = _Link(server, protocol)
            protocol.connection_made(link)
            self._writer = asyncio.StreamWriter(link, protocol, self._reader, asyncio.get_running_loop())

    return functools.partial(Connection, classes={RedisConnection: InProcess})


class _Link(InProcessTransport):
    """One connection, seen from its client."""

    def __init__(self, server: Server, protocol: asyncio.StreamReaderProtocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._server = server
        self._protocol = protocol
        self._client = server.connect(self._reply)
        self._closing = False

    def write(self, data: Any) -> None:
        self.writelines([data])

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        if not self._closing:
            self._client.feed(b"".join(list_of_data))

    def _reply(self, data: bytes) -> None:
        self._loop.call_soon(self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._server.forget(self._client)
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close
