"""Runs tests against changes: each in a copy of the project, as many at a time as there are copies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from mutants.listed import ROOT, Mutant

Word = Literal["noticed", "timed out", "survived", "broken"]
CACHE: Final = ROOT / ".mutants_cache" / "results.jsonl"
STOP_S: Final = 20.0  # for a test to stop its server when its time is over; twice what that waits before it kills
QUICK: Final = 2
"""A change that makes tests hang is noticed only if they take less than the limit by so much without it."""
TAIL_LINES: Final = 15
_PASSED, _FAILED, _UNUSABLE = 0, 1, 3
_VIOLATIONS: Final = re.compile(r"^seed [0-9]+ [a-z]+: [0-9]+ violations?,", re.MULTILINE)


class NoCheckout(Exception):
    """git cannot say what to copy."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of a change. detail: the end of the output, where that explains something."""

    word: Word
    seconds: float = 0.0
    detail: str = ""

    @property
    def is_noticed(self) -> bool:
        """Whether somebody noticed; a test that hangs is one that fails."""
        return self.word in ("noticed", "timed out")


class _Ended(msgspec.Struct, frozen=True):
    """How a command ended. code: None when its time was over."""

    code: int | None
    output: str

    @property
    def tail(self) -> str:
        return "\n".join(self.output.splitlines()[-TAIL_LINES:])


class Memory:
    """What earlier runs found, so that a run goes on where one before it ended.

    A result holds as long as the change, the file that it is in, and the files of the tests and of what they share are
    the same; with a seed, as long as all sources are.
    """

    def __init__(self, path: Path = CACHE, fresh: bool = False) -> None:
        self._path = path
        self._words: dict[str, Word] = {}
        if fresh:
            path.unlink(missing_ok=True)
        elif path.exists():
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(msgspec.DecodeError):  # the last one of a run that was killed
                    key, word = msgspec.json.decode(line, type=tuple[str, Word])
                    self._words[key] = word

    def find(self, key: str) -> Word | None:
        """The result under a key."""
        return self._words.get(key)

    def add(self, key: str, word: Word) -> None:
        """Keep a result, at once."""
        self._words[key] = word
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode((key, word)) + b"\n")


def key_of(mutant: Mutant, root: Path = ROOT, changed: bool = True) -> str:
    """What a result is kept under. root: where the files are; changed: with the change, else without it."""
    digest = hashlib.sha256()
    tests = [root / test.partition("::")[0] for test in mutant.tests]
    files = {root / mutant.file, *tests}
    for folder in {test.parent for test in tests} | {root / "tests"}:
        files |= {path for path in folder.glob("*.py") if not path.name.startswith("test_")}
    if mutant.seeds:
        files |= {*(root / "tests" / "simulation").glob("*.py"), *(root / "scheduler").rglob("*.py")}
        files |= {*(root / "lua").glob("*.lua")}
    told = (mutant.noticed_by, *((mutant.text, mutant.replacement) if changed else ()))
    for part in (msgspec.json.encode(told), *(path.read_bytes() for path in sorted(files) if path.exists())):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def copy_project(target: Path) -> None:
    """Copy what git knows, and what it does not ignore. Raises: NoCheckout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise NoCheckout(f"{ROOT}: expected a git checkout, to know which files are the project's") from None
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


class Runner:
    """Tries changes in copies of the project, one at a time in each.

    Args: copies; memory; limit_s, how long the tests of one change may take.
    """

    def __init__(self, copies: Sequence[Path], memory: Memory, limit_s: float) -> None:
        self._copies: asyncio.Queue[Path] = asyncio.Queue()
        for copy in copies:
            self._copies.put_nowait(copy)
        self._memory = memory
        self._limit_s = limit_s
        self._unchanged: dict[str, asyncio.Task[_Ended]] = {}

    async def run(self, mutants: Sequence[Mutant], told: Callable[[Mutant, Outcome], None]) -> None:
        """Try all of them. told: is told what came of each, as soon as that is known."""
        async with asyncio.TaskGroup() as group:
            for mutant in mutants:
                group.create_task(self._run_one(mutant, told))

    async def _run_one(self, mutant: Mutant, told: Callable[[Mutant, Outcome], None]) -> None:
        copy = await self._copies.get()
        try:
            started_s = time.monotonic()
            outcome = await self._try(mutant, copy)
            told(mutant, msgspec.structs.replace(outcome, seconds=time.monotonic() - started_s))
        finally:
            self._copies.put_nowait(copy)

    async def _try(self, mutant: Mutant, copy: Path) -> Outcome:
        """Without the change the tests must pass; with it one of them must fail."""
        before = await self._run_unchanged(mutant, copy)
        if before.code != _PASSED:
            return Outcome("broken", detail=before.tail)
        key, path = key_of(mutant, copy), copy / mutant.file
        original = path.read_bytes()
        path.write_text(mutant.apply(original.decode()), encoding="utf-8")
        try:
            ended = await self._run_all(mutant, copy)
        finally:
            path.write_bytes(original)
        if ended.code is None and not await self._is_quick(mutant, copy):
            return Outcome("broken", detail="without the change its tests take nearly as long; see --limit-s")
        outcome = _judged(ended)
        if outcome.word != "broken":
            self._memory.add(key, outcome.word)
        return outcome

    async def _run_unchanged(self, mutant: Mutant, copy: Path) -> _Ended:
        """Once for all changes of a file that are noticed by the same."""
        key = key_of(mutant, copy, changed=False)
        if self._memory.find(key) == "survived":
            return _Ended(_PASSED, "")
        if key not in self._unchanged:
            self._unchanged[key] = asyncio.create_task(self._run_all(mutant, copy))
        ended = await asyncio.shield(self._unchanged[key])
        if ended.code == _PASSED:
            self._memory.add(key, "survived")
        return ended

    async def _is_quick(self, mutant: Mutant, copy: Path) -> bool:
        """Whether its tests end long before the limit now, so that it was the change that made them hang."""
        started_s = time.monotonic()
        ended = await self._run_all(mutant, copy)
        return ended.code == _PASSED and QUICK * (time.monotonic() - started_s) < self._limit_s

    async def _run_all(self, mutant: Mutant, copy: Path) -> _Ended:
        """Its tests in one go, then one seed after the other, until one fails."""
        ended = _Ended(_PASSED, "")
        if mutant.tests:
            ended = await run_tests(mutant.tests, copy, self._limit_s)
        for seed in mutant.seeds:
            if ended.code == _PASSED:
                ended = await run_seed(seed, copy, self._limit_s)
        return ended


def _judged(ended: _Ended) -> Outcome:
    if ended.code is None:
        return Outcome("timed out")
    if ended.code == _FAILED:
        return Outcome("noticed")
    if ended.code == _PASSED:
        return Outcome("survived")
    return Outcome("broken", detail=ended.tail)


async def run_tests(tests: Sequence[str], copy: Path, limit_s: float) -> _Ended:
    """Run these tests in a copy; 1 is a failure. Values that tests draw are the same each time."""
    options = ["-x", "-q", "--no-header", "-p", "mutants.inside", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["--timeout=0", "--hypothesis-seed=0"]
    return await _run([sys.executable, "-m", "pytest", *options, *tests], copy, limit_s)


async def run_seed(seed: str, copy: Path, limit_s: float) -> _Ended:
    """Run the simulation in a copy; 1 is a violation that it found, not an error of the simulation itself.

    Args: seed, `seed 7` or `seed 7 scenario`; copy; limit_s.
    """
    _, number, *scenario = seed.split()
    arguments = ["--seed", number, *(part for name in scenario for part in ("--scenario", name))]
    ended = await _run(["./tools/simulate", *arguments], copy, limit_s)
    if ended.code == _FAILED and not _VIOLATIONS.search(ended.output):
        return _Ended(_UNUSABLE, ended.output)
    return ended


async def _run(command: Sequence[str], copy: Path, limit_s: float) -> _Ended:
    """Run a command in a copy, with the sources of the copy, and as if it were not run by a test itself."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE", "PYTEST_"))}
    environment = inherited | {
        "PYTHONPATH": os.pathsep.join((str(copy), str(copy / "tools" / "packages"))),
        "PYTHONDONTWRITEBYTECODE": "1",  # bytecode of a change could be taken for that of the next one
        "SCHED_TEST_SERVERS": "valkey",
        "TOOLS_VENV": sys.prefix,
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=copy,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for us
    )
    reading = asyncio.create_task(process.communicate())
    try:
        output, _ = await asyncio.wait_for(asyncio.shield(reading), limit_s)
    except TimeoutError:
        return _Ended(None, f"no end within {limit_s:g} s")
    finally:
        if process.returncode is None:
            await _stop(process, reading)
    return _Ended(process.returncode, output.decode(errors="replace"))


async def _stop(process: asyncio.subprocess.Process, reading: asyncio.Task[tuple[bytes, bytes]]) -> None:
    """Let it stop its servers, which are no members of its group; then end all of the group in any case."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading), STOP_S)
        os.killpg(process.pid, signal.SIGKILL)
    await reading
