"""Many jobs wait: what a step does for them is bounded, and those of other classes go on beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from scheduler.loop import Timers
from scheduler.protocol import messages
from scheduler.runtime import dispatcher, sweep
from scheduler.runtime.waiting.queues import Waiter
from scheduler.runtime.waiting.waiting_jobs import Waiting
from scheduler.store.cell import Cell
from tests.integration.test_dispatcher import CALM, Bench, bench
from tests.integration.test_rules_waiting import PATIENCE_MS, until_placed

RARE = ("en", "de")


async def seed_waiting(b: Bench, count: int) -> None:
    """So many jobs of a rare pair, each of a session of its own, wait for the only slot of n2; n1 has room."""
    b.pairs["n2"] = RARE
    await b.fleet(n1=9_999, n2=1)
    await b.add_all({f"rare{i}": f"r{i}" for i in range(count + 1)}, pair=RARE)
    await b.step_until_read()
    assert len(b.dispatcher.state.waiting) == count


async def sizes_of_steps(b: Bench, is_over: Callable[[], bool], size: Callable[[], int]) -> list[int]:
    """What each step adds, until something is over."""
    sizes = []
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not is_over():
            before = size()
            await b.dispatcher.run_once()
            sizes.append(size() - before)
    return sizes


async def test_no_step_looks_at_all_who_wait(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a snapshot, nor for room, nor in the sweep."""
    async with bench(url) as b:
        await seed_waiting(b, 50)
        with monkeypatch.context() as patch:
            patch.setattr(Waiting, "__iter__", None)
            await b.fleet(n1=9_999, n2=1, n3=1)
            await b.free("n2", (await b.inbox("n2"))[0])
            b.dispatcher._timers = Timers("sweep", "behind")  # which are due
            while len(b.dispatcher.state.waiting) == 50:
                await b.dispatcher.run_once()
            await b.fleet(n1=9_999)
            await b.add("s1", "other")
            await until_placed(b, "other")


async def test_a_class_that_lost_its_nodes_is_decided_anew_in_parts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot without the node of fifty waiting jobs costs a step no more than a few of them."""
    monkeypatch.setattr(dispatcher, "RECLASSIFY_BATCH_MAX", 8)
    classified: list[Waiter] = []
    reclassify = Waiting.reclassify

    def spy(self: Waiting, waiter: Waiter, *rest: object) -> None:
        classified.append(waiter)
        reclassify(self, waiter, *rest)  # type: ignore[arg-type]

    async with bench(url) as b:
        await seed_waiting(b, 50)
        monkeypatch.setattr(Waiting, "reclassify", spy)
        await b.fleet(n1=9_999)
        sizes = await sizes_of_steps(b, lambda: len(classified) >= 50, lambda: len(classified))
        assert (max(sizes), len(b.dispatcher.state.waiting)) == (8, 50)
        assert [job_class.pool for job_class in b.dispatcher.state.waiting.members.classes()] == [""]


@pytest.mark.usefixtures("frequent_sweep")
async def test_jobs_that_no_node_serves_are_refused_in_parts(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When their time of grace is over, and not all in one step."""
    monkeypatch.setattr(sweep, "ENDED_AT_ONCE_MAX", 8)
    async with bench(url, msgspec.structs.replace(CALM, no_node_grace_ms=1)) as b:
        await seed_waiting(b, 30)
        await b.fleet(n1=9_999)
        report = b.dispatcher.report
        b.dispatcher._timers = Timers("sweep", "behind")  # which are due
        await b.dispatcher.run_once()
        sizes = await sizes_of_steps(b, lambda: report.rejected >= 30, lambda: report.rejected)
        assert (max(sizes), len(b.dispatcher.state.waiting)) == (8, 0)


async def test_who_is_scanned_past_costs_no_call(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a read full of a flood, those of other classes share one call."""
    reserve = Cell.reserve
    called: list[list[str]] = []

    async def spy(self: Cell, items: list[messages.ReserveItem], *rest: object) -> object:
        called.append([item.job_id for item in items])
        return await reserve(self, items, *rest)  # type: ignore[arg-type]

    async with bench(url, msgspec.structs.replace(CALM, waiting_class_max=4, batch_max=16, sessions_max=1_000)) as b:
        await seed_waiting_and_skip(b)
        monkeypatch.setattr(Cell, "reserve", spy)
        flood = {f"more{i}": f"m{i}" for i in range(200)}
        await b.add_all(flood, pair=RARE, others={f"other{i}": f"o{i}" for i in range(8)})
        await b.step_until_read()
        assert (len(called), sorted(called[0])) == (1, [f"other{i}" for i in range(8)])


async def seed_waiting_and_skip(b: Bench) -> None:
    """Four of the rare pair wait, and another one was scanned past."""
    await seed_waiting(b, 4)
    await b.add("r99", "rare99", pair=RARE)
    await b.step_until_read()
    assert b.dispatcher.state.overflow
