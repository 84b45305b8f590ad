"""Dispatchers, managers and the server that die, stall or lose a reply, each test named by its crash point."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from scheduler.node.handlers import Job
from scheduler.roles import start_dispatcher, start_manager
from scheduler.server.embedded import start_embedded
from scheduler.store.connection import Connection
from tests.fault.processes import process
from tests.fault.test_nodes import ended, submit
from tests.system import QUICK, System, running


class Ledger:
    """A handler that remembers every run."""

    def __init__(self) -> None:
        self.runs: list[str] = []

    async def __call__(self, job: Job) -> str:
        self.runs.append(job.job_id)
        return job.node


def lose_reply(monkeypatch: pytest.MonkeyPatch, script: str, lost: int, then: Callable[[], Awaitable[None]]) -> None:
    """The answer number `lost` of a script never arrives: the call was made, and then `then` happens instead."""
    call = Connection.call
    calls = 0

    async def losing(self: Connection, name: str, keys: Any, arguments: Any, life: str = "") -> Any:
        nonlocal calls
        answer = await call(self, name, keys, arguments, life)
        if name == script:
            calls += 1
            if calls == lost:
                await then()
                return await call(self, name, keys, arguments, life)
        return answer

    monkeypatch.setattr(Connection, "call", losing)


async def nothing() -> None:
    """The caller goes on at once."""


@pytest.mark.parametrize("script", ["reserve", "release", "submit", "renew", "claim", "capacity", "publish", "take"])
@pytest.mark.parametrize("lost", [1, 2])
async def test_lost_reply_then_the_same_call_again(
    url: str, monkeypatch: pytest.MonkeyPatch, script: str, lost: int
) -> None:
    """Every script survives a lost reply: each job runs once and completes."""
    ledger = Ledger()
    lose_reply(monkeypatch, script, lost, nothing)
    async with running(url) as system:
        await system.add_node("n1", ledger, capacity=2)
        await system.add_node("n2", ledger, capacity=2)
        ids = await submit(system, 40)
        assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}
        assert sorted(ledger.runs) == sorted(ids)
        assert await system.used() == 0


async def test_crash_after_reserve_before_reply(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatcher that dies between reserve and its answer: the next one goes on, and nothing runs twice."""
    ledger = Ledger()
    async with running(url) as system:
        await system.add_node("n1", ledger, capacity=2)

        async def die() -> None:
            _, dispatcher = system.dispatchers[0]
            dispatcher.partitions.lose(0)
            raise ConnectionError("the dispatcher is gone")

        lose_reply(monkeypatch, "reserve", 1, die)
        ids = await submit(system, 40)
        await system.until(lambda: len(ledger.runs) > 0)
        await system.dispatchers.pop(0)[0].stop()
        system.dispatchers.append(await start_dispatcher(url, system.settings))
        assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}
        assert sorted(ledger.runs) == sorted(ids)


async def test_sigkill_of_the_dispatcher(url: str) -> None:
    """A standby takes its partitions over when their lease ends; every job runs once."""
    ledger = Ledger()
    async with running(url, dispatcher=False) as system, process(url, "dispatcher") as doomed:
        system.dispatchers.append(await start_dispatcher(url, system.settings))
        await system.add_node("n1", ledger, capacity=2)
        ids = await submit(system, 40)
        await system.until(lambda: len(ledger.runs) >= 5)
        doomed.send(signal.SIGKILL)
        ids += await later_jobs(system)
        assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}
        assert sorted(ledger.runs) == sorted(ids)
        assert system.dispatcher.report.sweep_hits == 0


async def later_jobs(system: System) -> list[str]:
    """Jobs that arrive after the crash."""
    return [await system.producer.submit(f"s{i}", src_lang="en", tgt_lang="zh") for i in range(20)]


async def test_dispatch_goes_on_without_a_manager(url: str) -> None:
    """The last snapshot serves until somebody manages again."""
    ledger = Ledger()
    async with running(url) as system:
        await system.add_node("n1", ledger, capacity=2)
        role, _ = system.managers.pop()
        await role.stop()
        ids = await submit(system, 40)
        assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}
        system.managers.append(await start_manager(url, system.settings))


async def test_server_restart_with_its_data(tmp_path: Path) -> None:
    """After a restart with AOF everything goes on: nothing lost, nothing left in the slots."""
    ledger = Ledger()
    with start_embedded(tmp_path, persistent=True) as server:
        async with running(server.url, QUICK) as system:
            await system.add_node("n1", ledger, capacity=2)
            ids = await submit(system, 60)
            await system.until(lambda: len(ledger.runs) >= 5)
            server.restart()
            outcomes = await ended(system, ids)
            assert {outcome.state for outcome in outcomes} == {"completed"}
            assert await system.used() == 0
