"""The way of one batch through the dispatcher: `python -m tests.simulation.way [--calls]`.

A dispatcher on the server of the simulation reads one batch: a job that is placed, one that finds no room, one that
finds its tenant's limit full, and one that is rejected. `sys.setprofile` notes each call of a function in `runtime/`
and `session/`, subpackages included; functions of one line that call nothing but such functions are left out.

Printed are the files that the batch enters; the pairs of files of which one calls the other; and the returns: functions
that are called from another file although the batch had entered their file before that one, so that a reader goes back.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any, Final

import msgspec

import scheduler
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.store.store import open_store
from tests import fake
from tests.integration.test_dispatcher import CALM, Bench

PACKAGE: Final = Path(scheduler.__file__).parent
DOMAINS: Final = tuple(f"{PACKAGE / name}/" for name in ("runtime", "session"))
BEFORE: Final = (
    ("tenant", {"session_id": "s5", "tenant_id": "held"}),
    ("slot", {"session_id": "s6", "src_lang": "de", "tgt_lang": "zh"}),
)
JOBS: Final = (
    ("placed", {"session_id": "s1", "tenant_id": "free"}),
    ("full", {"session_id": "s2", "src_lang": "de", "tgt_lang": "zh"}),
    ("limited", {"session_id": "s3", "tenant_id": "held"}),
    ("rejected", {"session_id": "s4", "priority": "high"}),
)


class Called:
    """A call of a function. caller: None for one that a task began with."""

    def __init__(self, file: str, name: str, caller: Called | None, is_one_line: bool) -> None:
        self.file = file
        self.name = name
        self.caller = caller
        self.callees: list[Called] = []
        self._is_one_line = is_one_line

    @property
    def is_leaf(self) -> bool:
        """Whether it is one line, and all that this calls are leaves: a reader need not look it up."""
        return self._is_one_line and all(callee.is_leaf for callee in self.callees)


class Way:
    """What is called, in its order."""

    def __init__(self) -> None:
        self.calls: list[Called] = []
        self._open: dict[int, tuple[FrameType, Called]] = {}
        self._others: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Note what this task and the one that reads do from now on, and those that they start."""
        reading = {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == "Reader.run"}
        self._others = asyncio.all_tasks() - reading - {asyncio.current_task()}
        sys.setprofile(self.note)

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """For `sys.setprofile`. A coroutine that goes on was called before."""
        if event != "call" or not frame.f_code.co_filename.startswith(DOMAINS) or id(frame) in self._open:
            return
        if frame.f_code.co_name.startswith("<"):  # comprehensions and lambdas are part of their function
            return
        if asyncio.current_task() in self._others:
            return
        above = frame.f_back
        while above is not None and id(above) not in self._open:
            above = above.f_back
        caller = self._open[id(above)][1] if above is not None else None
        file = Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix()
        called = Called(file, frame.f_code.co_qualname, caller, _is_one_line(frame.f_code))
        if caller is not None:
            caller.callees.append(called)
        self.calls.append(called)
        self._open[id(frame)] = frame, called  # the frame is kept, so that no other one gets its id

    def calls_between(self) -> list[tuple[str, Called]]:
        """Calls from one file into another that a reader looks up: (the calling file, what is called), each once."""
        pairs = [(called.caller.file, called) for called in self.calls if called.caller and not called.is_leaf]
        each_once = {(file, called.file, called.name): (file, called) for file, called in reversed(pairs)}
        return [(file, called) for file, called in reversed(each_once.values()) if file != called.file]

    def files(self) -> dict[str, int]:
        """The files in the order in which they are entered, and the number of each."""
        files = dict.fromkeys(called.file for called in self.calls if not called.is_leaf)
        return {file: number for number, file in enumerate(files)}


@functools.cache
def _is_one_line(code: CodeType) -> bool:
    for node in ast.walk(_tree(code.co_filename)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            if first == code.co_firstlineno and node.name == code.co_name:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                return len(body) == 1 and body[0].lineno == body[0].end_lineno
    return False


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text())


async def follow() -> Way:
    """Have one batch read and handled. Returns: its way."""
    way = Way()
    store = await open_store(fake.URL, CALM, connect=fake.connecting(fake.start_fake()))
    async with store:
        layout = await store.control.write_layout()
        dispatcher = Dispatcher(store, CALM, layout, "d+1", Random(1))
        await dispatcher.open()
        bench = Bench(store, dispatcher, layout)
        bench.pool = msgspec.structs.replace(bench.pool, tenant_concurrency=1)
        bench.pairs["n2"] = ("de", "zh")
        await bench.fleet(n1=9, n2=1)
        await _add(bench, BEFORE)
        await bench.step_until_read()
        way.begin()
        await _add(bench, JOBS)
        assert dispatcher._reader is not None
        await dispatcher._reader._work.wait()
        await dispatcher.run_once()
        sys.setprofile(None)
        report = dispatcher.report
        counts = (report.placed, report.limited > 0, report.full > 0, report.rejected)
        assert counts == (3, True, True, 1), counts
        await dispatcher.close()
    return way


async def _add(bench: Bench, jobs: Sequence[tuple[str, dict[str, str]]]) -> None:
    """Write entries that are there at once."""
    pipeline = bench.store.connection.commands.pipeline(transaction=True)
    for job_id, document in jobs:
        fields = {"src_lang": "en", "tgt_lang": "zh"} | document | {"job_id": job_id}
        stream = bench.store.cell.keys.jobs(bench.partition_of(document["session_id"]))
        pipeline.xadd(stream, {"job": msgspec.json.encode(fields), "payload": b""})
    await pipeline.execute()
    bench.entries += len(jobs)


def main() -> None:
    """Print the figures, and with --calls the calls between files."""
    way = asyncio.run(follow())
    files, calls = way.files(), way.calls_between()
    returns = [called for file, called in calls if files[called.file] < files[file]]
    if "--calls" in sys.argv:
        for file, called in calls:
            print(f"{file} -> {called.file} {called.name}{'  (return)' if called in returns else ''}")
    pairs = {(file, called.file) for file, called in calls}
    print(f"files: {len(files)}; pairs that call: {len(pairs)}; returns to a file already left: {len(returns)}")


if __name__ == "__main__":
    main()
