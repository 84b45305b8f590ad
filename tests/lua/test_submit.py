"""submit.lua: jobs are accepted into the intake, once."""

from __future__ import annotations

import msgspec

from scheduler.config import DEFAULTS
from scheduler.protocol import messages
from scheduler.store.cell import Cell
from scheduler.store.store import Store
from tests.dumps import dump, standing, stands, transitions, unchanged
from tests.seeds import (
    FAR_US,
    JOB,
    PARTITION,
    SESSION,
    document,
    release,
    release_item,
    seed_entry,
    seed_job,
    seed_poison,
    seed_reserved,
    submit_item,
)

(SUBMITTED,) = transitions("submit")


async def test_accepted_job_has_a_record_and_an_intake_entry(store: Store) -> None:
    """Entry and record of an accepted job are written in one step, and nothing else is."""
    now_us = await store.control.time_us()
    (answer,) = await store.cell.submit([submit_item(tenant="t1", reply_to="r1")])

    assert isinstance(answer, messages.Submitted)
    entry_id = answer.entry.partition("/")[2]
    after = await dump(store)
    k = store.cell.keys
    submitted_ms = after[k.job(JOB)][1]["submitted_ms"]
    # In Redis 7.0 time goes on while a script runs: the id of the entry can be of a later moment than the record.
    assert now_us // 1000 <= int(submitted_ms) <= int(entry_id.partition("-")[0])
    record = {
        "state": "queued",
        "entry": f"{PARTITION}/{entry_id}",
        "session": SESSION,
        "tenant": "t1",
        "reply_to": "r1",
        "nonce": f"nonce-{JOB}",
        "submitted_ms": submitted_ms,
    }
    assert after[k.job(JOB)] == ("hash", record, False)
    assert after[k.jobs(PARTITION)][1]["entries"] == {
        entry_id: {"job": document().decode(), "payload": "body", "job_id": JOB}
    }
    assert set(after) == {k.job(JOB), k.jobs(PARTITION)}
    assert await standing(store) == stands(SUBMITTED)


async def test_empty_payload_is_no_field(store: Store) -> None:
    """A job without payload has an entry without that field."""
    await seed_job(store, payload=b"")

    ((_, fields),) = await store.reads.entries(store.cell.keys.jobs(PARTITION))
    assert fields == {b"job": document(), b"job_id": JOB.encode()}


async def test_rule_9_same_nonce_is_accepted_again_and_changes_nothing(store: Store) -> None:
    """The same submission after a lost reply is accepted with the same entry, once."""
    first = await store.cell.submit([submit_item()])

    async with unchanged(store):
        assert await store.cell.submit([submit_item()]) == first


async def test_rule_9_same_nonce_is_accepted_while_the_job_runs(store: Store) -> None:
    """A very late repeat of a submission does not disturb the running job."""
    await seed_reserved(store)

    async with unchanged(store):
        (answer,) = await store.cell.submit([submit_item()])

    assert isinstance(answer, messages.Submitted)


async def test_rule_9_same_nonce_after_the_end_is_still_accepted(store: Store) -> None:
    """A job that ended does not run again within the retention; its own producer is told that it was accepted."""
    token = await seed_reserved(store)
    entry = (await store.reads.record(JOB))["entry"]
    await release(store, release_item(token, "finish"))

    async with unchanged(store):
        assert await store.cell.submit([submit_item()]) == [messages.Submitted(JOB, entry)]


async def test_another_nonce_is_a_duplicate_and_changes_nothing(store: Store) -> None:
    """Another submission of the session's job is told the job's state."""
    await seed_job(store)

    async with unchanged(store):
        answers = await store.cell.submit([submit_item(nonce="other")])

    assert answers == [messages.NotSubmitted(JOB, "duplicate", "queued")]


async def test_rule_8_id_of_another_session_is_taken_and_changes_nothing(store: Store) -> None:
    """The first session's job is left alone, also when the nonce is the same."""
    await seed_job(store)

    async with unchanged(store):
        answers = await store.cell.submit([submit_item(session="s2")])

    assert answers == [messages.NotSubmitted(JOB, "job_id_taken")]


async def test_full_backlog_is_busy_and_changes_nothing(store: Store) -> None:
    """A partition accepts as many entries as configured; raw entries count too."""
    cell = Cell(store.connection, msgspec.structs.replace(DEFAULTS, backlog_max=2))
    await seed_entry(store, "raw")
    await seed_job(store)

    async with unchanged(store):
        assert await cell.submit([submit_item("j2")]) == [messages.NotSubmitted("j2", "busy", "2")]
        assert await cell.submit([submit_item()]) == await cell.submit([submit_item()])


async def test_rule_24_poisoned_intake_is_refused_and_changes_nothing(store: Store) -> None:
    """When the intake takes no entry there is no record either."""
    await seed_poison(store, store.cell.keys.jobs(PARTITION))

    async with unchanged(store):
        (answer,) = await store.cell.submit([submit_item()])

    assert isinstance(answer, messages.NotSubmitted)
    assert (answer.why, "stream" in answer.detail) == ("refused", True)


async def test_each_job_of_a_call_has_its_own_answer(store: Store) -> None:
    """A batch over several partitions is answered job by job; a repeated id counts within the call too."""
    await seed_job(store, "old", "s1", partition=3)
    await seed_poison(store, store.cell.keys.jobs(2))

    answers = await store.cell.submit(
        [
            submit_item("a", partition=1),
            submit_item("b", partition=2),
            submit_item("old", "s2", partition=3),
            submit_item("c", partition=3),
            submit_item("a", "s9", partition=1),
        ]
    )

    words = ["accepted" if isinstance(answer, messages.Submitted) else answer.why for answer in answers]
    assert words == ["accepted", "refused", "job_id_taken", "accepted", "job_id_taken"]
    assert await store.reads.length(store.cell.keys.jobs(1)) == 1
    assert await store.reads.length(store.cell.keys.jobs(3)) == 2


async def test_submission_time_is_never_in_the_future(store: Store) -> None:
    """After an entry with an id of the future the next ids are too, but not the time of submission."""
    ahead_ms = FAR_US // 1000
    await seed_entry(store, "raw", entry_id=f"{ahead_ms}-0")
    now_us = await store.control.time_us()

    entry_id = await seed_job(store)

    assert entry_id == f"{ahead_ms}-1"
    submitted_ms = int((await store.reads.record(JOB))["submitted_ms"])
    assert now_us // 1000 <= submitted_ms <= await store.control.time_us() // 1000
