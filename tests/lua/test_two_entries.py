"""Two entries of one id, and an entry that was submitted as another job than its document says."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.protocol import messages
from scheduler.store.store import Store
from tests.dumps import bodies, standing, unchanged
from tests.lua.endings import text
from tests.lua.placements import placed
from tests.seeds import (
    JOB,
    NODE,
    PARTITION,
    SESSION,
    promote,
    reject,
    reject_item,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_delayed,
    seed_entry,
    seed_job,
    seed_node,
    seed_owner,
    seed_record,
    submit_item,
)

OTHER_PARTITION = PARTITION + 1


async def seed_both(store: Store, *, submitted_first: bool, partition: int = PARTITION) -> tuple[str, str]:
    """(entry of the plain XADD, entry of `submit`) of one job; the first in `partition`."""
    submitted = await seed_job(store) if submitted_first else ""
    added = await seed_entry(store, partition=partition)
    return added, submitted or await seed_job(store)


# ---- the one that is read first counts ---------------------------------------------------------------------


@pytest.mark.parametrize("partition", [PARTITION, OTHER_PARTITION])
@pytest.mark.parametrize("submitted_first", [False, True])
@pytest.mark.parametrize("read_first", ["added", "submitted"])
async def test_rule_8_of_two_entries_the_one_that_is_read_first_is_placed(
    store: Store, read_first: str, submitted_first: bool, partition: int
) -> None:
    """The record follows it, the other one goes when it is read, and nothing is left of either."""
    added, submitted = await seed_both(store, submitted_first=submitted_first, partition=partition)
    epoch, other_epoch = await seed_owner(store), await seed_owner(store, partition)
    await seed_node(store, slots=9)
    items = {
        "added": reserve_item(added, other_epoch, partition=partition),
        "submitted": reserve_item(submitted, epoch),
    }
    entries = {"added": f"{partition}/{added}", "submitted": f"{PARTITION}/{submitted}"}
    first, second = items.pop(read_first), items.popitem()[1]

    answers = await reserve(store, [first])
    record = await store.reads.record(JOB)
    answers += await reserve(store, [second])

    assert placed(answers) == [NODE, "duplicate"]
    assert (record["entry"], await bodies(store)) == (entries[read_first], [("inbox", JOB)])
    token = int(record["token"])
    (ended,) = await release(store, release_item(token, "finish", partition=first.partition))
    assert (ended, await bodies(store)) == (messages.Released("completed"), [])
    async with unchanged(store):
        assert placed(await reserve(store, [second])) == ["duplicate"]


@pytest.mark.parametrize("tenant", ["t2", ""])
async def test_record_follows_the_document_of_the_entry_that_was_read_first(store: Store, tenant: str) -> None:
    """Its tenant and reply stream are those of that document, so that its node can end it."""
    added = await seed_entry(store)
    await seed_job(store, tenant="t1", reply_to="r1")
    epoch = await seed_owner(store)
    await seed_node(store)

    (answer,) = await reserve(store, [reserve_item(added, epoch, tenant=tenant)])

    assert isinstance(answer, messages.Reserved)
    assert await release(store, release_item(answer.token, "finish", tenant_id=tenant)) == [
        messages.Released("completed")
    ]


async def test_rule_28_repeat_of_the_entry_that_was_read_first(store: Store) -> None:
    """After a lost answer it is told again where the job is."""
    added, _ = await seed_both(store, submitted_first=False)
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    (first,) = await reserve(store, [reserve_item(added, epoch)])
    assert isinstance(first, messages.Reserved)

    async with unchanged(store):
        assert await reserve(store, [reserve_item(added, epoch)]) == [messages.Reserved(NODE, first.token, -1)]


async def test_submission_is_accepted_again_when_the_record_followed_another_entry(store: Store) -> None:
    """Its nonce is kept, and the answer names the entry that counts."""
    added, _ = await seed_both(store, submitted_first=False)
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    await reserve(store, [reserve_item(added, epoch)])

    assert await store.cell.submit([submit_item()]) == [messages.Submitted(JOB, f"{PARTITION}/{added}")]


async def test_entry_that_waits_stays_first(store: Store) -> None:
    """It finds no room, changes nothing, and is placed before what came after it."""
    added, submitted = await seed_both(store, submitted_first=False)
    epoch = await seed_owner(store)
    await seed_node(store, slots=0)
    later = await seed_job(store, "j2")
    items = [reserve_item(added, epoch), reserve_item(later, epoch, "j2"), reserve_item(submitted, epoch)]

    async with unchanged(store):
        assert placed(await reserve(store, items)) == ["full", "behind", "behind"]
    await seed_node(store, slots=9)

    assert placed(await reserve(store, items)) == [NODE, NODE, "duplicate"]


@pytest.mark.parametrize("reason", ["expired", "no_compatible_node", "cancelled"])
async def test_entry_that_is_read_first_and_refused_ends_the_job(store: Store, reason: str) -> None:
    """Under the job's own id; the other one asks nothing more."""
    added, submitted = await seed_both(store, submitted_first=False)
    epoch = await seed_owner(store)

    assert await reject(store, reject_item(added, epoch, reason)) == ["rejected"]

    record = await store.reads.record(JOB)
    assert (record["state"], record["reason"]) == ("cancelled" if reason == "cancelled" else "dead", reason)
    assert (record["entry"], record["nonce"]) == (f"{PARTITION}/{added}", f"nonce-{JOB}")
    assert placed(await reserve(store, [reserve_item(submitted, epoch)])) == ["duplicate"]
    assert await bodies(store) == ([] if reason == "cancelled" else [("dead", JOB)])


async def test_job_that_went_back_keeps_its_entry(store: Store) -> None:
    """Something of it was placed before, so a copy of its entry is none that is read first."""
    await seed_delayed(store)
    assert await promote(store) == "promoted"
    went_back = (await store.reads.record(JOB))["entry"].partition("/")[2]
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    added = await seed_entry(store)

    async with unchanged(store):
        assert await reject(store, reject_item(added, epoch)) == ["duplicate"]
    assert placed(await reserve(store, [reserve_item(added, epoch)])) == ["duplicate"]

    assert placed(await reserve(store, [reserve_item(went_back, epoch)])) == [NODE]


# ---- submitted as another job ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("submitted", "said"),
    [
        ({"session": "s2"}, {}),
        ({"tenant": "t1"}, {}),
        ({"reply_to": "r1"}, {}),
        ({"tenant": "t1"}, {"tenant": "t2"}),
        ({"session": "s2"}, {"tenant": "t1", "reply_to": "r1"}),
        ({"session": "s2", "tenant": "t1", "reply_to": "r1"}, {"tenant": "t2", "reply_to": "r2"}),
    ],
)
async def test_job_that_was_submitted_as_another_is_told_apart(
    store: Store, submitted: dict[str, str], said: dict[str, Any]
) -> None:
    """The answer says as what it was submitted, and nothing is placed."""
    epoch = await seed_owner(store)
    await seed_node(store)
    given: dict[str, Any] = {"session": SESSION} | submitted
    entry_id = await seed_job(store, JOB, **given)

    async with unchanged(store):
        (answer,) = await reserve(store, [reserve_item(entry_id, epoch, JOB, SESSION, **said)])

    told = (given["session"], submitted.get("tenant", ""), submitted.get("reply_to", ""))
    assert answer == messages.Refused("mismatch", submitted=told)


@pytest.mark.parametrize("said", [{"tenant": "t1"}, {"reply_to": "r1"}])
async def test_what_was_left_out_at_the_submission_is_as_the_document_says(store: Store, said: dict[str, Any]) -> None:
    """The record has it from then on, so that its node can end it."""
    epoch = await seed_owner(store)
    await seed_node(store)
    entry_id = await seed_job(store)

    (answer,) = await reserve(store, [reserve_item(entry_id, epoch, **said)])

    assert isinstance(answer, messages.Reserved)
    item = release_item(answer.token, "finish", tenant_id=said.get("tenant", ""), reply_to=said.get("reply_to", ""))
    assert await release(store, item) == [messages.Released("completed")]


async def test_what_was_submitted_as_another_ends_under_its_own_id(store: Store) -> None:
    """Dead, and told to who submitted it."""
    epoch = await seed_owner(store)
    entry_id = await seed_job(store, JOB, "s2", reply_to="r1")

    item = reject_item(entry_id, epoch, "invalid", JOB, "s2", reply_to="r1", detail="why")
    assert await reject(store, item) == ["rejected"]

    assert await standing(store) == ("dead", ["dead"])
    ((_, told),) = await store.reads.entries(store.cell.keys.replies("r1"))
    fields = text(told)
    assert (fields["job_id"], fields["session"], fields["reason"], fields["detail"]) == (JOB, "s2", "invalid", "why")


async def test_job_that_went_back_is_as_it_was_placed(store: Store) -> None:
    """What a plain XADD said of tenant and reply stream is in the record, and fits its document again."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    entry_id = await seed_entry(store)
    (answer,) = await reserve(store, [reserve_item(entry_id, epoch, tenant="t1", reply_to="r1")])
    assert isinstance(answer, messages.Reserved)
    await release(store, release_item(answer.token, "retry", tenant_id="t1", reply_to="r1"))
    went_back = (await store.reads.record(JOB))["entry"].partition("/")[2]

    again = await reserve(store, [reserve_item(went_back, epoch, tenant="t1", reply_to="r1")])

    assert placed(again) == [NODE]


async def test_record_without_a_session_is_no_ones_else(store: Store) -> None:
    """Somebody has taken it away: the job is invalid, not taken by another."""
    epoch = await seed_owner(store)
    entry_id = await seed_job(store)
    await seed_record(store, session="")

    (answer,) = await reserve(store, [reserve_item(entry_id, epoch)])

    assert answer == messages.Refused("mismatch", submitted=("", "", ""))
