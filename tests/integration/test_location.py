"""Which server is found, in which order, and what is said when there is none."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from scheduler.errors import InvalidInput, ServerUnavailable
from scheduler.server.embedded import EmbeddedServer, start_embedded
from scheduler.server.location import (
    Found,
    NotFound,
    Place,
    find_url,
    remove_url_file,
    server_url,
    url_file,
    write_url_file,
)
from scheduler.store.blocking import ping
from scheduler.url import parse_url

EXPLICIT = "redis://explicit:1/0"
FIRST = "redis://first:2/0"
SECOND = "rediss://second:3/0"


def unused_url() -> str:
    """Of a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


@pytest.mark.parametrize(
    ("explicit", "environment", "expected"),
    [
        (EXPLICIT, {"SCHED_REDIS_URL": FIRST, "REDIS_URL": SECOND}, Found(parse_url(EXPLICIT), "--redis-url")),
        (None, {"SCHED_REDIS_URL": FIRST, "REDIS_URL": SECOND}, Found(parse_url(FIRST), "SCHED_REDIS_URL")),
        (None, {"SCHED_REDIS_URL": "", "REDIS_URL": SECOND}, Found(parse_url(SECOND), "REDIS_URL")),
        (None, {"REDIS_URL": "unix:///run/redis.sock"}, Found(parse_url("unix:///run/redis.sock"), "REDIS_URL")),
    ],
)
def test_order_of_places(
    server: EmbeddedServer,
    tmp_path: Path,
    explicit: str | None,
    environment: Mapping[str, str],
    expected: Found,
) -> None:
    """What is typed goes before the environment, and that before a running server; neither is asked."""
    write_url_file(tmp_path, server.url)
    assert find_url(explicit, environment, tmp_path) == expected


def test_running_embedded_server(server: EmbeddedServer, tmp_path: Path) -> None:
    """The embedded server of the directory is the last place."""
    write_url_file(tmp_path, server.url)
    assert find_url(None, {}, tmp_path) == Found(parse_url(server.url), str(tmp_path / ".scheduler" / "url"))


def test_stale_url_file_is_ignored(tmp_path: Path) -> None:
    """A file whose server is gone names no server, and says so."""
    with start_embedded(tmp_path / "data") as server:
        write_url_file(tmp_path, server.url)
    assert find_url(None, {"REDIS_URL": ""}, tmp_path) == NotFound(
        (
            Place("--redis-url", "not given"),
            Place("SCHED_REDIS_URL", "not set"),
            Place("REDIS_URL", "empty"),
            Place(".scheduler/url", f"{parse_url(server.url)} does not answer"),
        )
    )


def test_nothing_anywhere(tmp_path: Path) -> None:
    """The places that were looked at make a table for people, who see in which directory a file was missed."""
    assert str(find_url(None, {}, tmp_path)).splitlines() == [
        "  --redis-url      not given",
        "  SCHED_REDIS_URL  not set",
        "  REDIS_URL        not set",
        f"  .scheduler/url   no such file in {tmp_path}",
    ]


def test_server_url(server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs find the server as the commands do: by the environment, else by the file, else they are told where
    was looked.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCHED_REDIS_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(ServerUnavailable) as raised:
        server_url()
    assert str(raised.value).splitlines() == [
        "no server found; looked at",
        "  SCHED_REDIS_URL  not set",
        "  REDIS_URL        not set",
        f"  .scheduler/url   no such file in {tmp_path}",
        "Set one of the two, or run this in the directory where `scheduler up` runs",
    ]
    write_url_file(tmp_path, server.url)
    assert server_url() == server.url
    monkeypatch.setenv("REDIS_URL", SECOND)
    assert server_url() == SECOND


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"http://127.0.0.1/", b"redis://127.0.0.1:nonsense/0"])
def test_damaged_url_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    """A file with anything but the URL of a server harms nobody."""
    write_url_file(tmp_path, "redis://127.0.0.1:1/0")
    url_file(tmp_path).write_bytes(content)
    assert isinstance(find_url(None, {}, tmp_path), NotFound)


@pytest.mark.parametrize(
    ("explicit", "environment", "message"),
    [
        ("", {"REDIS_URL": FIRST}, r"--redis-url: it is empty: expected redis://"),
        ("localhost:6379", {}, r"--redis-url: it has no scheme: expected"),
        (None, {"SCHED_REDIS_URL": "http://user:secret@host"}, r"SCHED_REDIS_URL: its scheme is not known"),
        (None, {"REDIS_URL": "user:secret@host:6379"}, r"REDIS_URL: it has no scheme: expected"),
    ],
)
def test_place_with_something_else(
    tmp_path: Path, explicit: str | None, environment: Mapping[str, str], message: str
) -> None:
    """A place that names no URL is an error, never a reason to use another server; no password is shown."""
    with pytest.raises(InvalidInput, match=message):
        find_url(explicit, environment, tmp_path)


def test_url_file_is_replaced_and_removed(tmp_path: Path) -> None:
    """The last writer's URL stands; nothing else is left, before or after it is taken back."""
    write_url_file(tmp_path, FIRST)
    write_url_file(tmp_path, SECOND)
    assert [path.name for path in url_file(tmp_path).parent.iterdir()] == ["url"]
    assert url_file(tmp_path).read_text() == f"{SECOND}\n"
    remove_url_file(tmp_path, SECOND)
    remove_url_file(tmp_path, SECOND)
    assert list(url_file(tmp_path).parent.iterdir()) == []


def test_url_file_of_another_server_stays(tmp_path: Path) -> None:
    """A server that stops late does not take away the file of the next one."""
    write_url_file(tmp_path, SECOND)
    remove_url_file(tmp_path, FIRST)
    assert url_file(tmp_path).read_text() == f"{SECOND}\n"


def test_url_file_that_cannot_be_written(tmp_path: Path) -> None:
    """The error names the directory, what is wrong with it, and what it is for."""
    (tmp_path / ".scheduler").write_text("a file")
    with pytest.raises(InvalidInput) as raised:
        write_url_file(tmp_path, FIRST)
    assert str(raised.value) == (
        f"current directory = {str(tmp_path)!r}: File exists: expected one that can be written, for the server's URL "
        "goes into .scheduler/url"
    )


def test_ping_of_nobody() -> None:
    """Nobody there, and something that is no URL, do not answer."""
    assert [ping(unused_url()), ping("unix:///nowhere/at/all"), ping("nonsense")] == [False, False, False]


def test_ping_of_somebody_silent() -> None:
    """A listener that says nothing does not answer, within the time given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not ping(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", timeout_s=0.05)


def test_ping_with_a_password(tmp_path: Path) -> None:
    """A server with a password answers only to who knows it."""
    with start_embedded(tmp_path) as server:
        wrong = server.url.replace("default:", "default:0")
        assert [ping(url) for url in (server.url, str(parse_url(server.url)), wrong)] == [True, False, False]
