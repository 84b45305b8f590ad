"""The group of all commands, and two of them: `relay` alone, and `dispatch` beside it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import msgspec
from redis.exceptions import RedisError

from benchmarks import lifecycle as lives
from benchmarks import report, verdict
from benchmarks.against.command import against
from benchmarks.claims import COMMANDS
from benchmarks.complexity import complexity
from benchmarks.memory import memory
from benchmarks.paced.command import latency
from benchmarks.pictures import pictures
from benchmarks.run import Plan, run
from benchmarks.tables import tables
from benchmarks.takeover import owner
from benchmarks.v2.command import v2
from benchmarks.workload import Workload
from scheduler.config import DEFAULTS, Settings
from scheduler.console.common import find_server, log_level_option, settings_of_environment
from scheduler.console.failures import BY_SIGNAL, Failure, as_failure
from scheduler.errors import SchedulerError

JOBS: Final = 20_000
JOBS_MAX: Final = 1_000_000
QUICK_JOBS: Final = 3_000
ROUNDS: Final = 5
QUICK_ROUNDS: Final = 2
BATCH: Final = 64
NODES: Final = 1_000
NODES_MAX: Final = 10_000
SESSIONS: Final = 20_000
PAYLOAD_BYTES: Final = 200
SILENCE_MS: Final = 3_600_000
"""Nodes that exist in the books alone beat once."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Bench(click.Group):
    """The group, and what becomes of errors."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(BY_SIGNAL + signal.SIGINT)
        except RedisError as error:
            raise Failure(str(error)) from error
        except SchedulerError as error:
            raise as_failure(error) from error


@click.command(cls=Bench, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure how fast and how well jobs are dispatched, on a server in memory that is started for it.

    Exit codes: 0 done, 1 failure, jobs that were not placed exactly once or a claim that was not reached, 2 usage, 3 no
    server, 4 undecided (`against`), 130 Ctrl-C.
    """


for _each in COMMANDS:
    bench.add_command(_each)


def _options(command: _Command) -> _Command:
    """Everything that both commands have."""
    for option in reversed(
        (
            click.option(
                "--jobs",
                type=click.IntRange(1, JOBS_MAX),
                help=f"Jobs of each round.  [default: {JOBS}; {QUICK_JOBS} with --quick]",
            ),
            click.option(
                "--rounds",
                type=click.IntRange(min=1),
                help=f"Rounds that count, after one to warm up.  [default: {ROUNDS}; {QUICK_ROUNDS} with --quick]",
            ),
            click.option("--quick", is_flag=True, help="Few and small rounds: a few seconds."),
            click.option(
                "--batch",
                type=click.IntRange(1, 128),
                default=BATCH,
                show_default=True,
                help="Jobs of one script call, or of one pipeline of the relay.",
            ),
            click.option(
                "--nodes",
                type=click.IntRange(1, NODES_MAX),
                default=NODES,
                show_default=True,
                help="Nodes of the fleet, each with an inbox.",
            ),
            click.option(
                "--sessions",
                type=click.IntRange(min=1),
                default=SESSIONS,
                show_default=True,
                help="Sessions that the jobs belong to, drawn at random.",
            ),
            click.option(
                "--payload-bytes",
                type=click.IntRange(0, DEFAULTS.payload_bytes_max),
                default=PAYLOAD_BYTES,
                show_default=True,
                help="Of each job, beside its document.",
            ),
            click.option("--json", "as_json", is_flag=True, help="One JSON object alone on standard output."),
            click.option(
                "--redis-url",
                metavar="URL",
                help="Use this server, in a namespace of its own, removed at the end. Others' use of it counts too.",
            ),
            log_level_option("warning"),
        )
    ):
        command = option(command)
    return command


bench.add_command(against)
bench.add_command(v2)
bench.add_command(latency)
bench.add_command(owner)
bench.add_command(memory)
bench.add_command(tables)
bench.add_command(pictures)
bench.add_command(complexity)


@bench.command()
@_options
def relay(
    jobs: int | None,
    rounds: int | None,
    quick: bool,
    batch: int,
    nodes: int,
    sessions: int,
    payload_bytes: int,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """The floor: carry jobs from the intake into inboxes.

    Without any decision: XREAD ahead, then XADDs and XDELs of a batch in one pipeline; no script.
    """
    workload = _workload(jobs, quick, batch, nodes, sessions, payload_bytes)
    plan = Plan(
        benchmarks=("relay",),
        workload=workload,
        rounds=_rounds(rounds, quick),
        settings=_settings(batch),
        url=_url(redis_url),
    )
    report.conclude(plan, run(plan), as_json=as_json)


@bench.command()
@_options
@click.option("--profile", is_flag=True, help="Also tell where the time of as many rounds more goes, on both sides.")
def dispatch(
    jobs: int | None,
    rounds: int | None,
    quick: bool,
    batch: int,
    nodes: int,
    sessions: int,
    payload_bytes: int,
    as_json: bool,
    redis_url: str | None,
    profile: bool,
) -> None:
    """One dispatcher, from the intake into inboxes.

    The relay takes turns with it. Prints both, and their ratio. Checks after each round that every job was placed
    exactly once.
    """
    workload = _workload(jobs, quick, batch, nodes, sessions, payload_bytes)
    plan = Plan(
        benchmarks=("relay", "dispatch"),
        workload=workload,
        rounds=_rounds(rounds, quick),
        settings=_settings(batch),
        url=_url(redis_url),
        profile=profile,
    )
    report.conclude(plan, run(plan), as_json=as_json)


@bench.command()
@_options
def lifecycle(
    jobs: int | None,
    rounds: int | None,
    quick: bool,
    batch: int,
    nodes: int,
    sessions: int,
    payload_bytes: int,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """From submission to result by the SDK.

    The relay takes turns with it. One dispatcher in a process of its own; producer, manager and four nodes whose
    handlers do nothing in this one. --nodes are inboxes of the relay. Ends with 1 if it comes to less than a quarter of
    the relay's jobs a second.
    """
    plan = lives.Plan(
        workload=_workload(jobs, quick, batch, nodes, sessions, payload_bytes), rounds=_rounds(rounds, quick)
    )
    settings = msgspec.structs.replace(settings_of_environment(), batch_max=batch)
    found, figures = lives.lifecycle(plan, settings, _url(redis_url))
    verdict.conclude(lives.show(found, plan, figures), as_json=as_json)


def _workload(jobs: int | None, quick: bool, batch: int, nodes: int, sessions: int, payload_bytes: int) -> Workload:
    return Workload(
        jobs=jobs or (QUICK_JOBS if quick else JOBS),
        batch=batch,
        nodes=nodes,
        sessions=sessions,
        payload_bytes=payload_bytes,
    )


def _rounds(typed: int | None, quick: bool) -> int:
    return typed or (QUICK_ROUNDS if quick else ROUNDS)


def _settings(batch: int) -> Settings:
    return msgspec.structs.replace(settings_of_environment(), batch_max=batch, silence_ms=SILENCE_MS)


def _url(typed: str | None) -> str | None:
    return typed and find_server(typed).whole


def main() -> None:
    """What was typed."""
    bench.main(prog_name="./tools/bench")
