"""Waiting jobs hear of every change that makes room: the sweep, which would find it too, is off in all of these."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from scheduler import calls
from scheduler.calls import CapacityItem
from scheduler.config import Settings
from scheduler.model import Pool
from scheduler.runtime import reader
from scheduler.runtime.reader import DEAF_MS
from scheduler.store.cell import Cell
from scheduler.store.reads import Reads
from tests.integration.test_dispatcher import BOOT, CALM, EPOCH, Bench, bench

PATIENCE_MS = 10_000
FEW = msgspec.structs.replace(CALM, read_ahead_max=64)
COUNT = FEW.read_ahead_max // FEW.partitions
RESERVE = Cell.reserve


@asynccontextmanager
async def unswept(url: str, settings: Settings = CALM) -> AsyncIterator[Bench]:
    """A dispatcher without a sweep, so that nothing but its events and questions can help a waiting job."""
    async with bench(url, settings) as b:
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


async def until_placed(b: Bench, job_id: str) -> None:
    """Step until a job is in the inbox of n1."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while job_id not in await b.inbox("n1"):
            await b.dispatcher.run_once()


async def test_room_that_is_there_when_open_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 21: a job that its candidates refused is tried on every node that `open` names, without any event."""
    reserve = Cell.reserve
    refused: list[str] = []

    async with unswept(url) as b:

        async def refused_then_room(
            self: Cell, items: Sequence[calls.ReserveItem], *rest: object
        ) -> list[calls.Reserved | calls.Refused]:
            answers = await reserve(self, items, *rest)  # type: ignore[arg-type]
            if answers == [calls.Refused("full")] and not refused:
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


class Clock:
    """The reader's own clock, which goes when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


async def test_a_second_without_a_read_is_a_gap(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 20: a pause in the middle of a read may have cost events, so waiting classes ask; a shorter one need
    not.
    """
    clock = Clock()
    monkeypatch.setattr(reader, "time", clock)
    async with unswept(url) as b:
        await fill(b)
        await make_room_silently(b)
        clock.now += DEAF_MS / 1000 - 0.1
        await tell_of_others(b, 1)
        assert await b.inbox("n1") == ["j0"]
        clock.now += DEAF_MS / 1000 + 0.1
        await until_placed(b, "j1")


async def reserve_within_limits(
    self: Cell, items: Sequence[calls.ReserveItem], boots: Mapping[str, str], pools: Mapping[str, Pool], version: int
) -> list[calls.Reserved | calls.Refused]:
    """`reserve` as it is with limits of sessions."""
    commands = self._connection.commands
    answers: list[calls.Reserved | calls.Refused] = []
    for item in items:
        held = self.keys.held("session", item.session_id)
        if await commands.scard(held) >= pools[item.pool].session_concurrency:
            answers.append(calls.Refused("limited", f"session:{item.session_id}"))
        else:
            answers += await RESERVE(self, [item], boots, pools, version)
            if isinstance(answers[-1], calls.Reserved):
                await commands.sadd(held, item.job_id)
    return answers


async def fill_session(b: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session that may run one job at once, `j0` runs, and `j1` and `j2` wait."""
    monkeypatch.setattr(Cell, "reserve", reserve_within_limits)
    b.pool = Pool("default", session_concurrency=1)
    await b.fleet(n1=9)
    for job_id in ("j0", "j1", "j2"):
        await b.add("s1", job_id)
        await b.step_until_read()
    assert {each.job.job_id: each.status for each in b.dispatcher.waiting} == {"j1": "limited", "j2": "behind"}


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
        assert {each.job.job_id: each.status for each in b.dispatcher.waiting} == {"j2": "limited"}
        assert b.dispatcher.report.limited == 2


async def test_a_snapshot_without_the_limit_lets_its_jobs_go(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 22: so does one with a higher limit; nothing else tells of that."""
    async with unswept(url) as b:
        await fill_session(b, monkeypatch)
        b.pool = Pool("default", session_concurrency=2)
        await b.fleet(n1=9)
        await until_placed(b, "j1")
        assert {each.job.job_id: each.status for each in b.dispatcher.waiting} == {"j2": "limited"}


async def test_the_sweep_finds_a_limit_with_room_that_no_event_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 20 and 22: the safety net works, and says that it was needed."""
    async with bench(url) as b:
        await fill_session(b, monkeypatch)
        await b.store.connection.commands.delete(b.store.cell.keys.held("session", "s1"))
        await until_placed(b, "j1")
        assert b.dispatcher.waiting.sweep_hits == 1


async def test_reading_stops_while_too_many_jobs_wait(url: str) -> None:
    """RULES 19: memory for waiting jobs is bounded; the intake keeps the others, and their order."""
    settings = msgspec.structs.replace(CALM, waiting_max=8, read_ahead_max=16)
    in_hand = 2 * settings.read_ahead_max // settings.partitions
    async with unswept(url, settings) as b:
        await b.fleet(n1=1)
        ids = [f"j{i}" for i in range(30)]
        for job_id in ids:
            await b.add("s1", job_id)
        for _ in ids:
            await tell_of_others(b, 1)
        assert settings.waiting_max <= len(b.dispatcher.waiting) <= settings.waiting_max + in_hand
        placed: list[str] = []
        while len(placed) < len(ids):
            await until_placed(b, ids[len(placed)])
            placed += await b.inbox("n1")
            await b.free("n1", placed[-1])
        assert placed == ids
