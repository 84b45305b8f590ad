"""`./tools/bench against`: two commits of a made-up project take turns, and the real benchmarks can be held.

The made-up project has a `./tools/_venv.sh` that gives our own environment, and benchmarks that only print figures:
what a job costs, which each commit sets, with noise.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from benchmarks.against import command, held
from benchmarks.against.held import run_heat
from benchmarks.against.measures import benchmarks, check_same_work, figures_of
from benchmarks.against.sides import TREES_MAX, Side, remove_others
from benchmarks.command import bench
from click.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[2]
GIT = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.invalid", "-c", "commit.gpgsign=false"]
MAKE_NOTHING = f'venv="{sys.prefix}"\nensure_venv() {{ :; }}\n'
PRINT_FIGURES = """
import json
import random
import sys

import click

from benchmarks import COST

count = sys.argv.count("--rate") or int(sys.argv[sys.argv.index("--rounds") + 1])
costs = [COST * random.uniform(0.995, 1.005) for _ in range(count)]
name = sys.argv[1]
if name == "latency":
    click.echo("at most 9,000 jobs/s with 512 in flight", err=True)
for number in range(count + (name != "latency")):
    line = {"dispatch": "dispatch 5 jobs/s", "lifecycle": "relay 9, lifecycle 5 jobs/s"}.get(name)
    click.echo(f"round {number} of {count}: {line}" if line else f"1,00{number} jobs/s: relay p50 1", err=True)
rounds = [{"jobs_per_s": 1_000 / cost, "server_us": 50 * cost, "client_us": 40 * cost} for cost in costs]
rows = [
    {"design": "dispatch", "share": None, "latency": {"p50_ms": cost, "p99_ms": 3 * cost}} for cost in costs
]
inputs = {"jobs": COST and 1_000}
print(json.dumps({"dispatch": {"rounds": rounds}, "rounds": rounds, "rows": rows, "facts": {}, "inputs": inputs}))
raise SystemExit(1)  # a limit of its own was not kept
"""


def git(project: Path, *arguments: str) -> str:
    """Run git in a project."""
    done = subprocess.run([*GIT, *arguments], cwd=project, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_with(project: Path, cost: str, tag: str) -> None:
    """A commit in which a job costs so much."""
    (project / "benchmarks" / "__init__.py").write_text(f"COST = {cost}\n")
    git(project, "add", "-A")
    git(project, "commit", "-q", "--allow-empty", "-m", f"{tag}: a job costs {cost}")
    git(project, "tag", tag)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with commits `old`, `same`, `slow`; the command compares those of it."""
    if shutil.which("git") is None:
        pytest.skip("git is not on PATH")
    folder = tmp_path / "project"
    (folder / "tools").mkdir(parents=True)
    (folder / "benchmarks").mkdir()
    (folder / "tools" / "_venv.sh").write_text(MAKE_NOTHING)
    (folder / "benchmarks" / "__main__.py").write_text(PRINT_FIGURES)
    git(folder, "init", "-q")
    for cost, tag in (("1.0", "old"), ("1.0 + 0", "same"), ("1.1", "slow")):
        commit_with(folder, cost, tag)
    monkeypatch.setattr(command, "PROJECT", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def compared(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(bench, ["against", *arguments])


def test_a_commit_is_no_slower_than_itself(project: Path) -> None:
    """Everything is measured until it is known, told as JSON, and nothing of it is left in the repository."""
    before = git(project, "status", "--porcelain", "--ignored"), git(project, "worktree", "list")
    result = compared("old", "--new", "same", "--only", "dispatch", "--only", "latency", "--json")
    found: dict[str, Any] = msgspec.json.decode(result.stdout)
    assert (result.exit_code, found["verdict"]) == (0, "no slower")
    assert found["old"]["label"].endswith("old: a job costs 1.0")
    measured = [(row["benchmark"], row["measure"], row["heats"], row["verdict"]) for row in found["rows"]]
    assert measured[:4] == [
        ("dispatch", "jobs_per_s", 10, "no slower"),
        ("dispatch", "server_us", 10, "no slower"),
        ("dispatch", "client_us", 10, "no slower"),
        ("latency", "p50_ms", 10, "no slower"),
    ]
    assert measured[-1] == ("latency", "client_us", 0, None)
    assert all(0.99 < row["ratio"]["median"] < 1.01 for row in found["rows"] if row["ratio"])
    assert (git(project, "status", "--porcelain", "--ignored"), git(project, "worktree", "list")) == before


def test_a_commit_that_is_a_tenth_slower_ends_with_1(project: Path) -> None:
    """And the table says where."""
    result = compared("old", "--new", "slow", "--only", "dispatch")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "slower, after" in result.stdout
    assert sum(line.startswith("dispatch  ") and line.endswith(" slower") for line in lines) == 3


def test_changes_that_are_not_committed_are_part_of_the_working_code(project: Path) -> None:
    """Unless another commit is named; too few pairs leave it undecided, which ends with 4."""
    (project / "benchmarks" / "__init__.py").write_text("from benchmarks.cost import COST\n")
    (project / "benchmarks" / "cost.py").write_text("COST = 2.0\n")
    result = compared("slow", "--quick", "--only", "dispatch", "--json")
    found = msgspec.json.decode(result.stdout)
    assert (result.exit_code, found["verdict"], found["new"]["changed"]) == (4, "undecided", 2)
    assert found["rows"][1]["ratio"]["median"] == pytest.approx(2.0 / 1.1, rel=0.02)
    assert "new: working tree: 2 files changed since" in result.stderr
    result = compared("slow", "--new", "HEAD", "--quick", "--only", "dispatch", "--json")
    assert msgspec.json.decode(result.stdout)["rows"][1]["ratio"]["median"] == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "raise SystemExit('Error: nothing works')",
            "ended before all rounds were over; its last line: Error: nothing",
        ),
        ("COST = 0", "`dispatch` printed no JSON object; its last line: ZeroDivisionError"),
    ],
)
def test_a_side_that_fails_is_named(project: Path, code: str, words: str) -> None:
    """With the last line that it said."""
    commit_with(project, "1", "broken")
    (project / "benchmarks" / "__init__.py").write_text(f"{code}\n")
    result = compared("old", "--only", "dispatch")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"Error: new side, working tree: 1 file changed since {git(project, 'rev-parse', '--short', 'HEAD')}" in (
        result.stderr
    )
    assert words in result.stderr.splitlines()[-1]


def test_a_side_that_hangs_is_ended(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round has the longest time that it may take."""
    monkeypatch.setattr(held, "ROUND_S_MAX", 0.5)
    (project / "benchmarks" / "__main__.py").write_text("import time\ntime.sleep(60)\n")
    result = compared("old")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].endswith("`dispatch` said nothing for 0.5 s")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nosuch"], 2, "commit = 'nosuch': expected a commit, branch or tag of "),
        (["old", "--new", "--output=x"], 2, "commit = '--output=x': expected a commit"),
        (["old", "--minutes", "0"], 2, "0 is not in the range"),
        ([], 2, "Missing argument 'COMMIT'"),
    ],
)
def test_what_was_typed_wrong_is_told_in_a_line(project: Path, arguments: list[str], code: int, words: str) -> None:
    """Nothing is made before."""
    result = compared(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr.splitlines()[-1]
    assert not (project.parent / "cache").exists()


def test_a_folder_that_is_no_checkout(project: Path) -> None:
    """As one that was unpacked from an archive."""
    shutil.rmtree(project / ".git")
    result = compared("HEAD")
    assert result.exit_code == 1
    assert "expected a git checkout" in result.stderr.splitlines()[-1]


def test_a_cache_that_cannot_be_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "tools" / "_venv.sh"))
    result = compared("old")
    assert result.exit_code == 1
    assert "_venv.sh" in result.stderr.splitlines()[-1]


def test_a_commit_without_the_tools_is_refused(project: Path) -> None:
    """It is older than they are."""
    shutil.rmtree(project / "tools")
    git(project, "add", "-A")
    commit_with(project, "1", "bare")
    result = compared("bare", "--new", "old")
    assert result.exit_code == 1
    assert "has no tools/_venv.sh: expected a commit with `./tools/bench`" in result.stderr.splitlines()[-1]


def test_one_comparison_at_a_time(project: Path) -> None:
    """Two at once would measure each other. Ctrl-C ends one, and what it started."""
    (project / "benchmarks" / "__main__.py").write_text("import time, click\ntime.sleep(60)\n")
    code = (
        "from pathlib import Path; from benchmarks.against import command; from benchmarks.command import main; "
        f"command.PROJECT = Path({str(project)!r}); main()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, "against", "old"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tools" / "packages")))},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert first.stderr is not None
    while "up to 30 minutes" not in (line := first.stderr.readline()):
        assert line, "it ended"
    result = compared("old")
    assert result.exit_code == 1
    assert "held by another comparison" in result.stderr.splitlines()[-1]
    first.send_signal(signal.SIGINT)
    assert first.wait(20) == 130
    first.stderr.close()
    assert compared("old", "--new", "old", "--quick", "--only", "dispatch").exit_code == 0


def test_few_trees_are_kept(tmp_path: Path) -> None:
    """Those that are used and the last ones; none that is incomplete."""
    for number in range(TREES_MAX + 3):
        (tmp_path / f"tree-{number}").mkdir()
        os.utime(tmp_path / f"tree-{number}", (number, number))
    (tmp_path / "incomplete-1").mkdir()
    (tmp_path / "lock").touch()
    remove_others(tmp_path, {"tree-0", "new"})
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["lock", "tree-0", *(f"tree-{number}" for number in range(5, TREES_MAX + 3))]


def test_the_real_benchmarks_take_turns() -> None:
    """One process at a time goes on, round by round; each does the same work."""
    side = Side("old", "here", ROOT, Path(sys.executable))
    (dispatch, *_) = benchmarks(quick=True)
    heat = run_heat(side, side, dispatch, 2, 0)
    assert len(heat.pairs) == 2
    assert all(
        set(each) == {"jobs_per_s", "server_us", "client_us"} for pair in heat.pairs for each in (pair.old, pair.new)
    )
    assert heat.old_facts["server"] == heat.new_facts["server"]


@pytest.mark.parametrize("name", ["lifecycle", "latency"])
def test_the_other_benchmarks_can_be_held_too(name: str) -> None:
    """Their lines of progress are the expected ones, and their JSON has every measure."""
    (benchmark,) = [each for each in benchmarks(quick=True) if each.name == name]
    result = CliRunner().invoke(bench, benchmark.arguments(1))
    over = [line for line in result.stderr.splitlines() if re.match(benchmark.round_line, line)]
    assert len(over) == (2 if name == "lifecycle" else 3)  # one to warm up, and of latency the share at the end
    document = msgspec.json.decode(result.stdout)
    (figures,) = figures_of(benchmark, document, 1)
    assert set(figures) == {measure.name for measure in benchmark.measures}
    assert all(value > 0 for value in figures.values())
    assert set(benchmark.same) <= set(document["inputs"])
    check_same_work(benchmark, document, document)
