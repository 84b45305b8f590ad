"""The dispatcher step by step on a real server: what it reads, holds, loses, and does when a batch fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random

import msgspec
import pytest

from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.config import Settings
from scheduler.loop import end_tasks
from scheduler.protocol import keys, messages
from scheduler.protocol.documents import DispatcherBeat, JobDocument, decode_beat, encode_job
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Node, Pool, Snapshot
from scheduler.runtime.dispatch_state import DispatchState
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.runtime.intake import Job
from scheduler.runtime.reader import Batch, Reader
from scheduler.session.bindings import Bindings
from scheduler.store.cell import Cell
from scheduler.store.connection import ScriptFailed
from scheduler.store.control import Leading
from scheduler.store.paced_reads import PacedReads
from scheduler.store.store import Store, open_store
from tests.system import QUICK

BOOT = "1000-test"
EPOCH = 1
PATIENCE_MS = 3_000
FORGETFUL = msgspec.structs.replace(QUICK, partition_lease_ms=60_000, batch_max=2, sessions_max=4)
CALM = msgspec.structs.replace(QUICK, partition_lease_ms=60_000, no_node_grace_ms=60_000)


class Bench:
    """A dispatcher that is driven step by step, on a fleet that exists as capacities and a snapshot only."""

    def __init__(self, store: Store, dispatcher: Dispatcher, layout: messages.Layout) -> None:
        self.store = store
        self.dispatcher = dispatcher
        self.layout = layout
        self.pool = Pool("default")
        self.pairs: dict[str, tuple[str, str]] = {}
        self.entries = 0

    async def fleet(self, **slots: int) -> None:
        """Nodes with so many slots each, serving en:zh, or what `pairs` says."""
        items = [CapacityItem(name, count, BOOT, "ready") for name, count in slots.items()]
        await self.store.cell.capacity(EPOCH, items)
        nodes = tuple(
            Node(name, BOOT, count, "default", (self.pairs.get(name, ("en", "zh")),)) for name, count in slots.items()
        )
        lead = await self.store.control.lead("m+1")
        assert isinstance(lead, Leading)
        version = await self.store.control.time_us()
        await self.store.control.publish("m+1", lead.epoch, Snapshot(version, nodes, (self.pool,)))
        await self.dispatcher.snapshots.load()

    def partition_of(self, session: str) -> int:
        """Where the jobs of a session are."""
        return keys.partition_of(session, self.layout.partitions)

    async def add(
        self, session: str, job_id: str, *, pair: tuple[str, str] = ("en", "zh"), deadline_ms: int | None = None
    ) -> str:
        """A raw intake entry; its partition and id."""
        partition = self.partition_of(session)
        document = encode_job(JobDocument(session, job_id, *pair, deadline_ms=deadline_ms))
        fields = {"job": document, "payload": b""}
        identifier = await self.store.connection.commands.xadd(self.store.cell.keys.jobs(partition), fields)
        self.entries += 1
        return f"{partition}/{identifier.decode()}"

    async def add_all(
        self,
        sessions: Mapping[str, str],
        *,
        pair: tuple[str, str] = ("en", "zh"),
        others: Mapping[str, str] | None = None,
    ) -> None:
        """Raw intake entries (job id -> session) that are there at once. others: such of en:zh after them."""
        pipeline = self.store.connection.commands.pipeline(transaction=True)
        entries = [(job_id, session, pair) for job_id, session in sessions.items()]
        entries += [(job_id, session, ("en", "zh")) for job_id, session in (others or {}).items()]
        for job_id, session, languages in entries:
            document = encode_job(JobDocument(session, job_id, *languages))
            pipeline.xadd(self.store.cell.keys.jobs(self.partition_of(session)), {"job": document, "payload": b""})
        await pipeline.execute()
        self.entries += len(entries)

    async def step_until_read(self) -> None:
        """Step until every entry so far has been read and handled."""
        while self.dispatcher.report.read < self.entries:
            await self.dispatcher.run_once()

    async def pause(self, *partitions: int) -> None:
        """Let it seem dead: no heartbeat, and the lease of these partitions over (of all, if none is named)."""
        self.dispatcher._heartbeats.stop()
        await self.store.connection.commands.delete(self.store.control.keys.dispatchers)
        owners = await self.store.reads.owners()
        for partition in partitions or owners:
            epoch, owner, _ = owners[partition]
            await self.store.connection.commands.hset(self.store.cell.keys.owners, partition, f"{epoch} {owner} 0")

    async def inbox(self, node: str) -> list[str]:
        """The jobs assigned to a node, in order."""
        entries = await self.store.reads.entries(self.store.cell.keys.inbox(node), count=10_000)
        return [fields[b"job_id"].decode() for _, fields in entries if b"job_id" in fields]

    async def free(self, node: str, *job_ids: str) -> None:
        """Finish jobs as their node would."""
        await self.free_all(dict.fromkeys(job_ids, node))

    async def free_all(self, held: Mapping[str, str]) -> None:
        """Finish jobs (job id -> node) in one call."""
        items = []
        for job_id, node in held.items():
            record = await self.store.reads.record(job_id)
            item = messages.ReleaseItem(
                job_id=job_id,
                node=node,
                partition=keys.partition_of_entry(record["entry"]),
                session_id=record["session"],
                tenant_id=record.get("tenant", ""),
                reply_to="",
                token=int(record["token"]),
                verdict="finish",
            )
            items.append(item)
        _, answers = await self.store.cell.release(items, 60_000, 60_000)
        assert answers == [messages.Released("completed")] * len(items)


@asynccontextmanager
async def bench(
    url: str, settings: Settings = CALM, owner: str = "d+1", clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[Bench]:
    """An opened dispatcher."""
    async with await open_store(url, settings) as store:
        layout = await store.control.write_layout()
        dispatcher = Dispatcher(store, settings, layout, owner, Random(), clock)
        await dispatcher.open()
        try:
            yield Bench(store, dispatcher, layout)
        finally:
            await dispatcher.close()


async def test_what_is_read_and_called_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 6: COUNT is per stream, so the bound is over all of them; a call takes 128 jobs at most."""
    settings = msgspec.structs.replace(CALM, read_ahead_max=64, batch_max=16)
    called: list[int] = []
    taken: list[int] = []
    reserve, apply = Cell.reserve, DispatchState.apply_batch

    async def spy(self: Cell, items: list[messages.ReserveItem], *rest: object) -> object:
        called.append(len(items))
        return await reserve(self, items, *rest)  # type: ignore[arg-type]

    def spy_on_batches(self: DispatchState, batch: Batch) -> list[Job]:
        taken.append(len(batch.jobs))
        return apply(self, batch)

    monkeypatch.setattr(Cell, "reserve", spy)
    monkeypatch.setattr(DispatchState, "apply_batch", spy_on_batches)
    async with bench(url, settings) as b:
        await b.fleet(n1=2_000)
        for i in range(600):
            await b.add(f"s{i % 50}", f"j{i}")
        await b.step_until_read()
        assert (max(taken) <= 64, max(called) <= 16, b.dispatcher.report.placed) == (True, True, 600)


async def test_a_partition_that_is_gained_is_read_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the read of the others blocks, for however long that is."""
    async with bench(url) as b, asyncio.timeout(PATIENCE_MS / 1000):
        reads = b.store.new_reads()
        streams = reads.streams

        async def for_long(cursors: Mapping[str, str], count: int, *_: object) -> object:
            return await streams(cursors, count, block_ms=60_000)

        monkeypatch.setattr(reads, "streams", for_long)
        paced = PacedReads(reads, b.store.connection, CALM, SYSTEM_CLOCK)
        reader = Reader(reads, paced, CALM, SYSTEM_CLOCK, "0", Bindings(10, 60_000))
        reader.own(b.partition_of("s1") ^ 1, 1)
        reading = asyncio.create_task(reader.run())
        while not reader._reading:
            await b.store.control.time_us()
        await b.add("s1", "j1")
        reader.own(b.partition_of("s1"), 1)
        batch = await reader.next(PATIENCE_MS)
        await end_tasks([reading])
        await reads.close()
    assert [job.job_id for job in batch.jobs] == ["j1"]


async def test_newcomers_of_other_classes_are_called_beside_those_who_wait(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call of a woken job ends only once that of a newcomer has begun."""
    both, reserve = asyncio.Event(), Cell.reserve
    under_way: set[str] = set()

    async def together(self: Cell, items: list[messages.ReserveItem], *rest: object) -> object:
        under_way.update(item.job_id for item in items)
        if under_way == {"j2", "j3"}:
            both.set()
        await both.wait()
        return await reserve(self, items, *rest)  # type: ignore[arg-type]

    async with bench(url) as b, asyncio.timeout(PATIENCE_MS / 1000):
        b.pairs["n2"] = ("en", "de")
        await b.fleet(n1=1, n2=1)
        for number in (1, 2):
            await b.add(f"s{number}", f"j{number}")
        await b.step_until_read()
        await b.free("n1", "j1")
        await b.add("s3", "j3", pair=("en", "de"))
        reader = b.dispatcher._reader
        assert reader is not None
        while not (reader._hand.freed and reader._hand.jobs):
            await b.store.control.time_us()
        monkeypatch.setattr(Cell, "reserve", together)
        await b.dispatcher.run_once()
        assert (await b.inbox("n1"), await b.inbox("n2")) == (["j2"], ["j3"])


async def test_a_job_whose_script_fails_waits(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing shows that it is at fault it ends by nothing; it is placed once the script does its work."""
    reserve, broken = Cell.reserve, True

    async def failing(self: Cell, items: object, *rest: object) -> list[messages.Reserved | messages.Refused]:
        if broken:
            raise ScriptFailed("attempt to compare number with nil")
        return await reserve(self, items, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Cell, "reserve", failing)
    async with bench(url) as b, asyncio.timeout(PATIENCE_MS / 1000):
        await b.fleet(n1=2)
        await b.add("s1", "j1")
        await b.step_until_read()
        assert await b.store.reads.length(b.store.cell.keys.dead) == 0
        broken = False
        while await b.inbox("n1") != ["j1"]:
            await b.dispatcher.run_once()


async def test_a_job_that_breaks_the_script_is_dead_alone(url: str) -> None:
    """RULES 29: what is stored under one job's id is no record; it ends with a reason, the others are placed."""
    async with bench(url) as b:
        await b.fleet(n1=100)
        for i in range(9):
            if i == 4:
                await b.store.connection.commands.set(b.store.cell.keys.job("j4"), "no record")
            await b.add("s1", f"j{i}")
        await b.step_until_read()
        while not await b.store.reads.length(b.store.cell.keys.dead):
            await b.dispatcher.run_once()
        assert await b.inbox("n1") == ["j0", "j1", "j2", "j3", "j5", "j6", "j7", "j8"]
        dead = (await b.store.reads.entries(b.store.cell.keys.dead))[0][1]
        assert (dead[b"reason"], dead[b"job_id"][:1]) == (b"invalid", b"~")


async def test_order_holds_when_a_batch_falls_apart(url: str) -> None:
    """RULES 18 and 29: jobs tried alone after a failure do not pass the first of their session that waits."""
    async with bench(url) as b:
        await b.fleet(n1=2)
        await b.store.connection.commands.set(b.store.cell.keys.job("j1"), "no record")
        for i in range(5):
            await b.add("s1", f"j{i}")
        await b.step_until_read()
        assert await b.inbox("n1") == ["j0", "j2"]
        await b.free("n1", "j0")
        while len(await b.inbox("n1")) < 2:
            await b.dispatcher.run_once()
        assert await b.inbox("n1") == ["j2", "j3"]


async def test_losing_a_partition_drops_what_is_remembered(url: str) -> None:
    """RULES 4: waiting jobs and bindings of a lost partition are forgotten; the other owner places its jobs."""
    async with bench(url) as b:
        await b.fleet(n1=1)
        await b.add("s1", "j0")
        await b.add("s1", "j1")
        await b.step_until_read()
        assert (len(b.dispatcher.state.waiting), "s1" in b.dispatcher.state.bindings) == (1, True)
        partition = keys.partition_of("s1", b.layout.partitions)
        (epoch, _, _) = (await b.store.reads.owners())[partition]
        await b.pause(partition)
        async with bench(url, owner="d+2") as other:
            assert other.dispatcher.partitions.holds(partition, epoch) is False
            await b.free("n1", "j0")
            while len(other.dispatcher.partitions) == 0 or await other.inbox("n1") != ["j1"]:
                await b.dispatcher.run_once()
                await other.dispatcher.run_once()
            await b.dispatcher.partitions.claim()
            assert (len(b.dispatcher.state.waiting), "s1" in b.dispatcher.state.bindings) == (0, False)


async def test_a_gap_in_freed_tries_every_waiting_class(url: str) -> None:
    """RULES 20: events that were trimmed before they were read are made up for by asking `open`, not by the sweep."""
    async with bench(url) as b:
        await b.fleet(n1=1)
        await b.add("s1", "j0")
        await b.add("s2", "j1")
        await b.step_until_read()
        assert await b.inbox("n1") == ["j0"]
        reader = b.dispatcher._reader
        assert reader is not None
        await b.free("n1", "j0")
        await b.store.connection.commands.xtrim(b.store.cell.keys.freed, maxlen=0)
        reader._missed = True
        while await b.inbox("n1") != ["j1"]:
            await b.dispatcher.run_once()
        assert b.dispatcher.state.waiting.sweep_hits == 0


@pytest.mark.usefixtures("frequent_sweep")
async def test_the_sweep_finds_room_that_no_event_told_and_counts_it(url: str) -> None:
    """The safety net works, and says that it was needed."""
    async with bench(url) as b:
        await b.fleet(n1=1)
        await b.add("s1", "j0")
        await b.add("s2", "j1")
        await b.step_until_read()
        cell_keys = b.store.cell.keys
        await b.store.connection.commands.zrem(cell_keys.slots("n1"), "j0")
        await b.store.connection.commands.sadd(cell_keys.open, "n1")
        while "j1" not in await b.inbox("n1"):
            await b.dispatcher.run_once()
        assert b.dispatcher.state.waiting.sweep_hits == 1


async def test_freed_is_read_from_before_the_first_reserve(url: str) -> None:
    """RULES 20: a slot that is freed between the opening and the first batch still wakes."""
    async with bench(url) as b:
        await b.fleet(n1=1)
        await b.add("s1", "j0")
        await b.add("s2", "j1")
        await b.step_until_read()
        await b.free("n1", "j0")
        while "j1" not in await b.inbox("n1"):
            await b.dispatcher.run_once()
        assert b.dispatcher.state.waiting.sweep_hits == 0


async def test_reading_has_no_effect_on_the_intake(url: str) -> None:
    """RULES 1: entries that wait, or were only read ahead, stay in the intake until a script deletes them."""
    async with bench(url) as b:
        await b.fleet(n1=1)
        for i in range(10):
            await b.add("s1", f"j{i}")
        await b.step_until_read()
        partition = keys.partition_of("s1", b.layout.partitions)
        assert await b.store.reads.length(b.store.cell.keys.jobs(partition)) == 9
        await b.dispatcher.close()
        async with bench(url, owner="d+2") as other:
            other.entries = 9
            await other.step_until_read()
            assert len(other.dispatcher.state.waiting) == 9


async def bind_to_n1_and_forget(b: Bench) -> None:
    """Session s1 has three jobs on n1, j0 to j2; one of its four slots is free, and n2 is empty. It is forgotten."""
    await b.fleet(n1=4)
    for i in range(3):
        await b.add("s1", f"j{i}")
    await b.step_until_read()
    await b.fleet(n1=4, n2=9)
    for session in ("s2", "s3", "s4", "s5"):
        await b.add(session, f"of-{session}")
        await b.step_until_read()
        await b.free((await b.store.reads.record(f"of-{session}"))["node"], f"of-{session}")
    assert "s1" not in b.dispatcher.state.bindings


async def test_a_session_whose_binding_was_forgotten_does_not_move(url: str) -> None:
    """It is read again before the call, or the job would go where there is most room; here the sessions of one batch
    are more than memory holds.
    """
    async with bench(url, FORGETFUL) as b:
        await bind_to_n1_and_forget(b)
        later = [name for name in (f"t{i}" for i in range(99)) if b.partition_of(name) > b.partition_of("s1")]
        await b.add_all({"j3": "s1"} | {f"of-{session}": session for session in later[:4]})
        await b.step_until_read()
        assert (await b.store.reads.record("j3"))["node"] == "n1"


async def test_a_session_that_is_forgotten_while_its_job_waits_does_not_move(url: str) -> None:
    """Nor does one whose job is tried when it was woken."""
    async with bench(url, FORGETFUL) as b:
        await b.fleet(n1=4)
        for i in range(4):
            await b.add("s1", f"j{i}")
        await b.step_until_read()
        await b.fleet(n1=4, n2=2)
        for session, job_id in (("s2", "k0"), ("s3", "k1"), ("s1", "j4"), *((f"s{i}", f"k{i}") for i in range(4, 8))):
            await b.add(session, job_id)
            await b.step_until_read()
        assert (len(b.dispatcher.state.waiting), "s1" in b.dispatcher.state.bindings) == (5, False)
        await b.free_all({"j0": "n1", "k0": "n2", "k1": "n2"})
        while "node" not in await b.store.reads.record("j4"):
            await b.dispatcher.run_once()
        assert (await b.store.reads.record("j4"))["node"] == "n1"


async def test_decisions_and_waits_for_the_session_are_measured_and_told(url: str) -> None:
    """In the report, and of late in the heartbeat."""
    async with bench(url) as b:
        await b.fleet(n1=1)
        for i in range(3):
            await b.add("s1", f"j{i}")
        await b.step_until_read()
        waits_since_ms = SYSTEM_CLOCK.ms()
        while SYSTEM_CLOCK.ms() < waits_since_ms + 1:  # below a millisecond nobody has waited
            await b.dispatcher.run_once()
        for i in range(2):
            await b.free("n1", f"j{i}")
            while f"j{i + 1}" not in await b.inbox("n1"):
                await b.dispatcher.run_once()
        report = b.dispatcher.report
        assert report.decision_us.count >= 3
        assert 0 < report.decision_us.p99 <= report.decision_us.max
        assert report.session_wait_ms.count == 3
        assert report.session_wait_ms.max > 0
        beat = decode_beat(b.dispatcher._upkeep.document())
        assert isinstance(beat, DispatcherBeat)
        assert (beat.decision_us_p99 > 0, beat.session_wait_ms_p99 > 0) == (True, True)


async def test_a_job_in_the_wrong_partition_is_placed_all_the_same(url: str) -> None:
    """Only affinity and order suffer."""
    async with bench(url) as b:
        await b.fleet(n1=1)
        wrong = (keys.partition_of("s1", b.layout.partitions) + 1) % b.layout.partitions
        document = encode_job(JobDocument("s1", "j0", "en", "zh"))
        await b.store.connection.commands.xadd(b.store.cell.keys.jobs(wrong), {"job": document})
        b.entries = 1
        await b.step_until_read()
        assert await b.inbox("n1") == ["j0"]
