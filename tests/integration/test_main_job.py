"""The main job, end to end: from a stream entry to a finished job, on a real server, all roles in one process."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any, TypedDict

import msgspec
import pytest

from scheduler.errors import JobFailed, NotAccepted, Reject, Retry
from scheduler.node.handlers import Job
from scheduler.producer import Producer, Request
from scheduler.protocol import keys
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.messages import Outcome, Submitted
from scheduler.roles import start_dispatcher
from tests.system import HASTY, QUICK, System, running


class Pair(TypedDict):
    """The languages of a job."""

    src_lang: str
    tgt_lang: str


EN_ZH: Pair = {"src_lang": "en", "tgt_lang": "zh"}
WAIT_MS = 20_000


async def echo(job: Job) -> bytes:
    """Give back the payload."""
    return job.payload


class Gate:
    """Handlers that wait until they are let through, and remember in what order they were called."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started: list[str] = []
        self.arrived = asyncio.Semaphore(0)

    async def __call__(self, job: Job) -> str:
        self.started.append(job.job_id)
        self.arrived.release()
        await self.open.wait()
        return job.node

    async def wait_for(self, count: int) -> None:
        """Wait until `count` more handlers have been called."""
        for _ in range(count):
            await self.arrived.acquire()


async def outcomes(system: System, job_ids: list[str]) -> list[Outcome]:
    """How the jobs ended, in the order given."""
    return list(await asyncio.gather(*(system.producer.outcome(job_id, WAIT_MS) for job_id in job_ids)))


async def submit_all(system: System, documents: list[JobDocument]) -> list[str]:
    """Submit jobs that must all be accepted; their ids."""
    answers = await system.producer.submit_many([Request(document) for document in documents])
    assert all(isinstance(answer, Submitted) for answer in answers)
    return [answer.job_id for answer in answers]


async def test_a_job_runs_and_its_result_is_read(url: str) -> None:
    """What the handler returns is what the producer reads, whatever its type."""

    async def handle(job: Job) -> Any:
        values: dict[bytes, object] = {b"bytes": b"\x00\xff", b"text": "grüße", b"json": {"a": [1, 2]}, b"none": None}
        return values[job.payload]

    async with running(url) as system:
        await system.add_node("n1", handle)
        read = []
        for payload in ("bytes", "text", "json", "none"):
            job_id = await system.producer.submit("s1", payload=payload, **EN_ZH)
            read.append(await system.producer.result(job_id, WAIT_MS))
        assert read == [b"\x00\xff", "grüße", {"a": [1, 2]}, None]


async def test_a_plain_function_runs_in_a_thread(url: str) -> None:
    """A handler that is no coroutine function does not block the event loop."""
    names: list[str] = []

    def handle(job: Job) -> str:
        names.append(threading.current_thread().name)
        return job.session_id

    async with running(url) as system:
        await system.add_node("n1", handle)
        job_id = await system.producer.submit("s1", **EN_ZH)
        assert await system.producer.result(job_id, WAIT_MS) == "s1"
        assert names != [threading.main_thread().name]


async def test_jobs_wait_for_room_and_run_in_order(url: str) -> None:
    """With one slot, jobs of a session run in the order of the stream, woken by `freed` alone."""
    order: list[str] = []

    async def handle(job: Job) -> None:
        order.append(job.job_id)

    async with running(url) as system:
        await system.add_node("n1", handle, capacity=1)
        ids = await submit_all(system, [JobDocument("s1", f"j{i}", **EN_ZH) for i in range(40)])
        assert {outcome.state for outcome in await outcomes(system, ids)} == {"completed"}
        assert order == ids
        assert system.dispatcher.report.sweep_hits == 0
        assert await system.used() == 0


async def test_capacity_is_never_exceeded_and_waiters_use_what_is_freed(url: str) -> None:
    """Many jobs on few slots: never more handlers than slots, and every slot is used."""
    now, most = 0, 0

    async def handle(job: Job) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.to_thread(lambda: None)
        now -= 1

    async with running(url) as system:
        await system.add_node("n1", handle, capacity=2)
        await system.add_node("n2", handle, capacity=3)
        ids = await submit_all(system, [JobDocument(f"s{i % 20}", f"j{i}", **EN_ZH) for i in range(300)])
        assert {outcome.state for outcome in await outcomes(system, ids)} == {"completed"}
        assert most == 5
        assert system.dispatcher.report.sweep_hits == 0


async def test_a_session_stays_on_its_node_also_after_its_dispatcher_is_gone(url: str) -> None:
    """The binding is read back from the server by the next owner."""

    async def handle(job: Job) -> str:
        return job.node

    async with running(url) as system:
        for name in ("n1", "n2", "n3"):
            await system.add_node(name, handle)
        first = {}
        for session in range(12):
            job_id = await system.producer.submit(f"s{session}", **EN_ZH)
            first[session] = await system.producer.result(job_id, WAIT_MS)
        await system.dispatchers.pop()[0].stop()
        system.dispatchers.append(await start_dispatcher(url, system.settings))
        second = {}
        for session in range(12):
            job_id = await system.producer.submit(f"s{session}", **EN_ZH)
            second[session] = await system.producer.result(job_id, WAIT_MS)
        assert second == first


async def test_what_is_wanted_decides_who_serves_it(url: str) -> None:
    """Languages, features and neither: each job runs on a node that offers what it needs."""

    async def handle(job: Job) -> str:
        return job.node

    async with running(url) as system:
        await system.add_node("zh", handle, pairs=[("en", "zh")])
        await system.add_node("de", handle, pairs=[("en", "de")], features={"asr"})
        await system.add_node("llm", handle, pairs=[], features={"llm"})
        cases: dict[str, JobDocument] = {
            "zh": JobDocument("s1", "a", src_lang="en", tgt_lang="zh"),
            "de": JobDocument("s2", "b", src_lang="en", tgt_lang="de", features=("asr",)),
            "llm": JobDocument("s3", "c", features=("llm",)),
        }
        ids = await submit_all(system, list(cases.values()))
        assert [outcome.node for outcome in await outcomes(system, ids)] == list(cases)


async def test_a_failed_attempt_is_tried_again_elsewhere(url: str) -> None:
    """An exception costs an attempt; the next one keeps away from that node."""
    nodes: list[str] = []

    async def handle(job: Job) -> str:
        nodes.append(job.node)
        if job.attempt == 1:
            raise ValueError("first time unlucky")
        return job.node

    async with running(url) as system:
        await system.add_node("n1", handle)
        await system.add_node("n2", handle)
        job_id = await system.producer.submit("s1", **EN_ZH)
        outcome = await system.producer.outcome(job_id, WAIT_MS)
        assert (outcome.state, outcome.attempts, len(set(nodes))) == ("completed", 1, 2)


async def test_attempts_are_used_up(url: str) -> None:
    """A job whose handler always fails is dead, with its body and the last error in the dead stream."""

    async def handle(job: Job) -> None:
        raise Retry("no luck", delay_ms=0)

    async with running(url) as system:
        await system.add_node("n1", handle)
        job_id = await system.producer.submit("s1", payload=b"body", **EN_ZH)
        with pytest.raises(JobFailed, match="attempts_exhausted") as caught:
            await system.producer.result(job_id, WAIT_MS)
        assert caught.value.detail == "failed 3 times; last: no luck"
        dead = (await system.store.reads.entries(system.store.cell.keys.dead))[0][1]
        assert (dead[b"payload"], dead[b"attempts"], dead[b"node"]) == (b"body", b"3", b"n1")


async def test_a_rejected_job_is_failed_at_once(url: str) -> None:
    """A handler that says another attempt is of no use ends the job as failed."""

    async def handle(job: Job) -> None:
        raise Reject("not a sound file")

    async with running(url) as system:
        await system.add_node("n1", handle)
        outcome = await system.producer.outcome(await system.producer.submit("s1", **EN_ZH), WAIT_MS)
        assert (outcome.state, outcome.reason, outcome.result) == ("failed", "rejected", b"not a sound file")


async def test_a_deadline_ends_a_job_that_waits(url: str) -> None:
    """Past its deadline, counted from its submission, a waiting job is dead; the next of its session goes on."""
    gate = Gate()
    async with running(url) as system:
        await system.add_node("n1", gate, capacity=1)
        first = await system.producer.submit("s0", job_id="first", **EN_ZH)
        await gate.wait_for(1)
        late = await system.producer.submit("s1", job_id="late", deadline_ms=100, **EN_ZH)
        after = await system.producer.submit("s1", job_id="after", **EN_ZH)
        outcome = await system.producer.outcome(late, WAIT_MS)
        assert (outcome.state, outcome.reason) == ("dead", "expired")
        gate.open.set()
        assert [each.state for each in await outcomes(system, [first, after])] == ["completed"] * 2
        assert gate.started == ["first", "after"]


@pytest.mark.usefixtures("frequent_sweep")
async def test_nobody_serves_it(url: str) -> None:
    """A job that no node could ever serve is dead after a time of grace, and says what was missing."""
    async with running(url, HASTY) as system:
        await system.add_node("n1", echo)
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="xx", features=["asr"])
        outcome = await system.producer.outcome(job_id, WAIT_MS)
        assert (outcome.state, outcome.reason, outcome.detail) == (
            "dead",
            "no_compatible_node",
            "no node serves en:xx, features asr",
        )


async def test_a_job_waits_for_a_node_that_comes_later(url: str) -> None:
    """A fleet that starts after its first jobs serves them."""
    async with running(url) as system:
        ids = await submit_all(system, [JobDocument(f"s{i % 3}", f"j{i}", **EN_ZH) for i in range(30)])
        await system.until(lambda: len(system.dispatcher.state.waiting) == 30)
        await system.add_node("n1", echo)
        assert {outcome.state for outcome in await outcomes(system, ids)} == {"completed"}
        assert system.dispatcher.report.sweep_hits == 0


async def test_submitting_again_does_not_run_again(url: str) -> None:
    """The same id of the same session is a duplicate, of another session it is taken."""
    ran: list[str] = []

    async def handle(job: Job) -> None:
        ran.append(job.job_id)

    async with running(url) as system:
        await system.add_node("n1", handle)
        await system.producer.outcome(await system.producer.submit("s1", job_id="j1", **EN_ZH), WAIT_MS)
        with pytest.raises(NotAccepted, match="duplicate"):
            await system.producer.submit("s1", job_id="j1", **EN_ZH)
        with pytest.raises(NotAccepted, match="job_id_taken"):
            await system.producer.submit("s2", job_id="j1", **EN_ZH)
        assert ran == ["j1"]


async def test_a_producer_that_restarts_finds_its_results(url: str) -> None:
    """A result is found by job id long after the feed moved on."""
    async with running(url) as system:
        await system.add_node("n1", echo)
        await system.producer.result(await system.producer.submit("s1", job_id="j1", payload=b"x", **EN_ZH), WAIT_MS)
        async with Producer(url, settings=QUICK) as again:
            assert await again.result("j1", WAIT_MS) == b"x"


async def test_a_producer_has_a_results_stream_of_its_own(url: str) -> None:
    """Outcomes go to the stream that the job's reply_to names, and to the common one."""
    async with running(url) as system, Producer(url, settings=QUICK, reply_to="mine") as mine:
        await system.add_node("n1", echo)
        await system.producer.result(await system.producer.submit("s1", job_id="other", **EN_ZH), WAIT_MS)
        await mine.result(await mine.submit("s1", job_id="own", payload=b"x", **EN_ZH), WAIT_MS)
        async for _, outcome in mine.results("0"):
            assert (outcome.job_id, outcome.result) == ("own", b"x")
            break
        common = await system.store.reads.entries(system.store.cell.keys.results)
        assert [fields[b"job_id"] for _, fields in common] == [b"other", b"own"]


async def test_raw_producers_and_malformed_entries(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Plain XADD of JSON and msgpack, 1 in 50 malformed: good jobs complete, bad ones are dead with a reason.

    The log names no session of what names none.
    """
    bad: list[dict[bytes | str, bytes]] = [
        {"job": b"{nonsense"},
        {"job": b'{"src_lang":"en"}'},
        {"job": b'{"session_id":"has space"}'},
        {"other": b"field"},
        {"job": b""},
        {"job": b'{"session_id":"s","src_lang":"en"}'},
        {"job": b"\xc1\xff\xfe"},
        {"job": b'{"session_id":"s","job_id":"~mine"}'},
        {"job": b'{"session_id":"s"}', "payload": bytes(QUICK.payload_bytes_max + 1)},
        {"job": b'{"session_id":"s","features":7}'},
    ]
    async with running(url) as system:
        await system.add_node("n1", echo)
        await system.add_node("n2", echo)
        client, cell_keys = system.store.connection.commands, system.store.cell.keys
        pipeline = client.pipeline(transaction=False)
        for i in range(500):
            session = f"s{i % 40}"
            stream = cell_keys.jobs(keys.partition_of(session, 16))
            document = {"session_id": session, "src_lang": "en", "tgt_lang": "zh", "unknown": [1, 2]}
            if i % 50 == 49:
                pipeline.xadd(stream, bad[i // 50])
            elif i % 2:
                pipeline.xadd(stream, {"job": msgspec.json.encode(document), "payload": b"%d" % i})
            else:
                pipeline.xadd(stream, {"job": msgspec.msgpack.encode(document)})
        await pipeline.execute()
        results: dict[str, Outcome] = {}
        async with asyncio.timeout(30):
            async for _, outcome in system.producer.results("0"):
                results[outcome.job_id] = outcome
                if len(results) == 500:
                    break
        counts = {state: sum(each.state == state for each in results.values()) for state in ("completed", "dead")}
        assert counts == {"completed": 490, "dead": 10}
        dead = [fields for _, fields in await system.store.reads.entries(cell_keys.dead)]
        details = sorted(fields[b"reason"].decode() + ": " + fields[b"detail"].decode() for fields in dead)
        assert details == EXPECTED_DETAILS
        assert await system.used() == 0
    assert re.search(r"job ~\S+ is dead, invalid: job is no valid JSON", caplog.text)


EXPECTED_DETAILS = sorted(
    [
        "invalid: job is no valid JSON document: JSON is malformed: object keys must be strings (byte 1)",
        "invalid: job (JSON): Object missing required field `session_id`",
        "invalid: session_id = 'has space': expected 1 to 128 visible ASCII characters without spaces and braces",
        "invalid: the entry has no field `job` (it has: other): expected a JSON or msgpack object",
        "invalid: job is empty: expected a JSON or msgpack object",
        "invalid: src_lang = 'en', tgt_lang = '': expected both languages, or none of them",
        "invalid: job is no valid msgpack document: MessagePack data is malformed: invalid opcode '\\xc1' (byte 0)",
        "invalid: job_id = '~mine': expected not to start with ~, which is for generated ids",
        "too_large: payload of 262145 bytes: expected at most 262144; 1 bytes of it are not kept",
        "invalid: job (JSON): Expected `array`, got `int` - at `$.features`",
    ]
)
