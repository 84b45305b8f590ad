"""last_ids, unslotted, parked, reopen and hold: what is left when keys were deleted."""

from __future__ import annotations

import pytest

from scheduler.store.reads import Unslotted, is_behind
from scheduler.store.store import Store
from tests.dumps import unchanged
from tests.seeds import JOB, NODE, PARTITION, POISON_ID, seed_delayed, seed_entry, seed_node, seed_reserved


async def test_last_id_of_a_stream_stays_when_its_entries_are_gone(store: Store) -> None:
    """A cursor is behind a stream that was deleted, or begun anew with lower ids, and not behind an empty one."""
    jobs = store.cell.keys.jobs(PARTITION)
    entry = await seed_entry(store)
    await store.connection.commands.xdel(jobs, entry)
    assert await store.reads.last_ids([jobs, store.cell.keys.freed]) == [entry, ""]
    assert not is_behind(entry, entry)

    await store.connection.commands.delete(jobs)
    assert is_behind((await store.reads.last_ids([jobs]))[0], entry)
    await store.connection.commands.xadd(jobs, {"job": "x"}, id="5-0")
    assert is_behind((await store.reads.last_ids([jobs]))[0], entry)
    assert not is_behind("", "0")


async def test_assignments_without_a_slot_are_found(store: Store) -> None:
    """Page by page, with what is needed to end them."""
    first = await seed_reserved(store, "j1", "s1", slots=3, tenant="t1")
    await seed_reserved(store, "j2", "s2", slots=3)
    third = await seed_reserved(store, "j3", "s3", slots=3)
    await store.connection.commands.zrem(store.cell.keys.slots(NODE), "j1", "j3")

    async with unchanged(store):
        found, after = [], "0"
        while after:
            page, after = await store.reads.unslotted(NODE, after, 1)
            found += page

    entries = {
        each[b"job_id"].decode(): at
        for at, each in await store.reads.entries(store.cell.keys.inbox(NODE))
        if b"job_id" in each
    }
    assert found == [Unslotted(entries["j1"], "j1", "s1", "t1", first), Unslotted(entries["j3"], "j3", "s3", "", third)]


@pytest.mark.parametrize("stream", ["inbox", "parked"])
async def test_a_page_that_ends_with_the_highest_id_is_the_last(store: Store, stream: str) -> None:
    """After it the server allows no range."""
    key = store.cell.keys.parked if stream == "parked" else store.cell.keys.inbox(NODE)
    await store.connection.commands.xadd(key, {"job": "junk"}, id=POISON_ID)

    page = store.reads.parked("0", 1) if stream == "parked" else store.reads.unslotted(NODE, "0", 1)

    assert (await page)[1] == ""


async def test_parked_bodies_without_a_time_are_found(store: Store) -> None:
    """Those that are due some time are not named, those of nobody have no job."""
    await seed_delayed(store)
    await seed_delayed(store, "j2", "s2")
    nobody = (await store.connection.commands.xadd(store.cell.keys.parked, {"other": "1"})).decode()
    await store.connection.commands.zrem(store.cell.keys.delayed, JOB)

    async with unchanged(store):
        found, after = await store.reads.parked("0", 100)

    parked = (await store.reads.record(JOB))["parked_id"]
    assert (found, after) == ([(parked, JOB), (nobody, "")], "")


async def test_rule_21_a_set_that_was_deleted_is_made_again(store: Store) -> None:
    """From capacities and slots; what is opened is told, and a repeat changes nothing."""
    await seed_reserved(store)
    await seed_node(store, "n2")
    await store.connection.commands.delete(store.cell.keys.open)
    await store.connection.commands.sadd(store.cell.keys.open, NODE)

    assert await store.cell.reopen([NODE, "n2", "n3"]) == ["closed", "opened", "right"]

    assert await store.reads.are_open([NODE, "n2", "n3"]) == [False, True, False]
    assert (await store.reads.newest(store.cell.keys.freed, count=1))[0][1] == {b"nodes": b"n2"}
    async with unchanged(store):
        assert await store.cell.reopen([NODE, "n2"]) == ["right", "right"]
