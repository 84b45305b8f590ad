"""Bad input harms nobody else: entries, heartbeats, results and handlers that should not exist."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter

import msgspec
import pytest

from scheduler.errors import NotAccepted
from scheduler.node.handlers import Job
from scheduler.producer import Producer, Request
from scheduler.protocol import keys, messages
from scheduler.protocol.documents import JobDocument, NodeBeat, encode_beat, encode_job
from scheduler.runtime import intake
from tests.integration.test_dispatcher import bench
from tests.integration.test_main_job import EN_ZH, WAIT_MS, echo, outcomes, submit_all
from tests.system import HASTY, QUICK, System, running

NESTED = b'{"session_id":"s1","meta":' + b"[" * 3_000 + b"]" * 3_000 + b"}"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"job": NESTED}, id="a document nested too deep"),
        pytest.param({"job": b'{"session_id":"s1"}', "submitted_ms": b"9" * 5_000}, id="a time of 5,000 digits"),
        pytest.param({"job": b"\x81\xaasession_id" + b"\x91" * 3_000 + b"\x01"}, id="msgpack nested too deep"),
    ],
)
async def test_an_entry_that_cannot_be_read_leaves_its_neighbours_alone(url: str, fields: dict[str, bytes]) -> None:
    """Jobs read together with it complete; it ends with a reason, or as any other job."""
    async with running(url) as system:
        await system.add_node("n1", echo, pairs=[("en", "zh")])
        stream = system.store.cell.keys.jobs(keys.partition_of("s1", 16))
        before = await submit_all(system, [JobDocument(f"s{i}", f"a{i}", **EN_ZH) for i in range(10)])
        await system.store.connection.commands.xadd(stream, fields)
        after = await submit_all(system, [JobDocument(f"s{i}", f"b{i}", **EN_ZH) for i in range(10)])
        assert {outcome.state for outcome in await outcomes(system, before + after)} == {"completed"}
        await system.until(lambda: _is_empty(system, stream))


async def _is_empty(system: System, stream: str) -> bool:
    return await system.store.reads.length(stream) == 0


async def test_a_step_that_fails_begins_again_from_the_intake(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen error of the dispatcher loses nothing, and order holds."""
    order: list[str] = []

    async def handle(job: Job) -> None:
        order.append(job.job_id)

    decode, failures = intake.decode, iter([True])

    async with running(url) as system:
        await system.add_node("n1", handle, capacity=1)
        reads = system.dispatcher._store.reads
        bindings = reads.bindings

        async def failing(sessions: list[str]) -> list[bytes | None]:
            if next(failures, False):
                raise RuntimeError("unforeseen")
            return await bindings(sessions)

        monkeypatch.setattr(reads, "bindings", failing)
        ids = await submit_all(system, [JobDocument("s1", f"j{i}", **EN_ZH) for i in range(20)])
        assert {outcome.state for outcome in await outcomes(system, ids)} == {"completed"}
        assert order == ids
        assert decode is intake.decode


async def test_texts_that_cannot_be_encoded_and_endings_that_are_odd(url: str) -> None:
    """Whatever a handler raises costs its own job an attempt, and no other job waits for it."""
    starts = 0

    async def handle(job: Job) -> object:
        nonlocal starts
        starts += 1
        match job.payload:
            case b"surrogate":
                raise ValueError("cannot open \udcff.wav")
            case b"cancelled":
                raise asyncio.CancelledError
            case b"exit":
                sys.exit(3)
            case b"large":
                return bytes(QUICK.result_bytes_max + 1)
        return job.node

    def plain(job: Job) -> None:
        sys.exit(4)

    async with running(url) as system:
        await system.add_node("n1", handle)
        await system.add_node("n2", plain, pairs=[("en", "de")])
        ends = {}
        for payload in ("surrogate", "cancelled", "exit", "large", "good"):
            job_id = await system.producer.submit("s1", payload=payload, **EN_ZH)
            ends[payload] = (await system.producer.outcome(job_id, WAIT_MS)).reason
        job_id = await system.producer.submit("s2", src_lang="en", tgt_lang="de")
        ends["plain exit"] = (await system.producer.outcome(job_id, WAIT_MS)).reason
        tried = "attempts_exhausted"
        assert ends == {
            "surrogate": tried,
            "cancelled": tried,
            "exit": tried,
            "large": "too_large",
            "good": "",
            "plain exit": tried,
        }
        assert starts == 3 + 3 + 3 + 1 + 1


async def test_a_handler_that_will_not_stop_keeps_its_slot_empty(url: str) -> None:
    """A node never runs more handlers than it has slots, also when one swallows its cancellation."""
    now, most, finish = 0, 0, asyncio.Event()

    async def handle(job: Job) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        while not finish.is_set():
            try:
                await finish.wait()
            except asyncio.CancelledError:
                continue
        now -= 1

    settings = msgspec.structs.replace(QUICK, run_ms_max=200)
    async with running(url, settings) as system:
        node = await system.add_node("n1", handle, capacity=1)
        ids = await submit_all(system, [JobDocument(f"s{i}", f"j{i}", **EN_ZH) for i in range(3)])
        await system.until(lambda: any(each.job.stopped.is_set() for each in node._attempts.running.values()))
        await system.until(lambda: _given_back(system))
        assert most == 1
        finish.set()
        await outcomes(system, ids)
        assert most == 1


async def _given_back(system: System) -> bool:
    return bool(await system.store.connection.commands.zcard(system.store.cell.keys.delayed))


async def test_a_huge_capacity_is_refused_and_the_fleet_goes_on(url: str) -> None:
    """A heartbeat with an absurd number is ignored; so is a boot of the far future."""
    async with running(url) as system:
        client, stream = system.store.connection.commands, system.store.control.keys.heartbeats
        for capacity in ("1" + "0" * 20, "1" + "0" * 400):
            document = b'{"kind":"node","node":"bad","boot":"1000-x","capacity":%s}' % capacity.encode()
            await client.xadd(stream, {"node": document, "time_ms": b"9" * 5_000})
        future = encode_beat(NodeBeat("n1", "9999999999999999-x", 1))
        await client.xadd(stream, {"node": future})
        await client.hset(system.store.cell.keys.capacity, "odd", "inf 1000-x ready")
        await system.add_node("n1", echo)
        job_id = await system.producer.submit("s1", payload=b"x", **EN_ZH)
        assert await system.producer.result(job_id, WAIT_MS) == b"x"


@pytest.mark.usefixtures("frequent_sweep")
async def test_jobs_that_nobody_serves_leave_together(url: str) -> None:
    """A session's jobs of a pair that nobody serves do not cost the time of grace each."""
    async with running(url, HASTY) as system:
        await system.add_node("n1", echo)
        documents = [JobDocument("s1", f"x{i}", src_lang="xx", tgt_lang="yy") for i in range(12)]
        ids = await submit_all(system, [*documents, JobDocument("s1", "last", **EN_ZH)])
        async with asyncio.timeout(4):
            ended = await outcomes(system, ids)
        assert [outcome.state for outcome in ended] == ["dead"] * 12 + ["completed"]


async def test_the_same_nonce_is_the_same_submission_after_the_end_too(url: str) -> None:
    """A lost reply to a submission whose job has ended meanwhile is still an acceptance."""
    async with running(url) as system:
        await system.add_node("n1", echo)
        item = system.producer._item(*system.producer._checked(Request(JobDocument("s1", "j1", **EN_ZH))))
        first = await system.store.cell.submit([item])
        await outcomes(system, ["j1"])
        assert await system.store.cell.submit([item]) == first


@pytest.mark.parametrize(
    "record",
    [
        pytest.param({"state": "reserved"}, id="reserved by nobody"),
        pytest.param({"state": "reserved", "holder": "n1 x"}, id="a token that is no number"),
        pytest.param({"state": "delayed", "last_ending": "1 retry"}, id="ended by nobody"),
        pytest.param({"state": "queued", "holder": f"n1 {10**20}"}, id="a token beyond all numbers"),
    ],
)
async def test_a_record_that_no_script_wrote_harms_no_other_job(url: str, record: dict[str, str]) -> None:
    """It has the id of a job that is read with others; those are placed, each with a token of its own."""
    async with bench(url) as b:
        await b.fleet(n1=9)
        names, partition = b.store.cell.keys, b.partition_of("s1")
        jobs = {"bad": "s1", "j1": "s1", "j2": "s1"}
        pipeline = b.store.connection.commands.pipeline(transaction=True)
        entry = f"{partition}/9000000000000-1"
        pipeline.hset(names.job("bad"), mapping=record | {"session": "s1", "entry": entry, "submitted_ms": "1"})
        for number, job_id in enumerate(jobs, start=1):
            document = encode_job(JobDocument("s1", job_id, **EN_ZH))
            pipeline.xadd(names.jobs(partition), {"job": document}, id=f"9000000000000-{number}")
        await pipeline.execute()
        b.entries += len(jobs)
        await b.step_until_read()

        placed = await b.inbox("n1")
        assert set(placed) >= {"j1", "j2"}
        tokens = {(await b.store.reads.record(job_id))["token"] for job_id in placed}
        assert len(tokens) == len(placed)
        assert all(0 < int(token) < 2**53 for token in tokens)


async def test_a_job_that_was_submitted_as_another_is_dead_and_told(url: str) -> None:
    """RULES 8: under its own id, to who submitted it, with both values; and a job that was written and submitted runs
    once.
    """
    runs = Counter[str]()

    def handle(job: Job) -> str:
        runs[job.job_id] += 1
        return job.node

    async with running(url) as system, Producer(url, settings=QUICK, reply_to="mine") as producer:
        await system.add_node("n1", handle, pairs=())
        layout = await system.store.layout()
        document = encode_job(JobDocument("s1", "j1", reply_to="other"))
        partition = system.store.partition_of("s2", layout)
        await system.store.cell.submit([messages.SubmitItem(partition, "j1", "s2", "", "mine", "n1", document, b"")])
        outcome = await producer.outcome("j1", WAIT_MS)
        assert (outcome.state, outcome.reason, outcome.session_id) == ("dead", "invalid", "s2")
        assert "session_id = 's1' in the document, and it was submitted with 's2'" in outcome.detail
        assert "reply_to = 'other' in the document, and it was submitted with 'mine'" in outcome.detail
        told = await system.store.reads.entries(system.store.cell.keys.replies("mine"))
        assert [fields[b"job_id"] for _, fields in told] == [b"j1"]

        both = encode_job(JobDocument("s3", "j2"))
        stream = system.store.cell.keys.jobs(system.store.partition_of("s3", layout))
        await system.store.connection.commands.xadd(stream, {"job": both})
        with contextlib.suppress(NotAccepted):
            await system.producer.submit("s3", job_id="j2")
        assert (await system.producer.outcome("j2", WAIT_MS)).state == "completed"
        await system.until(lambda: is_empty(system, stream))
        assert runs == {"j2": 1}


async def is_empty(system: System, stream: str) -> bool:
    """Whether nothing of an intake is left."""
    return await system.store.reads.length(stream) == 0
