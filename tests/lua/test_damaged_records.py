"""Records that others have written into: none keeps the next job of a call from its answer, or doubles a body."""

from __future__ import annotations

from typing import Final

import pytest

from scheduler.protocol import messages
from scheduler.protocol.lifecycle import Verdict
from scheduler.protocol.snapshot import Pool
from scheduler.store.store import Store
from tests.dumps import bodies
from tests.lua.endings import VERDICTS
from tests.seeds import (
    BOOT,
    JOB,
    LATER_BOOT,
    NODE,
    PARTITION,
    POOL,
    RETENTION_MS,
    reject,
    reject_item,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_delayed,
    seed_held,
    seed_job,
    seed_lapsed,
    seed_node,
    seed_owner,
    seed_record,
    seed_reserved,
    submit_item,
)

FIELDS: Final = (
    "assignment", "attempts", "avoid", "crashes", "decision", "entry", "held", "holder", "last_ending", "nonce",
    "not_started", "parked_id", "policy", "reply_to", "session", "started_ms", "state", "submitted_ms",
)  # fmt: skip
"""Each is damaged in a record of its own: the one of the job of this name."""
HEALTHY: Final = "healthy"
JOBS: Final = (*FIELDS, HEALTHY)
SLOTS: Final = len(JOBS)

ENDLESS: Final = "9" * 5_000
IDS: Final = {"assignment": f"{BOOT} {ENDLESS}-1", "holder": f"{NODE} {ENDLESS}", "parked_id": f"{ENDLESS}-1"}

pytestmark = pytest.mark.parametrize("junk", ["", "junk", ENDLESS], ids=["none", "junk", "endless"])


def session_of(job_id: str) -> str:
    """Each job has its own."""
    return f"s-{job_id}"


async def damage(store: Store, junk: str) -> None:
    """Take one field from each record, or write junk into it."""
    for field in FIELDS:
        if junk:
            await seed_record(store, field, **{field: IDS.get(field, junk) if junk == ENDLESS else junk})
        else:
            await store.connection.commands.hdel(store.cell.keys.job(field), field)


async def assert_no_body_is_twice(store: Store) -> None:
    """No job has two bodies, wherever they are."""
    holders = [job_id for _, job_id in await bodies(store)]
    assert sorted(holders) == sorted(set(holders))


@pytest.mark.parametrize("verdict", VERDICTS)
async def test_next_job_is_released(store: Store, junk: str, verdict: Verdict) -> None:
    """Whatever the verdict, its slot is free."""
    tokens = {job: await seed_reserved(store, job, session_of(job), slots=SLOTS, started=True) for job in JOBS}
    for job in JOBS:
        await seed_held(store, job, session_of(job))
        await seed_lapsed(store, job)
    await damage(store, junk)

    answers = await release(
        store, *[release_item(tokens[job], verdict, job, session_of(job), boot=LATER_BOOT) for job in JOBS]
    )

    assert isinstance(answers[-1], messages.Released)
    assert HEALTHY not in dict(await store.reads.reservations(NODE))
    await assert_no_body_is_twice(store)


async def test_next_job_is_promoted(store: Store, junk: str) -> None:
    """It is in the intake again."""
    for job in JOBS:
        await seed_delayed(store, job, session_of(job))
    await damage(store, junk)

    answers = await store.cell.promote([(job, PARTITION, "") for job in JOBS], RETENTION_MS)

    assert answers[-1] == "promoted"
    await assert_no_body_is_twice(store)


async def test_next_job_without_a_body_is_dead(store: Store, junk: str) -> None:
    """A lost body is told."""
    for job in JOBS:
        await seed_delayed(store, job, session_of(job))
    await store.connection.commands.xtrim(store.cell.keys.parked, maxlen=0)
    await damage(store, junk)

    answers = await store.cell.promote([(job, PARTITION, "") for job in JOBS], RETENTION_MS)

    assert answers[-1] == "dead"


async def test_next_job_is_accepted(store: Store, junk: str) -> None:
    """A submission that is repeated for a damaged record has an answer, and so has the one after it."""
    for job in JOBS:
        await seed_job(store, job, session_of(job))
    await damage(store, junk)

    answers = await store.cell.submit([submit_item(job, session_of(job)) for job in (*JOBS, "new")])

    assert all(isinstance(answer, messages.Submitted) for answer in answers[-2:])


async def test_next_job_is_reserved(store: Store, junk: str) -> None:
    """It is placed."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=SLOTS)
    entries = {job: await seed_job(store, job, session_of(job)) for job in JOBS}
    await damage(store, junk)

    answers = await store.cell.reserve(
        [reserve_item(entries[job], epoch, job, session_of(job)) for job in JOBS],
        {NODE: BOOT},
        {POOL: Pool(POOL)},
        1,
    )

    assert isinstance(answers[-1], messages.Reserved)
    await assert_no_body_is_twice(store)


async def test_record_without_a_state_is_written_anew(store: Store, junk: str) -> None:
    """Whatever else is left of it or was written into it: a repeat has the same answer, and the job ends."""
    epoch = await seed_owner(store)
    await seed_node(store)
    entry = await seed_job(store)
    await store.connection.commands.hdel(store.cell.keys.job(JOB), "state", "entry", "session")
    if junk:
        await seed_record(store, entry=junk, session=junk)
    item = reserve_item(entry, epoch)

    (placed,) = await reserve(store, [item])
    assert isinstance(placed, messages.Reserved)

    assert await reserve(store, [item]) == [messages.Reserved(NODE, placed.token, -1)]
    assert await release(store, release_item(placed.token, "finish")) == [messages.Released("completed")]


async def test_next_job_is_rejected(store: Store, junk: str) -> None:
    """It is dead with its reason."""
    epoch = await seed_owner(store)
    entries = {job: await seed_job(store, job, session_of(job)) for job in JOBS}
    await damage(store, junk)

    answers = await reject(store, *[reject_item(entries[job], epoch, "expired", job, session_of(job)) for job in JOBS])

    assert answers[-1] == "rejected"
    await assert_no_body_is_twice(store)
