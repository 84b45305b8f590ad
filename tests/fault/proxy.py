"""Stands between a process and its server and holds back what is on its way, so that it arrives late."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from scheduler.store.scripts import load_scripts

CHUNK_BYTES = 65_536


class Proxy:
    """One port in front of a server. Calls of one script can be held: before the server hears them, or its answer."""

    def __init__(self, url: str) -> None:
        self.url = ""
        self._host, _, port = url.rpartition("@")[2].partition("/")[0].partition(":")
        self._port = int(port)
        self._script = b""
        self._caught: asyncio.Future[None]
        self._requests_pass = asyncio.Event()
        self._answers_pass = asyncio.Event()
        self._answered: asyncio.Future[None]
        self._opening: set[asyncio.Task[Any] | None] = set()
        self._pumps: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def hold_call(self, script: str) -> None:
        """Hold the next call of a script, and all that follows it on its connection; returns once it is held."""
        self._requests_pass.clear()
        self._answers_pass.clear()
        self._caught = asyncio.get_running_loop().create_future()
        self._answered = asyncio.get_running_loop().create_future()
        self._script = load_scripts()[script].sha.encode()
        await self._caught

    async def pass_call(self) -> None:
        """Let the server hear what is held, and hold its answer; returns once the answer is there."""
        self._requests_pass.set()
        await self._answered

    def pass_all(self) -> None:
        """Hold nothing any more."""
        self._requests_pass.set()
        self._answers_pass.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self._writers.append(writer)
        self._opening.add(asyncio.current_task())
        try:
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        finally:
            self._opening.discard(asyncio.current_task())
        self._writers.append(server_writer)
        held = asyncio.Event()
        self._pumps += [
            asyncio.create_task(self._pump_requests(reader, server_writer, held)),
            asyncio.create_task(self._pump_answers(server_reader, writer, held)),
        ]

    async def _pump_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: asyncio.Event
    ) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self._script and self._script in data:
                    self._script = b""
                    held.set()
                    self._caught.set_result(None)
                    await self._requests_pass.wait()
                writer.write(data)
        finally:
            writer.close()

    async def _pump_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, held: asyncio.Event
    ) -> None:
        try:
            while data := await reader.read(CHUNK_BYTES):
                if held.is_set():
                    held.clear()
                    self._answered.set_result(None)
                    await self._answers_pass.wait()
                writer.write(data)
        finally:
            writer.close()

    async def close(self) -> None:
        """End every connection, also one that nothing was carried over yet."""
        while opening := {task for task in self._opening if task is not None}:
            await asyncio.wait(opening)
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy that holds nothing yet."""
    between = Proxy(url)
    server = await asyncio.start_server(between.serve, "127.0.0.1", 0)
    between.url = re.sub(r":\d+/", f":{server.sockets[0].getsockname()[1]}/", url)
    try:
        yield between
    finally:
        server.close()
        await between.close()
