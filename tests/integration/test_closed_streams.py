"""Standard streams that are closed or take nothing: a line or nothing, never a traceback, and the work is done."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.test_cli_processes import ROOT, answer, up

SCHEDULER = f"{sys.executable} -m scheduler"
FULL = "the output is not complete: No space left on device"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory where `scheduler up` runs."""
    directory = tmp_path_factory.mktemp("place")
    (directory / "job.jsonl").write_text('{"session_id": "s1", "features": ["none"]}\n')
    with up(directory) as (command, _):
        yield directory
        assert command.end(signal.SIGTERM)[0] == 0


def shell(directory: Path, line: str) -> tuple[int, str]:
    """A line of shell: (exit code, stderr)."""
    ended = subprocess.run(
        ["sh", "-c", line], cwd=directory, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "stderr"),
    [
        ("nodes ls >&-", 0, ""),
        ("nodes ls --json >&-", 0, ""),
        ("pools ls >&- 2>&-", 0, ""),
        ("jobs submit job.jsonl >&-", 0, ""),
        ("jobs submit job.jsonl <&- >&- 2>&-", 0, ""),
        ("--version >&-", 0, ""),
        ("--help >&-", 0, ""),
        ("node --help 2>&-", 0, ""),
        ("jobs show nobody >&- 2>&-", 1, ""),
        ("nobody 2>&-", 2, ""),
        ("nobody 2>/dev/full", 1, ""),
        ("jobs submit - <&-", 1, "Error: stdin is closed: there is nothing to read\n"),
        ("jobs submit /proc/self/mem", 1, "Error: /proc/self/mem: Input/output error: it cannot be read any further\n"),
        ("pools apply /proc/self/mem", 1, "Error: /proc/self/mem: Input/output error: it cannot be read any further\n"),
        ("nodes ls >/dev/full", 1, f"Error: {FULL}\n"),
        ("nodes ls --json >/dev/full", 1, f"Error: {FULL}\n"),
        ("jobs submit job.jsonl >/dev/full", 1, f"Error: {FULL}\n"),
        ("--version >/dev/full", 1, f"Error: {FULL}\n"),
        ("node --help >/dev/full", 1, f"Error: {FULL}\n"),
        ("nodes ls >/dev/full 2>&1", 1, ""),
    ],
)
def test_a_command(place: Path, arguments: str, exit_code: int, stderr: str) -> None:
    """What it should do is done; what it should print is lost, which is told where somebody reads."""
    assert shell(place, f"{SCHEDULER} {arguments}") == (exit_code, stderr)


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1"])
def test_a_node_serves(place: Path, streams: str) -> None:
    """Until it is told to stop, although nobody hears that it is ready."""
    name = f"n{abs(hash(streams))}"
    line = f"exec {SCHEDULER} node --id {name} {streams}"
    with subprocess.Popen(
        ["sh", "-c", line], cwd=place, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            until_s = time.monotonic() + 30
            while name not in answer(place, "nodes", "ls", "--json")[1]:
                assert time.monotonic() < until_s
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in stderr) == (0, False)
