"""A slow link slows things down: it stops nothing, and costs no job anything."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.producer import Producer, Request
from scheduler.protocol import keys
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.messages import NotSubmitted, SubmitItem, Submitted
from scheduler.roles import start_dispatcher
from scheduler.store import connection as connection_module
from scheduler.store import paced_reads
from scheduler.store.connection import Connection, TooSlow, ask
from scheduler.store.cutting import CALL_BYTES_MAX
from scheduler.store.fast_connection import Cap
from scheduler.store.store import Store, open_store
from tests.fault.slow_link import slow_link
from tests.system import PATIENCE_MS, QUICK, System, running

JOBS = 12
BRIEF = msgspec.structs.replace(QUICK, start_ms=1_000, lease_ms=1_500)


async def charges(store: Store, ids: list[str]) -> Counter[str]:
    """What the records of these jobs count."""
    names = ("attempts", "crashes", "not_started")
    found: Counter[str] = Counter()
    for row in await store.reads.records(ids, names):
        found.update({name: int(value) for name, value in zip(names, row, strict=True) if value and int(value)})
    return found


async def ended(system: System, ids: list[str]) -> bool:
    """Whether all have; none may be charged anything on its way."""
    assert await charges(system.store, ids) == {}
    states = [state for (state,) in await system.store.reads.records(ids, ["state"])]
    return states == ["completed"] * len(ids)


async def test_a_node_on_a_slow_link_loses_and_is_charged_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies take longer to come than a first lease lasts, and results longer to go than a later one."""
    monkeypatch.setattr(paced_reads, "CAP", Cap(0.1, 2**20))
    runs: Counter[str] = Counter()

    async def handle(job: Job) -> bytes:
        assert len(job.payload) == 60_000
        runs[job.job_id] += 1
        return bytes(60_000)

    async with slow_link(url, 300_000) as link, running(url, BRIEF) as system:
        async with Node(link.url, "n1", capacity=JOBS, handler=handle, settings=BRIEF) as node:
            requests = [Request(JobDocument(f"s{i}"), bytes(60_000)) for i in range(JOBS)]
            ids = [answer.job_id for answer in await system.producer.submit_many(requests)]
            await system.until(lambda: ended(system, ids))
            assert node.running == 0
        assert link.answered_bytes > JOBS * 60_000
        assert [reaper.report.expired for _, reaper in system.reapers] == [0]
    assert runs == dict.fromkeys(ids, 1)


async def test_results_that_take_longer_to_go_than_a_lease_lasts_are_reported(url: str) -> None:
    """All end at once, and go in one call; their leases are renewed beside it."""
    runs: Counter[str] = Counter()
    all_run = asyncio.Event()

    async def handle(job: Job) -> bytes:
        runs[job.job_id] += 1
        if len(runs) == JOBS:
            all_run.set()
        await all_run.wait()
        return bytes(60_000)

    async with slow_link(url, 300_000) as link, running(url, BRIEF) as system:
        async with Node(link.url, "n1", capacity=JOBS, handler=handle, settings=BRIEF):
            requests = [Request(JobDocument(f"s{i}")) for i in range(JOBS)]
            ids = [answer.job_id for answer in await system.producer.submit_many(requests)]
            await system.until(lambda: ended(system, ids))
        assert [reaper.report.expired for _, reaper in system.reapers] == [0]
    assert runs == dict.fromkeys(ids, 1)


async def test_a_huge_entry_never_crosses_the_link(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dispatcher refuses it by its id; a job of the same partition behind it goes on."""
    monkeypatch.setattr(paced_reads, "CAP", Cap(0.1, 2**20))
    size_bytes = 5 * 2**20
    async with slow_link(url, 1_000_000) as link, running(url, QUICK, dispatcher=False) as system:
        system.dispatchers.append(await start_dispatcher(link.url, QUICK))
        await system.add_node("n1", lambda job: job.payload)
        jobs = system.store.cell.keys.jobs(keys.partition_of("s1", DEFAULTS.partitions))
        client = system.store.connection.commands
        before_bytes = link.answered_bytes
        await client.xadd(
            jobs, {"job": json.dumps({"session_id": "s1", "job_id": "large"}), "payload": b"x" * size_bytes}
        )
        job_id = await system.producer.submit("s1", payload="hi")
        assert await system.producer.result(job_id, timeout_ms=PATIENCE_MS) == b"hi"
        assert link.answered_bytes - before_bytes < size_bytes / 4

        refused = await system.producer.outcome("large", PATIENCE_MS, unknown_ms=None)
        assert (refused.state, refused.reason) == ("dead", "too_large")
        assert refused.detail.startswith(f"payload of {size_bytes} bytes: expected at most 262144; ")
        ((_, dead),) = await system.store.reads.entries(system.store.cell.keys.dead)
        assert len(dead[b"payload"]) == DEFAULTS.payload_bytes_max


async def test_jobs_with_large_payloads_get_through_a_slow_link_to_the_dispatcher(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of their session, and small ones of other partitions need not wait for all of them."""
    monkeypatch.setattr(paced_reads, "CAP", Cap(0.1, 2**20))
    order: list[str] = []
    async with slow_link(url, 1_000_000) as link, running(url, QUICK, dispatcher=False) as system:
        requests = [Request(JobDocument("s1", f"large{i}"), bytes(200_000)) for i in range(10)]
        await system.producer.submit_many([*requests, Request(JobDocument("a", "small"))])
        system.dispatchers.append(await start_dispatcher(link.url, QUICK))
        await system.add_node("n1", lambda job: order.append(job.job_id), capacity=1)
        for request in requests:
            await system.producer.result(request.document.job_id, timeout_ms=PATIENCE_MS)
    assert [each for each in order if each != "small"] == [f"large{i}" for i in range(10)]
    assert order.index("small") < 9


async def test_a_large_submission_goes_in_calls_that_get_through(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the time that it needs, though nothing comes back for longer than a time-out."""
    monkeypatch.setattr(connection_module, "COMMAND_TIMEOUT_MS", 300)
    async with slow_link(url, 2_000_000) as link, running(url, QUICK), Producer(link.url, settings=QUICK) as producer:
        sizes: list[int] = []
        submit = producer._store.cell.submit

        async def noted(items: Sequence[SubmitItem]) -> list[Submitted | NotSubmitted]:
            sizes.append(sum(len(item.payload) for item in items))
            return await submit(items)

        monkeypatch.setattr(producer._store.cell, "submit", noted)
        answers = await producer.submit_many([Request(JobDocument(f"s{i}"), bytes(250_000)) for i in range(20)])
        assert len(answers) == 20
        assert (len(sizes), max(sizes) <= CALL_BYTES_MAX) == (3, True)


async def test_a_reply_that_still_comes_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time-out is for silence; somebody who can ask for less has a cap."""
    monkeypatch.setattr(connection_module, "COMMAND_TIMEOUT_MS", 200)
    async with await open_store(url) as store, slow_link(url, 500_000) as link:
        await store.connection.commands.set("large", b"x" * 500_000)
        slow = Connection(link.url, patience_ms=0)
        try:
            assert len(await slow.patiently(lambda: slow.commands.get("large"))) == 500_000
            assert len(await slow.patiently(lambda: ask(slow.commands, "GET", "large", cap=Cap(5, 500_100)))) == 500_000
            for cap in (Cap(0.1, 2**20), Cap(5, 100_000)):
                with pytest.raises(TooSlow):
                    await slow.patiently(lambda cap=cap: ask(slow.commands, "GET", "large", cap=cap))  # type: ignore[misc]
            assert await slow.patiently(lambda: slow.commands.get("small")) is None
        finally:
            await slow.close()
