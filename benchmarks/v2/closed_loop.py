"""The load: so many clients that each send one job, wait until it can be read in an inbox, and send the next.

A closed loop: who waits longer sends less. So latencies say nothing of a load that does not wait for the scheduler
(there is no arrival that could be late, and none is corrected for); they compare designs under equal numbers of jobs in
flight.

The clients share two connections. One sends plain XADDs to the intake, those of all clients that are free together. On
the other the server itself tells of every entry in an inbox (keyspace notifications), whoever wrote it. An XREAD over a
thousand inboxes would cost the server more than most designs do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import ConnectionPool

from benchmarks.measure import STALL_S
from scheduler.loop import end_tasks
from scheduler.store.connection import Client
from scheduler.store.store import Store

NOTIFY: Final = "notify-keyspace-events"
_STREAM_EVENTS: Final = "Kt"


class Sending(NamedTuple):
    """A job to send: the intake stream, and its document."""

    stream: str
    document: bytes


class ClosedLoop:
    """The clients. `run` until `stop`, until all jobs were sent, or until nothing moves any more.

    Args: client, for sending; jobs, in their order; payload of each. Attributes: sent_ns, when each job was sent, in
    the order of the jobs; seen, (inbox, when) of each entry that appeared. Both by the monotonic clock of this process.
    """

    def __init__(self, client: Client, jobs: Sequence[Sending], payload: bytes) -> None:
        self.sent_ns: list[int] = []
        self.seen: list[tuple[str, int]] = []
        self._client = client
        self._jobs = jobs
        self._payload = payload
        self._news = asyncio.Event()
        self._stopping = False

    def appeared(self, inbox: str) -> None:
        """An entry is in an inbox now."""
        self.seen.append((inbox, time.perf_counter_ns()))
        self._news.set()

    def stop(self) -> None:
        """Send no more; `run` ends when the jobs in flight have arrived."""
        self._stopping = True
        self._news.set()

    async def run(self, in_flight: int) -> None:
        """Keep so many jobs in flight."""
        while True:
            if not self._stopping:
                await self._send(in_flight - (len(self.sent_ns) - len(self.seen)))
            done = self._stopping or len(self.sent_ns) == len(self._jobs)
            if done and len(self.seen) >= len(self.sent_ns):
                return
            try:
                async with asyncio.timeout(STALL_S):
                    await self._news.wait()
            except TimeoutError:
                return
            self._news.clear()

    async def _send(self, count: int) -> None:
        start = len(self.sent_ns)
        jobs = self._jobs[start : start + max(0, count)]
        if not jobs:
            return
        pipeline = self._client.pipeline(transaction=False)
        self.sent_ns += [time.perf_counter_ns()] * len(jobs)
        for job in jobs:
            pipeline.execute_command("XADD", job.stream, "*", "job", job.document, "payload", self._payload)
        await pipeline.execute()


@contextlib.asynccontextmanager
async def watching(store: Store, loop: ClosedLoop) -> AsyncIterator[None]:
    """Let the server tell the loop of every entry in an inbox; its configuration is put back afterwards."""
    before = (await store.connection.commands.config_get(NOTIFY))[NOTIFY]
    pool: Any = ConnectionPool.from_url(store.connection.url, protocol=2, socket_timeout=None)  # silence is no failure
    connection = await pool.get_connection()
    inboxes = store.reads.keys.inbox("")

    async def listen() -> None:
        while True:
            _, _, channel, event = await connection.read_response()
            if event == b"xadd":
                loop.appeared(channel.partition(b"__:")[2].decode())

    await connection.send_command("PSUBSCRIBE", f"__keyspace@*__:{inboxes}*")
    await connection.read_response()
    await store.connection.commands.config_set(NOTIFY, before + _STREAM_EVENTS)
    listening = asyncio.create_task(listen())
    try:
        yield
        if listening.done():
            listening.result()
    finally:
        await end_tasks([listening])
        await store.connection.commands.config_set(NOTIFY, before)
        await pool.disconnect()
