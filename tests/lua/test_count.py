"""count.lua: what is counted for limits, and reservations that were made before it was."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.errors import Fenced
from scheduler.protocol import messages
from scheduler.store.store import Store
from tests.dumps import dump, unchanged
from tests.lua.placements import placed
from tests.seeds import (
    JOB,
    LEADER_EPOCH,
    NODE,
    SESSION,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_job,
    seed_lapsed,
    seed_node,
    seed_owner,
    seed_record,
    seed_reserved,
)

SESSIONS = messages.Counted(1, frozenset({"session"}))
BOTH = messages.Counted(1, frozenset({"session", "tenant"}))


async def count(store: Store, counted: messages.Counted, *items: messages.CountItem) -> list[str]:
    """What the leader is answered."""
    _, answers = await store.cell.count(LEADER_EPOCH, counted, items)
    return answers


async def held(store: Store, kind: str, name: str) -> set[bytes]:
    """Who counts for a limit."""
    return set(await store.connection.commands.zrange(store.cell.keys.held(kind, name), 0, -1))


async def test_rule_22_what_is_counted_is_stored_and_read(store: Store) -> None:
    """Another text replaces it, and nothing deletes it."""
    changes = [(await store.cell.count(LEADER_EPOCH, each))[0] for each in (BOTH, BOTH, SESSIONS)]
    assert (changes, await store.reads.counted()) == ([True, False, True], SESSIONS)

    await count(store, messages.Counted())
    assert await store.reads.counted() == messages.Counted()
    assert await store.connection.commands.exists(store.cell.keys.counted) == 0


async def test_rule_22_a_reservation_that_was_made_before_counts_until_it_ends(store: Store) -> None:
    """For its session and its tenant; its record says so, so that `release` takes it out and tells it."""
    token = await seed_reserved(store, tenant="t1")
    item = messages.CountItem(NODE, JOB, SESSION, "t1")

    assert await count(store, BOTH, item) == ["added"]

    assert (await held(store, "session", SESSION), await held(store, "tenant", "t1")) == ({b"j1"}, {b"j1"})
    assert (await store.reads.record(JOB))["held"] == "session tenant"
    async with unchanged(store):
        assert await count(store, BOTH, item) == ["counted"]
    await release(store, release_item(token, "finish", tenant_id="t1"))
    assert (await held(store, "session", SESSION), await held(store, "tenant", "t1")) == (set(), set())
    (_, event) = (await store.reads.entries(store.cell.keys.freed))[-1]
    assert event[b"limits"] == f"session:{SESSION} tenant:t1".encode()


async def test_rule_22_a_job_without_a_tenant_counts_for_its_session_alone(store: Store) -> None:
    """There is no tenant of an empty name."""
    await seed_reserved(store)

    assert await count(store, BOTH, messages.CountItem(NODE, JOB, SESSION, "")) == ["added"]

    assert (await store.reads.record(JOB))["held"] == "session"
    assert await held(store, "tenant", "") == set()


async def test_rule_22_another_kind_is_added_to_what_a_record_holds(store: Store) -> None:
    """A limit that went keeps what was held for it until the jobs end."""
    token = await seed_reserved(store, tenant="t1")
    item = messages.CountItem(NODE, JOB, SESSION, "t1")
    await count(store, messages.Counted(1, frozenset({"tenant"})), item)

    assert await count(store, SESSIONS, item) == ["added"]

    assert (await store.reads.record(JOB))["held"] == "session tenant"
    await release(store, release_item(token, "finish", tenant_id="t1"))
    assert (await held(store, "session", SESSION), await held(store, "tenant", "t1")) == (set(), set())


async def test_rule_22_a_member_that_was_lost_is_added_again(store: Store) -> None:
    """Whoever deleted the set."""
    await seed_reserved(store)
    item = messages.CountItem(NODE, JOB, SESSION, "")
    await count(store, SESSIONS, item)
    await store.connection.commands.delete(store.cell.keys.held("session", SESSION))

    assert await count(store, SESSIONS, item) == ["added"]

    assert await held(store, "session", SESSION) == {b"j1"}


async def test_rule_22_who_counts_stands_for_the_limits_of_its_pool(store: Store) -> None:
    """Also if they are others now than when it was placed; that adds nobody."""
    await seed_reserved(store, tenant="t1")
    answers, limits = [], []
    for most in ((2, 3), (1, 0)):
        answers += await count(store, BOTH, messages.CountItem(NODE, JOB, SESSION, "t1", *most))
        limits.append(await store.reads.held_sizes([f"session:{SESSION}", "tenant:t1"]))

    assert answers == ["added", "counted"]
    assert limits == [[(1, 2), (1, 3)], [(1, 1), (1, 0)]]


async def test_rule_22_who_is_not_reserved_is_taken_out_and_that_is_told(store: Store) -> None:
    """Their records were deleted, so no ending would ever take them out; whoever is reserved stays."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    items = [
        reserve_item(await seed_job(store, f"j{i}"), epoch, f"j{i}", limits=(("session", SESSION, 9),))
        for i in range(3)
    ]
    await reserve(store, items)
    k = store.cell.keys
    await store.connection.commands.delete(k.job("j0"))
    await seed_record(store, "j1", state="queued")

    assert await store.cell.uncount("session", SESSION, ["j0", "j1", "j2"]) == ["removed", "removed", "kept"]

    assert await held(store, "session", SESSION) == {b"j2"}
    (_, event) = (await store.reads.entries(k.freed))[-1]
    assert event == {b"nodes": b"", b"limits": f"session:{SESSION}".encode()}
    async with unchanged(store):
        await store.cell.uncount("session", SESSION, ["j0", "j1", "j2"])


@pytest.mark.parametrize(
    "what", ["ended", "went back", "no slot", "elsewhere", "another session", "another tenant", "no job"]
)
async def test_rule_22_only_what_holds_a_slot_is_added(store: Store, what: str) -> None:
    """A job that ended while it was being added would count for ever."""
    item = messages.CountItem(NODE, JOB, SESSION, "")
    if what != "no job":
        token = await seed_reserved(store)
        if what == "ended":
            await release(store, release_item(token, "finish"))
        elif what == "went back":
            await seed_lapsed(store)
            await release(store, release_item(token, "expire"))
        elif what == "no slot":
            await store.connection.commands.delete(store.cell.keys.slots(NODE))
        elif what == "elsewhere":
            await seed_record(store, holder=f"n2 {token}")
        elif what == "another session":
            item = messages.CountItem(NODE, JOB, "s9", "")
        else:
            await seed_record(store, tenant="t9")
    await count(store, SESSIONS)

    async with unchanged(store):
        assert await count(store, SESSIONS, item) == ["stale"]


async def test_rule_31_a_leader_that_was_paused_changes_nothing(store: Store) -> None:
    """Its epoch is below the highest that the cell has seen."""
    await seed_reserved(store)
    await store.cell.capacity(LEADER_EPOCH + 1, [])

    async with unchanged(store):
        with pytest.raises(Fenced):
            await count(store, SESSIONS, messages.CountItem(NODE, JOB, SESSION, ""))


async def test_rule_31_a_higher_epoch_is_remembered(store: Store) -> None:
    """As by `capacity`."""
    await count(store, SESSIONS)
    k = store.cell.keys
    assert {key: value[1] for key, value in (await dump(store)).items()} == {
        k.leader_epoch: str(LEADER_EPOCH),
        k.counted: "1 session",
    }


# ---- what `reserve` makes of it ----


async def seed_two(store: Store, **rest: Any) -> list[messages.ReserveItem]:
    """Two jobs of a session and a tenant, and a node with room for both."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    entries = [await seed_job(store, f"j{i}", tenant="t1") for i in range(2)]
    return [reserve_item(entry, epoch, f"j{i}", tenant="t1", **rest) for i, entry in enumerate(entries)]


async def test_rule_22_who_does_not_count_is_sent_back_to_its_snapshot(store: Store) -> None:
    """With what is counted, so that it can at once; and nothing is changed."""
    items = await seed_two(store, limits=(("session", SESSION, 1),))
    await count(store, BOTH)

    async with unchanged(store):
        first, second = await reserve(store, items)

    assert (first, second) == (messages.Refused("outdated", counted=BOTH), messages.Refused("behind"))


async def test_rule_22_who_has_an_earlier_snapshot_is_sent_back_to_it(store: Store) -> None:
    """Also if it counts what is counted: it does not know how much is allowed."""
    items = await seed_two(store, limits=(("session", SESSION, 5),))
    newer = messages.Counted(2, frozenset({"session"}))
    await count(store, newer)

    assert (await reserve(store, items[:1])) == [messages.Refused("outdated", counted=newer)]


async def test_rule_22_a_repeat_is_answered_as_before_whatever_is_counted_since(store: Store) -> None:
    """The same entry gets the same answer."""
    items = await seed_two(store)
    assert placed(await reserve(store, items[:1])) == [NODE]
    await count(store, BOTH)

    (again,) = await reserve(store, items[:1])

    assert isinstance(again, messages.Reserved)
    assert again.used == -1


async def test_rule_22_a_job_of_a_pool_without_a_limit_counts_and_is_not_held_back(store: Store) -> None:
    """What it holds is counted for the others; nobody runs under a limit of its session."""
    epoch = (items := await seed_two(store, limits=(("session", SESSION, 0), ("tenant", "t1", 0))))[0].epoch
    await count(store, BOTH)

    assert placed(await reserve(store, items)) == [NODE, NODE]

    third = await seed_job(store, "j2", "s2", tenant="t1")
    limits = (("session", "s2", 1), ("tenant", "t1", 2))
    answers = await reserve(store, [reserve_item(third, epoch, "j2", "s2", tenant="t1", limits=limits)])
    assert answers == [messages.Refused("limited", "tenant:t1")]


async def test_rule_22_a_job_without_a_tenant_need_not_count_for_one(store: Store) -> None:
    """Only for its session."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    item = reserve_item(await seed_job(store), epoch, limits=(("session", SESSION, 0),))
    await count(store, BOTH)

    assert placed(await reserve(store, [item])) == [NODE]


async def test_rule_22_what_no_script_has_written_counts_nothing(store: Store) -> None:
    """No job waits for it."""
    items = await seed_two(store)
    await store.connection.commands.set(store.cell.keys.counted, "")

    assert placed(await reserve(store, items)) == [NODE, NODE]
