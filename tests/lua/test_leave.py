"""leave.lua: the end of a node."""

from __future__ import annotations

from scheduler.store.store import Store
from tests.dumps import dump, standing, unchanged
from tests.seeds import (
    BOOT,
    JOB,
    LATER_BOOT,
    NODE,
    release,
    release_item,
    seed_lapsed,
    seed_node,
    seed_reserved,
)


async def test_drained_node_leaves_without_a_trace(store: Store) -> None:
    """Field, inbox and slots of a node without work are gone."""
    await seed_node(store, "n2")
    expected = await dump(store)
    await seed_node(store)
    await seed_node(store, slots=0, reason="draining")

    assert await store.cell.leave(NODE, BOOT) == "left"

    freed = store.cell.keys.freed
    assert {**await dump(store), freed: None} == {**expected, freed: None}


async def test_rule_21_node_that_left_is_not_open(store: Store) -> None:
    """Whatever made it so, a node that is gone is not asked for room."""
    await seed_node(store, slots=0, reason="draining")
    await store.connection.commands.sadd(store.cell.keys.open, NODE)

    await store.cell.leave(NODE, BOOT)

    assert await store.reads.are_open([NODE]) == [False]


async def test_rule_28_repeat_answers_left_and_changes_nothing(store: Store) -> None:
    """A node whose reply was lost is told again that it left."""
    await seed_node(store, slots=0, reason="draining")
    await store.cell.leave(NODE, BOOT)

    async with unchanged(store):
        assert await store.cell.leave(NODE, BOOT) == "left"


async def test_rule_14_node_with_slots_is_busy(store: Store) -> None:
    """A node that was resumed in between may get work at any time, so it does not leave."""
    await seed_node(store, slots=0, reason="draining")
    await seed_node(store, slots=2)

    async with unchanged(store):
        assert await store.cell.leave(NODE, BOOT) == "busy"


async def test_rule_14_node_with_a_reservation_is_busy(store: Store) -> None:
    """A drained node stays until its last job ended, also when that lease has lapsed."""
    await seed_reserved(store)
    await seed_node(store, slots=0, reason="draining")
    await seed_lapsed(store)

    async with unchanged(store):
        assert await store.cell.leave(NODE, BOOT) == "busy"

    assert await standing(store, JOB) == ("reserved", ["inbox"])


async def test_rule_14_node_leaves_after_its_last_job(store: Store) -> None:
    """The release of the last job is what lets a drained node go."""
    token = await seed_reserved(store)
    await seed_node(store, slots=0, reason="draining")

    await release(store, release_item(token, "finish"))

    assert await store.cell.leave(NODE, BOOT) == "left"


async def test_rule_14_reaper_ends_a_dead_node(store: Store) -> None:
    """A reaper ends a node that is dead, in the name of its boot."""
    await seed_node(store)
    await seed_node(store, slots=0, reason="dead")

    assert await store.cell.leave(NODE, BOOT) == "left"


async def test_rule_10_boot_that_was_replaced_does_not_end_the_newer(store: Store) -> None:
    """Whoever speaks for another boot is told which one is there, and changes nothing."""
    await seed_node(store, slots=0, reason="draining", boot=LATER_BOOT)
    k = store.cell.keys

    async with unchanged(store):
        answer = await store.connection.call("leave", [k.capacity, k.open, k.slots(NODE), k.inbox(NODE)], [NODE, BOOT])

    assert answer == [b"replaced", LATER_BOOT.encode()]


async def test_node_whose_slots_were_deleted_does_not_leave_with_its_jobs(store: Store) -> None:
    """An assignment in its inbox is a job that somebody still has to bring to its end."""
    await seed_reserved(store)
    await store.connection.commands.delete(store.cell.keys.slots(NODE))
    await seed_node(store, slots=0, reason="dead")

    async with unchanged(store):
        assert await store.cell.leave(NODE, BOOT) == "busy"
