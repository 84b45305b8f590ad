"""The Procfile: what a process manager starts with it does jobs, and ends before anybody has to be killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from scheduler.cli.roles import name_of_process
from scheduler.store.blocking import ping

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")
TYPED = "honcho start -c dispatcher=2,node=3"
KILL_WAIT_S = 5.0
MINE = ("SCHED_", "REDIS_", "HONCHO_", "PS", "DYNO")
HONCHO = (sys.executable, "-m", "honcho")
STARTED = r" started (?:\(pid=|with pid )(\d+)"


class Honcho:
    """`honcho start` with these arguments, beside a copy of the Procfile; or another program that does the same."""

    def __init__(self, directory: Path, *arguments: str, program: Sequence[str] = HONCHO) -> None:
        self.directory = directory
        self.output: list[str] = []
        commands = directory / "bin"
        commands.mkdir()
        command = commands / "scheduler"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m scheduler "$@"\n')
        command.chmod(0o755)
        (directory / "Procfile").write_bytes((ROOT / "Procfile").read_bytes())
        mine = {name: value for name, value in os.environ.items() if not name.startswith(MINE)}
        self._environment = mine | {
            "PATH": f"{commands}{os.pathsep}{mine['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }
        self._process = subprocess.Popen(
            [*program, "start", *arguments],
            cwd=directory,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_until(self, pattern: str) -> None:
        """Read on until a line has the pattern; `output` keeps all that was read."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output.append(line.rstrip("\n"))
            if re.search(pattern, line):
                return
        raise AssertionError("\n".join(self.output))

    def found(self, pattern: str) -> list[str]:
        """The first group of the pattern in each line of the output that has it."""
        return [match[1] for line in self.output if (match := re.search(pattern, line))]

    def submit(self, *options: str, **fields: Any) -> list[dict[str, Any]]:
        """Submit three jobs of different sessions with `scheduler jobs submit`, and return what it prints."""
        job = {"src_lang": "en", "tgt_lang": "zh"} | fields
        lines = "".join(json.dumps({"session_id": f"s{number}"} | job) + "\n" for number in range(3))
        done = subprocess.run(
            ["scheduler", "jobs", "submit", "-", *options],
            cwd=self.directory,
            env=self._environment,
            input=lines,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()] if options else []

    def end(self, number: int) -> float:
        """Send a signal and read to the end. Returns: how long that took, in seconds."""
        sent_s = time.monotonic()
        self._process.send_signal(number)
        assert self._process.stdout is not None
        self.output += self._process.stdout.read().splitlines()
        self._process.wait()
        return time.monotonic() - sent_s

    def kill(self) -> None:
        """Leave nothing behind when a test fails."""
        for pid in self.found(STARTED):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def started(directory: Path, arguments: str, processes: int, program: Sequence[str] = HONCHO) -> Iterator[Honcho]:
    """Honcho, once all the processes that it started are ready."""
    honcho = Honcho(directory, *arguments.split(), program=program)
    try:
        for _ in range(processes):
            honcho.read_until(r"\| ready$")
        yield honcho
    finally:
        honcho.kill()


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_honcho_runs_everything(tmp_path: Path) -> None:
    """The command of docs/OPERATIONS.md starts all roles; they do jobs, and are gone soon after Ctrl-C."""
    assert f"```sh\n{TYPED}\n```" in OPERATIONS
    with started(tmp_path, TYPED.removeprefix("honcho start "), processes=8) as honcho:
        url = (tmp_path / ".scheduler" / "url").read_text().strip()
        outcomes = honcho.submit("--wait")
        assert [outcome["state"] for outcome in outcomes] == ["completed"] * 3
        assert {outcome["node"] for outcome in outcomes} <= {"node.1", "node.2", "node.3"}
        assert honcho.end(signal.SIGINT) < KILL_WAIT_S
    assert sorted(honcho.found(r" (\S+ stopped .*)")) == [
        "dispatcher.1 stopped (rc=0)",
        "dispatcher.2 stopped (rc=0)",
        "manager.1 stopped (rc=0)",
        "node.1 stopped (rc=0)",
        "node.2 stopped (rc=0)",
        "node.3 stopped (rc=0)",
        "reaper.1 stopped (rc=0)",
        "server.1 stopped (rc=0)",
    ]
    assert honcho.found(r"(sending SIGKILL|WARNING.*|ERROR.*|Traceback)") == []
    assert [pid for pid in honcho.found(STARTED) if is_alive(int(pid))] == []
    assert not ping(url)
    assert not (tmp_path / ".scheduler" / "url").exists()


def test_honcho_kills_nobody_who_runs_a_job(tmp_path: Path) -> None:
    """A job that runs for longer than honcho's patience is given back in time, and nobody has to be killed."""
    with started(tmp_path, "", processes=5) as honcho:
        honcho.submit("--wait", payload='{"work_ms": 1}')
        honcho.submit(payload='{"work_ms": 600000}')
        with redis.Redis.from_url((tmp_path / ".scheduler" / "url").read_text().strip()) as client:
            while client.zcard("{sched:0}:slots:node.1") < 3:
                pass
        assert honcho.end(signal.SIGTERM) < KILL_WAIT_S
    assert honcho.found(r"(sending SIGKILL|not stopped in order|Traceback)") == []
    assert len(honcho.found(r"(did not end in time)")) == 1
    assert honcho.found(r"server\.1 stopped \((rc=\d+)\)") == ["rc=0"]


@pytest.mark.skipif(shutil.which("foreman") is None, reason="foreman is not on PATH (Debian: ruby-foreman)")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreman_runs_everything(tmp_path: Path, number: signal.Signals) -> None:
    """Its nodes have names of their own too, and it has to kill nobody."""
    with started(tmp_path, "-m all=1,node=2", processes=6, program=["foreman"]) as foreman:
        outcomes = foreman.submit("--wait")
        assert [outcome["state"] for outcome in outcomes] == ["completed"] * 3
        assert {outcome["node"] for outcome in outcomes} <= {"node.1", "node.2"}
        assert foreman.end(number) < KILL_WAIT_S
    assert len(foreman.found(r"(node\.\d: left)")) == 2
    assert foreman.found(r"(SIGKILL|ERROR.*|Traceback)") == []
    assert [pid for pid in foreman.found(STARTED) if is_alive(int(pid))] == []


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"HONCHO_PROCESS_NAME": "node.1"}, "node.1"),
        ({"PS": "node.2"}, "node.2"),
        ({"DYNO": "node.3"}, "node.3"),
        ({"DYNO": "node-5cf7d8-x2x"}, "node-5cf7d8-x2x"),
        ({"HONCHO_PROCESS_NAME": "", "PS": "node.4"}, "node.4"),
        ({"PS": "/bin/ps aux"}, r".+-\d+"),
        ({}, r".+-\d+"),
    ],
)
def test_a_node_is_named_by_its_process_manager(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    """Or by host and process id, where none says a name that can be one."""
    for each in ("HONCHO_PROCESS_NAME", "PS", "DYNO"):
        monkeypatch.delenv(each, raising=False)
    for each, value in variables.items():
        monkeypatch.setenv(each, value)
    assert re.fullmatch(name, name_of_process())
