"""Nodes under leases: late assignments, failing renewals, drains that are taken back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from scheduler.clock import SYSTEM_CLOCK
from scheduler.errors import Retry, ServerUnavailable
from scheduler.node.attempts import Observer
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.protocol import messages
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Reason
from scheduler.roles import REAPER_EVERY_MS, start_manager, start_reaper
from scheduler.server.embedded import EmbeddedServer
from scheduler.store.cell import Cell, Leaves
from scheduler.store.control import Beaten, Control, Leading
from scheduler.store.fast_connection import Cap
from scheduler.store.reads import READ_BLOCK_MS, Reads, StreamEntry
from tests.fault.test_nodes import ended, submit
from tests.integration.test_main_job import EN_ZH, WAIT_MS, Gate
from tests.system import QUICK, System, running

CAREFUL = msgspec.structs.replace(QUICK, start_ms=700, lease_ms=700, margin_ms=200)


class Spans(Observer):
    """What a node says of its own handlers: (job_id, started_us, ended_us)."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, int, int]] = []
        self._started: dict[int, int] = {}

    def started(self, job: Job, at_us: int) -> None:
        self._started[job.token] = at_us

    def ended(self, job: Job, at_us: int) -> None:
        self.spans.append((job.job_id, self._started.pop(job.token), at_us))

    def begun(self) -> int:
        """How many handlers run that have begun."""
        return len(self._started)

    def most(self) -> int:
        """How many handlers ran at once."""
        return max(sum(start <= at < end for _, start, end in self.spans) for _, at, _ in self.spans)


class Attempts:
    """A handler that remembers (job_id, attempt, token) of each run."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int, int]] = []

    async def __call__(self, job: Job) -> str:
        self.runs.append((job.job_id, job.attempt, job.token))
        return job.node


async def stop_reaper(system: System) -> None:
    """From now on nobody ends a lapsed lease."""
    await system.reapers.pop()[0].stop()


async def server_ms(system: System) -> float:
    """The server's clock."""
    return await system.store.control.time_us() / 1000


async def reserved(system: System, job_id: str) -> dict[str, str]:
    """The record of a job, once it is reserved."""
    record: dict[str, str] = {}

    async def is_reserved() -> bool:
        nonlocal record
        record = await system.store.reads.record(job_id)
        return record.get("state") == "reserved"

    await system.until(is_reserved)
    return record


# ---- leases --------------------------------------------------------------------------------------------------------


async def lease_until_ms(system: System, job_id: str) -> int:
    """The end of the lease of a job that is reserved (server time)."""
    (lease,) = await system.store.reads.leases((await reserved(system, job_id))["node"], [job_id])
    assert lease.until_ms is not None
    return lease.until_ms


@pytest.mark.parametrize("is_taken", [True, False])
async def test_an_assignment_that_arrives_late_starts_only_if_it_can_be_renewed(
    url: str, monkeypatch: pytest.MonkeyPatch, is_taken: bool
) -> None:
    """RULES 11: it runs under a new lease; or the reaper has taken it, and it runs under its next token."""
    arrived, read_inbox = asyncio.Event(), Reads.streams
    handler = Attempts()

    async def late(
        self: Reads, cursors: dict[str, str], count: int, block_ms: int | None = READ_BLOCK_MS, cap: Cap | None = None
    ) -> dict[str, list[StreamEntry]]:
        read = await read_inbox(self, cursors, count, block_ms, cap)
        if any(b"job" in fields for _, fields in read.get(self.keys.inbox("n1"), [])):
            await arrived.wait()
        return read

    monkeypatch.setattr(Reads, "streams", late)
    settings = msgspec.structs.replace(QUICK, start_ms=300, margin_ms=50)
    async with running(url, settings) as system:
        await system.add_node("n1", handler)
        await stop_reaper(system)
        (job_id,) = await submit(system, 1)
        first = int((await reserved(system, job_id))["token"])
        too_late_ms = await lease_until_ms(system, job_id) - settings.margin_ms

        async def is_too_late() -> bool:
            return await server_ms(system) >= too_late_ms

        await system.until(is_too_late)
        assert handler.runs == []
        if is_taken:
            system.reapers.append(await start_reaper(url, settings))

            async def is_reserved_again() -> bool:
                return int((await system.store.reads.record(job_id)).get("token", 0)) > first

            await system.until(is_reserved_again)
        arrived.set()
        (outcome,) = await ended(system, [job_id])
        assert (outcome.state, outcome.attempts) == ("completed", 0)
        assert (outcome.token > first) is is_taken
        assert [run[0] for run in handler.runs] == [job_id]
        assert handler.runs[0][2] == outcome.token


async def test_handlers_of_a_node_that_is_cut_off_stop_before_their_leases_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES 11: neither renewals nor reports get through; by the nodes' own records no job runs twice at once."""
    renew, release = Cell.renew, Cell.release

    async def cut_off_renew(
        self: Cell, node: str, reservations: Sequence[tuple[str, int]]
    ) -> tuple[int, float, list[messages.Renewed | messages.NotRenewed]]:
        if node == "n1":
            raise ServerUnavailable("cut off")
        return await renew(self, node, reservations)

    async def cut_off_release(
        self: Cell, items: Sequence[messages.ReleaseItem], retention_ms: int, dead_retention_ms: int
    ) -> tuple[int, list[messages.Released | messages.NotReleased]]:
        if items[0].node == "n1" and items[0].verdict != "expire":
            raise ServerUnavailable("cut off")
        return await release(self, items, retention_ms, dead_retention_ms)

    async def for_ever(_: Job) -> None:
        await asyncio.Event().wait()

    there, elsewhere, handler = Spans(), Spans(), Attempts()
    with monkeypatch.context() as patched:
        patched.setattr(Cell, "renew", cut_off_renew)
        patched.setattr(Cell, "release", cut_off_release)
        async with running(url, CAREFUL) as system:
            await system.add_node("n1", for_ever, capacity=3, observer=there)
            ids = await submit(system, 3)
            await system.until(lambda: system.nodes["n1"].running == 3)
            await system.add_node("n2", handler, capacity=3, observer=elsewhere)
            outcomes = await ended(system, ids)
            patched.undo()
        assert {(outcome.state, outcome.node) for outcome in outcomes} == {("completed", "n2")}
        stopped = {job_id: end for job_id, _, end in there.spans}
        begun = {job_id: start for job_id, start, _ in elsewhere.spans}
        assert sorted(stopped) == sorted(begun) == sorted(ids)
        assert [job_id for job_id in ids if begun[job_id] < stopped[job_id]] == []


async def test_renewals_carry_a_handler_past_its_first_lease(url: str) -> None:
    """RULES 12: a job that was started in time keeps its reservation for as long as its node renews it."""
    gate = Gate()
    settings = msgspec.structs.replace(QUICK, start_ms=400, margin_ms=50)
    async with running(url, settings) as system:
        await system.add_node("n1", gate)
        (job_id,) = await submit(system, 1)
        await gate.wait_for(1)
        first = await reserved(system, job_id)
        later_ms = await lease_until_ms(system, job_id) + REAPER_EVERY_MS

        async def is_later() -> bool:
            return await server_ms(system) > later_ms

        await system.until(is_later)
        assert (await reserved(system, job_id))["token"] == first["token"]
        gate.open.set()
        (outcome,) = await ended(system, [job_id])
        assert (outcome.state, outcome.token, gate.started) == ("completed", int(first["token"]), [job_id])


async def test_a_handler_that_runs_for_too_long_is_stopped(url: str) -> None:
    """RULES 12: past the longest run of its pool it costs an attempt, and the last one ends the job."""
    gate = Gate()
    settings = msgspec.structs.replace(QUICK, run_ms_max=1, attempts_max=1, start_ms=400, lease_ms=600, margin_ms=50)
    async with running(url, settings) as system:
        node = await system.add_node("n1", gate)
        (outcome,) = await ended(system, await submit(system, 1))
        assert (outcome.state, outcome.reason, outcome.attempts) == ("dead", "attempts_exhausted", 1)
        assert outcome.detail == "failed 1 times; last: the handler ran for longer than its pool allows"
        assert (len(gate.started), node.running) == (1, 0)


async def test_an_outage_longer_than_the_leases_costs_nothing(
    server: EmbeddedServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES 16 and 29: handlers stop meanwhile and every call is waited out; then the jobs run, as first attempts."""
    monkeypatch.setattr("scheduler.store.connection.COMMAND_TIMEOUT_MS", 300)
    settings = msgspec.structs.replace(QUICK, start_ms=1_200, lease_ms=1_200)
    runs: list[int] = []
    begun, stopped = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def handle(job: Job) -> None:
        runs.append(job.attempt)
        if len(runs) <= 4:
            begun.release()
            try:
                await asyncio.Event().wait()
            finally:
                stopped.release()

    async with running(url, settings) as system:
        node = await system.add_node("n1", handle)
        ids = await submit(system, 8)
        for _ in range(4):
            await begun.acquire()
        await system.until(lambda: _all_renewed(node))
        last_ends_ms = max(running.lease.ends_ms for running in node._attempts.running.values())
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for _ in range(4):
                await stopped.acquire()
            while SYSTEM_CLOCK.ms() <= last_ends_ms:
                await asyncio.to_thread(SYSTEM_CLOCK.ms)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        outcomes = await ended(system, ids)
        assert {(outcome.state, outcome.attempts) for outcome in outcomes} == {("completed", 0)}
        assert runs == [1] * 12
        assert (await system.used(), system.dispatcher.report.rejected) == (0, 0)


def _all_renewed(node: Node) -> bool:
    return all(running.lease.length_ms == running.lease.lease_ms for running in node._attempts.running.values())


# ---- drains --------------------------------------------------------------------------------------------------------


class Leader:
    """Says what a node may hold, in place of the manager."""

    def __init__(self, system: System, node: Node, epoch: int) -> None:
        self._system = system
        self._node = node
        self._epoch = epoch

    async def say(self, slots: int, reason: Reason) -> None:
        """Write the capacity of the node."""
        item = CapacityItem(self._node.node_id, slots, self._node.boot, reason)
        assert await self._system.store.cell.capacity(self._epoch, [item]) == ["written"]


async def lead_alone(system: System, node: Node) -> Leader:
    """Take the place of the manager; `hand_back` must follow."""
    await system.managers.pop()[0].stop()
    answer = await system.store.control.lead("test+1")
    assert isinstance(answer, Leading)
    return Leader(system, node, answer.epoch)


async def hand_back(system: System) -> None:
    """Let a manager lead again."""
    await system.store.control.give_up_lead("test+1")
    system.managers.append(await start_manager(system.url, system.settings))


async def test_a_drained_node_that_is_resumed_takes_the_next_job(url: str) -> None:
    """RULES 13 and 14: it waited for its last job, hears `resumed`, and does not leave when that job has ended."""
    gate = Gate()
    async with running(url) as system:
        node = await system.add_node("n1", gate)
        leader = await lead_alone(system, node)
        first = await system.producer.submit("s1", **EN_ZH)
        await gate.wait_for(1)
        await leader.say(0, "draining")
        await system.until(lambda: node.phase == "draining")
        await leader.say(4, "ready")
        await system.until(lambda: node.phase == "serving")
        second = await system.producer.submit("s1", **EN_ZH)
        await gate.wait_for(1)
        gate.open.set()
        last = await system.producer.submit("s1", **EN_ZH)
        assert [outcome.state for outcome in await ended(system, [first, second, last])] == ["completed"] * 3
        assert (node.phase, list(await system.store.reads.capacities())) == ("serving", ["n1"])
        await hand_back(system)


async def test_resumed_just_before_leave(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 14: a node that is on its way out when it is resumed is told `busy`, stays, and runs the next job."""
    leave, answers = Cell.leave, list[str]()
    handler = Attempts()
    async with running(url) as system:
        node = await system.add_node("n1", handler)
        leader = await lead_alone(system, node)

        async def resumed_meanwhile(self: Cell, node_id: str, boot: str, why: Leaves) -> str:
            if not answers:
                await leader.say(4, "ready")
            answers.append(await leave(self, node_id, boot, why))
            return answers[-1]

        with monkeypatch.context() as patched:
            patched.setattr(Cell, "leave", resumed_meanwhile)
            await leader.say(0, "draining")
            await system.until(lambda: len(answers) > 0 and node.phase == "serving")
        job_id = await system.producer.submit("s1", **EN_ZH)
        outcome = await system.producer.outcome(job_id, WAIT_MS)
        assert (outcome.state, set(answers), node.phase) == ("completed", {"busy"}, "serving")
        await hand_back(system)


# ---- the last word -------------------------------------------------------------------------------------------------


async def until_folded(system: System) -> None:
    """Wait until every heartbeat that was sent before now has become a capacity, or none."""
    boot = f"{await system.store.control.time_us()}-probe"
    await system.store.control.beat(encode_beat(NodeBeat("probe", boot, 1)))

    async def is_folded() -> bool:
        return "probe" in await system.store.reads.capacities()

    await system.until(is_folded)


async def test_a_node_does_not_leave_before_its_last_heartbeat_is_answered(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES 14: one that arrived after `leave` would register the node again, with slots that nobody serves."""
    beat, may_arrive, sent = Control.beat, asyncio.Event(), list[asyncio.Task[Beaten]]()

    async def arrive_late(document: bytes) -> Beaten:
        await may_arrive.wait()
        return await beat(system.store.control, document)

    async def slow(self: Control, document: bytes, *rest: Any, **options: Any) -> Beaten:
        if b'"n1"' not in document or sent:
            return await beat(self, document, *rest, **options)
        sent.append(asyncio.create_task(arrive_late(document)))
        return await asyncio.shield(sent[0])  # what is sent arrives, whether or not its sender waits for the answer

    settings = msgspec.structs.replace(QUICK, silence_ms=10_000)
    async with running(url, settings) as system:
        node = await system.add_node("n1", Attempts())
        monkeypatch.setattr(Control, "beat", slow)
        await system.until(lambda: len(sent) == 1)
        leaving = asyncio.create_task(system.remove_node("n1"))
        later_ms = await server_ms(system) + 5 * QUICK.heartbeat_ms

        async def is_later() -> bool:
            return await server_ms(system) > later_ms

        await system.until(is_later)
        may_arrive.set()
        await sent[0]
        await leaving
        await until_folded(system)
        assert (node.phase, list(await system.store.reads.capacities())) == ("left", ["probe"])


async def test_jobs_with_the_same_token_run_beside_each_other(url: str) -> None:
    """After the clock went back a token is that of before plus one, and two jobs can come to the same one."""
    let_go, runs = asyncio.Event(), []

    async def handle(job: Job) -> str:
        if job.attempt == 1:
            raise Retry(delay_ms=300)
        runs.append((job.job_id, job.token))
        if job.job_id == "first":
            await let_go.wait()
        return job.job_id

    far_us = 4_000_000_000_000_000
    async with asyncio.timeout(WAIT_MS / 1000), running(url, QUICK) as system:
        await system.add_node("n1", handle)
        commands = system.store.connection.commands
        for number, name in enumerate(("first", "second"), start=1):
            await system.producer.submit("s1", job_id=name, src_lang="en", tgt_lang="zh")
            record = system.store.cell.keys.job(name)
            while await commands.hget(record, "state") != b"delayed":
                await system.store.control.time_us()
            await commands.hset(record, "holder", f"n1 {far_us}")
            while len(runs) < number:
                await system.store.control.time_us()
        let_go.set()
        assert [await system.producer.result(name, WAIT_MS) for name in ("first", "second")] == ["first", "second"]
    assert runs == [("first", far_us + 1), ("second", far_us + 1)]
