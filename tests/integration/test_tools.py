"""`./tools/...`, as a person types them: each explains itself under its own name, and says what is wrong."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINE_WIDTH = 80


def typed(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Type a tool's name and arguments, in a terminal of 80 columns."""
    environment = os.environ | {"COLUMNS": str(LINE_WIDTH)}
    return subprocess.run([f"./tools/{tool}", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("tool", ["check", "demo", "mutants", "test"])
def test_help(tool: str, option: str) -> None:
    """It begins with what to type, and does nothing else."""
    done = typed(tool, option)
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = done.stdout.splitlines()
    assert first.startswith(f"Usage: ./tools/{tool}")
    assert len(others) < 40
    assert max(map(len, done.stdout.splitlines())) <= LINE_WIDTH


@pytest.mark.parametrize(
    ("tool", "problem"),
    [
        ("check", "Error: argument = '--fast': expected none; ./tools/check --help\n"),
        ("demo", "Try './tools/demo --help' for help.\n\nError: No such option '--fast'."),
        ("mutants", "Try './tools/mutants --help' for help.\n\nError: No such option '--fast'."),
    ],
)
def test_wrong_usage(tool: str, problem: str) -> None:
    """What was typed wrongly ends with 2, and names where to read on."""
    done = typed(tool, "--fast")
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
