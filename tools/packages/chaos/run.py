"""A load is submitted to a fleet of processes, one of which is hit every few seconds; then everything is audited."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from chaos.acts import ROLES, Role, draw
from chaos.evidence import longest_gap_ms, longest_partition_gap_ms, without_pauses
from chaos.fleet import Counts, Fleet, NodeShape
from scheduler.audit import audit
from scheduler.audit.records import Records, read_file
from scheduler.audit.submission import beside, follow, look_up, submit_load, to_its_end, wait_for_outcomes
from scheduler.audit.workloads import Arrival
from scheduler.config import Settings
from scheduler.console.own_server import on_own_server
from scheduler.errors import SchedulerError
from scheduler.producer import Producer
from scheduler.store.cleanup import remove_namespace
from scheduler.store.store import Store, open_store

logger = logging.getLogger("scheduler.chaos")

PATIENCE_MS: Final = 5_000
SEEN_MS_MAX: Final = 30_000
POLL_MS: Final = 20
STALL_MS: Final = 60_000
"""The run gives up when no job has ended for so long."""
CAUSES: Final = frozenset({"full", "closed", "gone", "suspect", "avoid"})
"""Why a session may leave its node when there is one pool that keeps sessions, and no session changes its languages."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run.

    seconds: of unrest at least; every_ms: between two acts; only: the roles that are hit; url: None for a server of
    its own.
    """

    arrivals: Sequence[Arrival]
    counts: Counts
    shape: NodeShape
    settings: Settings
    seconds: float
    every_ms: int
    seed: int
    only: tuple[Role, ...] = ROLES
    url: str | None = None


class Left(msgspec.Struct, frozen=True):
    """What the server still holds when every job has ended; all of it is to be 0."""

    slots: int
    intake: int
    delayed: int


class Result(msgspec.Struct, frozen=True):
    """What came of it.

    acts: role -> kind -> how often; left, before anybody was stopped; unexpected: a line for each process that ended as
    it should not; runs: handlers started, more than jobs where attempts were lost; gap_ms, partition_gap_ms: the
    longest time without a dispatch, of all and of one partition, although a job was there; ran_on_ms: the longest that
    a handler went on after its process woke; seconds: from the first submission to the last outcome.
    """

    report: audit.Report
    acts: dict[str, dict[str, int]]
    left: Left
    unexpected: tuple[str, ...]
    runs: int
    gap_ms: int
    partition_gap_ms: int
    ran_on_ms: float
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every guarantee held, every job completed and every process did as it should.

        There is one pool that keeps sessions, so none may have moved by policy; and something must be known of them.
        """
        report, sessions = self.report, self.report.sessions
        kept = sessions.judged > 0 and not self.unmeant
        whole = report.ok and report.completed == report.submitted and kept
        return whole and self.left == Left(0, 0, 0) and not self.unexpected

    @property
    def unmeant(self) -> int:
        """Jobs whose session moved for a reason that there is none for in such a run."""
        return sum(count for cause, count in self.report.sessions.spilled.items() if cause not in CAUSES)

    def document(self) -> dict[str, object]:
        """The object of `--json`: the checker's keys first."""
        figures: dict[str, object] = msgspec.to_builtins(self)
        del figures["report"]
        return self.report.document() | {"ok": self.ok} | figures


def run(plan: Plan, directory: Path) -> Result:
    """Start everything, submit the load amid the unrest, wait for all outcomes, stop everything in order, and audit.

    Args: plan; directory, for logs and records. Blocks; belongs into the main thread, with which the processes end.
    Raises: ServerUnavailable, ServerRefused, NotAccepted; SchedulerError when the fleet does not come up.
    """

    async def perform(url: str, settings: Settings) -> Result:
        return await _run(url, msgspec.structs.replace(plan, settings=settings), directory)

    return on_own_server("chaos", plan.url, plan.settings, perform)


async def _run(url: str, plan: Plan, directory: Path) -> Result:
    settings, records = plan.settings, Records()
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(await open_store(url, settings, PATIENCE_MS))
        if plan.url is not None:
            stack.push_async_callback(remove_namespace, store, settings.cells)
        fleet = Fleet(url, settings, directory, plan.counts, plan.shape)
        stack.push_async_callback(fleet.close)
        await fleet.start()
        await _until_seen(store, fleet)
        producer = await stack.enter_async_context(Producer(url, settings=settings))
        await stack.enter_async_context(beside(follow(producer, records)))
        await to_its_end(_disturb(fleet, plan, producer, records))
        await to_its_end(wait_for_outcomes(records, STALL_MS))
        await look_up(store.reads, records)
        left = await _settle(store, fleet)
        await fleet.stop()
    return _judge(fleet, records, left)


async def _until_seen(store: Store, fleet: Fleet) -> None:
    """Wait until the cell knows every node. Raises: SchedulerError."""
    deadline_s = time.monotonic() + SEEN_MS_MAX / 1000
    while time.monotonic() < deadline_s:
        capacities = await store.reads.capacities()
        if all(node in capacities for node in fleet.nodes):
            return
        await asyncio.sleep(POLL_MS / 1000)
    raise SchedulerError(f"the nodes were not seen within {SEEN_MS_MAX} ms")


async def _disturb(fleet: Fleet, plan: Plan, producer: Producer, records: Records) -> None:
    """Submit the load, and hit somebody every now and then for as long as that takes; then let all pauses end."""
    random, started_s = Random(plan.seed), time.monotonic()
    load = submit_load(producer, plan.arrivals, records, plan.settings.batch_max, _payload)
    async with asyncio.TaskGroup() as group:
        submitting = group.create_task(load)
        while not submitting.done() or time.monotonic() - started_s < plan.seconds:
            await asyncio.sleep(plan.every_ms / 1000)
            act = draw(random, fleet.seats, plan.only)
            if act is not None:
                group.create_task(fleet.perform(act))
    await fleet.ready()


def _payload(arrival: Arrival) -> bytes:
    """What the simulated work of `scheduler node` reads."""
    return msgspec.json.encode({"work_ms": arrival.work_ms})


async def _settle(store: Store, fleet: Fleet) -> Left:
    """What is left once the last answers have arrived; for two leases it may still become nothing."""
    deadline_s = time.monotonic() + 2 * store.settings.lease_ms / 1000
    while True:
        left = await _left(store, fleet)
        if left == Left(0, 0, 0) or time.monotonic() > deadline_s:
            return left
        await asyncio.sleep(POLL_MS / 1000)


async def _left(store: Store, fleet: Fleet) -> Left:
    reads, partitions = store.reads, range(store.settings.partitions)
    slots = sum(await reads.used(fleet.nodes))
    intake = sum(await reads.lengths([reads.keys.jobs(partition) for partition in partitions]))
    return Left(slots=slots, intake=intake, delayed=await reads.delayed())


def _judge(fleet: Fleet, records: Records, left: Left) -> Result:
    """Audit by the records of nodes and producer."""
    ran_on_us = 0
    for life in fleet.lives:
        if life.record is not None and life.record.exists():
            capacities, runs = read_file(life.record)
            cut, longest_us = without_pauses(runs, life.process.pauses)
            ran_on_us = max(ran_on_us, longest_us)
            records.capacities += capacities
            # Beside a successor that bears its name, the moment in which it finds that out belongs to nobody's slot.
            records.runs += cut if life.fate in ("replaced", "orphaned") else runs
    acts: dict[str, dict[str, int]] = {}
    for (role, kind), count in sorted(fleet.acts.items()):
        acts.setdefault(role, {})[kind] = count
    return Result(
        report=audit.audit(records.evidence()),
        acts=acts,
        left=left,
        unexpected=tuple(fleet.unexpected),
        runs=len(records.runs),
        gap_ms=longest_gap_ms(records.submissions, records.runs),
        partition_gap_ms=longest_partition_gap_ms(records.submissions, records.runs),
        ran_on_ms=round(ran_on_us / 1000, 1),
        seconds=round(records.last_ended_s - records.first_submission_s, 2),
    )
