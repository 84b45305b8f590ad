"""From the intake into the inboxes by one real dispatcher: read, decode, place, reserve, settle.

The fleet is registered and the backlog lies ready before the clock starts. It runs from the first step of the
dispatcher to the last job placed; what a dispatcher does beside (heartbeats, claims, the sweep) runs along.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from random import Random

from benchmarks.fleet import Member, register
from benchmarks.measure import STALL_S, BenchmarkFailed, Round, Stopwatch, server_counters
from benchmarks.sampling import Sampler
from benchmarks.workload import SEED, Workload, entries_in, fill, inboxes, intake_streams
from scheduler.config import Settings
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.store.cleanup import remove_namespace
from scheduler.store.store import Store, open_store


async def dispatch_round(url: str, settings: Settings, workload: Workload, sampler: Sampler | None = None) -> Round:
    """Register the fleet, fill the intake, dispatch everything, and check that each job was placed exactly once.

    Args: url; settings, of a namespace that is this round's own and empty again afterwards; workload; sampler, runs
    with the clock. Raises: BenchmarkFailed.
    """
    async with await open_store(url, settings) as store:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(remove_namespace, store)
            await store.control.write_layout()
            # Each node has a slot for every job, so that no job ever waits, wherever it is placed.
            await register(store, settings, [Member(node, workload.jobs) for node in workload.node_names()])
            await fill(store, settings, workload)
            messages = await entries_in(store, inboxes(store, workload))
            measured = await _dispatch(url, store, settings, workload, sampler)
            await _check(store, settings, workload, messages)
        return measured


async def _dispatch(url: str, store: Store, settings: Settings, workload: Workload, sampler: Sampler | None) -> Round:
    async with await open_store(url, settings) as own:
        owner = f"bench+{secrets.token_hex(4)}"
        dispatcher = Dispatcher(own, settings, await own.layout(), owner, Random(SEED))
        watch = Stopwatch(await server_counters(store))
        await dispatcher.open()
        try:
            # Nothing is awaited in between, so that reading ahead begins with the clock.
            watch.start()
            with sampler or contextlib.nullcontext():
                await _place_all(dispatcher, workload.jobs)
            watch.stop()
            return watch.round(workload.jobs, await server_counters(store))
        finally:
            await dispatcher.close()


async def _place_all(dispatcher: Dispatcher, jobs: int) -> None:
    placed, placed_s = 0, time.monotonic()
    while placed < jobs:
        report = await dispatcher.run_once()
        if report.placed > placed:
            placed, placed_s = report.placed, time.monotonic()
        elif time.monotonic() - placed_s > STALL_S:
            raise BenchmarkFailed(
                f"dispatch: {placed} of {jobs} jobs were placed, then none for {STALL_S:.0f} s; "
                f"{report.waiting} wait, {report.rejected} were rejected"
            )


async def _check(store: Store, settings: Settings, workload: Workload, messages: int) -> None:
    """Each job holds one slot and lies in one inbox, and the intake is empty.

    messages: what the inboxes contained before the first job.
    """
    held = sum(await store.reads.used(workload.node_names()))
    arrived = await entries_in(store, inboxes(store, workload)) - messages
    left = await entries_in(store, intake_streams(store, settings))
    if (held, arrived, left) != (workload.jobs, workload.jobs, 0):
        raise BenchmarkFailed(
            f"dispatch: of {workload.jobs} jobs {held} hold a slot, {arrived} are in inboxes, {left} are left in the "
            "intake: expected each placed exactly once"
        )
