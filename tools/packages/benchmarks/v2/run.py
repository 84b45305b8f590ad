"""A run: all designs in turns, for each number of jobs in flight, round by round, on one server."""

from __future__ import annotations

from typing import Final

import click
import msgspec

from benchmarks.measure import facts
from benchmarks.v2.account import Measured
from benchmarks.v2.cell import Load, Stage
from benchmarks.v2.child import child
from benchmarks.v2.rows import ROWS, Row
from scheduler.config import Settings
from scheduler.console.own_server import on_own_server
from scheduler.store.store import open_store

FOUND_MS_MAX: Final = 2_000
"""For how long a server that was typed may be silent at first."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. warm_up_rounds: before those that count; url: None for a server of its own."""

    rows: tuple[Row, ...] = ROWS
    in_flight: tuple[int, ...]
    rounds: int
    warm_up_rounds: int
    load: Load
    settings: Settings
    url: str | None

    def inputs(self) -> dict[str, object]:
        """What figures depend on beside the machine."""
        in_flight = ", ".join(map(str, self.in_flight))
        return {"in_flight": in_flight, "rounds": self.rounds} | msgspec.structs.asdict(self.load)


class Outcome(msgspec.Struct, frozen=True):
    """What was measured: (jobs in flight, name of the row) -> every round that counts."""

    facts: dict[str, str | int]
    rounds: dict[tuple[int, str], list[Measured]]


def run(plan: Plan) -> Outcome:
    """Run everything, on a server in memory or on the one that was typed.

    Blocks; belongs into the main thread. Raises: BenchmarkFailed, ServerUnavailable, ServerRefused.
    """

    async def perform(url: str, settings: Settings) -> Outcome:
        return await _run(url, msgspec.structs.replace(plan, settings=settings))

    return on_own_server("bench", plan.url, plan.settings, perform)


async def _run(url: str, plan: Plan) -> Outcome:
    async with await open_store(url, plan.settings, FOUND_MS_MAX) as store:
        found = await facts(store)
    rounds: dict[tuple[int, str], list[Measured]] = {(n, row.name): [] for n in plan.in_flight for row in plan.rows}
    async with child(url, plan.settings) as process:
        stage = Stage(url, plan.settings, process, plan.load)
        for number in range(1 - plan.warm_up_rounds, plan.rounds + 1):
            for in_flight in plan.in_flight:
                for row in plan.rows:
                    measured = await stage.measure(row, in_flight)
                    what = f"round {number} of {plan.rounds}" if number > 0 else "warm-up"
                    speed = measured.jobs / measured.seconds
                    click.echo(f"{what}: {in_flight} in flight, {row.label}: {speed:,.0f} jobs/s", err=True)
                    if number > 0:
                        rounds[in_flight, row.name].append(measured)
    return Outcome(found, rounds)
