"""The way of one batch through the dispatcher: `python -m tests.simulation.way [--calls]`.

A dispatcher on the server of the simulation reads one batch: a job that is placed, one that finds no room, one that
finds its tenant's limit full, and one that is rejected. `sys.setprofile` notes each call of a function in `runtime/`
and `session/`, subpackages included; functions of one line that call nothing there are left out. It prints the files
that the batch enters, and how often it enters one that it had left before: so many pages does a reader turn.
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
from scheduler.clock import Clock
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


class Standing(Clock):
    """A clock on which no timer is due again."""

    def ms(self) -> int:
        """Always the same time."""
        return 1_000_000


class Way:
    """What is called, in its order."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []  # [file, function, whether it called something, whether it is one line]
        self._open: dict[int, tuple[FrameType, list[Any]]] = {}
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
        caller = frame.f_back
        while caller is not None and id(caller) not in self._open:
            caller = caller.f_back
        if caller is not None:
            self._open[id(caller)][1][2] = True
        file = Path(frame.f_code.co_filename).relative_to(PACKAGE).as_posix()
        call = [file, frame.f_code.co_qualname, False, _is_one_line(frame.f_code)]
        self.calls.append(call)
        self._open[id(frame)] = frame, call  # the frame is kept, so that no other one gets its id

    def entered(self) -> list[str]:
        """The files, in the order in which the batch enters them. A function is read when it is called first."""
        functions = {(file, name): calls or not is_one_line for file, name, calls, is_one_line in reversed(self.calls)}
        first = dict.fromkeys((file, name) for file, name, _, _ in self.calls)
        files = [file for file, name in first if functions[file, name]]
        return [file for before, file in zip(["", *files], files, strict=False) if file != before]


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
        dispatcher = Dispatcher(store, CALM, layout, "d+1", Random(1), Standing())
        await dispatcher.open()
        bench = Bench(store, dispatcher, layout)
        bench.pool = msgspec.structs.replace(bench.pool, tenant_concurrency=1)
        bench.pairs["n2"] = ("de", "zh")
        await bench.fleet(n1=9, n2=1)
        await _add(bench, BEFORE)
        await bench.step_until_read()
        await dispatcher.run_once()
        way.begin()
        await _add(bench, JOBS)
        assert dispatcher._reader is not None
        await dispatcher._reader._filled.wait()
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
    """Print the figures, and with --calls the way itself."""
    way = asyncio.run(follow())
    if "--calls" in sys.argv:
        for file, function, calls, is_one_line in way.calls:
            print(f"{'    ' if is_one_line and not calls else ''}{file} {function}")
    entered = way.entered()
    print(f"files: {len(set(entered))}; returns to a file already left: {len(entered) - len(set(entered))}")


if __name__ == "__main__":
    main()
