"""`scheduler demo`: everything on one screen, audited at the end.

A server in memory, manager, dispatcher, reaper and six nodes in two pools serve seeded live speech. The nodes are given
fewer slots than the load asks for at its peak, so that jobs spill over and wait at times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import click

from scheduler.audit.workloads import Arrival, SpeechShape, offered_load, speech_arrivals
from scheduler.cli.rehearsal import Plan, SimulatedNode, rehearse
from scheduler.cli.view import LivePicture, conclude
from scheduler.console.common import find_server, log_level_option, settings_of_environment
from scheduler.console.failures import Explained
from scheduler.console.terminal import is_screen, new_console

JOBS: Final = 2_000
SESSIONS: Final = 200
JOBS_MAX: Final = 10_000_000  # all of them are in memory at once
SEED: Final = 1
SHAPE: Final = SpeechShape(start_spread_ms=5_000.0, turn_segments=8.0, pause_ms=700.0)
POOLS: Final = {"chinese": (4, (("en", "zh"), ("zh", "en"))), "mixed": (2, (("en", "de"), ("ja", "en")))}
"""pool -> (nodes, pairs); together the pairs of the load."""
TIGHTNESS: Final = 0.85
"""Slots of a pool as a share of what the load asks for at its peak."""


@click.command(
    cls=Explained,
    context_settings={"help_option_names": ["-h", "--help"]},
    short_help="Watch a whole scheduler at work, and check what it did.",
)
@click.option("--jobs", type=click.IntRange(1, JOBS_MAX), default=JOBS, show_default=True, help="How many jobs in all.")
@click.option(
    "--sessions",
    type=click.IntRange(1, JOBS_MAX),
    help=f"How many sessions share them.  [default: {SESSIONS}, or fewer jobs]",
)
@click.option("--seed", type=int, default=SEED, show_default=True, help="The same seed makes the same load.")
@click.option("--json", "as_json", is_flag=True, help="No picture; one JSON object alone on standard output.")
@click.option("--redis-url", metavar="URL", help="Use this server, in a namespace of its own, removed at the end.")
@log_level_option("warning")
def demo(jobs: int, sessions: int | None, seed: int, as_json: bool, redis_url: str | None) -> None:
    """Show a whole scheduler at work on one screen, and check what it did.

    Starts a server in memory, all roles and six nodes; submits live speech; audits every run from the records of nodes
    and producer. Ends with 0 only if nothing was lost, run twice, over capacity or out of order.
    """
    if sessions is not None and sessions > jobs:
        raise click.UsageError(f"--jobs {jobs}: expected one or more for each of {sessions} sessions")
    arrivals = speech_arrivals(seed, sessions or min(SESSIONS, jobs), jobs, shape=SHAPE)
    fleet = make_fleet(arrivals)
    plan = Plan(
        name="demo",
        arrivals=arrivals,
        fleet=fleet,
        settings=settings_of_environment(),
        url=None if redis_url is None else find_server(redis_url),
    )
    console = new_console()
    headline = _headline(arrivals, fleet, seed)
    if is_screen(console) and not as_json:
        result = rehearse(plan, LivePicture(console, headline))
    else:
        result = rehearse(plan)
    conclude(console, result, headline, {"seed": seed}, as_json=as_json)


def make_fleet(arrivals: Sequence[Arrival]) -> tuple[SimulatedNode, ...]:
    """The nodes of each pool, with capacities that the load exceeds for a while."""
    nodes: list[SimulatedNode] = []
    for pool, (count, pairs) in POOLS.items():
        served = [arrival for arrival in arrivals if (arrival.src_lang, arrival.tgt_lang) in pairs]
        capacity = max(1, math.ceil(TIGHTNESS * offered_load(served).peak_slots / count))
        nodes += [SimulatedNode(f"n{len(nodes) + number}", pool, capacity, pairs) for number in range(1, count + 1)]
    return tuple(nodes)


def _headline(arrivals: Sequence[Arrival], fleet: Sequence[SimulatedNode], seed: int) -> str:
    sessions = len({arrival.session_id for arrival in arrivals})
    slots, peak = sum(node.capacity for node in fleet), offered_load(arrivals).peak_slots
    return f"demo: {len(arrivals):,} jobs, {sessions:,} sessions, seed {seed}; {slots} slots, {peak} wanted at the peak"
