"""Nodes join, change, leave, die by silence and come back; managers take over; the steady fleet publishes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from scheduler.errors import Fenced
from scheduler.management import manager as manager_module
from scheduler.management.manager import Manager
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Node, Snapshot
from scheduler.store.store import Store, open_store
from tests.seeds import FAR_US, NODE
from tests.system import QUICK


class Fleet:
    """A manager that is driven step by step, and nodes that exist as heartbeats only."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.manager = Manager(store, QUICK, "manager+1")

    async def boot(self) -> str:
        """A boot id that is higher than all before."""
        return f"{await self.store.control.time_us()}-test"

    async def beat(self, beat: NodeBeat) -> None:
        """Send a heartbeat."""
        await self.store.control.beat(encode_beat(beat))

    async def capacities(self) -> dict[str, CapacityItem]:
        """What the cell holds."""
        return await self.store.reads.capacities()

    async def nodes(self) -> dict[str, Node]:
        """What placement sees."""
        return {node.id: node for node in (await self.store.control.read_snapshot()).nodes}

    async def step_until(self, node: str, reason: str) -> None:
        """Step until the cell says `reason` of a node."""
        async with asyncio.timeout(10):
            while True:
                await self.manager.run_once()
                item = (await self.capacities()).get(node)
                if item is not None and item.reason == reason:
                    return


@pytest.fixture
async def fleet(store: Store) -> AsyncIterator[Fleet]:
    """A led fleet without nodes, on its quick settings."""
    async with await open_store(store.connection.url, QUICK) as quick:
        await quick.control.write_layout()
        yield Fleet(quick)


async def test_a_node_joins_in_one_step(fleet: Fleet) -> None:
    """A first heartbeat gives the node its capacity, its boot message and its place in the snapshot."""
    boot = await fleet.boot()
    await fleet.beat(NodeBeat("n1", boot, 3, pairs=(("en", "zh"),), features=("asr",), pool="p"))
    await fleet.manager.run_once()
    assert await fleet.capacities() == {"n1": CapacityItem("n1", 3, boot, "ready")}
    assert await fleet.nodes() == {
        "n1": Node("n1", boot, 3, "p", pairs=(("en", "zh"),), features=("asr",)),
    }
    inbox = await fleet.store.reads.entries(fleet.store.cell.keys.inbox("n1"))
    assert [fields for _, fields in inbox] == [{b"control": b"boot", b"boot": boot.encode()}]


async def test_a_boot_that_nobody_gave_is_not_heard(fleet: Fleet) -> None:
    """The highest one there is would keep later lives of the node out. Others join, and so does this node."""
    await fleet.beat(NodeBeat("bad", f"{2**52 - 1}-x", 1))
    await fleet.manager.run_once()
    assert (await fleet.capacities(), fleet.manager.invalid_heartbeats) == ({}, 1)

    _, number, _ = await fleet.store.cell.boot("bad")
    await fleet.beat(NodeBeat("bad", f"{number}-y", 1))
    _, other, _ = await fleet.store.cell.boot("good")
    await fleet.beat(NodeBeat("good", f"{other}-z", 1))
    await fleet.manager.run_once()

    assert sorted(await fleet.capacities()) == ["bad", "good"]
    assert fleet.manager.invalid_heartbeats == 1


@pytest.mark.parametrize("is_lost", [False, True])
async def test_boots_from_before_the_clock_went_back_are_heard(fleet: Fleet, is_lost: bool) -> None:
    """However far it did: `boot` has given them. A later life joins although the last number is lost, and a later
    leader hears both.
    """
    c, keys = fleet.store.connection.commands, fleet.store.cell.keys
    await c.set(keys.last_boot, FAR_US)
    boots = [f"{(await fleet.store.cell.boot('n1'))[1]}-{name}" for name in ("a", "b")]
    await fleet.beat(NodeBeat("n1", boots[0], 1))
    await fleet.manager.run_once()
    assert (await fleet.capacities())["n1"].boot == boots[0]
    if is_lost:
        await c.delete(keys.last_boot)
    await fleet.manager.give_up()
    fleet.manager = Manager(fleet.store, QUICK, "manager+2")
    await fleet.beat(NodeBeat("n1", boots[0], 2))
    await fleet.manager.run_once()
    assert (await fleet.capacities())["n1"] == CapacityItem("n1", 2, boots[0], "ready")

    later = f"{(await fleet.store.cell.boot('n1'))[1]}-c"
    await fleet.beat(NodeBeat("n1", later, 1))
    await fleet.manager.run_once()

    assert (await fleet.capacities())["n1"].boot == later
    assert fleet.manager.invalid_heartbeats == 0


async def test_a_node_that_asked_to_leave_gets_nothing_new_whenever_the_leader_looks_back(fleet: Fleet) -> None:
    """In such a step it hears nothing new, and writes what differs from what it wrote."""
    boot = await fleet.boot()
    await fleet.beat(NodeBeat(NODE, boot, 2))
    await fleet.manager.run_once()
    store, keys = fleet.store, fleet.store.cell.keys
    await store.connection.commands.zadd(keys.slots(NODE), {"j1": FAR_US})
    await fleet.beat(NodeBeat(NODE, boot, 2, draining=True))
    assert await store.cell.leave(NODE, boot) == "busy"

    for _ in range(3):
        fleet.manager._looked_back_at_ms = float("-inf")
        await fleet.manager.run_once()
        assert await fleet.capacities() == {NODE: CapacityItem(NODE, 0, boot, "draining")}
        assert await store.reads.are_open([NODE]) == [False]


async def test_an_earlier_life_is_looked_after_when_its_later_one_has_left(fleet: Fleet) -> None:
    """The leader has heard of the later one only, which left before it was written; the earlier one has crashed."""
    epoch = int((await fleet.store.connection.commands.get(fleet.store.cell.keys.leader_epoch)) or 0)
    await fleet.store.cell.capacity(epoch, [CapacityItem(NODE, 2, "1000-a", "ready")])
    await fleet.manager.run_once()
    later = await fleet.boot()
    assert await fleet.store.cell.leave(NODE, later) == "left"
    await fleet.beat(NodeBeat(NODE, later, 2))
    await fleet.manager.run_once()
    assert await fleet.capacities() == {NODE: CapacityItem(NODE, 2, "1000-a", "ready")}

    fleet.manager._looked_back_at_ms = float("-inf")
    await fleet.step_until(NODE, "dead")

    assert (await fleet.capacities())[NODE].boot == "1000-a"


async def test_rule_31_leader_goes_on_when_the_clock_went_back_and_its_key_was_deleted(fleet: Fleet) -> None:
    """It learns which epoch the cell has seen, and leads above that; so does another one."""
    keys, client = fleet.store.cell.keys, fleet.store.connection.commands
    await client.set(keys.leader_epoch, FAR_US)
    boot = await fleet.boot()
    await fleet.beat(NodeBeat("n1", boot, 1))
    for name in ("m1+1", "m2+1"):
        await client.delete(fleet.store.control.keys.leader)
        manager = Manager(fleet.store, QUICK, name)
        with pytest.raises(Fenced):
            await manager.run_once()

        assert (await manager.run_once()).leading

        assert int(await client.get(keys.leader_epoch)) > FAR_US
    assert await fleet.capacities() == {"n1": CapacityItem("n1", 1, boot, "ready")}


async def test_a_steady_fleet_publishes_nothing(fleet: Fleet) -> None:
    """Heartbeats that change nothing write neither a snapshot nor a capacity."""
    boot = await fleet.boot()
    await fleet.beat(NodeBeat("n1", boot, 3))
    await fleet.manager.run_once()
    version = (await fleet.store.control.read_snapshot()).version
    for running in range(5):
        await fleet.beat(NodeBeat("n1", boot, 3, running=running))
        report = await fleet.manager.run_once()
        assert (report.heartbeats, report.capacities, report.published) == (1, 0, False)
    assert (await fleet.store.control.read_snapshot()).version == version


async def test_a_step_hears_all_that_waits(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one call reads: a leader that was busy elsewhere catches up, and takes nobody for silent meanwhile."""
    monkeypatch.setattr(manager_module, "TAKE_MAX", 2)
    boot = await fleet.boot()
    for number in range(5):
        await fleet.beat(NodeBeat(f"n{number}", boot, 1))
    report = await fleet.manager.run_once()
    assert (report.heartbeats, report.capacities, len(await fleet.nodes())) == (5, 5, 5)


async def test_a_boot_keeps_its_languages_and_changes_its_capacity(fleet: Fleet) -> None:
    """What a node serves is fixed for a boot; another capacity takes effect; a new boot changes everything."""
    boot = await fleet.boot()
    await fleet.beat(NodeBeat("n1", boot, 3, pairs=(("en", "zh"),)))
    await fleet.manager.run_once()
    await fleet.beat(NodeBeat("n1", boot, 5, pairs=(("en", "de"),)))
    await fleet.step_until("n1", "ready")
    assert (await fleet.capacities())["n1"].slots == 5
    async with asyncio.timeout(10):
        while (await fleet.nodes())["n1"].slots != 5:
            await fleet.manager.run_once()
    assert (await fleet.nodes())["n1"].pairs == (("en", "zh"),)
    later = await fleet.boot()
    await fleet.beat(NodeBeat("n1", later, 2, pairs=(("en", "de"),)))
    await fleet.manager.run_once()
    assert (await fleet.capacities())["n1"] == CapacityItem("n1", 2, later, "ready")
    await fleet.beat(NodeBeat("n1", boot, 9))
    await fleet.manager.run_once()
    assert (await fleet.capacities())["n1"] == CapacityItem("n1", 2, later, "ready")


async def test_silence_is_death_and_a_heartbeat_is_life(fleet: Fleet) -> None:
    """A silent node loses its slots; when it is heard again it gets them back, with the same boot."""
    boot = await fleet.boot()
    await fleet.beat(NodeBeat("n1", boot, 3))
    await fleet.step_until("n1", "dead")
    await fleet.beat(NodeBeat("n1", boot, 3))
    await fleet.step_until("n1", "ready")
    assert (await fleet.capacities())["n1"] == CapacityItem("n1", 3, boot, "ready")


async def test_ages_start_anew_when_nobody_listened(fleet: Fleet) -> None:
    """A manager that takes over does not count the silence before its time."""
    boot = await fleet.boot()
    await fleet.beat(NodeBeat("n1", boot, 3))
    await fleet.manager.run_once()
    await fleet.manager.give_up()
    later = Manager(fleet.store, QUICK, "manager+2")
    started_us = await fleet.store.control.time_us()
    await later.run_once()
    assert (await fleet.capacities())["n1"].reason == "ready"
    async with asyncio.timeout(10):
        while (await fleet.capacities())["n1"].reason != "dead":
            await later.run_once()
    # The own clock and the server's are set right apart from each other, and differ a little in how fast they go.
    assert await fleet.store.control.time_us() - started_us >= (QUICK.silence_ms - 1) * 1000


async def test_bad_heartbeats_are_counted_and_harm_nobody(fleet: Fleet) -> None:
    """Undecodable heartbeats are ignored; the good ones beside them count."""
    client, stream = fleet.store.connection.commands, fleet.store.control.keys.heartbeats
    await client.xadd(stream, {"node": b"{"})
    await client.xadd(stream, {"nothing": b"here"})
    boot = await fleet.boot()
    await client.xadd(stream, {"node": encode_beat(NodeBeat("n1", boot, 1))})
    await client.xadd(stream, {"node": encode_beat(NodeBeat("n2", "no-boot", 1))})
    report = await fleet.manager.run_once()
    assert (report.heartbeats, report.invalid, list(await fleet.capacities())) == (4, 3, ["n1"])


async def test_a_paused_leader_is_refused_when_it_wakes(fleet: Fleet) -> None:
    """Capacities and snapshot of an older epoch are refused by the scripts, and it stands by."""
    await fleet.manager.run_once()
    epoch = (await fleet.store.control.lead("manager+1")).epoch  # type: ignore[union-attr]
    await fleet.store.control.give_up_lead("manager+1")
    other = Manager(fleet.store, QUICK, "manager+2")
    await other.run_once()
    with pytest.raises(Fenced):
        await fleet.store.cell.capacity(epoch, [CapacityItem("n1", 9, "1-old", "ready")])
    with pytest.raises(Fenced):
        await fleet.store.control.publish("manager+1", epoch, Snapshot(version=2**52))
    with pytest.raises(Fenced):
        await fleet.manager.run_once()
    assert (fleet.manager.leading, other.leading, await fleet.capacities()) == (False, True, {})


async def test_a_new_leader_rewrites_every_capacity(fleet: Fleet) -> None:
    """What an earlier leader wrote late, or not at all, is put right at the take-over."""
    boot = await fleet.boot()
    await fleet.beat(NodeBeat("n1", boot, 3))
    await fleet.manager.run_once()
    await fleet.manager.give_up()
    await fleet.store.connection.commands.hset(fleet.store.cell.keys.capacity, "n1", f"7 {boot} ready")
    later = Manager(fleet.store, QUICK, "manager+2")
    await later.run_once()
    await fleet.beat(NodeBeat("n1", boot, 3))
    await later.run_once()
    assert (await fleet.capacities())["n1"] == CapacityItem("n1", 3, boot, "ready")


async def test_an_unknown_command_is_refused_and_answered(fleet: Fleet) -> None:
    """Every command gets an answer, once."""
    client, control = fleet.store.connection.commands, fleet.store.control.keys
    command = await client.xadd(control.commands, {"do": "nonsense"})
    await fleet.manager.run_once()
    await fleet.manager.run_once()
    answers = await client.xrange(control.answers)
    assert [fields for _, fields in answers] == [
        {
            b"command": command,
            b"answer": b'{"refused":"the entry has no field `command` (it has: do): expected a JSON object"}',
        }
    ]
