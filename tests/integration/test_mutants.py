"""Mutation tests as they are run: in a copy, with the tests that are named, and never longer than they may."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import pytest
from mutants.inside import ELSEWHERE
from mutants.listed import ROOT, Mutant
from mutants.run import Memory, Outcome, Runner, Word, _run, copy_project, run_seed

TEST: Final = "tests/unit/test_retry.py::test_endings"
NOTICED: Final = Mutant("scheduler/node/retry.py", "max(0, delay_ms)", "delay_ms", "A delay is below zero.", (TEST,))
SURVIVED: Final = msgspec.structs.replace(NOTICED, text="The handler returned.", replacement="It returned.")
BROKEN: Final = msgspec.structs.replace(NOTICED, noticed_by=("tests/unit/test_retry.py::test_none",))
LIMIT_S: Final = 50.0

has_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what is to be copied is known from git")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project."""
    target = tmp_path / "copy"
    copy_project(target)
    return target


async def words(copy: Path, memory: Memory, *mutants: Mutant, limit_s: float = LIMIT_S) -> dict[Mutant, Word]:
    """What comes of these changes."""
    found: dict[Mutant, Word] = {}

    def told(mutant: Mutant, outcome: Outcome) -> None:
        found[mutant] = outcome.word

    await Runner([copy], memory, limit_s).run(mutants, told)
    return found


@pytest.mark.parametrize(("takes_s", "word"), [(0, "timed out"), (2, "broken")])
async def test_a_change_that_makes_tests_hang_is_noticed_if_they_are_quick_without_it(
    takes_s: int, word: Word, tmp_path: Path
) -> None:
    """Otherwise the machine may be slow."""
    source, tool = tmp_path / NOTICED.file, tmp_path / "tools" / "simulate"
    for path in (source, tool):
        path.parent.mkdir(parents=True)
    source.write_text(NOTICED.text)
    tool.write_text(f"#!/bin/sh\ngrep -q max {source} && exec sleep {takes_s}\nexec sleep 99\n")
    tool.chmod(0o755)
    mutant = msgspec.structs.replace(NOTICED, noticed_by=("seed 7",))
    assert await words(tmp_path, Memory(tmp_path / "results.jsonl"), mutant, limit_s=3) == {mutant: word}


@has_git
async def test_a_change_is_noticed_or_survives(copy: Path, tmp_path: Path) -> None:
    """The tests run what is in the copy, which is as before after that; the project is never touched."""
    memory = Memory(tmp_path / "results.jsonl")
    original = (ROOT / NOTICED.file).read_bytes()

    found = await words(copy, memory, NOTICED, SURVIVED, BROKEN)

    assert found == {NOTICED: "noticed", SURVIVED: "survived", BROKEN: "broken"}
    assert (copy / NOTICED.file).read_bytes() == (ROOT / NOTICED.file).read_bytes() == original


def test_tests_that_run_something_else_than_the_copy_are_stopped(tmp_path: Path) -> None:
    """An editable installation would lead them to the project, where nothing is changed."""
    options = ["-q", "-p", "mutants.inside", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(ROOT / TEST)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == ELSEWHERE, done.stdout
    assert f"expected those in {tmp_path}" in done.stdout


async def test_a_seed_is_a_run_of_the_simulation(tmp_path: Path) -> None:
    """With its number, and the scenario if there is one; 1 is a violation. One that fails itself has found nothing."""
    tool = tmp_path / "tools" / "simulate"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$@"\n[ "$2" = 9 ] || echo "seed $2 storm: 3 violations, jobs: 1 dead"\nexit 1\n')
    tool.chmod(0o755)
    ended = [await run_seed(seed, tmp_path, LIMIT_S) for seed in ("seed 7", "seed 12 storm", "seed 9")]
    assert [(each.code, each.output.splitlines()[0]) for each in ended] == [
        (1, "--seed 7"),
        (1, "--seed 12 --scenario storm"),
        (3, "--seed 9"),
    ]


@pytest.mark.parametrize("how", ["the limit", "the end of the run"])
async def test_a_command_that_does_not_end_is_ended(how: str, tmp_path: Path) -> None:
    """As by Ctrl-C, so that a test stops its server."""
    command = ["sh", "-c", "echo $$ >started; exec sleep 99"]
    if how == "the limit":
        assert (await _run(command, tmp_path, 1.0)).code is None
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await _run(command, tmp_path, LIMIT_S)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "started").read_text()), 0)
