"""reserve.lua: a batch of jobs is placed: order, room, slot, record, binding, hand-over."""

from __future__ import annotations

import pytest

from scheduler import model
from scheduler.store.store import Store
from tests.seeds import (
    BOOT,
    FAR_US,
    JOB,
    LATER_BOOT,
    NODE,
    OWNER,
    PARTITION,
    POISON_ID,
    POOL,
    SESSION,
    bodies,
    document,
    dump,
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
    seed_poison,
    seed_record,
    seed_reserved,
    standing,
    stands,
    transitions,
    unchanged,
)

ROWS = {(row.state, row.event): row for row in transitions("reserve")}
FULL, BEHIND, FENCED = model.Refused("full"), model.Refused("behind"), model.Refused("fenced")
GONE, DUPLICATE, TAKEN = model.Refused("gone"), model.Refused("duplicate"), model.Refused("job_id_taken")
POLICY = model.Pool(POOL, start_ms=4_000, lease_ms=9_000, attempts_max=2, crashes_max=3, run_ms_max=70_000)


async def seed_all(store: Store, slots: int = 1) -> tuple[int, str]:
    """An owned partition, a node and a submitted job; returns epoch and entry id."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=slots)
    return epoch, await seed_job(store)


def placed(answers: list[model.Reserved | model.Refused]) -> list[str]:
    """Each answer as a word, or as the node it was placed on."""
    return [answer.node if isinstance(answer, model.Reserved) else answer.why for answer in answers]


def tokens(answers: list[model.Reserved | model.Refused]) -> list[int]:
    """The tokens given, in the order of the call."""
    return [answer.token for answer in answers if isinstance(answer, model.Reserved)]


# ---- what a placement writes -------------------------------------------------------------------------------


async def test_placement_writes_slot_record_inbox_and_binding_in_one_step(store: Store) -> None:
    """Everything that a reservation is, compared as a whole."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=2)
    entry_id = await seed_job(store, tenant="t1", reply_to="r1")
    item = reserve_item(entry_id, epoch, tenant="t1", reply_to="r1", binding="default en:zh")

    (answer,) = await reserve(store, [item], pool=POLICY)

    assert isinstance(answer, model.Reserved)
    assert answer == model.Reserved(NODE, answer.token, 1)
    k, after = store.cell.keys, await dump(store)
    ((inbox_id, assignment),) = [
        (entry_id, fields) for entry_id, fields in after[k.inbox(NODE)][1]["entries"].items() if "control" not in fields
    ]
    lease_until_ms = str(answer.token // 1000 + POLICY.start_ms)
    shared = {
        "tenant": "t1",
        "partition": str(PARTITION),
        "reply_to": "r1",
        "entry": f"{PARTITION}/{entry_id}",
        "token": str(answer.token),
        "boot": BOOT,
        "lease_until_ms": lease_until_ms,
        "lease_ms": "9000",
        "submitted_ms": entry_id.partition("-")[0],
        "pool": POOL,
        "session": SESSION,
    }
    assert assignment == shared | {
        "job": document().decode(),
        "payload": "body",
        "job_id": JOB,
        "attempt": "1",
        "life": "1",
    }
    assert after[k.job(JOB)] == (
        "hash",
        shared
        | {
            "state": "reserved",
            "nonce": f"nonce-{JOB}",
            "node": NODE,
            "inbox_id": inbox_id,
            "variant": "-",
            "snapshot_version": "1",
            "attempts_max": "2",
            "crashes_max": "3",
            "run_ms_max": "70000",
        },
        False,
    )
    assert after[k.slots(NODE)] == ("zset", [[JOB, float(lease_until_ms)]], False)
    assert after[k.session(SESSION)] == ("string", "default en:zh n1 -", True)
    assert after[k.jobs(PARTITION)][1]["entries"] == {}
    assert await store.reads.are_open([NODE]) == [True]


@pytest.mark.parametrize("state", ["none", "queued"])
async def test_transition_reserved(store: Store, state: model.State) -> None:
    """A job that was written by hand, and one that was submitted, moves from the intake to the inbox."""
    epoch = await seed_owner(store)
    await seed_node(store)
    entry_id = await (seed_entry(store) if state == "none" else seed_job(store))

    await reserve(store, [reserve_item(entry_id, epoch)])

    assert await standing(store) == stands(ROWS[state, "reserved"])


@pytest.mark.parametrize("state", ["none", "queued"])
async def test_transition_refused(store: Store, state: model.State) -> None:
    """A job that finds no room stays what it was, where it was."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=0)
    entry_id = await (seed_entry(store) if state == "none" else seed_job(store))

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [FULL]

    assert await standing(store) == stands(ROWS[state, "refused"])


async def test_rule_12_first_lease_is_start_ms(store: Store) -> None:
    """A placed job has the short lease for its start; the record remembers the full one."""
    epoch, entry_id = await seed_all(store)

    (answer,) = await reserve(store, [reserve_item(entry_id, epoch)], pool=POLICY)

    assert isinstance(answer, model.Reserved)
    assert await store.reads.reservations(NODE) == [(JOB, answer.token // 1000 + POLICY.start_ms)]
    assert (await store.reads.record(JOB))["lease_ms"] == str(POLICY.lease_ms)


async def test_attempt_counts_every_earlier_placement_that_ended(store: Store) -> None:
    """The node is told which attempt it runs: failures, crashes and placements that were never started."""
    epoch, entry_id = await seed_all(store)
    await seed_record(store, attempts=1, crashes=2, not_started=3, life=4)

    await reserve(store, [reserve_item(entry_id, epoch)])

    entries = await store.reads.entries(store.cell.keys.inbox(NODE))
    assert (entries[-1][1][b"attempt"], entries[-1][1][b"life"]) == (b"7", b"4")


async def test_submission_time_of_a_raw_entry_is_never_in_the_future(store: Store) -> None:
    """A job whose entry id is the highest possible was submitted now, not in the year 584556019."""
    epoch = await seed_owner(store)
    await seed_node(store)
    await seed_entry(store, entry_id=POISON_ID)

    (answer,) = await reserve(store, [reserve_item(POISON_ID, epoch)])

    assert isinstance(answer, model.Reserved)
    assert (await store.reads.record(JOB))["submitted_ms"] == str(answer.token // 1000)


# ---- binding -----------------------------------------------------------------------------------------------


async def test_binding_is_written_only_on_change(store: Store) -> None:
    """A session that stays on its node costs no write."""
    epoch, entry_id = await seed_all(store)

    await reserve(store, [reserve_item(entry_id, epoch, binding="default en:zh", bound_node=NODE)])

    assert await store.reads.bindings([SESSION]) == [None]


async def test_binding_follows_the_node_that_was_taken(store: Store) -> None:
    """When the bound node is full the session is bound to the one that took its job."""
    await seed_reserved(store, "other", "s9", node="n1")
    epoch = await seed_owner(store)
    await seed_node(store, "n2")
    entry_id = await seed_job(store)
    item = reserve_item(entry_id, epoch, candidates=("n1", "n2"), binding="default en:zh", bound_node="n1")

    await reserve(store, [item])

    assert await store.reads.bindings([SESSION]) == [b"default en:zh n2 -"]


async def test_empty_binding_leaves_the_stored_one_alone(store: Store) -> None:
    """A job without languages does not unbind its session."""
    epoch, entry_id = await seed_all(store)
    await store.connection.commands.set(store.cell.keys.session(SESSION), "default en:zh n7 -")

    await reserve(store, [reserve_item(entry_id, epoch)])

    assert await store.reads.bindings([SESSION]) == [b"default en:zh n7 -"]


# ---- room --------------------------------------------------------------------------------------------------


async def test_first_choice_takes_the_first_candidate_with_room(store: Store) -> None:
    """By affinity the best candidate that is not full is taken, however free the others are."""
    await seed_reserved(store, "other", "s9", node="n1")
    epoch = await seed_owner(store)
    await seed_node(store, "n2", slots=1)
    await seed_node(store, "n3", slots=9)
    entry_id = await seed_job(store)

    answers = await reserve(store, [reserve_item(entry_id, epoch, candidates=("n1", "n2", "n3"))])

    assert placed(answers) == ["n2"]


async def test_freest_choice_takes_the_one_least_used_afterwards(store: Store) -> None:
    """Load is used slots over slots with this job counted, by slots really held; the first of equals wins."""
    epoch = await seed_owner(store)
    await seed_node(store, "n1", slots=2)
    await seed_node(store, "n2", slots=4)
    entries = [await seed_job(store, f"j{i}", f"s{i}") for i in range(4)]

    answers = await reserve(
        store,
        [
            reserve_item(entry_id, epoch, f"j{i}", f"s{i}", candidates=("n1", "n2"), choice="freest")
            for i, entry_id in enumerate(entries)
        ],
    )

    assert placed(answers) == ["n2", "n1", "n2", "n2"]


async def test_batch_never_exceeds_the_capacity(store: Store) -> None:
    """Within one call the slots taken so far count: the third job of two slots is refused."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=2)
    entries = [await seed_job(store, f"j{i}", f"s{i}") for i in range(3)]

    answers = await reserve(
        store, [reserve_item(entry_id, epoch, f"j{i}", f"s{i}") for i, entry_id in enumerate(entries)]
    )

    assert [(a.node, a.used) if isinstance(a, model.Reserved) else a for a in answers] == [
        (NODE, 1),
        (NODE, 2),
        FULL,
    ]
    assert await store.reads.used([NODE]) == [2]


@pytest.mark.parametrize("reason", ["draining", "quarantined", "dead"])
async def test_node_without_slots_takes_nothing(store: Store, reason: model.Reason) -> None:
    """A drain that came after the snapshot holds at once."""
    epoch, entry_id = await seed_all(store)
    await seed_node(store, slots=0, reason=reason)

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [FULL]


async def test_unknown_node_has_no_room(store: Store) -> None:
    """A node that left after the snapshot takes nothing."""
    epoch = await seed_owner(store)
    entry_id = await seed_job(store)

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [FULL]


@pytest.mark.parametrize(("stored", "asked"), [(BOOT, LATER_BOOT), (LATER_BOOT, BOOT)])
async def test_rule_10_another_boot_means_no_room(store: Store, stored: str, asked: str) -> None:
    """A candidate that rebooted since the snapshot, or a snapshot ahead of the cell, places nothing."""
    epoch = await seed_owner(store)
    await seed_node(store, boot=stored)
    entry_id = await seed_job(store)

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)], {NODE: asked}) == [FULL]


async def test_job_without_candidates_is_full(store: Store) -> None:
    """No candidate is no room, and nothing is written."""
    epoch, entry_id = await seed_all(store)

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch, candidates=())]) == [FULL]


async def test_rule_21_open_changes_only_when_a_node_gets_full(store: Store) -> None:
    """With room left the node stays open; the job that takes the last slot closes it; nobody is woken."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=2)
    freed = (await dump(store))[store.cell.keys.freed]
    first, second = await seed_job(store, "j1", "s1"), await seed_job(store, "j2", "s2")

    await reserve(store, [reserve_item(first, epoch, "j1", "s1")])
    open_after_first = await store.reads.are_open([NODE])
    await reserve(store, [reserve_item(second, epoch, "j2", "s2")])
    open_after_second = await store.reads.are_open([NODE])

    assert (open_after_first, open_after_second) == ([True], [False])
    assert (await dump(store))[store.cell.keys.freed] == freed


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


@pytest.mark.parametrize("why", ["gone", "duplicate", "job_id_taken", "cancelling"])
async def test_rule_18_job_that_needs_no_place_blocks_nobody(store: Store, why: str) -> None:
    """After an entry that has nothing to place, the next job of the session is placed."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    first = await seed_job(store, "j1", "s1")
    if why == "gone":
        await store.connection.commands.xdel(store.cell.keys.jobs(PARTITION), first)
    elif why == "duplicate":
        first = await seed_entry(store, "j1", "s1")
    elif why == "job_id_taken":
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
    assert isinstance(first, model.Reserved)

    async with unchanged(store):
        again = await reserve(store, [reserve_item(entry_id, epoch)])

    assert again == [model.Reserved(first.node, first.token, -1)]


async def test_rule_3_same_entry_same_answer_after_the_end(store: Store) -> None:
    """A repeat so late that the job has ended is still answered the same and changes nothing."""
    epoch, entry_id = await seed_all(store)
    (token,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))
    await release(store, release_item(token, "finish"))

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [model.Reserved(NODE, token, -1)]


async def test_rule_3_same_entry_while_the_job_is_delayed(store: Store) -> None:
    """A repeat that comes after the job failed and was parked changes nothing."""
    token = await seed_delayed(store, due=False)
    epoch = await seed_owner(store)
    entry_id = (await store.reads.record(JOB))["entry"].partition("/")[2]

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [model.Reserved(NODE, token, -1)]


async def test_rule_28_repeat_after_the_job_went_back_is_a_duplicate(store: Store) -> None:
    """The entry from before a retry asks nothing more of the caller, and the new entry is not touched."""
    epoch, entry_id = await seed_all(store)
    (token,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))
    await release(store, release_item(token, "retry"))

    async with unchanged(store):
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [DUPLICATE]


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
        assert await reserve(store, [reserve_item(entry_id, epoch)]) == [model.Refused("cancelling")]


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
    await seed_record(store, token=FAR_US)

    (token,) = tokens(await reserve(store, [reserve_item(entry_id, epoch)]))

    assert token == FAR_US + 1
    assert (await store.reads.record(JOB))["token"] == str(FAR_US + 1)


async def test_rule_7_order_of_a_call_holds_beside_a_token_of_the_future(store: Store) -> None:
    """Jobs after one with a token ahead of the clock have larger tokens still."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    entries = [await seed_job(store, f"j{i}", "s1") for i in range(3)]
    await seed_record(store, "j1", token=FAR_US)

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


# ---- poisoned streams --------------------------------------------------------------------------------------


async def test_rule_24_poisoned_inbox_another_candidate_is_taken(store: Store) -> None:
    """A node whose inbox takes no entry is passed over as if it were full."""
    epoch = await seed_owner(store)
    await seed_node(store, "n1", slots=9)
    await seed_node(store, "n2")
    entry_id = await seed_job(store)
    await seed_poison(store, store.cell.keys.inbox("n1"))

    answers = await reserve(store, [reserve_item(entry_id, epoch, candidates=("n1", "n2"))])

    assert placed(answers) == ["n2"]
    assert await store.reads.used(["n1", "n2"]) == [0, 1]
    assert await standing(store) == ("reserved", ["inbox"])


@pytest.mark.parametrize("choice", ["first", "freest"])
async def test_rule_24_poisoned_inboxes_only_is_full_and_nothing_is_written(store: Store, choice: str) -> None:
    """Without any inbox that takes the body the job waits, and the session's next one is behind."""
    epoch = await seed_owner(store)
    for node in ("n1", "n2"):
        await seed_node(store, node)
        await seed_poison(store, store.cell.keys.inbox(node))
    entries = [await seed_job(store, f"j{i}", SESSION) for i in range(2)]

    async with unchanged(store):
        answers = await reserve(
            store,
            [
                reserve_item(entry_id, epoch, f"j{i}", SESSION, candidates=("n1", "n2"), choice=choice)
                for i, entry_id in enumerate(entries)
            ],
        )

    assert answers == [FULL, BEHIND]


async def test_rule_24_poisoned_intake_is_placed_all_the_same(store: Store) -> None:
    """The entry with the highest id is a job like any other."""
    epoch = await seed_owner(store)
    await seed_node(store)
    await seed_entry(store, entry_id=POISON_ID)

    assert placed(await reserve(store, [reserve_item(POISON_ID, epoch)])) == [NODE]

    assert await standing(store) == ("reserved", ["inbox"])
