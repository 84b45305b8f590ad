"""A flood of jobs for a pair that one node serves, beside a steady load of other pairs: who notices?

A round has its own server, fleet and dispatchers. First single jobs of the rare pair are submitted, each when the one
before has ended; then the steady load is measured alone, while the flood is pushed, and while it stands. Rounds follow
each other, so that quiet and flooded times take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import Final

import click
import msgspec

from benchmarks.fleet import COMMON_PAIRS, Member
from benchmarks.history import Percentiles, Window, percentiles, waits
from benchmarks.measure import facts, without_collections
from benchmarks.stage import Stage, staged, while_serving
from benchmarks.traffic import Planned, Traffic
from benchmarks.verdict import Claim, Shown
from scheduler.audit.workloads import LanguagePair
from scheduler.config import Settings
from scheduler.console.own_server import on_own_server
from scheduler.loop import end_tasks

RARE: Final = LanguagePair("is", "mt")
STEADY_SESSIONS: Final = 500
FLOOD_SESSIONS: Final = 5_000
SINGLE_HOLD_MS: Final = 5
SLOWER_MAX: Final = 1.2
FOUND_MS_MAX: Final = 50


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. seconds: quiet, and as long again when the flood stands; hold_ms: of a slot by any job."""

    rounds: int
    nodes: int
    slots: int
    seconds: float
    jobs_per_s: float
    hold_ms: int
    flood_jobs: int
    flood_per_s: float
    singles: int
    dispatchers: int
    seed: int

    @property
    def push_s(self) -> float:
        """How long it takes to push the flood."""
        return self.flood_jobs / self.flood_per_s


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds from intake to inbox.

    quiet, pushing, standing, flooded: of the other pairs, without a flood, while it is pushed, while it stands, and in
    both together; singles: of single jobs of the rare pair; stood: jobs of the flood that waited at the end; ratio: p99
    flooded by p99 quiet.
    """

    quiet: Percentiles
    pushing: Percentiles
    standing: Percentiles
    flooded: Percentiles
    singles: Percentiles
    stood: int
    ratio: float
    lag_ms: float


def flood(plan: Plan, settings: Settings, url: str | None) -> tuple[dict[str, str | int], list[Round]]:
    """Run all rounds, each on a server in memory or in a namespace of its own. Returns: facts of the machine; rounds.

    Blocks; belongs into the main thread. Raises: BenchmarkFailed, ServerUnavailable, ServerRefused.
    """
    rounds: list[Round] = []
    found: dict[str, str | int] = {}

    async def perform(found_url: str, own: Settings) -> None:
        members = [Member(f"n{number}", plan.slots) for number in range(1, plan.nodes)]
        members.append(Member("n0", plan.slots, (*COMMON_PAIRS, (RARE.src_lang, RARE.tgt_lang))))
        async with staged(found_url, own, members, plan.dispatchers) as stage:
            found.update(await facts(stage.store))
            with without_collections():
                rounds.append(await while_serving(stage, _round(stage, plan, len(rounds))))

    for number in range(plan.rounds):
        on_own_server("bench", url, settings, perform)
        last = rounds[-1]
        click.echo(f"round {number + 1} of {plan.rounds}: p99 {last.quiet.p99} -> {last.flooded.p99} ms", err=True)
    return found, rounds


async def _round(stage: Stage, plan: Plan, number: int) -> Round:
    submitting = stage.submitting
    singles = await _singles(stage, plan.singles)
    steady = Traffic(Random(plan.seed + number), "c", plan.jobs_per_s, plan.hold_ms, STEADY_SESSIONS)
    flooding = Traffic(
        Random(plan.seed + number), "f", plan.flood_per_s, plan.hold_ms, FLOOD_SESSIONS, (RARE,), plan.flood_jobs
    )
    pacing = asyncio.create_task(submitting.pace(steady, 3_600))
    quiet = await stage.window(plan.seconds)
    pushing_from_us = await stage.store.control.time_us()
    await submitting.pace(flooding, 10 * plan.push_s)
    pushing = Window(pushing_from_us // 1_000, await stage.store.control.time_us() // 1_000)
    standing = await stage.window(plan.seconds)
    await end_tasks([pacing])
    steady_ids = [job_id for job_id in submitting.submitted if job_id.startswith("c")]
    stood = sum(job_id.startswith("f") and job_id not in stage.serving.placed for job_id in submitting.submitted)
    await stage.until_placed(steady_ids)
    before, after = _dispatch_us(stage, quiet), _dispatch_us(stage, Window(pushing.from_ms, standing.until_ms))
    calm, flooded = percentiles(before, 1_000), percentiles(after, 1_000)
    return Round(
        quiet=calm,
        pushing=percentiles(_dispatch_us(stage, pushing), 1_000),
        standing=percentiles(_dispatch_us(stage, standing), 1_000),
        flooded=flooded,
        singles=percentiles(singles, 1_000),
        stood=stood,
        ratio=round((flooded.p99 or 0) / (calm.p99 or 1), 3),
        lag_ms=round(submitting.lag_ms, 1),
    )


async def _singles(stage: Stage, count: int) -> list[int]:
    """Jobs of the rare pair, each submitted when the one before has ended. Microseconds from intake to inbox."""
    found = []
    for number in range(count):
        job_id = f"r{number}"
        await stage.submitting.submit([Planned(0, job_id, job_id, RARE.src_lang, RARE.tgt_lang, SINGLE_HOLD_MS)])
        await stage.until_placed([job_id])
        found.append(stage.serving.placed[job_id].token - stage.submitting.submitted[job_id].at_us)
        await stage.until_idle()
    return found


def _dispatch_us(stage: Stage, window: Window) -> list[int]:
    """Of all jobs of other pairs that were submitted within a window."""
    rare = f"{RARE.src_lang}:{RARE.tgt_lang}"
    found = waits(stage.submitting.submitted, stage.serving.placed, window)
    return [wait.dispatch_us for wait in found if wait.pair != rare]


def show(machine: dict[str, str | int], plan: Plan, rounds: Sequence[Round]) -> Shown:
    """The rounds side by side, and the verdict on the median of their ratios."""
    ratio = round(median(each.ratio for each in rounds), 3)
    found_ms = max((each.singles.max or 0.0 for each in rounds), default=None)
    lines = [f"{'':10}{'p50 ms':>10}{'p99 ms':>10}{'max ms':>10}"]
    for number, each in enumerate(rounds, 1):
        lines.append(f"round {number}: {each.stood:,} jobs of the flood stood at the end, ratio {each.ratio:.3f}")
        for name in ("quiet", "pushing", "standing", "flooded", "singles"):
            found: Percentiles = getattr(each, name)
            lines.append(f"{name:10}{found.p50 or 0:10.2f}{found.p99 or 0:10.2f}{found.max or 0:10.2f}")
    lines.append("flooded: pushing and standing; singles: of the rare pair, all others of other pairs")
    stood = min(each.stood for each in rounds)
    return Shown(
        facts=machine,
        inputs=msgspec.structs.asdict(plan),
        figures={"rounds": rounds, "ratio": ratio, "stood": stood},
        lines=lines,
        claims=[
            Claim("p99 of other pairs, flooded by quiet, median of the rounds", ratio, SLOWER_MAX),
            Claim("single job of the rare pair from intake to inbox, the longest", found_ms, FOUND_MS_MAX, "ms"),
            Claim("share of the flood that did not stand until the end", round(1 - stood / plan.flood_jobs, 3), 0.5),
        ],
    )
