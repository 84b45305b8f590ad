"""Stands between a process and its server and lets so many bytes a second through, each way, over all connections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

PIECE_BYTES: Final = 16_384


class SlowLink:
    """One port in front of a server. answered_bytes: of answers that have passed."""

    def __init__(self, url: str, bytes_a_second: float) -> None:
        self.url = ""
        self.answered_bytes = 0
        self._host, _, port = url.rpartition("@")[2].partition("/")[0].partition(":")
        self._port = int(port)
        self._bytes_a_second = bytes_a_second
        self._free_at_s = {"requests": 0.0, "answers": 0.0}
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, which ends when either side does."""
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        server_writer: asyncio.StreamWriter | None = None
        try:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
            pumps = [
                asyncio.create_task(self._pump(reader, server_writer, "requests")),
                asyncio.create_task(self._pump(server_reader, writer, "answers")),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except asyncio.CancelledError:
            pass  # by `close`
        finally:
            self._connections.discard(task)
            for each in (writer, server_writer):
                if each is not None:
                    each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        now_s = asyncio.get_running_loop().time
        while piece := await reader.read(PIECE_BYTES):
            self._free_at_s[way] = max(self._free_at_s[way], now_s()) + len(piece) / self._bytes_a_second
            await asyncio.sleep(self._free_at_s[way] - now_s())
            if way == "answers":
                self.answered_bytes += len(piece)
            writer.write(piece)
            await writer.drain()

    async def close(self) -> None:
        """End every connection."""
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


@asynccontextmanager
async def slow_link(url: str, bytes_a_second: float) -> AsyncIterator[SlowLink]:
    """A link to the server at `url`."""
    link = SlowLink(url, bytes_a_second)
    server = await asyncio.start_server(link.serve, "127.0.0.1", 0)
    link.url = re.sub(r":\d+/", f":{server.sockets[0].getsockname()[1]}/", url)
    try:
        yield link
    finally:
        server.close()
        await link.close()
