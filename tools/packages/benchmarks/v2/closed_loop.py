"""The load: so many clients that each send one job, wait until it can be read in an inbox, and send the next.

A closed loop: who waits longer sends less. So latencies say nothing of a load that does not wait for the scheduler
(there is no arrival that could be late, and none is corrected for); they compare designs under equal numbers of jobs in
flight.

The clients share two connections: one sends plain XADDs to the intake, those of all clients that are free together; the
other is that of watching.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from benchmarks.measure import STALL_S
from benchmarks.watching import Sending
from scheduler.store.connection import Client


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
