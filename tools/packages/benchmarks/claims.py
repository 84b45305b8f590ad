"""The commands that show a claim: `waits`, `wait`, `evenness`, `sessions`, `flood`, `placement` and `snapshot`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import msgspec

from benchmarks import flood, next_waiting, placement_cost, snapshot, verdict
from benchmarks.load import Load, live
from benchmarks.measure import machine
from benchmarks.options import Real
from benchmarks.shown import Show, inputs_of, show_evenness, show_sessions, show_waits
from scheduler.config import Settings
from scheduler.console.common import find_server, log_level_option, settings_of_environment
from scheduler.protocol.snapshot import Strategy

NODES: Final = 1_000
SLOTS: Final = 8
SECONDS: Final = 60.0
HOLD_MS: Final = 4_000
DISPATCHERS: Final = 2
QUICK_NODES: Final = 40
QUICK_SLOTS: Final = 4
QUICK_SECONDS: Final = 1.5
QUICK_HOLD_MS: Final = 300
RETENTION_MS: Final = 120_000
"""Records of jobs that have ended are of no interest here, and their number is not to grow with the time."""
SILENCE_MS: Final = 3_600_000
"""Nodes that exist in the books alone beat once."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def bench_settings(strategy: Strategy | None = None) -> Settings:
    """The settings of the environment, for a fleet in the books."""
    settings = msgspec.structs.replace(settings_of_environment(), silence_ms=SILENCE_MS, retention_ms=RETENTION_MS)
    return settings if strategy is None else msgspec.structs.replace(settings, strategy=strategy)


def common_options(command: _Command) -> _Command:
    """What every command has that shows a claim."""
    for option in (
        log_level_option("warning"),
        click.option(
            "--redis-url",
            metavar="URL",
            help="Use this server, in a namespace of its own, removed at the end. Others' use of it counts too.",
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON object alone on standard output."),
        click.option("--quick", is_flag=True, help="A small fleet for a moment: whether it works, not how well."),
    ):
        command = option(command)
    return command


def fleet_options(command: _Command) -> _Command:
    """The fleet and who places on it. What is not typed depends on `--quick`."""
    for option in (
        click.option("--seed", type=int, default=1, show_default=True, help="Of arrivals, sessions and holding times."),
        click.option("--dispatchers", type=click.IntRange(1, 16), default=DISPATCHERS, show_default=True),
        click.option("--hold-ms", type=click.IntRange(20, 60_000), help=f"Of a slot by a job.  [default: {HOLD_MS}]"),
        click.option("--seconds", type=Real(0.5, 3_600), help=f"Measured.  [default: {SECONDS:g}]"),
        click.option("--slots", type=click.IntRange(1, 1_000), help=f"Of each node.  [default: {SLOTS}]"),
        click.option("--nodes", type=click.IntRange(1, 10_000), help=f"In the fleet.  [default: {NODES}]"),
    ):
        command = option(command)
    return command


def _command(name: str, use_percent: float, strategy: Strategy, show: Show, text: str) -> click.Command:
    """A command that runs a load and shows one side of it."""

    def run(
        use: float,
        nodes: int | None,
        slots: int | None,
        seconds: float | None,
        hold_ms: int | None,
        dispatchers: int,
        seed: int,
        quick: bool,
        as_json: bool,
        redis_url: str | None,
    ) -> None:
        load = Load(
            nodes=nodes or (QUICK_NODES if quick else NODES),
            slots=slots or (QUICK_SLOTS if quick else SLOTS),
            use=use / 100,
            seconds=seconds or (QUICK_SECONDS if quick else SECONDS),
            hold_ms=hold_ms or (QUICK_HOLD_MS if quick else HOLD_MS),
            dispatchers=dispatchers,
            seed=seed,
        )
        lived = live(load, bench_settings(strategy), redis_url and find_server(redis_url).whole)
        verdict.conclude(show(lived, load, inputs_of(load, strategy)), as_json=as_json)

    used = click.option(
        "--use",
        type=Real(1, 99.9),
        default=use_percent,
        show_default=True,
        help="Percent of all slots, on average.",
    )
    decorated = used(fleet_options(common_options(run)))
    return click.command(name=name, help=text, short_help=text.partition("\n")[0])(decorated)


_WAITS: Final = _command(
    "waits",
    95,
    "affinity",
    show_waits,
    """Whether a job waits beside a free slot that serves it.

    Sessions keep 95 % of all slots in use. From the server's times of intake, inbox and release of every job it is
    worked out for how long each job waited beside a free slot. Ends with 1 if one did for more than 50 ms.
    """,
)
_EVENNESS: Final = _command(
    "evenness",
    70,
    "least_loaded",
    show_evenness,
    """How evenly `least_loaded` uses the nodes.

    Ends with 1 if the busiest node was used more than 1.2 times the mean, averaged over the time. What it is at single
    instants is told beside it.
    """,
)
_SESSIONS: Final = _command(
    "sessions",
    80,
    "affinity",
    show_sessions,
    """How long binding decisions and waits for a session take.

    Both are what dispatchers tell in their heartbeats. Ends with 1 if p99 is above 1 ms or 10 ms, or is not told.
    """,
)


@click.command(name="flood")
@common_options
@click.option("--rounds", type=click.IntRange(min=1), help="Quiet and flooded.  [default: 3; 1 with --quick]")
@click.option("--nodes", type=click.IntRange(2, 10_000), help=f"One serves the rare pair.  [default: {NODES}]")
@click.option("--seconds", type=Real(0.2, 3_600), help="Quiet, and standing.  [default: 20]")
@click.option("--jobs-per-s", type=Real(1, 10_000), default=300, show_default=True, help="Of other pairs.")
@click.option("--flood-jobs", type=click.IntRange(10, 1_000_000), help="Of the rare pair.  [default: 50000]")
@click.option("--flood-per-s", type=Real(10, 50_000), default=2_000, show_default=True)
@click.option("--hold-ms", type=click.IntRange(20, 60_000), default=500, show_default=True, help="Of a slot by a job.")
@click.option("--dispatchers", type=click.IntRange(1, 16), default=DISPATCHERS, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def _flood(
    rounds: int | None,
    nodes: int | None,
    seconds: float | None,
    jobs_per_s: float,
    flood_jobs: int | None,
    flood_per_s: float,
    hold_ms: int,
    dispatchers: int,
    seed: int,
    quick: bool,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """Whether a flood of jobs slows down those of other pairs.

    It is for a pair that one node serves. A steady load of other pairs is measured without the flood, and while it is
    pushed and stands; before that, single jobs of the rare pair. Ends with 1 if the flood makes p99 more than 1.2 times
    as long, or a single job takes more than 50 ms.
    """
    plan = flood.Plan(
        rounds=rounds or (1 if quick else 3),
        nodes=nodes or (QUICK_NODES if quick else NODES),
        slots=SLOTS,
        seconds=seconds or (1.0 if quick else 20.0),
        jobs_per_s=jobs_per_s,
        hold_ms=hold_ms,
        flood_jobs=flood_jobs or (1_000 if quick else 50_000),
        flood_per_s=flood_per_s,
        singles=10 if quick else 100,
        dispatchers=dispatchers,
        seed=seed,
    )
    found, measured = flood.flood(plan, bench_settings(), redis_url and find_server(redis_url).whole)
    verdict.conclude(flood.show(found, plan, measured), as_json=as_json)


@click.command(name="wait")
@common_options
@click.option("--nodes", type=click.IntRange(1, 1_000), default=10, show_default=True)
@click.option("--slots", type=click.IntRange(1, 1_000), default=4, show_default=True, help="Of each node.")
@click.option("--releases", type=click.IntRange(1, 100_000), help="Slots that are freed.  [default: 2000; 50 quick]")
@click.option("--dispatchers", type=click.IntRange(1, 16), default=1, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def _wait(
    nodes: int,
    slots: int,
    releases: int | None,
    dispatchers: int,
    seed: int,
    quick: bool,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """How soon a freed slot is taken by the next waiting job.

    All slots are in use and jobs wait; one slot at a time is released. Ends with 1 if the median from the release until
    the next job is in an inbox is above 2 ms, by the server's clock.
    """
    plan = next_waiting.Plan(
        nodes=nodes, slots=slots, releases=releases or (50 if quick else 2_000), dispatchers=dispatchers, seed=seed
    )
    found, measured = next_waiting.measure(plan, bench_settings(), redis_url and find_server(redis_url).whole)
    verdict.conclude(next_waiting.show(found, plan, measured), as_json=as_json)


@click.command(name="placement")
@click.option("--small", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="Nodes.")
@click.option("--large", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True, help="Nodes.")
@click.option("--rounds", type=click.IntRange(min=1), help="That count.  [default: 15; 3 with --quick]")
@click.option("--jobs", type=click.IntRange(1, 1_000_000), help="Of a round.  [default: 12800; 1280 with --quick]")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Few and small rounds, without that of 100,000 nodes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object alone on standard output.")
def _placement(
    small: int, large: int, rounds: int | None, jobs: int | None, seed: int, quick: bool, as_json: bool
) -> None:
    """What choosing candidates costs in small and in large fleets.

    No server: classify and place alone, for bound and new sessions, with and without features and languages. Ends with
    1 if a job costs more than 1.5 times as much in the large fleet, or in one of 100,000 nodes, as in the small.
    """
    plan = placement_cost.Plan(
        sizes=(small, large) if quick else (small, large, placement_cost.HUGE),
        rounds=rounds or (3 if quick else 15),
        jobs=jobs or (1_280 if quick else 12_800),
        seed=seed,
    )
    verdict.conclude(placement_cost.show(machine(), plan, placement_cost.measure(plan)), as_json=as_json)


@click.command(name="snapshot")
@common_options
@click.option("--seconds", type=Real(0.5, 3_600), help="Without changes, and with.  [default: 20]")
@click.option("--seed", type=int, default=1, show_default=True, help="Of nodes, and of those that change.")
def _snapshot(seconds: float | None, seed: int, quick: bool, as_json: bool, redis_url: str | None) -> None:
    """What large fleets cost, and how soon a change is seen.

    Fleets that beat once a second and node, with a manager and a dispatcher in processes of their own; and the parts
    that need no server, also for 100,000 nodes. Ends with 1 if a manager of 10,000 nodes uses more than 30 % of a core,
    publishes without a change, or p99 of a change until dispatchers see it is above 500 ms; or if reading or replacing
    the snapshot takes more than 1 us or 10 us.
    """
    plan = snapshot.Plan(
        sizes=snapshot.QUICK_SIZES if quick else snapshot.SIZES,
        live=snapshot.QUICK_LIVE if quick else snapshot.LIVE,
        rounds=3 if quick else 9,
        seconds=seconds or (1.0 if quick else 20.0),
        seed=seed,
    )
    verdict.conclude(
        snapshot.show(
            *snapshot.measure(plan, settings_of_environment(), redis_url and find_server(redis_url).whole), plan
        ),
        as_json=as_json,
    )


COMMANDS: Final = (_WAITS, _wait, _EVENNESS, _SESSIONS, _flood, _placement, _snapshot)
