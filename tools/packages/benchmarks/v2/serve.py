"""`python -m benchmarks.v2.serve URL`: the process that one design after the other runs in, as told on standard input.

A line is one command, and is answered by one line: `start <row>`, `cpu` (CPU time of this process so far, in ns),
`stop`. The end of the input ends it; so does a design that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from random import Random
from typing import Final

from benchmarks.relay import Relay
from benchmarks.v2.baseline import Baseline
from benchmarks.v2.rows import RELAY, ROWS_BY_NAME, Row
from benchmarks.workload import SEED
from scheduler.config import Settings, read_settings
from scheduler.console.process import run_async
from scheduler.loop import end_tasks
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.store.store import Store, open_store

RELAYED_AT_ONCE: Final = 64
RESERVATION_MS: Final = 3_600_000
"""Nobody renews: the nodes exist in the books alone. Ours holds a slot until a reaper comes, and none runs."""


@contextlib.asynccontextmanager
async def running(url: str, settings: Settings, row: Row) -> AsyncIterator[asyncio.Task[None]]:
    """One design at work, on a fleet that is registered; the task ends only when it fails."""
    async with await open_store(url, settings) as store, _design(store, row) as work:
        try:
            yield work
        finally:
            await end_tasks([work])


@contextlib.asynccontextmanager
async def _design(store: Store, row: Row) -> AsyncIterator[asyncio.Task[None]]:
    if row.is_ours:
        owner = f"bench+{secrets.token_hex(4)}"
        dispatcher = Dispatcher(store, store.settings, await store.layout(), owner, Random(SEED))
        await dispatcher.open()
        try:
            yield asyncio.create_task(_dispatch(dispatcher))
        finally:
            await dispatcher.close()
        return
    if row is RELAY:
        nodes = (await store.control.read_snapshot()).nodes
        relay = Relay(store, store.settings, [store.reads.keys.inbox(node.id) for node in nodes], RELAYED_AT_ONCE)
        try:
            yield asyncio.create_task(_carry(relay))
        finally:
            await relay.close()
        return
    baseline = Baseline(store, await store.control.read_snapshot(), row, RESERVATION_MS)
    await baseline.open()
    try:
        yield asyncio.create_task(baseline.run())
    finally:
        await baseline.close()


async def _dispatch(dispatcher: Dispatcher) -> None:
    while True:
        await dispatcher.run_once()


async def _carry(relay: Relay) -> None:
    while True:
        await relay.step()


async def serve(url: str, settings: Settings) -> None:
    """Do as told until the input ends. Raises: what a design fails with."""
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    while line := await told.readline():
        word, _, name = line.decode().strip().partition(" ")
        if word != "start":
            raise ValueError(f"{word!r}: expected start")
        gc.collect()
        async with running(url, settings, ROWS_BY_NAME[name]) as work:
            _answer("started")
            if not await _until_stopped(told, work):
                return
        _answer("stopped")


async def _until_stopped(told: asyncio.StreamReader, work: asyncio.Task[None]) -> bool:
    """Answer until told to stop; whether it was. Raises: what the design fails with."""
    while True:
        reading = asyncio.ensure_future(told.readline())
        await asyncio.wait([reading, work], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            reading.cancel()
            work.result()
        line = await reading
        if line == b"cpu\n":
            _answer(str(time.process_time_ns()))
        else:
            return line == b"stop\n"


def _answer(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    run_async(serve(sys.argv[1], read_settings(os.environ)))
