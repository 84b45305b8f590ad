"""A command as the first process: it collects orphans, passes signals on, and ends as the command does."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Final

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux gives orphans to another process than PID 1"
)

# Orphans of these programs go to them, as they go to the first process of a container.
BEGIN: Final = """
import ctypes, os, signal, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
from scheduler.cli.init import run_in_child
run_in_child()
"""


def started(program: str) -> subprocess.Popen[str]:
    """A program that runs in a child of the process that is started."""
    return subprocess.Popen([sys.executable, "-c", BEGIN + program], stdout=subprocess.PIPE, text=True)


def test_orphans_are_collected() -> None:
    """Nothing stays of a process whose parent ended before it."""
    program = """
reading, writing = os.pipe()
if (parent := os.fork()) == 0:
    if (orphan := os.fork()) == 0:
        time.sleep(0.1)
        os._exit(0)
    os.write(writing, str(orphan).encode())
    os._exit(0)
os.waitpid(parent, 0)
orphan, until_s = int(os.read(reading, 20)), time.monotonic() + 10
while os.path.exists(f"/proc/{orphan}") and time.monotonic() < until_s:
    time.sleep(0.01)
print("there" if os.path.exists(f"/proc/{orphan}") else "collected")
"""
    with started(program) as process:
        assert process.communicate(timeout=30)[0] == "collected\n"


@pytest.mark.parametrize(
    ("program", "exit_code"),
    [
        ("", 0),
        ("sys.exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_it_ends_as_the_command_does(program: str, exit_code: int) -> None:
    """By a signal, too, as a shell tells it."""
    with started(program) as process:
        assert process.wait(30) == exit_code


def test_signals_are_passed_on() -> None:
    """The command ends in order."""
    program = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print(os.getppid() > 1, flush=True)
time.sleep(60)
"""
    with started(program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 5
