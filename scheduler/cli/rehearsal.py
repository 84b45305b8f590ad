"""What `demo` and `replay` share: a load is submitted on time to roles and nodes of its own, written down and audited.

All of it runs in this process: a server in memory (unless a URL was typed), manager, dispatcher, reaper, simulated
nodes and a producer. The nodes' handlers sleep and have no limit of their own, or the checker could find no node over
its capacity.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

import msgspec

from scheduler import roles
from scheduler.audit import audit
from scheduler.audit.records import NodeRecords, Records
from scheduler.audit.submission import beside, follow, look_up, submit_load, to_its_end, wait_for_outcomes
from scheduler.audit.workloads import Arrival
from scheduler.clock import SYSTEM_CLOCK
from scheduler.config import Settings
from scheduler.console import terminal
from scheduler.console.common import Connecting
from scheduler.console.own_server import on_own_server
from scheduler.console.process import stop_roles
from scheduler.errors import SchedulerError
from scheduler.host import Host
from scheduler.loop import end_tasks
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.producer import Producer
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.store.cleanup import remove_namespace
from scheduler.store.store import Store, open_store
from scheduler.url import ServerUrl, parse_url

logger = logging.getLogger("scheduler.rehearsal")

T = TypeVar("T")

FOUND_MS_MAX: Final = 5_000
READY_MS_MAX: Final = 30_000
READY_POLL_MS: Final = 10
STALL_MS: Final = 60_000
"""A rehearsal ends when no job has ended for so long, beyond the longest job."""
DRAIN_MS_MAX: Final = 3_000
STOP_MS_MAX: Final = 5_000
RETENTION_SPARE_MS: Final = 3_600_000


class SimulatedNode(msgspec.Struct, frozen=True):
    """A node of the rehearsal's fleet; pairs are (source, target) languages."""

    node_id: str
    pool: str
    capacity: int
    pairs: tuple[tuple[str, str], ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is rehearsed.

    name: of the command, for the namespace on somebody else's server; url: None for a server of its own.
    """

    name: str
    arrivals: Sequence[Arrival]
    fleet: Sequence[SimulatedNode]
    settings: Settings
    url: ServerUrl | None = None


class Result(msgspec.Struct, frozen=True):
    """What came of it.

    waited: jobs that were not placed at their first try, or had to stand behind an earlier one; sweep_hits: placed only
    because the dispatcher's safety net looked, which no event had told; lag_ms: the latest submission; seconds: from
    the first submission to the last outcome.
    """

    report: audit.Report
    sweep_hits: int
    waited: int
    seconds: float
    lag_ms: float

    def document(self) -> dict[str, object]:
        """The object of `--json`: the checker's keys first."""
        report = self.report.document()
        broken = {name: report.pop(name) for name in ("contradictions", "violations") if name in report}
        if self.report.affinity_rate is not None:
            report["affinity_rate"] = round(self.report.affinity_rate, 4)
        report["jobs_per_s"] = round(self.report.jobs_per_s, 1)
        report |= {"sweep_hits": self.sweep_hits, "waited": self.waited}
        return report | {"seconds": round(self.seconds, 2), "submission_lag_ms": round(self.lag_ms, 1)} | broken


class Stage:
    """A rehearsal as it runs: what a view may look at. has_begun: to be called when jobs are accepted."""

    def __init__(
        self, plan: Plan, store: Store, server: str, dispatcher: Dispatcher, has_begun: Callable[[], None]
    ) -> None:
        self.plan = plan
        self.has_begun = has_begun
        self.store = store
        self.server = server
        self.dispatcher = dispatcher
        self.records = Records()
        self.started_s = time.monotonic()


Watch = Callable[[Stage], Awaitable[None]]
"""Shows a running rehearsal; it is cancelled at the end."""


def rehearse(plan: Plan, watch: Watch | None = None) -> Result:
    """Start everything, submit the load, wait for all outcomes, stop everything in order, and audit.

    Blocks; belongs into the main thread, with which a server of its own would end. Ctrl-C, SIGTERM and SIGHUP stop in
    order. Raises: ServerUnavailable, ServerRefused, NotAccepted; KeyboardInterrupt or, on the other two, SystemExit.
    """

    async def perform(url: str, settings: Settings) -> Result:
        return await _rehearse(url, msgspec.structs.replace(plan, settings=settings), watch)

    return on_own_server(plan.name, plan.url, plan.settings, perform)


async def _rehearse(url: str, plan: Plan, watch: Watch | None) -> Result:
    plan = msgspec.structs.replace(plan, settings=_roomy(plan))
    begun: Stage | None = None
    async with contextlib.AsyncExitStack() as stack:
        try:
            stage, producer = await to_its_end(_set_up(stack, url, plan))
            begun = stage
            async with contextlib.AsyncExitStack() as observers:
                await observers.enter_async_context(beside(follow(producer, stage.records)))
                if watch is not None:
                    await observers.enter_async_context(beside(watch(stage)))
                await to_its_end(_perform(stage, producer))
        except asyncio.CancelledError:  # said when the picture is gone, and before all that takes a while to stop
            ended = len(begun.records.ended) if begun else 0
            text = f"stopped: {ended:,} of {len(plan.arrivals):,} jobs had ended, so there is no verdict"
            terminal.write_line(text, err=True)
            raise
    report = audit.audit(stage.records.evidence())
    return Result(
        report=report,
        sweep_hits=stage.dispatcher.report.sweep_hits,
        waited=stage.dispatcher.state.waiting.arrivals,
        seconds=stage.records.last_ended_s - stage.records.first_submission_s,
        lag_ms=stage.records.lag_ms,
    )


def _roomy(plan: Plan) -> Settings:
    """Settings under which no outcome is forgotten before it was read."""
    settings, jobs = plan.settings, len(plan.arrivals)
    length_ms = round(max((arrival.at_ms + arrival.work_ms for arrival in plan.arrivals), default=0))
    return msgspec.structs.replace(
        settings,
        retention_ms=max(settings.retention_ms, 2 * length_ms + RETENTION_SPARE_MS),
        results_max=max(settings.results_max, 2 * jobs),
    )


# ---- roles and nodes ----


async def _set_up(stack: contextlib.AsyncExitStack, url: str, plan: Plan) -> tuple[Stage, Producer]:
    """Start everything and wait until the dispatcher knows every node. The stack stops it all, the last one first.

    The dispatcher goes before the nodes, so that none of them is given anything while it drains; the manager goes last,
    because a node leaves by its word. Until jobs are accepted, a server that cannot do it now is given
    up as soon as by any other command; a node or a role by itself would wait for it.
    """
    settings = plan.settings
    connecting = Connecting(parse_url(url))
    host = Host(connect=connecting)
    store = await stack.enter_async_context(await open_store(url, settings, FOUND_MS_MAX, connect=connecting))
    if plan.url is not None:
        stack.push_async_callback(remove_namespace, store, settings.cells)
    manager, _ = await roles.start_manager(url, settings, host)
    stack.push_async_callback(stop_roles, [manager], STOP_MS_MAX)
    reaper, _ = await roles.start_reaper(url, settings, host)
    stack.push_async_callback(stop_roles, [reaper], STOP_MS_MAX)
    # The nodes need the stage's records, and the stage the dispatcher, which is stopped before them all the same.
    nodes_stack = await stack.enter_async_context(contextlib.AsyncExitStack())
    server = await describe(store)
    role, dispatcher = await roles.start_dispatcher(url, settings, host)
    stack.push_async_callback(stop_roles, [role], STOP_MS_MAX)
    stage = Stage(plan, store, server, dispatcher, connecting.has_begun)
    nodes = await nodes_stack.enter_async_context(_serving(url, plan, stage.records, host))
    await _until_ready(dispatcher, nodes)
    producer = await stack.enter_async_context(Producer(url, settings=settings, host=host))
    stage.started_s = time.monotonic()
    return stage, producer


@contextlib.asynccontextmanager
async def _serving(url: str, plan: Plan, records: Records, host: Host) -> AsyncIterator[list[Node]]:
    """All nodes of the fleet; at the end they drain side by side."""
    nodes: list[Node] = []
    observers: list[NodeRecords] = []
    try:
        for simulated in plan.fleet:
            observer = NodeRecords(records, simulated.node_id, simulated.capacity)
            node = Node(
                url,
                simulated.node_id,
                capacity=simulated.capacity,
                handler=_work,
                pairs=simulated.pairs,
                pool=simulated.pool,
                settings=plan.settings,
                observer=observer,
                host=host,
                drain_ms_max=DRAIN_MS_MAX,
            )
            from_us = SYSTEM_CLOCK.us()
            await node.__aenter__()
            nodes.append(node)
            observers.append(observer)
            observer.serves(node, from_us)
        yield nodes
    finally:
        await _leave(nodes)
        for observer in observers:
            observer.give_up()


async def _leave(nodes: Sequence[Node]) -> None:
    """Let all nodes drain; one that waits for a server that is gone is left behind."""
    if not nodes:
        return
    tasks = [asyncio.create_task(node.__aexit__()) for node in nodes]
    try:
        done, pending = await asyncio.wait(tasks, timeout=STOP_MS_MAX / 1000)
        if pending:
            logger.warning("%d nodes did not stop within %d ms", len(pending), STOP_MS_MAX)
    finally:
        await end_tasks(tasks)
    for task in done:
        task.result()


async def _work(job: Job) -> None:
    """A simulated handler: the payload says for how many milliseconds it is busy."""
    await asyncio.sleep(float(job.payload) / 1000)


async def _until_ready(dispatcher: Dispatcher, nodes: Sequence[Node]) -> None:
    """Wait until placement sees the whole fleet, so that no job waits for the start."""
    deadline_s = time.monotonic() + READY_MS_MAX / 1000
    while time.monotonic() < deadline_s:
        if all(node.phase == "serving" and node.node_id in dispatcher.snapshots.index.nodes for node in nodes):
            return
        await asyncio.sleep(READY_POLL_MS / 1000)
    raise SchedulerError(f"the nodes were not ready within {READY_MS_MAX} ms")


async def describe(store: Store) -> str:
    """The server in a few words, such as `valkey 9.1.0 at 127.0.0.1:25000`."""
    client = store.connection.commands
    info = await store.connection.patiently(lambda: client.info("server"))
    name = str(info.get("server_name", "redis"))
    version = info.get(f"{name}_version", info.get("redis_version", "?"))
    place = str(store.connection.url).partition("://")[2]
    return f"{name} {version} at {place.removesuffix('/0')}"


# ---- the producer ----


async def _perform(stage: Stage, producer: Producer) -> None:
    """Submit the load and wait for what becomes of it. Raises: NotAccepted."""
    plan, records = stage.plan, stage.records
    await submit_load(producer, plan.arrivals, records, plan.settings.batch_max, _payload, stage.has_begun)
    longest_ms = max((arrival.work_ms for arrival in plan.arrivals), default=0.0)
    await wait_for_outcomes(records, STALL_MS + longest_ms)
    await look_up(stage.store.reads, records)


def _payload(arrival: Arrival) -> bytes:
    return f"{arrival.work_ms:.3f}".encode()
