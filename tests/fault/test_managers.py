"""Two managers, of which the leader is paused in the middle of a step and wakes when it leads no more."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from scheduler.loop import Loop, end_tasks
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.protocol.messages import CapacityItem
from scheduler.store.store import Store, open_store
from tests.fault.processes import process
from tests.fault.proxy import proxy
from tests.system import PATIENCE_MS, QUICK


class Beating:
    """Nodes that only beat. `capacities` may change: node -> slots; whoever is taken out falls silent."""

    def __init__(self, store: Store) -> None:
        self.capacities: dict[str, int] = {}
        self.boots: dict[str, str] = {}
        self._store = store

    async def join(self, node: str, slots: int) -> None:
        """A node beats for the first time."""
        self.boots[node] = f"{await self._store.control.time_us()}-{node}"
        self.capacities[node] = slots
        await self.beat()

    async def beat(self) -> None:
        """A heartbeat of each."""
        for node, slots in list(self.capacities.items()):
            beat = NodeBeat(node, self.boots[node], slots, pairs=(("en", "zh"),))
            await self._store.control.beat(encode_beat(beat))

    def ready(self, node: str) -> CapacityItem:
        """The capacity that such a node is to have."""
        return CapacityItem(node, self.capacities[node], self.boots[node], "ready")


@asynccontextmanager
async def beating(store: Store) -> AsyncIterator[Beating]:
    """Nobody beats yet."""
    nodes = Beating(store)
    task = asyncio.create_task(Loop("beats", nodes.beat, QUICK.heartbeat_ms, Random()).run())
    try:
        yield nodes
    finally:
        await end_tasks([task])


async def leader(store: Store) -> str:
    """The name of the leading manager, empty when nobody leads."""
    return (await store.connection.commands.hget(store.control.keys.leader, "name") or b"").decode()


async def until_leads(store: Store, pid: int) -> None:
    """Wait until the manager with this process id leads."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while f"-{pid}+" not in await leader(store):
            await store.control.time_us()


async def until_capacities(store: Store, expected: dict[str, CapacityItem]) -> None:
    """Wait until the cell has these capacities and no others."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while await store.reads.capacities() != expected:
            await store.control.time_us()


async def published(store: Store) -> dict[str, int]:
    """Node -> slots of the published snapshot."""
    return {node.id: node.slots for node in (await store.control.read_snapshot()).nodes}


async def until_published(store: Store, expected: dict[str, int]) -> None:
    """Wait until the snapshot has these nodes with these slots and no others."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while await published(store) != expected:
            await store.control.time_us()


async def until_logged(store: Store, log: Path, words: str) -> None:
    """Wait until a process has logged something."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while words not in log.read_text():
            await store.control.time_us()


async def test_a_leader_paused_between_take_and_capacity_writes_nothing_when_it_wakes(url: str, tmp_path: Path) -> None:
    """What it took before the pause is old by then; its write is refused, and the capacities stay as they are."""
    log = tmp_path / "old.log"
    async with (
        await open_store(url, QUICK) as store,
        beating(store) as nodes,
        proxy(url) as between,
        process(between.url, "manager", log=log) as old,
        process(url, "manager") as new,
    ):
        await until_leads(store, old.pid)
        await nodes.join("n1", 1)
        await until_capacities(store, {"n1": nodes.ready("n1")})
        await between.hold_call("take")
        await nodes.join("n2", 2)
        await between.pass_call()
        await old.pause()
        between.pass_all()

        await until_leads(store, new.pid)
        dead = CapacityItem("n1", 0, nodes.boots["n1"], "dead")
        del nodes.capacities["n1"]
        nodes.capacities["n2"] = 5
        await nodes.join("n3", 3)
        expected = {"n1": dead, "n2": nodes.ready("n2"), "n3": nodes.ready("n3")}
        await until_capacities(store, expected)
        await until_published(store, {"n2": 5, "n3": 3})

        old.wake()
        await until_logged(store, log, "manager: leader epoch")
        assert await store.reads.capacities() == expected
        assert (await published(store), f"-{new.pid}+" in await leader(store)) == ({"n2": 5, "n3": 3}, True)

        new.send(signal.SIGKILL)
        await until_leads(store, old.pid)
        await nodes.join("n4", 4)
        await until_capacities(store, expected | {"n4": nodes.ready("n4")})


async def test_a_leader_paused_past_its_lease_stands_by_when_it_wakes(url: str, tmp_path: Path) -> None:
    """Wherever in its step it was paused: what changed meanwhile is what the cell says."""
    log = tmp_path / "old.log"
    async with (
        await open_store(url, QUICK) as store,
        beating(store) as nodes,
        process(url, "manager", log=log) as old,
        process(url, "manager") as new,
    ):
        await until_leads(store, old.pid)
        await nodes.join("n1", 1)
        await nodes.join("n2", 2)
        await until_capacities(store, {"n1": nodes.ready("n1"), "n2": nodes.ready("n2")})
        await old.pause()
        await until_leads(store, new.pid)
        dead = CapacityItem("n1", 0, nodes.boots["n1"], "dead")
        del nodes.capacities["n1"]
        nodes.capacities["n2"] = 5
        expected = {"n1": dead, "n2": nodes.ready("n2")}
        await until_capacities(store, expected)
        old.wake()
        await until_logged(store, log, "leads no more")
        assert await store.reads.capacities() == expected
        assert f"-{new.pid}+" in await leader(store)
