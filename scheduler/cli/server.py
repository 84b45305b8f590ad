"""`scheduler server`: a server of one's own in the foreground, which the other commands of this directory find.

Also what `scheduler up` shares with it: starting that server, and noticing that it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import click

from scheduler.console.common import log_level_option
from scheduler.console.failures import Failure
from scheduler.console.process import ask_aside, run_serving, shutdown_grace_option
from scheduler.console.streams import announce
from scheduler.errors import InvalidInput, ServerUnavailable
from scheduler.server.embedded import EmbeddedServer, start_embedded
from scheduler.server.location import Found, find_url, named_url, remove_url_file, url_file, write_url_file
from scheduler.store.blocking import count_clients
from scheduler.url import parse_url

logger = logging.getLogger("scheduler")

HERE: Final = Path()
DATA_DIRECTORY: Final = url_file(HERE).parent
WATCH_MS: Final = 500
CLIENTS_EVERY_MS: Final = 50

_Command = TypeVar("_Command", bound=Callable[..., None])


def data_dir_option(command: _Command) -> _Command:
    """`--data-dir`."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=DATA_DIRECTORY,
        show_default=True,
        help="Where a server that is started here keeps its data. Its URL is always told in .scheduler/url.",
    )(command)


@click.command(short_help="Run a server alone, for roles in processes of their own.")
@data_dir_option
@shutdown_grace_option("clients to disconnect")
@log_level_option("info")
def server(data_dir: Path, shutdown_grace_ms: int) -> None:
    """Run a server of one's own, with its data on disk, and nothing else.

    Prints the server's URL, and `ready` when it answers. Other commands of this directory find it by themselves. Ends
    with 1 when a server already runs in this directory.

    SIGTERM or Ctrl-C stops it, a second signal stops it at once.

    \b
    Example:
      scheduler server
    """
    _refuse_second()
    _warn_of_another()
    try:
        with own_server(data_dir) as running:
            run_serving(lambda stopping: _serve(running, stopping, shutdown_grace_ms))
    except ServerUnavailable:
        _refuse_second()  # two that start at once: the later one learns of the other only now
        raise


def _refuse_second() -> None:
    """Raises: Failure when a server runs in this directory."""
    found = find_url(None, {}, HERE)
    if isinstance(found, Found):
        raise Failure(f"a server already runs in this directory: {found.url} ({found.place})")


def _warn_of_another() -> None:
    """Say so when the environment keeps the other commands away from the server that is started here."""
    found = named_url(None, os.environ)
    if isinstance(found, Found):
        logger.warning("%s is set: commands that see it use that server, not this one", found.place)


@contextlib.contextmanager
def own_server(data_dir: Path) -> Iterator[EmbeddedServer]:
    """A server of our own with its data on disk, told in the URL file while it runs.

    Raises: InvalidInput when a directory cannot be written; ServerUnavailable.
    """
    try:
        started = start_embedded(data_dir, persistent=True)
    except InvalidInput as error:
        raise InvalidInput(f"--data-dir = {str(data_dir)!r}: {error}") from error
    with started as running:
        logger.info("started %s in %s", running.engine, data_dir / running.engine)
        write_url_file(HERE, running.url)  # with its password, for this user alone
        try:
            yield running
        finally:
            remove_url_file(HERE, running.url)


async def alive_until(stopping: asyncio.Event, running: EmbeddedServer | None) -> bool:
    """Wait until told to stop, or until the server of our own has ended. Returns: whether it is alive."""
    while running is None or running.running:
        try:
            async with asyncio.timeout(WATCH_MS / 1000):
                await stopping.wait()
            return True
        except TimeoutError:
            continue
    return False


def has_ended(running: EmbeddedServer) -> ServerUnavailable:
    """The error that a server of our own ended by itself."""
    return ServerUnavailable(f"the server that was started here has ended; its log is {running.log_path}")


async def _serve(running: EmbeddedServer, stopping: asyncio.Event, shutdown_grace_ms: int) -> None:
    """Run until told to stop. Raises: ServerUnavailable when the server ended by itself."""
    announce(str(parse_url(running.url)))
    announce("ready")
    if not await alive_until(stopping, running):
        raise has_ended(running)
    remove_url_file(HERE, running.url)  # at once: nobody who starts now should use a server that is about to end
    until_s = time.monotonic() + shutdown_grace_ms / 1000
    while time.monotonic() < until_s:
        if await ask_aside(partial(count_clients, running.url), 1) == 0:  # not asked, somebody may be there
            return
        await asyncio.sleep(CLIENTS_EVERY_MS / 1000)
