"""The command `owner`: a dispatcher is killed, or told to stop, and jobs arrive for its partitions at that moment.

Nobody serves them before another dispatcher has taken the partitions over. All times are the server's, from the moment
of the signal until reservations that are written in the inboxes.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Literal

import click
import msgspec
from chaos.processes import Process

from benchmarks.claims import bench_settings, common_options
from benchmarks.dispatchers import until_shared
from benchmarks.fleet import Member
from benchmarks.history import Percentiles, percentiles
from benchmarks.measure import BenchmarkFailed, facts
from benchmarks.verdict import Claim, Shown, conclude
from benchmarks.watching import fleet
from benchmarks.workload import Workload
from scheduler.config import Settings
from scheduler.console.common import find_server
from scheduler.console.own_server import on_own_server
from scheduler.protocol import keys, record_fields
from scheduler.store.store import Store

End = Literal["stop", "kill"]
ENDS: Final[tuple[End, ...]] = ("stop", "kill")
STOP_MS_MAX: Final = 1_000
AFTER_LEASE_MS_MAX: Final = 1_000
POLL_S: Final = 0.05
PATIENCE_S: Final = 60.0
NODES: Final = 100
SESSIONS: Final = 2_000
JOBS: Final = 5_000
QUICK_JOBS: Final = 200
ROUNDS: Final = 5


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. jobs: the backlog, all in partitions of the dispatcher that ends."""

    rounds: int
    jobs: int
    nodes: int
    partitions: int
    partition_lease_ms: int


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """One end. first_ms, last_ms: until the first job of the partition that was served again soonest, and latest;
    done_ms: until all of the backlog was placed; partitions: that changed hands.
    """

    end: End
    partitions: int
    first_ms: float
    last_ms: float
    done_ms: float


def run(plan: Plan, settings: Settings, url: str | None) -> tuple[dict[str, str | int], list[Taken]]:
    """Run all rounds. Blocks; belongs into the main thread. Raises: BenchmarkFailed, SchedulerError."""
    found: dict[str, str | int] = {}
    taken: list[Taken] = []

    async def perform(end: End, found_url: str, own: Settings) -> None:
        workload = Workload(jobs=plan.jobs, batch=1, nodes=plan.nodes, sessions=SESSIONS, payload_bytes=200)
        members = [Member(node, 2 * plan.jobs) for node in workload.node_names()]
        async with fleet(found_url, own, members) as store:
            found.update(await facts(store))
            with tempfile.TemporaryDirectory(prefix="scheduler-bench-") as directory:
                taken.append(await _round(found_url, own, store, workload, end, Path(directory)))

    for end in ENDS * plan.rounds:
        on_own_server("bench", url, settings, partial(perform, end))
        last = taken[-1]
        click.echo(f"{last.end}: {last.last_ms:,.0f} ms, all placed after {last.done_ms:,.0f} ms", err=True)
    return found, taken


async def _round(url: str, settings: Settings, store: Store, workload: Workload, end: End, logs: Path) -> Taken:
    processes: list[Process] = []
    try:
        await _start(processes, url, settings, store, logs)
        (ends,) = {owner for _, owner, _ in (await store.reads.owners()).values()}
        await _start(processes, url, settings, store, logs)
        lost = {partition for partition, (_, owner, _) in (await store.reads.owners()).items() if owner == ends}
        from_us = await store.control.time_us()
        processes[0].send(signal.SIGKILL if end == "kill" else signal.SIGTERM)
        await _fill(store, workload, lost)
        placed_us = await _placed(store, workload)
        processes[1].send(signal.SIGTERM)
        await processes[1].exit_code()
    finally:
        for process in processes:
            await process.close()
    soonest = {partition: min(times) for partition, times in placed_us.items()}
    if set(soonest) != lost:
        raise BenchmarkFailed(f"jobs of {len(soonest)} partitions were placed: expected {len(lost)}")
    return Taken(
        end=end,
        partitions=len(lost),
        first_ms=round((min(soonest.values()) - from_us) / 1_000, 1),
        last_ms=round((max(soonest.values()) - from_us) / 1_000, 1),
        done_ms=round((max(max(times) for times in placed_us.values()) - from_us) / 1_000, 1),
    )


async def _start(processes: list[Process], url: str, settings: Settings, store: Store, logs: Path) -> None:
    """One dispatcher more, until it has its share."""
    log = logs / f"dispatcher{len(processes)}.log"
    processes.append(await Process.start(url, ["dispatcher", "--log-level", "warning"], settings, log))
    await processes[-1].ready()
    await until_shared(store, settings, len(processes))


async def _fill(store: Store, workload: Workload, partitions: set[int]) -> None:
    """Write the backlog: as many jobs as are asked for, of sessions in these partitions."""
    layout = await store.layout()
    payload, left = workload.payload(), workload.jobs
    documents = msgspec.structs.replace(workload, jobs=20 * workload.jobs).documents()
    pipeline = store.connection.commands.pipeline(transaction=False)
    for session_id, document in documents:
        partition = store.partition_of(session_id, layout)
        if partition in partitions and left:
            left -= 1
            pipeline.execute_command("XADD", store.reads.keys.jobs(partition), "*", "job", document, "payload", payload)
    await pipeline.execute()
    if left:
        raise BenchmarkFailed(f"{left} of {workload.jobs} jobs were not written: no sessions in these partitions")


async def _placed(store: Store, workload: Workload) -> Mapping[int, list[int]]:
    """When each job was reserved, by partition. Raises: BenchmarkFailed when some are not, for too long."""
    inboxes = dict.fromkeys([store.reads.keys.inbox(node) for node in workload.node_names()], "0")
    found: dict[int, list[int]] = {}
    until_s = time.monotonic() + PATIENCE_S
    count = 0
    while count < workload.jobs:
        if time.monotonic() > until_s:
            raise BenchmarkFailed(f"{count} of {workload.jobs} jobs were placed within {PATIENCE_S:.0f} s")
        for inbox, entries in (await store.reads.streams(inboxes, workload.jobs, block_ms=None)).items():
            inboxes[inbox] = entries[-1][0]
            for _, fields in entries:
                if b"reservation" in fields:
                    reservation = record_fields.parse_reservation(fields[b"reservation"].decode())
                    found.setdefault(keys.partition_of_entry(reservation.entry), []).append(reservation.token)
                    count += 1
        await asyncio.sleep(POLL_S)
    return found


def show(machine: dict[str, str | int], plan: Plan, taken: Sequence[Taken]) -> Shown:
    """Each kind of end, and the verdict on the slowest partition of all rounds."""
    lines = [f"{'ms':8}{'soonest':>10}{'slowest p50':>13}{'slowest max':>13}{'all placed':>12}"]
    figures: dict[str, dict[str, Percentiles]] = {}
    claims = []
    limits = {"stop": STOP_MS_MAX, "kill": plan.partition_lease_ms + AFTER_LEASE_MS_MAX}
    for end in ENDS:
        rounds = [each for each in taken if each.end == end]
        of = {
            name: percentiles([round(getattr(each, name)) for each in rounds])
            for name in ("first_ms", "last_ms", "done_ms")
        }
        figures[end] = of
        lines.append(
            f"{end:8}{of['first_ms'].p50 or 0:10,.0f}{of['last_ms'].p50 or 0:13,.0f}{of['last_ms'].max or 0:13,.0f}"
            f"{of['done_ms'].p50 or 0:12,.0f}"
        )
        what = f"{'SIGTERM' if end == 'stop' else 'SIGKILL'} until the last partition is served again, the longest"
        claims.append(Claim(what, of["last_ms"].max, limits[end], "ms"))
    lines.append(f"a backlog of {plan.jobs:,} jobs arrives at the moment of the signal; soonest, slowest: partitions")
    return Shown(
        facts=machine,
        inputs=msgspec.structs.asdict(plan),
        figures={"ends": figures, "rounds": taken},
        lines=lines,
        claims=claims,
    )


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), help=f"Of each kind of end.  [default: {ROUNDS}; 1 with --quick]")
@click.option("--jobs", type=click.IntRange(64, 100_000), help=f"The backlog.  [default: {JOBS}; {QUICK_JOBS} quick]")
@common_options
def owner(rounds: int | None, jobs: int | None, quick: bool, as_json: bool, redis_url: str | None) -> None:
    """How soon the jobs of a dispatcher that ends are placed.

    By another one: one of two dispatchers is killed, or told to stop, and jobs arrive for its partitions. Ends with 1
    if some partition is not served again 1 s after SIGTERM, or 1 s after the lease has ended that a kill leaves behind.
    """
    settings = bench_settings()
    plan = Plan(
        rounds=rounds or (1 if quick else ROUNDS),
        jobs=jobs or (QUICK_JOBS if quick else JOBS),
        nodes=NODES,
        partitions=settings.partitions,
        partition_lease_ms=settings.partition_lease_ms,
    )
    found, taken = run(plan, settings, redis_url and find_server(redis_url).whole)
    conclude(show(found, plan, taken), as_json=as_json)
