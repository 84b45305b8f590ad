"""take.lua: the leader reads heartbeats and commands."""

from __future__ import annotations

import pytest

from scheduler.errors import Fenced, WrongType
from scheduler.protocol import keys, messages
from scheduler.store.store import Store
from tests.dumps import dump, unchanged
from tests.seeds import (
    MANAGER,
    seed_leader,
)


async def seed_command(store: Store) -> str:
    """A command of an operator; returns its id."""
    added: bytes = await store.connection.commands.xadd(store.control.keys.commands, {"command": "drain n1"})
    return added.decode()


async def pending(store: Store, stream: str) -> list[str]:
    """What the management group has read and not acknowledged."""
    groups = (await dump(store))[stream][1]["groups"]
    ids: list[str] = groups[keys.MANAGEMENT_GROUP][1]
    return ids


async def test_first_take_makes_the_groups_and_reads_what_was_there(store: Store) -> None:
    """Heartbeats and commands from before the first leader are read."""
    beaten = await store.control.beat(b"doc")
    command = await seed_command(store)
    epoch = await seed_leader(store)

    taken = await store.control.take(MANAGER, epoch)

    (heartbeat,) = taken.heartbeats
    assert taken == messages.Taken(
        now_ms=taken.now_ms,
        heartbeats=(messages.Heartbeat(heartbeat.id, b"doc", beaten.now_ms),),
        commands=(messages.Command(command, {b"command": b"drain n1"}),),
        groups_made=2,
    )


@pytest.mark.parametrize(("name", "shift"), [("m2", 0), (MANAGER, 1), (MANAGER, -1)])
async def test_fenced_reader_changes_nothing(store: Store, name: str, shift: int) -> None:
    """Another name or another epoch than the leader's reads nothing and acknowledges nothing."""
    epoch = await seed_leader(store)
    await store.control.beat(b"doc")
    taken = await store.control.take(MANAGER, epoch)
    await store.control.beat(b"doc")

    async with unchanged(store):
        with pytest.raises(Fenced):
            await store.control.take(name, epoch + shift, [taken.heartbeats[0].id])


async def test_fenced_without_any_leader(store: Store) -> None:
    """Before the first leader nobody reads."""
    async with unchanged(store):
        with pytest.raises(Fenced):
            await store.control.take(MANAGER, 1)


async def test_rule_32_take_acknowledges_the_last_batch(store: Store) -> None:
    """Heartbeats of the last take are acknowledged by the call that reads the next ones."""
    epoch = await seed_leader(store)
    await store.control.beat(b"one")
    first = await store.control.take(MANAGER, epoch)
    await store.control.beat(b"two")

    second = await store.control.take(MANAGER, epoch, [first.heartbeats[0].id])

    assert [each.document for each in second.heartbeats] == [b"two"]
    assert await pending(store, store.control.keys.heartbeats) == [second.heartbeats[0].id]


async def test_rule_32_thousands_of_heartbeats_are_acknowledged_in_one_call(store: Store) -> None:
    """More than Lua hands over in one command; the last ones as well."""
    epoch = await seed_leader(store)
    await store.control.beat(b"doc")
    taken = await store.control.take(MANAGER, epoch)

    others = [f"{number}-1" for number in range(1, 9_000)]
    await store.control.take(MANAGER, epoch, [*others, taken.heartbeats[0].id])

    assert await pending(store, store.control.keys.heartbeats) == []


async def test_rule_32_trimmed_pending_entries_are_acknowledged(store: Store) -> None:
    """What was read and then trimmed can never be handled: reading it again acknowledges it."""
    epoch = await seed_leader(store)
    await store.control.beat(b"doc")
    await seed_command(store)
    await store.control.take(MANAGER, epoch)
    await store.connection.commands.xtrim(store.control.keys.heartbeats, maxlen=0)
    await store.connection.commands.xtrim(store.control.keys.commands, maxlen=0)

    taken = await store.control.take(MANAGER, epoch, pending=True)

    assert (taken.heartbeats, taken.commands) == ((), ())
    assert await pending(store, store.control.keys.heartbeats) == []
    assert await pending(store, store.control.keys.commands) == []


async def test_rule_28_lost_reply_is_read_again_as_pending(store: Store) -> None:
    """What a lost reply contained is not new any more, but pending: a read of the pending has all of it."""
    epoch = await seed_leader(store)
    await store.control.beat(b"doc")
    await seed_command(store)
    lost = await store.control.take(MANAGER, epoch)

    repeated = await store.control.take(MANAGER, epoch)
    async with unchanged(store):
        again = await store.control.take(MANAGER, epoch, pending=True)

    assert (repeated.heartbeats, repeated.commands) == ((), ())
    assert (again.heartbeats, again.commands) == (lost.heartbeats, lost.commands)


async def test_pending_read_goes_on_after_an_acknowledgement(store: Store) -> None:
    """Reading the pending batch by batch, each call acknowledging the last, comes to an end."""
    epoch = await seed_leader(store)
    for document in (b"one", b"two", b"three"):
        await store.control.beat(document)
    await store.control.take(MANAGER, epoch)

    first = await store.control.take(MANAGER, epoch, pending=True, count=2)
    second = await store.control.take(MANAGER, epoch, [each.id for each in first.heartbeats], pending=True, count=2)
    third = await store.control.take(MANAGER, epoch, [each.id for each in second.heartbeats], pending=True, count=2)

    read = [[each.document for each in taken.heartbeats] for taken in (first, second, third)]
    assert read == [[b"one", b"two"], [b"three"], []]


async def test_unanswered_command_is_pending_for_the_next_leader(store: Store) -> None:
    """A command stays pending however often heartbeats are acknowledged, and the next leader reads it."""
    epoch = await seed_leader(store)
    command = await seed_command(store)
    await store.control.take(MANAGER, epoch)
    await store.control.take(MANAGER, epoch)
    await store.control.give_up_lead(MANAGER)
    next_epoch = await seed_leader(store, "m2")

    taken = await store.control.take("m2", next_epoch, pending=True)

    assert [each.id for each in taken.commands] == [command]


async def test_other_errors_are_not_taken_for_a_missing_group(store: Store) -> None:
    """A key of another type is an error of the call, and nothing is made in its place."""
    epoch = await seed_leader(store)
    await store.connection.commands.set(store.control.keys.heartbeats, "no stream")

    async with unchanged(store):
        with pytest.raises(WrongType, match="holds a string, where a stream belongs"):
            await store.control.take(MANAGER, epoch)


async def test_huge_heartbeat_is_taken_without_its_document(store: Store) -> None:
    """It registers nobody, and a manager that waited for it would not lead any more."""
    epoch = await seed_leader(store)
    await store.connection.commands.xadd(store.control.keys.heartbeats, {"node": b"x" * 262_145})
    await store.control.beat(b"y" * 262_144)

    taken = await store.control.take(MANAGER, epoch)

    assert [len(heartbeat.document) for heartbeat in taken.heartbeats] == [0, 262_144]


@pytest.mark.parametrize("is_again", [False, True])
async def test_large_commands_come_a_few_at_a_time(store: Store, is_again: bool) -> None:
    """A thousand of a MiB each would keep the server from everybody, and the leader from its lease. None is left out,
    and one after them that was trimmed is acknowledged.
    """
    epoch, stream = await seed_leader(store), store.control.keys.commands
    added = [await store.connection.commands.xadd(stream, {"command": bytes(2**20)}) for _ in range(9)]
    if is_again:
        while (await store.control.take(MANAGER, epoch)).more:
            pass
        await store.connection.commands.xdel(stream, added.pop())
    found: list[tuple[int, bool]] = []
    asked: list[bytes] = []
    while not found or found[-1][1]:
        taken = await store.control.take(MANAGER, epoch, pending=is_again)
        found.append((len(taken.commands), taken.more))
        asked += [each.id.encode() for each in taken.commands]
        await store.control.publish(MANAGER, epoch, None, answers=[(each.id, b"done") for each in taken.commands])

    assert asked == added
    assert [count for count, _ in found] == ([4, 4, 0] if is_again else [4, 4, 1])
    assert await pending(store, stream) == []


async def test_huge_command_is_cut(store: Store) -> None:
    """It is refused for its size; what else is in its entry is no part of it."""
    epoch, stream = await seed_leader(store), store.control.keys.commands
    fields = {"x" * 1_000: b"y" * 5_000_000, "command": bytes(5_000_000)}
    await store.connection.commands.xadd(stream, fields)

    (command,) = (await store.control.take(MANAGER, epoch)).commands

    assert {name: len(value) for name, value in command.fields.items()} == {b"x" * 100: 0, b"command": 2**20 + 1}
