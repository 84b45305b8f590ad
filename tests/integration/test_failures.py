"""What becomes known of attempts that failed, and what a producer hears of a job that nobody knows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from scheduler.errors import JobFailed, Reject, Retry, SchedulerError, UnknownJob
from scheduler.node.handlers import Job
from scheduler.producer import UNKNOWN_MS, Producer
from tests.system import QUICK, System, running

WAIT_MS = 20_000
SLOW_BACKOFF = msgspec.structs.replace(QUICK, backoff_ms=600_000, backoff_ms_max=600_000)
SHORT_RETENTION = msgspec.structs.replace(QUICK, retention_ms=300)


def broken(job: Job) -> None:
    """A handler that always fails."""
    raise KeyError("missing")


PLACE = f"({__file__}:{broken.__code__.co_firstlineno + 2} in broken)"


@contextlib.asynccontextmanager
async def other_producer(system: System) -> AsyncIterator[Producer]:
    """One that has submitted nothing and seen nothing."""
    async with Producer(system.url, settings=system.settings) as producer:
        yield producer


async def is_described(system: System, job_id: str) -> bool:
    """Whether it is known why an attempt at a job failed."""
    return bool(await system.store.reads.detail(job_id))


# ---- details ---------------------------------------------------------------------------------------------------------


async def test_a_delayed_job_says_why_its_attempt_failed(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """With the place in the code, beside the record; the node's log has the traceback."""
    async with running(url, SLOW_BACKOFF) as system:
        await system.add_node("n1", broken)
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="zh")
        await system.until(lambda: is_described(system, job_id))
        assert (await system.store.reads.record(job_id))["state"] == "delayed"
        assert await system.store.reads.detail(job_id) == f"KeyError: 'missing' {PLACE}"
        assert "detail" not in await system.store.reads.record(job_id)
    (record,) = [each for each in caplog.records if "attempt 1 of job" in each.getMessage()]
    assert (record.levelname, record.name) == ("WARNING", "scheduler.node")
    assert f"job {job_id} of session s1 failed: KeyError: 'missing' {PLACE}\n  Traceback" in record.getMessage()
    assert record.getMessage().endswith("\n  KeyError: 'missing'")


async def test_a_dead_job_says_why_its_last_attempt_failed(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """To its producer, also to one that has only the record; and where it ended that is a WARNING."""
    async with running(url) as system:
        await system.add_node("n1", broken)
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="zh")
        expected = f"failed 3 times; last: KeyError: 'missing' {PLACE}"
        for _ in range(2):
            with pytest.raises(JobFailed) as failed:
                await system.producer.result(job_id, WAIT_MS)
            assert failed.value.detail == expected
        k = system.store.cell.keys
        await system.until(lambda: is_described(system, job_id))
        kept_ms = await system.store.connection.commands.pttl(k.detail(job_id))
        assert 0 < kept_ms <= await system.store.connection.commands.pttl(k.job(job_id)) + 1_000
        await system.store.connection.commands.delete(k.dead)
        outcome = await system.producer.outcome(job_id, WAIT_MS)
        assert outcome.detail == f"KeyError: 'missing' {PLACE}"
    told = [each for each in caplog.records if f"job {job_id} of session s1 is dead" in each.getMessage()]
    assert [(each.levelname, PLACE in each.getMessage()) for each in told] == [("WARNING", True)]


async def test_why_a_handler_rejects_reaches_the_producer(url: str) -> None:
    """From the feed and from the record, as the handler said it."""
    why = "the text is 9000 characters, this model takes 8000"

    async def rejects(job: Job) -> None:
        raise Reject(why)

    async with running(url) as system:
        await system.add_node("n1", rejects)
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="zh")
        feed = system.producer.results("0")
        for _ in range(2):
            with pytest.raises(JobFailed, match="rejected") as failed:
                await system.producer.result(job_id, WAIT_MS)
            assert (failed.value.reason, failed.value.detail) == ("rejected", why)
        outcome = await system.producer.outcome(job_id)
        assert (outcome.detail, outcome.result) == (why, why.encode())
        _, told = await anext(feed)
        assert told.detail == why
        await feed.aclose()


async def test_what_cannot_be_kept_fails_after_one_run(url: str) -> None:
    """And its producer is told what it is."""
    runs = []

    def returns_nan(job: Job) -> object:
        runs.append(job.attempt)
        return {"p": float("nan")}

    async with running(url) as system:
        await system.add_node("n1", returns_nan)
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="zh")
        with pytest.raises(JobFailed, match=r"unencodable .*'p'.* is nan"):
            await system.producer.result(job_id, WAIT_MS)
    assert runs == [1]


async def test_a_job_that_completes_after_all_tells_no_failure(url: str) -> None:
    """Its outcome is that of the last attempt."""

    def fails_once(job: Job) -> str:
        if job.attempt == 1:
            raise Retry("not yet", delay_ms=0)
        return "done"

    async with running(url) as system:
        await system.add_node("n1", fails_once)
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="zh")
        outcome = await system.producer.outcome(job_id, WAIT_MS)
        assert (outcome.state, outcome.detail, outcome.attempts) == ("completed", "", 1)


# ---- jobs that nobody knows ------------------------------------------------------------------------------------------


async def test_a_job_that_was_never_submitted_is_unknown(url: str) -> None:
    """After two seconds, or when the caller says; an error of this package that names it."""
    async with running(url) as system, asyncio.timeout(WAIT_MS / 1000):
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(
            UnknownJob, match="nothing is known of job nobody: no record of it was found for 200 ms"
        ) as no:
            await system.producer.result("nobody", unknown_ms=200)
        assert (no.value.job_id, no.value.was_known, isinstance(no.value, SchedulerError)) == ("nobody", False, True)
        assert asyncio.get_running_loop().time() - began_s >= 0.2
        with pytest.raises(UnknownJob, match=f"{UNKNOWN_MS} ms"):
            await system.producer.outcome("nobody")
        with pytest.raises(TimeoutError, match="job nobody has not ended within 300 ms"):
            await system.producer.result("nobody", 300)
        with pytest.raises(TimeoutError):
            await system.producer.result("nobody", 300, unknown_ms=None)


async def test_a_job_that_is_forgotten_is_unknown_at_once(url: str) -> None:
    """To who submitted it, and to who saw its record; others wait a while."""
    async with running(url, SHORT_RETENTION) as system, other_producer(system) as seer:
        await system.add_node("n1", lambda job: "done")
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="zh")
        assert await seer.result(job_id, WAIT_MS) == "done"
        await system.until(lambda: is_gone(system, job_id))
        for producer in (system.producer, seer):
            with pytest.raises(UnknownJob, match="its retention has ended, or the server has lost it") as gone:
                await producer.result(job_id, 0, unknown_ms=None)
            assert gone.value.was_known
            with pytest.raises(UnknownJob):
                await asyncio.wait_for(producer.result(job_id, unknown_ms=None), 5)


async def is_gone(system: System, job_id: str) -> bool:
    """Whether there is no record of a job."""
    return not await system.store.reads.record(job_id)


async def test_a_record_that_comes_later_is_waited_for(url: str) -> None:
    """As that of a job that was written by XADD does, once it is placed."""
    async with running(url) as system, other_producer(system) as waits:
        waiting = asyncio.create_task(waits.result("later", WAIT_MS, unknown_ms=5_000))
        await system.add_node("n1", lambda job: "done")
        await system.producer.submit("s1", job_id="later", src_lang="en", tgt_lang="zh")
        assert await waiting == "done"


async def test_a_timeout_of_nothing_looks_once(url: str) -> None:
    """A job that has ended is told, one that goes on is a TimeoutError, and neither waits."""
    gate = asyncio.Event()

    async def waits(job: Job) -> str:
        await gate.wait()
        return "done"

    async with running(url) as system, other_producer(system) as other:
        await system.add_node("n1", waits)
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="zh")
        with pytest.raises(TimeoutError, match=f"job {job_id} has not ended within 0 ms"):
            await system.producer.result(job_id, 0)
        with pytest.raises(TimeoutError):
            await other.result("nobody", timeout_ms=0)
        gate.set()
        assert await system.producer.result(job_id, WAIT_MS) == "done"
        assert await other.result(job_id, timeout_ms=0) == "done"
