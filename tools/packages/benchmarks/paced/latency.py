"""What a paced load measures: relay and dispatcher in turns, rate by rate, each on a fleet of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

import click
import msgspec

from benchmarks.fleet import Member
from benchmarks.measure import BenchmarkFailed, facts, server_counters, without_collections
from benchmarks.paced.open_loop import OpenLoop
from benchmarks.v2.account import arrivals
from benchmarks.v2.child import Child, child
from benchmarks.v2.closed_loop import ClosedLoop
from benchmarks.v2.figures import Latency, latency
from benchmarks.v2.rows import OURS, RELAY, Row
from benchmarks.verdict import Claim, Shown
from benchmarks.watching import Sending, fleet, job_ids_in, watching
from benchmarks.workload import Workload
from scheduler.config import Settings
from scheduler.console.own_server import on_own_server
from scheduler.store.store import Store, open_store

FOUND_MS_MAX: Final = 2_000
WARM_UP_S: Final = 2.0
"""Jobs that are due so early do not count: by then most of the sessions are known, as live ones are."""
JUDGED_PER_S: Final = 1_000
LIMITS_MS: Final = {"p50": 1.0, "p99": 5.0, "p99.9": 50.0}
_MS: Final = 1_000_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. rates: jobs a second; shares: percent of the most that the dispatcher was found to place; seconds,
    jobs_max: of each measurement, whatever comes first; in_flight: when that most is looked for, of most_jobs jobs.
    """

    rates: tuple[int, ...]
    shares: tuple[int, ...]
    rounds: int
    seconds: float
    jobs_max: int
    in_flight: int
    most_jobs: int
    nodes: int
    sessions: int
    payload_bytes: int

    def jobs(self, per_s: float) -> int:
        """Of one measurement."""
        return max(1, min(self.jobs_max, round((WARM_UP_S + self.seconds) * per_s)))

    def inputs(self) -> dict[str, object]:
        """What figures depend on beside the machine."""
        shown = {name: ", ".join(map(str, getattr(self, name))) for name in ("rates", "shares")}
        return msgspec.structs.asdict(self) | shown


class Paced(msgspec.Struct, frozen=True, kw_only=True):
    """One design at one rate. per_s: that was asked for; arrived_per_s; late_ms: of the sender, the latest; server_us,
    client_us: CPU time a job of the server and of the process that the design runs in.
    """

    design: str
    per_s: int
    share: int | None
    latency: Latency
    arrived_per_s: float
    late_ms: float
    server_us: float
    client_us: float


class Found(msgspec.Struct, frozen=True):
    """What came of all. most_per_s: jobs that the dispatcher placed a second when so many were always in flight."""

    facts: dict[str, str | int]
    most_per_s: float
    rows: list[Paced]


class _Once(msgspec.Struct, frozen=True):
    latencies_us: list[int]
    seconds: float
    late_ns: int
    jobs: int
    server_us: float
    client_us: float


def run(plan: Plan, settings: Settings, url: str | None) -> Found:
    """Run everything, on a server in memory or on the one that was typed.

    Blocks; belongs into the main thread. Raises: BenchmarkFailed, ServerUnavailable, ServerRefused.
    """

    async def perform(found_url: str, own: Settings) -> Found:
        async with await open_store(found_url, own, FOUND_MS_MAX) as store:
            machine = await facts(store)
        async with child(found_url, own) as process:
            return await _Run(plan, own, found_url, process).all(machine)

    return on_own_server("bench", url, settings, perform)


class _Run:
    def __init__(self, plan: Plan, settings: Settings, url: str, process: Child) -> None:
        self._plan = plan
        self._settings = settings
        self._url = url
        self._child = process

    async def all(self, machine: dict[str, str | int]) -> Found:
        plan = self._plan
        await self._most(plan.most_jobs // 4)  # to warm up
        most_per_s = await self._most(plan.most_jobs)
        click.echo(f"at most {most_per_s:,.0f} jobs/s with {plan.in_flight} in flight", err=True)
        rates: dict[int, int | None] = dict.fromkeys(plan.rates)
        rates |= {round(most_per_s * share / 100): share for share in plan.shares}
        rows: list[Paced] = []
        for per_s, share in rates.items():
            once: dict[str, list[_Once]] = {RELAY.name: [], OURS.name: []}
            for _ in range(plan.rounds):
                for row in (RELAY, OURS):
                    once[row.name].append(await self._paced(row, per_s))
            rows += [_together(name, per_s, share, rounds) for name, rounds in once.items()]
            words = ", ".join(f"{each.design} p50 {each.latency.p50_ms:.2f}" for each in rows[-2:])
            click.echo(f"{per_s:,} jobs/s: {words} ms", err=True)
        return Found(machine, round(most_per_s, 1), rows)

    async def _most(self, jobs: int) -> float:
        """Jobs a second that appear while so many are always in flight."""
        workload = self._workload(jobs)
        async with self._fleet(workload) as store:
            sendings = await _sendings(store, workload)
            loop = ClosedLoop(store.connection.commands, sendings, workload.payload())
            await self._child.start(OURS)
            async with watching(store, loop.appeared):
                with without_collections():
                    await loop.run(self._plan.in_flight)
            await self._child.stop()
        if len(loop.seen) < jobs:
            raise BenchmarkFailed(f"{len(loop.seen)} of {jobs} jobs appeared in an inbox")
        return _per_s([at_ns for _, at_ns in loop.seen])

    async def _paced(self, row: Row, per_s: int) -> _Once:
        workload = self._workload(self._plan.jobs(per_s))
        async with self._fleet(workload) as store:
            loop = OpenLoop(self._url, await _sendings(store, workload), workload.payload())
            await self._child.start(row)
            async with watching(store, loop.appeared):
                before = await self._used_us(store)
                with without_collections():
                    await loop.run(per_s)
                after = await self._used_us(store)
            await self._child.stop()
            inboxes = await job_ids_in(store, [store.reads.keys.inbox(node) for node in workload.node_names()])
        arrived_ns = arrivals(loop.seen, inboxes)
        if len(arrived_ns) < workload.jobs:
            raise BenchmarkFailed(f"{row.name}: {len(arrived_ns)} of {workload.jobs} jobs are in an inbox")
        first = min(round(WARM_UP_S * per_s), workload.jobs // 2)
        counted = {f"j{number}": loop.due_ns[number] for number in range(first, workload.jobs)}
        return _Once(
            latencies_us=[(arrived_ns[job_id] - due_ns) // 1_000 for job_id, due_ns in counted.items()],
            seconds=(max(arrived_ns.values()) - loop.due_ns[first]) / 1_000 / _MS,
            late_ns=loop.late_ns,
            jobs=workload.jobs,
            server_us=after[0] - before[0],
            client_us=after[1] - before[1],
        )

    async def _used_us(self, store: Store) -> tuple[float, float]:
        """CPU time so far of the server and of the process that the design runs in."""
        return (await server_counters(store)).cpu_us, await self._child.cpu_ns() / 1_000

    def _fleet(self, workload: Workload) -> contextlib.AbstractAsyncContextManager[Store]:
        """Each node has a slot for every job, so that no job ever waits, wherever it is placed."""
        return fleet(self._url, self._settings, [Member(node, workload.jobs) for node in workload.node_names()])

    def _workload(self, jobs: int) -> Workload:
        plan = self._plan
        return Workload(
            jobs=max(1, jobs), batch=1, nodes=plan.nodes, sessions=plan.sessions, payload_bytes=plan.payload_bytes
        )


async def _sendings(store: Store, workload: Workload) -> list[Sending]:
    layout = await store.layout()
    return [
        Sending(store.reads.keys.jobs(store.partition_of(session_id, layout)), document)
        for session_id, document in workload.documents()
    ]


def _per_s(seen_ns: Sequence[int]) -> float:
    return len(seen_ns) / max(1e-9, (seen_ns[-1] - seen_ns[0]) / 1_000 / _MS)


def _together(name: str, per_s: int, share: int | None, rounds: Sequence[_Once]) -> Paced:
    values = [value for each in rounds for value in each.latencies_us]
    return Paced(
        design=name,
        per_s=per_s,
        share=share,
        latency=latency(values),
        arrived_per_s=round(len(values) / sum(each.seconds for each in rounds), 1),
        late_ms=round(max(each.late_ns for each in rounds) / _MS, 2),
        server_us=round(sum(each.server_us for each in rounds) / sum(each.jobs for each in rounds), 2),
        client_us=round(sum(each.client_us for each in rounds) / sum(each.jobs for each in rounds), 2),
    )


def show(plan: Plan, found: Found) -> Shown:
    """The percentiles side by side, and the verdict on those of the dispatcher at 1,000 jobs a second."""
    lines = [
        f"the dispatcher places at most {found.most_per_s:,.0f} jobs/s with {plan.in_flight} in flight",
        f"{'jobs/s':>8}{'share':>7}  {'':10}{'p50 ms':>9}{'p99 ms':>9}{'p99.9 ms':>10}{'max ms':>10}{'late ms':>9}",
    ]
    for each in found.rows:
        share = "" if each.share is None else f"{each.share} %"
        of = each.latency
        lines.append(
            f"{each.per_s:8,}{share:>7}  {each.design:10}{of.p50_ms:9.2f}{of.p99_ms:9.2f}{of.p999_ms:10.2f}"
            f"{of.max_ms:10.2f}{each.late_ms:9.2f}"
        )
    lines.append("late: how late the latest job was sent, which counts as well")
    return Shown(
        facts=found.facts,
        inputs=plan.inputs(),
        figures={"most_per_s": found.most_per_s, "rows": found.rows},
        lines=lines,
        claims=_claims(found.rows),
    )


def _claims(rows: Sequence[Paced]) -> list[Claim]:
    judged = [each.latency for each in rows if each.design == OURS.name and each.per_s == JUDGED_PER_S]
    measured: Mapping[str, float | None] = dict.fromkeys(LIMITS_MS)
    if judged:
        measured = {"p50": judged[0].p50_ms, "p99": judged[0].p99_ms, "p99.9": judged[0].p999_ms}
    return [
        Claim(f"submission until readable in an inbox, {JUDGED_PER_S:,} jobs/s, {name}", measured[name], limit, "ms")
        for name, limit in LIMITS_MS.items()
    ]
