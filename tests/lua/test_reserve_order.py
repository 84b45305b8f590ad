"""reserve.lua: order of a session, fencing, and the same entry twice."""

from __future__ import annotations

import pytest

from scheduler.protocol import messages
from scheduler.store.store import Store
from tests.dumps import bodies, dump, standing, stands, transitions, unchanged
from tests.lua.placements import BEHIND, FENCED, placed, seed_all, tokens
from tests.seeds import (
    FAR_US,
    JOB,
    NODE,
    OWNER,
    PARTITION,
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
    seed_reserved,
)

ROWS = {(row.state, row.event): row for row in transitions("reserve")}
GONE, DUPLICATE, TAKEN = messages.Refused("gone"), messages.Refused("duplicate"), messages.Refused("job_id_taken")


# ---- order -------------------------------------------------------------------------------------------------


async def test_rule_18_after_one_is_not_placed_the_later_ones_are_behind(store: Store) -> None:
    """A session's second job does not pass its first, though it has room; another session's does."""
    await seed_reserved(store, "other", "s9", node="n1")
    epoch = await seed_owner(store)
    await seed_node(store, "n2", slots=9)
    first, second, third = [await seed_job(store, f"j{i}", f"s{i // 2}") for i in range(3)]

    answers = await reserve(
        store,
        [
            reserve_item(first, epoch, "j0", "s0", candidates=("n1",)),
            reserve_item(second, epoch, "j1", "s0", candidates=("n2",)),
            reserve_item(third, epoch, "j2", "s1", candidates=("n2",)),
        ],
    )

    assert placed(answers) == ["full", "behind", "n2"]
    assert await standing(store, "j1") == stands(ROWS["queued", "refused"])


async def test_rule_18_job_behind_a_fenced_one_waits(store: Store) -> None:
    """A session whose first job lies in a lost partition does not go on from another one."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    first = await seed_job(store, "j1", "s1", partition=2)
    second = await seed_job(store, "j2", "s1")

    async with unchanged(store):
        answers = await reserve(
            store,
            [reserve_item(first, epoch, "j1", "s1", partition=2), reserve_item(second, epoch, "j2", "s1")],
        )

    assert answers == [FENCED, BEHIND]


@pytest.mark.parametrize("why", ["gone", "duplicate", "job_id_taken", "mismatch", "cancelling"])
async def test_rule_18_job_that_needs_no_place_blocks_nobody(store: Store, why: str) -> None:
    """After an entry that has nothing to place, the next job of the session is placed."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    first = await seed_job(store, "j1", "s1")
    if why == "gone":
        await store.connection.commands.xdel(store.cell.keys.jobs(PARTITION), first)
    elif why == "duplicate":
        await reserve(store, [reserve_item(first, epoch, "j1", "s1")])
        first = await seed_entry(store, "j1", "s1")
    elif why == "job_id_taken":
        await seed_record(store, "j1", session="s9", entry="1/5-5")
    elif why == "mismatch":
        await seed_record(store, "j1", session="s9")
    else:
        await seed_record(store, "j1", cancel=1)
    second = await seed_job(store, "j2", "s1")

    answers = await reserve(store, [reserve_item(first, epoch, "j1", "s1"), reserve_item(second, epoch, "j2", "s1")])

    assert placed(answers) == [why, NODE]


async def test_rule_18_tokens_rise_in_the_order_given(store: Store) -> None:
    """Order is judged by token, so it rises inside a call too."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=20)
    entries = [await seed_job(store, f"j{i}", f"s{i % 3}") for i in range(20)]

    answers = await reserve(
        store, [reserve_item(entry_id, epoch, f"j{i}", f"s{i % 3}") for i, entry_id in enumerate(entries)]
    )

    given = tokens(answers)
    assert len(given) == 20
    assert given == sorted(set(given))


# ---- fencing and identity ----------------------------------------------------------------------------------


async def test_rule_5_epochs_are_answered_job_by_job(store: Store) -> None:
    """In one batch the job of a held partition is placed and that of a lost one is refused."""
    epoch = await seed_owner(store)
    await seed_owner(store, 2, "d2+1")
    await seed_node(store, slots=9)
    lost = await seed_job(store, "j1", "s1", partition=2)
    held = await seed_job(store, "j2", "s2")

    answers = await reserve(
        store, [reserve_item(lost, epoch, "j1", "s1", partition=2), reserve_item(held, epoch, "j2", "s2")]
    )

    assert placed(answers) == ["fenced", NODE]


@pytest.mark.parametrize("shift", [-1, 1])
async def test_another_epoch_is_fenced_and_changes_nothing(store: Store, shift: int) -> None:
    """An owner from before, and one that never was, places nothing."""
    epoch, entry_id = await seed_all(store)

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch + shift)]) == [FENCED]


async def test_partition_that_nobody_ever_owned_is_fenced(store: Store) -> None:
    """Without a claim there is no placement."""
    await seed_node(store)
    entry_id = await seed_job(store)

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, 0)]) == [FENCED]


async def test_rule_28_lapsed_owner_that_nobody_replaced_still_places(store: Store) -> None:
    """Without the control plane an owner keeps what it holds: the epoch decides, not the clock."""
    epoch, entry_id = await seed_all(store)
    await store.connection.commands.hset(store.cell.keys.owners, str(PARTITION), f"{epoch} {OWNER} 1")

    assert placed(await reserve(store, [reserve_item(entry_id, epoch)])) == [NODE]


@pytest.mark.parametrize("raw", [True, False])
async def test_rule_2_entry_that_is_gone_is_not_placed(store: Store, raw: bool) -> None:
    """Without the entry nothing is written, whether a record waits for it or not."""
    epoch = await seed_owner(store)
    await seed_node(store)
    entry_id = await (seed_entry(store) if raw else seed_job(store))
    await store.connection.commands.xdel(store.cell.keys.jobs(PARTITION), entry_id)

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [GONE]


async def test_rule_2_repeat_after_the_retention_does_not_run_the_job_again(store: Store) -> None:
    """An owner that stalls past the retention and repeats its call finds neither entry nor record."""
    epoch, entry_id = await seed_all(store)
    (token,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))
    await release(store, release_item(token, "finish"))
    await store.connection.commands.delete(store.cell.keys.job(JOB))

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [GONE]


async def test_rule_3_same_entry_same_answer(store: Store) -> None:
    """The same call after a lost reply is answered with the stored node and token and changes nothing."""
    epoch, entry_id = await seed_all(store)
    (first,) = await reserve(store, [reserve_item(entry_id, epoch)])
    assert isinstance(first, messages.Reserved)

    async with unchanged(store):
        again = await reserve(store, [reserve_item(entry_id, epoch)])

    assert again == [messages.Reserved(first.node, first.token, -1)]


async def test_rule_3_same_entry_same_answer_after_the_end(store: Store) -> None:
    """A repeat so late that the job has ended is still answered the same and changes nothing."""
    epoch, entry_id = await seed_all(store)
    (token,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))
    await release(store, release_item(token, "finish"))

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [messages.Reserved(NODE, token, -1)]


async def test_holder_that_is_no_text_keeps_no_other_job_from_its_answer(store: Store) -> None:
    """Somebody wrote bytes into a record; a repeat of its entry shares its call with another job."""
    epoch, entry_id = await seed_all(store, slots=2)
    await reserve(store, [reserve_item(entry_id, epoch)])
    await store.connection.commands.hset(store.cell.keys.job(JOB), "holder", b"\xff 7")
    other = await seed_job(store, "j2", "s2")

    answers = await reserve(store, [reserve_item(entry_id, epoch), reserve_item(other, epoch, "j2", "s2")])

    assert placed(answers) == ["\ufffd", NODE]


async def test_junk_for_a_holder_keeps_no_other_job_from_its_answer(store: Store) -> None:
    """The record of a placed job was overwritten by hand: a repeat of its entry asks nothing more of the caller."""
    epoch, entry_id = await seed_all(store, slots=2)
    await reserve(store, [reserve_item(entry_id, epoch)])
    await seed_record(store, holder="junk")
    other = await seed_job(store, "j2", "s2")

    answers = await reserve(store, [reserve_item(entry_id, epoch), reserve_item(other, epoch, "j2", "s2")])

    assert placed(answers) == ["gone", NODE]


async def test_rule_3_same_entry_while_the_job_is_delayed(store: Store) -> None:
    """A repeat that comes after the job failed and was parked changes nothing."""
    token = await seed_delayed(store, due=False)
    epoch = await seed_owner(store)
    entry_id = (await store.reads.record(JOB))["entry"].partition("/")[2]

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [messages.Reserved(NODE, token, -1)]


async def test_rule_28_repeat_after_the_job_went_back_is_a_duplicate(store: Store) -> None:
    """The entry from before a retry asks nothing more of the caller, and the new entry is not touched."""
    epoch, entry_id = await seed_all(store)
    (token,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))
    await release(store, release_item(token, "retry"))

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [DUPLICATE]


@pytest.mark.parametrize("reason", ["expired", "cancelled"])
async def test_entry_of_a_job_that_went_back_and_was_rejected_is_gone(store: Store, reason: str) -> None:
    """Its record still says who held it before; a late repeat for the entry is not told that it was placed there."""
    epoch, entry_id = await seed_all(store)
    (token,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))
    await release(store, release_item(token, "retry"))
    went_back = (await store.reads.record(JOB))["entry"].partition("/")[2]
    assert await reject(store, reject_item(went_back, epoch, reason)) == ["rejected"]

    async with unchanged(store):
        assert await reserve(store, [reserve_item(went_back, epoch)]) == [GONE]


async def test_rule_28_repeat_of_a_whole_batch_changes_nothing(store: Store) -> None:
    """Placed, refused and waiting jobs of one call are answered again without any write."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=1)
    entries = [await seed_job(store, f"j{i}", f"s{i // 2}") for i in range(4)]
    items = [reserve_item(entry_id, epoch, f"j{i}", f"s{i // 2}") for i, entry_id in enumerate(entries)]
    first = await reserve(store, items)

    async with unchanged(store):
        again = await reserve(store, items)

    assert placed(first) == placed(again) == [NODE, "full", "full", "behind"]


async def test_rule_3_equal_entry_ids_of_two_partitions_are_two_entries(store: Store) -> None:
    """The same job id with the same entry id in another partition is a duplicate, not a repeat."""
    epoch = await seed_owner(store)
    await seed_owner(store, 2)
    await seed_node(store, slots=9)
    await seed_entry(store, entry_id="5-5")
    await seed_entry(store, partition=2, entry_id="5-5")

    answers = await reserve(
        store, [reserve_item("5-5", epoch), reserve_item("5-5", await seed_owner(store, 2), partition=2)]
    )

    assert placed(answers) == [NODE, "duplicate"]
    assert await bodies(store) == [("inbox", JOB)]


@pytest.mark.parametrize("ended", [False, True])
async def test_another_entry_of_the_job_is_a_duplicate_and_deleted(store: Store, ended: bool) -> None:
    """A job id that comes again from its session within the retention does not run again; its entry goes."""
    token = await seed_reserved(store, slots=9)
    if ended:
        await release(store, release_item(token, "finish"))
    epoch = await seed_owner(store)
    before = await dump(store)
    entry_id = await seed_entry(store)

    assert await reserve(store, [reserve_item(entry_id, epoch)]) == [DUPLICATE]

    after = await dump(store)
    jobs = store.cell.keys.jobs(PARTITION)
    assert {**after, jobs: after[jobs][1]["entries"]} == {**before, jobs: {}}


async def test_duplicate_within_one_batch_is_deleted(store: Store) -> None:
    """The second entry of a job in the same call finds the record of the first."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    entries = [await seed_entry(store), await seed_entry(store)]

    answers = await reserve(store, [reserve_item(entry_id, epoch) for entry_id in entries])

    assert placed(answers) == [NODE, "duplicate"]
    assert await bodies(store) == [("inbox", JOB)]


async def test_rule_8_id_of_another_session_is_taken_and_leaves_the_first_alone(store: Store) -> None:
    """The entry stays for the owner to reject; the first session's job is not touched."""
    await seed_reserved(store, slots=9)
    epoch = await seed_owner(store)
    entry_id = await seed_entry(store, JOB, "s2")

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch, JOB, "s2")]) == [TAKEN]


async def test_rule_8_taken_id_is_rejected_under_the_generated_one(store: Store) -> None:
    """The answer `job_id_taken` leads to a dead job of its own, and the first one runs on."""
    await seed_reserved(store, slots=9)
    epoch = await seed_owner(store)
    entry_id = await seed_entry(store, JOB, "s2")
    generated = f"~0-{PARTITION}-{entry_id}"

    assert await reject(store, reject_item(entry_id, epoch, "job_id_taken", generated, "s2")) == ["rejected"]

    assert await standing(store) == ("reserved", ["inbox"])
    assert await standing(store, generated) == ("dead", ["dead"])


@pytest.mark.parametrize("raw", [True, False])
async def test_rule_25_requested_cancel_is_for_the_owner_to_reject(store: Store, raw: bool) -> None:
    """A job that somebody cancelled before it was read is not placed, and stays until it is rejected."""
    epoch = await seed_owner(store)
    await seed_node(store)
    entry_id = await (seed_entry(store) if raw else seed_job(store))
    await seed_record(store, cancel=1)

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [messages.Refused("cancelling")]


# ---- fencing numbers ---------------------------------------------------------------------------------------


async def test_rule_7_token_is_the_servers_clock(store: Store) -> None:
    """A first token is the microsecond of its call."""
    epoch, entry_id = await seed_all(store)
    before_us = await store.control.time_us()

    (token,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))

    assert before_us <= token <= await store.control.time_us()


async def test_rule_7_clock_that_went_back_still_raises_the_token(store: Store) -> None:
    """With a stored token ahead of the clock the next one is larger by one, with all digits."""
    epoch, entry_id = await seed_all(store)
    await seed_record(store, holder=f"{NODE} {FAR_US}")

    (token,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))

    assert token == FAR_US + 1
    assert (await store.reads.record(JOB))["token"] == str(FAR_US + 1)


async def test_rule_7_order_of_a_call_holds_beside_a_token_of_the_future(store: Store) -> None:
    """Jobs after one with a token ahead of the clock have larger tokens still."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    entries = [await seed_job(store, f"j{i}", "s1") for i in range(3)]
    await seed_record(store, "j1", holder=f"{NODE} {FAR_US}")

    answers = await reserve(store, [reserve_item(entry_id, epoch, f"j{i}", "s1") for i, entry_id in enumerate(entries)])

    assert tokens(answers)[1:] == [FAR_US + 1, FAR_US + 2]


async def test_rule_7_token_rises_from_attempt_to_attempt(store: Store) -> None:
    """Each reservation of a job has a larger token than the one before."""
    first = await seed_delayed(store)
    await promote(store)
    epoch = await seed_owner(store)
    entry_id = (await store.reads.record(JOB))["entry"].partition("/")[2]

    (second,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))

    assert second > first
