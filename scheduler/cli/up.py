"""`scheduler up`: a whole scheduler in one process, on a server of its own unless one is named or already runs here."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource

from scheduler import roles
from scheduler.cli.server import HERE, alive_until, data_dir_option, has_ended, own_server
from scheduler.clock import SYSTEM_CLOCK
from scheduler.config import Settings
from scheduler.console.common import server_options, settings_of_environment
from scheduler.console.failures import WrongUsage
from scheduler.console.process import (
    STOP_MS_MAX,
    StartRole,
    begun,
    check_server,
    run_serving,
    stop_roles,
    unless_refused,
    unless_stopped,
)
from scheduler.console.streams import announce
from scheduler.host import Host
from scheduler.roles import Role
from scheduler.server.embedded import EmbeddedServer
from scheduler.server.location import Found, find_url, remove_url_file
from scheduler.store.connection import Connection
from scheduler.store.telling import Telling
from scheduler.url import ServerUrl, parse_url

logger = logging.getLogger("scheduler")

_START: Final[tuple[StartRole, ...]] = (roles.start_manager, roles.start_dispatcher, roles.start_reaper)


@click.command(short_help="Run a whole scheduler in one process.")
@data_dir_option
@server_options(log_level="info")
def up(redis_url: str | None, data_dir: Path) -> None:
    """Run a whole scheduler in this process: manager, dispatcher and reaper.

    Starts a server of its own, with its data on disk, unless one is named or already runs in this directory; then
    --data-dir is refused. Prints the server's URL, and `ready` when everything runs. Other commands of this directory
    find the server by themselves.

    SIGTERM or Ctrl-C stops in order: partitions and leadership are handed over, then the server that was started here
    is stopped. A second signal stops at once.

    \b
    Examples:
      scheduler up
      scheduler up --redis-url redis://10.0.0.5:6379/0 --log-level warning
    """
    settings = settings_of_environment()
    found = find_url(redis_url, os.environ, HERE)
    if isinstance(found, Found):
        _refuse_data_dir(data_dir, found)
        logger.info("using the server named by %s", found.place)
        run_serving(lambda stopping: _serve(found.url, settings, stopping, None))
        return
    with own_server(data_dir) as server:
        run_serving(lambda stopping: _serve(parse_url(server.url), settings, stopping, server))


def _refuse_data_dir(data_dir: Path, found: Found) -> None:
    """Raises: WrongUsage when --data-dir was typed, although the server that was found keeps its data elsewhere."""
    source = click.get_current_context().get_parameter_source("data_dir")
    if source is not ParameterSource.DEFAULT:
        raise WrongUsage(
            f"--data-dir = {str(data_dir)!r}: expected none, because no server is started here: `up` would use "
            f"{found.url}, named by {found.place}; stop that one first, or leave the option out"
        )


async def _begin(start: StartRole, url: ServerUrl, settings: Settings, host: Host) -> Role:
    return await begun((await start(url, settings, host))[0])


async def _serve(url: ServerUrl, settings: Settings, stopping: asyncio.Event, server: EmbeddedServer | None) -> None:
    """Run the roles until told to stop.

    Raises: ServerUnavailable when the server that was started here ended; ServerRefused.
    """
    if await unless_stopped(stopping, check_server(url, settings)) is None:
        return
    # One tells of the server for all of them.
    host = Host(connect=functools.partial(Connection, telling=Telling(url, SYSTEM_CLOCK)))
    started: list[Role] = []
    alive = False
    try:
        for start in _START:
            role = await unless_stopped(stopping, _begin(start, url, settings, host))
            if role is None:
                alive = True
                return
            started.append(role)
        announce(str(url))
        announce("ready")
        alive = await unless_refused(started, alive_until(stopping, server))
        if server is not None:
            remove_url_file(HERE, url.whole)  # at once: nobody who starts now should use a server that is about to end
    finally:
        await stop_roles(started, STOP_MS_MAX if alive else 0)
    if server is not None and not alive:
        raise has_ended(server)
