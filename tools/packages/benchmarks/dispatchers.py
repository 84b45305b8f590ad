"""Dispatchers in processes of their own, as `scheduler dispatcher` runs them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from chaos.processes import Process

from benchmarks.measure import BenchmarkFailed
from scheduler.config import Settings
from scheduler.store.store import Store

READY_S_MAX: Final = 30.0
STOP_S_MAX: Final = 15.0
POLL_S: Final = 0.02


@contextlib.asynccontextmanager
async def dispatchers(url: str, settings: Settings, store: Store, count: int) -> AsyncIterator[list[int]]:
    """Start so many and wait until together they own every partition; stop them in order afterwards.

    Yields: their process ids. Raises: BenchmarkFailed; SchedulerError when one ends before it is ready.
    """
    with tempfile.TemporaryDirectory(prefix="scheduler-bench-") as directory:
        processes: list[Process] = []
        try:
            for number in range(count):
                log = Path(directory) / f"dispatcher{number}.log"
                arguments = ["dispatcher", "--log-level", "warning"]
                processes.append(await Process.start(url, arguments, settings, log))
            await asyncio.gather(*(process.ready() for process in processes))
            await until_shared(store, settings, count)
            yield [process.pid for process in processes]
            await _stop(processes)
        finally:
            for process in processes:
                await process.close()


async def until_shared(store: Store, settings: Settings, count: int) -> None:
    """Wait until every partition has an owner, and each dispatcher, or each partition, one of its own."""
    until_s = time.monotonic() + READY_S_MAX
    while time.monotonic() < until_s:
        owners = [owner for _, owner, _ in (await store.reads.owners()).values() if owner != "-"]
        if len(owners) == settings.partitions and len(set(owners)) >= min(count, 2, settings.partitions):
            return
        await asyncio.sleep(POLL_S)
    raise BenchmarkFailed(f"{count} dispatchers do not own every partition after {READY_S_MAX:.0f} s")


async def _stop(processes: list[Process]) -> None:
    """Tell all to stop. Raises: BenchmarkFailed for one that does not end as it should."""
    for process in processes:
        process.send(signal.SIGTERM)
    for process in processes:
        try:
            async with asyncio.timeout(STOP_S_MAX):
                code: int | None = await process.exit_code()
        except TimeoutError:
            code = None
        if code != 0:
            raise BenchmarkFailed(f"a dispatcher ended with {code}: {' | '.join(process.last_words)}")
