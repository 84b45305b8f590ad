"""A server that has less than it had: everybody notices, and what can be is made again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.errors import ServerReplaced
from scheduler.management.commands import ApplyPools, encode_command
from scheduler.management.manager import Manager
from scheduler.management.pools import PoolDocument
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.producer import Producer
from scheduler.protocol import keys
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.protocol.snapshot import Pool, Snapshot
from scheduler.reaper.reaper import Reaper
from scheduler.roles import start_manager
from scheduler.runtime.index import Index
from scheduler.runtime.snapshots import Snapshots
from scheduler.server.embedded import start_embedded
from scheduler.store.connection import Connection, ScriptFailed
from scheduler.store.reads import Unslotted
from scheduler.store.store import Store
from tests.clock import HandClock, hand_clock
from tests.seeds import JOB, NODE, seed_delayed, seed_node, seed_record, seed_reserved
from tests.system import QUICK, System, running

TOLD_MS: Final = 2_000
RESULT_MS: Final = 20_000
CELL: Final = keys.CellKeys()
CONTROL: Final = keys.ControlKeys()
WRITTEN_AGAIN: Final = (
    CONTROL.layout, CONTROL.leader, CONTROL.snapshot, CONTROL.version, CONTROL.deltas, CONTROL.config,
    CONTROL.heartbeats, CONTROL.commands, CONTROL.dispatchers, CELL.owners, CELL.capacity, CELL.leader_epoch, CELL.open,
)  # fmt: skip
"""Keys that are there again at once, whatever happens; the others only when there is something to be said."""


class Work:
    """A handler whose jobs of the session `long` run until they are let go.

    running: jobs at once; most: ever; starts: of handlers.
    """

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.begun = asyncio.Event()
        self.running = self.most = self.starts = 0

    async def run(self, job: Job) -> str:
        """One job. The first attempt of those of the session `again` fails."""
        self.running += 1
        self.starts += 1
        self.most = max(self.most, self.running)
        try:
            if job.session_id == "long":
                self.begun.set()
                await self.let_go.wait()
            if job.session_id.startswith("again") and job.attempt == 1:
                raise OSError("once more")
        finally:
            self.running -= 1
        return job.session_id


async def everybody_works(system: System, sessions: Iterable[str]) -> None:
    """A job of each session comes to its end."""
    names = list(sessions)
    jobs = [await system.producer.submit(name, src_lang="en", tgt_lang="zh") for name in names]
    assert [await system.producer.result(job, RESULT_MS) for job in jobs] == names


async def is_there_again(system: System, key: str) -> None:
    """Within the time in which it is promised, and some more for a machine that is busy."""
    async with asyncio.timeout(3 * TOLD_MS / 1000):
        connection = system.store.connection
        await system.until(lambda: connection.patiently(lambda: connection.commands.exists(key)))


async def long_job(system: System, work: Work) -> str:
    """A job that runs, and is renewed."""
    work.begun.clear()
    work.let_go.clear()
    job = await system.producer.submit("long", src_lang="en", tgt_lang="zh")
    await work.begun.wait()
    return job


async def test_rule_4_a_call_is_not_sent_to_another_server_process() -> None:
    """It is about entries that only the process before has had; the script never comes there."""
    with start_embedded() as server:
        connection = Connection(server.url)
        await connection.call("lead", [CONTROL.leader], ["m1", 5_000, "take"], connection.life)
        life = connection.life
        server.restart()

        with pytest.raises(ServerReplaced):
            await connection.call("lead", [CONTROL.leader], ["m1", 5_000, "take"], life)

        assert connection.life != life
        assert await connection.commands.exists(CONTROL.leader) == 0
        await connection.call("lead", [CONTROL.leader], ["m1", 5_000, "take"], connection.life)
        await connection.close()


async def test_rule_4_a_server_that_lost_its_last_writes_is_read_from_the_start(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its new ids are lower than what was read: the partition is claimed anew, and the log says why."""
    async with running(url) as system:
        await system.add_node("n1", Work().run)
        await everybody_works(system, ["s1"])
        jobs = CELL.jobs(keys.partition_of("s1", QUICK.partitions))
        epoch = (await system.store.reads.owners())[keys.partition_of("s1", QUICK.partitions)][0]

        await system.store.connection.commands.delete(jobs)
        document = encode_job(JobDocument(session_id="s1", job_id="late", src_lang="en", tgt_lang="zh"))
        await system.store.connection.commands.xadd(jobs, {"job": document}, id="5-0")

        assert await system.producer.result("late", RESULT_MS) == "s1"
        assert (await system.store.reads.owners())[keys.partition_of("s1", QUICK.partitions)][0] > epoch
    assert any(jobs in line and "ends at 5-0" in line for line in caplog.messages)


async def test_a_node_reads_an_inbox_with_lower_ids_from_its_start(url: str) -> None:
    """What runs goes on, and does not begin a second time."""
    work = Work()
    async with running(url) as system:
        await system.add_node("n1", work.run)
        first = await long_job(system, work)
        inbox = CELL.inbox("n1")
        ((_, fields),) = [each for each in await system.store.reads.entries(inbox) if b"job_id" in each[1]]
        await system.store.connection.commands.delete(inbox)
        await system.store.connection.commands.xadd(inbox, fields, id="5-0")
        await system.until(lambda: system.nodes["n1"]._inbox._cursor == "5-0")

        assert (work.running, work.most) == (1, 1)
        work.let_go.set()
        assert await system.producer.result(first, RESULT_MS) == "long"


async def test_a_feed_with_lower_ids_is_read_on_from_its_end(url: str) -> None:
    """What ends after that is heard; what was missed is in the records."""
    async with running(url) as system:
        await system.add_node("n1", Work().run)
        await everybody_works(system, ["s1"])
        heard: list[str] = []

        async def listen() -> None:
            async for _, outcome in system.producer.results("0"):
                heard.append(outcome.job_id)

        listening = asyncio.create_task(listen())
        await system.until(lambda: len(heard) == 1)
        commands = system.store.connection.commands
        await commands.delete(CELL.results)
        await commands.xadd(CELL.results, {"job_id": "missed", "state": "completed"}, id="5-0")
        async with asyncio.timeout(3 * TOLD_MS / 1000):
            while "later" not in heard:
                await commands.xadd(CELL.results, {"job_id": "later", "state": "completed"}, id="5-*")
        assert "missed" not in heard
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_an_emptied_server_is_used_again_and_no_node_runs_more_than_it_has_slots(
    is_restarted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Handlers of jobs that are no more end, newcomers can join, and the log says what was lost."""
    work = Work()
    with start_embedded() as server:
        async with running(server.url) as system:
            await system.add_node("n1", work.run, capacity=1)
            limited = {"default": PoolDocument(session_concurrency=2)}
            await system.store.control.send_command(encode_command(ApplyPools(limited)), RESULT_MS)
            await long_job(system, work)
            if is_restarted:
                server.restart()
            else:
                await system.store.connection.commands.flushall()

            await is_there_again(system, CONTROL.layout)
            await everybody_works(system, ["s1", "s2", "s3"])
            assert work.most == 1
            async with (
                Producer(server.url, settings=QUICK) as producer,
                Node(server.url, "n2", capacity=1, handler=work.run, settings=QUICK) as node,
            ):
                await producer.result(await producer.submit("s4"), RESULT_MS)
                await system.until(lambda: node.phase == "serving")
            assert await system.used() == 0
            assert [*await system.store.control.read_config()] == ["pool:default"]
    for key in (CONTROL.layout, CONTROL.config):
        assert any(key in line and "was lost" in line for line in caplog.messages)


async def test_a_manager_that_stood_by_knows_what_was_configured(url: str) -> None:
    """The one that leads when the server has lost it may be another one than before."""
    async with running(url) as system:
        limited = {"default": PoolDocument(session_concurrency=2)}
        await system.store.control.send_command(encode_command(ApplyPools(limited)), RESULT_MS)
        other = Manager(system.store, QUICK, "another")
        await other.run_once()  # and does not lead
        await system.store.connection.commands.flushall()
        async with asyncio.timeout(RESULT_MS / 1000):
            while not other.leading:
                await system.store.connection.commands.delete(CONTROL.leader)
                await other.run_once()
        assert [*await system.store.control.read_config()] == ["pool:default"]


async def test_each_key_that_steers_is_made_again(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """One after the other is deleted while a job runs; it goes on, one that is delayed comes back, and others are
    placed.
    """
    work = Work()
    limited = {"default": PoolDocument(session_concurrency=2)}
    async with running(url) as system:
        await system.add_node("n1", work.run, capacity=3)
        await system.store.control.send_command(encode_command(ApplyPools(limited)), RESULT_MS)
        commands = system.store.connection.commands
        held = CELL.held("session", "long")
        for number, key in enumerate(
            (*WRITTEN_AGAIN, CELL.freed, CELL.slots("n1"), held, CELL.delayed, CONTROL.answers)
        ):
            caplog.clear()
            job = await long_job(system, work)
            again = await system.producer.submit(f"again{number}", src_lang="en", tgt_lang="zh")
            await commands.delete(key)

            if key in (*WRITTEN_AGAIN, CELL.slots("n1"), held):
                await is_there_again(system, key)
            await everybody_works(system, [f"a{number}", f"b{number}", f"c{number}", f"d{number}"])
            assert await system.producer.result(again, RESULT_MS) == f"again{number}", key
            work.let_go.set()
            assert await system.producer.result(job, RESULT_MS) == "long", key
            assert (await system.store.reads.record(job)).get("crashes", "0") == "0", key
        assert await system.used() == 0
        assert work.most <= 3


async def test_leases_of_a_dead_node_end_although_the_capacities_were_deleted(url: str) -> None:
    """A reaper finds its nodes there; one that is dead and holds something is written again too."""
    work = Work()
    settings = msgspec.structs.replace(QUICK, start_ms=4_000, lease_ms=4_000)
    async with running(url, settings) as system:
        dead = await system.add_node("n1", work.run)
        job = await long_job(system, work)
        await dead._close()
        del system.nodes["n1"]

        async def is_dead() -> bool:
            return (await system.store.reads.capacities())["n1"].reason == "dead"

        await system.until(is_dead)
        await system.store.connection.commands.delete(CELL.capacity)

        await system.add_node("n2", work.run)
        work.let_go.set()
        assert await system.producer.result(job, RESULT_MS) == "long"


@pytest.mark.parametrize("key_of", [lambda job: CELL.inbox("n1"), CELL.job], ids=["inbox", "record"])
async def test_of_a_key_that_holds_jobs_nothing_stays_taken(url: str, key_of: Callable[[str], str]) -> None:
    """Its jobs may be lost; their slots and limits are free, and other jobs go on."""
    work = Work()
    limited = {"default": PoolDocument(session_concurrency=1)}
    async with running(url) as system:
        await system.add_node("n1", work.run, capacity=1)
        await system.store.control.send_command(encode_command(ApplyPools(limited)), RESULT_MS)
        job = await long_job(system, work)

        await system.store.connection.commands.delete(key_of(job))
        await system.nodes["n1"]._attempts.ended(0)
        if key_of(job) == CELL.inbox("n1"):
            work.let_go.set()  # it ends as if nothing had happened, for its record is there

        await everybody_works(system, ["s1", "s2"])
        work.let_go.set()
        await everybody_works(system, ["long"])
        assert await system.used() == 0


async def test_a_layout_that_says_otherwise_is_named_and_stays(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever wrote it may have others who go by it; the one who leads goes on as it was."""
    async with running(url) as system:
        await system.add_node("n1", Work().run)
        await system.store.connection.commands.hset(CONTROL.layout, "retention_ms", "1")
        with caplog.at_level(logging.ERROR, "scheduler.manager"):
            await system.until(lambda: any("retention_ms = '1'" in line for line in caplog.messages))

        await everybody_works(system, ["s1"])
        assert await system.store.connection.commands.hget(CONTROL.layout, "retention_ms") == b"1"
        assert sum("retention_ms = '1'" in line for line in caplog.messages) == 1


async def a_reaper(store: Store, clock: HandClock) -> Reaper:
    """One that has listened for long enough to judge."""
    reaper = Reaper(store, DEFAULTS, await store.control.write_layout(), "r", "1", clock)
    for _ in range(2):
        await reaper.run_once()
        clock.go(DEFAULTS.lease_ms)
        await store.reads.capacities()
    return reaper


async def look(reaper: Reaper, clock: HandClock, for_ms: float) -> None:
    """Let time pass for it, in steps that do not make it deaf."""
    until_ms = clock.ms() + for_ms
    while clock.ms() < until_ms:
        clock.go(500)
        await reaper.run_once()


async def test_a_delayed_job_without_a_time_is_found_by_its_body(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is due after its own delay, from when the body was parked; a body of nobody is dropped."""
    clock = hand_clock(monkeypatch)
    await seed_delayed(store, due=False)
    await seed_record(store, delay_ms=1)
    await store.connection.commands.delete(CELL.delayed)
    await store.connection.commands.xadd(CELL.parked, {"job": "nobody's"})
    reaper = await a_reaper(store, clock)

    await look(reaper, clock, 2_000 + DEFAULTS.lease_ms)

    assert (await store.reads.record(JOB))["state"] == "queued"
    assert await store.reads.length(CELL.parked) == 0


async def test_a_delayed_job_that_was_found_is_due_after_its_delay_when_the_clock_goes_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES 38: not when the clock is again where it was."""
    clock = hand_clock(monkeypatch)
    await seed_delayed(store, due=False)
    await seed_record(store, delay_ms=10_000)
    await store.connection.commands.delete(CELL.delayed)
    reaper = await a_reaper(store, clock)
    back_ms = await store.reads.now_ms() - 3_600_000
    for second in range(9):
        await reaper._mender.look([], back_ms + 3_600_000 * (second == 0) + 1_000 * second)
        assert (await store.reads.record(JOB))["state"] == "delayed"
        clock.go(1_000)

    for second in range(9, 13):
        await reaper._mender.look([], back_ms + 1_000 * second)
        clock.go(1_000)

    assert (await store.reads.record(JOB))["state"] == "queued"


async def test_a_reservation_without_a_slot_ends_when_nobody_renews_it_for_a_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: its handler may run under the lease that it has."""
    clock = hand_clock(monkeypatch)
    await seed_reserved(store)
    await store.connection.commands.delete(CELL.slots(NODE))
    reaper = await a_reaper(store, clock)

    await look(reaper, clock, DEFAULTS.lease_ms - 1_000)
    assert (await store.reads.record(JOB))["state"] == "reserved"
    await look(reaper, clock, DEFAULTS.lease_ms)

    assert (await store.reads.record(JOB))["state"] == "queued"
    assert [each for each in await store.reads.entries(CELL.inbox(NODE)) if b"job" in each[1]] == []


@pytest.mark.parametrize("is_large", [False, True])
async def test_an_assignment_without_slot_and_record_is_dropped_after_a_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """Also where so many bytes lie before it that the script does not look so far."""
    clock = hand_clock(monkeypatch)
    if is_large:
        for _ in range(3):
            await store.connection.commands.xadd(CELL.inbox(NODE), {"foreign": bytes(2**24)})
    await seed_reserved(store)
    await store.connection.commands.delete(CELL.slots(NODE), CELL.job(JOB))
    reaper = await a_reaper(store, clock)

    await look(reaper, clock, 2 * DEFAULTS.lease_ms)

    assert await store.reads.length(CELL.inbox(NODE)) == (4 if is_large else 1)  # with the word of its boot


async def test_an_assignment_of_another_reservation_is_dropped_after_a_lease(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record was deleted, and the job came again: nothing else would ever take it out of the inbox."""
    clock = hand_clock(monkeypatch)
    token = await seed_reserved(store)
    await store.connection.commands.delete(CELL.slots(NODE))
    await seed_record(store, holder=f"n2 {token + 1}")
    reaper = await a_reaper(store, clock)

    await look(reaper, clock, 2 * DEFAULTS.lease_ms)

    assert (await store.reads.record(JOB))["state"] == "reserved"
    assert [each for each in await store.reads.entries(CELL.inbox(NODE)) if b"job" in each[1]] == []


@pytest.mark.parametrize(("lease_ms", "is_there"), [(15_000, True), (40_000, True), (40_000, False)])
async def test_a_slot_without_a_record_is_free_after_a_lease_also_when_the_clock_went_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, lease_ms: int, is_there: bool
) -> None:
    """Its lease ends an hour ahead, and nothing says how long it was but the assignment, if that is still there."""
    clock = hand_clock(monkeypatch)
    await seed_reserved(store, pool=Pool("default", lease_ms=lease_ms))
    client, now_ms = store.connection.commands, await store.control.time_us() // 1000
    await client.zadd(CELL.slots(NODE), {JOB: now_ms + 3_600_000})
    await client.delete(CELL.job(JOB))
    if not is_there:
        await client.xtrim(CELL.inbox(NODE), maxlen=0, approximate=False)

    reaper = await a_reaper(store, clock)

    ((_, until_ms),) = await store.reads.reservations(NODE)
    longest_ms = lease_ms if is_there else DEFAULTS.lease_ms
    assert now_ms + longest_ms <= until_ms <= now_ms + longest_ms + 5_000
    await client.zadd(CELL.slots(NODE), {JOB: 1})
    await look(reaper, clock, DEFAULTS.lease_ms)
    assert await store.reads.reservations(NODE) == []


RESERVATION: Final = "5 1000-a 9 1/5-0 1 1 9 9"


@pytest.mark.parametrize("job_id", [b"x", b"\xff\xfe", b"a b", b"{x}"])
async def test_an_assignment_of_nobody_keeps_no_node(
    store: Store, monkeypatch: pytest.MonkeyPatch, job_id: bytes
) -> None:
    """Whatever somebody has written into its inbox, a dead node is taken out, after a lease."""
    clock = hand_clock(monkeypatch)
    await seed_node(store)
    await seed_node(store, slots=0, reason="dead")
    await store.connection.commands.xadd(
        CELL.inbox(NODE), {"job": "junk", "job_id": job_id, "reservation": RESERVATION}
    )
    reaper = await a_reaper(store, clock)
    assert NODE in await store.reads.capacities()

    await look(reaper, clock, 2 * DEFAULTS.lease_ms)

    assert await store.reads.capacities() == {}
    assert await store.reads.length(CELL.inbox(NODE)) == 0


async def test_a_number_that_cannot_be_one_keeps_nothing_from_being_mended(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the inbox of one node, or in the capacities, is no reason to leave all others as they are."""
    clock = hand_clock(monkeypatch)
    await seed_node(store, "n0", slots=3)
    await seed_delayed(store, due=False)
    await seed_record(store, delay_ms=1)
    await seed_reserved(store, "j2", "s2", slots=3)
    await store.connection.commands.xadd(
        CELL.inbox("n0"), {"job": "junk", "job_id": "x", "reservation": "9" * 5000 + RESERVATION}
    )
    await store.connection.commands.hset(CELL.capacity, "n9", "9" * 5000 + " 1000-a ready")
    reaper = await a_reaper(store, clock)
    await store.connection.commands.delete(CELL.delayed, CELL.slots(NODE), CELL.open)

    await look(reaper, clock, 2 * DEFAULTS.lease_ms)

    assert [(await store.reads.record(job_id))["state"] for job_id in (JOB, "j2")] == ["queued", "queued"]
    assert await store.reads.are_open(["n0", NODE]) == [True, True]


async def test_a_node_that_cannot_be_looked_at_keeps_no_other_from_its_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script fails for it, whatever the reason; the failure is raised when all others had their turn."""
    clock = hand_clock(monkeypatch)
    await seed_node(store, "n0")
    await seed_reserved(store)
    await store.connection.commands.delete(CELL.slots(NODE))
    reaper = await a_reaper(store, clock)
    unslotted = store.reads.unslotted

    async def failing(node: str, after: str, count: int) -> tuple[list[Unslotted], str]:
        if node == "n0":
            raise ScriptFailed("unslotted: who knows")
        return await unslotted(node, after, count)

    monkeypatch.setattr(store.reads, "unslotted", failing)
    await store.connection.commands.xadd(CELL.inbox("n0"), {"job": "junk"})

    for _ in range(2 * DEFAULTS.lease_ms // 500):
        with contextlib.suppress(ScriptFailed):
            await look(reaper, clock, 500)

    assert (await store.reads.record(JOB))["state"] == "queued"


async def test_a_job_that_ends_while_its_body_is_read_once_more_runs_once(url: str) -> None:
    """The inbox is read again, for another server process answers, over a slow link: heads first, then bodies."""
    settings = msgspec.structs.replace(QUICK, start_ms=5_000, lease_ms=6_000)
    async with running(url, settings) as system:
        work = Work()
        node = await system.add_node("n1", work.run, capacity=1)
        job_id = await system.producer.submit("long", payload=bytes(100_000))
        await work.begun.wait()
        asked, arrived, by_id = asyncio.Event(), asyncio.Event(), node._inbox.late._reads.by_id

        async def slow(stream: str, ids: list[str]) -> dict[str, dict[bytes, bytes]]:
            found = await by_id(stream, ids)
            asked.set()
            await arrived.wait()
            return found

        node._inbox.late._reads.by_id = slow  # type: ignore[method-assign, assignment]
        node._inbox._paced.pace.gave_up(node._clock.ms())
        node._inbox._life = "the process before"
        await system.until(lambda: node._inbox._read_to_end_ms > node._inbox._compared_at_ms or asked.is_set())
        work.let_go.set()
        assert (await system.producer.outcome(job_id)).state == "completed"
        arrived.set()
        assert await system.producer.result(await system.producer.submit("next")) == "next"
        assert work.starts == 2


async def test_nothing_is_placed_by_a_snapshot_that_another_server_process_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a time that was lost can have a higher version than the server now has, and no limits."""
    follows_no_more = asyncio.Event()

    async def follow(_: Snapshots) -> None:
        follows_no_more.set()
        await asyncio.Event().wait()

    work = Work()
    with start_embedded(tmp_path, persistent=True) as server:
        async with running(server.url) as system:
            await system.add_node("n1", work.run, capacity=1)
            await everybody_works(system, ["s1"])
            monkeypatch.setattr(Snapshots, "follow", follow)
            await follows_no_more.wait()
            ((_, dispatcher),) = system.dispatchers
            dispatcher.snapshots.swap(Index(Snapshot(version=2**52)))
            server.restart()
            await everybody_works(system, ["s2"])
            assert dispatcher.snapshots.index.version < 2**52


async def test_a_job_of_a_dead_node_comes_back_though_capacity_is_lost_with_the_leader(url: str) -> None:
    """Nothing but its slots tells of the node then: reapers go by the capacities."""
    async with running(url) as system:
        work = Work()
        node = await system.add_node("n1", work.run, capacity=1)
        job_id = await system.producer.submit("long")
        await work.begun.wait()
        del system.nodes["n1"]
        await node._close()
        await system.until(lambda: dead(system, "n1"))
        role, _ = system.managers.pop()
        await role.stop()
        await system.store.connection.commands.delete(CELL.capacity)
        work.let_go.set()
        system.managers.append(await start_manager(url, QUICK))
        await system.add_node("n2", work.run, capacity=1)
        assert (await system.producer.outcome(job_id)).state == "completed"
        assert await system.used() == 0


async def dead(system: System, node: str) -> bool:
    """Whether the leader has found it dead."""
    item = (await system.store.reads.capacities()).get(node)
    return item is not None and item.reason == "dead"
