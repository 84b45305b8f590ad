"""include/streams.lua: what scripts make anew when it takes no entry any more: feeds, `freed`, short inboxes."""

from __future__ import annotations

import pytest

from scheduler.protocol import messages
from scheduler.store.store import Store
from tests.seeds import (
    MANAGER,
    NODE,
    POISON_ID,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_job,
    seed_leader,
    seed_node,
    seed_owner,
    seed_poison,
    seed_reserved,
)


async def test_a_feed_that_takes_no_entry_is_made_anew_with_its_newest_ones(store: Store) -> None:
    """Nobody who reads on misses an outcome, and the stream of a producer still expires when it would have."""
    feeds = [store.cell.keys.results, store.cell.keys.replies("r1")]
    for number, state in enumerate(("first", "second")):
        token = await seed_reserved(store, f"j{number}", f"s{number}", slots=9, reply_to="r1")
        if state == "second":
            before = [await store.reads.entries(feed) for feed in feeds]
            for feed in feeds:
                await store.connection.commands.pexpire(feed, 500_000)
                await store.connection.commands.xadd(feed, {"foreign": "1"}, id=POISON_ID)
        await release(store, release_item(token, "finish", f"j{number}", f"s{number}", reply_to="r1"))

    for feed, (first,) in zip(feeds, before, strict=True):
        found = await store.reads.entries(feed)
        assert found[0] == first
        assert found[1][1] == {b"foreign": b"1"}
        assert found[2][1][b"job_id"] == b"j1"
        assert await store.connection.commands.pttl(feed) > 0


async def test_freed_that_takes_no_entry_begins_anew(store: Store) -> None:
    """What was told before is gone, as after a gap."""
    token = await seed_reserved(store, slots=1)
    await seed_poison(store, store.cell.keys.freed)

    await release(store, release_item(token, "finish"))

    ((_, fields),) = await store.reads.entries(store.cell.keys.freed)
    assert fields == {b"nodes": NODE.encode()}


async def test_freed_that_takes_no_entry_is_told_of_a_limit_that_was_put_right(store: Store) -> None:
    """`uncount` tells whoever waits for the limit, as `release` does."""
    await store.connection.commands.zadd(store.cell.keys.held("session", "s1"), {"j0": 1})
    await seed_poison(store, store.cell.keys.freed)

    assert await store.cell.uncount("session", "s1", ["j0"]) == ["removed"]

    ((_, fields),) = await store.reads.entries(store.cell.keys.freed)
    assert fields == {b"nodes": b"", b"limits": b"session:s1"}


@pytest.mark.parametrize("writer", ["reserve", "capacity"])
async def test_an_inbox_that_takes_no_entry_is_made_anew_with_what_is_in_it(store: Store, writer: str) -> None:
    """In the step that needs it, so that no job waits and no session moves because of it."""
    epoch = await seed_owner(store)
    inbox = store.cell.keys.inbox(NODE)
    token = await seed_reserved(store, "j1", "s1", slots=9)
    before = await store.reads.entries(inbox)
    await store.connection.commands.xadd(inbox, {"foreign": "1"}, id=POISON_ID)

    if writer == "reserve":
        entry_id = await seed_job(store, "j2", "s2")
        (answer,) = await reserve(store, [reserve_item(entry_id, epoch, "j2", "s2", candidates=(NODE,))])
        assert isinstance(answer, messages.Reserved)
    else:
        await seed_node(store, slots=0, reason="draining")

    *first, foreign, (_, last) = await store.reads.entries(inbox)
    assert first == before or (writer == "capacity" and set(dict(first)) <= set(dict(before)))
    assert foreign[1] == {b"foreign": b"1"}
    assert last.get(b"job_id", last.get(b"control")) in (b"j2", b"drained")
    assert await release(store, release_item(token, "give_back", "j1", "s1")) == [messages.Released("queued")]


async def test_an_inbox_that_is_long_is_left_to_the_reaper(store: Store) -> None:
    """Such a call would take too long."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    for _ in range(130):
        await store.connection.commands.xadd(store.cell.keys.inbox(NODE), {"other": "1"})
    await seed_poison(store, store.cell.keys.inbox(NODE))
    entry_id = await seed_job(store)

    assert await reserve(store, [reserve_item(entry_id, epoch, candidates=(NODE,))]) == [messages.Refused("full")]


async def test_answers_that_take_no_entry_are_made_anew(store: Store) -> None:
    """Whoever asked is answered."""
    epoch = await seed_leader(store)
    command = await store.connection.commands.xadd(store.control.keys.commands, {"command": "drain"})
    await store.control.take(MANAGER, epoch)
    await seed_poison(store, store.control.keys.answers)

    await store.control.publish(MANAGER, epoch, None, answers=[(command.decode(), b"done")])

    ((_, fields),) = await store.reads.entries(store.control.keys.answers)
    assert fields == {b"command": command, b"answer": b"done"}


async def test_what_comes_after_the_highest_id_can_be_asked_for(store: Store) -> None:
    """The server refuses such a range; whoever reads `freed` must not fail for ever because of it."""
    freed = store.cell.keys.freed
    await store.connection.commands.xadd(freed, {"nodes": "n1"}, id=POISON_ID)

    assert await store.reads.rest_of(freed, "0", POISON_ID, 9) == ([(POISON_ID, {b"nodes": b"n1"})], False)
