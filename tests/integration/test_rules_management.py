"""Managers and reapers that were deaf for a while, what they go by, and what dispatchers follow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from scheduler.clock import SYSTEM_CLOCK, Clock, ServerTime
from scheduler.config import DEFAULTS, Settings
from scheduler.management.listening import STALL_MS
from scheduler.management.manager import Manager
from scheduler.protocol.documents import DispatcherBeat, NodeBeat, ReaperBeat, decode_beat, encode_beat
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Delta, Node, Pool, Snapshot, encode_snapshot
from scheduler.reaper import reaper as reaper_module
from scheduler.reaper.reaper import Reaper
from scheduler.store.cell import Cell
from scheduler.store.control import Control, Leading
from scheduler.store.store import Store
from tests.clock import HandClock, hand_clock
from tests.dumps import standing
from tests.integration.test_dispatcher import bench
from tests.integration.test_main_job import EN_ZH, WAIT_MS
from tests.seeds import (
    BOOT,
    JOB,
    MANAGER,
    NODE,
    POISON_ID,
    release,
    release_item,
    seed_lapsed,
    seed_leader,
    seed_node,
    seed_reserved,
)
from tests.system import running

BEATEN_MS = 50
IMPATIENT = msgspec.structs.replace(DEFAULTS, silence_ms=BEATEN_MS, publish_ms=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """The own clock of manager and reaper."""
    return hand_clock(monkeypatch)


async def new_reaper(store: Store, settings: Settings = DEFAULTS, clock: Clock = SYSTEM_CLOCK) -> Reaper:
    """A reaper that has done nothing yet."""
    return Reaper(store, settings, await store.control.write_layout(), "r", "1", clock)


async def steps(reaper: Reaper, clock: HandClock, ms: float) -> int:
    """Let it step four times a second for so long; returns what it has expired by then."""
    for _ in range(round(ms / 250)):
        clock.go(250)
        await reaper.run_once()
    return reaper.report.expired


# ---- the reaper ----------------------------------------------------------------------------------------------------


async def test_a_reaper_that_starts_waits_for_a_lease(store: Store, clock: HandClock) -> None:
    """RULES 16: what has lapsed may be good by the clock of its node, if the server's was stepped just before."""
    await seed_reserved(store)
    await seed_lapsed(store)
    reaper = await new_reaper(store, clock=clock)
    await reaper.run_once()
    assert await steps(reaper, clock, DEFAULTS.lease_ms - 250) == 0
    assert await steps(reaper, clock, 250) == 1
    assert await standing(store) == ("queued", ["intake"])


async def test_a_reaper_that_saw_a_step_waits_for_a_lease(
    store: Store, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES 16: a node that renewed just before may have its next renewal on the way when a third has passed."""
    reaper = await new_reaper(store, clock=clock)
    await reaper.run_once()
    await steps(reaper, clock, DEFAULTS.lease_ms)
    await seed_reserved(store)
    await seed_lapsed(store)

    with monkeypatch.context() as stepped:
        stepped.setattr(ServerTime, "told", lambda *_: 1.0)
        await reaper.run_once()
    assert await steps(reaper, clock, DEFAULTS.lease_ms - 250) == 0
    assert await steps(reaper, clock, 250) == 1


async def test_a_reaper_that_was_deaf_waits_for_one_renewal(store: Store, clock: HandClock) -> None:
    """RULES 16: after more than a second without an answer the nodes were perhaps deaf too, and get their chance."""
    reaper = await new_reaper(store, clock=clock)
    await reaper.run_once()
    await steps(reaper, clock, DEFAULTS.lease_ms)
    token = await seed_reserved(store)
    await seed_lapsed(store)

    clock.go(reaper_module.STALL_MS + 1)
    await reaper.run_once()
    assert await steps(reaper, clock, DEFAULTS.lease_ms / 3 - 250) == 0
    await store.cell.renew(NODE, [(JOB, token)])
    assert await steps(reaper, clock, DEFAULTS.lease_ms) == 0
    assert await standing(store) == ("reserved", ["inbox"])


async def test_a_reaper_that_was_deaf_brings_back_at_once_what_is_due(store: Store, clock: HandClock) -> None:
    """RULES 16: a delay that is over has nothing to do with anybody's silence."""
    token = await seed_reserved(store)
    await release(store, release_item(token, "give_back", delay_ms=1))
    reaper = await new_reaper(store, clock=clock)
    async with asyncio.timeout(WAIT_MS / 1000):
        while (await reaper.run_once()).promoted == 0:
            assert clock.now_ms == 1_000.0
    assert await standing(store) == ("queued", ["intake"])


async def test_a_reaper_works_from_the_capacities(store: Store, clock: HandClock) -> None:
    """RULES 15: a lease on a drained node that no snapshot has any more ends all the same, and only once it lapsed."""
    await seed_reserved(store, "live", "s1", slots=2)
    await seed_reserved(store, "lapsed", "s2", slots=2)
    await seed_node(store, slots=0, reason="draining")
    await seed_lapsed(store, "lapsed")
    await store.control.publish(MANAGER, await seed_leader(store), Snapshot(1))
    reaper = await new_reaper(store, clock=clock)
    await reaper.run_once()
    assert await steps(reaper, clock, DEFAULTS.lease_ms) == 1
    assert [(await standing(store, job))[0] for job in ("live", "lapsed")] == ["reserved", "queued"]


async def test_a_record_that_is_no_text_keeps_no_other_lease(store: Store, clock: HandClock) -> None:
    """Its fields are read with all others of a batch, and somebody wrote bytes into them that no script writes."""
    for job_id in ("damaged", JOB):
        await seed_reserved(store, job_id, f"s-{job_id}", slots=2)
        await seed_lapsed(store, job_id)
    fields = dict.fromkeys(("session", "tenant", "holder", "policy", b"\xff"), b"\xff")
    await store.connection.commands.hset(store.cell.keys.job("damaged"), mapping=fields)
    reaper = await new_reaper(store, clock=clock)
    await reaper.run_once()
    assert await steps(reaper, clock, DEFAULTS.lease_ms) == 1
    assert await standing(store) == ("queued", ["intake"])
    assert [lease.holder for lease in await store.reads.leases(NODE, ["damaged"])] == [None]
    assert (await store.reads.record("damaged"))["session"] == "\ufffd"


async def test_a_reaper_takes_a_dead_node_out_once_it_holds_nothing(store: Store, clock: HandClock) -> None:
    """RULES 14 and 15: as long as a reservation stands the dead node stays, so that its lease is still looked at."""
    token = await seed_reserved(store)
    await seed_node(store, slots=0, reason="dead")
    reaper = await new_reaper(store, clock=clock)
    await reaper.run_once()
    await steps(reaper, clock, DEFAULTS.lease_ms)
    assert (reaper.report.left, list(await store.reads.capacities())) == (0, [NODE])
    await release(store, release_item(token, "give_back"))
    await steps(reaper, clock, 250)
    assert (reaper.report.left, await store.reads.capacities()) == (1, {})


# ---- the manager ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stalled_ms", "reason"), [(STALL_MS - 1, "dead"), (STALL_MS + 1, "ready")])
async def test_a_manager_that_was_deaf_lets_ages_start_anew(
    store: Store, clock: HandClock, stalled_ms: int, reason: str
) -> None:
    """RULES 16: a silence of the node counts, unless it fell into more than a second in which nobody listened."""
    manager = Manager(store, IMPATIENT, MANAGER, clock)
    await store.control.beat(encode_beat(NodeBeat(NODE, BOOT, 1)))
    await manager.run_once()
    heard_us = await store.control.time_us()
    while await store.control.time_us() - heard_us <= BEATEN_MS * 1_000:
        pass
    clock.go(stalled_ms)
    await manager.run_once()
    assert (await store.reads.capacities())[NODE].reason == reason


async def test_a_take_over_that_takes_long_calls_nobody_silent(
    store: Store, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES 16: the server was away between the answer that made it leader and the first heartbeats it could read."""
    await store.control.beat(encode_beat(NodeBeat(NODE, BOOT, 1)))
    first = Manager(store, IMPATIENT, MANAGER, clock)
    await first.run_once()
    await first.give_up()
    capacity = Cell.capacity

    async def slow(self: Cell, epoch: int, items: Sequence[CapacityItem]) -> list[str]:
        since_us = await store.control.time_us()
        while not items and await store.control.time_us() - since_us <= BEATEN_MS * 1_000:
            pass
        clock.go(0 if items else STALL_MS + 1)
        return await capacity(self, epoch, items)

    monkeypatch.setattr(Cell, "capacity", slow)
    second = Manager(store, IMPATIENT, "m2+1", clock)
    await second.run_once()
    assert second.leading
    assert (await store.reads.capacities())[NODE].reason == "ready"


async def test_a_command_that_the_last_leader_left_is_answered(store: Store) -> None:
    """RULES 31: a leader that dies between reading a command and its answer leaves it to the next one."""
    commands = store.control.keys.commands
    command = (await store.connection.commands.xadd(commands, {"do": "nonsense"})).decode()
    epoch = await seed_leader(store)
    taken = await store.control.take(MANAGER, epoch)
    assert [each.id for each in taken.commands] == [command]
    await store.control.give_up_lead(MANAGER)

    await Manager(store, DEFAULTS, "m2+1").run_once()
    answers = await store.reads.entries(store.control.keys.answers)
    assert [fields[b"command"].decode() for _, fields in answers] == [command]


async def test_every_role_beats_with_a_document(url: str) -> None:
    """RULES 32: nodes, dispatchers and reapers say in one stream how they are, and all of it can be read."""
    async with running(url) as system:
        await system.add_node("n1", lambda job: job.node)
        await system.producer.outcome(await system.producer.submit("s1", **EN_ZH), WAIT_MS)
        entries = await system.store.reads.entries(system.store.control.keys.heartbeats, count=1_000)
        beats = {type(decode_beat(fields[b"node"])) for _, fields in entries}
        assert beats == {NodeBeat, DispatcherBeat, ReaperBeat}
        assert system.managers[0][1].invalid_heartbeats == 0


# ---- what dispatchers follow ---------------------------------------------------------------------------------------


async def test_a_lower_version_is_loaded_too(url: str) -> None:
    """RULES 33: a server that lost its last writes has an older snapshot than the dispatcher, and it is the truth."""
    async with bench(url) as b:
        await b.fleet(n1=1, n2=1)
        control = b.store.control
        older = Snapshot(7, (Node("n1", BOOT, 1, "default", (("en", "zh"),)),), (Pool("default"),))
        commands = b.store.connection.commands
        await commands.set(control.keys.snapshot, encode_snapshot(older))
        await commands.set(control.keys.version, 7)
        await commands.xadd(control.keys.deltas, {"version": 7})
        async with asyncio.timeout(10):
            while b.dispatcher.snapshots.index.version != 7:
                await b.dispatcher.run_once()
        await b.add("s1", "j0")
        await b.step_until_read()
        assert (list(b.dispatcher.snapshots.index.nodes), b.dispatcher.report.placed) == (["n1"], 0)


async def test_deltas_that_start_anew_are_followed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 33: after a stream that took no entry any more was deleted its ids are lower, and are noticed."""
    monkeypatch.setattr("scheduler.store.control.VERSION_BLOCK_MS", 20)
    async with bench(url) as b:
        await b.fleet(n1=1)
        control = b.store.control
        await b.store.connection.commands.xadd(control.keys.deltas, {"version": "1"}, id=POISON_ID)
        followed = asyncio.Event()
        read_deltas = Control.read_deltas

        async def spy(self: Control, after: str) -> tuple[list[Delta | None], str]:
            if after == POISON_ID:
                followed.set()
            return await read_deltas(self, after)

        monkeypatch.setattr(Control, "read_deltas", spy)
        async with asyncio.timeout(10):
            await followed.wait()
            version = await control.time_us()
            lead = await control.lead("m+1")
            assert isinstance(lead, Leading)
            await control.publish("m+1", lead.epoch, Snapshot(version))
            assert await control.stored_version() == version
            while b.dispatcher.snapshots.index.version != version:
                await b.dispatcher.run_once()


async def test_a_version_above_the_clock_can_be_followed_by_a_manager(store: Store) -> None:
    """RULES 7 and 33: a stored version ahead of the clock is outdone, not waited for."""
    epoch = await seed_leader(store)
    ahead = await store.control.time_us() + 3_600_000_000
    await store.control.publish(MANAGER, epoch, Snapshot(ahead))
    await store.control.give_up_lead(MANAGER)
    manager = Manager(store, DEFAULTS, "m2+1")
    await store.control.beat(encode_beat(NodeBeat(NODE, BOOT, 1)))
    await manager.run_once()
    stored = await store.control.read_snapshot()
    assert (stored.version, [node.id for node in stored.nodes]) == (ahead + 1, [NODE])
    assert await store.reads.capacities() == {NODE: CapacityItem(NODE, 1, BOOT, "ready")}
    answer = await store.control.lead("m2+1")
    assert isinstance(answer, Leading)


async def test_half_of_the_fleet_falls_silent(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """RULES 17: no node is declared dead, the snapshot says so, an error is logged; heard again they are as before."""
    settings = msgspec.structs.replace(DEFAULTS, silence_ms=200, heartbeat_ms=20, publish_ms=1)
    manager = Manager(store, settings, MANAGER)
    names = [f"n{number}" for number in range(8)]
    start_us = await store.control.time_us()

    async def beat(heard: list[str]) -> None:
        for name in heard:
            await store.control.beat(encode_beat(NodeBeat(name, f"{start_us}-a", 2)))

    async def reasons() -> list[str]:
        await manager.run_once()
        capacities = await store.reads.capacities()
        return [capacities[name].reason for name in names]

    await beat(names)
    assert await reasons() == ["ready"] * 8
    while "suspect" not in await reasons():
        await beat(names[4:])
    while await reasons() != ["suspect"] * 4 + ["ready"] * 4:
        await beat(names[4:])
    while [node.suspect for node in (await store.control.read_snapshot()).nodes] != [True] * 4 + [False] * 4:
        await beat(names[4:])
        await reasons()
    assert "fell silent at once" in caplog.text
    await beat(names)
    assert await reasons() == ["ready"] * 8
    assert "is dead" not in caplog.text
