"""A steady load on a simulated fleet: so many slots are in use on average, and everything is written down."""

from __future__ import annotations

import asyncio
from random import Random

import msgspec

from benchmarks.beats import Told, told
from benchmarks.cores import Cores
from benchmarks.fleet import Member
from benchmarks.history import Hold, Placed, Wait, Window, mean_use, waits
from benchmarks.measure import facts, without_collections
from benchmarks.stage import Stage, staged, while_serving
from benchmarks.traffic import HOLD_SPREAD, Traffic
from scheduler.config import Settings
from scheduler.console.own_server import on_own_server


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the fleet. use: share of all slots, on average; hold_ms: of a slot by a job, on average."""

    nodes: int
    slots: int
    use: float
    seconds: float
    hold_ms: int
    dispatchers: int
    seed: int

    @property
    def members(self) -> list[Member]:
        """The nodes; each serves every pair."""
        return [Member(f"n{number}", self.slots) for number in range(self.nodes)]

    @property
    def jobs_per_s(self) -> float:
        """Arrivals that keep so many slots in use."""
        return self.nodes * self.slots * self.use * 1_000 / self.hold_ms

    @property
    def warm_up_s(self) -> float:
        """When the first slot that was held for as long as may be is free again, use has settled."""
        return self.hold_ms * (1 + HOLD_SPREAD) / 1_000

    def traffic(self) -> Traffic:
        """As many sessions are under way as slots are in use."""
        sessions = max(1, round(self.nodes * self.slots * self.use))
        return Traffic(Random(self.seed), "", self.jobs_per_s, self.hold_ms, sessions)


class Lived(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a load. window: without the warm-up; waits: of the jobs submitted within it; holds: of all slots;
    lag_ms: the latest submission after its time; cores: who kept them busy.
    """

    facts: dict[str, str | int]
    window: Window
    waits: list[Wait]
    placed: dict[str, Placed]
    holds: list[Hold]
    slots: dict[str, int]
    beats: dict[str, Told]
    lag_ms: float
    cores: Cores

    @property
    def use(self) -> float:
        """The share of slots that was in use, on average."""
        return mean_use(self.holds, sum(self.slots.values()), self.window)


def live(load: Load, settings: Settings, url: str | None) -> Lived:
    """Run a load on a server in memory, or on the one that was typed, in a namespace of its own.

    Blocks; belongs into the main thread. Raises: BenchmarkFailed, ServerUnavailable, ServerRefused.
    """

    async def perform(found_url: str, own: Settings) -> Lived:
        async with staged(found_url, own, load.members, load.dispatchers) as stage:
            with without_collections():
                return await while_serving(stage, _perform(stage, load))

    return on_own_server("bench", url, settings, perform)


async def _perform(stage: Stage, load: Load) -> Lived:
    submitting, serving = stage.submitting, stage.serving
    found = await facts(stage.store)
    pacing = asyncio.create_task(submitting.pace(load.traffic(), load.warm_up_s + load.seconds))
    await asyncio.sleep(load.warm_up_s)
    await stage.watch.begin()
    window = await stage.window(load.seconds)
    cores = await stage.watch.cores()
    await pacing
    await stage.until_placed(list(submitting.submitted))
    return Lived(
        facts=found,
        window=window,
        waits=waits(submitting.submitted, serving.placed, window),
        placed=serving.placed,
        holds=serving.all_holds,
        slots={each.node: each.slots for each in load.members},
        beats=await told(stage.store, window),
        lag_ms=round(submitting.lag_ms, 1),
        cores=cores,
    )
