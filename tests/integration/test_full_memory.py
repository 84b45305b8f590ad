"""RULES 34 for whole processes: a server without memory stops new jobs and nothing else, on Redis and on Valkey.

Redis refuses more than Valkey does: all that stands in a MULTI, reads too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from scheduler.errors import ServerUnavailable
from scheduler.management.commands import ApplyPools, RemovePool, encode_command
from scheduler.management.pools import PoolDocument
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.producer import Producer
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.roles import start_dispatcher, start_manager, start_reaper
from scheduler.store.store import open_store
from tests.integration.commands import run
from tests.integration.test_main_job import EN_ZH, WAIT_MS, Gate
from tests.integration.test_rules_nodes import Attempts
from tests.lua.test_memory import full_memory
from tests.system import QUICK, System, running

COMMANDS = [["nodes", "ls"], ["pools", "ls"], ["streams", "ls"], ["reservations", "ls"]]
ANSWER_MS = 10_000


@contextlib.asynccontextmanager
async def without_memory(system: System) -> AsyncIterator[None]:
    """The server is full, and knows no script any more: who calls one has to load it first."""
    async with full_memory(system.store):
        await system.store.connection.commands.script_flush()
        yield


async def replace_manager(system: System) -> None:
    """Another manager takes over."""
    await system.managers.pop()[0].stop()
    system.managers.append(await start_manager(system.url, system.settings))


async def replace_dispatcher(system: System) -> None:
    """Another dispatcher reads the snapshot and the intake."""
    await system.dispatchers.pop()[0].stop()
    system.dispatchers.append(await start_dispatcher(system.url, system.settings))


async def replace_reaper(system: System) -> None:
    """Another reaper looks after leases and delayed jobs."""
    await system.reapers.pop()[0].stop()
    system.reapers.append(await start_reaper(system.url, system.settings))


async def test_everything_but_new_jobs_goes_on_without_memory(url: str) -> None:
    """Roles start and take over, a node joins, another leaves, jobs run, fail, wait and end, an operator changes
    pools; only a submission is refused, until there is memory.
    """
    gate, tried = Gate(), set[str]()

    async def once_in_vain(job: Job) -> str:
        if job.job_id not in tried:
            tried.add(job.job_id)
            raise ValueError("not yet")
        return await gate(job)

    async with running(url) as system, Producer(url, settings=QUICK, reply_to="mine") as producer:
        await system.add_node("n1", once_in_vain, capacity=2)
        ids = [await producer.submit(f"s{i}", **EN_ZH) for i in range(6)]
        await gate.wait_for(1)
        async with without_memory(system):
            for replace in (replace_manager, replace_dispatcher, replace_reaper):
                await replace(system)
            await system.until(lambda: bool(system.managers[0][1].leading))
            await system.add_node("n2", Attempts())
            for wanted in (ApplyPools({"late": PoolDocument(candidates=2)}), RemovePool("late")):
                answer = await system.store.control.send_command(encode_command(wanted), ANSWER_MS)
                assert answer is not None
                assert b"accepted" in answer
            gate.open.set()
            outcomes = await asyncio.gather(*(producer.outcome(job_id, WAIT_MS) for job_id in ids))
            assert {outcome.state for outcome in outcomes} == {"completed"}
            await system.remove_node("n1")
            assert list(await system.store.reads.capacities()) == ["n2"]
            async with Producer(url, settings=QUICK, patience_ms=0) as impatient:
                with pytest.raises(ServerUnavailable, match="maxmemory"):
                    await impatient.submit("s9", **EN_ZH)
        job_id = await producer.submit("s9", **EN_ZH)
        assert (await producer.outcome(job_id, WAIT_MS)).state == "completed"


async def test_a_later_life_takes_over_without_memory(url: str) -> None:
    """It reads what the earlier one has left behind, and ends it."""
    lasting = msgspec.structs.replace(QUICK, start_ms=60_000, lease_ms=60_000, silence_ms=60_000)
    async with running(url, lasting) as system:
        layout = await system.store.layout()
        boot = f"{await system.store.control.time_us()}-dead"
        beat = NodeBeat("n1", boot, 1, pairs=(("en", "zh"),))
        await system.store.control.beat(encode_beat(beat))  # and never again, as one that was killed
        job_id = await system.producer.submit("s1", **EN_ZH)

        async def is_placed() -> bool:
            return (await system.store.reads.record(job_id)).get("state") == "reserved"

        await system.until(is_placed)
        async with without_memory(system):
            handler = Attempts()
            node = Node(url, "n1", capacity=1, handler=handler, pairs=[("en", "zh")], settings=lasting)
            system.nodes["n1"] = await node.__aenter__()
            outcome = await system.producer.outcome(job_id, WAIT_MS)
            assert (outcome.state, [attempt for _, attempt, _ in handler.runs]) == ("completed", [2])
        assert layout == await system.store.layout()


async def test_the_first_manager_starts_without_memory(url: str) -> None:
    """It writes the layout into an empty server, and a fleet begins."""
    async with await open_store(url, QUICK) as store, full_memory(store):
        await store.connection.commands.script_flush()
        async with running(url) as system:
            await system.add_node("n1", Attempts())
            assert set(await system.store.reads.capacities()) == {"n1"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_commands_that_show_go_on_without_memory(url: str, command: list[str]) -> None:
    """An operator sees what there is."""
    async with running(url) as system:
        await system.add_node("n1", Attempts())
        await system.producer.outcome(await system.producer.submit("s1", **EN_ZH), WAIT_MS)
        async with without_memory(system):
            done = await asyncio.to_thread(run, *command, "--redis-url", url)
            assert done.exit_code == 0, done.output


async def test_a_job_is_shown_without_memory(url: str) -> None:
    """While it runs, with its lease, and when it has ended."""
    gate = Gate()
    async with running(url) as system:
        await system.add_node("n1", gate)
        job_id = await system.producer.submit("s1", **EN_ZH)
        await gate.wait_for(1)
        async with without_memory(system):
            show = ("jobs", "show", job_id, "--redis-url", url)
            assert "reserved" in (await asyncio.to_thread(run, *show)).output
            gate.open.set()
            await system.producer.outcome(job_id, WAIT_MS)
            assert "completed" in (await asyncio.to_thread(run, *show)).output
