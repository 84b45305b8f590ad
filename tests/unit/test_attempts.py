"""Attempts that wait for the answer to their first renewal, with a cell that answers when it is let."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import cast

import pytest

from scheduler.config import DEFAULTS
from scheduler.errors import ServerUnavailable
from scheduler.host import Host
from scheduler.node.attempt_log import AttemptLog
from scheduler.node.attempts import Attempts, Observer
from scheduler.node.handlers import Job
from scheduler.node.retry import Ending
from scheduler.protocol.messages import NotRenewed, Renewed
from scheduler.store.cell import Cell
from scheduler.threads import Threads
from tests.unit.test_handlers import a_job

POLICY = b"default 15000 3 2 0 0 0 1"


class SlowCell:
    """Renews once it may, or fails."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.answer: Renewed | NotRenewed | Exception = Renewed(0)

    async def renew(
        self, node_id: str, started: Sequence[tuple[str, int]], waiting: Sequence[tuple[str, int]]
    ) -> tuple[int, float, list[Renewed | NotRenewed]]:
        """As the cell: the server's time, when it was asked, and an answer for each."""
        self.asked.set()
        await self.may_answer.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return 1_000, Host().clock.ms(), [self.answer] * (len(started) + len(waiting))


class Fleet:
    """The attempts of one node of two slots, which jobs its handler began, and what it reported."""

    def __init__(self, threads: Threads) -> None:
        self.cell = SlowCell()
        self.began: list[str] = []
        self.has_begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_end.set()
        self.reported: list[tuple[str, str]] = []
        self.host = Host()
        self.attempts = Attempts(
            cast(Cell, self.cell),
            DEFAULTS,
            self.host,
            "n1",
            2,
            self._handle,
            Observer(),
            threads,
            self._report,
            AttemptLog("n1", self.host.clock),
        )

    async def _handle(self, job: Job) -> None:
        self.began.append(job.job_id)
        self.has_begun.set()
        await self.may_end.wait()

    def _report(self, job: Job, ending: Ending) -> None:
        self.reported.append((job.job_id, ending.verdict))

    async def waits(self) -> asyncio.Task[None]:
        """A job is there, and the server is being asked whether it may start."""
        assert not self.attempts.start(a_job(policy=POLICY), self.host.clock.ms())
        renewal = asyncio.create_task(self.attempts.renew())
        await self.cell.asked.wait()
        return renewal

    async def began_one(self) -> None:
        """A job has begun; its renewal was answered."""
        renewal = await self.waits()
        self.cell.may_answer.set()
        await renewal
        await self.has_begun.wait()

    async def answered(self, renewal: asyncio.Task[None]) -> None:
        """The answer has come, and whatever it started has ended."""
        self.cell.may_answer.set()
        await asyncio.gather(renewal, return_exceptions=True)
        await self.attempts.ended(1_000)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    """A node whose first job waits to be told to the server."""
    threads = Threads(1, "test")
    yield Fleet(threads)
    threads.shutdown()


@pytest.mark.parametrize(
    ("answer", "began"),
    [
        pytest.param(Renewed(0), 1, id="renewed"),
        pytest.param(ServerUnavailable("no answer"), 1, id="no answer, lease in force"),
        pytest.param(NotRenewed("stale"), 0, id="lost"),
        pytest.param(Renewed(0, cancelling=True), 0, id="cancelled"),
    ],
)
async def test_a_job_that_waits_starts_unless_it_is_gone(
    fleet: Fleet, answer: Renewed | NotRenewed | Exception, began: int
) -> None:
    """A server that cannot be asked stops no job whose lease is in force."""
    fleet.cell.answer = answer
    await fleet.answered(await fleet.waits())
    assert len(fleet.began) == began


@pytest.mark.parametrize("answer", [Renewed(0), ServerUnavailable("no answer")], ids=["renewed", "no answer"])
async def test_what_was_given_back_while_it_waited_never_starts(
    fleet: Fleet, answer: Renewed | NotRenewed | Exception
) -> None:
    """The answer that is under way was asked for before, and says nothing about now."""
    fleet.cell.answer = answer
    renewal = await fleet.waits()
    fleet.attempts.stop_all("the node stops")
    await fleet.answered(renewal)
    assert (fleet.began, [verdict for _, verdict in fleet.reported]) == ([], ["give_back"])


@pytest.mark.parametrize(
    ("late_ms", "used_ms", "rest_ms", "stopped", "reported"),
    [
        pytest.param(14_000, 13_000, 900, False, [], id="held up, and it can be renewed now"),
        pytest.param(14_000, 13_000, 100, True, [], id="held up to the end of its lease"),
        pytest.param(14_000, 10, 900, True, [("j1", "give_back")], id="paused"),
        pytest.param(20_000, 10, -5_000, True, [("j1", "give_back")], id="paused past the end of its lease"),
        pytest.param(1_000, 900, 900, True, [("j1", "give_back")], id="the server did not answer"),
    ],
)
async def test_a_run_that_held_the_process_up_does_not_come_back_for_nothing(
    fleet: Fleet, late_ms: int, used_ms: int, rest_ms: int, stopped: bool, reported: list[tuple[str, str]]
) -> None:
    """It is renewed late or lost with its node, which counts: given back, it would do the same. A pause is free."""
    fleet.may_end.clear()
    await fleet.began_one()
    (running,) = fleet.attempts.running.values()
    now_ms = fleet.host.clock.ms()
    running.lease.ends_ms, running.lease.length_ms = now_ms + rest_ms, 15_000
    fleet.attempts._watched_at_ms = now_ms - late_ms
    fleet.attempts._watched_processor_ms = fleet.host.clock.processor_ms() - used_ms
    await fleet.attempts.watch()
    assert running.job.stopped.is_set() == stopped
    while not running.job.stopped.is_set():  # nobody renews it
        await asyncio.sleep(0.02)
        await fleet.attempts.watch()
    assert fleet.host.clock.ms() < now_ms + max(rest_ms, 200)
    await fleet.attempts.ended(1_000)
    assert fleet.reported == reported
