"""publish.lua: the leader's one write."""

from __future__ import annotations

from typing import Final

import pytest

from scheduler.errors import Fenced, InvalidInput, PublishConflict, WrongType
from scheduler.protocol import keys
from scheduler.protocol.snapshot import Delta, Node, Pool, Snapshot, decode_delta
from scheduler.store.store import Store
from tests.dumps import dump, unchanged
from tests.seeds import (
    BOOT,
    FAR_US,
    MANAGER,
    POISON_ID,
    POOL,
    seed_leader,
    seed_poison,
)

ONE: Final = Node("n1", BOOT, 1, POOL)
TWO: Final = Node("n2", BOOT, 2, POOL)
GROWN: Final = Delta(6, 5, (TWO,))
"""What follows `snapshot(5)`."""


def snapshot(version: int) -> Snapshot:
    """One node in one pool."""
    return Snapshot(version, (ONE,), (Pool(POOL),))


async def seed_taken_command(store: Store, epoch: int) -> str:
    """A command that the leader has read; returns its id."""
    added: bytes = await store.connection.commands.xadd(store.control.keys.commands, {"command": "drain n1"})
    await store.control.take(MANAGER, epoch)
    return added.decode()


async def test_writes_everything_in_one_step(store: Store) -> None:
    """Configuration, snapshot, version, delta and answer appear together, and the command is done."""
    epoch = await seed_leader(store)
    await store.control.publish(MANAGER, epoch, None, sets={"gone": b"x", "kept": b"y"})
    command = await seed_taken_command(store, epoch)
    before = await dump(store)

    await store.control.publish(
        MANAGER, epoch, snapshot(5), sets={"pool:a": b"doc"}, deletes=["gone"], answers=[(command, b"done")]
    )

    k, after = store.control.keys, await dump(store)
    assert await store.control.read_snapshot() == snapshot(5)
    assert await store.control.read_config() == {"kept": b"y", "pool:a": b"doc"}
    assert after[k.version] == ("string", "5", False)
    assert after[k.deltas][1]["entries"] == {"5-0": {"version": "5", "before": "0"}}
    assert list(after[k.answers][1]["entries"].values()) == [{"command": command, "answer": "done"}]
    assert after[k.commands][1]["groups"]["management"][1] == []
    assert after[k.commands][1]["entries"] == {}
    written = {k.snapshot, k.version, k.deltas, k.answers, k.commands, k.config}
    assert {key for key in after if after[key] != before.get(key)} == written


@pytest.mark.parametrize(("name", "shift"), [("m2", 0), (MANAGER, 1), (MANAGER, -1)])
async def test_rule_30_fenced_leader_changes_nothing(store: Store, name: str, shift: int) -> None:
    """Another name or epoch than the leader's writes nothing."""
    epoch = await seed_leader(store)
    command = await seed_taken_command(store, epoch)

    async with unchanged(store):
        with pytest.raises(Fenced, match="leads no more"):
            await store.control.publish(
                name, epoch + shift, snapshot(5), sets={"a": b"b"}, answers=[(command, b"done")]
            )


async def test_rule_7_lower_version_is_stale_and_changes_nothing(store: Store) -> None:
    """The stored version never falls, also when it is ahead of the clock."""
    epoch = await seed_leader(store)
    await store.control.publish(MANAGER, epoch, snapshot(FAR_US))

    async with unchanged(store):
        with pytest.raises(Fenced, match=str(FAR_US)):
            await store.control.publish(MANAGER, epoch, snapshot(FAR_US - 1), sets={"a": b"b"})


async def test_rule_7_version_ahead_of_the_clock_can_still_rise(store: Store) -> None:
    """The next version after one of the future is accepted without loss of digits."""
    epoch = await seed_leader(store)
    await store.control.publish(MANAGER, epoch, snapshot(FAR_US))

    await store.control.publish(MANAGER, epoch, snapshot(FAR_US + 1))

    assert await store.control.read_snapshot() == snapshot(FAR_US + 1)


async def test_rule_28_repeat_changes_nothing(store: Store) -> None:
    """The same call after a lost reply writes no second delta and no second answer."""
    epoch = await seed_leader(store)
    command = await seed_taken_command(store, epoch)

    async def publish() -> None:
        await store.control.publish(
            MANAGER, epoch, snapshot(5), sets={"a": b"b"}, deletes=["c"], answers=[(command, b"done")]
        )

    await publish()
    async with unchanged(store):
        await publish()


async def test_each_version_is_one_delta(store: Store) -> None:
    """Who follows the deltas sees every version, in order; its number is the id of its entry."""
    epoch = await seed_leader(store)

    for version in (5, 6, 7):
        await store.control.publish(MANAGER, epoch, snapshot(version))

    entries = await store.reads.entries(store.control.keys.deltas)
    assert entries == [(f"{version}-0", {b"version": b"%d" % version, b"before": b"0"}) for version in (5, 6, 7)]


async def test_a_delta_tells_what_changed_and_the_stored_snapshot_stays(store: Store) -> None:
    """The two together are the new version."""
    epoch = await seed_leader(store)
    await store.control.publish(MANAGER, epoch, snapshot(5))
    before = await dump(store)

    await store.control.publish(MANAGER, epoch, None, GROWN)

    k, after = store.control.keys, await dump(store)
    assert {key for key in after if after[key] != before[key]} == {k.version, k.deltas}
    ((entry, fields),) = (await store.reads.entries(k.deltas))[1:]
    assert (entry, fields[b"version"], fields[b"before"]) == ("6-0", b"6", b"5")
    assert decode_delta(fields[b"delta"]) == GROWN
    assert await store.control.read_snapshot() == Snapshot(6, (ONE, TWO), (Pool(POOL),))


async def test_a_whole_snapshot_lets_older_deltas_go(store: Store) -> None:
    """Those below the version that the caller names, and no others."""
    epoch = await seed_leader(store)
    await store.control.publish(MANAGER, epoch, snapshot(5))
    for version in (6, 7, 8):
        await store.control.publish(MANAGER, epoch, None, Delta(version, version - 1, removed=("n9",)))

    await store.control.publish(MANAGER, epoch, snapshot(9), Delta(9, 8, (ONE,)), oldest=7)

    entries = await store.reads.entries(store.control.keys.deltas)
    assert [entry for entry, _ in entries] == ["7-0", "8-0", "9-0"]
    assert await store.control.read_snapshot() == snapshot(9)


@pytest.mark.parametrize("stored", [4, 6])
async def test_rule_33_delta_of_another_version_is_lost_and_changes_nothing(store: Store, stored: int) -> None:
    """With the whole snapshot too: what the caller published last is not there, so neither is what he answered; or
    another leader has published since.
    """
    epoch = await seed_leader(store)
    command = await seed_taken_command(store, epoch)
    await store.control.publish(MANAGER, epoch, snapshot(stored))
    delta = Delta(7, 5, (TWO,))

    async with unchanged(store):
        for whole in (None, snapshot(7)):
            with pytest.raises(PublishConflict, match=f"version {stored} is stored"):
                await store.control.publish(
                    MANAGER, epoch, whole, delta, sets={"a": b"b"}, answers=[(command, b"done")]
                )


@pytest.mark.parametrize("harm", ["deleted", "trimmed", "poisoned", "foreign", "no snapshot"])
async def test_rule_33_delta_that_could_not_be_followed_is_lost_and_changes_nothing(store: Store, harm: str) -> None:
    """Without the deltas before it, and the whole snapshot beside it, nobody could come to the new version."""
    epoch = await seed_leader(store)
    client, deltas = store.connection.commands, store.control.keys.deltas
    await store.control.publish(MANAGER, epoch, snapshot(5))
    if harm == "deleted":
        await client.delete(deltas)
    elif harm == "trimmed":
        await client.xtrim(deltas, maxlen=0, approximate=False)
    elif harm == "poisoned":
        await seed_poison(store, deltas)
    elif harm == "foreign":
        await client.xadd(deltas, {"version": 5})
    else:
        await client.delete(store.control.keys.snapshot)

    async with unchanged(store):
        with pytest.raises(PublishConflict):
            await store.control.publish(MANAGER, epoch, None, GROWN, sets={"a": b"b"})

    await store.control.publish(MANAGER, epoch, snapshot(6))
    assert await store.control.read_snapshot() == snapshot(6)


async def test_rule_33_delta_after_a_missing_one_is_lost_and_changes_nothing(store: Store) -> None:
    """The stream would take it, but no reader could come from the stored snapshot to the version before it."""
    epoch = await seed_leader(store)
    await store.control.publish(MANAGER, epoch, snapshot(5))
    await store.control.publish(MANAGER, epoch, None, GROWN)
    await store.connection.commands.xdel(store.control.keys.deltas, "6-0")

    async with unchanged(store):
        with pytest.raises(PublishConflict, match="version 6 is stored"):
            await store.control.publish(MANAGER, epoch, None, Delta(7, 6, removed=("n1",)))


async def test_rule_28_repeat_of_a_delta_changes_nothing(store: Store) -> None:
    """The same call after a lost reply is no gap."""
    epoch = await seed_leader(store)
    await store.control.publish(MANAGER, epoch, snapshot(5))
    await store.control.publish(MANAGER, epoch, None, GROWN)

    async with unchanged(store):
        await store.control.publish(MANAGER, epoch, None, GROWN)


@pytest.mark.parametrize("harm", ["deleted", "trimmed", "gap", "unreadable"])
async def test_rule_33_a_snapshot_whose_deltas_are_missing_is_not_read(store: Store, harm: str) -> None:
    """Rather nothing than a picture that was never published."""
    epoch = await seed_leader(store)
    client, deltas = store.connection.commands, store.control.keys.deltas
    await store.control.publish(MANAGER, epoch, snapshot(5))
    await store.control.publish(MANAGER, epoch, None, GROWN)
    await store.control.publish(MANAGER, epoch, None, Delta(7, 6, removed=("n1",)))
    if harm == "deleted":
        await client.delete(deltas)
    elif harm == "trimmed":
        await client.xtrim(deltas, maxlen=1, approximate=False)
    elif harm == "gap":
        await client.xdel(deltas, "6-0")
    else:
        await client.xdel(deltas, "7-0")
        await client.xadd(deltas, {"version": 7, "before": 6, "delta": b"\xc1"}, id="7-1")

    with pytest.raises(InvalidInput, match="deltas are missing"):
        await store.control.read_snapshot()


async def test_without_snapshot_the_version_stays(store: Store) -> None:
    """Configuration alone leaves snapshot, version and deltas as they are."""
    epoch = await seed_leader(store)
    await store.control.publish(MANAGER, epoch, snapshot(5))
    before = await dump(store)

    await store.control.publish(MANAGER, epoch, None, sets={"a": b"b"})

    config = {store.control.keys.config: ("hash", {"a": "b"}, False)}
    assert await dump(store) == before | config


async def test_unknown_command_gets_no_answer(store: Store) -> None:
    """An answer is written only for a command that waits for one."""
    epoch = await seed_leader(store)
    await seed_taken_command(store, epoch)

    async with unchanged(store):
        await store.control.publish(MANAGER, epoch, None, answers=[("1-1", b"done")])


async def test_rule_33_refused_delta_starts_the_stream_anew(store: Store) -> None:
    """A stream of deltas that takes no entry any more is deleted, and has the new version after that."""
    epoch = await seed_leader(store)
    await seed_poison(store, store.control.keys.deltas)

    await store.control.publish(MANAGER, epoch, snapshot(5))

    assert await store.control.read_snapshot() == snapshot(5)
    entries = await store.reads.entries(store.control.keys.deltas)
    assert entries == [("5-0", {b"version": b"5", b"before": b"0"})]


async def test_rule_24_poisoned_answers_do_not_stop_the_others(store: Store) -> None:
    """When the stream of answers takes none, everything else is written all the same."""
    epoch = await seed_leader(store)
    command = await seed_taken_command(store, epoch)
    await seed_poison(store, store.control.keys.answers)

    await store.control.publish(MANAGER, epoch, snapshot(5), answers=[(command, b"done")])

    assert await store.control.read_snapshot() == snapshot(5)
    assert (await dump(store))[store.control.keys.commands][1]["groups"]["management"][1] == []
    ((_, fields),) = await store.reads.entries(store.control.keys.answers)
    assert fields == {b"command": command.encode(), b"answer": b"done"}


@pytest.mark.parametrize("name", ["commands", "answers", "deltas"])
async def test_rule_24_answer_is_written_whichever_stream_takes_no_entry(store: Store, name: str) -> None:
    """The entry of the highest id is there, and is kept where it may matter."""
    epoch = await seed_leader(store)
    command = await seed_taken_command(store, epoch)
    stream = getattr(store.control.keys, name)
    await store.connection.commands.xadd(stream, {"foreign": "1"}, id=POISON_ID)

    assert await store.control.publish(MANAGER, epoch, snapshot(5), answers=[(command, b"done")]) == 0

    answers = [fields for _, fields in await store.reads.entries(store.control.keys.answers)]
    assert answers[-1] == {b"command": command.encode(), b"answer": b"done"}
    assert [entry for entry, _ in await store.reads.entries(store.control.keys.commands) if entry == command] == []


async def test_rule_24_poisoned_answers_keep_what_one_call_has_answered(store: Store) -> None:
    """Somebody closes the stream before those who asked have read it."""
    epoch = await seed_leader(store)
    commands = [await seed_taken_command(store, epoch) for _ in range(150)]
    await store.control.publish(MANAGER, epoch, None, answers=[(command, b"done") for command in commands])
    command = await seed_taken_command(store, epoch)
    await seed_poison(store, store.control.keys.answers)

    await store.control.publish(MANAGER, epoch, None, answers=[(command, b"done")])

    answers = await store.connection.commands.xrange(store.control.keys.answers)
    assert [fields[b"command"].decode() for _, fields in answers] == [*commands, command]


async def test_rule_24_command_that_cannot_be_answered_stays_and_is_decided_again(store: Store) -> None:
    """Where its answer belongs lies something else: it is pending as before, and answered once that is gone."""
    epoch = await seed_leader(store)
    command = await seed_taken_command(store, epoch)
    k, client = store.control.keys, store.connection.commands
    await client.set(k.answers, "rubbish")

    for _ in range(2):  # a repeat finds the same
        assert await store.control.publish(MANAGER, epoch, snapshot(5), answers=[(command, b"done")]) == 1

    taken = await store.control.take(MANAGER, epoch, pending=True)
    assert [each.id for each in taken.commands] == [command]
    await client.delete(k.answers)
    assert await store.control.publish(MANAGER, epoch, None, answers=[(command, b"done")]) == 0
    assert [fields[b"answer"] for _, fields in await store.reads.entries(k.answers)] == [b"done"]
    assert await store.reads.entries(k.commands) == []


async def test_command_is_answered_although_the_group_was_lost(store: Store) -> None:
    """It was read and decided, and is pending no more; the next group does not find it."""
    epoch = await seed_leader(store)
    command = await seed_taken_command(store, epoch)
    k = store.control.keys
    await store.connection.commands.xgroup_destroy(k.commands, keys.MANAGEMENT_GROUP)

    await store.control.publish(MANAGER, epoch, None, answers=[(command, b"done")])

    assert [fields[b"answer"] for _, fields in await store.reads.entries(k.answers)] == [b"done"]
    assert await store.reads.entries(k.commands) == []


async def test_commands_of_another_type_change_nothing(store: Store) -> None:
    """It is seen before anything is written, so that the repeat once the key is right is the first."""
    epoch = await seed_leader(store)
    await store.connection.commands.set(store.control.keys.commands, "rubbish")

    async with unchanged(store):
        with pytest.raises(WrongType):
            await store.control.publish(MANAGER, epoch, snapshot(5), sets={"a": b"b"}, answers=[("1-1", b"done")])
