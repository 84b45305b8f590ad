"""Waiting jobs hear of every change that makes room: the sweep, which would find it too, is off in all of these."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.config import Settings
from scheduler.protocol import messages
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Pool
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.runtime.intake import Job
from scheduler.runtime.reader import STALL_MS
from scheduler.runtime.waiting import overflow
from scheduler.store.cell import Cell
from scheduler.store.reads import Reads
from tests.clock import HandClock
from tests.integration.test_dispatcher import BOOT, CALM, EPOCH, Bench, bench

PATIENCE_MS = 10_000
FEW = msgspec.structs.replace(CALM, read_ahead_max=64)
COUNT = FEW.read_ahead_max // FEW.partitions
RESERVE = Cell.reserve


@asynccontextmanager
async def unswept(url: str, settings: Settings = CALM, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Bench]:
    """A dispatcher without a sweep, so that nothing but its events and questions can help a waiting job."""
    async with bench(url, settings, clock=clock) as b:
        b.dispatcher._timers._due_s["sweep"] = float("inf")
        yield b


async def fill(b: Bench) -> None:
    """One node with one slot, which `j0` takes; `j1` of another session waits for it."""
    await b.fleet(n1=1)
    for session, job_id in (("s0", "j0"), ("s1", "j1")):
        await b.add(session, job_id)
        await b.step_until_read()


async def make_room_silently(b: Bench) -> None:
    """As if the event of a freed slot had been lost: the node is open, and nothing says so."""
    await b.store.connection.commands.zrem(b.store.cell.keys.slots("n1"), "j0")
    await b.store.connection.commands.sadd(b.store.cell.keys.open, "n1")


async def tell_of_others(b: Bench, count: int, forget: bool = False) -> None:
    """So many events of a node that serves nobody here, all at once; returns when they have been handed over.

    forget: what came before them is gone from the stream.
    """
    pipeline = b.store.connection.commands.pipeline(transaction=True)
    for _ in range(count):
        pipeline.xadd(b.store.cell.keys.freed, {"nodes": "nobody"})
    if forget:
        pipeline.xtrim(b.store.cell.keys.freed, maxlen=count, approximate=False)
    last = (await pipeline.execute())[count - 1].decode()
    assert b.dispatcher._reader is not None
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while b.dispatcher._reader._handed_freed != last:
            await b.dispatcher.run_once()


async def until_placed(b: Bench, job_id: str, node: str = "n1") -> None:
    """Step until a job is in the inbox of a node."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while job_id not in await b.inbox(node):
            await b.dispatcher.run_once()


async def test_room_that_is_there_when_open_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 21: a job that its candidates refused is tried on every node that `open` names, without any event."""
    reserve = Cell.reserve
    refused: list[str] = []

    async with unswept(url) as b:

        async def refused_then_room(
            self: Cell, items: Sequence[messages.ReserveItem], *rest: object
        ) -> list[messages.Reserved | messages.Refused]:
            answers = await reserve(self, items, *rest)  # type: ignore[arg-type]
            if answers == [messages.Refused("full")] and not refused:
                refused.append(items[0].job_id)
                await make_room_silently(b)
            return answers

        monkeypatch.setattr(Cell, "reserve", refused_then_room)
        await fill(b)
        await until_placed(b, "j1")
        assert refused == ["j1"]


async def test_a_slot_that_is_freed_after_open_was_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 20: between the answer, which knows of no room, and the parking no event is lost."""
    are_open = Reads.are_open
    freed: list[str] = []

    async with unswept(url) as b:

        async def answered_then_freed(self: Reads, nodes: Sequence[str]) -> list[bool]:
            answer = await are_open(self, nodes)
            if answer == [False] and not freed:
                freed.append("j0")
                await b.free("n1", "j0")
            return answer

        monkeypatch.setattr(Reads, "are_open", answered_then_freed)
        await fill(b)
        await until_placed(b, "j1")
        assert freed == ["j0"]


async def test_capacity_that_rises_wakes(url: str) -> None:
    """RULES 20: a slot more on a full node is room too."""
    async with unswept(url) as b:
        await fill(b)
        await b.store.cell.capacity(EPOCH, [CapacityItem("n1", 2, BOOT, "ready")])
        await until_placed(b, "j1")


async def test_a_full_count_of_events_is_a_gap(url: str) -> None:
    """RULES 20: after as many events as one read may bring, some may be gone; if so waiting classes ask. While the
    event that was read last is still there, they need not.
    """
    async with unswept(url, FEW) as b:
        await fill(b)
        await make_room_silently(b)
        await tell_of_others(b, 1)
        await tell_of_others(b, 3 * COUNT)
        assert await b.inbox("n1") == ["j0"]
        await tell_of_others(b, COUNT, forget=True)
        await until_placed(b, "j1")


async def test_a_second_without_a_read_is_a_gap(url: str) -> None:
    """RULES 20: a pause in the middle of a read may have cost events, so waiting classes ask; a shorter one need
    not.
    """
    clock = HandClock()
    async with unswept(url, clock=clock) as b:
        await fill(b)
        await make_room_silently(b)
        clock.go(STALL_MS - 100)
        await tell_of_others(b, 1)
        assert await b.inbox("n1") == ["j0"]
        clock.go(STALL_MS + 100)
        await until_placed(b, "j1")


async def test_a_waiting_job_that_is_sent_back_to_the_snapshot_is_tried_again(url: str) -> None:
    """RULES 20 and 22: what is counted is another thing since it parked; the word of the free slot is not lost."""
    async with unswept(url) as b:
        await fill(b)
        await b.store.cell.count(EPOCH, messages.Counted(0, frozenset({"session"})))
        await b.free("n1", "j0")
        await until_placed(b, "j1")
        held = b.store.cell.keys.held("session", "s1")
        assert await b.store.connection.commands.zrange(held, 0, -1) == [b"j1"]


async def test_a_dispatcher_waits_for_the_snapshot_that_the_cell_asks_for(url: str) -> None:
    """RULES 22: its newcomers are placed once that is published."""
    async with unswept(url) as b:
        await b.fleet(n1=9)
        version = b.dispatcher.snapshots.index.version
        await b.store.cell.count(EPOCH, messages.Counted(version + 1, frozenset({"session"})))
        await b.add("s1", "j0")
        await b.step_until_read()
        assert await b.inbox("n1") == []
        await b.fleet(n1=9)
        await until_placed(b, "j0")


async def reserve_within_limits(
    self: Cell,
    items: Sequence[messages.ReserveItem],
    boots: Mapping[str, str],
    pools: Mapping[str, Pool],
    version: int,
    life: str = "",
) -> list[messages.Reserved | messages.Refused]:
    """`reserve` as it is with limits of sessions."""
    commands = self._connection.commands
    answers: list[messages.Reserved | messages.Refused] = []
    for item in items:
        held = self.keys.held("session", item.session_id)
        if await commands.zcard(held) >= pools[item.pool].session_concurrency:
            answers.append(messages.Refused("limited", f"session:{item.session_id}"))
        else:
            answers += await RESERVE(self, [item], boots, pools, version)
            if isinstance(answers[-1], messages.Reserved):
                await commands.zadd(held, {item.job_id: 1})
    return answers


async def fill_session(b: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session that may run one job at once, `j0` runs, and `j1` and `j2` wait."""
    monkeypatch.setattr(Cell, "reserve", reserve_within_limits)
    b.pool = Pool("default", session_concurrency=1)
    await b.fleet(n1=9)
    for job_id in ("j0", "j1", "j2"):
        await b.add("s1", job_id)
        await b.step_until_read()
    assert {each.job.job_id: each.state for each in b.dispatcher.state.waiting} == {"j1": "limited", "j2": "behind"}


async def test_a_limited_job_is_tried_when_its_limit_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 22: jobs of other sessions pass it meanwhile, those of its own queue behind it."""
    async with unswept(url) as b:
        await fill_session(b, monkeypatch)
        await b.add("s2", "j3")
        await until_placed(b, "j3")
        assert await b.inbox("n1") == ["j0", "j3"]
        await b.store.connection.commands.delete(b.store.cell.keys.held("session", "s1"))
        await b.store.connection.commands.xadd(b.store.cell.keys.freed, {"limits": "tenant:t1 session:s1"})
        await until_placed(b, "j1")
        assert {each.job.job_id: each.state for each in b.dispatcher.state.waiting} == {"j2": "limited"}
        assert b.dispatcher.report.limited == 2


async def test_a_snapshot_without_the_limit_lets_its_jobs_go(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 22: so does one with a higher limit; nothing else tells of that."""
    async with unswept(url) as b:
        await fill_session(b, monkeypatch)
        b.pool = Pool("default", session_concurrency=2)
        held = b.store.cell.keys.held("session", "s1")
        await b.store.connection.commands.zadd(held, {"j0": 2})  # as the leader does before it publishes
        await b.fleet(n1=9)
        await until_placed(b, "j1")
        assert {each.job.job_id: each.state for each in b.dispatcher.state.waiting} == {"j2": "limited"}


@pytest.mark.usefixtures("frequent_sweep")
async def test_the_sweep_finds_a_limit_with_room_that_no_event_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 20 and 22: the safety net works, and says that it was needed."""
    async with bench(url) as b:
        await fill_session(b, monkeypatch)
        await b.store.connection.commands.delete(b.store.cell.keys.held("session", "s1"))
        await until_placed(b, "j1")
        assert b.dispatcher.state.waiting.sweep_hits == 1


async def finish_next(b: Bench) -> str:
    """Step until a job is in the inbox of n1, and finish it."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not (ids := await b.inbox("n1")):
            await b.dispatcher.run_once()
    await b.free("n1", ids[0])
    return ids[0]


@pytest.mark.parametrize("sessions", [1, 3, 30], ids=["one session", "three sessions", "a session each"])
async def test_memory_is_bounded_and_what_was_skipped_comes_in_order(url: str, sessions: int) -> None:
    """RULES 19: jobs that there is no memory for are read again when others have left, each session in its order."""
    settings = msgspec.structs.replace(CALM, waiting_max=8, waiting_class_max=6, read_ahead_max=16)
    async with unswept(url, settings) as b:
        await b.fleet(n1=1)
        ids = [f"j{i}" for i in range(30)]
        await b.add_all({job_id: f"s{i % sessions}" for i, job_id in enumerate(ids)})
        await b.step_until_read()
        assert len(b.dispatcher.state.waiting) <= 8
        assert b.dispatcher.state.overflow.deferred >= 30 - 1 - 8
        placed = [await finish_next(b) for _ in ids]
        for session in range(sessions):
            assert [each for each in placed if int(each[1:]) % sessions == session] == ids[session::sessions]
        await b.dispatcher.run_once()
        assert (len(b.dispatcher.state.waiting), bool(b.dispatcher.state.overflow)) == (0, False)


async def test_a_flood_for_one_class_keeps_nobody_else_from_being_read(url: str) -> None:
    """RULES 19: other classes are placed beside it; sessions that have a skipped job are not, or they would pass it."""
    settings = msgspec.structs.replace(CALM, waiting_class_max=4)
    async with unswept(url, settings) as b:
        b.pairs["n2"] = ("en", "de")
        await b.fleet(n1=1, n2=9)
        flood = {f"j{i}": f"s{i}" for i in range(20)}
        await b.add_all(flood)
        await b.step_until_read()
        assert len(b.dispatcher.state.waiting) == 4
        await b.add("other", "de0", pair=("en", "de"))
        await until_placed(b, "de0", "n2")
        later = next(job_id for job_id in flood if b.dispatcher.state.overflow.must_defer(flood[job_id], []))
        await b.add(flood[later], "de1", pair=("en", "de"))
        await b.step_until_read()
        assert await b.inbox("n2") == ["de0"]
        finished = []
        while later not in finished:
            finished.append(await finish_next(b))
        await until_placed(b, "de1", "n2")


@pytest.mark.usefixtures("frequent_sweep")
async def test_a_skipped_job_expires_in_time(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 19: what was scanned past is read again when a deadline has passed, whether there is memory or not."""
    monkeypatch.setattr(overflow, "LATE_EVERY_MS", 1)
    async with bench(url, msgspec.structs.replace(CALM, waiting_class_max=1)) as b:
        await b.fleet(n1=1)
        for job_id in ("j0", "j1", "j2"):
            await b.add(f"of-{job_id}", job_id, deadline_ms=200 if job_id == "j2" else None)
            await b.step_until_read()
        assert b.dispatcher.state.overflow
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while not await b.store.reads.length(b.store.cell.keys.dead):
                await b.dispatcher.run_once()
        assert (await b.store.reads.record("j2"))["reason"] == "expired"
        assert {each.job.job_id for each in b.dispatcher.state.waiting} == {"j1"}


async def test_a_lost_partition_takes_what_was_skipped_along(url: str) -> None:
    """RULES 4 and 19: it is the next owner's business, who reads from the start."""
    async with unswept(url, msgspec.structs.replace(CALM, waiting_class_max=1)) as b:
        await b.fleet(n1=1)
        await b.add_all({f"j{i}": "s1" for i in range(5)})
        await b.step_until_read()
        assert b.dispatcher.state.overflow
        b.dispatcher.partitions.lose(b.partition_of("s1"))
        b.dispatcher._apply_partitions()  # which the next step begins with
        assert (len(b.dispatcher.state.waiting), bool(b.dispatcher.state.overflow)) == (0, False)
        assert [await finish_next(b) for _ in range(5)] == [f"j{i}" for i in range(5)]


async def test_what_was_read_before_a_loss_is_not_scanned_past(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 4 and 19: the partition is lost in the middle of a batch; the rest of it is nobody's business here."""
    async with unswept(url, msgspec.structs.replace(CALM, waiting_class_max=1, batch_max=2)) as b:
        await b.fleet(n1=1)
        names = [f"t{i}" for i in range(99)]
        first, later = [name for name in names if b.partition_of(name) != b.partition_of("s1")][:2]
        for session, job_id in (("s1", "j0"), (first, "j1"), (later, "j2")):
            await b.add(session, job_id)
            await b.step_until_read()
        assert list(b.dispatcher.state.overflow.cursors()) == [b.partition_of(later)]
        read = Dispatcher._read_bindings

        async def lose(self: Dispatcher, jobs: Iterable[Job]) -> None:
            await read(self, jobs)
            b.dispatcher.partitions.lose(b.partition_of("s1"))

        with monkeypatch.context() as patch:
            patch.setattr(Dispatcher, "_read_bindings", lose)
            await b.add_all({f"k{i}": "s1" for i in range(6)})
            await b.step_until_read()
        assert list(b.dispatcher.state.overflow.cursors()) == [b.partition_of(later)]
        placed = [await finish_next(b) for _ in range(9)]
        assert [each for each in placed if each[0] == "k"] == [f"k{i}" for i in range(6)]
