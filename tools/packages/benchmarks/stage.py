"""What a simulated load runs on: a server, a fleet in the books, one task that runs its jobs, and real dispatchers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from benchmarks.cores import CoreWatch
from benchmarks.dispatchers import dispatchers
from benchmarks.fleet import Member, register
from benchmarks.history import Window
from benchmarks.measure import STALL_S, BenchmarkFailed
from benchmarks.serving import POLL_S, Serving
from benchmarks.submitting import Submitting
from scheduler.config import Settings
from scheduler.loop import end_tasks
from scheduler.store.cleanup import remove_namespace
from scheduler.store.store import Store, open_store

T = TypeVar("T")


class Stage:
    """Everything runs; the load is still to come."""

    def __init__(self, store: Store, serving: Serving, submitting: Submitting, watch: CoreWatch) -> None:
        self.store = store
        self.serving = serving
        self.submitting = submitting
        self.watch = watch

    async def window(self, seconds: float) -> Window:
        """Let so much time pass; when that was, by the server's clock."""
        from_us = await self.store.control.time_us()
        await asyncio.sleep(seconds)
        return Window(from_us // 1_000, await self.store.control.time_us() // 1_000)

    async def until_placed(self, job_ids: Sequence[str]) -> None:
        """Wait until all of these are in inboxes. Raises: BenchmarkFailed when nothing moves any more."""
        placed, missing, since_s = self.serving.placed, list(job_ids), time.monotonic()
        while missing:
            still = [job_id for job_id in missing if job_id not in placed]
            if len(still) < len(missing):
                missing, since_s = still, time.monotonic()
            elif time.monotonic() - since_s > STALL_S:
                raise BenchmarkFailed(f"{len(missing)} jobs wait, and none was placed for {STALL_S:.0f} s")
            await asyncio.sleep(POLL_S)

    async def until_idle(self) -> None:
        """Wait until no slot is in use."""
        while True:
            if not self.serving.running:
                return
            await asyncio.sleep(POLL_S)


@contextlib.asynccontextmanager
async def staged(url: str, settings: Settings, members: Sequence[Member], count: int) -> AsyncIterator[Stage]:
    """Register the fleet and start so many dispatchers; everything is gone afterwards. Raises: BenchmarkFailed."""
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(await open_store(url, settings))
        stack.push_async_callback(remove_namespace, store)
        layout = await store.control.write_layout()
        await register(store, settings, members)
        pids = await stack.enter_async_context(dispatchers(url, settings, store, count))
        serving = Serving(store, layout, [each.node for each in members])
        yield Stage(store, serving, Submitting(store, layout), CoreWatch(store, pids))


async def while_serving(stage: Stage, work: Coroutine[Any, Any, T]) -> T:
    """Run something while the fleet serves; a failure of the fleet ends it."""
    serving, working = asyncio.ensure_future(stage.serving.run()), asyncio.ensure_future(work)
    either: set[asyncio.Future[Any]] = {serving, working}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
        return await working
    finally:
        await end_tasks([working, serving])
