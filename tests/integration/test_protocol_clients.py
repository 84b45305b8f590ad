"""A producer and a node that know docs/PROTOCOL.md and nothing of this package (tests/raw/), beside the real roles."""

from __future__ import annotations

import ast
import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from scheduler.node.handlers import Job
from tests.raw import node as raw_node
from tests.raw.node import Assignment, Node, Work
from tests.raw.producer import Document, Outcome, Producer
from tests.raw.server import PROTOCOL, Refused, Server
from tests.system import HASTY, QUICK, System, running

RAW = Path(__file__).resolve().parents[1] / "raw"
SLOW_START = msgspec.structs.replace(QUICK, start_ms=3_000)
LONG_LEASES = msgspec.structs.replace(QUICK, start_ms=30_000, lease_ms=30_000)


def documents(count: int, sessions: int, name: str = "j") -> list[Document]:
    """Job documents, dealt out to sessions."""
    return [
        {"job_id": f"{name}{i}", "session_id": f"s{i % sessions}", "src_lang": "en", "tgt_lang": "zh"}
        for i in range(count)
    ]


def shout(assignment: Assignment) -> str:
    """The payload in capitals."""
    return assignment.payload.decode().upper()


class Held:
    """Work that waits until it is let go or stopped, and remembers each run as (job_id, attempt)."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, int]] = []
        self.stops: list[str] = []
        self.free = threading.Event()

    def __call__(self, assignment: Assignment) -> str:
        self.runs.append((assignment.job_id, assignment.attempt))
        while not self.free.wait(0.01):
            if assignment.stopped.is_set():
                self.stops.append(assignment.job_id)
                return "stopped"
        return assignment.boot


@contextmanager
def producing(url: str, reply_to: str = "") -> Iterator[Producer]:
    """A raw producer."""
    producer = Producer(url, reply_to)
    try:
        yield producer
    finally:
        producer.close()


class Serving:
    """A raw node that runs in a thread."""

    def __init__(self, system: System, node: Node) -> None:
        self.node = node
        self._system = system
        self._task = asyncio.create_task(asyncio.to_thread(node.run))

    def _is_seen(self) -> bool:
        seen = self._system.dispatcher.snapshots.index.nodes.get(self.node.node_id)
        return seen is not None and seen.boot == self.node.boot

    async def seen(self) -> Serving:
        """Itself, once placement sees it."""
        await self._system.until(self._is_seen)
        return self

    async def ended(self) -> str:
        """Its phase, once it has ended by itself."""
        await self._task
        return self.node.phase

    async def kill(self) -> None:
        """End it without a word."""
        self.node.die()
        await self._task


@asynccontextmanager
async def serving(
    system: System, work: Work, node_id: str = "raw", *, capacity: int = 4, margin_ms: int = QUICK.margin_ms
) -> AsyncIterator[Serving]:
    """A raw node that takes jobs; killed at the end if it still runs."""
    node = await asyncio.to_thread(
        Node, system.url, node_id, work, capacity=capacity, heartbeat_ms=QUICK.heartbeat_ms, margin_ms=margin_ms
    )
    served = Serving(system, node)
    try:
        yield await served.seen()
    finally:
        await served.kill()


async def outcome(system: System, job_id: str) -> Outcome:
    """How a job ended, once it has."""
    with producing(system.url) as producer:
        return (await asyncio.to_thread(producer.wait, [job_id]))[job_id]


# ---- both ends -------------------------------------------------------------------------------------------------------


async def test_a_raw_producer_and_a_raw_node_do_200_jobs(url: str) -> None:
    """Half by XADD, half by `submit`: each runs once and completes with its own result."""
    ran: list[str] = []

    def work(assignment: Assignment) -> str:
        ran.append(assignment.job_id)
        return shout(assignment)

    async with running(url) as system, serving(system, work):
        with producing(url) as producer:
            jobs = [(document, f"payload of {document['job_id']}".encode()) for document in documents(200, 25)]

            def produce() -> dict[str, Outcome]:
                for document, payload in jobs[:100]:
                    producer.add(document, payload)
                producer.server.client.script_flush()  # as after a restart of the server
                assert producer.submit(jobs[100:]) == ["accepted"] * 100
                return producer.wait([str(document["job_id"]) for document, _ in jobs])

            found = await asyncio.to_thread(produce)
        assert found == {
            str(document["job_id"]): Outcome("completed", "", payload.decode().upper()) for document, payload in jobs
        }
        assert sorted(ran) == sorted(found)
        assert await system.used() == 0


async def test_a_raw_node_works_next_to_a_node_of_the_sdk(url: str) -> None:
    """Jobs of many sessions fill both, and all complete."""

    async def ours(job: Job) -> str:
        return "sdk"

    async with running(url) as system, serving(system, lambda _: "raw", capacity=2):
        await system.add_node("sdk", ours, capacity=2)
        with producing(url) as producer:
            jobs = [(document, b"") for document in documents(40, 40)]
            assert await asyncio.to_thread(producer.submit, jobs) == ["accepted"] * 40
            found = await asyncio.to_thread(producer.wait, [str(document["job_id"]) for document, _ in jobs])

        records = [await system.store.reads.record(job_id) for job_id in found]
        assert {each.state for each in found.values()} == {"completed"}
        assert [each.value for each in found.values()] == [record["node"] for record in records]
        assert {each.value for each in found.values()} == {"raw", "sdk"}


# ---- a node's life ---------------------------------------------------------------------------------------------------


async def test_a_raw_node_that_drains_finishes_and_leaves(url: str) -> None:
    """What runs completes, nothing of the node remains, and the next job goes to another one."""
    held = Held()
    async with running(url) as system, serving(system, held) as served:
        with producing(url) as producer:
            await asyncio.to_thread(producer.submit, [(documents(1, 1)[0], b"")])
            await system.until(lambda: len(held.runs) == 1)
            served.node.drain()
            await system.until(lambda: served.node.phase == "draining")
            assert await system.used() == 1
            held.free.set()

            assert await served.ended() == "left"
            assert (await outcome(system, "j0")).state == "completed"
            assert await system.store.reads.capacities() == {}
            assert await system.store.reads.length(system.store.cell.keys.inbox("raw")) == 0
            async with serving(system, shout, "another"):
                await asyncio.to_thread(producer.submit, [(documents(1, 1, "k")[0], b"next")])
                assert await outcome(system, "k0") == Outcome("completed", "", "NEXT")


async def test_a_raw_node_that_starts_again_ends_what_its_last_life_held(url: str) -> None:
    """Long before a lease ends, by `reboot`: the job runs again, as its second attempt."""
    held, after = Held(), Held()
    after.free.set()
    async with running(url, LONG_LEASES) as system:
        async with serving(system, held) as first:
            with producing(url) as producer:
                await asyncio.to_thread(producer.submit, [(documents(1, 1)[0], b"")])
            await system.until(lambda: len(held.runs) == 1)
            await first.kill()
        async with serving(system, after) as second:
            assert await outcome(system, "j0") == Outcome("completed", "", second.node.boot)

        assert (held.runs, after.runs) == ([("j0", 1)], [("j0", 2)])


async def test_a_raw_node_stops_when_a_later_life_of_it_appears(url: str) -> None:
    """It stops its handlers, gives their jobs back and ends; the later one runs them, as the same attempt."""
    held, after = Held(), Held()
    after.free.set()
    async with running(url, LONG_LEASES) as system, serving(system, held, margin_ms=5_000) as first:
        with producing(url) as producer:
            await asyncio.to_thread(producer.submit, [(documents(1, 1)[0], b"")])
        await system.until(lambda: len(held.runs) == 1)
        async with serving(system, after, margin_ms=5_000) as second:
            assert await first.ended() == "replaced"
            assert held.stops == ["j0"]
            assert await outcome(system, "j0") == Outcome("completed", "", second.node.boot)
            assert after.runs == [("j0", 1)]


# ---- leases ----------------------------------------------------------------------------------------------------------


async def test_a_raw_node_renews_the_lease_of_a_long_job(url: str) -> None:
    """A handler that runs for longer than the first lease and the next completes at its first attempt."""
    held = Held()
    async with running(url) as system, serving(system, held):
        with producing(url) as producer:
            await asyncio.to_thread(producer.submit, [(documents(1, 1)[0], b"")])
        await system.until(lambda: len(held.runs) == 1)

        async def lease_until_ms() -> int:
            record = await system.store.reads.record("j0")
            (lease,) = await system.store.reads.leases(record["node"], ["j0"])
            return lease.until_ms or 0

        first_ms = await lease_until_ms()

        async def prolonged() -> bool:
            return await lease_until_ms() > first_ms + 2 * QUICK.lease_ms

        await system.until(prolonged)
        held.free.set()
        assert (await outcome(system, "j0")).state == "completed"
        assert held.runs == [("j0", 1)]


async def test_a_raw_node_that_cannot_renew_stops_before_its_lease_ends(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own clock stops the handler; the job is given back, which counts as no attempt."""
    monkeypatch.setattr(Node, "_renew", lambda _: None)
    stopped_at_ms: list[tuple[int, int]] = []

    def work(assignment: Assignment) -> str:
        if stopped_at_ms:
            return f"attempt {assignment.attempt}"
        assignment.stopped.wait()
        with connected(url) as server:
            seconds, microseconds = server.client.time()
        stopped_at_ms.append((seconds * 1_000 + microseconds // 1_000, assignment.lease_until_ms))
        return "too late"

    async with running(url, SLOW_START) as system, serving(system, work, margin_ms=SLOW_START.start_ms):
        with producing(url) as producer:
            await asyncio.to_thread(producer.submit, [(documents(1, 1)[0], b"")])
        assert await outcome(system, "j0") == Outcome("completed", "", "attempt 1")

    ((at_ms, until_ms),) = stopped_at_ms
    assert at_ms < until_ms


@contextmanager
def connected(url: str) -> Iterator[Server]:
    """Connections of its own."""
    server = Server(url)
    try:
        yield server
    finally:
        server.close()


async def test_a_handler_of_a_raw_node_that_fails_is_tried_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt can complete."""
    monkeypatch.setattr(raw_node, "BACKOFF_MS", 10)

    def work(assignment: Assignment) -> dict[str, int]:
        if assignment.attempt < 3:
            raise ValueError("not yet")
        return {"attempt": assignment.attempt}

    async with running(url) as system, serving(system, work):
        with producing(url) as producer:
            await asyncio.to_thread(producer.add, documents(1, 1)[0], b"")
        assert await outcome(system, "j0") == Outcome("completed", "", {"attempt": 3})


# ---- a producer's life -----------------------------------------------------------------------------------------------


async def test_a_raw_producer_with_a_feed_of_its_own_hears_exactly_its_own_outcomes(url: str) -> None:
    """Those of others are not in it, and none of its own is missing."""
    async with running(url) as system, serving(system, shout):
        with producing(url, "mine") as mine, producing(url, "theirs") as theirs, producing(url) as everybody:
            own = documents(20, 7, "mine")

            def produce() -> tuple[list[Any], ...]:
                for mixed in zip(own, documents(20, 7, "theirs"), documents(20, 7, "other"), strict=True):
                    for producer, document in zip((mine, theirs, everybody), mixed, strict=True):
                        producer.submit([(document, b"")])
                everybody.wait([f"{name}{i}" for name in ("mine", "theirs", "other") for i in range(20)])
                heard = []
                for producer in (mine, theirs):
                    outcomes: list[dict[str, bytes]] = []
                    while entries := producer.feed():
                        outcomes += entries
                    heard.append(sorted(each["job_id"].decode() for each in outcomes))
                return tuple(heard)

            heard = await asyncio.to_thread(produce)
        assert heard == (sorted(f"mine{i}" for i in range(20)), sorted(f"theirs{i}" for i in range(20)))


async def test_a_raw_producer_that_starts_again_finds_its_results_by_job_id(url: str) -> None:
    """It kept the ids and nothing else; sending a job again is harmless."""
    async with running(url) as system, serving(system, shout):
        document = documents(1, 1)[0]
        with producing(url) as before:
            await asyncio.to_thread(before.submit, [(document, b"hello")])
            await asyncio.to_thread(before.wait, ["j0"])
        with producing(url) as again:
            assert await asyncio.to_thread(again.outcome, "j0") == Outcome("completed", "", "HELLO")
            assert await asyncio.to_thread(again.outcome, "never-sent") is None
            assert await asyncio.to_thread(again.submit, [(document, b"hello")]) == ["duplicate"]


async def test_a_raw_producer_that_lost_the_answer_submits_again(url: str) -> None:
    """The same nonce is the same submission, before and after the job has ended; it runs once."""
    runs: list[str] = []

    def work(assignment: Assignment) -> None:
        runs.append(assignment.job_id)

    async with running(url) as system:
        with producing(url) as producer:
            items = [((document, b""), "n0") for document in documents(1, 1)]
            answers = [await asyncio.to_thread(producer.submit_with, items) for _ in range(2)]
            async with serving(system, work):
                assert await outcome(system, "j0") == Outcome("completed", "", None)
                answers.append(await asyncio.to_thread(producer.submit_with, items))

        assert answers == [["accepted"]] * 3
        assert runs == ["j0"]


@pytest.mark.usefixtures("frequent_sweep")
async def test_a_raw_producer_hears_why_a_job_is_dead(url: str) -> None:
    """A language that is no language, and a job that nobody serves."""
    async with running(url, HASTY) as system, serving(system, shout):
        with producing(url) as producer:
            entry_id = await asyncio.to_thread(producer.add, {"session_id": "s1", "src_lang": "en"}, b"")
            generated = f"~0-{producer.partition_of('s1')}-{entry_id}"
            unknown: Document = {"job_id": "j0", "session_id": "s1", "src_lang": "xx", "tgt_lang": "yy"}
            await asyncio.to_thread(producer.submit, [(unknown, b"")])

        assert await outcome(system, generated) == Outcome("dead", "invalid", None)
        assert await outcome(system, "j0") == Outcome("dead", "no_compatible_node", None)


# ---- what they are made of -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, {"protocol": str(PROTOCOL + 1), "shards": "4"}, {"protocol": str(PROTOCOL), "cells": "2"}]
)
def test_raw_clients_refuse_what_they_do_not_know(url: str, fields: dict[str, str]) -> None:
    """No layout, another protocol, more cells: they write nothing."""
    with redis.Redis.from_url(url) as client:
        if fields:
            client.hset("{sched}:layout", mapping=fields)

        with pytest.raises(Refused):
            Producer(url)
        with pytest.raises(Refused):
            Node(url, "raw", shout)
        assert client.keys() == [b"{sched}:layout"][: len(fields)]


def test_raw_clients_import_nothing_of_the_scheduler() -> None:
    """The standard library, the client of the server, and each other."""
    imported = set()
    for path in sorted(RAW.glob("*.py")):
        for statement in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(statement, ast.Import):
                imported |= {alias.name for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom):
                imported.add(statement.module or "")

    others = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {"json", "zlib", "redis", "tests.raw.server"} <= imported
    assert others <= {"redis", "redis.backoff", "redis.exceptions", "redis.retry", "tests.raw.server"}
