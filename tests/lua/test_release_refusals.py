"""release.lua: endings that may not be, and streams that take no entry."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.protocol import messages
from scheduler.protocol.lifecycle import Verdict
from scheduler.protocol.snapshot import Pool
from scheduler.store.store import Store
from tests.dumps import dump, unchanged
from tests.lua.endings import BUSY, GOING_BACK, MOVED, STALE, UNKNOWN, VERDICTS, ending, only, seed
from tests.seeds import (
    BOOT,
    DEAD_RETENTION_MS,
    FAR_US,
    JOB,
    NODE,
    POOL,
    RETENTION_MS,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_delayed,
    seed_job,
    seed_lapsed,
    seed_node,
    seed_owner,
    seed_poison,
    seed_record,
    seed_reserved,
)


async def test_job_without_a_record_is_unknown(store: Store) -> None:
    """After the retention nothing is known of a job."""
    await seed_node(store)

    async with unchanged(store):
        assert await only(store, ending(1, "finish")) == UNKNOWN


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("shift", [-1, 1])
async def test_another_token_is_stale_and_changes_nothing(store: Store, verdict: Verdict, shift: int) -> None:
    """Only the holder of this very token ends the reservation."""
    token = await seed(store)

    async with unchanged(store):
        assert await only(store, ending(token + shift, verdict)) == STALE


@pytest.mark.parametrize("verdict", VERDICTS)
async def test_token_from_before_is_stale_while_the_job_runs_again(store: Store, verdict: Verdict) -> None:
    """A node that was thought dead cannot end the reservation that came after its own."""
    first = await seed(store)
    await release(store, ending(first, "expire"))
    epoch = await seed_owner(store)
    entry_id = (await store.reads.record(JOB))["entry"].partition("/")[2]
    await reserve(store, [reserve_item(entry_id, epoch)])

    async with unchanged(store):
        answer = await only(store, ending(first, verdict))

    assert answer == (messages.Released("reserved") if verdict == "expire" else STALE)


@pytest.mark.parametrize("state", ["queued", "delayed"])
async def test_job_that_is_not_reserved_is_stale(store: Store, state: str) -> None:
    """Without a reservation there is nothing to end, even with the record's own token."""
    if state == "queued":
        await seed_job(store)
        await seed_record(store, token=5)
        token = 5
    else:
        token = await seed_delayed(store)

    async with unchanged(store):
        assert await only(store, ending(token, "finish")) == STALE


@pytest.mark.parametrize(
    "fields",
    [{"node": "n2"}, {"partition": 2}, {"session": "s2"}, {"tenant_id": "t2"}, {"reply_to": "r2"}],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.parametrize("verdict", VERDICTS)
async def test_rule_27_keys_that_disagree_with_the_record_are_moved(
    store: Store, verdict: Verdict, fields: dict[str, Any]
) -> None:
    """A caller that names another node, partition, session, tenant or reply stream changes nothing."""
    token = await seed(store)

    async with unchanged(store):
        assert await only(store, ending(token, verdict, **fields)) == MOVED


async def test_rule_15_expire_before_the_deadline_is_busy(store: Store) -> None:
    """A lease that has not ended by the server's clock is not taken away, whoever thinks so."""
    token = await seed_reserved(store)

    async with unchanged(store):
        assert await only(store, ending(token, "expire")) == BUSY


async def test_rule_15_renewed_lease_is_not_expired(store: Store) -> None:
    """A renewal that came before the reaper saves the reservation."""
    token = await seed_reserved(store)
    await seed_lapsed(store)
    await store.cell.renew(NODE, [(JOB, token)])

    async with unchanged(store):
        assert await only(store, ending(token, "expire")) == BUSY


@pytest.mark.parametrize("boot", [BOOT, "999-z", "1000-b"])
async def test_rule_13_reboot_needs_a_later_boot(store: Store, boot: str) -> None:
    """A boot ends reservations of lower boots only, never its own."""
    token = await seed_reserved(store)

    async with unchanged(store):
        assert await only(store, release_item(token, "reboot", boot=boot)) == BUSY


@pytest.mark.parametrize(("verdict", "prepared"), [("dead", ""), ("retry", "used_up"), ("expire", "used_up")])
async def test_rule_24_poisoned_dead_stream_is_busy_and_changes_nothing(
    store: Store, verdict: Verdict, prepared: str
) -> None:
    """A body that cannot be buried stays with its reservation."""
    token = await seed(store, prepared)
    await seed_poison(store, store.cell.keys.dead)

    async with unchanged(store):
        assert await only(store, ending(token, verdict)) == BUSY


@pytest.mark.parametrize("verdict", GOING_BACK)
async def test_rule_24_poisoned_intake_and_parked_is_busy_and_changes_nothing(store: Store, verdict: Verdict) -> None:
    """When no stream takes the body the reservation stands."""
    token = await seed(store, "poisoned")
    await seed_poison(store, store.cell.keys.parked)

    async with unchanged(store):
        assert await only(store, ending(token, verdict)) == BUSY


async def test_rule_24_poisoned_parked_is_busy_for_a_delayed_retry(store: Store) -> None:
    """A job that must wait is not sent back at once because its place to wait is broken."""
    token = await seed(store)
    await seed_poison(store, store.cell.keys.parked)

    async with unchanged(store):
        assert await only(store, ending(token, "retry", delay_ms=1_000)) == BUSY


async def test_rule_24_poisoned_intake_parks_the_job_for_a_moment(store: Store) -> None:
    """A body that the intake does not take is parked, due a second later, with its counts."""
    token = await seed(store, "poisoned")

    now_ms, _ = await store.cell.release([ending(token, "retry")], RETENTION_MS, DEAD_RETENTION_MS)

    after = await dump(store)
    assert after[store.cell.keys.delayed] == ("zset", [[JOB, float(now_ms + 1_000)]], False)
    assert (await store.reads.record(JOB))["attempts"] == "1"


@pytest.mark.parametrize("verdict", ["finish", "dead"])
async def test_rule_24_poisoned_feeds_do_not_stop_the_ending(store: Store, verdict: Verdict) -> None:
    """Results, reply stream and `freed` may fail: record, slot and open node are right all the same."""
    token = await seed(store, reply_to="r1")
    k = store.cell.keys
    for stream in (k.results, k.replies("r1"), k.freed):
        await seed_poison(store, stream)

    answer = await only(store, ending(token, verdict, reply_to="r1"))

    assert isinstance(answer, messages.Released)
    assert (await store.reads.record(JOB))["state"] == answer.state
    assert await store.reads.used([NODE]) == [0]
    assert await store.reads.are_open([NODE]) == [True]


@pytest.mark.parametrize("started", [True, False])
async def test_expire_cuts_a_lease_that_lies_further_ahead_than_its_length(store: Store, started: bool) -> None:
    """The clock went back: the lease ends its own length from now, the first or a later one, and goes on until then."""
    pool = Pool(POOL, start_ms=4_000, lease_ms=9_000)
    token = await seed_reserved(store, pool=pool, started=started)
    await store.connection.commands.zadd(store.cell.keys.slots(NODE), {JOB: FAR_US // 1000})
    if started:
        await seed_record(store, started_ms=FAR_US // 1000)
    before_ms = await store.control.time_us() // 1000

    assert await only(store, ending(token, "expire")) == BUSY

    after_ms, length_ms = await store.control.time_us() // 1000, 9_000 if started else 4_000
    ((_, until_ms),) = await store.reads.reservations(NODE)
    assert before_ms + length_ms <= until_ms <= after_ms + length_ms
    record = await store.reads.record(JOB)
    assert record["state"] == "reserved"
    assert before_ms <= int(record.get("started_ms", before_ms)) <= after_ms


@pytest.mark.parametrize("record", ["none", "of another node"])
async def test_expire_cuts_a_lease_that_no_record_knows(store: Store, record: str) -> None:
    """To the longest that it can be, which the caller says. What does not lie further ahead stays, and so does all
    without a word of his.
    """
    await seed_reserved(store)
    client, slots = store.connection.commands, store.cell.keys.slots(NODE)
    if record == "none":
        await client.delete(store.cell.keys.job(JOB))
    else:
        await seed_record(store, holder="n2 5")
    now_ms = await store.control.time_us() // 1000
    await client.zadd(slots, {JOB: now_ms + 3_600_000})

    for delay_ms in (0, 7_200_000):
        async with unchanged(store):
            await release(store, release_item(0, "expire", delay_ms=delay_ms))
    await release(store, release_item(0, "expire", delay_ms=9_000))

    ((_, until_ms),) = await store.reads.reservations(NODE)
    assert now_ms + 9_000 <= until_ms <= now_ms + 60_000
    async with unchanged(store):
        await release(store, release_item(0, "expire", delay_ms=9_000_000))
