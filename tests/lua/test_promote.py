"""promote.lua: delayed jobs that are due go back to the intake."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from scheduler.protocol import messages
from scheduler.protocol.lifecycle import Transition
from scheduler.store.store import Store
from tests.dumps import bodies, dump, standing, stands, transitions, unchanged
from tests.seeds import (
    FAR_US,
    JOB,
    PARTITION,
    RETENTION_MS,
    SESSION,
    document,
    promote,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_delayed,
    seed_job,
    seed_owner,
    seed_poison,
    seed_record,
    seed_reserved,
)


async def seed_lost_body(store: Store) -> None:
    """The parked entry of the delayed job is gone."""
    ((parked_id, _),) = await store.reads.entries(store.cell.keys.parked)
    await store.connection.commands.xdel(store.cell.keys.parked, parked_id)


async def promoted(store: Store) -> None:
    """Promote a job whose body is there."""
    assert await promote(store) == "promoted"


async def body_lost(store: Store) -> None:
    """Promote a job whose body is not there."""
    await seed_lost_body(store)
    assert await promote(store) == "dead"


ACTS: dict[str, Callable[[Store], Awaitable[None]]] = {"promoted": promoted, "body_lost": body_lost}


@pytest.mark.parametrize("row", transitions("promote"), ids=lambda row: row.event)
async def test_transition(store: Store, row: Transition) -> None:
    """Each row of the transition table that promote performs."""
    await seed_delayed(store)
    assert (await standing(store))[0] == row.state

    await ACTS[row.event](store)

    assert await standing(store) == stands(row)


async def test_promoted_job_has_its_body_and_history_in_the_intake(store: Store) -> None:
    """The new entry carries document, payload, job id, first submission and the node to avoid."""
    await seed_delayed(store)
    before = await store.reads.record(JOB)

    await promote(store)

    k = store.cell.keys
    ((entry_id, fields),) = await store.reads.entries(k.jobs(PARTITION))
    assert fields == {
        b"job": document(),
        b"payload": b"body",
        b"job_id": JOB.encode(),
        b"submitted_ms": before["submitted_ms"].encode(),
        b"avoid": b"n1",
    }
    changes = {"state": "queued", "entry": f"{PARTITION}/{entry_id}"}
    del before["parked_id"], before["delay_ms"]
    assert await store.reads.record(JOB) == before | changes
    after = await dump(store)
    assert k.delayed not in after
    assert after[k.parked][1]["entries"] == {}


async def test_rule_28_repeat_is_stale_and_changes_nothing(store: Store) -> None:
    """The same call after a lost reply asks nothing more of the caller."""
    await seed_delayed(store)
    await promote(store)

    async with unchanged(store):
        assert await promote(store) == "stale"


async def test_early_job_stays(store: Store) -> None:
    """A job that is not due is not promoted, whoever thinks so: the server's clock decides."""
    await seed_delayed(store, due=False)

    async with unchanged(store):
        assert await promote(store) == "early"


@pytest.mark.parametrize(("partition", "reply_to"), [(PARTITION + 1, "r1"), (PARTITION, "r2"), (PARTITION, "")])
async def test_rule_27_keys_that_disagree_with_the_record_are_moved(
    store: Store, partition: int, reply_to: str
) -> None:
    """A caller that names another partition or reply stream changes nothing."""
    await seed_delayed(store, reply_to="r1")

    async with unchanged(store):
        assert await promote(store, partition=partition, reply_to=reply_to) == "moved"


@pytest.mark.parametrize("state", ["none", "queued", "reserved"])
async def test_job_that_is_not_delayed_only_loses_its_date(store: Store, state: str) -> None:
    """A date without a delayed job is cleared away, and the job is left alone."""
    if state == "queued":
        await seed_job(store)
    elif state == "reserved":
        await seed_reserved(store)
    before = await dump(store)
    await store.connection.commands.zadd(store.cell.keys.delayed, {JOB: 1})

    assert await promote(store) == "stale"

    assert await dump(store) == before


async def test_lost_body_is_dead_and_told(store: Store) -> None:
    """A delayed job without its body ends with that reason, small, for the retention, in both feeds."""
    token = await seed_delayed(store, reply_to="r1")
    await seed_lost_body(store)
    before = await store.reads.record(JOB)

    assert await promote(store, reply_to="r1") == "dead"

    k = store.cell.keys
    record = await store.reads.record(JOB)
    assert record == {
        "state": "dead",
        "nonce": before["nonce"],
        "session": SESSION,
        "entry": before["entry"],
        "reason": "body_lost",
        "attempts": "1",
        "submitted_ms": before["submitted_ms"],
        "ended_ms": record["ended_ms"],
    } | {field: before[field] for field in ("holder", "node", "token")}
    assert RETENTION_MS - 5_000 < await store.connection.commands.pttl(k.job(JOB)) <= RETENTION_MS
    ((_, outcome),) = await store.reads.entries(k.results)
    assert {name.decode(): value.decode() for name, value in outcome.items()} == {
        "job_id": JOB,
        "session": SESSION,
        "state": "dead",
        "reason": "body_lost",
        "detail": "the parked entry is missing",
        "node": "n1",
        "token": str(token),
        "attempts": "1",
        "entry": before["entry"],
        "submitted_ms": before["submitted_ms"],
        "ended_ms": record["ended_ms"],
    }
    assert [fields for _, fields in await store.reads.entries(k.replies("r1"))] == [outcome]
    assert k.delayed not in await dump(store)


async def test_rule_28_repeat_after_a_lost_body_is_stale(store: Store) -> None:
    """A lost body is told once."""
    await seed_delayed(store)
    await body_lost(store)

    async with unchanged(store):
        assert await promote(store) == "stale"


async def test_rule_24_poisoned_results_do_not_stop_the_ending(store: Store) -> None:
    """A feed that takes no entry leaves the truth in the record."""
    await seed_delayed(store)
    await seed_poison(store, store.cell.keys.results)

    await body_lost(store)

    assert await standing(store) == ("dead", [])


async def test_rule_24_poisoned_intake_is_busy_and_tried_again_later(store: Store) -> None:
    """When the intake takes no entry the job stays delayed with its body, and is due a little later."""
    await seed_delayed(store)
    await seed_poison(store, store.cell.keys.jobs(PARTITION))
    before = await dump(store)
    now_us = await store.control.time_us()

    assert await promote(store) == "busy"

    after, delayed = await dump(store), store.cell.keys.delayed
    ((job_id, due_ms),) = after[delayed][1]
    assert job_id == JOB
    assert now_us // 1000 < due_ms <= now_us // 1000 + 6_000
    assert {**after, delayed: None} == {**before, delayed: None}
    assert await promote(store) == "early"


async def test_each_job_of_a_call_has_its_own_answer(store: Store) -> None:
    """A job that cannot go back does not keep the next one from it."""
    await seed_delayed(store, "j1", "s1", due=False)
    await seed_delayed(store, "j2", "s2")

    answers = await store.cell.promote([("j0", 1, ""), ("j1", 1, ""), ("j2", 1, "")], RETENTION_MS)

    assert answers == ["stale", "early", "promoted"]
    assert sorted(await bodies(store)) == [("intake", "j2"), ("parked", "j1")]


async def seed_due_alike(store: Store) -> list[str]:
    """Three sentences of a session, which are due at the same time; returns them in the order of their names."""
    for job_id in ("Z", "b", "a"):
        await seed_delayed(store, job_id)
    return ["Z", "a", "b"]


async def in_the_intake(store: Store) -> list[str]:
    """The jobs of the intake, in its order."""
    entries = await store.reads.entries(store.cell.keys.jobs(PARTITION))
    return [fields[b"job_id"].decode() for _, fields in entries]


@pytest.mark.parametrize("knows", ["first_id", "entry"])
async def test_jobs_that_are_due_at_once_keep_the_order_of_their_first_entries(store: Store, knows: str) -> None:
    """Of whatever names; without a first id, as an earlier version wrote records, the newest entry says it."""
    names = await seed_due_alike(store)
    if knows == "entry":
        for name in names:
            await store.connection.commands.hdel(store.cell.keys.job(name), "first_id")

    answers = await store.cell.promote([(name, PARTITION, "") for name in (*names, "Z")], RETENTION_MS)

    assert answers == ["promoted", "promoted", "promoted", "stale"]
    assert await in_the_intake(store) == ["Z", "b", "a"]


async def test_the_order_stays_after_every_attempt(store: Store) -> None:
    """Whichever of them came into the intake last by another attempt."""
    names = await seed_due_alike(store)
    first_ids = {name: (await store.reads.record(name))["first_id"] for name in names}
    await promote(store, "Z")
    (entry_id,) = [entry for entry, _ in await store.reads.entries(store.cell.keys.jobs(PARTITION))]
    epoch = await seed_owner(store)
    (placed,) = await reserve(store, [reserve_item(entry_id, epoch, "Z")])
    assert isinstance(placed, messages.Reserved)
    await release(store, release_item(placed.token, "retry", "Z", delay_ms=1_000))
    await store.connection.commands.zadd(store.cell.keys.delayed, {"Z": 1})

    await store.cell.promote([(name, PARTITION, "") for name in reversed(names)], RETENTION_MS)

    assert await in_the_intake(store) == ["Z", "b", "a"]
    assert {name: (await store.reads.record(name))["first_id"] for name in names} == first_ids


async def test_ids_are_ordered_as_numbers(store: Store) -> None:
    """In both parts; of what is no id the job comes last."""
    ids = {
        "a": "rubbish",
        "b": "10-10",
        "c": "10-9",
        "d": "9-100",
        "e": "9007199254740993-0",
        "f": "9007199254740992-0",
    }
    for job_id, first_id in ids.items():
        await seed_delayed(store, job_id)
        await seed_record(store, job_id, first_id=first_id)

    await store.cell.promote([(name, PARTITION, "") for name in ids], RETENTION_MS)

    assert await in_the_intake(store) == ["d", "c", "b", "f", "e", "a"]


async def test_the_due_time_comes_before_the_order_of_entries(store: Store) -> None:
    """A job that is due earlier goes first."""
    names = await seed_due_alike(store)
    await store.connection.commands.zadd(store.cell.keys.delayed, {"a": 0})

    await store.cell.promote([(name, PARTITION, "") for name in names], RETENTION_MS)

    assert await in_the_intake(store) == ["a", "Z", "b"]


async def test_of_jobs_that_are_due_at_once_the_first_ones_go_first(store: Store) -> None:
    """When a call takes only some of them."""
    await seed_due_alike(store)
    await seed_delayed(store, "later", due=False)

    assert await store.reads.due(2, 2) == ["Z", "b"]
    assert await store.reads.due(2, 1) == ["Z"]
    assert sorted(await store.reads.due(2, 9)) == ["Z", "a", "b"]
    await store.connection.commands.zadd(store.cell.keys.delayed, {"a": 0})
    assert await store.reads.due(2, 2) == ["a", "Z"]
    await store.connection.commands.delete(store.cell.keys.job("Z"))
    assert await store.reads.due(2, 2) == ["a", "b"]


async def test_a_job_is_due_no_later_than_its_own_delay(store: Store) -> None:
    """The clock went back: its due time is cut to its delay from now, and it is early all the same."""
    await seed_delayed(store, due=False)
    await store.connection.commands.zadd(store.cell.keys.delayed, {JOB: FAR_US // 1000})
    before_ms = await store.control.time_us() // 1000

    assert await promote(store) == "early"

    due_ms = await store.reads.due_ms(JOB)
    assert due_ms is not None
    assert before_ms + 60_000 <= due_ms <= await store.control.time_us() // 1000 + 60_000
