"""The command `memory`: what one more of each costs, in the server and in a dispatcher.

In the server: how much more `used_memory` there is after so many of them. In a dispatcher: how much more its objects
take, as tracemalloc counts them; that of a waiting job contains what was read of it.
"""

from __future__ import annotations

import gc
import secrets
import time
import tracemalloc
from random import Random
from typing import Final

import click
import msgspec

from benchmarks.claims import bench_settings, common_options
from benchmarks.endings import ending
from benchmarks.fleet import COMMON_PAIRS, Member
from benchmarks.measure import STALL_S, BenchmarkFailed, facts
from benchmarks.verdict import Shown, conclude
from benchmarks.watching import fleet
from benchmarks.workload import SEED, Workload, fill, inboxes
from scheduler.config import Settings
from scheduler.console.common import find_server
from scheduler.console.own_server import on_own_server
from scheduler.protocol.snapshot import Node, Snapshot, decode_snapshot, encode_snapshot
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.runtime.index import Index
from scheduler.session.bindings import Binding, Bindings
from scheduler.store.store import Store

COUNT: Final = 20_000
QUICK_COUNT: Final = 500
NODES: Final = 100
PAYLOAD_BYTES: Final = 200
RESULT: Final = bytes(200)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. count: of each kind; payload_bytes, result_bytes: of each job."""

    count: int
    payload_bytes: int = PAYLOAD_BYTES
    result_bytes: int = len(RESULT)


class Cost(msgspec.Struct, frozen=True):
    """Bytes of one more. where: the server, or a dispatcher."""

    where: str
    what: str
    bytes: float


def run(plan: Plan, settings: Settings, url: str | None) -> tuple[dict[str, str | int], list[Cost]]:
    """Count everything. Blocks; belongs into the main thread. Raises: BenchmarkFailed, SchedulerError."""
    found: dict[str, str | int] = {}
    costs: list[Cost] = []

    async def in_server(found_url: str, own: Settings) -> None:
        async with fleet(found_url, own, [Member(f"n{number}", 2 * plan.count) for number in range(NODES)]) as store:
            found.update(await facts(store))
            costs.extend(await _of_jobs(store, own, plan))

    async def waiting(found_url: str, own: Settings) -> None:
        async with fleet(found_url, own, [Member("n0", 1)]) as store:
            costs.append(await _of_waiting(store, own, plan))

    async def nodes(found_url: str, own: Settings) -> None:
        async with fleet(found_url, own, [Member("n", 8)]) as store:
            before = await _used(store)
            async with fleet(found_url, own, [Member(f"n{number}", 8) for number in range(plan.count)]):
                costs.append(Cost("server", "a node", (await _used(store) - before) / plan.count))

    for perform in (in_server, nodes, waiting):
        on_own_server("bench", url, settings, perform)
    return found, [*costs, _of_binding(plan.count), _of_node(plan.count)]


async def _of_jobs(store: Store, settings: Settings, plan: Plan) -> list[Cost]:
    """A job on its way: in the intake, in a slot, ended; each in a session of its own."""
    workload = Workload(
        jobs=plan.count, batch=64, nodes=NODES, sessions=10 * plan.count, payload_bytes=plan.payload_bytes
    )
    nothing = await _used(store)
    await fill(store, settings, workload)
    waiting = await _used(store)
    await _place(store, settings, plan.count, placed=plan.count)
    reserved = await _used(store)
    sessions = await _release(store, workload)
    ended = await _used(store)
    names = [store.reads.keys.session(session) for session in sessions]
    client = store.connection.commands
    bindings = [await client.memory_usage(name) for name in names[:: max(1, len(names) // 100)]]
    binding = sum(bindings) / len(bindings)
    share = len(names) / plan.count  # a session with several jobs has one binding
    return [
        Cost("server", "a job in the intake", (waiting - nothing) / plan.count),
        Cost("server", "a job in a slot, without its session", (reserved - nothing) / plan.count - binding * share),
        Cost("server", "a job that has ended, with result", (ended - nothing) / plan.count - binding * share),
        Cost("server", "a session", binding),
    ]


async def _place(store: Store, settings: Settings, jobs: int, placed: int) -> Dispatcher:
    """Let a dispatcher read all jobs and place so many of them; it leaves, and what it remembers stays."""
    dispatcher = Dispatcher(store, settings, await store.layout(), f"bench+{secrets.token_hex(4)}", Random(SEED))
    await dispatcher.open()
    until_s = time.monotonic() + STALL_S * 3
    report = dispatcher.report
    while report.placed < placed or report.placed + report.waiting < jobs:
        report = await dispatcher.run_once()
        if time.monotonic() > until_s:
            raise BenchmarkFailed(f"{report.placed} of {jobs} jobs were placed and {report.waiting} wait")
    if placed == jobs:
        await dispatcher.close()
    return dispatcher


async def _release(store: Store, workload: Workload) -> set[str]:
    """End every job; the sessions."""
    layout = await store.layout()
    endings = []
    read = await store.reads.streams(dict.fromkeys(inboxes(store, workload), "0"), workload.jobs, block_ms=None)
    for inbox, entries in read.items():
        for _, fields in entries:
            if b"reservation" in fields:
                endings.append(ending(inbox.rpartition(":")[2], fields, RESULT))
    for start in range(0, len(endings), workload.batch):
        await store.cell.release(endings[start : start + workload.batch], layout.retention_ms, layout.dead_retention_ms)
    return {ending.session_id for ending in endings}


async def _of_waiting(store: Store, settings: Settings, plan: Plan) -> Cost:
    """A job that a dispatcher keeps in mind because there is no room for it."""
    workload = Workload(
        jobs=plan.count + 1, batch=64, nodes=1, sessions=10 * plan.count, payload_bytes=plan.payload_bytes
    )
    await fill(store, settings, workload)
    gc.collect()
    tracemalloc.start()
    dispatcher = await _place(store, settings, workload.jobs, placed=1)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await dispatcher.close()
    return Cost("dispatcher", "a job that waits, with its session", used / plan.count)


def _of_binding(count: int) -> Cost:
    """A session that is remembered."""
    bindings = Bindings(count, 60_000)
    tracemalloc.start()
    for number in range(count):
        bindings.wrote(f"session-{number}", Binding("default", "en", "zh", "n1"), 0)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Cost("dispatcher", "a session", used / len(bindings))


def _of_node(count: int) -> Cost:
    """A node of the snapshot and its index."""
    nodes = tuple(Node(f"n{number}", "1-b", 8, "default", COMMON_PAIRS) for number in range(count))
    encoded = encode_snapshot(Snapshot(1, nodes))
    tracemalloc.start()
    index = Index(decode_snapshot(encoded))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Cost("dispatcher", "a node", used / len(index.nodes))


async def _used(store: Store) -> int:
    """Bytes that the server has in use."""
    return int((await store.connection.commands.info("memory"))["used_memory"])


def show(machine: dict[str, str | int], plan: Plan, costs: list[Cost]) -> Shown:
    """A line of each."""
    return Shown(
        facts=machine,
        inputs=msgspec.structs.asdict(plan),
        figures={"bytes": costs},
        lines=[f"{each.where:12}{each.what:40}{each.bytes:10,.0f} bytes" for each in costs],
        claims=[],
    )


@click.command()
@click.option("--count", type=click.IntRange(100, 1_000_000), help=f"Of each.  [default: {COUNT}; {QUICK_COUNT} quick]")
@common_options
def memory(count: int | None, quick: bool, as_json: bool, redis_url: str | None) -> None:
    """How many bytes a job, a session and a node take.

    In the server, and in a dispatcher. There is no limit.
    """
    plan = Plan(count=count or (QUICK_COUNT if quick else COUNT))
    found, costs = run(plan, bench_settings(), redis_url and find_server(redis_url).whole)
    conclude(show(found, plan, costs), as_json=as_json)
