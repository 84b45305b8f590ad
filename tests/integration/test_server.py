"""Servers of our own: real processes, of each engine that this machine has."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import redis

from scheduler.errors import InvalidInput, ServerUnavailable
from scheduler.server import embedded as server_module
from scheduler.server.embedded import EmbeddedServer, Engine, PortTaken, available_engines, start_embedded
from scheduler.server.location import write_url_file
from scheduler.store.blocking import ping
from scheduler.url import parse_url

ROOT = Path(__file__).resolve().parents[2]
END_MAX_S = 20
PARENT = """
import pathlib, sys
from scheduler.server.embedded import start_embedded
print(start_embedded(pathlib.Path(sys.argv[1]), engine=sys.argv[2]).pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=list(available_engines()))
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine of this machine."""
    return cast(Engine, request.param)


@contextlib.contextmanager
def client_of(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client that is closed again."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


def seed_value(server: EmbeddedServer, value: str) -> None:
    """Something to find again."""
    with client_of(server) as client:
        client.set("kept", value)


def stored_value(server: EmbeddedServer) -> object:
    """What `seed_value` stored."""
    with client_of(server) as client:
        return client.get("kept")


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    """A port that somebody listens on who never answers."""
    with socket.create_server((server_module.HOST, 0)) as listener:
        yield listener.getsockname()[1]


def write_program(path: Path, text: str) -> Path:
    """A shell script in place of a server binary."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_server_in_memory(engine: Engine, tmp_path: Path) -> None:
    """A server in memory answers, evicts nothing, saves nothing, and leaves nothing behind."""
    with start_embedded(tmp_path, engine=engine) as server, client_of(server) as client:
        assert ping(server.url)
        assert server.engine == engine
        assert str(parse_url(server.url)) == f"redis://127.0.0.1:{server.port}/0"
        info = client.info("server")
        assert info["process_id"] == server.pid
        assert ("valkey_version" in info) == (engine == "valkey")
        assert client.config_get("maxmemory-policy", "save", "appendonly", "bind") == {
            "maxmemory-policy": "noeviction",
            "save": "",
            "appendonly": "no",
            "bind": "127.0.0.1",
        }
    assert not server.running
    assert not ping(server.url)
    assert list(tmp_path.iterdir()) == []


def test_only_its_user_can_use_a_server(engine: Engine, tmp_path: Path) -> None:
    """It asks for a password, which stands in private files alone: not in a command line, a variable or a log."""
    place = tmp_path / "place"
    with start_embedded(place, engine=engine, persistent=True) as server, client_of(server) as client:
        seed_value(server, "mine")
        client.bgrewriteaof()
        write_url_file(tmp_path, server.url)
        password = str(client.config_get("requirepass")["requirepass"])
        assert re.fullmatch("[0-9a-f]{32}", password)
        assert server.url == f"redis://default:{password}@127.0.0.1:{server.port}/0"
        assert (ping(server.url), ping(str(parse_url(server.url)))) == (True, False)
        process = Path("/proc") / str(server.pid)
        assert [password.encode() in (process / each).read_bytes() for each in ("cmdline", "environ")] == [False] * 2
        files = [*server.directory.rglob("*"), *(tmp_path / ".scheduler").iterdir()]
        assert {path.stat().st_mode & 0o777 for path in files if path.is_file()} == {0o600}
        directories = [path for path in (*files, place, tmp_path / ".scheduler") if path.is_dir()]
        assert {path.stat().st_mode & 0o777 for path in directories} == {0o700}
        told = {path.name for path in files if path.is_file() and password in path.read_text(errors="replace")}
        assert told == {"password", "server.conf", "url"}


def test_the_password_stays_and_files_of_before_become_private(tmp_path: Path) -> None:
    """Clients that run on find a server again that was started anew in its directory."""
    with start_embedded(tmp_path, persistent=True) as server:
        url, directory = server.url, server.directory
    directory.chmod(0o755)
    (directory / "server.log").chmod(0o644)
    with start_embedded(tmp_path, persistent=True) as server:
        assert server.url == url
        modes = [path.stat().st_mode & 0o777 for path in (directory, directory / "server.log")]
    assert modes == [0o700, 0o600]


def test_every_server_has_a_password_of_its_own() -> None:
    """In memory it is drawn anew, and stays when the server is restarted."""
    with start_embedded() as server, start_embedded() as other:
        assert server.url.partition("@")[0] != other.url.partition("@")[0]
        before = server.url
        server.restart()
        assert server.url == before


def test_stop_twice(tmp_path: Path) -> None:
    """Stopping what does not run does nothing."""
    server = start_embedded(tmp_path)
    server.stop()
    server.stop()
    assert not server.running


def test_start_of_a_running_server_does_nothing(tmp_path: Path) -> None:
    """A second start keeps the process."""
    with start_embedded(tmp_path) as server:
        pid = server.pid
        server.start()
        assert server.pid == pid


def test_restart_in_memory(engine: Engine, tmp_path: Path) -> None:
    """A server in memory comes back empty, at the same port, as another process."""
    with start_embedded(tmp_path, engine=engine) as server:
        seed_value(server, "gone")
        before = (server.url, server.pid)
        server.restart()
        assert server.url == before[0]
        assert server.pid != before[1]
        assert stored_value(server) is None


def test_restart_keeps_persistent_data(engine: Engine, tmp_path: Path) -> None:
    """An orderly restart keeps the data and the port."""
    with start_embedded(tmp_path, engine=engine, persistent=True) as server:
        seed_value(server, "after a restart")
        url = server.url
        server.restart()
        assert server.url == url
        assert stored_value(server) == "after a restart"


def test_kill_keeps_persistent_data(engine: Engine, tmp_path: Path) -> None:
    """What was acknowledged before a crash of the process is there after it."""
    with start_embedded(tmp_path, engine=engine, persistent=True) as server:
        seed_value(server, "after a crash")
        server.kill()
        assert not ping(server.url)
        server.restart()
        assert stored_value(server) == "after a crash"


def test_persistent_data_outlives_the_server(engine: Engine, tmp_path: Path) -> None:
    """The next server of a directory has the data of the last, each engine in a directory of its own."""
    with start_embedded(tmp_path, engine=engine, persistent=True) as server:
        seed_value(server, "of the last server")
        assert server.directory == tmp_path / engine
    with start_embedded(tmp_path, engine=engine, persistent=True) as server:
        assert stored_value(server) == "of the last server"


def test_second_server_on_the_same_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers never write the same files, and the first does not notice the second."""
    monkeypatch.setattr(server_module, "DIRECTORY_BUSY_MAX_S", 0.0)
    with start_embedded(tmp_path, persistent=True) as server:
        seed_value(server, "of the first")
        with pytest.raises(ServerUnavailable, match="another embedded server uses"):
            start_embedded(tmp_path, persistent=True)
        assert stored_value(server) == "of the first"


def test_persistent_needs_a_directory() -> None:
    """Data without a place to keep it is an error of the caller."""
    with pytest.raises(InvalidInput, match="needs a directory"):
        start_embedded(persistent=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_server_ends_with_its_killed_parent(engine: Engine, tmp_path: Path) -> None:
    """A parent that is killed cannot stop its server; the kernel does."""
    command = [sys.executable, "-c", PARENT, str(tmp_path), engine]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        ended = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert select.select([ended], [], [], 0)[0] == []
            parent.kill()
            assert select.select([ended], [], [], END_MAX_S)[0] == [ended]
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(ended, signal.SIGKILL)
            os.close(ended)


def test_server_is_out_of_reach_of_the_terminal(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole foreground group; the server is in a session of its own and goes last."""
    with start_embedded(tmp_path) as server:
        assert os.getsid(server.pid) == server.pid != os.getsid(0)


def test_stop_of_a_suspended_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspended server is woken to end in order; no force is needed."""
    monkeypatch.setattr(server_module, "STOP_MAX_S", float(END_MAX_S))
    with start_embedded(tmp_path, persistent=True) as server:
        os.kill(server.pid, signal.SIGSTOP)
        server.stop()
        assert "ready to exit" in server.log_path.read_text()


def test_stop_of_a_server_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not end when asked is ended by force."""
    monkeypatch.setattr(server_module, "STOP_MAX_S", 0.0)
    server = start_embedded(tmp_path)
    server.stop()
    assert not server.running


def test_given_port(tmp_path: Path) -> None:
    """A port that is asked for is the one."""
    with start_embedded(tmp_path) as server:
        port = server.port
    with start_embedded(tmp_path, port=port) as server:
        assert server.port == port


def test_given_port_that_is_taken(engine: Engine, tmp_path: Path) -> None:
    """A taken port is an error that names it and what was expected; no directory stays behind."""
    expected = f"^port {{}} is taken by another program on 127.0.0.1: expected a free one for {engine}-server$"
    with taken_port() as port, pytest.raises(PortTaken, match=expected.format(port)):
        start_embedded(tmp_path, engine=engine, port=port)
    assert list(tmp_path.iterdir()) == []


def test_port_of_last_time_that_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server with its data on disk then starts at a free port, says so, and keeps that one."""
    with start_embedded(tmp_path, persistent=True) as server:
        seed_value(server, "kept")
        first = server.port
    with socket.create_server((server_module.HOST, first)):
        with start_embedded(tmp_path, persistent=True) as server:
            assert stored_value(server) == "kept"
            second = server.port
        assert second != first
        assert f"port {first}, the one of last time, is taken by another program" in caplog.text
        assert f"the server is at port {second} now" in caplog.text
    with start_embedded(tmp_path, persistent=True) as server:
        assert server.port == second


def test_given_port_of_another_server(engine: Engine, tmp_path: Path) -> None:
    """A server that answers at our port but is not ours does not count as ours."""
    with start_embedded(tmp_path, engine=engine) as other:
        with pytest.raises(ServerUnavailable, match=f"port {other.port} is taken"):
            start_embedded(tmp_path, engine=engine, port=other.port)
        assert ping(other.url)


def test_port_taken_between_look_and_start(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When somebody takes the port that was free, another one is tried."""
    find_free_port = server_module._free_port
    with taken_port() as port:
        ports = iter([port, find_free_port()])
        monkeypatch.setattr(server_module, "_free_port", lambda: next(ports))
        with start_embedded(tmp_path, engine=engine) as server:
            assert ping(server.url)
            assert server.port != port


def test_every_port_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tries are bounded."""
    monkeypatch.setattr(server_module, "PORT_ATTEMPTS_MAX", 2)
    with taken_port() as port:
        monkeypatch.setattr(server_module, "_free_port", lambda: port)
        with pytest.raises(ServerUnavailable, match="each of 2 ports"):
            start_embedded(tmp_path)
        monkeypatch.undo()
        monkeypatch.setattr(server_module, "PORTS", range(port, port + 1))
        with pytest.raises(ServerUnavailable, match="no free port"):
            start_embedded(tmp_path)


@pytest.mark.parametrize("name", ['a path with spaces, "quotes" and ünïcode', "/".join(["long" * 25] * 6)])
def test_unusual_paths(engine: Engine, tmp_path: Path, name: str) -> None:
    """Data is kept in a path with spaces and quotes, and in one longer than that of a socket may be."""
    with start_embedded(tmp_path / name, engine=engine, persistent=True) as server:
        seed_value(server, "there")
        server.restart()
        assert stored_value(server) == "there"
        assert (tmp_path / name / engine / "appendonlydir").is_dir()


def test_server_that_ends_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error shows how the server ended and the end of what it printed."""
    binary = write_program(tmp_path / "server", "echo it does not like the weather; exit 7")
    monkeypatch.setattr(server_module, "available_engines", lambda: {"redis": binary})
    with pytest.raises(ServerUnavailable, match=r"ended with 7 at its start; its log:\nit does not like the weather"):
        start_embedded(tmp_path / "data")


def test_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not get ready in time is ended and reported."""
    binary = write_program(tmp_path / "server", "echo still thinking; exec sleep 1000")
    monkeypatch.setattr(server_module, "available_engines", lambda: {"redis": binary})
    monkeypatch.setattr(server_module, "READY_MAX_S", 0.2)
    with pytest.raises(ServerUnavailable, match="does not answer"):
        start_embedded(tmp_path / "data")


def test_binary_that_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A binary that the system refuses to run is reported with the reason; its name comes before its place."""
    monkeypatch.setattr(server_module, "available_engines", lambda: {"redis": tmp_path / "missing"})
    with pytest.raises(ServerUnavailable, match=rf"^missing cannot be started: .*No such file.*{tmp_path}/missing"):
        start_embedded(tmp_path / "data")


def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """The error names the directory, what is wrong with it, and what was expected; it is no word on the binary."""
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput) as raised:
        start_embedded(tmp_path / "file", engine="redis" if "redis" in available_engines() else None, persistent=True)
    assert re.fullmatch(
        rf"directory = '{tmp_path}/file/\w+': Not a directory: expected one that can be written", str(raised.value)
    )


def test_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any engine the error says how to get one."""
    monkeypatch.setattr(server_module, "available_engines", dict)
    with pytest.raises(ServerUnavailable, match="install the extra `embedded`"):
        start_embedded()


def test_engine_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is missing is not replaced by another one."""
    monkeypatch.setattr(server_module, "available_engines", lambda: {"redis": Path("/usr/bin/redis-server")})
    with pytest.raises(ServerUnavailable, match="no valkey to start on this machine; there is redis"):
        start_embedded(engine="valkey")


def test_order_of_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged Valkey comes first, then Redis, then a Valkey on PATH, which the packaged one hides."""
    redis_binary = write_program(tmp_path / "redis-server", "")
    valkey_binary = write_program(tmp_path / "valkey-server", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server_module, "_packaged_valkey", lambda: Path("/packaged"))
    assert list(available_engines().items()) == [("valkey", Path("/packaged")), ("redis", redis_binary)]
    monkeypatch.setattr(server_module, "_packaged_valkey", lambda: None)
    assert list(available_engines().items()) == [("redis", redis_binary), ("valkey", valkey_binary)]


def test_never_started() -> None:
    """A server that was never started has no process."""
    server = EmbeddedServer("redis", Path("redis-server"), Path("nowhere"), persistent=True)
    assert not server.running
    with pytest.raises(ServerUnavailable, match="never started"):
        _ = server.pid


def test_log_of_the_start_before_is_kept(tmp_path: Path) -> None:
    """After a restart the log tells of this start, and one of the start before is beside it."""
    with start_embedded(tmp_path, persistent=True) as server:
        first = server.pid
        server.restart()
        assert f"{server.pid}:" in server.log_path.read_text()
        assert f"{first}:" in server.log_path.with_name("server.log.old").read_text()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"+OK\r\n+PONG\r\n$17\r\nprocess_id:12345\n\r\n", 12345),
        (b"-ERR AUTH <password> called without any password configured\r\n+PONG\r\n", None),
        (b"-WRONGPASS no\r\n-NOAUTH no\r\n", None),
        (b"+OK\r\n-LOADING the dataset is loading\r\n$17\r\nprocess_id:12345\n\r\n", None),
        (b"+OK\r\n+PONG\r\n-NOPERM no\r\n", None),
        (b"+OK\r\n+PONG\r\n$4\r\nnone\r\n", None),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", None),
        (b"", None),
    ],
)
def test_what_counts_as_ready(answer: bytes, expected: int | None) -> None:
    """Only PONG together with a process id counts; a server that is loading is not ready."""
    with socket.create_server((server_module.HOST, 0)) as listener:

        def respond() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        responder = threading.Thread(target=respond)
        responder.start()
        assert server_module._answering_pid(listener.getsockname()[1], "secret") == expected
        responder.join()
