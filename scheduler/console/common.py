"""What the commands share: their options, the server and settings they use, and how they print."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec
from redis.exceptions import RedisError

from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.config import NUMBER_MAX, Settings, read_settings
from scheduler.console import terminal
from scheduler.console.logs import LOG_LEVELS, log_to_stderr
from scheduler.errors import InvalidInput, SchedulerError, ServerUnavailable
from scheduler.protocol import messages
from scheduler.protocol.snapshot import Snapshot
from scheduler.server.location import Found, find_url
from scheduler.store.connection import Connection
from scheduler.store.control import Led
from scheduler.store.store import Store, open_store
from scheduler.store.telling import Telling
from scheduler.url import ServerUrl
from scheduler.visible import visible

PATIENCE_MS: Final = 2_000
LAYOUT_WAIT_MS: Final = 2_500  # so late a leader has written one again that was lost
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
            help="The server: redis://host:port/0, rediss://... or unix:///path. A password in it can be seen by all "
            "users of the machine (ps): rather set a variable. Default: SCHED_REDIS_URL, REDIS_URL, else the server "
            "named in .scheduler/url, as `scheduler up` and `scheduler server` do in their directory.",
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
        help="What is logged, also by your handlers, to stderr unless your module configures logging.",
    )


class Fraction(click.FloatRange):
    """A number that may have a fraction. "nan" is none, and smaller and greater than nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Raises: BadParameter."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def milliseconds(least: int = 0) -> click.IntRange:
    """The type of an option that is a length of time."""
    return click.IntRange(least, NUMBER_MAX)


def json_option(command: _Command) -> _Command:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


# ---- the server -----------------------------------------------------------------------------------------------------


def settings_of_environment() -> Settings:
    """Settings from SCHED_* variables. Raises: InvalidConfig."""
    return read_settings(os.environ)


def find_server(redis_url: str | None) -> ServerUrl:
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
async def opened_store(redis_url: str | None, settings: Settings) -> AsyncIterator[tuple[Store, messages.Layout]]:
    """A store for a command that asks and goes, at a server where a scheduler was started.

    Raises: ServerUnavailable, also where no scheduler was ever started; ServerRefused; SchedulerError for what else
    the server refuses.
    """
    url = find_server(redis_url)
    try:
        async with await open_store(url, settings, PATIENCE_MS) as store:
            yield store, await store.layout(LAYOUT_WAIT_MS)
    except RedisError as error:
        raise SchedulerError(f"{url}: {visible(str(error))}") from error


async def read_snapshot(store: Store) -> Snapshot:
    """The published snapshot. Raises: SchedulerError when what is stored is none, which is nobody's usage."""
    try:
        return await store.control.read_snapshot()
    except InvalidInput as error:
        raise SchedulerError(
            f"what is stored as {store.control.keys.snapshot} cannot be read: {error}; the leading manager writes it "
            "again within seconds"
        ) from error


def unled(led: Led) -> list[str]:
    """What there is to say beside a picture that the leading manager makes: nothing while one leads."""
    if led.is_led:
        return []
    if led.silence_ms is None:
        return ["no manager leads, and none is known to have led"]
    return [f"no manager leads: last heard {duration(led.silence_ms)} ago; this is what it said then"]


def led_fields(led: Led) -> dict[str, bool | int | None]:
    """The same for programs."""
    return {"led": led.is_led, "leader_silence_ms": None if led.is_led else led.silence_ms}


class Connecting:
    """Makes the connections of a command that has several: one tells of the server for all of them.

    Until `has_begun`, they try for PATIENCE_MS on a server that answers that it cannot do it now; later as patiently as
    on one that does not answer.
    """

    def __init__(self, url: ServerUrl) -> None:
        self._telling = Telling(url, SYSTEM_CLOCK)
        self._made: list[tuple[Connection, int | None]] = []

    def __call__(self, url: str | ServerUrl, patience_ms: int | None, clock: Clock) -> Connection:
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


def print_json_line(value: object) -> None:
    """One JSON document on a line of stdout, at once."""
    terminal.write_json(msgspec.json.encode(value).decode())


def print_json(value: object) -> None:
    """One JSON document, indented."""
    terminal.write_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def shown(text: str, length_max: int = SHOWN_MAX) -> str:
    """A text from elsewhere as one line for a message: nothing in it is obeyed, and it is cut when it is long."""
    return visible(text) if len(text) <= length_max else f"{visible(text[:length_max])}... ({len(text)} characters)"


def shown_or_whole(text: str, length_max: int = SHOWN_MAX) -> str:
    """The same for stdout: cut on a terminal alone, for a pipe gets everything."""
    return visible(text) if terminal.width() is None else shown(text, length_max)


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
