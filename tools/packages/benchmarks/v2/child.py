"""The process that designs run in, seen from the one that sends the load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import Final

from chaos.processes import environment

from benchmarks.measure import BenchmarkFailed
from benchmarks.v2.rows import Row
from scheduler.config import Settings

ANSWER_S_MAX: Final = 30.0


class Child:
    """A process that runs one design at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def start(self, row: Row) -> None:
        """Let a design work. Raises: BenchmarkFailed."""
        await self._ask(f"start {row.name}")

    async def stop(self) -> None:
        """Stop the design that works. Raises: BenchmarkFailed when it has failed."""
        await self._ask("stop")

    async def cpu_ns(self) -> int:
        """CPU time that the process has used."""
        return int(await self._ask("cpu"))

    async def _ask(self, line: str) -> str:
        reads, writes = self._process.stdout, self._process.stdin
        assert reads is not None
        assert writes is not None
        answer = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(ANSWER_S_MAX):
                writes.write(f"{line}\n".encode())
                await writes.drain()
                answer = await reads.readline()
        if not answer:
            raise BenchmarkFailed(f"the process that runs the designs does not answer {line!r}; see its error above")
        return answer.decode().strip()

    async def end(self) -> None:
        """End the process, by force if it does not end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def child(url: str, settings: Settings) -> AsyncIterator[Child]:
    """Start the process; it ends with the context, or with this process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.v2.serve", url,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(settings) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,  # Ctrl-C is for us
    )  # fmt: skip
    running = Child(process)
    try:
        yield running
    finally:
        await running.end()
