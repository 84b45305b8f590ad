"""capacity.lua: what the leader says of nodes, and how a node learns of it."""

from __future__ import annotations

import pytest

from scheduler.errors import Fenced
from scheduler.protocol import messages
from scheduler.protocol.snapshot import Reason
from scheduler.store.store import Store
from tests.dumps import dump, unchanged
from tests.seeds import (
    BOOT,
    LATER_BOOT,
    LEADER_EPOCH,
    NODE,
    release,
    release_item,
    seed_closed,
    seed_node,
    seed_poison,
    seed_reserved,
)


def item(slots: int, reason: Reason = "ready", boot: str = BOOT, node: str = NODE) -> messages.CapacityItem:
    """What the leader says of one node."""
    return messages.CapacityItem(node, slots, boot, reason)


async def write(store: Store, *items: messages.CapacityItem, epoch: int = LEADER_EPOCH) -> list[str]:
    """What the leader of `epoch` is answered."""
    return await store.cell.capacity(epoch, items)


async def told(store: Store, node: str = NODE) -> list[tuple[str, str]]:
    """(control, boot) of each message in a node's inbox, oldest first."""
    entries = await store.reads.entries(store.cell.keys.inbox(node))
    return [(f[b"control"].decode(), f[b"boot"].decode()) for _, f in entries if b"control" in f]


async def freed(store: Store) -> list[str]:
    """The nodes of each entry in the stream of what was freed."""
    return [f[b"nodes"].decode() for _, f in await store.reads.entries(store.cell.keys.freed)]


async def test_new_node_is_written_open_freed_and_told(store: Store) -> None:
    """A node's first capacity opens it, wakes who waits, and tells the node its boot, in one step."""
    assert await write(store, item(2)) == ["written"]

    k = store.cell.keys
    after = await dump(store)
    assert {key: after[key][1] for key in (k.capacity, k.leader_epoch, k.open)} == {
        k.capacity: {NODE: f"2 {BOOT} ready"},
        k.leader_epoch: str(LEADER_EPOCH),
        k.open: [NODE],
    }
    assert await freed(store) == [NODE]
    assert await told(store) == [("boot", BOOT)]
    assert set(after) == {k.capacity, k.leader_epoch, k.open, k.freed, k.inbox(NODE), k.control_ids}


async def test_several_nodes_are_freed_in_one_entry(store: Store) -> None:
    """A call wakes with one entry, whatever the number of nodes."""
    answers = await write(store, item(1, node="n1"), item(0, node="n2"), item(1, node="n3"))

    assert answers == ["written", "written", "written"]
    assert await freed(store) == ["n1 n3"]


async def test_rule_28_repeat_is_unchanged_and_changes_nothing(store: Store) -> None:
    """Equal values do nothing: no message, no wake."""
    await write(store, item(2))

    async with unchanged(store):
        assert await write(store, item(2)) == ["unchanged"]


@pytest.mark.parametrize("reason", ["draining", "quarantined", "dead"])
async def test_rule_28_repeat_of_no_slots_changes_nothing(store: Store, reason: Reason) -> None:
    """Saying again that a node takes no work does not tell it twice."""
    await write(store, item(2))
    await write(store, item(0, reason))

    async with unchanged(store):
        assert await write(store, item(0, reason)) == ["unchanged"]


async def test_dead_node_that_left_is_not_written_again(store: Store) -> None:
    """A reaper has taken it out; a leader that still calls it dead must not bring it back into the cell."""
    await write(store, item(0, "dead"), item(1, node="n2"))
    await write(store, item(2))
    await write(store, item(0, "dead"))
    assert await store.cell.leave(NODE, BOOT, "dead") == "left"

    async with unchanged(store):
        assert await write(store, item(0, "dead")) == ["unchanged"]


async def test_dead_node_that_holds_something_is_written_again(store: Store) -> None:
    """It has not left, so its capacity was deleted: reapers find its leases by that alone."""
    await seed_reserved(store)
    await store.connection.commands.delete(store.cell.keys.capacity)

    assert await write(store, item(0, "dead")) == ["written"]
    assert (await store.reads.capacities())[NODE].reason == "dead"


async def test_next_boot_of_a_node_that_left_is_written(store: Store) -> None:
    """What left is one life of it."""
    await write(store, item(2))
    await store.cell.leave(NODE, BOOT)

    assert await write(store, item(2, boot=LATER_BOOT)) == ["written"]

    assert (await store.reads.capacities())[NODE].boot == LATER_BOOT


async def test_rule_31_epoch_below_the_highest_is_fenced_and_changes_nothing(store: Store) -> None:
    """A paused leader that wakes cannot write an old capacity."""
    await write(store, item(2), epoch=8)

    async with unchanged(store):
        with pytest.raises(Fenced, match="8 was seen"):
            await write(store, item(5), epoch=7)


async def test_rule_31_epoch_that_no_script_has_written_fences_no_leader(store: Store) -> None:
    """It is taken for none, as in `count`."""
    await store.connection.commands.set(store.cell.keys.leader_epoch, "rubbish")

    assert await write(store, item(2)) == ["written"]
    assert await store.connection.commands.get(store.cell.keys.leader_epoch) == str(LEADER_EPOCH).encode()


async def test_rule_31_leader_without_items_raises_the_epoch(store: Store) -> None:
    """A new leader fences the one before in this cell without writing any capacity."""
    await write(store, item(2), epoch=7)
    before = await dump(store)

    assert await write(store, epoch=8) == []

    assert await dump(store) == before | {store.cell.keys.leader_epoch: ("string", "8", False)}
    with pytest.raises(Fenced):
        await write(store, item(5), epoch=7)


@pytest.mark.parametrize("boot", ["999-z", "1000-b"])
async def test_rule_10_boot_that_is_not_higher_is_older_and_changes_nothing(store: Store, boot: str) -> None:
    """Only a higher boot replaces a lower one, compared by number."""
    await write(store, item(2))

    async with unchanged(store):
        assert await write(store, item(5, boot=boot)) == ["older"]


async def test_rule_10_higher_boot_replaces_a_lower_one(store: Store) -> None:
    """A boot is higher by number, not by text, and its node is told."""
    await write(store, item(2, boot="999-a"))

    assert await write(store, item(2, boot="1000-a")) == ["written"]

    assert await store.reads.capacities() == {NODE: item(2, boot="1000-a")}
    assert await told(store) == [("boot", "1000-a")]


async def test_rule_13_drained_is_told_in_the_same_step(store: Store) -> None:
    """A drain takes the slots and tells the node at once; other reasons tell nothing."""
    await write(store, item(2))

    await write(store, item(0, "draining"))

    assert await store.reads.capacities() == {NODE: item(0, "draining")}
    assert await store.reads.are_open([NODE]) == [False]
    assert await told(store) == [("boot", BOOT), ("drained", BOOT)]


async def test_rule_13_resumed_takes_drained_with_it(store: Store) -> None:
    """A node that resumes reads the newest word only: `drained` is gone in the same step."""
    await write(store, item(2))
    await write(store, item(0, "draining"))

    await write(store, item(2))

    assert await told(store) == [("boot", BOOT), ("resumed", BOOT)]


@pytest.mark.parametrize("between", ["quarantined", "dead"])
async def test_rule_13_resumed_also_after_another_reason(store: Store, between: Reason) -> None:
    """A node that was drained, then unhealthy or silent, is told when it takes work again."""
    await write(store, item(2))
    await write(store, item(0, "draining"))
    await write(store, item(0, between))

    await write(store, item(2))

    assert await told(store) == [("boot", BOOT), ("resumed", BOOT)]


async def test_rule_17_suspect_keeps_its_slots_and_is_told_nothing(store: Store) -> None:
    """A node that fell silent with many others has room as before; neither that nor its return is a message."""
    await write(store, item(2))

    assert await write(store, item(2, "suspect")) == ["written"]

    assert await store.reads.capacities() == {NODE: item(2, "suspect")}
    assert await store.reads.are_open([NODE]) == [True]
    await write(store, item(2))
    assert await told(store) == [("boot", BOOT)]


async def test_rule_13_drained_again_takes_resumed_with_it(store: Store) -> None:
    """However often a node is drained and resumed, its inbox has one word of it."""
    await write(store, item(2))
    for _ in range(3):
        await write(store, item(0, "draining"))
        await write(store, item(2))
    await write(store, item(0, "draining"))

    assert await told(store) == [("boot", BOOT), ("drained", BOOT)]


async def test_rule_13_new_boot_takes_every_message_of_the_last(store: Store) -> None:
    """A node that came back reads its own boot, and nothing that was meant for the boot before."""
    await write(store, item(2))
    await write(store, item(0, "draining"))

    await write(store, item(2, boot=LATER_BOOT))

    assert await told(store) == [("boot", LATER_BOOT)]


async def test_rule_13_node_that_boots_drained_is_told_both(store: Store) -> None:
    """A new boot under a standing drain reads its boot, then the drain."""
    await write(store, item(0, "draining"))

    assert await told(store) == [("boot", BOOT), ("drained", BOOT)]


async def test_rule_13_messages_leave_assignments_alone(store: Store) -> None:
    """What the node has to run stays in its inbox whatever it is told."""
    await seed_reserved(store)
    k = store.cell.keys.inbox(NODE)
    (assignment,) = [entry for entry in await store.reads.entries(k) if b"control" not in entry[1]]

    await write(store, item(0, "draining"))
    await write(store, item(2))
    await write(store, item(2, boot=LATER_BOOT))

    assert assignment in await store.reads.entries(k)


async def test_rule_20_more_room_wakes_also_an_open_node(store: Store) -> None:
    """Capacity that rose can unblock a waiter although the node was open before."""
    await write(store, item(1))

    await write(store, item(2))

    assert await freed(store) == [NODE, NODE]


async def test_rule_21_capacity_at_the_used_slots_closes_without_a_wake(store: Store) -> None:
    """A node whose slots are all in use is not open, and nobody is woken for it."""
    await seed_reserved(store, slots=2)
    before = await freed(store)

    assert await write(store, item(1)) == ["written"]

    assert await store.reads.are_open([NODE]) == [False]
    assert await freed(store) == before


async def test_rule_21_capacity_above_the_used_slots_opens(store: Store) -> None:
    """A full node that gets a slot more is open again, and who waits is woken."""
    await seed_reserved(store, slots=1)
    before = await freed(store)

    await write(store, item(2))

    assert await store.reads.are_open([NODE]) == [True]
    assert await freed(store) == [*before, NODE]


async def test_capacity_below_the_used_slots_keeps_reservations(store: Store) -> None:
    """A node that shrank keeps what it runs; the first release does not open it yet."""
    first = await seed_reserved(store, "j1", "s1", slots=2)
    await seed_reserved(store, "j2", "s2", slots=2)
    await write(store, item(1))

    await release(store, release_item(first, "finish", "j1", "s1"))

    assert await store.reads.used([NODE]) == [1]
    assert await store.reads.are_open([NODE]) == [False]


async def test_rule_24_poisoned_inbox_is_refused_and_changes_nothing(store: Store) -> None:
    """A capacity that the node cannot be told of is not written."""
    await seed_node(store)
    await seed_closed(store, store.cell.keys.inbox(NODE))

    async with unchanged(store):
        assert await write(store, item(2, boot=LATER_BOOT)) == ["refused"]
        assert await write(store, item(0, "draining")) == ["refused"]


async def test_rule_24_node_that_is_refused_has_a_capacity_by_which_it_is_found(store: Store) -> None:
    """Of no slots and of a boot below all others, so that it is written as any other one once its inbox is open."""
    inbox = store.cell.keys.inbox(NODE)
    await seed_closed(store, inbox)
    assert await write(store, item(2)) == ["refused"]

    assert await store.reads.capacities() == {NODE: messages.CapacityItem(NODE, 0, "0-refused", "quarantined")}
    async with unchanged(store):
        assert await write(store, item(2)) == ["refused"]
    await store.connection.commands.delete(inbox)
    assert await write(store, item(2)) == ["written"]
    assert await told(store) == [("boot", BOOT)]


async def test_rule_24_poisoned_freed_does_not_stop_the_rest(store: Store) -> None:
    """When nobody can be woken, the capacity is written all the same."""
    await seed_poison(store, store.cell.keys.freed)

    assert await write(store, item(2)) == ["written"]

    assert await store.reads.capacities() == {NODE: item(2)}
    assert await store.reads.are_open([NODE]) == [True]


async def test_one_refused_node_does_not_stop_the_next(store: Store) -> None:
    """Each node of a call has its own answer."""
    await seed_node(store, "n1", boot=LATER_BOOT)
    await seed_closed(store, store.cell.keys.inbox("n2"))

    answers = await write(
        store, item(1, node="n1"), item(1, node="n2"), item(1, boot=LATER_BOOT, node="n1"), item(1, node="n3")
    )

    assert answers == ["older", "refused", "unchanged", "written"]


# ---- the ids of control words --------------------------------------------------------------------------------


async def seed_bodies(store: Store, count: int = 3) -> list[str]:
    """Assignments in the inbox of the node; returns their ids."""
    fields = {"job": "{}", "payload": "body", "job_id": "j0", "reservation": "5 1000-a"}
    inbox, client = store.cell.keys.inbox(NODE), store.connection.commands
    return [(await client.xadd(inbox, dict(fields))).decode() for _ in range(count)]


async def test_a_word_is_replaced_without_a_look_at_the_inbox(store: Store) -> None:
    """One entry is read, that which is replaced, whatever else is there."""
    await write(store, item(2))
    await write(store, item(0, "draining"))
    bodies, inbox = await seed_bodies(store), store.cell.keys.inbox(NODE)
    asked = []
    async with store.connection.commands.monitor() as monitor:
        await write(store, item(2))
        await store.connection.commands.echo("end")
        async for seen in monitor.listen():
            words = seen["command"].split(" ")
            if seen["client_type"] == "lua" and words[1:2] == [inbox] and words[0] != "XADD":
                asked.append(words)
            elif words[0] == "ECHO":
                break

    assert [(words[0], len(set(words[2:]))) for words in asked] == [("XRANGE", 1), ("XDEL", 1)]
    assert await told(store) == [("boot", BOOT), ("resumed", BOOT)]
    assert [entry for entry, fields in await store.reads.entries(inbox) if b"job" in fields] == bodies


async def test_a_word_is_told_although_the_ids_were_deleted(store: Store) -> None:
    """What it would replace stays, before it; from then on each replaces the one before."""
    await write(store, item(2))
    await write(store, item(0, "draining"))
    await store.connection.commands.delete(store.cell.keys.control_ids)

    await write(store, item(2))
    assert await told(store) == [("boot", BOOT), ("drained", BOOT), ("resumed", BOOT)]

    await write(store, item(0, "draining"))
    await write(store, item(2, boot=LATER_BOOT))
    assert await told(store) == [("boot", BOOT), ("drained", BOOT), ("boot", LATER_BOOT)]


@pytest.mark.parametrize("ids", ["{body} {body}", "rubbish", "- -", "x-1 9", "99999999999999999999999-0 -"])
async def test_an_id_that_is_of_no_word_deletes_nothing(store: Store, ids: str) -> None:
    """An inbox was made anew after the clock went back, and gave the id to a job; or no script has written it."""
    await write(store, item(2))
    bodies, k = await seed_bodies(store, 1), store.cell.keys
    await store.connection.commands.hset(k.control_ids, NODE, ids.format(body=bodies[0]))

    assert await write(store, item(2, boot=LATER_BOOT)) == ["written"]

    entries = await store.reads.entries(k.inbox(NODE))
    assert [entry for entry, fields in entries if b"job" in fields] == bodies
    assert (await told(store))[-1] == ("boot", LATER_BOOT)


async def test_ids_of_nodes_that_left_do_not_pile_up(store: Store) -> None:
    """Those of the nodes that are there stay."""
    await write(store, item(2))
    k, client = store.cell.keys, store.connection.commands
    await client.hset(k.control_ids, mapping={f"gone{number}": "1-1 -" for number in range(1_003)})

    await write(store, item(2, node="n2"))

    assert sorted(await client.hkeys(k.control_ids)) == [b"n1", b"n2"]


async def test_ids_of_a_node_that_comes_back_are_new(store: Store) -> None:
    """Its inbox went when it left, and what is remembered of it is replaced."""
    await write(store, item(2))
    assert await store.cell.leave(NODE, BOOT) == "left"

    await write(store, item(2, boot=LATER_BOOT))

    ((entry, _),) = await store.reads.entries(store.cell.keys.inbox(NODE))
    stored = await store.connection.commands.hgetall(store.cell.keys.control_ids)
    assert stored == {NODE.encode(): f"{entry} -".encode()}
