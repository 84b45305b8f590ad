"""Keys in which somebody has stored what no script of ours writes: no valid job ends by it, and all goes on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import pytest

from scheduler.errors import WrongType
from scheduler.management.commands import ApplyPools, encode_command
from scheduler.management.pools import PoolDocument
from scheduler.node.handlers import Job
from scheduler.protocol import keys
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.reaper.reaper import Reaper
from scheduler.store.connection import Connection
from scheduler.store.retyping import TYPES
from scheduler.store.store import Store
from tests.clock import HandClock, hand_clock
from tests.seeds import JOB, NODE, seed_reserved
from tests.system import QUICK, System, running

RESULT_MS: Final = 20_000
STEP_MS: Final = 500  # of a reaper, which must not seem deaf
CELL: Final = keys.CellKeys()
CONTROL: Final = keys.ControlKeys()
SESSION: Final = "s1"
INTAKE: Final = CELL.jobs(keys.partition_of(SESSION, QUICK.partitions))
SHARED: Final = (
    CONTROL.layout, CONTROL.leader, CONTROL.snapshot, CONTROL.version, CONTROL.deltas, CONTROL.config,
    CONTROL.heartbeats, CONTROL.commands, CONTROL.answers, CONTROL.dispatchers, CELL.owners, CELL.capacity,
    CELL.control_ids, CELL.leader_epoch, CELL.last_boot, CELL.open, CELL.counted, CELL.freed, CELL.results,
    CELL.delayed, CELL.parked, CELL.dead, INTAKE, CELL.slots("n1"), CELL.inbox("n1"), CELL.held("session", SESSION),
)  # fmt: skip


async def handle(job: Job) -> str:
    """Whatever it is."""
    await asyncio.sleep(0)
    return job.session_id


async def complete(system: System, count: int = 3) -> None:
    """Jobs come to their ends, each at its first try."""
    jobs = [await system.producer.submit(SESSION, src_lang="en", tgt_lang="zh") for _ in range(count)]
    assert [await system.producer.result(job, RESULT_MS) for job in jobs] == [SESSION] * count


async def spoil(connection: Connection, key: str) -> None:
    """Store something of another type there."""
    await connection.commands.delete(key)
    if TYPES[key.partition("}:")[2].partition(":")[0]] == "string":
        await connection.commands.rpush(key, "rubbish")
    else:
        await connection.commands.set(key, "rubbish")


@pytest.mark.parametrize("key", SHARED)
async def test_a_key_of_another_type_ends_no_job_and_is_made_anew(
    url: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs that come afterwards complete, the log names the key once and what was in it, and has no traceback."""
    caplog.set_level(logging.INFO)
    async with running(url) as system:
        await system.add_node("n1", handle)
        await system.store.control.send_command(
            encode_command(ApplyPools({"default": PoolDocument(session_concurrency=1)})), RESULT_MS
        )
        await complete(system)
        await spoil(system.store.connection, key)

        await complete(system)

        connection = system.store.connection
        names = [key]

        async def is_right() -> bool:
            found = await connection.patiently(lambda: connection.commands.type(names[0]))
            return found.decode() in ("none", TYPES[names[0].partition("}:")[2].partition(":")[0]])

        async with asyncio.timeout(RESULT_MS / 1000):
            await system.until(is_right)
        await complete(system)
        assert await system.store.reads.length(CELL.dead) == 0
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sum(line.startswith(f"{key} held a ") for line in told) == 1
    assert not [record.getMessage() for record in caplog.records if record.exc_info]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) <= 4


MALFORMED: Final[tuple[tuple[str, str, str], ...]] = (
    (CELL.owners, "hset", "rubbish"),
    (CELL.owners, "hset", "5 me later 5"),
    (CELL.capacity, "hset", "rubbish"),
    (CONTROL.leader, "hset", "rubbish"),
    (CELL.leader_epoch, "set", "rubbish"),
    (CONTROL.version, "set", "rubbish"),
    (CONTROL.snapshot, "set", "rubbish"),
    (CELL.counted, "set", "rubbish"),
    (CONTROL.layout, "hset", "rubbish"),
)


@pytest.mark.parametrize(("key", "command", "value"), MALFORMED)
async def test_a_value_that_no_script_has_written_ends_no_job(
    url: str, key: str, command: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a hash all fields are spoiled. Whatever else is written again, jobs complete, and no step has a traceback."""
    caplog.set_level(logging.INFO)
    async with running(url) as system:
        await system.add_node("n1", handle)
        await complete(system)
        client = system.store.connection.commands
        if command == "set":
            await client.set(key, value)
        else:
            kept = await client.hgetall(key)
            fields: dict[Any, str] = {each: value for each in kept if not each.startswith(b"script:")}
            await client.hset(key, mapping=fields)

        await complete(system, 8)

        if key == CONTROL.snapshot:
            async with asyncio.timeout(RESULT_MS / 1000):
                await system.until(lambda: is_published(system))
        assert await system.store.reads.length(CELL.dead) == 0
        if key == CELL.owners:
            assert await system.store.reads.owners()
    assert not [record.getMessage() for record in caplog.records if record.exc_info]
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) <= 4


async def is_published(system: System) -> bool:
    """Whether the stored snapshot is the leader's again."""
    return bool(await system.store.connection.commands.get(CONTROL.snapshot) != b"rubbish")


async def test_a_record_of_another_type_ends_its_own_job_alone(url: str) -> None:
    """It is dead under a generated id; those that come in the same call are placed."""
    async with running(url) as system:
        client = system.store.connection.commands
        await client.set(CELL.job("mine"), "rubbish")
        for job_id in ("first", "mine", "last"):
            document = encode_job(JobDocument(session_id=SESSION, job_id=job_id, src_lang="en", tgt_lang="zh"))
            await client.xadd(INTAKE, {"job": document})
        await system.add_node("n1", handle)
        assert [await system.producer.result(job, RESULT_MS) for job in ("first", "last")] == [SESSION] * 2
        async with asyncio.timeout(RESULT_MS / 1000):
            await system.until(lambda: one_dead(system))
        ((_, dead),) = await system.store.reads.entries(CELL.dead)
        assert dead[b"reason"] == b"invalid"
        assert dead[b"detail"] == b"what is stored under its id is no job record"
        assert await client.get(CELL.job("mine")) == b"rubbish"


async def one_dead(system: System) -> bool:
    """Whether one job is dead."""
    return await system.store.reads.length(CELL.dead) == 1


async def test_the_lease_of_others_does_not_hang_on_a_record_of_another_type(store: Store) -> None:
    """Its own job is not known any more; the others of the call are renewed."""
    token = await seed_reserved(store)
    await store.connection.commands.set(CELL.job("other"), "rubbish")
    _, _, answers = await store.cell.renew(NODE, [("other", 1), (JOB, token)])
    assert [type(answer).__name__ for answer in answers] == ["NotRenewed", "Renewed"]


async def test_a_slot_whose_record_is_of_another_type_becomes_free(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose record was deleted does."""
    clock: HandClock = hand_clock(monkeypatch)
    await seed_reserved(store)
    client = store.connection.commands
    await client.set(CELL.job(JOB), "rubbish")
    await client.zadd(CELL.slots(NODE), {JOB: 1})
    layout = await store.control.write_layout()
    reaper = Reaper(store, store.settings, layout, "reaper", "b", clock)
    for _ in range(2 * store.settings.lease_ms // STEP_MS):
        await reaper.run_once()
        clock.go(STEP_MS)
    assert await client.zcard(CELL.slots(NODE)) == 0


async def test_who_mends_nothing_is_told_the_key(store: Store) -> None:
    """A node, a producer or a command: the error names the key, what it holds, and what to do."""
    await store.connection.commands.set(CELL.slots(NODE), "rubbish")
    for call in (lambda: store.reads.used([NODE]), lambda: store.reads.reservations(NODE)):
        with pytest.raises(WrongType) as caught:
            await call()
        assert str(caught.value) == (
            f"{CELL.slots(NODE)} holds a string, where a zset belongs: somebody else wrote it; "
            f"delete it, or let a running manager, dispatcher or reaper do so"
        )
    assert await store.connection.commands.get(CELL.slots(NODE)) == b"rubbish"


async def test_a_key_of_its_own_type_is_not_touched(store: Store) -> None:
    """Whoever deletes what another one has already made anew would lose it."""
    await store.connection.commands.zadd(CELL.slots(NODE), {JOB: 5})
    await store.connection.retype([CELL.slots(NODE), CELL.open])
    assert await store.connection.commands.zcard(CELL.slots(NODE)) == 1


async def test_times_without_end_are_read(store: Store) -> None:
    """A score can be infinite."""
    await store.connection.commands.zadd(CELL.slots(NODE), {JOB: "inf"})
    assert [job_id for job_id, _, _ in await store.reads.held([NODE], 10)] == [JOB]
    assert [job_id for job_id, _ in await store.reads.reservations(NODE)] == [JOB]
    assert await store.cell.boot(NODE)


async def test_what_is_no_assignment_is_told_in_words(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """By what it lacks, or by what is wrong with it; the node goes on."""
    async with running(url) as system:
        await system.add_node("n1", handle)
        client, inbox = system.store.connection.commands, CELL.inbox("n1")
        await client.xadd(inbox, {"some": "body"})
        await client.xadd(inbox, {"job": encode_job(JobDocument(session_id=SESSION)), "job_id": b"\xff"})
        await client.xadd(inbox, {"job": encode_job(JobDocument(session_id=SESSION)), "reservation": "x y 3 4 5 6 7 8"})
        await complete(system)
    told = [each.getMessage().partition(" is ignored, ")[2] for each in caplog.records if inbox_line(each)]
    assert told == [
        "for no script has written it: it has no field 'job'",
        "for no script has written it: a text in it is no UTF-8",
        "for no script has written it: a number in it is none",
    ]


def inbox_line(record: logging.LogRecord) -> bool:
    """Whether a node tells of an entry that is none."""
    return record.levelno == logging.WARNING and "n1: inbox entry " in record.getMessage()


async def test_a_stream_that_was_made_anew_is_not_called_lost(store: Store) -> None:
    """Whoever has read the highest id there is stands above all that come after it."""
    assert await store.reads.why_behind(keys.HIGHEST_ID) == "it had an id that no clock gives, and was made anew"
    assert await store.reads.why_behind("1-0") == "the server has lost writes, or the key was deleted"
