"""The command `v2`."""

from __future__ import annotations

from typing import Final

import click

from benchmarks.claims import bench_settings, common_options
from benchmarks.verdict import conclude
from scheduler.config import DEFAULTS
from scheduler.console.common import find_server

IN_FLIGHT: Final = (1, 8, 64)
ROUNDS: Final = 5
SECONDS: Final = 2.0
WARM_UP_S: Final = 0.5
NODES: Final = 1_000
SLOTS: Final = 128
SESSIONS: Final = 20_000
PAYLOAD_BYTES: Final = 200
QUICK_SECONDS: Final = 0.1
QUICK_NODES: Final = 40


@click.command(name="v2")
@click.option(
    "--in-flight",
    type=click.IntRange(1, 1_000),
    multiple=True,
    default=IN_FLIGHT,
    show_default=True,
    help="Jobs that are sent and not yet in an inbox; may be given several times.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help=f"That count, after one to warm up.  [default: {ROUNDS}; 1 with --quick]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.05, 600),
    help=f"Of each measurement.  [default: {SECONDS:g}; {QUICK_SECONDS:g} with --quick]",
)
@click.option(
    "--nodes", type=click.IntRange(1, 10_000), help=f"In the fleet.  [default: {NODES}; {QUICK_NODES} with --quick]"
)
@click.option("--slots", type=click.IntRange(1, 100_000), default=SLOTS, show_default=True, help="Of each node.")
@click.option(
    "--sessions", type=click.IntRange(min=1), default=SESSIONS, show_default=True, help="Drawn from for each job."
)
@click.option(
    "--payload-bytes", type=click.IntRange(0, DEFAULTS.payload_bytes_max), default=PAYLOAD_BYTES, show_default=True,
    help="Of each job, beside its document.",
)  # fmt: skip
@common_options
def v2(
    in_flight: tuple[int, ...],
    rounds: int | None,
    seconds: float | None,
    nodes: int | None,
    slots: int,
    sessions: int,
    payload_bytes: int,
    quick: bool,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """The design that this one replaces, and this one, in turns.

    v2.0 holds a lock over each request: members of a pool from Redis, a scan of all nodes, a reservation, an insert.
    Measured with 1, 8 and 64 jobs in flight, without its lock, with a cache of members, and with both. Ends with 1 if
    what is claimed of this project beside it was not reached. Of a typed server notify-keyspace-events is changed
    meanwhile.
    """
    # They need the extra `bench`, which other commands do without.
    from benchmarks.v2.cell import Load
    from benchmarks.v2.report import show
    from benchmarks.v2.run import Plan, run

    load = Load(
        nodes=nodes or (QUICK_NODES if quick else NODES),
        slots=slots,
        sessions=sessions,
        payload_bytes=payload_bytes,
        warm_up_s=WARM_UP_S * (QUICK_SECONDS / SECONDS if quick else 1),
        seconds=seconds or (QUICK_SECONDS if quick else SECONDS),
    )
    plan = Plan(
        in_flight=in_flight,
        rounds=rounds or (1 if quick else ROUNDS),
        warm_up_rounds=0 if quick else 1,
        load=load,
        settings=bench_settings(),
        url=redis_url and find_server(redis_url).whole,
    )
    conclude(show(plan, run(plan)), as_json=as_json)
