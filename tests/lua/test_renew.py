"""renew.lua: a node's leases go on."""

from __future__ import annotations

import pytest

from scheduler.protocol import messages
from scheduler.protocol.snapshot import Pool
from scheduler.store.store import Store
from tests.dumps import dump, standing, stands, transitions, unchanged
from tests.seeds import (
    JOB,
    NODE,
    POOL,
    release,
    release_item,
    seed_delayed,
    seed_job,
    seed_lapsed,
    seed_node,
    seed_record,
    seed_reserved,
)

(RENEWED,) = transitions("renew")
POLICY = Pool(POOL, start_ms=4_000, lease_ms=9_000, run_ms_max=70_000)
STALE, UNKNOWN = messages.NotRenewed("stale"), messages.NotRenewed("unknown")


async def renew(
    store: Store, *reservations: tuple[str, int], node: str = NODE
) -> list[messages.Renewed | messages.NotRenewed]:
    """The answer for each reservation."""
    return (await store.cell.renew(node, reservations))[2]


async def test_rule_12_first_renewal_marks_the_start_and_sets_the_full_lease(store: Store) -> None:
    """The slot gets the full lease from now, the record its start; nothing else changes."""
    token = await seed_reserved(store, pool=POLICY)
    before = await dump(store)

    now_ms, _, answers = await store.cell.renew(NODE, [(JOB, token)])

    lease_until_ms = now_ms + POLICY.lease_ms
    k = store.cell.keys
    record = before[k.job(JOB)][1] | {"started_ms": str(now_ms)}
    assert answers == [messages.Renewed(lease_until_ms)]
    assert await dump(store) == before | {
        k.job(JOB): ("hash", record, False),
        k.slots(NODE): ("zset", [[JOB, float(lease_until_ms)]], False),
    }
    assert await standing(store) == stands(RENEWED)


async def test_rule_28_repeat_only_moves_the_lease(store: Store) -> None:
    """A second renewal prolongs from its own time and leaves the start as it was."""
    token = await seed_reserved(store, started=True)
    started_ms = str(int((await store.reads.record(JOB))["started_ms"]) - 1_000)
    await seed_record(store, started_ms=started_ms)

    now_ms, _, answers = await store.cell.renew(NODE, [(JOB, token)])

    assert answers == [messages.Renewed(now_ms + 15_000)]
    assert (await store.reads.record(JOB))["started_ms"] == started_ms
    assert await store.reads.reservations(NODE) == [(JOB, now_ms + 15_000)]


async def test_rule_28_lapsed_lease_that_nobody_took_is_renewed(store: Store) -> None:
    """A node that comes late, but before the reaper, keeps its job."""
    token = await seed_reserved(store)
    await seed_lapsed(store)

    now_ms, _, answers = await store.cell.renew(NODE, [(JOB, token)])

    assert answers == [messages.Renewed(now_ms + 15_000)]
    assert await store.reads.reservations(NODE) == [(JOB, now_ms + 15_000)]


async def test_requested_cancel_is_told_and_the_lease_goes_on(store: Store) -> None:
    """Until the handler has stopped the slot is held, so the lease is prolonged all the same."""
    token = await seed_reserved(store)
    await seed_record(store, cancel=1)

    now_ms, _, answers = await store.cell.renew(NODE, [(JOB, token)])

    assert answers == [messages.Renewed(now_ms + 15_000, cancelling=True)]


async def test_job_without_a_record_is_unknown(store: Store) -> None:
    """After the retention nothing is known of a job."""
    await seed_node(store)

    async with unchanged(store):
        assert await renew(store, (JOB, 1)) == [UNKNOWN]


@pytest.mark.parametrize("shift", [-1, 1])
async def test_another_token_is_stale_and_changes_nothing(store: Store, shift: int) -> None:
    """Only the live reservation with this very token is prolonged."""
    token = await seed_reserved(store)

    async with unchanged(store):
        assert await renew(store, (JOB, token + shift)) == [STALE]


async def test_another_node_is_stale_and_changes_nothing(store: Store) -> None:
    """A node cannot renew what another one holds, even with the right token."""
    token = await seed_reserved(store)
    await seed_node(store, "n2")

    async with unchanged(store):
        assert await renew(store, (JOB, token), node="n2") == [STALE]


@pytest.mark.parametrize("verdict", ["finish", "retry", "give_back", "dead", "delayed"])
async def test_ended_reservation_is_stale_and_changes_nothing(store: Store, verdict: str) -> None:
    """Whatever became of the job, a late renewal of its last reservation changes nothing."""
    if verdict == "delayed":
        token = await seed_delayed(store)
    else:
        token = await seed_reserved(store)
        await release(store, release_item(token, verdict))  # type: ignore[arg-type]

    async with unchanged(store):
        assert await renew(store, (JOB, token)) == [STALE]


async def test_queued_job_is_stale(store: Store) -> None:
    """A job that was never placed has no reservation to renew."""
    await seed_job(store)

    async with unchanged(store):
        assert await renew(store, (JOB, 0)) == [STALE]


async def test_a_slot_that_was_deleted_is_put_back_by_the_renewal(store: Store) -> None:
    """What the record says of the reservation is all there is to know."""
    token = await seed_reserved(store)
    await store.connection.commands.delete(store.cell.keys.slots(NODE))

    now_ms, _, answers = await store.cell.renew(NODE, [(JOB, token)])

    assert answers == [messages.Renewed(now_ms + 15_000)]
    assert await store.reads.reservations(NODE) == [(JOB, now_ms + 15_000)]


async def test_a_slot_that_was_deleted_is_not_put_back_beyond_the_capacity(store: Store) -> None:
    """Somebody else has come into its place; once he is gone there is room."""
    token = await seed_reserved(store)
    await store.connection.commands.delete(store.cell.keys.slots(NODE))
    other = await seed_reserved(store, "j2", "s2")

    async with unchanged(store):
        assert await renew(store, (JOB, token)) == [messages.NotRenewed("crowded")]
    await release(store, release_item(other, "give_back", "j2", "s2"))

    assert isinstance((await renew(store, (JOB, token)))[0], messages.Renewed)


async def test_rule_12_renewal_past_the_longest_run_is_refused(store: Store) -> None:
    """A job that ran for longer than its pool allows is not prolonged, so its lease ends."""
    token = await seed_reserved(store, pool=POLICY, started=True)
    await seed_record(store, started_ms=1)

    async with unchanged(store):
        assert await renew(store, (JOB, token)) == [messages.NotRenewed("overrun")]


async def test_each_job_of_a_call_has_its_own_answer(store: Store) -> None:
    """One lost reservation does not keep the others from being prolonged."""
    first = await seed_reserved(store, "j1", "s1", slots=3)
    second = await seed_reserved(store, "j2", "s2", slots=3)

    now_ms, _, answers = await store.cell.renew(NODE, [("j0", 1), ("j1", first + 1), ("j1", first), ("j2", second)])

    renewed = messages.Renewed(now_ms + 15_000)
    assert answers == [UNKNOWN, STALE, renewed, renewed]


async def test_record_without_a_policy_keeps_no_other_from_being_renewed(store: Store) -> None:
    """No script has written it, so nothing is known of how long a lease of it is."""
    first = await seed_reserved(store, "j1", "s1", slots=3)
    second = await seed_reserved(store, "j2", "s2", slots=3)
    await store.connection.commands.hdel(store.cell.keys.job("j1"), "policy")

    now_ms, _, answers = await store.cell.renew(NODE, [("j1", first), ("j2", second)])

    assert answers == [UNKNOWN, messages.Renewed(now_ms + 15_000)]


@pytest.mark.parametrize(
    ("renewed_before_ms", "ran_ms", "counted_ms"),
    [
        pytest.param(3_000, 20_000, 20_000, id="no step"),
        pytest.param(3_603_000, 3_620_000, 3_620_000 - 3_603_000 + 9_000, id="on by an hour: a lease at most counts"),
        pytest.param(-3_597_000, -3_580_000, 17_000, id="back by an hour: what was counted before stays"),
    ],
)
async def test_a_step_of_the_clock_is_no_time_of_the_job(
    store: Store, renewed_before_ms: int, ran_ms: int, counted_ms: int
) -> None:
    """A job may run for 70 s. It was started `ran_ms` ago and renewed `renewed_before_ms` ago, by the clock of now."""
    token = await seed_reserved(store, pool=POLICY, started=True)
    now_ms = await store.control.time_us() // 1000
    await seed_record(store, started_ms=now_ms - ran_ms)
    until_ms = now_ms - renewed_before_ms + POLICY.lease_ms
    await store.connection.commands.zadd(store.cell.keys.slots(NODE), {JOB: until_ms})

    now_ms, _, answers = await store.cell.renew(NODE, [(JOB, token)])

    assert answers == [messages.Renewed(now_ms + POLICY.lease_ms)]
    started_ms = int((await store.reads.record(JOB))["started_ms"])
    assert counted_ms <= now_ms - started_ms <= counted_ms + 1_000


async def test_renewal_of_a_job_whose_body_has_not_come_does_not_start_it(store: Store) -> None:
    """The slot gets the full lease, and losing it then is no crash; the next renewal after the start marks that."""
    token = await seed_reserved(store)

    now_ms, _, answers = await store.cell.renew(NODE, [], [(JOB, token)])

    assert answers == [messages.Renewed(now_ms + 15_000)]
    assert await store.reads.reservations(NODE) == [(JOB, now_ms + 15_000)]
    record = await store.reads.record(JOB)
    assert "started_ms" not in record
    assert record["assignment"].split(" ")[2] == "15000"  # the length of the lease in force
    now_ms, _, _ = await store.cell.renew(NODE, [(JOB, token)])
    assert (await store.reads.record(JOB))["started_ms"] == str(now_ms)


async def test_unknown_phase_is_an_error_that_names_it(store: Store) -> None:
    """A renewal that means something else changes nothing."""
    token = await seed_reserved(store)
    k = store.cell.keys
    async with unchanged(store):
        answer = await store.connection.call("renew", [k.slots(NODE), k.job(JOB), k.capacity], [JOB, token, "begun"])

    assert answer[1] == [b"invalid", b"phase = 'begun': expected started or waiting"]
