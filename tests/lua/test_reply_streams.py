"""Streams of `reply_to`: they go when nothing was told in them for as long as records are kept; `results` stays."""

from __future__ import annotations

import pytest

from scheduler.store.store import Store
from tests.seeds import (
    JOB,
    RETENTION_MS,
    promote,
    reject,
    reject_item,
    release,
    release_item,
    seed_delayed,
    seed_job,
    seed_owner,
    seed_record,
    seed_reserved,
)

ENDINGS = ["release", "reject", "promote"]


async def end(store: Store, how: str, reply_to: str, job_id: str = JOB) -> None:
    """End a job by one of the scripts that tell outcomes."""
    if how == "release":
        token = await seed_reserved(store, job_id, slots=9, reply_to=reply_to)
        await release(store, release_item(token, "finish", job_id, reply_to=reply_to))
    elif how == "reject":
        epoch = await seed_owner(store)
        entry_id = await seed_job(store, job_id, reply_to=reply_to)
        await reject(store, reject_item(entry_id, epoch, "expired", job_id, reply_to=reply_to))
    else:
        await seed_delayed(store, job_id, reply_to=reply_to)
        await seed_record(store, job_id, parked_id="1-1")
        assert await promote(store, job_id, reply_to=reply_to) == "dead"


async def rest_ms(store: Store, reply_to: str) -> int:
    """How long a stream of outcomes is still kept; -1: for ever."""
    return int(await store.connection.commands.pttl(store.cell.keys.replies(reply_to)))


@pytest.mark.parametrize("how", ENDINGS)
async def test_reply_stream_expires_with_its_last_outcome(store: Store, how: str) -> None:
    """Each outcome lets the stream stay for as long as a record."""
    await end(store, how, "r1")
    assert RETENTION_MS - 10_000 < await rest_ms(store, "r1") <= RETENTION_MS
    await store.connection.commands.pexpire(store.cell.keys.replies("r1"), 20_000)

    await end(store, how, "r1", "j2")

    assert await rest_ms(store, "r1") > RETENTION_MS - 10_000
    assert await store.reads.length(store.cell.keys.replies("r1")) == 2


@pytest.mark.parametrize("how", ENDINGS)
async def test_feed_of_the_cell_never_expires(store: Store, how: str) -> None:
    """A job without a reply stream names the feed of the cell in its place."""
    await end(store, how, "")

    assert await store.reads.length(store.cell.keys.results) == 1
    assert await rest_ms(store, "") == -1


async def test_repeat_does_not_keep_a_reply_stream(store: Store) -> None:
    """A call after a lost reply tells nothing, and so prolongs nothing; nor does it make a stream that was deleted."""
    token = await seed_reserved(store, reply_to="r1")
    item = release_item(token, "finish", reply_to="r1")
    await release(store, item)
    await store.connection.commands.pexpire(store.cell.keys.replies("r1"), 20_000)
    await release(store, item)
    assert await rest_ms(store, "r1") <= 20_000

    await store.connection.commands.delete(store.cell.keys.replies("r1"))
    await release(store, item)

    assert await rest_ms(store, "r1") == -2


async def test_reply_streams_of_one_call_expire_each(store: Store) -> None:
    """Two producers, and one that named none, in a batch."""
    names = ["r1", "r2", ""]
    tokens = [await seed_reserved(store, f"j{i}", slots=9, reply_to=name) for i, name in enumerate(names)]

    await release(
        store,
        *(
            release_item(token, "finish", f"j{i}", reply_to=name)
            for i, (token, name) in enumerate(zip(tokens, names, strict=True))
        ),
    )

    assert [await rest_ms(store, name) > 0 for name in names] == [True, True, False]
