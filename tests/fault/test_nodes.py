"""Nodes that are killed, stopped, paused and replaced, as processes."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from scheduler.audit import audit
from scheduler.audit.records import read_file
from scheduler.producer import Request
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.messages import Outcome
from tests.fault.processes import process
from tests.fault.proxy import proxy
from tests.system import System, running

WAIT_MS = 30_000


def node(node_id: str, capacity: int, work_ms: int, record: Path | None = None) -> list[str]:
    """The command line of a simulated node."""
    line = ["node", "--id", node_id, "--capacity", str(capacity), "--pair", "en:zh", "--work-ms", str(work_ms)]
    return line + (["--record", str(record)] if record else [])


async def submit(system: System, count: int, sessions: int = 10) -> list[str]:
    """Submit jobs; their ids."""
    requests = [Request(JobDocument(f"s{i % sessions}", f"j{i}", src_lang="en", tgt_lang="zh")) for i in range(count)]
    return [answer.job_id for answer in await system.producer.submit_many(requests)]


async def ended(system: System, job_ids: list[str]) -> list[Outcome]:
    """How the jobs ended."""
    return list(await asyncio.gather(*(system.producer.outcome(job_id, WAIT_MS) for job_id in job_ids)))


async def holds(system: System, node_id: str, count: int) -> bool:
    """Whether a node holds at least `count` slots."""
    return (await system.store.reads.used([node_id]))[0] >= count


async def test_sigkill_of_a_node_with_running_jobs(url: str) -> None:
    """All its jobs complete elsewhere, none is lost or counted as done twice, and its slots are 0 afterwards."""
    async with running(url) as system, process(url, *node("n2", 4, 20)):
        async with process(url, *node("n1", 4, 60_000)) as doomed:
            await system.until(lambda: "n1" in system.dispatcher.snapshots.index.nodes)
            ids = await submit(system, 60)
            await system.until(lambda: holds(system, "n1", 4))
            doomed.send(signal.SIGKILL)
            outcomes = await ended(system, ids)
        assert {(outcome.state, outcome.node) for outcome in outcomes} == {("completed", "n2")}
        await system.until(lambda: _is_gone(system, "n1"))
        assert await system.store.reads.used(["n1"]) == [0]
        assert system.dispatcher.report.sweep_hits == 0


async def _is_gone(system: System, node_id: str) -> bool:
    return node_id not in await system.store.reads.capacities()


async def test_sigterm_drains_a_node(url: str) -> None:
    """Running jobs end where they run, at no cost of an attempt; the node leaves and exits with 0."""
    async with running(url) as system, process(url, *node("n2", 2, 5)):
        async with process(url, *node("n1", 4, 300)) as leaving:
            ids = await submit(system, 40)
            await system.until(lambda: holds(system, "n1", 4))
            leaving.send(signal.SIGTERM)
            assert await leaving.exit_code() == 0
            assert await _is_gone(system, "n1")
        outcomes = await ended(system, ids)
        assert {(outcome.state, outcome.attempts) for outcome in outcomes} == {("completed", 0)}


async def test_a_node_that_is_started_again_ends_what_its_last_life_held(url: str) -> None:
    """The new boot gives back what the old one held, long before the leases end."""
    async with running(url) as system:
        async with process(url, *node("n1", 4, 60_000)) as doomed:
            ids = await submit(system, 8)
            await system.until(lambda: holds(system, "n1", 4))
            doomed.send(signal.SIGKILL)
            await doomed.exit_code()
        async with process(url, *node("n1", 4, 5)):
            assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}


async def test_a_second_process_of_a_node_replaces_the_first(url: str) -> None:
    """The later boot takes over; the first one stops by itself and exits with 1; every job completes."""
    async with running(url) as system, process(url, *node("n1", 4, 200)) as first:
        ids = await submit(system, 24)
        await system.until(lambda: holds(system, "n1", 4))
        async with process(url, *node("n1", 4, 5)):
            assert await first.exit_code() == 1
            assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}


def over_capacity(*records: Path) -> tuple[str, ...]:
    """Every start that left a node with more handlers than slots, by the nodes' own records."""
    capacities, runs = [], []
    for record in records:
        told, ran = read_file(record)
        capacities += told
        runs += ran
    evidence = audit.Evidence([], runs, [], capacities, first_submission_s=0, last_ended_s=0)
    return audit.audit(evidence).examples()


async def test_a_paused_node_wakes_after_its_slots_were_given_away(url: str, tmp_path: Path) -> None:
    """Its late reports are stale; by the nodes' own records nobody runs more handlers than it has slots."""
    there, elsewhere, log = tmp_path / "n1.jsonl", tmp_path / "n2.jsonl", tmp_path / "n1.log"
    async with running(url) as system, process(url, *node("n2", 4, 10, elsewhere)):
        async with process(url, *node("n1", 2, 400, there), log=log) as paused:
            ids = await submit(system, 30)
            await system.until(lambda: holds(system, "n1", 2))
            await paused.pause()
            outcomes = await ended(system, ids)
            paused.wake()
            # Which of the two it says depends on whether it renews first or reports first. A report that was under way
            # when the process was paused is repeated, and stale as well.
            await system.until(lambda: sum(log.read_text().count(said) for said in (" is stale", " is lost")) >= 2)
            await system.until(lambda: "n1" in system.dispatcher.snapshots.index.nodes)
            again = await submit_more(system, 30)
            await ended(system, again)
            paused.send(signal.SIGTERM)
            assert await paused.exit_code() == 0
        assert {outcome.state for outcome in outcomes} == {"completed"}
        assert await ended(system, ids) == outcomes
        assert over_capacity(there, elsewhere) == ()
        assert await system.used() == 0


async def submit_more(system: System, count: int) -> list[str]:
    """Submit jobs with other ids."""
    return [await system.producer.submit(f"s{number}", src_lang="en", tgt_lang="zh") for number in range(count)]


async def test_a_completion_that_arrives_after_the_job_was_given_away(url: str, tmp_path: Path) -> None:
    """It is stale and changes nothing: the job has the outcome of the node that it was given to."""
    there, elsewhere, log = tmp_path / "n1.jsonl", tmp_path / "n2.jsonl", tmp_path / "n1.log"
    async with (
        running(url) as system,
        proxy(url) as between,
        process(between.url, *node("n1", 1, 5, there), log=log) as late,
    ):
        holding = asyncio.create_task(between.hold_call("release"))
        await system.until(lambda: "n1" in system.dispatcher.snapshots.index.nodes)
        (job_id,) = await submit(system, 1)
        await holding
        await late.pause()
        async with process(url, *node("n2", 1, 5, elsewhere)):
            (outcome,) = await ended(system, [job_id])
            assert (outcome.state, outcome.node) == ("completed", "n2")
            late.wake()
            between.pass_all()
            await system.until(lambda: f"n1: the finish of job {job_id} is stale" in log.read_text())
            assert await ended(system, [job_id]) == [outcome]
            assert over_capacity(there, elsewhere) == ()
            assert await system.used() == 0
