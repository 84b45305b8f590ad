"""Finds the server to talk to: looks at the places where one can be named, in their order.

Blocking code, for start-up and the end; sends nothing but PING and INFO. The last place is a file that says where the
embedded server of a directory runs, so that a second terminal talks to the same server; who starts it writes the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from scheduler.errors import InvalidInput, ServerUnavailable
from scheduler.server.private import make_private_directory, write_private
from scheduler.store.blocking import answers
from scheduler.url import ServerUrl, parse_url


class Found(msgspec.Struct, frozen=True):
    """The server to use, and the place that named it."""

    url: ServerUrl
    place: str


class Place(msgspec.Struct, frozen=True):
    """A place that was looked at, and what was found there."""

    name: str
    finding: str


class NotFound(msgspec.Struct, frozen=True):
    """No place names a server."""

    places: tuple[Place, ...]

    def __str__(self) -> str:
        width = max(len(place.name) for place in self.places)
        return "\n".join(f"  {place.name:{width}}  {place.finding}" for place in self.places)


def named_url(explicit: str | None, environment: Mapping[str, str]) -> Found | NotFound:
    """Which server is named, whether it answers or not.

    Args:
        explicit: what was given as `--redis-url`.
        environment: `SCHED_REDIS_URL`, then `REDIS_URL`; an empty one counts as not set.

    Raises: InvalidInput when a place names something that is no URL of a server.
    """
    if explicit is not None:
        return Found(parse_url(explicit, "--redis-url"), "--redis-url")
    places = [Place("--redis-url", "not given")]
    for variable in ("SCHED_REDIS_URL", "REDIS_URL"):
        if environment.get(variable, "").strip():
            return Found(parse_url(environment[variable], variable), variable)
        places.append(Place(variable, "empty" if variable in environment else "not set"))
    return NotFound(tuple(places))


def find_url(explicit: str | None, environment: Mapping[str, str], directory: Path) -> Found | NotFound:
    """Which server to talk to: the first place that names one; the URL file only if its server answers.

    Args: explicit and environment, as of `named_url`; directory, the one whose embedded server may run, see `url_file`.
    Raises: InvalidInput when a place names something that is no URL of a server.
    """
    named = named_url(explicit, environment)
    if isinstance(named, Found):
        return named
    file = url_file(directory)
    text = _read_url_file(directory)
    if text is None:
        finding = f"no such file in {directory.absolute()}"
    else:
        try:
            url = parse_url(text, "its text")
        except InvalidInput as error:
            finding = str(error)
        else:
            if answers(url):
                return Found(url, str(file))
            finding = f"{url} does not answer"
    return NotFound((*named.places, Place(str(url_file(Path())), finding)))


def server_url() -> str:
    """The URL of the server to use, found as the commands find it: SCHED_REDIS_URL, REDIS_URL, else the server that
    `scheduler up` or `scheduler server` runs in the current directory.

    One that the environment names need not answer yet. Blocks for a moment.
    Raises: InvalidInput; ServerUnavailable, naming the places that were looked at.
    """
    found = find_url(None, os.environ, Path())
    if isinstance(found, Found):
        return found.url.whole
    raise ServerUnavailable(
        f"no server found; looked at\n{NotFound(found.places[1:])}\n"
        "Set one of the two, or run this in the directory where `scheduler up` runs"
    )


def url_file(directory: Path) -> Path:
    """Where the URL of the embedded server of a directory stands while it runs."""
    return directory / ".scheduler" / "url"


def _read_url_file(directory: Path) -> str | None:
    try:
        return url_file(directory).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def write_url_file(directory: Path, url: str) -> None:
    """Tell other processes of this directory and user where its embedded server is; readers never see half a file.

    Raises: InvalidInput when the directory cannot be written.
    """
    file = url_file(directory)
    draft = file.with_name(f"url.{os.getpid()}")
    try:
        make_private_directory(file.parent)
        write_private(draft, f"{url}\n")
        draft.replace(file)
    except OSError as error:
        raise InvalidInput(
            f"current directory = {str(directory.absolute())!r}: {error.strerror}: expected one that can be written, "
            f"for the server's URL goes into {url_file(Path())}"
        ) from error


def remove_url_file(directory: Path, url: str) -> None:
    """Take the file back, unless another server has written its own since."""
    if _read_url_file(directory) == url:
        url_file(directory).unlink(missing_ok=True)
