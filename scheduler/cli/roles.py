"""The roles as processes of their own: `manager`, `dispatcher`, `reaper` and `node`, each until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from scheduler import roles
from scheduler.cli.work import Recorder, label_of, load_handler, pair_of, simulated_work
from scheduler.config import NUMBER_MAX, Settings
from scheduler.console.common import Fraction, milliseconds, server_options, settings_of_environment
from scheduler.console.failures import CutOff, Failure, as_failure
from scheduler.console.loops import threads_run_on
from scheduler.console.process import (
    POLL_MS,
    STOP_MS_MAX,
    StartRole,
    await_server,
    begin_within,
    begun,
    check_server,
    run_serving,
    shutdown_grace_option,
    stop_roles,
    unless_gone,
    unless_refused,
    unless_stopped,
    wait_server_option,
)
from scheduler.console.streams import announce
from scheduler.errors import SchedulerError, ServerRefused
from scheduler.host import process_name
from scheduler.node.attempts import Observer
from scheduler.node.drain import DRAIN_MS_MAX
from scheduler.node.node import Node
from scheduler.node.registration import registration
from scheduler.roles import Role
from scheduler.store.store import open_store
from scheduler.url import ServerUrl

logger = logging.getLogger("scheduler")

WORK_MS: Final = 20.0
MANAGED_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*[.-][A-Za-z0-9]+")  # type and number of a process
OVER_MS_MAX: Final = 1_700  # of a drain that is too short for the last words; with threads, 2 s in all


@click.command(short_help="Run a manager alone.")
@wait_server_option
@shutdown_grace_option("nodes to leave")
@server_options(log_level="info")
def manager(redis_url: str | None, wait_server_ms: int, shutdown_grace_ms: int) -> None:
    """Run a manager: it folds heartbeats into capacities and the snapshot.

    The first one writes the layout. Of several one leads and the others stand by. Prints `ready` when it runs; SIGTERM
    or Ctrl-C gives up the leadership and ends, a second signal ends at once.

    \b
    Example:
      scheduler manager --redis-url redis://10.0.0.5:6379/0
    """
    _run_role(redis_url, roles.start_manager, wait_server_ms, shutdown_grace_ms)


@click.command(short_help="Run a dispatcher alone.")
@wait_server_option
@server_options(log_level="info")
def dispatcher(redis_url: str | None, wait_server_ms: int) -> None:
    """Run a dispatcher: it places the jobs of its partitions on nodes.

    Several share the partitions; each partition belongs to one of them. Prints `ready` when it runs, after a manager
    has written the layout; SIGTERM or Ctrl-C gives up its partitions and ends, a second signal ends at once.

    \b
    Example:
      scheduler dispatcher --log-level debug
    """
    _run_role(redis_url, roles.start_dispatcher, wait_server_ms)


@click.command(short_help="Run a reaper alone.")
@wait_server_option
@server_options(log_level="info")
def reaper(redis_url: str | None, wait_server_ms: int) -> None:
    """Run a reaper: it ends lapsed leases and sends delayed jobs back when they are due.

    Any number may run. Prints `ready` when it runs, after a manager has written the layout; SIGTERM or Ctrl-C ends it,
    a second signal at once.

    \b
    Example:
      scheduler reaper
    """
    _run_role(redis_url, roles.start_reaper, wait_server_ms)


def _find_server(redis_url: str | None, wait_ms: int) -> ServerUrl | None:
    """The URL of the server to talk to; None when a signal came first. Raises: InvalidInput, ServerUnavailable."""

    async def find(stopping: asyncio.Event) -> ServerUrl | None:
        url = await unless_stopped(stopping, await_server(redis_url, wait_ms))
        return None if stopping.is_set() else url  # the signal can come while the server is asked, which blocks

    return run_serving(find)


def _run_role(redis_url: str | None, start: StartRole, wait_server_ms: int, shutdown_grace_ms: int = 0) -> None:
    settings, url = settings_of_environment(), _find_server(redis_url, wait_server_ms)
    if url is None:
        return

    async def begin(wait_ms: int) -> Role:
        await check_server(url, settings, wait_ms)
        return await begun((await start(url, settings))[0])

    async def serve(stopping: asyncio.Event) -> None:
        """Run the role until it is told to stop, or its server refuses its credentials."""
        role = await unless_stopped(stopping, begin_within(url, wait_server_ms, begin))
        if role is None:
            return
        stop_ms_max = 0
        gc.collect()
        gc.freeze()  # what is there by now stays: no collection looks through it again, for tens of milliseconds
        try:
            announce("ready")
            await unless_refused([role], stopping.wait())
            if not shutdown_grace_ms or await _see_nodes_off(url, settings, shutdown_grace_ms):
                stop_ms_max = STOP_MS_MAX
        finally:
            await stop_roles([role], stop_ms_max)

    run_serving(serve)


async def _see_nodes_off(url: ServerUrl, settings: Settings, wait_ms: int) -> bool:
    """Wait until no node is there any more but dead ones, at most `wait_ms`. Returns: whether the server answers."""

    async def all_left() -> None:
        async with await open_store(url, settings, patience_ms=None) as store:
            while True:
                if all(item.reason == "dead" for item in (await store.reads.capacities()).values()):
                    return
                await asyncio.sleep(POLL_MS / 1000)

    try:
        async with asyncio.timeout(wait_ms / 1000):
            return await unless_gone(url, all_left())
    except TimeoutError:
        logger.info("nodes are still there")
        return True


def name_of_process() -> str:
    """How a process manager calls this process (honcho; foreman and overmind; Heroku); else a name of its own."""
    for variable in ("HONCHO_PROCESS_NAME", "PS", "DYNO"):
        name = os.environ.get(variable, "")
        if MANAGED_NAME.fullmatch(name):
            return name
    return process_name()


def _each(parse: Callable[[str], tuple[str, str]]) -> Callable[..., tuple[tuple[str, str], ...]]:
    """A click callback that parses each value of a repeatable option."""

    def convert(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Any, ...]:
        try:
            return tuple(parse(value) for value in values)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return convert


@click.command(short_help="Run a node, with a function of yours or simulated work.")
@click.option(
    "--id",
    "node_id",
    metavar="NAME",
    help="The node's name; one process each.  [default: that of a process manager, such as node.1; else host and pid]",
)
@click.option("--capacity", type=click.IntRange(min=1), default=1, show_default=True, help="Jobs at once.")
@click.option(
    "--pair", "pairs", multiple=True, metavar="SRC:TGT", callback=_each(pair_of), help="Languages served; repeatable."
)
@click.option("--feature", "features", multiple=True, metavar="NAME", help="Something offered; repeatable.")
@click.option("--pool", default="", metavar="NAME", help="Its pool.  [default: default]")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", callback=_each(label_of), help="Repeatable.")
@click.option("--version", "node_version", default="", metavar="TEXT", help="Of the software that the node runs.")
@click.option("--handler", metavar="MODULE:FUNCTION", help="What runs the jobs; looked for in this directory first.")
@click.option(
    "--work-ms",
    type=Fraction(0, NUMBER_MAX),
    help=f"Without --handler: how long a job sleeps, unless its JSON payload has `work_ms`.  [default: {WORK_MS:g}]",
)
@click.option(
    "--drain-ms",
    type=milliseconds(),
    default=DRAIN_MS_MAX,
    show_default=True,
    help="How long leaving may take in all. Running jobs have four fifths of it, or all but 5 s of a longer one; then "
    "they are given back.",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Append a JSON line for its capacity, and at the start and at the end of each handler.",
)
@wait_server_option
@server_options(log_level="info")
def node(
    node_id: str | None,
    capacity: int,
    pairs: tuple[tuple[str, str], ...],
    features: tuple[str, ...],
    pool: str,
    labels: tuple[tuple[str, str], ...],
    node_version: str,
    handler: str | None,
    work_ms: float | None,
    drain_ms: int,
    record: Path | None,
    wait_server_ms: int,
    redis_url: str | None,
) -> None:
    """Run a node: it serves jobs with a function of yours, or with simulated work.

    Prints `ready` when it has registered. SIGTERM or Ctrl-C drains it: running jobs end, then it leaves and exits with
    0; a second signal ends it at once. It exits with 1 when a later process of the same name replaces it, or when it
    could not leave.

    \b
    Examples:
      scheduler node --id n1 --capacity 8 --pair en:zh --pair zh:en
      scheduler node --id gpu1 --feature llm --handler app.chat:answer
    """
    if handler is not None and work_ms is not None:
        raise click.UsageError("--work-ms is for simulated work: not with --handler.")
    function = simulated_work(WORK_MS if work_ms is None else work_ms) if handler is None else load_handler(handler)
    recorder = None if record is None else Recorder(record)
    name = name_of_process() if node_id is None else node_id
    registration(name, capacity, pairs, features, dict(labels), pool, node_version)  # what is wrong is told at once
    settings, url = settings_of_environment(), _find_server(redis_url, wait_server_ms)
    if url is None:
        return
    member = Node(
        url,
        name,
        capacity=capacity,
        handler=function,
        pairs=pairs,
        features=features,
        labels=dict(labels),
        pool=pool,
        version=node_version,
        settings=settings,
        observer=recorder or Observer(),
        drain_ms_max=drain_ms,
    )

    async def enter(wait_ms: int) -> Node:
        if not await check_server(url, settings, wait_ms):
            logger.info("waiting for a manager to write the layout")
        await member.__aenter__()
        if recorder is not None:
            recorder.serves(member, capacity)  # in the same step, so before any handler
        return member

    async def serve(stopping: asyncio.Event) -> bool:
        if await unless_stopped(stopping, begin_within(url, wait_server_ms, enter)) is None:
            return False
        try:
            announce("ready")
            with contextlib.suppress(ServerRefused):  # `_conclude` tells of it
                await unless_stopped(stopping, member.stopped())
        finally:
            await _leave(member, url, drain_ms)
        return True

    try:
        has_served = run_serving(serve)
    except (SchedulerError, OSError) as error:
        if threads_run_on():
            failure = as_failure(error)
            raise CutOff(failure.exit_code, failure.message) from error
        raise
    if has_served:
        _conclude(member)


async def _leave(member: Node, url: ServerUrl, drain_ms: int) -> None:
    """Drain and leave. A server that is gone keeps nobody here, but for the time to drain what runs."""
    try:
        async with asyncio.timeout((drain_ms + OVER_MS_MAX) / 1000):
            left = await unless_gone(url, member.__aexit__(), lambda: member.running > 0)
    except TimeoutError:
        left = False
    if not left:
        logger.warning("not told to the server: what runs here is run again elsewhere when its lease ends")


def _conclude(member: Node) -> None:
    """End as the node did. Raises: Failure; CutOff while a handler still runs, which nobody can stop."""
    failure = ""
    if member.refusal is not None:
        failure = str(member.refusal)
    elif member.phase == "replaced":
        failure = f"{member.node_id}: a later process of this name has replaced this one"
    elif member.phase != "left":
        failure = f"{member.node_id}: it has not left; it counts as dead when it was silent for long enough"
    if member.running or threads_run_on():
        logger.warning("a handler still runs; it is cut off")
        raise CutOff(1 if failure else 0, failure)
    if failure:
        raise Failure(failure)
