"""One measurement: one design, so many jobs in flight, on a fleet of its own that is gone afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from benchmarks.fleet import Member
from benchmarks.measure import busy_us, without_collections
from benchmarks.v2.account import Measured, arrivals, completed, errors, latencies_us
from benchmarks.v2.child import Child
from benchmarks.v2.closed_loop import ClosedLoop
from benchmarks.v2.rows import Row
from benchmarks.watching import Sending, fleet, job_ids_in, watching
from benchmarks.workload import Workload
from scheduler.config import Settings
from scheduler.loop import end_tasks
from scheduler.store.store import Store

_S: Final = 1_000_000_000
_US: Final = 1_000_000


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured with. slots: of each node; warm_up_s and seconds: how long the load runs before and while it
    counts.
    """

    nodes: int
    slots: int
    sessions: int
    payload_bytes: int
    warm_up_s: float
    seconds: float

    def workload(self) -> Workload:
        """The jobs: as many as half of the slots, so that a slot is always free, wherever a job is placed."""
        return Workload(
            jobs=max(1, self.nodes * self.slots // 2),
            batch=1,
            nodes=self.nodes,
            sessions=self.sessions,
            payload_bytes=self.payload_bytes,
        )


class _Mark(msgspec.Struct, frozen=True):
    """A moment, and what everybody had used by then."""

    at_ns: int
    server_us: float
    scheduler_us: float
    load_us: float
    busy_us: float | None


class Stage:
    """What cells share: the server, the process that designs run in, and the jobs, which are made once.

    Args: url; settings; child; load.
    """

    def __init__(self, url: str, settings: Settings, child: Child, load: Load) -> None:
        self._url = url
        self._settings = settings
        self._child = child
        self._load = load
        self._workload = load.workload()
        self._documents = list(self._workload.documents())

    async def measure(self, row: Row, in_flight: int) -> Measured:
        """One cell. Raises: BenchmarkFailed."""
        members = [Member(node, self._load.slots) for node in self._workload.node_names()]
        async with fleet(self._url, self._settings, members) as store:
            layout = await store.layout()
            jobs = [
                Sending(store.reads.keys.jobs(store.partition_of(session_id, layout)), document)
                for session_id, document in self._documents
            ]
            loop = ClosedLoop(store.connection.commands, jobs, self._workload.payload())
            await self._child.start(row)
            async with watching(store, loop.appeared):
                before, after = await self._window(store, loop, in_flight)
            await self._child.stop()
            return await self._measured(store, loop, before, after)

    async def _window(self, store: Store, loop: ClosedLoop, in_flight: int) -> tuple[_Mark, _Mark]:
        """Run the load; the beginning and the end of what counts."""
        with without_collections():
            running = asyncio.create_task(loop.run(in_flight))
            try:
                await asyncio.wait([running], timeout=self._load.warm_up_s)
                before = await self._mark(store)
                await asyncio.wait([running], timeout=self._load.seconds)
                after = await self._mark(store)
                loop.stop()
                await running
            finally:
                await end_tasks([running])
        return before, after

    async def _mark(self, store: Store) -> _Mark:
        cpu = await store.connection.commands.info("cpu")
        scheduler_us = await self._child.cpu_ns() / 1_000
        return _Mark(
            at_ns=time.perf_counter_ns(),
            server_us=(cpu["used_cpu_user"] + cpu["used_cpu_sys"]) * _US,
            scheduler_us=scheduler_us,
            load_us=time.process_time_ns() / 1_000,
            busy_us=busy_us(),
        )

    async def _measured(self, store: Store, loop: ClosedLoop, before: _Mark, after: _Mark) -> Measured:
        nodes = self._workload.node_names()
        inboxes = await job_ids_in(store, [store.reads.keys.inbox(node) for node in nodes])
        held = await _held(store, nodes)
        sent_ns = {f"j{number}": at_ns for number, at_ns in enumerate(loop.sent_ns)}
        arrived_ns = arrivals(loop.seen, inboxes)
        server_us, scheduler_us = after.server_us - before.server_us, after.scheduler_us - before.scheduler_us
        load_us, others_us = after.load_us - before.load_us, None
        if before.busy_us is not None and after.busy_us is not None:
            others_us = max(0.0, after.busy_us - before.busy_us - server_us - scheduler_us - load_us)
        return Measured(
            seconds=(after.at_ns - before.at_ns) / _S,
            jobs=completed(arrived_ns, before.at_ns, after.at_ns),
            latencies_us=latencies_us(sent_ns, arrived_ns, before.at_ns, after.at_ns),
            errors=errors(sent_ns, inboxes, held, self._load.slots),
            server_us=server_us,
            scheduler_us=scheduler_us,
            load_us=load_us,
            others_us=others_us,
        )


async def _held(store: Store, nodes: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The ids of the jobs that hold a slot of each node."""
    pipeline = store.connection.commands.pipeline(transaction=False)
    for node in nodes:
        pipeline.zrange(store.reads.keys.slots(node), 0, -1)
    answers = await pipeline.execute()
    return {node: [member.decode() for member in members] for node, members in zip(nodes, answers, strict=True)}
