"""Handlers that do what they should not, by the payload of the job: the module that nodes of test_bad_handlers.py load.

`good` waits for the file `go`; everything else is a name of BAD, which each form of handler does in its own way.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from scheduler import Job, Reject, Retry

GO: Final = Path("go")


class Base(BaseException):
    """Not an Exception."""


class Unspeakable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class NoText(Exception):
    """Says what is no text."""

    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class Rejected(Reject):
    """A rejection that cannot be shown."""

    def __str__(self) -> str:
        raise SystemExit


class Odd(dict[str, str]):
    """Breaks whoever looks at it."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise KeyboardInterrupt


def throw(error: BaseException) -> Any:
    """Raise it."""
    raise error


def circle() -> Any:
    """An error that is its own cause."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def deep(number: int = 0) -> int:
    """Recursion without an end."""
    return deep(number + 1) + 1


async def leaves() -> None:
    """A coroutine that exits."""
    sys.exit(4)


def in_a_child(does: Callable[[], Any]) -> str:
    """What a process that is forked here ends with."""
    if (child := os.fork()) == 0:
        sys.excepthook = lambda *_: None
        return str(does())
    return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def ended_child() -> str:
    """A process that is forked here and told to end."""
    if (child := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    return str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def pool() -> str:
    """Worker processes, ended by signals."""
    with multiprocessing.get_context("fork").Pool(1) as workers:
        return str(workers.apply(abs, (-7,)))


def orphan() -> str:
    """A process that outlives the one that started it."""
    subprocess.run(["sh", "-c", "sleep 1 &"], check=True)
    return "left"


def threads() -> str:
    """Threads that fail, and one that hangs."""
    failing = threading.Thread(target=throw, args=(SystemExit(3),))
    failing.start()
    failing.join()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return "left"


def keep_lock() -> str:
    """Let no other thread of Python run."""
    until_s = time.monotonic() + 1.2
    while time.monotonic() < until_s:
        re.match(r"(a+)+$", "a" * 24 + "b")  # one call of some seconds
    return "kept"


def rearrange() -> str:
    """What belongs to the whole process."""
    os.chdir("/")
    os.environ.clear()
    sys.argv.clear()
    sys.excepthook = lambda *_: None
    sys.unraisablehook = lambda _: None
    logging.getLogger("scheduler").handlers.clear()
    sys.stdout.close()
    return "rearranged"


# What it does, and how its job ends when it may be tried once: ("completed", result) or (state, reason).
DEAD: Final = ("dead", "attempts_exhausted")
BAD: Final[dict[str, tuple[Callable[[], Any], tuple[str, str]]]] = {
    "interrupt": (lambda: throw(KeyboardInterrupt()), DEAD),
    "exit": (lambda: sys.exit(), DEAD),
    "exit-3": (lambda: sys.exit(3), DEAD),
    "exit-text": (lambda: sys.exit("text"), DEAD),
    "generator-exit": (lambda: throw(GeneratorExit()), DEAD),
    "stop-iteration": (lambda: next(iter(())), DEAD),
    "stop-async": (lambda: throw(StopAsyncIteration()), DEAD),
    "cancelled": (lambda: throw(asyncio.CancelledError()), DEAD),
    "timeout": (lambda: throw(TimeoutError()), DEAD),
    "base": (lambda: throw(Base("base")), DEAD),
    "group": (lambda: throw(BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()])), DEAD),
    "unspeakable": (lambda: throw(Unspeakable()), DEAD),
    "no-text": (lambda: throw(NoText()), DEAD),
    "circle": (circle, DEAD),
    "deep": (deep, DEAD),
    "memory": (lambda: throw(MemoryError()), DEAD),
    "too-much": (lambda: bytes(1 << 62), DEAD),
    "long": (lambda: throw(ValueError("x" * 3_000_000)), DEAD),
    "controls": (lambda: throw(ValueError("\x1b[2J\x00\ud800\n\r")), DEAD),
    "no-error": (lambda: throw(7), DEAD),  # type: ignore[arg-type]
    "odd-result": (Odd, DEAD),
    "late-exit": (leaves, DEAD),
    "reject": (lambda: throw(Rejected("x")), ("failed", "rejected")),
    "retry": (lambda: throw(Retry("later", delay_ms="soon")), DEAD),  # type: ignore[arg-type]
    "child-returns": (lambda: in_a_child(lambda: "child"), ("completed", "0")),
    "child-exits": (lambda: in_a_child(lambda: sys.exit(3)), ("completed", "3")),
    "child-fails": (lambda: in_a_child(lambda: 1 / 0), ("completed", "1")),
    "child-is-ended": (ended_child, ("completed", "-15")),
    "pool": (pool, ("completed", "7")),
    "orphan": (orphan, ("completed", "left")),
    "threads": (threads, ("completed", "left")),
    "lock": (keep_lock, ("completed", "kept")),
    "rearrange": (rearrange, ("completed", "rearranged")),
}


async def _group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leaves())


def block() -> str:
    """Wait in the event loop."""
    time.sleep(1.2)
    return "late"


def _stop() -> str:
    asyncio.get_running_loop().stop()
    return "stopped"


def _callback() -> str:
    asyncio.get_running_loop().call_soon(throw, KeyboardInterrupt())
    return "left"


def _cancel() -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return asyncio.sleep(0)


ONLY_ASYNC: Final[dict[str, tuple[Callable[[], Any], tuple[str, str]]]] = {
    "block": (block, ("completed", "late")),
    "group-exit": (_group, DEAD),
    "task-exit": (lambda: asyncio.create_task(leaves()), DEAD),
    "stop-loop": (_stop, ("completed", "stopped")),
    "close-loop": (lambda: asyncio.get_running_loop().close(), DEAD),
    "run-inside": (lambda: asyncio.run(asyncio.sleep(0)), DEAD),
    "callback": (_callback, ("completed", "left")),
    "cancel-itself": (_cancel, DEAD),
}


def plain(job: Job) -> Any:
    """In a thread."""
    name = job.payload.decode()
    if name == "hang":
        threading.Event().wait()
    while name == "good":
        if GO_HERE.exists():
            return "fine"
        time.sleep(0.02)
    return BAD[name][0]()


async def in_the_loop(job: Job) -> Any:
    """In the event loop."""
    name = job.payload.decode()
    while name in ("good", "hang"):
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            continue  # `hang` heeds nothing
        if name == "good" and GO_HERE.exists():
            return "fine"
    value = (BAD | ONLY_ASYNC)[name][0]()
    return await value if asyncio.iscoroutine(value) or isinstance(value, asyncio.Task) else value


def keeps_lock(job: Job) -> str:
    """Keeps the lock: the first attempt for the seconds of its payload. A later one waits for `go`."""
    if job.attempt == 1:
        ctypes.PyDLL(None).usleep(int(float(job.payload) * 1_000_000))
    while job.attempt > 1 and not GO_HERE.exists():
        time.sleep(0.02)
    return f"attempt {job.attempt}"


async def keeps_loop(job: Job) -> str:
    """The same with the event loop."""
    if job.attempt == 1:
        time.sleep(float(job.payload))  # noqa: ASYNC251
    while job.attempt > 1 and not GO_HERE.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return f"attempt {job.attempt}"


GO_HERE: Final = GO.absolute()  # before somebody changes the directory
