"""describe.lua: what is known of a failed attempt is kept beside the record of its job, while it is of use."""

from __future__ import annotations

import pytest

from scheduler.errors import ServerUnavailable
from scheduler.protocol import messages
from scheduler.protocol.snapshot import Pool
from scheduler.store.connection import Argument, ScriptFailed
from scheduler.store.store import Store
from tests.dumps import unchanged
from tests.lua.test_memory import full_memory
from tests.lua.test_wrong_values import named
from tests.seeds import (
    DEAD_RETENTION_MS,
    JOB,
    RETENTION_MS,
    promote,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_delayed,
    seed_owner,
    seed_reserved,
)

DETAIL = "ValueError: bad audio (/app/h.py:6 in second)"


def failed(token: int, detail: str = DETAIL, job_id: str = JOB) -> messages.ReleaseItem:
    """An attempt that failed."""
    return release_item(token, "retry", job_id, detail=detail)


async def rest_ms(store: Store) -> int:
    """How long the detail is kept yet."""
    rest: int = await store.connection.commands.pttl(store.cell.keys.detail(JOB))
    return rest


async def test_a_delayed_job_says_why_it_waits(store: Store) -> None:
    """For as long as it does, and `retention_ms` more; the record is no larger."""
    token = await seed_delayed(store, due=False)
    before = await store.reads.record(JOB)

    assert await store.cell.describe([failed(token)], RETENTION_MS) == ["described"]

    assert await store.reads.detail(JOB) == DETAIL
    assert 60_000 + RETENTION_MS - 5_000 < await rest_ms(store) <= 60_000 + RETENTION_MS
    assert await store.reads.record(JOB) == before


async def test_the_detail_of_a_dead_job_goes_with_its_record(store: Store) -> None:
    """At the same time, or a hair before."""
    token = await seed_reserved(store, pool=Pool("default", attempts_max=1))
    assert await release(store, failed(token)) == [messages.Released("dead")]

    assert await store.cell.describe([failed(token)], RETENTION_MS) == ["described"]

    record_ms = await store.connection.commands.pttl(store.cell.keys.job(JOB))
    assert record_ms - 1_000 < await rest_ms(store) <= DEAD_RETENTION_MS


async def test_it_is_there_while_the_next_attempt_waits_and_runs(store: Store) -> None:
    """And is described once more by a repeat, which changes nothing."""
    token = await seed_delayed(store)
    assert await store.cell.describe([failed(token)], RETENTION_MS) == ["described"]
    assert await promote(store) == "promoted"
    assert await store.cell.describe([failed(token)], RETENTION_MS) == ["described"]
    entry = (await store.reads.record(JOB))["entry"].partition("/")[2]
    await reserve(store, [reserve_item(entry, await seed_owner(store))])
    assert await store.cell.describe([failed(token)], RETENTION_MS) == ["described"]
    assert await store.reads.detail(JOB) == DETAIL


async def test_only_the_attempt_that_ended_last_is_described(store: Store) -> None:
    """One that is under way has not failed, and one before the last is of no interest."""
    token = await seed_reserved(store)
    async with unchanged(store):
        assert await store.cell.describe([failed(token), failed(token, job_id="j9")], RETENTION_MS) == [
            "stale",
            "unknown",
        ]
    await release(store, failed(token))
    async with unchanged(store):
        assert await store.cell.describe([failed(token - 1), failed(token + 1)], RETENTION_MS) == ["stale", "stale"]


async def test_the_next_failure_replaces_the_last(store: Store) -> None:
    """One is kept of a job."""
    token = await seed_delayed(store)
    await store.cell.describe([failed(token)], RETENTION_MS)
    assert await promote(store) == "promoted"
    entry = (await store.reads.record(JOB))["entry"].partition("/")[2]
    (answer,) = await reserve(store, [reserve_item(entry, await seed_owner(store))])
    assert isinstance(answer, messages.Reserved)
    await release(store, failed(answer.token))

    assert await store.cell.describe([failed(token, "old"), failed(answer.token, "new")], RETENTION_MS) == [
        "stale",
        "described",
    ]
    assert await store.reads.detail(JOB) == "new"


async def test_rule_34_full_memory_keeps_no_detail_and_stops_no_ending(store: Store) -> None:
    """The attempt ends; what is known of it is refused at once, without a second try."""
    token = await seed_reserved(store)
    async with full_memory(store):
        assert await release(store, failed(token)) == [messages.Released("queued")]
        with pytest.raises(ServerUnavailable, match="not kept"):
            await store.cell.describe([failed(token)], RETENTION_MS)
    assert await store.reads.detail(JOB) == ""


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"job_id": "j2"}, "job_id = 'j2': expected that of the key"),
        ({"detail_key": "{sched:0}:result:j1"}, "job_id = 'j1': expected that of the key {sched:0}:result:j1"),
        ({"token": ""}, "token = '': expected digits"),
        ({"token": "7a"}, "token = '7a'"),
        ({"detail": ""}, "detail = '': expected 1 to 4096 bytes"),
        ({"detail": "x" * 4_097}, "expected 1 to 4096 bytes"),
    ],
)
async def test_a_value_that_can_be_none_is_named(store: Store, changed: dict[str, str], problem: str) -> None:
    """And nothing is written."""
    token = await seed_delayed(store)
    k = store.cell.keys
    values = {"job_id": JOB, "token": str(token), "detail": DETAIL, "detail_key": k.detail(JOB)} | changed
    arguments: list[Argument] = [RETENTION_MS, values["job_id"], values["token"], values["detail"]]
    async with unchanged(store):
        (answer,) = await store.connection.call("describe", [k.job(JOB), values["detail_key"]], arguments)
    assert named(answer)[0] == "invalid"
    assert problem in named(answer)[1]


@pytest.mark.parametrize(
    ("keys", "arguments", "problem"),
    [
        (2, [0, JOB, "7", DETAIL], "retention_ms = '0': expected a whole number from 1"),
        (2, [RETENTION_MS, JOB, "7"], "number of arguments = '3': expected 1, and 3 a job"),
        (1, [RETENTION_MS, JOB, "7", DETAIL], "number of keys = '1': expected 2 a job"),
        (2, [RETENTION_MS, *[JOB, "7", DETAIL] * 129], "number of jobs = '129': expected 128 at most"),
    ],
)
async def test_a_call_that_cannot_be_read_is_an_error(
    store: Store, keys: int, arguments: list[Argument], problem: str
) -> None:
    """Which names what is wrong with it."""
    names = [store.cell.keys.job(JOB), store.cell.keys.detail(JOB)][:keys]
    async with unchanged(store):
        with pytest.raises(ScriptFailed, match="describe") as refused:
            await store.connection.call("describe", names, arguments)
    assert problem in str(refused.value)
