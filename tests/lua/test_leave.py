"""leave.lua: the end of a node."""

from __future__ import annotations

from typing import Any, Final

import pytest

from scheduler.protocol import messages
from scheduler.protocol.snapshot import Reason
from scheduler.store.cell import Leaves
from scheduler.store.store import Store
from tests.dumps import dump, standing, unchanged
from tests.seeds import (
    BOOT,
    FAR_US,
    JOB,
    LATER_BOOT,
    LEADER_EPOCH,
    NODE,
    POISON_ID,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_job,
    seed_lapsed,
    seed_node,
    seed_owner,
    seed_reserved,
)


async def test_drained_node_leaves_without_a_trace(store: Store) -> None:
    """Field, inbox and slots of a node without work are gone; ids of its words go later, when there are many."""
    await seed_node(store, "n2")
    expected = await dump(store)
    await seed_node(store)
    await seed_node(store, slots=0, reason="draining")

    assert await store.cell.leave(NODE, BOOT) == "left"

    k = store.cell.keys
    told = {k.freed: None, k.control_ids: None, k.left(NODE): ("string", BOOT, True)}
    assert {**await dump(store), k.freed: None, k.control_ids: None} == expected | told


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


@pytest.mark.parametrize("why", ["drained", "dead"])
async def test_rule_14_node_with_slots_is_busy(store: Store, why: Leaves) -> None:
    """A node that was resumed, or heard again, in between may get work at any time, so it does not leave."""
    await seed_node(store, slots=0, reason="draining")
    await seed_node(store, slots=2)

    async with unchanged(store):
        assert await store.cell.leave(NODE, BOOT, why) == "busy"


@pytest.mark.parametrize("reason", ["draining", "quarantined"])
async def test_reaper_ends_only_the_dead(store: Store, reason: Reason) -> None:
    """A node without slots that is alive again since a reaper saw it dead stays."""
    await seed_node(store)
    await seed_node(store, slots=0, reason=reason)

    async with unchanged(store):
        assert await store.cell.leave(NODE, BOOT, "dead") == "busy"


@pytest.mark.parametrize("reason", ["ready", "suspect"])
async def test_rule_14_node_that_asks_leaves_with_its_slots_when_it_holds_nothing(store: Store, reason: Reason) -> None:
    """Nobody has to take its slots away before: a node leaves without a leader. It is a candidate no more."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=2, reason=reason)
    entry_id = await seed_job(store)

    assert await store.cell.leave(NODE, BOOT) == "left"

    assert await store.reads.are_open([NODE]) == [False]
    assert await reserve(store, [reserve_item(entry_id, epoch)]) == [messages.Refused("full")]
    assert await standing(store, JOB) == ("queued", ["intake"])


@pytest.mark.parametrize("why", ["leaves", "drained", "dead"])
async def test_rule_14_node_with_a_reservation_is_busy(store: Store, why: Leaves) -> None:
    """A drained node stays until its last job ended, also when that lease has lapsed."""
    await seed_reserved(store)
    await seed_node(store, slots=0, reason="draining")
    await seed_lapsed(store)
    assert await store.cell.leave(NODE, BOOT, why) == "busy"

    async with unchanged(store):
        assert await store.cell.leave(NODE, BOOT, why) == "busy"

    assert await standing(store, JOB) == ("reserved", ["inbox"])


async def test_node_that_asks_gets_nothing_new_while_it_is_busy(store: Store) -> None:
    """Without a leader, too, it is drained from then on, and leaves after the job that it has."""
    token = await seed_reserved(store, slots=2)
    epoch = await seed_owner(store)

    k = store.cell.keys
    names = [k.capacity, k.open, k.slots(NODE), k.inbox(NODE), k.left(NODE)]
    assert await store.connection.call("leave", names, [NODE, BOOT, "leaves"]) == [b"busy", b"0", 1]
    async with unchanged(store):
        assert await store.connection.call("leave", names, [NODE, BOOT, "leaves"]) == [b"busy", b"0", 1]

    entry_id = await seed_job(store, "j2", "s2")
    assert await reserve(store, [reserve_item(entry_id, epoch, "j2", "s2")]) == [messages.Refused("full")]
    assert await store.reads.are_open([NODE]) == [False]
    await release(store, release_item(token, "finish"))
    assert await store.reads.are_open([NODE]) == [False]
    assert await store.cell.leave(NODE, BOOT) == "left"


# ---- a boot that left is over ------------------------------------------------------------------------------


@pytest.mark.parametrize("was_known", [True, False])
@pytest.mark.parametrize(("slots", "reason"), [(2, "ready"), (0, "draining"), (2, "suspect"), (0, "quarantined")])
async def test_boot_that_left_is_not_written_again(store: Store, slots: int, reason: Reason, was_known: bool) -> None:
    """Heartbeats that are read late, and leaders that knew it before, bring nothing back: no capacity, no inbox."""
    if was_known:
        await seed_node(store, slots=2)
    assert await store.cell.leave(NODE, BOOT) == "left"

    item = messages.CapacityItem(NODE, slots, BOOT, reason)
    before = await dump(store)
    assert await store.cell.capacity(LEADER_EPOCH, [item]) == ["left"]

    assert await dump(store) == before | {store.cell.keys.leader_epoch: ("string", str(LEADER_EPOCH), False)}


@pytest.mark.parametrize(("slots", "reason"), [(2, "ready"), (2, "suspect")])
async def test_who_asked_to_leave_gets_no_slots_from_a_leader_that_has_not_heard(
    store: Store, slots: int, reason: Reason
) -> None:
    """It writes what it believes, and finds the node drained. That the node is dead is another thing."""
    await seed_reserved(store, slots=2)
    assert await store.cell.leave(NODE, BOOT) == "busy"

    async with unchanged(store):
        await store.cell.capacity(LEADER_EPOCH, [messages.CapacityItem(NODE, slots, BOOT, reason)])

    dead = messages.CapacityItem(NODE, 0, BOOT, "dead")
    assert await store.cell.capacity(LEADER_EPOCH, [dead]) == ["written"]
    assert await store.reads.capacities() == {NODE: dead}


async def test_who_holds_something_does_not_leave_although_its_capacity_was_deleted(store: Store) -> None:
    """It is written again, drained, so that somebody looks after its leases."""
    token = await seed_reserved(store, slots=2)
    await store.connection.commands.delete(store.cell.keys.capacity)
    assert await store.cell.leave(NODE, BOOT) == "busy"

    assert await store.cell.capacity(LEADER_EPOCH, [messages.CapacityItem(NODE, 2, BOOT, "ready")]) == ["written"]
    assert await store.reads.capacities() == {NODE: messages.CapacityItem(NODE, 0, BOOT, "draining")}

    await release(store, release_item(token, "finish"))
    assert await store.cell.leave(NODE, BOOT) == "left"
    assert await store.reads.capacities() == {}


async def test_a_later_life_leaves_beside_the_capacity_of_an_earlier_one(store: Store) -> None:
    """No leader has taken it in, so it holds nothing. What is there is the earlier one's; of the later one no heartbeat
    that is read late registers it.
    """
    await seed_reserved(store)
    before = await dump(store)

    assert await store.cell.leave(NODE, LATER_BOOT) == "left"

    left = store.cell.keys.left(NODE)
    assert await dump(store) == before | {left: ("string", LATER_BOOT, True)}
    async with unchanged(store):
        assert await store.cell.capacity(LEADER_EPOCH, [messages.CapacityItem(NODE, 2, LATER_BOOT, "ready")]) == [
            "left"
        ]
        assert await store.cell.leave(NODE, LATER_BOOT, "dead") == "replaced"
    await seed_node(store, slots=0, reason="dead")


async def test_boots_before_the_one_that_left_are_not_written(store: Store) -> None:
    """Their heartbeats were read late; a later boot is another thing."""
    await store.cell.capacity(LEADER_EPOCH, [])
    assert await store.cell.leave(NODE, LATER_BOOT) == "left"

    async with unchanged(store):
        assert await store.cell.capacity(LEADER_EPOCH, [messages.CapacityItem(NODE, 2, BOOT, "ready")]) == ["left"]
    await seed_node(store, boot="2001-c")


async def test_a_boot_ahead_of_the_clock_that_left_is_over_alone(store: Store) -> None:
    """Perhaps nobody gave it, and it must not keep all later lives out."""
    ahead = f"{FAR_US}-a"
    assert await store.cell.leave(NODE, ahead) == "left"

    assert await store.cell.capacity(LEADER_EPOCH, [messages.CapacityItem(NODE, 2, ahead, "ready")]) == ["left"]
    await seed_node(store)


async def test_boot_that_a_reaper_took_out_comes_back(store: Store) -> None:
    """It was cut off, and beats again."""
    await seed_node(store)
    await seed_node(store, slots=0, reason="dead")
    await store.cell.leave(NODE, BOOT, "dead")

    await seed_node(store)

    assert await store.reads.are_open([NODE]) == [True]


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

    assert await store.cell.leave(NODE, BOOT, "dead") == "left"


async def test_rule_10_boot_that_was_replaced_does_not_end_the_newer(store: Store) -> None:
    """Whoever speaks for another boot is told which one is there, and changes nothing."""
    await seed_node(store, slots=0, reason="draining", boot=LATER_BOOT)
    k = store.cell.keys

    async with unchanged(store):
        names = [k.capacity, k.open, k.slots(NODE), k.inbox(NODE), k.left(NODE)]
        answer = await store.connection.call("leave", names, [NODE, BOOT, "leaves"])

    assert answer == [b"replaced", LATER_BOOT.encode()]


async def test_node_whose_slots_were_deleted_does_not_leave_with_its_jobs(store: Store) -> None:
    """An assignment in its inbox is a job that somebody still has to bring to its end."""
    await seed_reserved(store)
    await store.connection.commands.delete(store.cell.keys.slots(NODE))
    await seed_node(store, slots=0, reason="dead")

    async with unchanged(store):
        assert await store.cell.leave(NODE, BOOT, "dead") == "busy"


RESERVATION: Final = "5 1000-a 9 1/5-0 1 1 9 9"
JUNK: Final[list[dict[Any, Any]]] = [
    {"job": "junk"},
    {"job": "junk", "job_id": "x"},
    {"job": "junk", "reservation": RESERVATION},
    {"job": "junk", "job_id": "", "reservation": RESERVATION},
    {"job": "junk", "job_id": "x", "reservation": "9"},
    {"job": "junk", "job_id": "x", "reservation": "9" * 5000 + " 1000-a 9 1/5-0 1 1 9 9"},
    {"job": "junk", "job_id": b"\xff\xfe", "reservation": "nine"},
]


@pytest.mark.parametrize("fields", JUNK)
@pytest.mark.parametrize("why", ["leaves", "dead"])
async def test_what_is_no_assignment_keeps_no_node(store: Store, why: Leaves, fields: Any) -> None:
    """Somebody else has written it into the inbox: nobody will ever end it."""
    await seed_node(store)
    await store.connection.commands.xadd(store.cell.keys.inbox(NODE), fields)
    if why == "dead":
        await seed_node(store, slots=0, reason="dead")

    assert await store.cell.leave(NODE, BOOT, why) == "left"


async def test_an_assignment_behind_many_other_entries_is_found(store: Store) -> None:
    """However many there are, also when the last one has the highest id, after which nothing can be asked for."""
    await seed_node(store)
    await seed_node(store, slots=0, reason="dead")
    inbox, client = store.cell.keys.inbox(NODE), store.connection.commands
    for _ in range(31):
        await client.xadd(inbox, JUNK[0])
    added = await client.xadd(inbox, {"job": "x", "job_id": "x", "reservation": RESERVATION})
    assert await store.cell.leave(NODE, BOOT, "dead") == "busy"

    await client.xdel(inbox, added)
    await client.xtrim(inbox, maxlen=15, approximate=False)
    await client.xadd(inbox, JUNK[0], id=POISON_ID)
    assert await store.cell.leave(NODE, BOOT, "dead") == "left"
