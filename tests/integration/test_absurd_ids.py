"""Somebody writes entries with ids that no clock gives: every stream takes entries again, and jobs go on."""

from __future__ import annotations

import time
from typing import Final

import pytest

from scheduler.config import DEFAULTS
from scheduler.errors import NotAccepted
from scheduler.management.manager import Manager
from scheduler.node.handlers import Job
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.protocol.keys import HIGHEST_ID, is_absurd
from scheduler.protocol.messages import CapacityItem
from scheduler.reaper.reaper import Reaper
from scheduler.store.store import Store
from tests.clock import hand_clock
from tests.seeds import BOOT, NODE, seed_closed
from tests.system import System, running

HOUR_MS: Final = 3_600_000
YEARS_AHEAD: Final = f"{10**15}-5"
WITHIN_S: Final = 2.0


async def echo(job: Job) -> bytes:
    """Returns the payload."""
    return job.payload


async def stream_of(system: System, name: str) -> str:
    """The key of a stream."""
    cell, control = system.store.cell.keys, system.store.control.keys
    if name == "jobs":
        return cell.jobs(system.store.partition_of("s1", await system.store.layout()))
    if name == "inbox":
        return cell.inbox("n1")
    return str(getattr(control if hasattr(control, name) else cell, name))


async def done(system: System, session: str = "s1") -> bool:
    """Whether a job of the session is accepted and done."""
    try:
        job_id = await system.producer.submit(session, src_lang="en", tgt_lang="zh", payload="hi")
    except NotAccepted:
        return False
    return bool(await system.producer.result(job_id, 10_000) == b"hi")


@pytest.mark.parametrize("kind", ["highest", "highest, deleted", "years ahead"])
@pytest.mark.parametrize("name", ["jobs", "inbox", "parked", "dead", "heartbeats", "commands"])
async def test_every_stream_takes_entries_again(url: str, name: str, kind: str) -> None:
    """Within two seconds, although nobody writes to it, and whatever was in it is there."""
    async with running(url) as system:
        await system.add_node("n1", echo)
        assert await done(system)
        stream, client = await stream_of(system, name), system.store.connection.commands
        absurd = YEARS_AHEAD if kind == "years ahead" else HIGHEST_ID
        await client.xadd(stream, {"foreign": "1"}, id=absurd)
        if kind == "highest, deleted":
            await client.xdel(stream, absurd)
        since_s = time.monotonic()

        async def is_open() -> bool:
            (last_id,) = await system.store.reads.last_ids([stream])
            return not is_absurd(last_id, await system.store.control.time_us() // 1000)

        await system.until(is_open)

        assert time.monotonic() - since_s < WITHIN_S
        added = await client.xadd(stream, {"foreign": "2"})
        assert not is_absurd(added.decode(), 1_000 * int(time.time()))
        await client.xdel(stream, added)
        assert await done(system)


@pytest.mark.parametrize("name", ["results", "freed", "deltas", "answers"])
async def test_what_scripts_write_goes_on(url: str, name: str) -> None:
    """Feeds are made anew by who writes them, and no job is told late."""
    async with running(url) as system:
        await system.add_node("n1", echo, capacity=1)
        assert await done(system)
        stream = await stream_of(system, name)
        await system.store.connection.commands.xadd(stream, {"foreign": "1"}, id=HIGHEST_ID)

        for session in ("s1", "s2", "s3"):
            assert await done(system, session)
        await system.add_node("n2", echo)
        assert await done(system)

        assert system.dispatcher.report.sweep_hits == 0


@pytest.mark.parametrize("name", ["commands", "answers"])
async def test_commands_are_answered_all_the_same(url: str, name: str) -> None:
    """Whoever asks meanwhile is answered a moment later."""
    async with running(url) as system:
        stream = await stream_of(system, name)
        await system.store.connection.commands.xadd(stream, {"foreign": "1"}, id=HIGHEST_ID)
        command = b'{"kind":"apply_pools","pools":{"gold":{}}}'

        for _ in range(2):
            answer = await system.store.control.send_command(command, 5_000)
            assert answer is not None
            assert b"accepted" in answer


async def test_a_command_that_could_not_be_answered_is_decided_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else lies where its answer belongs: once that is gone it is answered, once."""
    clock, keys, client = hand_clock(monkeypatch), store.control.keys, store.connection.commands
    await store.control.write_layout()
    manager = Manager(store, DEFAULTS, "m1", clock)
    await manager.run_once()
    await client.set(keys.answers, "rubbish")
    added = await client.xadd(keys.commands, {"command": b'{"kind":"apply_pools","pools":{"gold":{}}}'})

    for _ in range(4):
        await manager.run_once()
        clock.go(1_000)

    ((_, fields),) = await store.reads.entries(keys.answers)
    assert fields[b"command"] == added
    assert b"accepted" in fields[b"answer"]
    assert await store.reads.entries(keys.commands) == []


@pytest.mark.parametrize("name", ["jobs", "inbox", "parked", "dead", "results", "freed"])
async def test_ids_an_hour_ahead_harm_nothing(url: str, name: str) -> None:
    """Nothing is rebuilt, and jobs go on at once."""
    async with running(url) as system:
        await system.add_node("n1", echo)
        stream = await stream_of(system, name)
        ahead = f"{1_000 * int(time.time()) + HOUR_MS}-0"
        await system.store.connection.commands.xadd(stream, {"foreign": "1"}, id=ahead)

        for _ in range(3):
            assert await done(system)
        record = await system.store.reads.record(
            await system.producer.submit("s1", src_lang="en", tgt_lang="zh", payload="hi")
        )

        assert int(record["submitted_ms"]) <= 1_000 * time.time() + 1_000


@pytest.mark.parametrize("served_before", [False, True])
@pytest.mark.parametrize("entry", ["one that a record may name", "too many of them"])
async def test_a_node_without_a_capacity_whose_inbox_is_closed_joins(
    store: Store, monkeypatch: pytest.MonkeyPatch, entry: str, served_before: bool
) -> None:
    """Before it joined, or when `capacity` is lost too: reapers open the inboxes of all that the leader writes."""
    layout, clock, keys = await store.control.write_layout(), hand_clock(monkeypatch), store.cell.keys
    manager, reaper = Manager(store, DEFAULTS, "m1", clock), Reaper(store, DEFAULTS, layout, "r1", "1", clock)
    beat = encode_beat(NodeBeat(node=NODE, boot=BOOT, capacity=2))
    if served_before:
        await store.control.beat(beat)
        await manager.run_once()
        await store.connection.commands.delete(keys.capacity)
    for _ in range(130 if entry == "too many of them" else 0):
        await store.connection.commands.xadd(keys.inbox(NODE), {"foreign": "1"})
    await seed_closed(store, keys.inbox(NODE))

    for _ in range(10):
        clock.go(1_000)
        await store.control.beat(beat)
        await manager.run_once()
        await reaper.run_once()

    assert await store.reads.capacities() == {NODE: CapacityItem(NODE, 2, BOOT, "ready")}
    entries = await store.reads.entries(keys.inbox(NODE), count=200)
    assert entries[-1][1] == {b"control": b"boot", b"boot": BOOT.encode()}
