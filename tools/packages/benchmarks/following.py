"""A fleet that beats, a manager and a dispatcher in processes of their own, and somebody who watches the snapshot.

First nothing changes, then a node changes its capacity every 200 ms. What both processes use is their CPU time, so that
whoever else uses the machine matters little.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Final

import msgspec
from chaos.processes import Process

from benchmarks.beating import Beating
from benchmarks.cores import process_us
from benchmarks.history import Percentiles, percentiles
from benchmarks.measure import STALL_S, BenchmarkFailed, busy_us, facts, server_counters
from benchmarks.placement_cost import a_node
from scheduler.config import Settings
from scheduler.console.own_server import on_own_server
from scheduler.loop import end_tasks
from scheduler.protocol.documents import NodeBeat
from scheduler.runtime.index import Index
from scheduler.runtime.snapshots import Snapshots
from scheduler.store.cleanup import remove_namespace
from scheduler.store.control import Control
from scheduler.store.store import Store, open_store

CHANGE_EVERY_S: Final = 0.2
SETTLE_S: Final = 3.0
POLL_S: Final = 0.02
_US: Final = 1_000_000


class Use(msgspec.Struct, frozen=True):
    """Cores kept busy on average while a part was measured; others: all other processes, None where it is not told."""

    manager: float
    dispatcher: float
    server: float
    bench: float
    others: float | None


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured without or with changes. replaced: how often the watcher's index was."""

    seconds: float
    use: Use
    beats_per_s: float
    late_ms: float
    changes: int
    replaced: int


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet of so many nodes.

    visible_ms: from a heartbeat until the watcher's index has what it says; unseen: changes that it never had; loads:
    how often the watcher read the whole snapshot while nodes changed.
    """

    nodes: int
    steady: Part
    changing: Part
    visible_ms: Percentiles
    unseen: int
    loads: int
    facts: dict[str, str | int]


class _Noticed(Snapshots):
    """Calls when it has another index."""

    def __init__(self, control: Control, notice: Callable[[], None]) -> None:
        super().__init__(control)
        self._notice = notice

    def swap(self, index: Index) -> None:
        super().swap(index)
        self._notice()


class Watcher:
    """Follows the snapshot as a dispatcher does, and notes when it sees what it waits for."""

    def __init__(self, store: Store) -> None:
        self.snapshots = _Noticed(store.control, self._look)
        self.replaced = 0
        self.waits_us: list[int] = []
        self._awaited: dict[str, tuple[int, int]] = {}

    def expect(self, node: str, slots: int, since_ns: int) -> None:
        """A node said at `since_ns` that it has so many slots."""
        self._awaited[node] = (slots, since_ns)
        self._find()

    @property
    def unseen(self) -> int:
        """How many changes are not seen yet."""
        return len(self._awaited)

    def _look(self) -> None:
        self.replaced += 1
        self._find()

    def _find(self) -> None:
        now_ns = time.perf_counter_ns()
        for node, (slots, since_ns) in list(self._awaited.items()):
            seen = self.snapshots.index.nodes.get(node)
            if seen is not None and seen.slots == slots:
                del self._awaited[node]
                self.waits_us.append((now_ns - since_ns) // 1_000)


def follow(sizes: Sequence[int], seconds: float, seed: int, settings: Settings, url: str | None) -> list[Followed]:
    """Each fleet on a server in memory of its own, or on the one that was typed.

    Blocks; belongs into the main thread. Raises: BenchmarkFailed, ServerUnavailable, ServerRefused.
    """

    def one(size: int) -> Followed:
        async def perform(found_url: str, own: Settings) -> Followed:
            async with _stage(found_url, own, size, seed) as stage:
                return await _perform(stage, size, seconds)

        return on_own_server("bench", url, settings, perform)

    return [one(size) for size in sizes]


class _Stage(msgspec.Struct, frozen=True):
    store: Store
    beating: Beating
    watcher: Watcher
    manager: int
    dispatcher: int


@contextlib.asynccontextmanager
async def _stage(url: str, settings: Settings, size: int, seed: int) -> AsyncIterator[_Stage]:
    """Everything runs, and the watcher sees every node; all of it is gone afterwards."""
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scheduler-bench-")))
        store = await stack.enter_async_context(await open_store(url, settings))
        stack.push_async_callback(remove_namespace, store)
        processes = []
        for role in ("manager", "dispatcher"):
            log = directory / f"{role}.log"
            process = await Process.start(url, [role, "--log-level", "warning"], settings, log)
            stack.push_async_callback(process.close)
            await process.ready()
            processes.append(process)
        beating = Beating(store, settings, await _beats(store, size, seed), seed)
        watcher = Watcher(await stack.enter_async_context(await open_store(url, settings)))
        tasks = [asyncio.create_task(each) for each in (beating.run(), watcher.snapshots.run())]
        stack.push_async_callback(end_tasks, tasks)
        if not await _until(lambda: len(watcher.snapshots.index.nodes) == size):
            raise BenchmarkFailed(f"{len(watcher.snapshots.index.nodes)} of {size} nodes are published in time")
        yield _Stage(store, beating, watcher, processes[0].pid, processes[1].pid)


async def _beats(store: Store, size: int, seed: int) -> list[NodeBeat]:
    """The registrations of a mixed fleet."""
    random, boot = Random(seed), f"{await store.control.time_us()}-bench"
    nodes = [a_node(f"n{number}", random) for number in range(size)]
    return [NodeBeat(each.id, boot, each.slots, each.pairs, each.features, pool=each.pool) for each in nodes]


async def _perform(stage: _Stage, size: int, seconds: float) -> Followed:
    await asyncio.sleep(min(SETTLE_S, seconds))
    steady = await _part(stage, seconds, changes=False)
    loads = stage.watcher.snapshots.loads
    changing = await _part(stage, seconds, changes=True)
    return Followed(
        nodes=size,
        steady=steady,
        changing=changing,
        visible_ms=percentiles(stage.watcher.waits_us, per=1_000),
        unseen=stage.watcher.unseen,
        loads=stage.watcher.snapshots.loads - loads,
        facts=await facts(stage.store),
    )


async def _part(stage: _Stage, seconds: float, *, changes: bool) -> Part:
    watcher, beating = stage.watcher, stage.beating
    replaced, changed = watcher.replaced, 0
    beating.late_ms = 0.0
    beats, before = await _written(stage), await _look(stage)
    from_s = time.monotonic()
    while (passed_s := time.monotonic() - from_s) < seconds:
        if changes:
            since_ns = time.perf_counter_ns()
            watcher.expect(*await beating.change(), since_ns)
            changed += 1
        await asyncio.sleep(CHANGE_EVERY_S)
    after, beats = await _look(stage), await _written(stage) - beats
    await _until(lambda: not watcher.unseen)
    return Part(
        seconds=round(passed_s, 2),
        use=_use(before, after),
        beats_per_s=round(beats / passed_s, 1),
        late_ms=round(beating.late_ms, 1),
        changes=changed,
        replaced=watcher.replaced - replaced,
    )


async def _written(stage: _Stage) -> int:
    """Heartbeats that the server has taken so far; of other roles too, which are few."""
    stream = await stage.store.connection.commands.xinfo_stream(stage.store.control.keys.heartbeats)
    return int(stream["entries-added"])


async def _until(true: Callable[[], bool]) -> bool:
    """Wait until something is true. Returns: whether it is, in time."""
    until_s = time.monotonic() + 3 * STALL_S
    while not true():
        if time.monotonic() > until_s:
            return False
        await asyncio.sleep(POLL_S)
    return True


_Look = tuple[float, float | None, float | None, float, float, float | None]


async def _look(stage: _Stage) -> _Look:
    """When, then CPU microseconds so far: of manager, dispatcher, server, this process, the machine."""
    server_us = (await server_counters(stage.store)).cpu_us
    roles_us = process_us(stage.manager), process_us(stage.dispatcher)
    return time.monotonic(), *roles_us, server_us, time.process_time_ns() / 1_000, busy_us()


def _use(before: _Look, after: _Look) -> Use:
    seconds = after[0] - before[0]
    cores = [
        None if until is None or since is None else (until - since) / _US / seconds
        for since, until in zip(before[1:], after[1:], strict=True)
    ]
    ours = [each or 0.0 for each in cores[:4]]
    others = None if cores[4] is None else round(max(0.0, cores[4] - sum(ours)), 2)
    manager, dispatcher, server, bench = (round(each, 3) for each in ours)
    return Use(manager, dispatcher, server, bench, others)
