"""restart.lua: the leader begins its streams anew when somebody wrote an absurd id into one."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from scheduler.errors import Fenced
from scheduler.store.store import Store
from tests.dumps import unchanged
from tests.seeds import MANAGER, POISON_ID, seed_leader, seed_poison


async def test_commands_begin_anew_when_all_are_answered(store: Store) -> None:
    """What is unread or unanswered keeps its id, by which it is answered; then the stream takes commands again."""
    epoch, commands = await seed_leader(store), store.control.keys.commands
    add = store.connection.commands.xadd
    first = await add(commands, {"command": "one"})
    await store.control.take(MANAGER, epoch)
    await store.control.publish(MANAGER, epoch, None, answers=[(first.decode(), b"a")])
    await add(commands, {"command": "two"}, id=POISON_ID)

    assert await store.control.restart(MANAGER, epoch, commands) == "busy"
    assert [each.id for each in (await store.control.take(MANAGER, epoch)).commands] == [POISON_ID]
    assert await store.control.restart(MANAGER, epoch, commands) == "busy"
    await store.control.publish(MANAGER, epoch, None, answers=[(POISON_ID, b"b")])
    assert await store.control.restart(MANAGER, epoch, commands) == "restarted"

    assert await store.reads.entries(commands) == []
    third = await add(commands, {"command": "three"})
    taken = await store.control.take(MANAGER, epoch)
    assert [each.id for each in taken.commands] == [third.decode()]
    async with unchanged(store):
        assert await store.control.restart(MANAGER, epoch, commands) == "open"


async def test_heartbeats_that_only_others_write_begin_anew(store: Store) -> None:
    """Nodes that use plain XADD alone cannot make the stream anew."""
    epoch, heartbeats = await seed_leader(store), store.control.keys.heartbeats
    await store.control.take(MANAGER, epoch)
    await seed_poison(store, heartbeats)

    assert await store.control.restart(MANAGER, epoch, heartbeats) == "restarted"

    await store.connection.commands.xadd(heartbeats, {"node": "doc"})
    assert [each.document for each in (await store.control.take(MANAGER, epoch)).heartbeats] == [b"doc"]


async def test_a_stream_years_ahead_begins_anew_too(store: Store) -> None:
    """Nothing is added from the first call on, or it would never have been read to its end."""
    epoch, heartbeats = await seed_leader(store), store.control.keys.heartbeats
    await store.control.take(MANAGER, epoch)
    await store.connection.commands.xadd(heartbeats, {"node": "doc"}, id=f"{10**15}-0")

    assert await store.control.restart(MANAGER, epoch, heartbeats) == "busy"
    with pytest.raises(ResponseError):
        await store.connection.commands.xadd(heartbeats, {"node": "doc"})
    taken = await store.control.take(MANAGER, epoch)
    assert [each.time_ms for each in taken.heartbeats] == [taken.now_ms]
    await store.control.take(MANAGER, epoch, [each.id for each in taken.heartbeats])
    assert await store.control.restart(MANAGER, epoch, heartbeats) == "restarted"


async def test_only_the_leader_restarts(store: Store) -> None:
    """Another one changes nothing."""
    epoch = await seed_leader(store)
    await seed_poison(store, store.control.keys.commands)

    async with unchanged(store):
        with pytest.raises(Fenced):
            await store.control.restart(MANAGER, epoch - 1, store.control.keys.commands)


async def test_beat_keeps_what_is_not_read(store: Store) -> None:
    """A heartbeat that finds the stream closed opens it with what is in it, so no other one is lost."""
    epoch = await seed_leader(store)
    await store.control.take(MANAGER, epoch)
    await store.control.beat(b"one")
    await seed_poison(store, store.control.keys.heartbeats)

    await store.control.beat(b"two")

    taken = await store.control.take(MANAGER, epoch)
    assert [each.document for each in taken.heartbeats] == [b"one", b"two"]
