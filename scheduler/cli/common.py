"""What the commands share: their options, the server and settings they use, and how they print."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec
from redis.exceptions import RedisError

from scheduler import calls
from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.config import Settings, read_settings
from scheduler.errors import SchedulerError, ServerUnavailable, without_credentials
from scheduler.repeats import Repeats
from scheduler.store.connection import Connection
from scheduler.store.location import Found, find_url
from scheduler.store.store import Store, open_store
from scheduler.store.telling import Telling

PATIENCE_MS: Final = 2_000
LAYOUT_WAIT_MS: Final = 2_500  # so late a leader has written one again that was lost
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
SHOWN_MAX: Final = 200

_Command = TypeVar("_Command", bound=Callable[..., Any])


# ---- options --------------------------------------------------------------------------------------------------------


def server_options(log_level: str = "warning") -> Callable[[_Command], _Command]:
    """`--redis-url` and `--log-level` for a command that talks to a server; the latter is in force by itself."""

    def decorate(command: _Command) -> _Command:
        command = log_level_option(log_level)(command)
        return click.option(
            "--redis-url",
            metavar="URL",
            help="The server: redis://host:port/0, rediss://... or unix:///path. Default: SCHED_REDIS_URL, REDIS_URL, "
            "else the server that `scheduler up` or `scheduler server` runs in this directory.",
        )(command)

    return decorate


def log_level_option(default: str) -> Callable[[_Command], _Command]:
    """`--log-level`, in force as soon as it is read."""
    return click.option(
        "--log-level",
        type=click.Choice(LOG_LEVELS, case_sensitive=False),
        default=default,
        show_default=True,
        expose_value=False,
        callback=lambda _context, _parameter, value: log_to_stderr(value),
        help="What is logged to stderr.",
    )


def json_option(command: _Command) -> _Command:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


class _StderrHandler(logging.Handler):
    """Writes to what stderr is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            click.echo(without_credentials(self.format(record)), err=True)
        except Exception:
            self.handleError(record)


def log_to_stderr(level: str) -> None:
    """Log to stderr from now on; other libraries' warnings too."""
    root = logging.getLogger()
    if not any(isinstance(handler, _StderrHandler) for handler in root.handlers):
        handler = _StderrHandler()
        handler.setFormatter(
            logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        )
        repeats = Repeats(handler)
        handler.addFilter(repeats)
        atexit.register(repeats.flush)
        root.addHandler(handler)
    logging.getLogger("scheduler").setLevel(level.upper())


# ---- the server -----------------------------------------------------------------------------------------------------


def settings_of_environment() -> Settings:
    """Settings from SCHED_* variables. Raises: InvalidConfig."""
    return read_settings(os.environ)


def find_server(redis_url: str | None) -> str:
    """The URL of the server to talk to. Raises: InvalidInput; ServerUnavailable, naming the places looked at."""
    found = find_url(redis_url, os.environ, Path())
    if isinstance(found, Found):
        return found.url
    raise ServerUnavailable(
        f"no server found; looked at\n{found}\n"
        "Change to the directory where `scheduler up` runs, name its server with\n"
        "--redis-url, or start one here: scheduler up"
    )


@contextlib.asynccontextmanager
async def opened_store(redis_url: str | None, settings: Settings) -> AsyncIterator[tuple[Store, calls.Layout]]:
    """A store for a command that asks and goes, at a server where a scheduler was started.

    Raises: ServerUnavailable, also where no scheduler was ever started; ServerRefused; SchedulerError for what else
    the server refuses.
    """
    url = find_server(redis_url)
    try:
        async with await open_store(url, settings, PATIENCE_MS) as store:
            yield store, await store.layout(LAYOUT_WAIT_MS)
    except RedisError as error:
        raise SchedulerError(f"{url}: {error}") from error


class Connecting:
    """Makes the connections of a command that has several: one tells of the server for all of them.

    Until `has_begun`, they try for PATIENCE_MS on a server that answers that it cannot do it now; later as patiently as
    on one that does not answer.
    """

    def __init__(self, url: str) -> None:
        self._telling = Telling(url, SYSTEM_CLOCK)
        self._made: list[tuple[Connection, int | None]] = []

    def __call__(self, url: str, patience_ms: int | None, clock: Clock) -> Connection:
        """As the class does."""
        connection = Connection(url, patience_ms, clock, telling=self._telling)
        self._made.append((connection, connection.later_ms))
        connection.later_ms = PATIENCE_MS
        return connection

    def has_begun(self) -> None:
        """The server has done what the command is for."""
        for connection, later_ms in self._made:
            connection.later_ms = later_ms
            connection.has_started = True


# ---- printing -------------------------------------------------------------------------------------------------------


def print_line(text: str) -> None:
    """A line on stdout, at once: somebody may wait for it."""
    click.echo(text)


def print_json(value: object) -> None:
    """One JSON document, indented."""
    print_line(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def shown(text: str, length_max: int = SHOWN_MAX) -> str:
    """A text from elsewhere as one line for a terminal: nothing in it is obeyed, and it is cut when it is long."""
    visible = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return visible if len(visible) <= length_max else f"{visible[:length_max]}... ({len(text)} characters)"


def duration(milliseconds: float) -> str:
    """A length of time in two units at most: `850 ms`, `12.3 s`, `4m 05s`, `3h 20m`, `2d 4h`."""
    if milliseconds < 0:
        return f"-{duration(-milliseconds)}"
    if milliseconds < 1_000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1_000
    if seconds < 60:
        return f"{int(seconds * 10) / 10:.1f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3_600)
    if hours == 0:
        return f"{minutes}m {int(seconds % 60):02}s"
    if hours < 24:
        return f"{hours}h {minutes % 60:02}m"
    return f"{hours // 24}d {hours % 24}h"


def moment(at_ms: int) -> str:
    """A time in ISO 8601, UTC."""
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
