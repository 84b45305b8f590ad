"""The command `latency`."""

from __future__ import annotations

from typing import Final

import click

from benchmarks.claims import bench_settings, common_options
from benchmarks.verdict import conclude
from scheduler.config import DEFAULTS
from scheduler.console.common import find_server

RATES: Final = (100, 1_000, 5_000)
SHARES: Final = (50, 60, 70, 80, 90)
ROUNDS: Final = 3
SECONDS: Final = 5.0
JOBS_MAX: Final = 25_000
IN_FLIGHT: Final = 512
MOST_JOBS: Final = 20_000
NODES: Final = 1_000
SESSIONS: Final = 2_000
PAYLOAD_BYTES: Final = 200
QUICK_SECONDS: Final = 0.3
QUICK_JOBS: Final = 1_000
QUICK_NODES: Final = 40


@click.command()
@click.option(
    "--rate",
    "rates",
    type=click.IntRange(1, 100_000),
    multiple=True,
    default=RATES,
    show_default=True,
    help="Jobs a second; may be given several times.",
)
@click.option(
    "--share",
    "shares",
    type=click.IntRange(1, 100),
    multiple=True,
    help="Percent of the most that the dispatcher places; also several times.  [default: 50 to 90; 50 with --quick]",
)
@click.option("--rounds", type=click.IntRange(min=1), help=f"Of each rate.  [default: {ROUNDS}; 1 with --quick]")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 600),
    help=f"Of each measurement.  [default: {SECONDS:g}; {QUICK_SECONDS:g} with --quick]",
)
@click.option(
    "--nodes", type=click.IntRange(1, 10_000), help=f"In the fleet.  [default: {NODES}; {QUICK_NODES} with --quick]"
)
@click.option("--sessions", type=click.IntRange(min=1), default=SESSIONS, show_default=True, help="That are live.")
@click.option(
    "--payload-bytes", type=click.IntRange(0, DEFAULTS.payload_bytes_max), default=PAYLOAD_BYTES, show_default=True,
    help="Of each job, beside its document.",
)  # fmt: skip
@common_options
def latency(
    rates: tuple[int, ...],
    shares: tuple[int, ...],
    rounds: int | None,
    seconds: float | None,
    nodes: int | None,
    sessions: int,
    payload_bytes: int,
    quick: bool,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """How soon a job can be read in an inbox, at set rates.

    And by the relay beside it. Jobs are due at set times, and count from then, however late the scheduler or the sender
    are. Ends with 1 if at 1,000 jobs a second p50 is above 1 ms, p99 above 5 ms or p99.9 above 50 ms. Of a typed server
    notify-keyspace-events is changed meanwhile.
    """
    # They need the extra `bench`, which other commands do without.
    from benchmarks.paced.latency import Plan, run, show

    plan = Plan(
        rates=rates,
        shares=shares or ((50,) if quick else SHARES),
        rounds=rounds or (1 if quick else ROUNDS),
        seconds=seconds or (QUICK_SECONDS if quick else SECONDS),
        jobs_max=QUICK_JOBS if quick else JOBS_MAX,
        in_flight=IN_FLIGHT,
        most_jobs=QUICK_JOBS if quick else MOST_JOBS,
        nodes=nodes or (QUICK_NODES if quick else NODES),
        sessions=sessions,
        payload_bytes=payload_bytes,
    )
    found = run(plan, bench_settings(), redis_url and find_server(redis_url).whole)
    conclude(show(plan, found), as_json=as_json)
