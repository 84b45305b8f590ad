"""The two sides: each a tree of files of its own, with an environment of its own.

A commit is exported (`git archive`) into the user's cache directory instead of being checked out as a git worktree: a
worktree is registered in the repository, stays registered when this process is killed, and locks branches. Nothing of
an exported tree is in the repository. A tree appears under its final name when it is complete, and its environment is
made by its own `tools/_venv.sh`, which starts again when it was interrupted. Both are kept for the next time; of all
that were used, the last few.

One comparison runs at a time, for two would measure each other: a lock on the cache directory says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from benchmarks.measure import BenchmarkFailed
from scheduler.errors import InvalidInput

TREES_MAX: Final = 6
"""Trees that are kept, each with an environment of some hundred megabytes."""
COMMIT_DIGITS: Final = 12
_INCOMPLETE: Final = "incomplete-"
_NOT_PASSED: Final = ("PYTHON", "COVERAGE", "COV_CORE", "VIRTUAL_ENV")
_MAKE_ENVIRONMENT: Final = 'source tools/_venv.sh && ensure_venv bench >&2 && printf %s "$venv/bin/python"'


class Code(msgspec.Struct, frozen=True):
    """What a side runs. key: of its tree; label: for people; commit: what it is, or was made from; changed: files that
    differ from the commit.
    """

    key: str
    label: str
    commit: str
    changed: int = 0


class Side(msgspec.Struct, frozen=True):
    """A side that can be run. name: `old` or `new`."""

    name: str
    label: str
    folder: Path
    python: Path


def commit(project: Path, text: str) -> Code:
    """The commit that a text names. Raises: InvalidInput, BenchmarkFailed."""
    found = _git(project, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{text}^{{commit}}", missing="")
    identifier = found.strip()
    if not identifier:
        raise InvalidInput(f"commit = {text!r}: expected a commit, branch or tag of {project}")
    label = _git(project, "show", "-s", "--format=%h %s", identifier).strip()
    return Code(identifier[:COMMIT_DIGITS], label, identifier)


def working_code(project: Path) -> Code:
    """The files as they are now: those of HEAD when nothing is changed. Raises: InvalidInput, BenchmarkFailed."""
    head = commit(project, "HEAD")
    changed = len(_git(project, "status", "--porcelain", "--untracked-files=all", "--", ".").splitlines())
    if not changed:
        return head
    words = f"{changed} file{'' if changed == 1 else 's'}"
    return Code(_digest(project), f"working tree: {words} changed since {head.label}", head.commit, changed)


@contextlib.contextmanager
def cache() -> Iterator[Path]:
    """The directory for trees, which is ours alone meanwhile. Raises: BenchmarkFailed when another comparison runs."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    directory = (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "stream-scheduler" / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchmarkFailed(f"{lock.name}: held by another comparison: two at once measure each other") from None
        yield directory


def prepared(cache_directory: Path, project: Path, name: str, code: Code) -> Side:
    """A side, with its tree and its environment, which are made when they are missing. Raises: BenchmarkFailed."""
    folder = cache_directory / code.key
    if not folder.is_dir():
        click.echo(f"{name}: exporting {code.label}", err=True)
        incomplete = cache_directory / f"{_INCOMPLETE}{secrets.token_hex(4)}"
        incomplete.mkdir()
        _export(project, code, incomplete)
        incomplete.rename(folder)
    os.utime(folder)
    if not (folder / "tools" / "_venv.sh").is_file():
        raise BenchmarkFailed(f"{name} = {code.label}: has no tools/_venv.sh: expected a commit with `./tools/bench`")
    command = ["bash", "-c", _MAKE_ENVIRONMENT]
    done = subprocess.run(command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise BenchmarkFailed(f"{name} = {code.label}: its environment cannot be made: see the error above")
    return Side(name, code.label, folder, Path(done.stdout))


def remove_others(cache_directory: Path, used: set[str]) -> None:
    """Remove trees that are incomplete, and of the others all but those that are used and the last few."""
    trees = [path for path in cache_directory.iterdir() if path.is_dir()]
    incomplete = [path for path in trees if path.name.startswith(_INCOMPLETE)]
    others = [path for path in trees if path not in incomplete and path.name not in used]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in incomplete + others[max(0, TREES_MAX - len(used)) :]:
        shutil.rmtree(path, ignore_errors=True)


def environment(side: Side) -> dict[str, str]:
    """The variables that a side runs with: ours, without what belongs to our own python."""
    # The packages of the tools lay in the project's folder itself in older commits.
    path = os.pathsep.join((str(side.folder), str(side.folder / "tools" / "packages")))
    return _environment() | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED)}


def _export(project: Path, code: Code, folder: Path) -> None:
    if code.changed:
        for name in _files(project):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(project / name, target, follow_symlinks=False)
        if _digest(project) != code.key:
            raise BenchmarkFailed(f"{project}: files were changed while they were copied: expected none to be")
        return
    with subprocess.Popen(
        ["git", "-C", str(project), "archive", "--format=tar", code.commit], stdout=subprocess.PIPE
    ) as archive:
        unpacked = subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout)
    if archive.returncode or unpacked.returncode:
        raise BenchmarkFailed(f"{code.label}: cannot be exported: see the error above")


def _files(project: Path) -> list[str]:
    """The files of the working tree that git knows, or would know when they are added."""
    listed = _git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({name for name in listed if name and os.path.lexists(project / name)})


def _digest(project: Path) -> str:
    """A name for the working tree that another content does not have."""
    digest = hashlib.sha256()
    for name in _files(project):
        path = project / name
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        digest.update(f"{name}\0{path.lstat().st_mode}\0{len(content)}\0".encode() + content)
    return f"tree-{digest.hexdigest()[:COMMIT_DIGITS]}"


def _git(project: Path, *arguments: str, missing: str | None = None) -> str:
    """What git prints. missing: instead, when it refuses. Raises: BenchmarkFailed."""
    try:
        done = subprocess.run(["git", "-C", str(project), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise BenchmarkFailed("git is not on PATH: expected git, which knows the other commit") from None
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip().rpartition("\n")[2]
    if missing is None or "not a git repository" in said:
        raise BenchmarkFailed(f"{project}: git {arguments[0]}: {said}: expected a git checkout")
    return missing
