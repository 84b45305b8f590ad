"""A run: benchmarks in turns, round by round, so that whatever the machine does meanwhile befalls all of them."""

from __future__ import annotations

from typing import Final, Literal

import click
import msgspec

from benchmarks import summary
from benchmarks.dispatch import dispatch_round
from benchmarks.measure import Round, facts
from benchmarks.relay import relay_round
from benchmarks.sampling import Sampler
from benchmarks.workload import Workload
from scheduler.config import DEFAULTS, Settings
from scheduler.console.own_server import on_own_server
from scheduler.store.store import open_store

Name = Literal["relay", "dispatch"]
SHOWN: Final = ("partitions", "read_ahead_max", "candidates_max")
FOUND_MS_MAX: Final = 2_000
"""For how long a server that was typed may be silent at first."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. rounds: that count, after one to warm up; url: None for a server of its own."""

    benchmarks: tuple[Name, ...]
    workload: Workload
    rounds: int
    settings: Settings
    url: str | None
    profile: bool = False

    def inputs(self) -> dict[str, int | str]:
        """What figures depend on beside the machine: of the settings some, and all that differ from the defaults."""
        told = {"namespace", "silence_ms", "batch_max", *SHOWN}
        settings: dict[str, int | str] = {name: getattr(self.settings, name) for name in SHOWN}
        for field in msgspec.structs.fields(Settings):
            value = getattr(self.settings, field.name)
            if field.name not in told and value != getattr(DEFAULTS, field.name):
                settings[field.name] = value
        return {"rounds": self.rounds} | msgspec.structs.asdict(self.workload) | settings


class Outcome(msgspec.Struct, frozen=True):
    """What was measured: of each benchmark every round that counts."""

    facts: dict[str, str | int]
    rounds: dict[Name, list[Round]]
    profile: summary.Profile | None = None


def run(plan: Plan) -> Outcome:
    """Warm up, run all rounds, and as many again for a profile, on a server in memory or on the one that was typed.

    Blocks; belongs into the main thread. Raises: BenchmarkFailed, ServerUnavailable, ServerRefused.
    """

    async def perform(url: str, settings: Settings) -> Outcome:
        return await _run(url, msgspec.structs.replace(plan, settings=settings))

    return on_own_server("bench", plan.url, plan.settings, perform)


async def _run(url: str, plan: Plan) -> Outcome:
    async with await open_store(url, plan.settings, FOUND_MS_MAX) as store:
        found = await facts(store)
    rounds: dict[Name, list[Round]] = {name: [] for name in plan.benchmarks}
    for number in range(plan.rounds + 1):
        for name in plan.benchmarks:
            measured = await _round(name, url, plan)
            what = f"round {number} of {plan.rounds}" if number else "warm-up"
            click.echo(f"{what}: {name} {measured.jobs_per_s:,.0f} jobs/s", err=True)
            if number:
                rounds[name].append(measured)
    if not plan.profile:
        return Outcome(found, rounds)
    sampler = Sampler()
    sampled = [await dispatch_round(url, plan.settings, plan.workload, sampler) for _ in range(plan.rounds)]
    return Outcome(found, rounds, summary.profile(sampled, sampler))


async def _round(name: Name, url: str, plan: Plan) -> Round:
    if name == "relay":
        return await relay_round(url, plan.settings, plan.workload)
    return await dispatch_round(url, plan.settings, plan.workload)
