"""A fleet meets what hits everybody at once.

It is under steady load, with jobs that outlast a lease, and with more at the moment of each shock than there are
slots. After it a job is submitted to each partition and a command is sent, which shows how soon everything goes on. The
slots are looked at all the while, so that a handler which starts without a lease is seen, whatever the nodes think.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Final, cast

import msgspec

from chaos.acts import Act, Role
from chaos.evidence import without_pauses
from chaos.fleet import Counts, Fleet, NodeShape
from chaos.grants import Grants, overlaps, starts_past_lease, without_steps
from chaos.outage import sessions_of
from chaos.shocks import RETENTION_MS, SPARE_MS, Result, Shock, limit_ms_of, managed_ms_max_of
from chaos.wall_clock import WallClock
from scheduler.audit import audit
from scheduler.audit.records import read_file
from scheduler.clock import SYSTEM_CLOCK
from scheduler.config import Settings
from scheduler.console.process import run_async
from scheduler.errors import SchedulerError
from scheduler.loop import end_tasks
from scheduler.management.commands import RemovePool, encode_command
from scheduler.producer import Producer, Request
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.messages import Outcome, Submitted
from scheduler.server.embedded import EmbeddedServer, Engine, start_embedded
from scheduler.store.store import Store, open_store

logger = logging.getLogger("scheduler.chaos")

COUNTS: Final = Counts(manager=2, dispatcher=2, reaper=2, node=4)
SHAPE: Final = NodeShape(capacity=4, pairs=(("en", "zh"),))
EVERY_MS: Final = 80
WORK_MS: Final = (200, 400)
SESSIONS: Final = 40
LONG: Final = 4
BURST: Final = 24
CALM_MS: Final = 1_000
APART_MS: Final = 500
"""How long before or after a step somebody dies."""
LOOK_MS: Final = 25
COUNT_MS: Final = 80
LOOK_NODES_MAX: Final = 1_000
STALL_MS: Final = 60_000
SEEN_MS_MAX: Final = 30_000
COUNTERS: Final = ("attempts", "crashes", "not_started")


def run(
    shocks: Sequence[Shock],
    settings: Settings,
    directory: Path,
    engine: Engine | None = None,
    *,
    seed: int = 1,
    tell: Callable[[Result], None] | None = None,
) -> tuple[list[Result], list[str]]:
    """Let one fleet meet some shocks, one after the other.

    Args: shocks; settings, see `settings_of`; directory, for logs and records; engine, None for the preferred one;
    seed, of the load; tell, is given each result as soon as it is known. Blocks; belongs into the main thread.
    Returns: the results, and a line for each process that ended as it should not.
    Raises: ServerUnavailable; SchedulerError when the fleet does not come up, or the clock cannot be moved.
    """
    clock = WallClock(directory / "clock")
    with start_embedded(directory, engine=engine, variables=clock.variables) as server:
        return run_async(_run(server, clock, shocks, settings, directory, Random(seed), tell or (lambda _: None)))


async def _run(
    server: EmbeddedServer,
    clock: WallClock,
    shocks: Sequence[Shock],
    settings: Settings,
    directory: Path,
    random: Random,
    tell: Callable[[Result], None],
) -> tuple[list[Result], list[str]]:
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(await open_store(server.url, settings, None))
        await _can_be_moved(store, clock)
        fleet = Fleet(server.url, settings, directory, COUNTS, SHAPE)
        stack.push_async_callback(fleet.close)
        await fleet.start()
        await _until_seen(store, fleet)
        producer = await stack.enter_async_context(Producer(server.url, settings=settings, patience_ms=None))
        rounds = Shocks(server, clock, store, fleet, producer, settings, random)
        results = []
        for shock in shocks:
            results.append(await rounds.perform(shock))
            tell(results[-1])
        await fleet.stop()
    return results, fleet.unexpected


async def _can_be_moved(store: Store, clock: WallClock) -> None:
    """Raises: SchedulerError when the server does not see its clock move."""
    before_ms = await store.reads.now_ms()
    clock.step(-RETENTION_MS)
    await asyncio.sleep(LOOK_MS / 1000)  # it looks at its clock once for all that it does at a time
    moved_ms = await store.reads.now_ms() - before_ms
    clock.step(RETENTION_MS)
    if abs(moved_ms + RETENTION_MS) > SPARE_MS:
        raise SchedulerError("the server's clock cannot be moved: does it take no preloaded library?")


async def _until_seen(store: Store, fleet: Fleet) -> None:
    deadline_s = time.monotonic() + SEEN_MS_MAX / 1000
    while not {node.id for node in (await store.control.read_snapshot()).nodes}.issuperset(fleet.nodes):
        if time.monotonic() > deadline_s:
            raise SchedulerError(f"the nodes were not seen within {SEEN_MS_MAX} ms")
        await asyncio.sleep(LOOK_MS / 1000)


class _Jobs(msgspec.Struct):
    """The jobs of one shock. outcomes: job id -> (outcome, when it was known, seconds of the own clock);
    counted: job id -> what was counted against it, as its record last had it, which ends with the job.
    """

    submissions: list[audit.Submission] = msgspec.field(default_factory=list)
    outcomes: dict[str, tuple[Outcome, float]] = msgspec.field(default_factory=dict)
    counted: dict[str, str] = msgspec.field(default_factory=dict)
    waiting: list[asyncio.Task[None]] = msgspec.field(default_factory=list)


class Shocks:
    """One fleet and what it meets. `perform` is one shock."""

    def __init__(
        self,
        server: EmbeddedServer,
        clock: WallClock,
        store: Store,
        fleet: Fleet,
        producer: Producer,
        settings: Settings,
        random: Random,
    ) -> None:
        self._server = server
        self._clock = clock
        self._store = store
        self._fleet = fleet
        self._producer = producer
        self._settings = settings
        self._random = random
        self._numbers = count(1)
        self._goes_on = asyncio.Event()
        self._gone: tuple[str, int] | None = None
        self._ahead_us: set[int] = set()

    async def perform(self, shock: Shock) -> Result:
        """Load, shock, what shows that all goes on, a lease of more load, and the audit."""
        jobs, grants = _Jobs(), Grants()
        self._goes_on.set()
        self._gone, self._ahead_us = None, {self._server_ahead_us()}
        watching = asyncio.create_task(self._watch(grants))
        counting = asyncio.create_task(self._count(jobs))
        loading = asyncio.create_task(self._load(jobs))
        try:
            await asyncio.sleep(CALM_MS / 1000)
            long = await self._submit(jobs, ["long"] * LONG, self._settings.lease_ms + CALM_MS)
            await asyncio.sleep(CALM_MS / 1000)
            shocked_s = await self._shock(shock, jobs)
            there = {each.job_id for each in jobs.submissions if each.job_id not in long}
            managing = asyncio.create_task(self._managed_ms(shocked_s))
            probes = await self._submit(jobs, sessions_of(self._settings), 1)
            managed_ms = await managing
            await self._until_ended(jobs, there | set(probes))
            calm_s = shocked_s + (self._settings.lease_ms + CALM_MS) / 1000
            await asyncio.sleep(max(0.0, calm_s - time.monotonic()))
        finally:
            await end_tasks([loading])
        await self._until_ended(jobs, {each.job_id for each in jobs.submissions})
        left = await self._left()
        await end_tasks([watching, counting, *jobs.waiting])
        known = [ended_s for job_id, (_, ended_s) in jobs.outcomes.items() if job_id in there or job_id in probes]
        again_ms = round((max(known, default=0.0) - shocked_s) * 1000)
        return self._judge(shock, jobs, grants, left, again_ms, managed_ms)

    # ---- load ----

    async def _load(self, jobs: _Jobs) -> None:
        while True:
            await self._goes_on.wait()
            session = f"s{self._random.randrange(SESSIONS)}"
            await self._submit(jobs, [session], self._random.randint(*WORK_MS))
            await asyncio.sleep(EVERY_MS / 1000)

    async def _submit(self, jobs: _Jobs, sessions: Sequence[str], work_ms: int) -> set[str]:
        """Submit a job in each session. Returns their ids, once the server has acknowledged them."""
        payload = msgspec.json.encode({"work_ms": work_ms})
        requests = [
            Request(JobDocument(session, f"j{next(self._numbers):06}", src_lang="en", tgt_lang="zh"), payload)
            for session in sessions
        ]
        answers = await self._producer.submit_many(requests)
        for session, answer in zip(sessions, answers, strict=True):
            if not isinstance(answer, Submitted):
                raise SchedulerError(f"job {answer.job_id} was refused: {answer.why}: {answer.detail}")
            partition, _, entry_id = answer.entry.partition("/")
            jobs.submissions.append(audit.Submission(answer.job_id, session, int(partition), entry_id))
            jobs.waiting.append(asyncio.create_task(self._hear(jobs, answer.job_id)))
        return {answer.job_id for answer in answers}

    async def _hear(self, jobs: _Jobs, job_id: str) -> None:
        outcome = await self._producer.outcome(job_id)
        jobs.outcomes[job_id] = (outcome, time.monotonic())

    async def _until_ended(self, jobs: _Jobs, job_ids: set[str]) -> None:
        """Wait until these jobs have ended, or none has for a long time."""
        known, changed_s = -1, time.monotonic()
        while not job_ids <= jobs.outcomes.keys() and time.monotonic() - changed_s < STALL_MS / 1000:
            if len(jobs.outcomes) != known:
                known, changed_s = len(jobs.outcomes), time.monotonic()
            await asyncio.sleep(LOOK_MS / 1000)

    # ---- shocks ----

    async def _shock(self, shock: Shock, jobs: _Jobs) -> float:
        """Let it happen. Returns: the own time, in seconds, from when on everything is meant to go on."""
        logger.info("shock: %s", shock)
        if shock.dies is not None and shock.when == "before":
            await self._kill(shock.dies)
            await asyncio.sleep(APART_MS / 1000)
        await self._submit(jobs, [f"s{number % SESSIONS}" for number in range(BURST)], WORK_MS[0])
        if shock.kind == "step":
            return await self._step(shock)
        self._goes_on.clear()
        if shock.kind == "restart":
            self._step_clock(shock.step_ms)
            await self._fleet.restart_all()
        elif shock.kind == "pause of a node":
            await self._pause_node(shock.pause_ms)
        else:
            await self._pause_all(shock.pause_ms, with_server=shock.kind == "pause with the server")
        self._goes_on.set()
        return time.monotonic()

    async def _step(self, shock: Shock) -> float:
        killing = asyncio.create_task(self._kill(shock.dies)) if shock.dies and shock.when == "at" else None
        await asyncio.sleep(0)  # the signals are on their way
        self._step_clock(shock.step_ms)
        shocked_s = time.monotonic()
        if killing is not None:
            await killing
        if shock.dies is not None and shock.when == "after":
            await asyncio.sleep(APART_MS / 1000)
            shocked_s = time.monotonic()
            await self._kill(shock.dies)
        return shocked_s

    def _step_clock(self, step_ms: int) -> None:
        self._clock.step(step_ms)
        self._ahead_us.add(self._server_ahead_us())

    async def _kill(self, role: Role) -> None:
        if role != "node":
            await self._fleet.kill_all(role)
            return
        seat = next(name for name, seat in self._fleet.seats.items() if seat.role == "node")
        self._gone = (self._fleet.node_in(seat), SYSTEM_CLOCK.us())
        await self._fleet.perform(Act(seat, "lose"))

    async def _pause_all(self, pause_ms: int, *, with_server: bool) -> None:
        if with_server:
            os.kill(self._server.pid, signal.SIGSTOP)
        await self._fleet.pause_all()
        await asyncio.sleep(pause_ms / 1000)
        if with_server:
            os.kill(self._server.pid, signal.SIGCONT)
        self._fleet.wake_all()

    async def _pause_node(self, pause_ms: int) -> None:
        seat = next(name for name, seat in self._fleet.seats.items() if seat.role == "node")
        self._gone = (self._fleet.node_in(seat), SYSTEM_CLOCK.us())
        await self._fleet.pause_one(seat, pause_ms)

    async def _managed_ms(self, shocked_s: float) -> int:
        """How long after the shock a command is answered; this one changes nothing."""
        command = encode_command(RemovePool("nobody"))
        while await self._store.control.send_command(command, STALL_MS) is None:
            if time.monotonic() - shocked_s > STALL_MS / 1000:
                break
        return round((time.monotonic() - shocked_s) * 1000)

    # ---- what is seen, and what it says ----

    def _server_ahead_us(self) -> int:
        """By how much the server's time of day is ahead of our own clock, a little more at most."""
        now_us = time.time_ns() // 1_000
        return now_us - SYSTEM_CLOCK.us() + self._clock.ahead_ms * 1_000

    async def _watch(self, grants: Grants) -> None:
        while True:
            asked_us = SYSTEM_CLOCK.us()
            found = await self._store.reads.slots_after(self._fleet.nodes, 0, 0, LOOK_NODES_MAX)
            slots = {(node, job_id): until_ms for job_id, node, until_ms in found}
            grants.look(asked_us, SYSTEM_CLOCK.us(), slots)
            await asyncio.sleep(LOOK_MS / 1000)

    async def _count(self, jobs: _Jobs) -> None:
        """Look at what is counted against the jobs that have not ended, a few times in the shortest run."""
        while True:
            names = [each.job_id for each in jobs.submissions if each.job_id not in jobs.outcomes]
            for job_id, counted in zip(names, await self._store.reads.records(names, COUNTERS), strict=True):
                if told := [
                    f"{name} {value}" for name, value in zip(COUNTERS, counted, strict=True) if value not in (None, "0")
                ]:
                    jobs.counted[job_id] = ", ".join(told)
            await asyncio.sleep(COUNT_MS / 1000)

    async def _left(self) -> int:
        """Slots that are held though nothing runs: for a lease they may be."""
        deadline_s = time.monotonic() + self._settings.lease_ms / 1000
        while True:
            left = sum(await self._store.reads.used(self._fleet.nodes))
            if not left or time.monotonic() > deadline_s:
                return left
            await asyncio.sleep(LOOK_MS / 1000)

    def _judge(self, shock: Shock, jobs: _Jobs, grants: Grants, left: int, again_ms: int, managed_ms: int) -> Result:
        settings, names = self._settings, {each.job_id for each in jobs.submissions}
        capacities: list[audit.Capacity] = []
        runs: list[audit.Run] = []
        for life in self._fleet.lives:
            if life.record is not None and life.record.exists():
                offered, ran = read_file(life.record)
                capacities += offered
                runs += without_pauses((run for run in ran if run.job_id in names), life.process.pauses)[0]
        outcomes = [outcome for outcome, _ in jobs.outcomes.values()]
        straight = without_steps(
            runs, self._ahead_us, {each.job_id: each.entry for each in jobs.submissions}, settings.start_ms
        )
        token_of = {(run.job_id, run.token): each.token for run, each in zip(runs, straight, strict=True)}
        report = audit.audit(
            audit.Evidence(
                submissions=jobs.submissions,
                runs=straight,
                outcomes=[
                    audit.Outcome(
                        each.job_id,
                        each.life,
                        cast(audit.State, each.state),
                        token_of.get((each.job_id, each.token), each.token),
                    )
                    for each in outcomes
                ],
                capacities=capacities,
                first_submission_s=0.0,
                last_ended_s=0.0,
                session_ttl_ms=settings.session_ttl_ms,
            )
        )
        late = starts_past_lease(runs, grants, settings.start_ms, settings.lease_ms) + overlaps(runs)
        charged = self._charged(jobs, outcomes, grants)
        unended = report.submitted - report.completed - report.lost
        broken = report.duplicates + report.order_violations + report.contradictions
        broken += report.sessions.violations + unended
        return Result(
            engine=self._server.engine,
            shock=str(shock),
            submitted=report.submitted,
            lost=report.lost,
            over_capacity=report.over_capacity,
            past_lease=len(late),
            charged=len(charged),
            broken=broken,
            left=left,
            again_ms=again_ms,
            limit_ms=limit_ms_of(shock, settings),
            managed_ms=managed_ms,
            managed_ms_max=managed_ms_max_of(shock, settings),
            examples=(*report.examples(), *late[: audit.EXAMPLES_MAX], *charged[: audit.EXAMPLES_MAX]),
        )

    def _charged(self, jobs: _Jobs, outcomes: Sequence[Outcome], grants: Grants) -> list[str]:
        """Jobs that somebody counted something for, a line each; not those of a node that was gone."""
        excused: set[str] = set()
        if self._gone is not None:
            node, gone_us = self._gone
            there = [each for each in grants.all if each.node == node]
            excused = {each.job_id for each in there if each.gone_us is None or each.gone_us >= gone_us}
        counted = jobs.counted | {each.job_id: f"attempts {each.attempts}" for each in outcomes if each.attempts}
        return [f"job {job_id} was charged: {what}" for job_id, what in counted.items() if job_id not in excused]
