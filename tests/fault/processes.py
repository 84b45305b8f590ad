"""Roles as processes of their own, so that they can be killed and paused."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scheduler.config import Settings
from tests.system import QUICK

_QUICK_NAMES = (
    "heartbeat_ms",
    "silence_ms",
    "start_ms",
    "lease_ms",
    "margin_ms",
    "backoff_ms",
    "partition_lease_ms",
    "leader_lease_ms",
    "publish_ms",
)


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process that uses the quick settings."""
    chosen = {f"SCHED_{name.upper()}": str(getattr(settings, name)) for name in _QUICK_NAMES}
    return {**os.environ, **chosen, "PYTHONUNBUFFERED": "1"}


class Process:
    """One role in a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def line(self) -> str:
        """The next line of its stdout, empty at its end."""
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().rstrip("\n")

    async def ready(self) -> None:
        """Wait until it says that it is ready."""
        while (line := await self.line()) != "ready":
            assert line or self._process.returncode is None, "the process ended before it was ready"

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    async def exit_code(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(30):
            return await self._process.wait()


@asynccontextmanager
async def process(url: str, *arguments: str, settings: Settings = QUICK) -> AsyncIterator[Process]:
    """A role that is ready; killed at the end if it still runs. arguments: as typed after `scheduler`."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "scheduler",
        *arguments,
        "--redis-url",
        url,
        stdout=asyncio.subprocess.PIPE,
        env=environment(settings),
    )
    role = Process(started)
    try:
        async with asyncio.timeout(30):
            await role.ready()
        yield role
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()
        transport = getattr(started, "_transport", None)
        if transport is not None:
            transport.close()
