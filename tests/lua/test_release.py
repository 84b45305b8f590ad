"""release.lua: the end of a reservation; endings that may not be stand in a file of their own."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.protocol import messages
from scheduler.protocol.lifecycle import State, Transition, Verdict
from scheduler.protocol.snapshot import Pool
from scheduler.store.store import Store
from tests.dumps import bodies, dump, standing, stands, transitions, unchanged
from tests.lua.endings import BUSY, GOING_BACK, STALE, UNKNOWN, VERDICTS, ending, only, seed, text
from tests.seeds import (
    DEAD_RETENTION_MS,
    JOB,
    LATER_BOOT,
    NODE,
    PARTITION,
    POISON_ID,
    POOL,
    RETENTION_MS,
    SESSION,
    document,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_entry,
    seed_held,
    seed_job,
    seed_lapsed,
    seed_node,
    seed_owner,
    seed_record,
    seed_reserved,
)

# Every row that release performs: the endings that lead to it, each with what is prepared before.
Ending = tuple[Verdict, dict[str, Any], str]
ENDINGS: dict[str, list[Ending]] = {
    "completed": [("finish", {}, ""), ("finish", {}, "cancelled"), ("finish", {}, "body_lost")],
    "failed": [("finish", {"state": "failed"}, "")],
    "requeued": [(verdict, {}, "") for verdict in GOING_BACK],
    "parked": [("retry", {"delay_ms": 1_000}, ""), *((verdict, {}, "poisoned") for verdict in GOING_BACK)],
    "given_up": [
        ("dead", {"reason": "poison"}, ""),
        *((verdict, {}, "used_up") for verdict in GOING_BACK[:3]),
    ],
    "body_lost": [(verdict, {}, "body_lost") for verdict in (*GOING_BACK, "dead")],
    "cancelled": [(verdict, {}, "cancelled") for verdict in (*GOING_BACK, "dead")],
}
CASES = [
    pytest.param(row, *ending, id=f"{row.event}-{ending[0]}{'-' * bool(ending[2])}{ending[2]}")
    for row in transitions("release")
    for ending in ENDINGS[row.event]
]


# ---- the transition table ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "verdict", "rest", "prepared"), CASES)
async def test_transition(store: Store, row: Transition, verdict: Verdict, rest: dict[str, Any], prepared: str) -> None:
    """Each row of the transition table that release performs, by every verdict that leads to it."""
    token = await seed(store, prepared)
    assert (await standing(store))[0] == row.state

    assert await only(store, ending(token, verdict, **rest)) == messages.Released(row.next_state)

    assert await standing(store) == stands(row)
    assert await store.reads.used([NODE]) == [0]


@pytest.mark.parametrize(("row", "verdict", "rest", "prepared"), CASES)
async def test_rule_28_repeat_gives_the_same_answer_and_changes_nothing(
    store: Store, row: Transition, verdict: Verdict, rest: dict[str, Any], prepared: str
) -> None:
    """The same call after a lost reply is answered the same, whatever the ending was."""
    token = await seed(store, prepared)
    await release(store, ending(token, verdict, **rest))

    async with unchanged(store):
        assert await only(store, ending(token, verdict, **rest)) == messages.Released(row.next_state)


@pytest.mark.parametrize("late", VERDICTS)
@pytest.mark.parametrize("first", VERDICTS)
async def test_rule_28_only_token_and_verdict_of_the_last_ending_are_a_repeat(
    store: Store, first: Verdict, late: Verdict
) -> None:
    """After one ending every other verdict with that token is stale, a late finish after an expiry too."""
    token = await seed(store)
    answer = await only(store, ending(token, first))

    async with unchanged(store):
        again = await only(store, ending(token, late))

    assert again == (answer if late == first else STALE)


# ---- what an ending writes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["completed", "failed"])
async def test_rule_23_terminal_record_is_small_and_the_result_has_its_own_key(store: Store, state: Any) -> None:
    """Record, result with the same expiry, both feeds, the slot and the wake: an ending as a whole."""
    token = await seed(store, reply_to="r1", tenant="t1")
    before = await store.reads.record(JOB)
    freed_before = await store.reads.length(store.cell.keys.freed)
    item = ending(
        token,
        "finish",
        state=state,
        reason="why",
        detail="how",
        result=b"\x00out",
        content_type="text/plain",
        reply_to="r1",
        tenant_id="t1",
    )

    assert await only(store, item) == messages.Released(state)

    k = store.cell.keys
    record = await store.reads.record(JOB)
    shared = {
        "state": state,
        "session": SESSION,
        "entry": before["entry"],
        "node": NODE,
        "token": str(token),
        "reason": "why",
        "submitted_ms": before["submitted_ms"],
        "ended_ms": record["ended_ms"],
        "content_type": "text/plain",
    }
    assert record == shared | {
        "holder": before["holder"],
        "last_ending": f"{token} finish",
        "last_token": str(token),
        "last_verdict": "finish",
        "nonce": before["nonce"],
        "decision": "new",
    }
    assert await store.reads.result(JOB) == b"\x00out"
    for key in (k.job(JOB), k.result(JOB)):
        assert RETENTION_MS - 5_000 < await store.connection.commands.pttl(key) <= RETENTION_MS
    ((_, outcome),) = await store.reads.entries(k.results)
    assert text(outcome) == shared | {"job_id": JOB, "detail": "how", "result": "\x00out"}
    assert [fields for _, fields in await store.reads.entries(k.replies("r1"))] == [outcome]
    assert [fields for _, fields in await store.reads.entries(k.freed)][freed_before:] == [{b"nodes": b"n1"}]
    assert await store.reads.are_open([NODE]) == [True]


@pytest.mark.parametrize("above", [0, 1])
async def test_long_result_is_not_copied_into_the_feed(store: Store, above: int) -> None:
    """A result above the limit is told without its bytes; who wants it reads its key."""
    token = await seed(store)
    result = b"x" * (store.settings.result_inline_bytes_max + above)

    await release(store, ending(token, "finish", result=result))

    ((_, outcome),) = await store.reads.entries(store.cell.keys.results)
    assert outcome.get(b"result") == (None if above else result)
    assert await store.reads.result(JOB) == result


async def test_dead_job_has_no_result(store: Store) -> None:
    """What its last attempt returned, or why it failed, is no result of the job."""
    token = await seed(store)

    await release(store, ending(token, "dead", result=b"half", content_type="text/plain"))

    ((_, outcome),) = await store.reads.entries(store.cell.keys.results)
    assert {b"result", b"content_type"} & set(outcome) == set()
    assert "content_type" not in await store.reads.record(JOB)
    assert await store.reads.result(JOB) is None


@pytest.mark.parametrize(("content_type", "is_kept"), [("", False), ("text/plain; charset=utf-8", True)])
async def test_what_returned_nothing_leaves_no_result(store: Store, content_type: str, is_kept: bool) -> None:
    """A key a job less. An empty text is a result all the same."""
    token = await seed(store)
    await release(store, ending(token, "finish", content_type=content_type, result=b""))

    ((_, outcome),) = await store.reads.entries(store.cell.keys.results)
    assert (b"result" in outcome) == is_kept
    assert await store.reads.result(JOB) == (b"" if is_kept else None)


@pytest.mark.parametrize("verdict", VERDICTS)
async def test_record_without_an_assignment_keeps_no_other_from_ending(store: Store, verdict: Verdict) -> None:
    """No script has written it; it is no reservation, and nothing of it changes."""
    first, second = await seed_reserved(store, "j1", "s1", slots=3), await seed_reserved(store, "j2", "s2", slots=3)
    await store.connection.commands.hdel(store.cell.keys.job("j1"), "assignment")

    answers = await release(
        store,
        release_item(first, verdict, "j1", "s1", boot=LATER_BOOT),
        release_item(second, "finish", "j2", "s2"),
    )

    assert answers == [STALE, messages.Released("completed")]
    assert await store.reads.used([NODE]) == [1]


async def test_record_without_a_submission_time_gets_one_and_ends(store: Store) -> None:
    """No script has written it; as for a raw entry, the time is that of the entry."""
    epoch = await seed_owner(store)
    await seed_node(store)
    entry_id = await seed_job(store)
    await store.connection.commands.hdel(store.cell.keys.job(JOB), "submitted_ms")
    (answer,) = await reserve(store, [reserve_item(entry_id, epoch)])
    assert isinstance(answer, messages.Reserved)

    assert await only(store, ending(answer.token, "retry")) == messages.Released("queued")

    assert (await store.reads.record(JOB))["submitted_ms"] == entry_id.partition("-")[0]
    ((_, outcome),) = await store.reads.entries(store.cell.keys.jobs(PARTITION))
    assert text(outcome)["submitted_ms"] == entry_id.partition("-")[0]


async def test_record_with_thousands_of_fields_is_ended(store: Store) -> None:
    """More than Lua hands over in one command: whoever wrote them, the slot is free and the job has ended."""
    token = await seed(store)
    await store.connection.commands.hset(store.cell.keys.job(JOB), mapping={f"f{i}": i for i in range(9_000)})

    assert await only(store, ending(token, "finish")) == messages.Released("completed")

    assert await store.reads.used([NODE]) == [0]
    assert len(await store.reads.record(JOB)) < 20


async def test_requeued_job_has_its_body_and_history_in_the_intake(store: Store) -> None:
    """The new entry carries document, payload, job id, first submission and the node to avoid."""
    token = await seed(store)
    before = await store.reads.record(JOB)

    await release(store, ending(token, "retry", reason="flaky"))

    ((entry_id, fields),) = await store.reads.entries(store.cell.keys.jobs(PARTITION))
    assert text(fields) == {
        "job": document().decode(),
        "payload": "body",
        "job_id": JOB,
        "submitted_ms": before["submitted_ms"],
        "avoid": NODE,
    }
    del before["started_ms"]
    assert await store.reads.record(JOB) == before | {
        "state": "queued",
        "entry": f"{PARTITION}/{entry_id}",
        "first_id": before["entry"].partition("/")[2],
        "attempts": "1",
        "crashes": "0",
        "not_started": "0",
        "avoid": NODE,
        "last_ending": f"{token} retry",
        "last_token": str(token),
        "last_verdict": "retry",
        "reason": "flaky",
    }


async def test_given_back_job_avoids_no_node(store: Store) -> None:
    """A node that stops in an orderly way did nothing wrong."""
    token = await seed(store)

    await release(store, ending(token, "give_back"))

    ((_, fields),) = await store.reads.entries(store.cell.keys.jobs(PARTITION))
    assert fields[b"avoid"] == b""


async def test_rule_23_long_reason_of_a_job_that_goes_back_is_cut(store: Store) -> None:
    """A value above 64 bytes would make the record a large hash, which it stays."""
    token = await seed(store)

    await release(store, ending(token, "retry", reason="x" * 65))

    assert (await store.reads.record(JOB))["reason"] == "x" * 64


@pytest.mark.parametrize("verdict", GOING_BACK)
async def test_only_a_retry_and_a_give_back_wait(store: Store, verdict: Verdict) -> None:
    """The handler or its node asked for the delay; a job that lost its node has waited for long enough. All of them
    avoid the node, a give-back too: it comes with a delay because the node cannot run the job.
    """
    token = await seed(store)
    state: State = "delayed" if verdict in ("retry", "give_back") else "queued"

    assert await only(store, ending(token, verdict, delay_ms=60_000)) == messages.Released(state)

    stream = store.cell.keys.parked if state == "delayed" else store.cell.keys.jobs(PARTITION)
    assert [fields[b"avoid"].decode() for _, fields in await store.reads.entries(stream)] == [NODE]


async def test_delayed_job_is_due_after_its_delay(store: Store) -> None:
    """The body is parked with its partition, and the due time counts from the server's clock."""
    token = await seed(store)
    now_ms, _ = await store.cell.release([ending(token, "retry", delay_ms=60_000)], RETENTION_MS, DEAD_RETENTION_MS)

    k = store.cell.keys
    ((parked_id, fields),) = await store.reads.entries(k.parked)
    assert fields[b"partition"] == str(PARTITION).encode()
    assert (await store.reads.record(JOB))["parked_id"] == parked_id
    assert (await dump(store))[k.delayed] == ("zset", [[JOB, float(now_ms + 60_000)]], False)


async def test_dead_job_is_kept_with_its_body_and_history(store: Store) -> None:
    """A job that is given up lies in the dead stream, and its record lives as long."""
    token = await seed(store, tenant="t1")
    before = await store.reads.record(JOB)

    await release(store, ending(token, "dead", reason="poison", detail="it kills nodes", tenant_id="t1"))

    k = store.cell.keys
    ((dead_id, dead),) = await store.reads.entries(k.dead)
    assert text(dead) == {
        "job": document().decode(),
        "payload": "body",
        "job_id": JOB,
        "submitted_ms": before["submitted_ms"],
        "reason": "poison",
        "detail": "it kills nodes",
        "session": SESSION,
        "partition": str(PARTITION),
        "tenant": "t1",
        "node": NODE,
        "attempts": "0",
        "crashes": "0",
        "not_started": "0",
        "life": "1",
    }
    record = await store.reads.record(JOB)
    assert (record["dead_id"], record["entry"].partition("/")[0]) == (dead_id, str(PARTITION))
    assert DEAD_RETENTION_MS - 5_000 < await store.connection.commands.pttl(k.job(JOB)) <= DEAD_RETENTION_MS
    assert k.result(JOB) not in await dump(store)


# ---- budgets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "started", "counts"),
    [
        ("retry", True, ("1", "0", "0")),
        ("retry", False, ("1", "0", "0")),
        ("expire", True, ("0", "1", "0")),
        ("reboot", True, ("0", "1", "0")),
        ("expire", False, ("0", "0", "1")),
        ("reboot", False, ("0", "0", "1")),
        ("give_back", True, ("0", "0", "0")),
        ("give_back", False, ("0", "0", "0")),
    ],
)
async def test_rule_12_each_ending_counts_once_and_an_unstarted_job_is_no_crash(
    store: Store, verdict: Verdict, started: bool, counts: tuple[str, str, str]
) -> None:
    """Failures, crashes and jobs that were never started are counted apart; a give-back costs nothing."""
    token = await seed_reserved(store, started=started)
    await seed_lapsed(store)

    await release(store, ending(token, verdict))

    record = await store.reads.record(JOB)
    assert (record["attempts"], record["crashes"], record["not_started"]) == counts


@pytest.mark.parametrize("started", [False, True])
async def test_rule_17_expiry_on_a_suspect_node_costs_nothing(store: Store, started: bool) -> None:
    """Its node fell silent with many others, so that neither a crash nor a start that failed is counted."""
    token = await seed_reserved(store, started=started)
    await seed_lapsed(store)
    await seed_node(store, reason="suspect")

    await release(store, ending(token, "expire"))

    record = await store.reads.record(JOB)
    assert (record["state"], record["crashes"], record["not_started"], record["avoid"]) == ("queued", "0", "0", NODE)


async def test_rule_17_reboot_of_a_suspect_node_is_a_crash(store: Store) -> None:
    """A later life of it says that it was started again, so the network is not the cause."""
    token = await seed_reserved(store, started=True)
    await seed_node(store, reason="suspect")

    await release(store, ending(token, "reboot"))

    assert (await store.reads.record(JOB))["crashes"] == "1"


@pytest.mark.parametrize(
    ("verdict", "started", "used", "detail"),
    [
        ("retry", True, {"attempts": 1}, "failed 2 times; last: boom"),
        ("expire", True, {"crashes": 2}, "lost with its node 3 times; last: boom"),
        ("reboot", True, {"crashes": 2}, "lost with its node 3 times; last: boom"),
        ("expire", False, {"not_started": 4}, "not started 5 times; last: boom"),
        ("reboot", False, {"not_started": 4}, "not started 5 times; last: boom"),
    ],
)
async def test_used_up_budget_is_dead_with_the_reason(
    store: Store, verdict: Verdict, started: bool, used: dict[str, Any], detail: str
) -> None:
    """The script itself gives up a job whose budget, as of its reservation, is used up."""
    policy = Pool(POOL, attempts_max=2, crashes_max=3)
    token = await seed_reserved(store, started=started, pool=policy)
    await seed_lapsed(store)
    await seed_record(store, **used)

    assert await only(store, ending(token, verdict, detail="boom")) == messages.Released("dead")

    ((_, dead),) = await store.reads.entries(store.cell.keys.dead)
    assert (dead[b"reason"].decode(), dead[b"detail"].decode()) == ("attempts_exhausted", detail)
    assert (await store.reads.record(JOB)).get("attempts", "0") == ("2" if verdict == "retry" else "0")


async def test_give_back_has_no_budget(store: Store) -> None:
    """A job is given back as often as nodes stop."""
    token = await seed(store, "used_up")
    await seed_record(store, not_started=99)

    assert await only(store, ending(token, "give_back")) == messages.Released("queued")


# ---- room and waking ---------------------------------------------------------------------------------------


async def test_rule_20_only_a_full_node_that_gets_room_wakes(store: Store) -> None:
    """The release that opens a full node is told once; the next one, of an open node, is not."""
    first = await seed_reserved(store, "j1", "s1", slots=2)
    second = await seed_reserved(store, "j2", "s2", slots=2)
    freed = store.cell.keys.freed
    before = await store.reads.length(freed)

    await release(store, release_item(first, "finish", "j1", "s1"))
    after_first = await store.reads.length(freed)
    await release(store, release_item(second, "finish", "j2", "s2"))

    assert (after_first, await store.reads.length(freed)) == (before + 1, before + 1)
    assert await store.reads.are_open([NODE]) == [True]


async def test_rule_20_one_call_wakes_with_one_entry(store: Store) -> None:
    """Several nodes that get room in one call are told in one entry."""
    first = await seed_reserved(store, "j1", "s1", node="n1")
    second = await seed_reserved(store, "j2", "s2", node="n2")
    before = await store.reads.length(store.cell.keys.freed)

    await release(
        store,
        release_item(first, "finish", "j1", "s1", node="n1"),
        release_item(second, "retry", "j2", "s2", node="n2"),
    )

    entries = await store.reads.entries(store.cell.keys.freed)
    assert [fields for _, fields in entries][before:] == [{b"nodes": b"n1 n2"}]


async def test_rule_21_several_slots_that_one_call_frees_open_a_node_that_shrank(store: Store) -> None:
    """Two jobs run on one slot: the first end makes no room yet, the second one does, and that is told."""
    tokens = {job: await seed_reserved(store, job, job, slots=2) for job in ("j1", "j2")}
    await seed_node(store, slots=1)
    before = await store.reads.length(store.cell.keys.freed)

    await release(store, *[release_item(token, "finish", job, job) for job, token in tokens.items()])

    assert await store.reads.are_open([NODE]) == [True]
    assert await store.reads.length(store.cell.keys.freed) == before + 1


async def test_rule_21_job_without_a_slot_frees_none(store: Store) -> None:
    """Its slot was lost and another job took it: the node is as full as before, so it is not opened and not told."""
    first = await seed_reserved(store, "j1", "s1")
    await store.connection.commands.zrem(store.cell.keys.slots(NODE), "j1")
    await seed_reserved(store, "j2", "s2")
    freed = (await dump(store))[store.cell.keys.freed]

    assert await release(store, release_item(first, "finish", "j1", "s1")) == [messages.Released("completed")]

    assert await store.reads.used([NODE]) == [1]
    assert await store.reads.are_open([NODE]) == [False]
    assert (await dump(store))[store.cell.keys.freed] == freed


@pytest.mark.parametrize("reason", ["draining", "quarantined", "dead", "gone"])
async def test_rule_21_node_without_slots_is_not_opened(store: Store, reason: Any) -> None:
    """The end of a job makes no room on a node that takes none."""
    token = await seed(store)
    if reason == "gone":
        await store.connection.commands.hdel(store.cell.keys.capacity, NODE)
        await store.connection.commands.srem(store.cell.keys.open, NODE)
    else:
        await seed_node(store, slots=0, reason=reason)
    before = await store.reads.length(store.cell.keys.freed)

    await release(store, ending(token, "finish"))

    assert await store.reads.are_open([NODE]) == [False]
    assert await store.reads.length(store.cell.keys.freed) == before


async def test_each_job_of_a_call_has_its_own_answer(store: Store) -> None:
    """Endings of several jobs, nodes and partitions in one call do not disturb each other."""
    tokens = {
        "j1": await seed_reserved(store, "j1", "s1", node="n1", slots=2),
        "j2": await seed_reserved(store, "j2", "s2", node="n2", slots=2, partition=2),
        "j3": await seed_reserved(store, "j3", "s3", node="n1", slots=2),
    }

    answers = await release(
        store,
        release_item(1, "finish", "j0", "s0"),
        release_item(tokens["j1"], "finish", "j1", "s1"),
        release_item(tokens["j1"], "finish", "j1", "s1"),
        release_item(tokens["j2"], "retry", "j2", "s2", node="n2", partition=2),
        release_item(tokens["j3"] + 1, "finish", "j3", "s3"),
        release_item(tokens["j3"], "expire", "j3", "s3"),
        release_item(tokens["j3"], "retry", "j3", "s3", delay_ms=5),
    )

    completed = messages.Released("completed")
    assert answers == [
        UNKNOWN,
        completed,
        completed,
        messages.Released("queued"),
        STALE,
        BUSY,
        messages.Released("delayed"),
    ]
    assert sorted(await bodies(store)) == [("intake", "j2"), ("parked", "j3")]


async def test_reservation_without_a_slot_can_be_expired(store: Store) -> None:
    """No lease of it can ever end, so that nothing else would bring its job back."""
    token = await seed_reserved(store)
    await store.connection.commands.zrem(store.cell.keys.slots(NODE), JOB)

    assert await only(store, ending(token, "expire")) == messages.Released("queued")

    assert await standing(store) == ("queued", ["intake"])


async def test_raw_job_ends_like_a_submitted_one(store: Store) -> None:
    """A job that was written by hand, without tenant or reply stream, completes."""
    epoch = await seed_owner(store)
    await seed_node(store)
    entry_id = await seed_entry(store)
    (answer,) = await reserve(store, [reserve_item(entry_id, epoch)])
    assert isinstance(answer, messages.Reserved)

    assert await only(store, ending(answer.token, "finish")) == messages.Released("completed")

    assert await standing(store) == ("completed", [])


async def test_many_slots_of_deleted_records_cost_one_look_at_the_inbox(store: Store) -> None:
    """All are free in one call, and the bodies of a whole inbox are not read for each of them."""
    count, body = 60, bytes(100_000)
    for number in range(count):
        await seed_reserved(store, f"j{number}", f"s{number}", slots=count + 1, payload=body)
        await store.connection.commands.delete(store.cell.keys.job(f"j{number}"))
        await seed_lapsed(store, f"j{number}")
    kept = await seed_reserved(store, "kept", "kept", slots=count + 1)
    await store.connection.commands.xadd(store.cell.keys.inbox(NODE), {"foreign": "1"}, id=POISON_ID)

    async def reads() -> int:
        stats = await store.connection.commands.info("commandstats")
        return int(stats.get("cmdstat_xrange", {"calls": 0})["calls"])  # the fake server counts nothing

    before = await reads()
    answers = await release(store, *[release_item(0, "expire", f"j{i}", f"s{i}") for i in range(count)])

    assert await reads() - before < 3 * count
    assert answers == [messages.NotReleased("unknown")] * count
    assert await store.reads.used([NODE]) == [1]
    assert [await release(store, release_item(kept, "finish", "kept", "kept"))] == [[messages.Released("completed")]]


async def test_slot_of_a_deleted_record_is_free_when_its_lease_has_ended(store: Store) -> None:
    """Nothing is known of how it ended, but nothing stays taken: no slot, no limit, no entry."""
    token = await seed_reserved(store)
    await seed_held(store)
    await store.connection.commands.delete(store.cell.keys.job(JOB))
    async with unchanged(store):
        assert await release(store, release_item(token, "expire")) == [messages.NotReleased("unknown")]
    await seed_lapsed(store)

    assert await release(store, release_item(token, "expire")) == [messages.NotReleased("unknown")]

    k = store.cell.keys
    left = await dump(store)
    assert [left.get(key) for key in (k.slots(NODE), k.held("session", SESSION))] == [None, None]
    assert await store.reads.entries(k.inbox(NODE)) == [
        each for each in await store.reads.entries(k.inbox(NODE)) if b"control" in each[1]
    ]
    assert await store.reads.are_open([NODE]) == [True]


async def test_slot_of_which_the_record_knows_nothing_is_free_when_its_lease_has_ended(store: Store) -> None:
    """Its record was deleted, and the job submitted again: that one, and what it holds of limits, stays."""
    token = await seed_reserved(store)
    await store.connection.commands.delete(store.cell.keys.job(JOB))
    await seed_node(store, "n2")
    later = await seed_reserved(store, node="n2")
    await seed_held(store)
    async with unchanged(store):
        assert await release(store, release_item(token, "expire")) == [messages.NotReleased("stale")]
    await seed_lapsed(store)

    assert await release(store, release_item(token, "expire")) == [messages.NotReleased("stale")]

    k = store.cell.keys
    assert await store.reads.reservations(NODE) == []
    assert [job_id for job_id, _ in await store.reads.reservations("n2")] == [JOB]
    assert (await dump(store)).get(k.held("session", SESSION)) is not None
    assert await release(store, release_item(later, "finish", node="n2")) == [messages.Released("completed")]
