"""`wait`: a slot gets free, and the next waiting job is in an inbox: how long that takes.

All slots of a small fleet are in use and many jobs wait. One slot at a time is released, after a pause at random, and
the clock runs from the moment at which that call is sent until the next job has its slot, both by the server's clock.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Final

import msgspec

from benchmarks.endings import ending
from benchmarks.fleet import COMMON_PAIRS, Member
from benchmarks.history import Percentiles, percentiles
from benchmarks.measure import BenchmarkFailed, facts, without_collections
from benchmarks.stage import Stage, staged
from benchmarks.traffic import Planned
from benchmarks.verdict import Claim, Shown
from scheduler.config import Settings
from scheduler.console.own_server import on_own_server
from scheduler.protocol import messages
from scheduler.store.reads import StreamEntry

P50_MS_MAX: Final = 2
PAUSE_S_MAX: Final = 0.02
STALL_MS: Final = 10_000
PAIR: Final = COMMON_PAIRS[0]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. releases: slots that are freed, one after the other."""

    nodes: int
    slots: int
    releases: int
    dispatchers: int
    seed: int


def measure(plan: Plan, settings: Settings, url: str | None) -> tuple[dict[str, str | int], Percentiles]:
    """Run it on a server in memory or in a namespace of its own. Returns: facts of the machine; milliseconds.

    Blocks; belongs into the main thread. Raises: BenchmarkFailed, ServerUnavailable, ServerRefused.
    """

    async def perform(found_url: str, own: Settings) -> tuple[dict[str, str | int], Percentiles]:
        members = [Member(f"n{number}", plan.slots) for number in range(plan.nodes)]
        async with staged(found_url, own, members, plan.dispatchers) as stage:
            with without_collections():
                return await facts(stage.store), percentiles(await _release_all(stage, plan), 1_000)

    return on_own_server("bench", url, settings, perform)


async def _release_all(stage: Stage, plan: Plan) -> list[int]:
    """Microseconds from each release to the next placement."""
    random, inboxes = Random(plan.seed), _Inboxes(stage, plan)
    slots = plan.nodes * plan.slots
    for start in range(0, slots + plan.releases, 100):
        count = min(100, slots + plan.releases - start)
        await stage.submitting.submit(
            [Planned(0, f"j{start + number}", f"s{start + number}", *PAIR, 0) for number in range(count)]
        )
    held = await inboxes.take(slots)
    found = []
    layout = await stage.store.layout()
    for _ in range(plan.releases):
        await asyncio.sleep(random.random() * PAUSE_S_MAX)
        ending = held.pop(random.randrange(len(held)))
        sent_us = await stage.store.control.time_us()
        await stage.store.cell.release([ending], layout.retention_ms, layout.dead_retention_ms)
        (following,) = await inboxes.take(1)
        found.append(following.token - sent_us)
        held.append(following)
    return found


class _Inboxes:
    """What comes into the inboxes of the fleet, as endings of the jobs."""

    def __init__(self, stage: Stage, plan: Plan) -> None:
        self._reads = stage.store.new_reads()
        self._node_of = {self._reads.keys.inbox(f"n{number}"): f"n{number}" for number in range(plan.nodes)}
        self._cursors = dict.fromkeys(self._node_of, "0")

    async def take(self, count: int) -> list[messages.ReleaseItem]:
        """The next so many jobs. Raises: BenchmarkFailed when nothing comes any more."""
        found: list[messages.ReleaseItem] = []
        while len(found) < count:
            read = await self._read()
            for inbox, entries in read.items():
                self._cursors[inbox] = entries[-1][0]
                found += [ending(self._node_of[inbox], fields) for _, fields in entries if b"job_id" in fields]
        if len(found) > count:
            raise BenchmarkFailed(f"{len(found)} jobs were placed for {count} slots")
        return found

    async def _read(self) -> dict[str, list[StreamEntry]]:
        waited_ms = 0
        while not (read := await self._reads.streams(self._cursors, 1_000)):
            waited_ms += 250
            if waited_ms > STALL_MS:
                raise BenchmarkFailed("a slot is free and jobs wait, and none was placed for 10 s")
        return read


def show(machine: dict[str, str | int], plan: Plan, found: Percentiles) -> Shown:
    """The percentiles, and the verdict on the median."""
    words = ", ".join(f"{name} {getattr(found, name):.2f}" for name in ("p50", "p99", "max"))
    return Shown(
        facts=machine,
        inputs=msgspec.structs.asdict(plan),
        figures={"ms": found},
        lines=[f"freed slot to the next waiting job in an inbox, ms: {words}"],
        claims=[Claim("freed slot to the next waiting job, p50", found.p50, P50_MS_MAX, "ms")],
    )
