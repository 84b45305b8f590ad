"""What a leader publishes of a fleet that changes, how it is followed, and what becomes of it when part is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import msgspec
import pytest

from scheduler.errors import Fenced, InvalidInput, PublishConflict, SchedulerError
from scheduler.management import manager as manager_module
from scheduler.management.commands import ApplyPools, encode_command
from scheduler.management.manager import Manager
from scheduler.management.pools import PoolDocument
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.protocol.messages import Taken
from scheduler.protocol.snapshot import Delta, Snapshot, decode_snapshot
from scheduler.runtime.index import Index
from scheduler.runtime.snapshots import Snapshots
from scheduler.store.control import Control
from scheduler.store.store import Store, open_store
from tests.seeds import MANAGER, POISON_ID, seed_leader
from tests.system import QUICK

NODES: Final = 40
"""So many that a whole snapshot is stored only for every tenth change."""
PROMPT: Final = msgspec.structs.replace(QUICK, publish_ms=1, silence_ms=60_000, leader_lease_ms=60_000)


class Scene:
    """A fleet that was published, a manager that is driven step by step, and a follower."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.control = store.control
        self.manager = Manager(store, PROMPT, "m1+1")
        self.follower = Snapshots(store.control)
        self.boot = ""
        self.capacities = {f"n{number:02}": 1 for number in range(NODES)}

    async def beat(self, **capacities: int) -> None:
        """Nodes say that they have so many slots; 0 for one that drains."""
        self.capacities |= capacities
        for node, slots in capacities.items():
            beat = NodeBeat(node, self.boot, max(1, slots), draining=slots == 0)
            await self.control.beat(encode_beat(beat))

    async def change(self, **capacities: int) -> int:
        """Let it be published. Returns: the version."""
        await self.step_until(self.is_published, **capacities)
        return await self.control.read_version()

    async def step_until(self, true: Callable[[], Awaitable[bool]], **capacities: int) -> None:
        """Let nodes beat and the manager step, again and again, until something is true."""
        self.capacities |= capacities
        async with asyncio.timeout(10):
            while not await true():
                await self.beat(**capacities)
                await self.manager.run_once()

    async def is_published(self) -> bool:
        """Whether the published snapshot is what the nodes said."""
        nodes = (await self.control.read_snapshot()).nodes
        return {node.id: node.slots for node in nodes} == {name: n for name, n in self.capacities.items() if n}

    async def whole(self) -> int:
        """The version of the snapshot that is stored as a whole."""
        return decode_snapshot(await self.store.connection.commands.get(self.control.keys.snapshot)).version

    async def catch_up(self) -> None:
        """Let the follower come to the newest version, and see that it has what the server has."""
        async with asyncio.timeout(10):
            while self.follower.index.version != await self.control.read_version():
                await self.follower.follow()
        snapshot = await self.control.read_snapshot()
        index = Index(snapshot)
        assert (self.follower.index.nodes, self.follower.index.pools) == (index.nodes, index.pools)

    async def is_healed(self) -> bool:
        """Whether what is published can be read, and can be built upon."""
        try:
            await self.control.read_snapshot()
        except InvalidInput:
            return False
        return await self.control.stored_version() is not None


@pytest.fixture
async def scene(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """Everybody is published and followed; after that two small changes were told as deltas."""
    monkeypatch.setattr("scheduler.store.control.VERSION_BLOCK_MS", 20)
    async with await open_store(store.connection.url, PROMPT) as opened:
        await opened.control.write_layout()
        scene = Scene(opened)
        scene.boot = f"{await opened.control.time_us()}-test"
        await scene.change(**scene.capacities)
        await scene.catch_up()
        whole = await scene.whole()
        await scene.change(n00=2)
        await scene.change(n01=2)
        assert await scene.whole() == whole
        yield scene


# ---- following -------------------------------------------------------------------------------------------------------


async def test_small_changes_are_followed_without_reading_the_whole(scene: Scene) -> None:
    """Nodes that are others, come and go, and the pool that goes with them."""
    loads = scene.follower.loads
    await scene.catch_up()
    await scene.change(n02=0)
    await scene.catch_up()
    scene.capacities["n99"] = 3
    await scene.control.beat(encode_beat(NodeBeat("n99", scene.boot, 3, pool="gold")))
    await scene.step_until(scene.is_published)
    await scene.catch_up()
    assert set(scene.follower.index.pools) == {"default", "gold"}
    assert scene.follower.loads == loads


async def test_a_whole_snapshot_that_is_stored_again_is_no_reason_to_read_it(scene: Scene) -> None:
    """The deltas before it are kept for those who are a little behind, and go with the next one."""
    loads, first = scene.follower.loads, await scene.whole()
    number = 2
    while await scene.whole() == first:
        await scene.change(**{f"n{number:02}": 2})
        number += 1
    await scene.catch_up()
    assert scene.follower.loads == loads
    second = await scene.whole()
    while await scene.whole() == second:
        await scene.change(**{f"n{number:02}": 2})
        number += 1
    entries = await scene.store.reads.entries(scene.control.keys.deltas)
    assert entries[0][0] == f"{second}-0"


async def test_a_change_of_many_is_only_said_to_be_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the whole is stored, and everybody reads it."""
    monkeypatch.setattr("scheduler.management.publication.DELTA_SIZE_MAX", 2)
    await scene.catch_up()
    loads = scene.follower.loads
    version = await scene.change(n02=3, n03=3, n04=3)
    entries = await scene.store.reads.entries(scene.control.keys.deltas)
    assert set(entries[-1][1]) == {b"version", b"before"}
    assert await scene.whole() == version
    await scene.catch_up()
    assert scene.follower.loads > loads


async def test_who_comes_new_reads_the_whole_and_what_came_after_it(scene: Scene) -> None:
    """And follows from there."""
    scene.follower = Snapshots(scene.control)
    await scene.follower.load()
    await scene.change(n05=7)
    await scene.catch_up()
    assert scene.follower.loads == 1


@pytest.mark.parametrize("harm", ["lost", "unreadable", "repeated", "swapped"])
async def test_a_delta_that_does_not_fit_makes_the_follower_read_the_whole(scene: Scene, harm: str) -> None:
    """RULES 33: until that can be read it keeps what it has."""
    deltas, client = scene.control.keys.deltas, scene.store.connection.commands
    before = scene.follower.index
    (*_, (first, one), (second, other)) = await scene.store.reads.entries(deltas)
    harmed = {
        "lost": [(second, other)],
        "unreadable": [(first, one | {b"delta": b"\xc1"}), (second, other)],
        "repeated": [(first, one), (second, one)],
        "swapped": [(first, other), (second, one)],
    }[harm]
    await client.delete(deltas)
    for entry, fields in harmed:
        await client.xadd(deltas, fields, id=entry)
    with pytest.raises(InvalidInput, match="deltas are missing"):
        await scene.follower.follow()
    assert scene.follower.index is before

    await scene.manager.give_up()
    scene.manager = Manager(scene.store, PROMPT, "m2+1")
    await scene.step_until(scene.is_healed, **scene.capacities)
    await scene.change(**scene.capacities)
    await scene.catch_up()


async def test_an_entry_that_is_not_ours_costs_one_reading_and_no_more(scene: Scene) -> None:
    """Somebody added the last entry that a stream can have: the whole is read once, then others are waited for."""
    await scene.catch_up()
    await scene.store.connection.commands.xadd(scene.control.keys.deltas, {"version": 1}, id=POISON_ID)
    loads, index = scene.follower.loads, scene.follower.index
    for _ in range(4):
        await scene.follower.follow()
    assert (scene.follower.loads, scene.follower.index) == (loads + 1, index)
    with pytest.raises(PublishConflict):
        await scene.change(n03=9)
    await scene.change(n03=9)
    await scene.catch_up()


# ---- another leader --------------------------------------------------------------------------------------------------


async def test_a_new_leader_goes_on_from_the_version_that_is_stored(scene: Scene) -> None:
    """RULES 33: he publishes nothing by himself; his first change is told, and the whole stored beside it."""
    await scene.catch_up()
    loads, version = scene.follower.loads, await scene.control.read_version()
    await scene.manager.give_up()
    scene.manager = Manager(scene.store, PROMPT, "m2+1")
    for _ in range(3):
        await scene.manager.run_once()
    assert await scene.control.read_version() == version

    version = await scene.change(n06=5)
    assert await scene.whole() == version
    await scene.catch_up()
    assert scene.follower.loads == loads
    await scene.change(n07=5)
    assert await scene.whole() == version


async def test_a_paused_leader_tells_no_delta_when_it_wakes(scene: Scene) -> None:
    """RULES 31 and 33: what it took meanwhile is refused, and it begins anew when it leads again."""
    old, scene.manager = scene.manager, Manager(scene.store, PROMPT, "m2+1")
    await scene.control.give_up_lead("m1+1")
    await scene.change(n08=5)
    await scene.control.beat(encode_beat(NodeBeat("n09", scene.boot, 7)))
    with pytest.raises(Fenced):
        await old.run_once()
    await scene.change(n09=7)
    await scene.manager.give_up()
    scene.manager = old
    await scene.change(n10=5)
    await scene.catch_up()


@contextmanager
def losing_replies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is published arrives, and the publisher does not hear of it."""
    publish = Control.publish

    async def lose_reply(*arguments: Any, **rest: Any) -> None:
        await publish(*arguments, **rest)
        raise SchedulerError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(Control, "publish", lose_reply)
        yield


async def test_crash_after_publish_before_its_reply(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next leader finds the delta as the last part of the snapshot."""
    with losing_replies(monkeypatch), pytest.raises(SchedulerError, match="lost"):
        await scene.change(n11=5)
    await scene.control.give_up_lead("m1+1")
    scene.manager = Manager(scene.store, PROMPT, "m2+1")
    await scene.manager.run_once()
    version = await scene.control.read_version()
    assert await scene.is_published()
    await scene.manager.run_once()
    assert await scene.control.read_version() == version
    await scene.catch_up()


@contextmanager
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No millisecond passes for the manager."""
    take, now_ms = Control.take, int(time.time() * 1000)

    async def take_now(*arguments: Any, **rest: Any) -> Taken:
        return msgspec.structs.replace(await take(*arguments, **rest), now_ms=now_ms)

    with monkeypatch.context() as patch:
        patch.setattr(Control, "take", take_now)
        yield


@pytest.mark.parametrize("clock", [nullcontext, standing_clock])
async def test_a_leader_whose_reply_was_lost_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, clock: Callable[..., AbstractContextManager[None]]
) -> None:
    """It does not know that its version is stored; the next one is another and does not fit, so the whole is published.

    Also within the millisecond of the first.
    """
    with clock(monkeypatch):
        with losing_replies(monkeypatch), pytest.raises(SchedulerError, match="lost"):
            await scene.change(n12=5)
        with pytest.raises(PublishConflict):
            await scene.change(n13=5)
    await scene.change(n13=5)
    await scene.catch_up()


# ---- what the server loses -------------------------------------------------------------------------------------------


async def test_a_server_that_lost_its_last_writes_is_told_all_anew(scene: Scene) -> None:
    """RULES 33: the next delta does not fit what is stored; configuration that was answered is stored again with it."""
    client, k = scene.store.connection.commands, scene.control.keys
    await scene.catch_up()
    kept = {key: await client.dump(key) for key in (k.snapshot, k.version, k.deltas)}
    await client.xadd(k.commands, {"command": encode_command(ApplyPools({"gold": PoolDocument()}))})
    await scene.change(n14=5)
    await scene.catch_up()
    assert "gold" in scene.follower.index.pools
    for key, value in kept.items():
        await client.restore(key, 0, value, replace=True)
    await client.delete(k.config)

    with pytest.raises(PublishConflict):
        await scene.change(n15=5)
    await scene.change(n15=5)
    assert set(await scene.control.read_config()) == {"pool:gold"}
    assert await scene.whole() == await scene.control.read_version()
    await scene.catch_up()
    assert "gold" in scene.follower.index.pools


@pytest.mark.parametrize("harm", ["deltas", "snapshot", "version", "poison"])
async def test_what_somebody_deleted_is_there_again_after_a_look_back(
    scene: Scene, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any change of the fleet, so that who comes new can read it."""
    client, k = scene.store.connection.commands, scene.control.keys
    if harm == "poison":
        await client.xadd(k.deltas, {"version": 1}, id=POISON_ID)
    else:
        await client.delete(getattr(k, harm))
    monkeypatch.setattr(manager_module, "LOOK_BACK_MS", -1)
    await scene.step_until(scene.is_healed)
    assert await scene.is_published()
    await scene.catch_up()


async def test_a_new_leader_makes_anew_what_cannot_be_read(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """RULES 33: nothing is told as a change of a picture that he does not know."""
    await scene.catch_up()
    await scene.manager.give_up()
    await scene.store.connection.commands.delete(scene.control.keys.deltas)
    scene.manager = Manager(scene.store, PROMPT, "m2+1")
    await scene.step_until(scene.is_healed)
    await scene.change(**dict.fromkeys(scene.capacities, 4))
    assert "the published snapshot is ignored" in caplog.text
    assert isinstance(await scene.control.read_snapshot(), Snapshot)
    await scene.catch_up()


async def test_a_snapshot_that_is_published_while_it_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What led to the version that was read went in between, so all is read again: never in a MULTI, which a full
    server refuses.
    """
    epoch, control, all_of = await seed_leader(store), store.control, store.connection.all_of
    await control.publish(MANAGER, epoch, Snapshot(5))
    await control.publish(MANAGER, epoch, None, Delta(6, before=5, removed=("n1",)))
    news = iter([7, 9])

    async def published_meanwhile(commands: list[Any]) -> list[Any]:
        first = await all_of(commands[:1])
        for version in news:
            await control.publish(MANAGER, epoch, Snapshot(version), oldest=version)
        return first + await all_of(commands[1:])

    monkeypatch.setattr(store.connection, "all_of", published_meanwhile)
    assert (await control.read_snapshot()).version == 9
