"""The floor: jobs are carried from the intake into inboxes without a single decision.

XREAD ahead as a dispatcher does; then XADDs and XDELs of one batch in one pipeline, not in a transaction. Nothing is
decoded, checked or remembered, inboxes have their turns, and only `job` and `payload` are handed on. No dispatcher on
this client library can be faster.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from benchmarks.measure import STALL_S, BenchmarkFailed, Round, Stopwatch, server_counters
from benchmarks.workload import Workload, entries_in, fill, inboxes, intake_streams
from scheduler.config import Settings
from scheduler.loop import end_tasks
from scheduler.store.cleanup import remove_namespace
from scheduler.store.connection import Client
from scheduler.store.store import Store, open_store


class _Entry(NamedTuple):
    stream: str
    identifier: str
    fields: dict[bytes, bytes]


class Relay:
    """Carries: `step` again and again, then `close`. Reads with as many entries at once as a dispatcher does.

    Args: store; settings; inboxes, that have their turns; batch, jobs of one round trip.
    """

    def __init__(self, store: Store, settings: Settings, inboxes: Iterable[str], batch: int) -> None:
        self._commands = store.connection.commands
        self._reads = store.new_reads()
        self._next_inbox = itertools.cycle(inboxes)
        self._batch = batch
        self._cursors = dict.fromkeys(intake_streams(store, settings), "0")
        self._count = max(1, settings.read_ahead_max // len(self._cursors))
        self._ahead = asyncio.create_task(self._read())

    async def step(self) -> int:
        """Carry what has been read, while what comes after it is read. Returns: how many jobs those were."""
        entries = await self._ahead
        self._ahead = asyncio.create_task(self._read())
        for start in range(0, len(entries), self._batch):
            await _move(self._commands, entries[start : start + self._batch], self._next_inbox)
        return len(entries)

    async def close(self) -> None:
        """Read no more."""
        await end_tasks([self._ahead])
        await self._reads.close()

    async def _read(self) -> list[_Entry]:
        """What came after the last read; empty when nothing did."""
        reply = await self._reads.streams(self._cursors, self._count)
        for stream, found in reply.items():
            self._cursors[stream] = found[-1][0]
        return [_Entry(stream, identifier, fields) for stream, found in reply.items() for identifier, fields in found]


async def relay_round(url: str, settings: Settings, workload: Workload) -> Round:
    """Fill the intake, carry everything, and check that all of it arrived.

    Args: url; settings, of a namespace that is this round's own and empty again afterwards; workload.
    Raises: BenchmarkFailed.
    """
    async with await open_store(url, settings) as store:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(remove_namespace, store)
            await store.control.write_layout()
            await fill(store, settings, workload)
            measured = await _carry(store, settings, workload)
            await _check(store, settings, workload)
        return measured


async def _carry(store: Store, settings: Settings, workload: Workload) -> Round:
    watch = Stopwatch(await server_counters(store))
    watch.start()
    moved, moved_s = 0, time.monotonic()
    relay = Relay(store, settings, inboxes(store, workload), workload.batch)
    try:
        while moved < workload.jobs:
            count = await relay.step()
            if count:
                moved, moved_s = moved + count, time.monotonic()
            elif time.monotonic() - moved_s > STALL_S:
                raise BenchmarkFailed(f"relay: {moved} of {workload.jobs} jobs were moved, then nothing came")
        watch.stop()
    finally:
        await relay.close()
    return watch.round(moved, await server_counters(store))


async def _move(client: Client, entries: list[_Entry], next_inbox: Iterator[str]) -> None:
    """One batch in one round trip."""
    pipeline = client.pipeline(transaction=False)
    for entry in entries:
        fields = entry.fields
        pipeline.execute_command("XADD", next(next_inbox), "*", "job", fields[b"job"], "payload", fields[b"payload"])
    for stream, group in itertools.groupby(entries, lambda entry: entry.stream):
        pipeline.execute_command("XDEL", stream, *(entry.identifier for entry in group))
    await pipeline.execute()


async def _check(store: Store, settings: Settings, workload: Workload) -> None:
    left = await entries_in(store, intake_streams(store, settings))
    arrived = await entries_in(store, inboxes(store, workload))
    if (left, arrived) != (0, workload.jobs):
        raise BenchmarkFailed(f"relay: {arrived} of {workload.jobs} jobs are in inboxes, {left} are left in the intake")
