"""What a node started from the command line runs: simulated work, or a function named by the user; and its records."""

from __future__ import annotations

import asyncio
import difflib
import importlib
import sys
import traceback
from pathlib import Path
from typing import Any, cast

import msgspec

from scheduler.audit.audit import Capacity, Run
from scheduler.clock import SYSTEM_CLOCK
from scheduler.console.logs import configurable_by_import
from scheduler.errors import InvalidInput
from scheduler.node.attempts import Observer
from scheduler.node.handlers import Handler, Job, check_handler
from scheduler.node.node import Node
from scheduler.node.tracebacks import words_of


class _Work(msgspec.Struct):
    """What a payload may say of simulated work."""

    work_ms: float | int | None = None


def simulated_work(default_ms: float) -> Handler:
    """A handler that sleeps for the `work_ms` of a JSON payload, else for `default_ms`."""

    async def simulate(job: Job) -> dict[str, object]:
        work_ms = _work_ms(job.payload, default_ms)
        await asyncio.sleep(work_ms / 1000)
        return {"node": job.node, "work_ms": work_ms}

    return simulate


def _work_ms(payload: bytes, default_ms: float) -> float:
    try:
        named = msgspec.json.decode(payload, type=_Work).work_ms
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return default_ms
    return default_ms if named is None else max(0, named)


def load_handler(name: str) -> Handler:
    """The function `package.module:function`, looked for in the current directory first.

    Raises: InvalidInput, saying what is missing or what went wrong inside the module.
    """
    module_name, _, path = name.partition(":")
    is_module = all(part.strip() and "/" not in part for part in module_name.split("."))
    if not is_module or not all(part.isidentifier() for part in path.split(".")):
        raise InvalidInput(f"--handler = {name!r}: expected package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _import(name, module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise InvalidInput(f"--handler = {name!r}: {module_name} has no {path}{hint}") from None
        except BaseException as error:
            raise _broken(name, f"looking up {path}", error) from error
    check_handler(found, f"--handler = {name!r}: {path}")
    return cast(Handler, found)


def _import(name: str, module_name: str) -> Any:
    try:
        with configurable_by_import():
            return importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise  # of whoever waits for a slow import
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise InvalidInput(
                f"--handler = {name!r}: no module {error.name} in the current directory or among what is installed"
            ) from None
        raise _broken(name, f"importing {module_name}", error) from error


def _broken(name: str, doing: str, error: BaseException) -> InvalidInput:
    """What somebody's module raised. One that exits must not end the command as if all was well."""
    what = f"ended the program with {error.code!r}" if isinstance(error, SystemExit) else f"failed: {_said(error)}"
    return InvalidInput(f"--handler = {name!r}: {doing} {what}{_place(error)}")


def _said(error: BaseException) -> str:
    words = words_of(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _place(error: BaseException) -> str:
    """Where an error was raised, for an error that does not say so itself."""
    if isinstance(error, SyntaxError):
        return ""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({Path(where.filename).name}, line {where.lineno})"


class Recorder(Observer):
    """Appends what a node did to a file, a JSON line each, so that it can be checked without asking the server.

    First a line with node, boot, from_us and slots; then one when a handler starts, with `ended_us` null, and one more
    with the same job and token when it has ended. A run without the second was cut off. Times in microseconds are those
    of the monotonic clock, which all processes of a machine share. A line is written at once; nodes may share a file.

    Raises: InvalidInput when the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("ab", buffering=0)  # a line is one write at the end of the file
        except OSError as error:
            raise InvalidInput(
                f"--record = {str(path)!r}: {error.strerror}: expected a file that can be written"
            ) from error
        self._started_us: dict[tuple[str, int], int] = {}
        self._boot = ""

    def serves(self, node: Node, slots: int) -> None:
        """The node has its boot, and no handler has started yet."""
        self._boot = node.boot
        self._write(Capacity(node.node_id, node.boot, SYSTEM_CLOCK.us(), slots))

    def started(self, job: Job, at_us: int) -> None:
        """A handler begins."""
        self._started_us[job.key] = at_us
        self._write(self._run(job, at_us, None))

    def ended(self, job: Job, at_us: int) -> None:
        """A handler has ended."""
        self._write(self._run(job, self._started_us.pop(job.key), at_us))

    def _run(self, job: Job, started_us: int, ended_us: int | None) -> Run:
        return Run(
            job_id=job.job_id,
            session_id=job.session_id,
            node=job.node,
            boot=self._boot,
            token=job.token,
            entry=job.entry,
            inbox_ms=min(int(job.inbox_id.partition("-")[0]), job.token // 1_000),  # an id can lie ahead of the clock
            started_us=started_us,
            ended_us=ended_us,
            attempt=job.attempt,
            pair=f"{job.src_lang}:{job.tgt_lang}",
            decision=job.decision,
        )

    def _write(self, line: Run | Capacity) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")


def pair_of(text: str) -> tuple[str, str]:
    """The languages of `source:target`. Raises: ValueError."""
    source, colon, target = text.partition(":")
    if not (source and colon and target):
        raise ValueError(f"{text!r}: expected source:target, such as en:zh")
    return source, target


def label_of(text: str) -> tuple[str, str]:
    """Key and value of `key=value`. Raises: ValueError."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"{text!r}: expected key=value, such as zone=eu-1")
    return key, value
