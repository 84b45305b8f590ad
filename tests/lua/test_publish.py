"""publish.lua: the leader's one write."""

from __future__ import annotations

import pytest

from scheduler import model
from scheduler.errors import Fenced
from scheduler.store.store import Store
from tests.dumps import dump, unchanged
from tests.seeds import (
    BOOT,
    FAR_US,
    MANAGER,
    POOL,
    seed_leader,
    seed_poison,
)


def snapshot(version: int) -> model.Snapshot:
    """One node in one pool."""
    return model.Snapshot(version, (model.Node("n1", BOOT, 1, POOL),), (model.Pool(POOL),))


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
    assert list(after[k.deltas][1]["entries"].values()) == [{"version": "5"}]
    assert list(after[k.answers][1]["entries"].values()) == [{"command": command, "answer": "done"}]
    assert after[k.commands][1]["groups"]["management"][1] == []
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
    """Who follows the deltas sees every version, in order."""
    epoch = await seed_leader(store)

    for version in (5, 6, 7):
        await store.control.publish(MANAGER, epoch, snapshot(version))

    entries = await store.reads.entries(store.control.keys.deltas)
    assert [fields for _, fields in entries] == [{b"version": b"5"}, {b"version": b"6"}, {b"version": b"7"}]


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
    assert [fields for _, fields in entries] == [{b"version": b"5"}]


async def test_rule_24_poisoned_answers_do_not_stop_the_others(store: Store) -> None:
    """When the stream of answers takes none, everything else is written all the same."""
    epoch = await seed_leader(store)
    command = await seed_taken_command(store, epoch)
    await seed_poison(store, store.control.keys.answers)

    await store.control.publish(MANAGER, epoch, snapshot(5), answers=[(command, b"done")])

    assert await store.control.read_snapshot() == snapshot(5)
    assert (await dump(store))[store.control.keys.commands][1]["groups"]["management"][1] == []
