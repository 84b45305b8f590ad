"""The command line as processes: what they print, what signals do to them, and a job's way through all of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from scheduler.audit.audit import Capacity, Run
from scheduler.server.embedded import start_embedded
from scheduler.store.blocking import ping
from scheduler.url import parse_url
from tests.integration.commands import told_url

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = """
import threading
def shout(job): return job.payload.decode().upper()
def hang(job):
    print("hangs", flush=True)
    threading.Event().wait()
"""


class Command:
    """`python -m scheduler` with these arguments, in a directory. Leaving it as a context kills what still runs."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.endswith("REDIS_URL")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scheduler", *arguments],
            cwd=directory,
            env=environment | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def line(self) -> str:
        """The next line of stdout."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def log(self, pattern: str) -> str:
        """The next line of stderr that has the pattern."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if re.search(pattern, line):
                return line
        raise AssertionError(f"stderr ended without {pattern!r}")

    def ready(self) -> Command:
        """Itself, once it has said so."""
        line = self.line()
        assert line == "ready", line + self.end()[2]
        return self

    def type(self, text: str) -> None:
        """Write to its stdin."""
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def has_ended(self, wait_s: float) -> bool:
        """Whether it ends within a time."""
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self, number: int | None = None, text: str | None = None) -> tuple[int, str, str]:
        """Send a signal if one is given, and wait: (exit code, rest of stdout, rest of stderr)."""
        if number is not None:
            self.send(number)
        stdout, stderr = self._process.communicate(text)
        return self._process.returncode, stdout, stderr


def answer(directory: Path, *arguments: str, text: str | None = None) -> tuple[int, str, str]:
    """Run a command to its end: (exit code, stdout, stderr)."""
    with Command(directory, *arguments) as command:
        return command.end(text=text)


@contextlib.contextmanager
def running(directory: Path, *arguments: str) -> Iterator[Command]:
    """A command that has said that it is ready."""
    with Command(directory, *arguments) as command:
        yield command.ready()


@contextlib.contextmanager
def up(directory: Path) -> Iterator[tuple[Command, str]]:
    """`scheduler up` in a directory, ready, and its URL, which it shows without the password."""
    with Command(directory, "up") as command:
        shown = command.line()
        yield command.ready(), told_url(directory, shown)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory where `scheduler up` runs and handlers.py lies; each test uses nodes and features of its own."""
    directory = tmp_path_factory.mktemp("place")
    (directory / "handlers.py").write_text(HANDLERS)
    with up(directory) as (command, _):
        yield directory
        assert command.end(signal.SIGTERM)[0] == 0


def job(session_id: str, **fields: Any) -> str:
    """A line for `jobs submit`."""
    return json.dumps({"session_id": session_id} | fields) + "\n"


def assign(directory: Path, name: str, payload: bytes = b"") -> None:
    """Add a job to the intake for the node of that name and feature, and wait until it is in its inbox."""
    document = json.dumps({"session_id": name, "features": [name]})
    inbox = f"{{sched:0}}:inbox:{name}"
    with redis.Redis.from_url((directory / ".scheduler" / "url").read_text().strip()) as client:
        newest = client.xinfo_stream(inbox)["last-generated-id"]
        client.xadd("{sched:0}:jobs:0", {"job": document, "payload": payload})
        assert client.xread({inbox: newest}, block=5_000)


# ---- up ----


def test_up_stops_in_order(tmp_path: Path) -> None:
    """`up` tells its URL, is ready, and takes its server and its URL file with it at the first signal."""
    with up(tmp_path) as (command, url):
        assert (tmp_path / ".scheduler" / "url").read_text() == f"{url}\n"
        assert ping(url)
        exit_code, stdout, stderr = command.end(signal.SIGTERM)
    assert (exit_code, stdout) == (0, "")
    assert "stopping in order" in stderr
    assert "WARNING" not in stderr
    assert not ping(url)
    assert not (tmp_path / ".scheduler" / "url").exists()


def test_closed_terminal(tmp_path: Path) -> None:
    """SIGHUP stops in order too, however often it comes, and the URL file goes with the server."""
    with up(tmp_path) as (command, url):
        command.send(signal.SIGHUP)
        command.log("SIGHUP: stopping in order")
        while (tmp_path / ".scheduler" / "url").exists():
            command.send(signal.SIGHUP)
        assert command.end(signal.SIGHUP)[0] == 0
    assert not ping(url)


def test_closed_terminal_under_nohup(tmp_path: Path) -> None:
    """Whoever has SIGHUP ignored keeps it so: the command runs on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which children inherit
    try:
        with up(tmp_path) as (command, url):
            command.send(signal.SIGHUP)
            assert ping(url)
            exit_code, _, stderr = command.end(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert exit_code == 0
    assert "SIGHUP" not in stderr


def test_second_up(place: Path) -> None:
    """A second `up` in a directory uses the server that runs there, says so, and leaves it running."""
    with up(place) as (second, url):
        second.log("using the server named by .scheduler/url")
        assert (place / ".scheduler" / "url").read_text() == f"{url}\n"
        assert second.end(signal.SIGINT)[0] == 0
    assert ping(url)


def test_data_directory_of_another_server(place: Path) -> None:
    """--data-dir with a server that runs already ends with 2, because it would mean nothing."""
    url = (place / ".scheduler" / "url").read_text().strip()
    for options, named_by in [((), ".scheduler/url"), (("--redis-url", url), "--redis-url")]:
        assert answer(place, "up", "--data-dir", ".other", *options) == (
            2,
            "",
            "Error: --data-dir = '.other': expected none, because no server is started here: `up` would use "
            f"{parse_url(url)}, named by {named_by}; stop that one first, or leave the option out\n",
        )
    assert not (place / ".other").exists()


def test_data_outlives_up(tmp_path: Path) -> None:
    """What is stored is there again after a stop and a start; --data-dir says where."""
    options = ("up", "--data-dir", "data")
    with Command(tmp_path, *options) as first:
        with redis.Redis.from_url(told_url(tmp_path, first.line())) as client:
            client.set("mine", "kept")
        assert first.ready().end(signal.SIGTERM)[0] == 0
    with Command(tmp_path, *options) as second, redis.Redis.from_url(told_url(tmp_path, second.line())) as client:
        assert client.get("mine") == b"kept"
    assert {path.name for path in tmp_path.iterdir()} == {"data", ".scheduler"}


def test_server_of_up_ends(tmp_path: Path) -> None:
    """`up` ends with 3 when the server that it started ends, and names its log."""
    with up(tmp_path) as (command, url):
        with redis.Redis.from_url(url) as client:
            os.kill(client.info("server")["process_id"], signal.SIGKILL)
        exit_code, _, stderr = command.end()
    assert exit_code == 3
    assert re.search(r"Error: the server that was started here has ended; its log is .*server\.log\n$", stderr)


def test_up_on_a_server_that_is_named(tmp_path: Path) -> None:
    """With --redis-url `up` starts no server and writes no URL; other settings than those stored there are refused."""
    with start_embedded() as server:
        with Command(tmp_path, "up", "--redis-url", server.url) as command:
            assert command.line() == str(parse_url(server.url))
            command.ready()
            assert command.end(signal.SIGTERM)[0] == 0
        assert list(tmp_path.iterdir()) == []
        with redis.Redis.from_url(server.url) as client:
            client.hset("{sched}:layout", "partitions", 4)
        exit_code, stdout, stderr = answer(tmp_path, "up", "--redis-url", server.url)
    assert (exit_code, stdout) == (1, "")
    assert "layout partitions = '4' is stored: expected 16" in stderr


# ---- a job's way ----


def test_job_through_processes(tmp_path: Path) -> None:
    """Each role in a process of its own: whoever comes before the manager waits for it, and a job is done."""
    with start_embedded() as server:
        on = ("--redis-url", server.url)
        with contextlib.ExitStack() as stack:
            dispatcher = stack.enter_context(Command(tmp_path, "dispatcher", *on))
            node = stack.enter_context(
                Command(tmp_path, "node", "--id", "n1", "--pair", "en:zh", "--work-ms", "1", *on)
            )
            dispatcher.log("waiting for a manager")
            node.log("waiting for a manager")
            manager = stack.enter_context(Command(tmp_path, "manager", *on))
            reaper = stack.enter_context(Command(tmp_path, "reaper", *on))
            roles = [role.ready() for role in (manager, dispatcher, reaper, node)]
            submission = job("s1", job_id="j1", src_lang="en", tgt_lang="zh")
            exit_code, stdout, stderr = answer(tmp_path, "jobs", "submit", "-", "--wait", *on, text=submission)
            assert (exit_code, stderr) == (0, "")
            outcome = json.loads(stdout)
            assert 0 <= outcome.pop("dispatch_ms") <= outcome.pop("total_ms")
            assert outcome == {
                "job_id": "j1",
                "state": "completed",
                "reason": "",
                "detail": "",
                "node": "n1",
                "attempts": 0,
                "result": {"node": "n1", "work_ms": 1.0},
            }
            assert [role.end(signal.SIGTERM)[0] for role in reversed(roles)] == [0, 0, 0, 0]


def test_waiting_role_stops(tmp_path: Path) -> None:
    """A role that waits for a manager ends at the first signal."""
    with start_embedded() as server, Command(tmp_path, "dispatcher", "--redis-url", server.url) as dispatcher:
        dispatcher.log("waiting for a manager")
        assert dispatcher.end(signal.SIGTERM)[0] == 0


def test_own_handler(place: Path) -> None:
    """A node runs a function of the current directory; the listings find the server by themselves."""
    options = ("--id", "own", "--capacity", "2", "--feature", "shout", "--handler", "handlers:shout")
    with running(place, "node", *options) as node:
        submission = job("shouted", features=["shout"], payload="hi")
        exit_code, stdout, _ = answer(place, "jobs", "submit", "-", "--wait", text=submission)
        assert (exit_code, json.loads(stdout)["result"]) == (0, "HI")
        _, stdout, _ = answer(place, "nodes", "ls", "--json")
        listed = {each["id"]: (each["slots"], each["features"]) for each in json.loads(stdout)}
        assert listed["own"] == (2, ["shout"])
        assert node.end(signal.SIGTERM)[0] == 0


def test_records_of_a_node(place: Path) -> None:
    """--record tells the capacity first, and a run at its start and at its end; leaving waits for what runs."""
    options = ("--id", "noted", "--capacity", "3", "--feature", "noted", "--work-ms", "9000", "--record", "noted.jsonl")
    with running(place, "node", *options) as node:
        node.log("noted serves")
        assign(place, "noted", b'{"work_ms": 100}')
        exit_code, _, stderr = node.end(signal.SIGINT)
    assert exit_code == 0
    assert "noted: left" in stderr
    lines = (place / "noted.jsonl").read_bytes().splitlines()
    capacity = msgspec.json.decode(lines[0], type=Capacity)
    start, end = (msgspec.json.decode(line, type=Run) for line in lines[1:])
    assert (capacity.node, capacity.slots) == ("noted", 3)
    assert (start.session_id, start.node, start.boot, start.ended_us) == ("noted", "noted", capacity.boot, None)
    assert msgspec.structs.replace(end, ended_us=None) == start
    assert capacity.from_us <= start.started_us
    assert (end.ended_us or 0) - end.started_us >= 50_000  # a loop may round its timers


def test_replaced_node(place: Path) -> None:
    """A node ends with 1 when a later process of its name takes over."""
    with running(place, "node", "--id", "twice") as first:
        first.log("twice serves")
        with running(place, "node", "--id", "twice") as second:
            exit_code, _, stderr = first.end()
            assert exit_code == 1
            assert stderr.endswith("Error: twice: a later process of this name has replaced this one\n")
            assert second.end(signal.SIGTERM)[0] == 0


def hanging(place: Path, name: str, *options: str) -> contextlib.AbstractContextManager[Command]:
    """A node whose handlers never end."""
    return running(place, "node", "--id", name, "--feature", name, "--handler", "handlers:hang", *options)


def test_second_signal(place: Path) -> None:
    """A second signal ends a node at once, whatever it runs; what comes within a second of the first is the same."""
    with hanging(place, "stuck1") as node:
        node.log("stuck1 serves")
        assign(place, "stuck1")
        node.send(signal.SIGTERM)
        sent_s = time.monotonic()
        node.log("stopping in order")
        while not node.has_ended(0.1):
            node.send(signal.SIGINT)
        assert node.end()[0] == 130
    assert 1 <= time.monotonic() - sent_s < 5


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_of_one_ctrl_c(place: Path, first: signal.Signals, pause_s: float) -> None:
    """A terminal and a process manager both tell an idle node to stop: it ends well, whenever the second one comes."""
    with running(place, "node", "--id", "told-twice") as node:
        node.send(first)
        if not node.has_ended(pause_s):
            node.send(signal.SIGTERM)
        assert node.end()[0] == 0


def test_two_signals_of_one_ctrl_c_let_a_job_end(place: Path) -> None:
    """They start one drain, in which the job completes."""
    with running(place, "node", "--id", "drains", "--feature", "drains", "--work-ms", "1500") as node:
        node.log("drains serves")
        assign(place, "drains")
        node.send(signal.SIGINT)
        node.log("stopping in order")
        exit_code, _, stderr = node.end(signal.SIGTERM)
    assert exit_code == 0
    assert "drains: left" in stderr
    assert "WARNING" not in stderr


def test_handler_that_never_ends(place: Path) -> None:
    """A node says what it waits for, and leaves after --drain-ms although a thread runs on: the job is given back."""
    with hanging(place, "stuck2", "--drain-ms", "50") as node:
        node.log("stuck2 serves")
        assign(place, "stuck2")
        assert node.line() == "hangs"
        exit_code, _, stderr = node.end(signal.SIGTERM)
    assert "stuck2: drains: jobs that run: 1; they have 0.0 s to end" in stderr
    assert "stuck2: left" in stderr
    assert exit_code == 0
    assert "a handler still runs; it is cut off" in stderr


# ---- jobs submit ----


def test_lines_as_they_are_typed(place: Path) -> None:
    """Each line is submitted when it is there; Ctrl-C ends the command with 130, without a word."""
    with Command(place, "jobs", "submit", "-") as command:
        for job_id in ("typed1", "typed2"):
            command.type(job("typed", job_id=job_id))
            assert command.line() == job_id
        assert command.end(signal.SIGINT) == (130, "", "")


def test_jobs_that_nobody_serves(place: Path) -> None:
    """--wait says what no node serves, once for each kind of job; at Ctrl-C it names the jobs that go on."""
    said = "no node serves en:tlh{}; jobs that wait for one, 1m 00s at most: {}\n"
    with Command(place, "jobs", "submit", "-", "--wait") as command:
        for job_id in ("lonely1", "lonely2"):
            command.type(job("lonely", job_id=job_id, src_lang="en", tgt_lang="tlh"))
        assert command.log("no node") == said.format("", 2)
        command.type(job("lonely", job_id="lonely3", src_lang="en", tgt_lang="tlh", features=["b", "a", "b"]))
        assert command.log("with a, b") == said.format(" with a, b", 1)
        names = "\nlonely1\nlonely2\nlonely3\n"
        assert command.end(signal.SIGINT) == (130, "", f"not ended yet (3 jobs; see `scheduler jobs show ID`):{names}")


def test_jobs_that_do_not_complete(place: Path) -> None:
    """--wait tells outcomes as they come, looks for ended jobs in the records, and ends with 1 unless all completed."""
    submission = job("late", job_id="late", features=["nobody-has-it"], deadline_ms=1)
    exit_code, stdout, stderr = answer(place, "jobs", "submit", "-", "--wait", text=submission)
    assert exit_code == 1
    assert (json.loads(stdout)["state"], json.loads(stdout)["node"]) == ("dead", "")
    assert stderr == "Error: 1 job did not complete\n"


def test_closed_stdout(place: Path) -> None:
    """Whoever stops reading our output gets no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "scheduler", "streams", "ls"],
        cwd=place,
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
