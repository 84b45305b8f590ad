"""reject.lua: the owner of a partition refuses entries."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from scheduler.protocol import messages
from scheduler.protocol.lifecycle import Transition
from scheduler.store.store import Store
from tests.dumps import bodies, dump, standing, stands, transitions, unchanged
from tests.seeds import (
    DEAD_RETENTION_MS,
    JOB,
    PARTITION,
    POISON_ID,
    RETENTION_MS,
    SESSION,
    document,
    reject,
    reject_item,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_delayed,
    seed_entry,
    seed_job,
    seed_owner,
    seed_poison,
    seed_record,
    seed_reserved,
)

REASONS = {"rejected": "expired", "rejected_cancelled": "cancelled"}


async def seed(store: Store, state: str) -> tuple[int, str]:
    """An owned partition with one entry in it; returns epoch and entry id."""
    act: Callable[[Store], Awaitable[str]] = seed_entry if state == "none" else seed_job
    return await seed_owner(store), await act(store)


async def record_without_time(store: Store, job_id: str = JOB) -> dict[str, str]:
    """The record but for the time of its end."""
    record = await store.reads.record(job_id)
    assert int(record.pop("ended_ms")) <= await store.control.time_us() // 1000
    return record


@pytest.mark.parametrize("row", transitions("reject"), ids=lambda row: f"{row.state}-{row.event}")
async def test_transition(store: Store, row: Transition) -> None:
    """Each row of the transition table that reject performs."""
    epoch, entry_id = await seed(store, row.state)

    assert await reject(store, reject_item(entry_id, epoch, REASONS[row.event])) == ["rejected"]

    assert await standing(store) == stands(row)


async def test_rejected_job_is_dead_with_its_body_and_reason(store: Store) -> None:
    """Body and reason lie in the dead stream, the record is small and lives as long, both feeds tell it."""
    epoch = await seed_owner(store)
    entry_id = await seed_job(store, reply_to="r1")
    before = await store.reads.record(JOB)

    await reject(store, reject_item(entry_id, epoch, "expired", reply_to="r1", detail="too late"))

    k = store.cell.keys
    ((dead_id, dead),) = await store.reads.entries(k.dead)
    record = await record_without_time(store)
    assert record == {
        "state": "dead",
        "nonce": before["nonce"],
        "session": SESSION,
        "entry": f"{PARTITION}/{entry_id}",
        "reason": "expired",
        "submitted_ms": before["submitted_ms"],
        "dead_id": dead_id,
    }
    assert DEAD_RETENTION_MS - 5_000 < await store.connection.commands.pttl(k.job(JOB)) <= DEAD_RETENTION_MS
    assert {name.decode(): value.decode() for name, value in dead.items()} == {
        "job": document().decode(),
        "payload": "body",
        "job_id": JOB,
        "submitted_ms": before["submitted_ms"],
        "reason": "expired",
        "detail": "too late",
        "session": SESSION,
        "partition": str(PARTITION),
        "tenant": "",
        "node": "",
        "attempts": "0",
        "crashes": "0",
        "not_started": "0",
        "life": "1",
    }
    ((_, outcome),) = await store.reads.entries(k.results)
    assert {name.decode(): value.decode() for name, value in outcome.items() if name != b"ended_ms"} == {
        "job_id": JOB,
        "session": SESSION,
        "state": "dead",
        "reason": "expired",
        "detail": "too late",
        "entry": f"{PARTITION}/{entry_id}",
        "submitted_ms": before["submitted_ms"],
    }
    assert [fields for _, fields in await store.reads.entries(k.replies("r1"))] == [outcome]


async def test_cancelled_job_is_kept_for_the_retention_without_a_body(store: Store) -> None:
    """A cancelled job has an outcome and no dead entry."""
    epoch, entry_id = await seed(store, "queued")
    before = await store.reads.record(JOB)
    await seed_record(store, cancel=1)

    await reject(store, reject_item(entry_id, epoch, "cancelled"))

    k = store.cell.keys
    assert await record_without_time(store) == {
        "state": "cancelled",
        "nonce": before["nonce"],
        "session": SESSION,
        "entry": f"{PARTITION}/{entry_id}",
        "reason": "cancelled",
        "submitted_ms": before["submitted_ms"],
    }
    assert RETENTION_MS - 5_000 < await store.connection.commands.pttl(k.job(JOB)) <= RETENTION_MS
    assert [fields[b"state"] for _, fields in await store.reads.entries(k.results)] == [b"cancelled"]
    assert k.dead not in await dump(store)


async def test_history_of_an_earlier_attempt_is_kept(store: Store) -> None:
    """A job that ran before and is refused on its way back keeps its counts and its last token."""
    token = await seed_reserved(store, started=True)
    await release(store, release_item(token, "retry"))
    epoch = await seed_owner(store)
    entry_id = (await store.reads.record(JOB))["entry"].partition("/")[2]

    await reject(store, reject_item(entry_id, epoch))

    record = await store.reads.record(JOB)
    ((_, dead),) = await store.reads.entries(store.cell.keys.dead)
    assert (record["attempts"], record["token"]) == ("1", str(token))
    assert (dead[b"attempts"], dead[b"node"]) == (b"1", b"n1")


async def test_submission_time_of_a_raw_entry_is_never_in_the_future(store: Store) -> None:
    """A job whose entry id is the highest possible was submitted now, not in the year 584556019."""
    epoch = await seed_owner(store)
    await seed_entry(store, entry_id=POISON_ID)

    assert await reject(store, reject_item(POISON_ID, epoch)) == ["rejected"]

    record = await store.reads.record(JOB)
    assert record["submitted_ms"] == record["ended_ms"]


async def test_bad_entry_is_kept_as_it_came(store: Store) -> None:
    """Fields that mean nothing to us go into the dead stream; those that are ours cannot be forged."""
    epoch = await seed_owner(store)
    bad = {"jib": "{", "payload": "\x00", "reason": "forged", "dead_id": "9"}
    added: bytes = await store.connection.commands.xadd(store.cell.keys.jobs(PARTITION), bad)
    entry_id = added.decode()
    job_id = f"~0-{PARTITION}-{entry_id}"

    assert await reject(store, reject_item(entry_id, epoch, "invalid", job_id, "")) == ["rejected"]

    ((_, dead),) = await store.reads.entries(store.cell.keys.dead)
    kept = {name: dead[name] for name in (b"jib", b"payload", b"dead_id", b"reason", b"job_id")}
    assert kept == {
        b"jib": b"{",
        b"payload": b"\x00",
        b"dead_id": b"9",
        b"reason": b"invalid",
        b"job_id": job_id.encode(),
    }


async def test_forged_field_is_dropped(store: Store) -> None:
    """A field that is ours stands once in the dead entry, so that every reader finds the same value."""
    epoch = await seed_owner(store)
    added: bytes = await store.connection.commands.xadd(store.cell.keys.jobs(PARTITION), {"reason": "forged"})

    await reject(store, reject_item(added.decode(), epoch, "invalid"))

    told = await store.connection.commands.execute_command("XINFO", "STREAM", store.cell.keys.dead, "FULL")
    ((_, fields),) = told[told.index(b"entries") + 1]
    assert fields[::2].count(b"reason") == 1


async def test_entry_with_thousands_of_fields_is_rejected(store: Store) -> None:
    """An entry too wide for one call of the script's language is cut, not stuck."""
    epoch = await seed_owner(store)
    wide = {f"f{i}": "x" for i in range(9_000)}
    added: bytes = await store.connection.commands.xadd(store.cell.keys.jobs(PARTITION), wide)

    assert await reject(store, reject_item(added.decode(), epoch, "too_large")) == ["rejected"]

    assert await standing(store) == ("dead", ["dead"])


async def test_entry_that_is_too_large_is_cut(store: Store) -> None:
    """What is kept of it is what a good entry may have; dead entry and outcome say how much is missing."""
    epoch = await seed_owner(store)
    bad = {"job": "x" * 20_000, "what": "y" * 17_000, "short": "z", "payload": "p" * 2_000_000}
    added: bytes = await store.connection.commands.xadd(store.cell.keys.jobs(PARTITION), bad)

    await reject(store, reject_item(added.decode(), epoch, "too_large", detail="payload of 2000000 bytes"))

    ((_, dead),) = await store.reads.entries(store.cell.keys.dead)
    ((_, outcome),) = await store.reads.entries(store.cell.keys.results)
    detail = "payload of 2000000 bytes; 1758476 bytes of it are not kept"
    assert 1_758_476 == 2_000_000 - 262_144 + 20_000 - 16_384 + 17_004
    assert dead[b"job"] == b"x" * 16_384
    assert dead[b"payload"] == b"p" * 262_144
    assert (b"what" in dead, dead[b"short"]) == (False, b"z")
    assert dead[b"detail"].decode() == outcome[b"detail"].decode() == detail


@pytest.mark.parametrize("reason", ["expired", "cancelled"])
async def test_rule_28_repeat_answers_rejected_and_changes_nothing(store: Store, reason: str) -> None:
    """The same call after a lost reply buries and tells nothing a second time."""
    epoch, entry_id = await seed(store, "queued")
    await reject(store, reject_item(entry_id, epoch, reason))

    async with unchanged(store):
        assert await reject(store, reject_item(entry_id, epoch, reason)) == ["rejected"]


async def test_rule_2_repeat_after_the_retention_is_gone_and_changes_nothing(store: Store) -> None:
    """Without entry and record nothing is written."""
    epoch, entry_id = await seed(store, "queued")
    await reject(store, reject_item(entry_id, epoch, "cancelled"))
    await store.connection.commands.delete(store.cell.keys.job(JOB))

    async with unchanged(store):
        assert await reject(store, reject_item(entry_id, epoch, "cancelled")) == ["gone"]


async def test_placed_job_is_not_rejected(store: Store) -> None:
    """An owner whose reservation was answered late cannot end the running job: nothing changes."""
    await seed_reserved(store)
    epoch = await seed_owner(store)
    entry_id = (await store.reads.record(JOB))["entry"].partition("/")[2]

    async with unchanged(store):
        assert await reject(store, reject_item(entry_id, epoch)) == ["rejected"]


@pytest.mark.parametrize("shift", [-1, 1])
async def test_rule_5_another_epoch_is_fenced_and_changes_nothing(store: Store, shift: int) -> None:
    """Only the owner rejects."""
    epoch, entry_id = await seed(store, "queued")

    async with unchanged(store):
        assert await reject(store, reject_item(entry_id, epoch + shift)) == ["fenced"]


async def test_partition_that_nobody_ever_owned_is_fenced(store: Store) -> None:
    """Without a claim nothing is rejected."""
    entry_id = await seed_job(store)

    async with unchanged(store):
        assert await reject(store, reject_item(entry_id, 0)) == ["fenced"]


@pytest.mark.parametrize("state", ["reserved", "delayed", "completed"])
async def test_another_entry_of_the_job_is_a_duplicate_and_changes_nothing(store: Store, state: str) -> None:
    """The record belongs to another entry; the caller rejects this one again under its generated id."""
    token = await (seed_delayed(store) if state == "delayed" else seed_reserved(store))
    if state == "completed":
        await release(store, release_item(token, "finish"))
    epoch = await seed_owner(store)
    entry_id = await seed_entry(store)

    async with unchanged(store):
        assert await reject(store, reject_item(entry_id, epoch)) == ["duplicate"]


async def test_rule_24_poisoned_dead_stream_is_busy_and_changes_nothing(store: Store) -> None:
    """A body that cannot be buried stays in the intake."""
    epoch, entry_id = await seed(store, "queued")
    await seed_poison(store, store.cell.keys.dead)

    async with unchanged(store):
        assert await reject(store, reject_item(entry_id, epoch)) == ["busy"]


async def test_rule_24_poisoned_results_do_not_stop_the_ending(store: Store) -> None:
    """Feeds that take no entry leave the truth in the record."""
    epoch = await seed_owner(store)
    entry_id = await seed_job(store, reply_to="r1")
    await seed_poison(store, store.cell.keys.results)
    await seed_poison(store, store.cell.keys.replies("r1"))

    assert await reject(store, reject_item(entry_id, epoch, reply_to="r1")) == ["rejected"]

    assert await standing(store) == ("dead", ["dead"])


async def test_rule_28_late_reserve_of_a_rejected_entry_places_nothing(store: Store) -> None:
    """A repeated reserve of an entry that was rejected meanwhile places nothing."""
    epoch, entry_id = await seed(store, "queued")
    await reject(store, reject_item(entry_id, epoch))

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [messages.Refused("gone")]


async def test_each_entry_of_a_call_has_its_own_answer(store: Store) -> None:
    """One entry that is not ours does not keep the next from being rejected."""
    epoch = await seed_owner(store)
    first, second = await seed_job(store, "j1", "s1", partition=2), await seed_job(store, "j2", "s2")

    answers = await reject(
        store,
        reject_item(first, epoch, "expired", "j1", "s1", partition=2),
        reject_item("5-5", epoch, "expired", "j0", "s0"),
        reject_item(second, epoch, "expired", "j2", "s2"),
    )

    assert answers == ["fenced", "gone", "rejected"]
    assert sorted(await bodies(store)) == [("dead", "j2"), ("intake", "j1")]
