"""Threads for plain handlers: a call runs once or never, and nothing that hangs keeps the process."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from scheduler.node.handlers import Job
from scheduler.threads import Threads
from tests.unit.test_handlers import SIGNAL_S, a_job, tell

VOICE: contextvars.ContextVar[str] = contextvars.ContextVar("VOICE", default="none")


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    """At most four."""
    threads = Threads(4, "test")
    yield threads
    threads.shutdown()


def refuse(_: threading.Thread) -> None:
    """As a machine that has no more threads."""
    raise RuntimeError("can't start new thread")


async def test_a_call_whose_thread_cannot_start_never_runs(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was reported as failed, and another node may run it: a thread that is free later must not find it."""
    ran: list[Job] = []
    entered, may_leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def busy(job: Any) -> str:
        tell(loop, entered)
        assert may_leave.wait(SIGNAL_S)
        return "done"

    first = asyncio.create_task(threads.run(busy, a_job()))
    await entered.wait()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await threads.run(ran.append, a_job())
    may_leave.set()
    assert await first == "done"
    assert await threads.run(lambda job: threading.current_thread().name, a_job()) == "test_0"
    assert ran == []


async def test_a_thread_is_used_again_and_others_are_started_beside_it(threads: Threads) -> None:
    """No more than are needed."""
    together = threading.Barrier(3)

    def name(job: Any) -> str:
        return threading.current_thread().name

    def meet(job: Any) -> str:
        together.wait(SIGNAL_S)
        return name(job)

    assert [await threads.run(name, a_job()) for _ in range(3)] == ["test_0"] * 3
    assert sorted(await asyncio.gather(*(threads.run(meet, a_job()) for _ in range(3)))) == [
        "test_0",
        "test_1",
        "test_2",
    ]


async def test_context_variables_reach_the_function_and_go_no_further(threads: Threads) -> None:
    """As with asyncio.to_thread: a copy of the caller's context."""
    VOICE.set("alto")

    def sings(job: Any) -> str:
        before = VOICE.get()
        VOICE.set("bass")
        return before

    assert [await threads.run(sings, a_job()) for _ in range(2)] == ["alto", "alto"]
    assert VOICE.get() == "alto"


async def test_what_is_raised_by_those_who_hear_of_an_end_harms_nobody(
    threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread goes on with the next call."""
    loop = asyncio.get_running_loop()
    entered, may_leave = asyncio.Event(), threading.Event()

    def busy(job: Any) -> None:
        tell(loop, entered)
        assert may_leave.wait(SIGNAL_S)

    def breaks() -> None:
        raise SystemExit

    task = asyncio.create_task(threads.run(busy, a_job()))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    threads.when_ended(a_job(), breaks)
    with caplog.at_level(logging.ERROR):
        may_leave.set()
        ended = asyncio.Event()
        threads.when_ended(a_job(), lambda: tell(loop, ended))
        await ended.wait()
        assert await threads.run(lambda job: "goes on", a_job()) == "goes on"
    assert [record.message for record in caplog.records] == ["after a handler in a thread"]


async def test_it_is_known_who_had_a_processor(threads: Threads) -> None:
    """Since it was last asked: one that computes, and one that waits."""
    loop = asyncio.get_running_loop()
    entered, may_leave = asyncio.Event(), threading.Event()

    def waits(job: Any) -> None:
        tell(loop, entered)
        assert may_leave.wait(SIGNAL_S)

    def computes(job: Any) -> int:
        return sum(range(3_000_000))

    waiting = asyncio.create_task(threads.run(waits, a_job(job_id=b"waits")))
    await entered.wait()
    await threads.run(computes, a_job(job_id=b"computes"))
    used = {job.job_id: used_ms for job, used_ms in threads.used_ms()}
    again = {job.job_id: used_ms for job, used_ms in threads.used_ms()}
    may_leave.set()
    await waiting
    assert used["computes"] > 10 * used["waits"]
    assert set(again) == {"waits"}
    assert again["waits"] < used["computes"]


async def test_nothing_runs_after_the_shutdown(threads: Threads) -> None:
    """It is an error to ask."""
    threads.shutdown()
    with pytest.raises(RuntimeError):
        await threads.run(lambda job: None, a_job())


HANGS = """
import asyncio, threading
from scheduler.threads import Threads
from tests.unit.test_handlers import a_job

async def main():
    entered, loop = asyncio.Event(), asyncio.get_running_loop()
    def hangs(job):
        loop.call_soon_threadsafe(entered.set)
        threading.Event().wait()
    task = asyncio.create_task(Threads(4, "test").run(hangs, a_job()))
    await entered.wait()

asyncio.run(main())
print("over")
"""


def test_a_call_that_hangs_does_not_keep_the_process() -> None:
    """Not even one that does not shut its threads down."""
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "over\n", "")
