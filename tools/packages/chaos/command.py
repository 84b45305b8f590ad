"""The commands: a chaos run, `outage` and `shocks`."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click
import msgspec

from chaos.acts import ROLES, Role
from chaos.fleet import Counts, NodeShape
from chaos.outage import run as run_outage
from chaos.processes import variables
from chaos.report import conclude
from chaos.run import Plan, run
from chaos.settings import Leases, settings_for
from chaos.shocked import run as run_shocks
from chaos.shocks import Result as ShockResult
from chaos.shocks import Shock, matrix, settings_of
from scheduler.audit.workloads import PAIRS, Arrival, offered_load, read_trace, speech_arrivals
from scheduler.console.common import find_server, log_level_option
from scheduler.console.failures import BY_SIGNAL, as_failure
from scheduler.errors import SchedulerError
from scheduler.server.embedded import Engine, available_engines

SEED: Final = 1
SPEED: Final = 60.0
JOBS: Final = 2_000
SESSIONS: Final = 200
SECONDS: Final = 55.0
EVERY_S: Final = 5.0
AWAY_S: Final = 40.0
PAUSE_S: Final = 20.0
COUNTS: Final = Counts()
SLOTS: Final = 8
QUICK_JOBS: Final = 400
QUICK_SESSIONS: Final = 60
QUICK_EVERY_MS: Final = 1_000
QUICK_NODES: Final = 4
ROUND_PAUSE_MS: Final = 200.0

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Explained(click.Command):
    """A command whose failures are a line for people, with the exit codes of `scheduler`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(BY_SIGNAL + signal.SIGINT)
        except (SchedulerError, OSError) as error:
            raise as_failure(error) from error


def _count(name: str, default: int) -> Callable[[_Command], _Command]:
    """An option for the number of processes of a role."""
    return click.option(
        f"--{name}", type=click.IntRange(min=1), default=default, show_default=True, help=f"How many {name}."
    )


def _leases(default: Leases) -> Callable[[_Command], _Command]:
    return click.option(
        "--leases",
        type=click.Choice(["half", "default", "quick"]),
        default=default,
        show_default=True,
        help="How long leases and silences last: the product's defaults, half of them, or as in quick tests.",
    )


def _directory(command: _Command) -> _Command:
    return click.option(
        "--directory", type=click.Path(file_okay=False, path_type=Path), help="An empty one, for logs and records."
    )(command)


@click.command(cls=Explained, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", required=False)
@click.option("--speech", is_flag=True, help="Seeded live speech instead of a file; also without either.")
@click.option("--jobs", type=click.IntRange(min=1), default=JOBS, show_default=True, help="Of speech, a round.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=SPEED,
    show_default=True,
    help="How many times faster than FILE was recorded.",
)
@click.option(
    "--ms-per-token", type=click.FloatRange(min=0, min_open=True), default=20.0, show_default=True,
    help="Work of an output token of FILE, before --speed.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=SECONDS, show_default=True, help="Unrest lasts at least so long."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), help="How often the load is repeated.  [default: until --seconds are over]"
)
@click.option(
    "--every", type=click.FloatRange(min=0.1), default=EVERY_S, show_default=True, help="Seconds between two acts."
)
@click.option("--seed", type=int, default=SEED, show_default=True, help="Of the load, of the victims and of the acts.")
@click.option(
    "--only", type=click.Choice(ROLES), multiple=True, help="Hit this role alone; repeatable.  [default: all roles]"
)
@_count("managers", COUNTS.manager)
@_count("dispatchers", COUNTS.dispatcher)
@_count("reapers", COUNTS.reaper)
@_count("nodes", COUNTS.node)
@click.option("--capacity", type=click.IntRange(min=1), default=SLOTS, show_default=True, help="Slots of each node.")
@_leases("half")
@click.option(
    "--quick",
    is_flag=True,
    help="The short form of the test suite: 400 jobs of speech, an act each second. Of what describes load and fleet, "
    "only --seed and --dispatchers count then.",
)
@_directory
@click.option("--json", "as_json", is_flag=True, help="One JSON object alone on standard output.")
@click.option("--redis-url", metavar="URL", help="Use this server, in a namespace of its own, removed at the end.")
@log_level_option("info")
def chaos(
    file: str | None,
    speech: bool,
    jobs: int,
    speed: float,
    ms_per_token: float,
    seconds: float,
    rounds: int | None,
    every: float,
    seed: int,
    only: tuple[Role, ...],
    managers: int,
    dispatchers: int,
    reapers: int,
    nodes: int,
    capacity: int,
    leases: str,
    quick: bool,
    directory: Path | None,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """Run a scheduler of many processes under load, and kill, pause, stop or replace a random one every few seconds.

    A recorded trace, FILE, or live speech is submitted meanwhile. Ends with 0 only if every job completed exactly once,
    no node was over capacity, every session kept its order, and its node while that was healthy and had room, and no
    slot is held at the end.

    There are also `outage`: the server itself is away for longer than every lease; and `shocks`: the server's clock is
    stepped, or all processes are paused, or stopped and started, at once.
    """
    if speech and file is not None:
        raise click.UsageError("expected either FILE or --speech")
    url = redis_url and find_server(redis_url).whole
    if quick:
        plan = quick_plan(seed, url, only or ROLES, dispatchers)
        leases = "quick"
    else:
        once = _load(file, seed, jobs, speed, ms_per_token)
        arrivals = repeat(once, rounds or rounds_for(once, seconds))
        plan = Plan(
            arrivals=arrivals,
            counts=Counts(managers, dispatchers, reapers, nodes),
            shape=_shape(capacity),
            settings=settings_for(cast(Leases, leases), len(arrivals)),
            seconds=seconds,
            every_ms=round(every * 1000),
            seed=seed,
            only=only or ROLES,
            url=url,
        )
    with kept(directory) as folder:
        result = run(plan, folder.path)
        folder.wanted = not result.ok
    inputs = {
        "seed": seed,
        "only": plan.only,
        "leases": leases,
        "settings": variables(plan.settings),
        "counts": plan.counts,
    }
    conclude(result, headline(plan, leases), inputs, as_json=as_json)


def quick_plan(
    seed: int = SEED, url: str | None = None, only: tuple[Role, ...] = ROLES, dispatchers: int = COUNTS.dispatcher
) -> Plan:
    """The short form."""
    arrivals = speech_arrivals(seed, QUICK_SESSIONS, QUICK_JOBS)
    return Plan(
        arrivals=arrivals,
        counts=msgspec.structs.replace(COUNTS, node=QUICK_NODES, dispatcher=dispatchers),
        shape=_shape(SLOTS),
        settings=settings_for("quick", len(arrivals)),
        seconds=0,
        every_ms=QUICK_EVERY_MS,
        seed=seed,
        only=only,
        url=url,
    )


def _shape(capacity: int) -> NodeShape:
    return NodeShape(capacity, tuple((pair.src_lang, pair.tgt_lang) for pair in PAIRS))


def _load(file: str | None, seed: int, jobs: int, speed: float, ms_per_token: float) -> list[Arrival]:
    if file is None:
        return speech_arrivals(seed, min(SESSIONS, jobs), jobs)
    return read_trace(file, seed, speed=speed, ms_per_token=ms_per_token)


def rounds_for(arrivals: Sequence[Arrival], seconds: float) -> int:
    """How often a load has to be repeated to last so long."""
    return max(1, math.ceil(seconds * 1000 / (arrivals[-1].at_ms + ROUND_PAUSE_MS)))


def repeat(arrivals: Sequence[Arrival], rounds: int) -> list[Arrival]:
    """The same load again and again; its sessions go on."""
    length_ms = arrivals[-1].at_ms + ROUND_PAUSE_MS
    return [
        msgspec.structs.replace(arrival, at_ms=arrival.at_ms + number * length_ms)
        for number in range(rounds)
        for arrival in arrivals
    ]


def headline(plan: Plan, leases: str) -> str:
    """What is run, in a few words."""
    counts, load = plan.counts, offered_load(plan.arrivals)
    victims = "" if len(plan.only) == len(ROLES) else f" on a {' or '.join(plan.only)}"
    return (
        f"chaos: {load.jobs:,} jobs in {plan.arrivals[-1].at_ms / 1000:.0f} s, {counts.dispatcher} dispatchers, "
        f"{counts.manager} managers, {counts.reaper} reapers, {counts.node} nodes of {plan.shape.capacity} slots "
        f"({load.peak_slots} wanted at the peak); an act{victims} each {plan.every_ms / 1000:g} s, "
        f"{leases} leases, seed {plan.seed}"
    )


class _Folder(msgspec.Struct):
    """Where a run keeps its files; wanted: they are worth looking at."""

    path: Path
    wanted: bool = True


@contextlib.contextmanager
def kept(directory: Path | None) -> Iterator[_Folder]:
    """A directory for logs and records; one that nobody named is kept only if it is still wanted at the end."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise click.UsageError(f"--directory {directory}: expected an empty one")
        yield _Folder(directory)
        return
    folder = _Folder(Path(tempfile.mkdtemp(prefix="scheduler-chaos-")))
    try:
        yield folder
    except (KeyboardInterrupt, SystemExit):
        folder.wanted = False
        raise
    finally:
        if folder.wanted:
            click.echo(f"logs and records are in {folder.path}", err=True)
        else:
            shutil.rmtree(folder.path)


@click.command(cls=Explained, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--away-s", type=click.FloatRange(min=0.1), default=AWAY_S, show_default=True, help="How long the server is away."
)
@_leases("default")
@click.option("--kill", is_flag=True, help="SIGKILL the server, instead of letting it end in an orderly way.")
@_directory
@log_level_option("info")
def outage(away_s: float, leases: str, kill: bool, directory: Path | None) -> None:
    """Let the server of a whole scheduler be away, longer than every lease, and come back with its data.

    Prints one JSON object. Ends with 0 only if no node was declared dead by it, handlers that had to stop were given
    back without costing an attempt, every job that was acknowledged is completed, and the jobs that were submitted at
    the server's return, one to each partition, were completed within 2 s.

    With --kill the server cannot write what is still in its memory: mostly nothing, up to two seconds of writes while
    its disk is slow (a power cut would also take what was not synced, about a second). Of the jobs that were submitted
    in its last moments some may be gone then, which is reported as `lost`; for all others the same holds as ever.
    """
    with kept(directory) as folder:
        result = run_outage(settings_for(cast(Leases, leases), 0), away_s, folder.path, kill=kill)
        folder.wanted = not result.ok
    click.echo(msgspec.json.encode({"ok": result.ok} | msgspec.to_builtins(result)))
    if not result.ok:
        click.get_current_context().exit(1)


@click.command(cls=Explained, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", nargs=-1)
@click.option(
    "--engine",
    "engines",
    type=click.Choice(["valkey", "redis"]),
    multiple=True,
    help="This server; repeatable.  [default: all there are]",
)
@click.option(
    "--pause-s", type=click.FloatRange(min=0.1), default=PAUSE_S, show_default=True, help="How long a pause lasts."
)
@_leases("half")
@click.option("--seed", type=int, default=SEED, show_default=True, help="Of the load.")
@_directory
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@log_level_option("warning")
def shocks(
    words: tuple[str, ...],
    engines: tuple[Engine, ...],
    pause_s: float,
    leases: str,
    seed: int,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Let whole schedulers meet what hits everybody at once; with WORDS, only the shocks that are called by all of
    them, such as `manager before`.

    The server's clock is stepped by an hour, ten seconds and one, on and back, while all managers, dispatchers or
    reapers, or a node, die before, at or after the step; all processes are paused, with the server and without it, and
    a node alone; and all are stopped and started again. Needs gcc, for what moves the server's clock. With default
    leases it takes an hour an engine, with half of them half of that.

    A line for each shock, as it ends. Ends with 0 only if no job was lost or charged, no node was over capacity, no
    handler started without a lease, every other guarantee held, and all went on in time.
    """
    chosen = [[each for each in series if all(word in str(each) for word in words)] for series in matrix_of(pause_s)]
    settings = settings_of(settings_for(cast(Leases, leases), 0))
    broken, headed = False, as_json

    def tell(result: ShockResult) -> None:
        nonlocal broken, headed
        broken = broken or not result.ok
        if not headed:
            click.echo(shock_row(None))
        headed = True
        click.echo(
            msgspec.json.encode({"ok": result.ok} | msgspec.to_builtins(result)) if as_json else shock_row(result)
        )
        for line in () if as_json else result.examples:
            click.echo(f"  {line}")

    with kept(directory) as folder:
        for engine in engines or available_engines():
            for number, series in enumerate(each for each in chosen if each):
                place = folder.path / f"{engine}{number:02}"
                place.mkdir()
                for line in run_shocks(series, settings, place, engine, seed=seed, tell=tell)[1]:
                    broken = True
                    click.echo(line, err=True)
        folder.wanted = broken
    if broken:
        click.get_current_context().exit(1)


def matrix_of(pause_s: float) -> list[list[Shock]]:
    """All shocks, with pauses of so many seconds."""
    return matrix(round(pause_s * 1000))


def shock_row(result: ShockResult | None) -> str:
    """One shock in a line; the names of the columns for None."""
    if result is None:
        return f"{'engine':7} {'shock':38} {'jobs':>5} {'lost':>4} {'over':>4} {'past lease':>10} {'charged':>7} " + (
            f"{'broken':>6} {'left':>4} {'goes on':>8} {'managed':>8}"
        )
    return (
        f"{result.engine:7} {result.shock:38} {result.submitted:5} {result.lost:4} {result.over_capacity:4} "
        f"{result.past_lease:10} {result.charged:7} {result.broken:6} {result.left:4} {result.again_ms / 1000:6.1f} s "
        f"{result.managed_ms / 1000:6.1f} s{'' if result.ok else '  FAIL'}"
    )


def main() -> None:
    """What was typed: `outage`, `shocks`, or else a chaos run."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["outage"]:
        outage.main(arguments[1:], prog_name="./tools/chaos outage")
    if arguments[:1] == ["shocks"]:
        shocks.main(arguments[1:], prog_name="./tools/chaos shocks")
    chaos.main(arguments, prog_name="./tools/chaos")
