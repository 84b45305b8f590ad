"""reserve.lua: what a placement writes, and on which node; order and identity stand in a file of their own."""

from __future__ import annotations

import msgspec
import pytest

from scheduler.config import CANDIDATES_MAX, DEFAULTS
from scheduler.protocol import messages, record_fields
from scheduler.protocol.lifecycle import State
from scheduler.protocol.snapshot import Pool, Reason
from scheduler.store.store import Store
from tests.dumps import dump, standing, stands, transitions, unchanged
from tests.lua.placements import BEHIND, FULL, placed, seed_all
from tests.seeds import (
    BOOT,
    JOB,
    LATER_BOOT,
    NODE,
    PARTITION,
    POISON_ID,
    POOL,
    SESSION,
    document,
    reserve,
    reserve_item,
    seed_closed,
    seed_entry,
    seed_job,
    seed_node,
    seed_owner,
    seed_record,
    seed_reserved,
)

ROWS = {(row.state, row.event): row for row in transitions("reserve")}
POLICY = Pool(POOL, start_ms=4_000, lease_ms=9_000, attempts_max=2, crashes_max=3, run_ms_max=70_000)


# ---- what a placement writes -------------------------------------------------------------------------------


async def test_placement_writes_slot_record_inbox_and_binding_in_one_step(store: Store) -> None:
    """Everything that a reservation is, compared as a whole."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=2)
    entry_id = await seed_job(store, tenant="t1", reply_to="r1")
    item = reserve_item(entry_id, epoch, tenant="t1", reply_to="r1", binding="default en:zh")

    (answer,) = await reserve(store, [item], pool=POLICY)

    assert isinstance(answer, messages.Reserved)
    assert answer == messages.Reserved(NODE, answer.token, 1, home=NODE)
    k, after = store.cell.keys, await dump(store)
    ((inbox_id, assignment),) = [
        (entry_id, fields) for entry_id, fields in after[k.inbox(NODE)][1]["entries"].items() if "control" not in fields
    ]
    submitted_ms = (await store.reads.record(JOB))["submitted_ms"]  # the time of the script, or of the id if earlier
    assert 0 <= int(entry_id.partition("-")[0]) - int(submitted_ms) <= 1
    lease_until_ms = str(answer.token // 1000 + POLICY.start_ms)
    shared = {
        "tenant": "t1",
        "reply_to": "r1",
        "policy": f"{POOL} 9000 2 3 70000 1000 60000 1",
        "session": SESSION,
        "decision": "new",
    }
    assert assignment == shared | {
        "job": document().decode(),
        "payload": "body",
        "job_id": JOB,
        "reservation": f"{answer.token} {BOOT} {lease_until_ms} {PARTITION}/{entry_id} 1 1 {submitted_ms} 4000",
    }
    assert after[k.job(JOB)] == (
        "hash",
        shared
        | {
            "state": "reserved",
            "entry": f"{PARTITION}/{entry_id}",
            "submitted_ms": submitted_ms,
            "nonce": f"nonce-{JOB}",
            "holder": f"{NODE} {answer.token}",
            "assignment": f"{BOOT} {inbox_id} {POLICY.start_ms}",
        },
        False,
    )
    assert after[k.slots(NODE)] == ("zset", [[JOB, float(lease_until_ms)]], False)
    assert after[k.session(SESSION)] == ("string", "default en:zh n1 -", True)
    assert after[k.jobs(PARTITION)][1]["entries"] == {}
    assert await store.reads.are_open([NODE]) == [True]


@pytest.mark.parametrize("payload", [b"", b"\x00\xff{", b"x" * 300, b"\xc3" * 2_000])
async def test_body_that_the_caller_has_is_handed_over_as_it_is(store: Store, payload: bytes) -> None:
    """The node gets the same bytes as when the body is read from the intake, and they are gone from there."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=2)
    entries = [await seed_job(store, job_id, job_id, payload=payload) for job_id in ("j1", "j2")]
    bodies = [(document("j1", "j1"), payload), None]

    answers = await reserve(
        store,
        [
            reserve_item(entry_id, epoch, job_id, job_id, body=body)
            for entry_id, job_id, body in zip(entries, ("j1", "j2"), bodies, strict=True)
        ],
    )

    assert placed(answers) == [NODE, NODE]
    inbox = [fields for _, fields in await store.reads.entries(store.cell.keys.inbox(NODE)) if b"job" in fields]
    assert [(fields[b"job"], fields[b"payload"]) for fields in inbox] == [
        (document("j1", "j1"), payload),
        (document("j2", "j2"), payload),
    ]
    assert await store.reads.entries(store.cell.keys.jobs(PARTITION)) == []


async def test_body_whose_entry_is_gone_is_not_handed_over(store: Store) -> None:
    """Somebody deleted the entry after it was read: nothing is placed, and no slot is taken."""
    epoch, entry_id = await seed_all(store)
    await store.connection.commands.xdel(store.cell.keys.jobs(PARTITION), entry_id)
    before = await store.reads.record(JOB)

    answers = await reserve(store, [reserve_item(entry_id, epoch, body=(document(), b"body"))])

    assert answers == [messages.Refused("gone")]
    assert await store.reads.record(JOB) == before
    assert await store.reads.used([NODE]) == [0]
    assert all(b"control" in fields for _, fields in await store.reads.entries(store.cell.keys.inbox(NODE)))


@pytest.mark.parametrize("state", ["none", "queued"])
async def test_transition_reserved(store: Store, state: State) -> None:
    """A job that was written by hand, and one that was submitted, moves from the intake to the inbox."""
    epoch = await seed_owner(store)
    await seed_node(store)
    entry_id = await (seed_entry(store) if state == "none" else seed_job(store))

    await reserve(store, [reserve_item(entry_id, epoch)])

    assert await standing(store) == stands(ROWS[state, "reserved"])


@pytest.mark.parametrize("state", ["none", "queued"])
async def test_transition_refused(store: Store, state: State) -> None:
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

    assert isinstance(answer, messages.Reserved)
    assert await store.reads.reservations(NODE) == [(JOB, answer.token // 1000 + POLICY.start_ms)]
    assert record_fields.parse_policy((await store.reads.record(JOB))["policy"]).lease_ms == POLICY.lease_ms


async def test_attempt_counts_every_earlier_placement_that_ended(store: Store) -> None:
    """The node is told which attempt it runs: failures, crashes and placements that were never started."""
    epoch, entry_id = await seed_all(store)
    await seed_record(store, attempts=1, crashes=2, not_started=3, life=4)

    await reserve(store, [reserve_item(entry_id, epoch)])

    entries = await store.reads.entries(store.cell.keys.inbox(NODE))
    assigned = record_fields.parse_reservation(entries[-1][1][b"reservation"].decode())
    assert (assigned.attempt, assigned.life) == (7, 4)


async def test_submission_time_of_a_raw_entry_is_never_in_the_future(store: Store) -> None:
    """A job whose entry id is the highest possible was submitted now, not in the year 584556019."""
    epoch = await seed_owner(store)
    await seed_node(store)
    await seed_entry(store, entry_id=POISON_ID)

    (answer,) = await reserve(store, [reserve_item(POISON_ID, epoch)])

    assert isinstance(answer, messages.Reserved)
    assert (await store.reads.record(JOB))["submitted_ms"] == str(answer.token // 1000)


# ---- binding -----------------------------------------------------------------------------------------------


async def test_binding_is_written_only_on_change(store: Store) -> None:
    """A session that stays on its node costs no write."""
    epoch, entry_id = await seed_all(store)

    await reserve(store, [reserve_item(entry_id, epoch, binding="default en:zh", stored_node=NODE)])

    assert await store.reads.bindings([SESSION]) == [None]


async def test_binding_follows_the_node_that_was_taken(store: Store) -> None:
    """When the bound node is full the session is bound to the one that took its job."""
    await seed_reserved(store, "other", "s9", node="n1")
    epoch = await seed_owner(store)
    await seed_node(store, "n2")
    entry_id = await seed_job(store)
    item = reserve_item(entry_id, epoch, candidates=("n1", "n2"), binding="default en:zh", stored_node="n1")

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


@pytest.mark.needs_server("fakeredis does not tell how a value is encoded")
@pytest.mark.parametrize("node", ["gpu-worker-01", "translate-7c9d5f8b6d-x2x4z-en-zh-0123456789"])
async def test_rule_23_no_field_makes_a_record_a_large_hash(store: Store, node: str) -> None:
    """A value above 64 bytes would: two thirds more memory, for each job. No node of up to 47 characters does, and no
    pool of up to 18 with numbers like those of the defaults; a decision that tells of another long name does.
    """
    epoch = await seed_owner(store)
    boot = f"{10**15}-0123abcd"
    await seed_node(store, node, boot=boot)
    entry_id = await seed_job(store)

    name, version = "translate-pool-eu1", await store.control.time_us()
    item = msgspec.structs.replace(reserve_item(entry_id, epoch, candidates=(node,)), pool=name)
    answers = await store.cell.reserve([item], {node: boot}, {name: Pool(name)}, version)

    assert placed(answers) == [node]
    assert await store.connection.commands.object("ENCODING", store.cell.keys.job(JOB)) == b"listpack"


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

    assert [(a.node, a.used, a.filled) if isinstance(a, messages.Reserved) else a for a in answers] == [
        (NODE, 1, False),
        (NODE, 2, True),
        FULL,
    ]
    assert await store.reads.used([NODE]) == [2]


async def test_a_session_that_is_bound_nowhere_is_bound_where_its_job_goes(store: Store) -> None:
    """Even if it was to keep what it has."""
    epoch, entry_id = await seed_all(store)
    item = reserve_item(entry_id, epoch, why="new", keeps="new", binding="default en:zh")

    (answer,) = await reserve(store, [item])

    assert isinstance(answer, messages.Reserved)
    assert (answer.node, answer.home) == (NODE, NODE)
    assert await store.reads.bindings([SESSION]) == [f"default en:zh {NODE} -".encode()]


async def test_the_largest_call_is_placed(store: Store) -> None:
    """As many jobs as a call may have, each with as many candidates as a pool may name and two of its own before them,
    all different: Lua passes so many values at once, and not many more.
    """
    epoch = await seed_owner(store)
    await seed_node(store, slots=DEFAULTS.batch_max)
    items = []
    for i in range(DEFAULTS.batch_max):
        others = tuple(f"n{i}-{number}" for number in range(CANDIDATES_MAX + 1))
        entry_id = await seed_job(store, f"j{i}", f"s{i}")
        item = reserve_item(entry_id, epoch, f"j{i}", f"s{i}", candidates=(*others, NODE), bound=others[0])
        items.append(msgspec.structs.replace(item, preferred=others[1]))

    assert placed(await reserve(store, items)) == [NODE] * DEFAULTS.batch_max


@pytest.mark.parametrize("reason", ["draining", "quarantined", "dead"])
async def test_node_without_slots_takes_nothing(store: Store, reason: Reason) -> None:
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


# ---- poisoned streams --------------------------------------------------------------------------------------


async def test_rule_24_poisoned_inbox_another_candidate_is_taken(store: Store) -> None:
    """A node whose inbox takes no entry is passed over as if it were full."""
    epoch = await seed_owner(store)
    await seed_node(store, "n1", slots=9)
    await seed_node(store, "n2")
    entry_id = await seed_job(store)
    await seed_closed(store, store.cell.keys.inbox("n1"))

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
        await seed_closed(store, store.cell.keys.inbox(node))
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
