"""Nodes that leave while no manager is there, and what a manager that comes later makes of them."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from scheduler.node.node import Node
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.protocol.messages import CapacityItem
from scheduler.roles import start_manager
from tests.integration.test_main_job import EN_ZH, WAIT_MS, Gate
from tests.integration.test_rules_nodes import Attempts, until_folded
from tests.system import QUICK, System, running

LEAVES_MS_MAX = 2_000
PATIENT = msgspec.structs.replace(QUICK, silence_ms=60_000)
"""Nobody is dead soon, so nobody who left is there for another reason than that he was written again."""


async def nodes_of(system: System) -> list[str]:
    """Those that have a capacity."""
    return sorted(await system.store.reads.capacities())


async def leave_in_time(system: System, node_id: str) -> None:
    """Stop a node, which has to be quick."""
    began = time.monotonic()
    await system.remove_node(node_id)
    assert (time.monotonic() - began) * 1_000 < LEAVES_MS_MAX


async def test_an_idle_node_leaves_without_a_manager(url: str) -> None:
    """RULES 14: its slots are still written, but it holds nothing."""
    async with running(url, PATIENT) as system:
        node = await system.add_node("n1", Attempts())
        await system.managers.pop()[0].stop()

        await leave_in_time(system, "n1")

        assert (node.phase, await nodes_of(system)) == ("left", [])
        k = system.store.cell.keys
        assert await system.store.connection.commands.exists(k.inbox("n1"), k.slots("n1")) == 0
        system.managers.append(await start_manager(url, PATIENT))
        await until_folded(system)
        assert await nodes_of(system) == ["probe"]
        await system.until(lambda: "n1" not in system.dispatcher.snapshots.index.nodes)


async def test_a_node_that_nobody_took_in_leaves_at_once(url: str) -> None:
    """RULES 14: a manager that reads its heartbeats only then does not register a node that is gone."""
    async with running(url, PATIENT) as system:
        await system.managers.pop()[0].stop()
        node = Node(url, "n1", capacity=1, handler=Attempts(), settings=PATIENT)
        system.nodes["n1"] = await node.__aenter__()

        await leave_in_time(system, "n1")

        system.managers.append(await start_manager(url, PATIENT))
        await until_folded(system)
        assert (node.phase, await nodes_of(system)) == ("left", ["probe"])


async def test_a_later_life_leaves_without_a_manager_when_the_earlier_one_crashed(url: str) -> None:
    """RULES 14: the capacity that stands is the earlier life's. Nobody has replaced this one, and it is not remembered
    as if somebody had.
    """
    async with running(url, PATIENT) as system:
        await system.managers.pop()[0].stop()
        epoch = int(await system.store.connection.commands.get(system.store.cell.keys.leader_epoch))
        earlier = CapacityItem("n1", 1, "1000-a", "ready")
        assert await system.store.cell.capacity(epoch, [earlier]) == ["written"]
        node = Node(url, "n1", capacity=1, handler=Attempts(), settings=PATIENT)
        system.nodes["n1"] = await node.__aenter__()

        await leave_in_time(system, "n1")

        assert node.phase == "left"
        assert await system.store.connection.commands.get(system.store.cell.keys.left("n1")) == node.boot.encode()


async def test_a_busy_node_leaves_without_a_manager_after_its_job(url: str) -> None:
    """RULES 14: it gets nothing new once it has asked, and the next job goes to another node."""
    gate, others = Gate(), Attempts()
    async with running(url, PATIENT) as system:
        node = await system.add_node("n1", gate)
        first = await system.producer.submit("s1", **EN_ZH)
        await gate.wait_for(1)
        await system.add_node("n2", others)
        await system.managers.pop()[0].stop()
        leaving = asyncio.create_task(system.remove_node("n1"))

        async def takes_nothing_new() -> bool:
            return (await system.store.reads.capacities())["n1"].slots == 0

        await system.until(takes_nothing_new)
        second = await system.producer.submit("s1", **EN_ZH)
        await system.until(lambda: len(others.runs) + len(gate.started) == 2)
        assert not leaving.done()
        gate.open.set()
        await leaving
        outcomes = [await system.producer.outcome(job_id, WAIT_MS) for job_id in (first, second)]
        assert [outcome.node for outcome in outcomes] == ["n1", "n2"]
        assert (node.phase, await nodes_of(system)) == ("left", ["n2"])


@pytest.mark.parametrize("document", ["ready", "draining"])
async def test_heartbeats_that_arrive_after_leave_register_nobody(url: str, document: str) -> None:
    """RULES 14: not the last one of a node, nor one that was on its way for long."""
    async with running(url, PATIENT) as system:
        node = await system.add_node("n1", Attempts())
        await leave_in_time(system, "n1")
        beat = NodeBeat("n1", node.boot, 4, draining=document == "draining")

        await system.store.control.beat(encode_beat(beat))

        await until_folded(system)
        assert await nodes_of(system) == ["probe"]


async def test_a_node_that_left_takes_jobs_again_in_its_next_life(url: str) -> None:
    """RULES 10: only that boot is over."""
    async with running(url, PATIENT) as system:
        await system.add_node("n1", Attempts())
        await leave_in_time(system, "n1")

        await system.add_node("n1", Attempts())
        outcome = await system.producer.outcome(await system.producer.submit("s1", **EN_ZH), WAIT_MS)

        assert (outcome.state, outcome.node) == ("completed", "n1")
