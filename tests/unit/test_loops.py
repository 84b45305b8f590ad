"""The event loop of a command that serves: what handlers leave behind in it ends neither the loop nor its end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import pytest

from scheduler.node import guard

BEGIN: Final = """
import asyncio, signal, sys, threading, time
from scheduler.console.failures import CutOff
from scheduler.console.loops import run_through, threads_run_on

def leave(error):
    raise error

async def serve(bad):
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, print, "signal")
    kept = [bad(loop)]
    await asyncio.sleep(0.05)
    return "served"
"""
CALLBACKS: Final = {
    "interrupt": "lambda loop: loop.call_soon(leave, KeyboardInterrupt())",
    "exit": "lambda loop: loop.call_soon(leave, SystemExit(3))",
    "stop": "lambda loop: loop.call_soon(loop.stop)",
    "task": "lambda loop: loop.create_task(exits())",
}


def ran(program: str) -> tuple[int, str, str]:
    """A program on the loop: (exit code, stdout, stderr)."""
    ended = subprocess.run(
        [sys.executable, "-c", BEGIN + program], capture_output=True, text=True, timeout=30, check=False
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("bad", CALLBACKS.values(), ids=CALLBACKS)
def test_the_loop_goes_on(bad: str) -> None:
    """With what a task or a callback raises, and when somebody stops it; that is told, and the rest is served."""
    exits = "async def exits(): sys.exit(3)\n"
    exit_code, stdout, stderr = ran(f"{exits}print(run_through(serve({bad}), None))")
    assert (exit_code, stdout) == (0, "served\n")
    assert "handler" in stderr


def test_a_task_that_ignores_its_cancellation_is_left_behind() -> None:
    """The end of the loop waits half a second for it."""
    program = """
async def stubborn():
    while True:
        try: await asyncio.sleep(60)
        except asyncio.CancelledError: pass
print(run_through(serve(lambda loop: loop.create_task(stubborn(), name="stubborn")), None))
"""
    exit_code, stdout, stderr = ran(program)
    assert (exit_code, stdout) == (0, "served\n")
    assert "stubborn does not end" in stderr
    assert "Traceback" not in stderr


def test_a_thread_of_the_executor_that_hangs_is_told_of() -> None:
    """`asyncio.to_thread` of a handler: whoever runs the command cuts it off."""
    program = """
import os
print(run_through(serve(lambda loop: loop.run_in_executor(None, threading.Event().wait)), None), threads_run_on())
sys.stdout.flush()
os._exit(0)
"""
    assert ran(program) == (0, "served True\n", "")


def test_a_ctrl_c_that_nobody_handles_is_obeyed() -> None:
    """Before the command has said what signals mean."""
    program = """
async def never(): await asyncio.sleep(60)
async def early():
    asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
    await never()
try: run_through(early(), None)
except KeyboardInterrupt: print("obeyed")
"""
    assert ran(program) == (0, "obeyed\n", "")


# ---- tasks of handlers ---------------------------------------------------------------------------------------


async def exits() -> None:
    """A task that leaves the program."""
    sys.exit(3)


async def interrupts() -> None:
    """The same."""
    raise KeyboardInterrupt


async def grouped() -> None:
    """Tasks of a group, of which one leaves."""
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        group.create_task(exits())


WAYS: Final[dict[str, Callable[[], Any]]] = {
    "task": lambda: asyncio.create_task(exits()),
    "interrupt": lambda: asyncio.create_task(interrupts()),
    "gather": lambda: asyncio.gather(exits(), asyncio.sleep(0)),
    "timeout": lambda: asyncio.wait_for(exits(), 1),
    "group": grouped,
    "inner": lambda: asyncio.create_task(grouped()),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_task_of_a_handler_that_exits_is_an_error_of_the_handler(way: Callable[[], Any]) -> None:
    """In the event loop of a program of the user's, too, which nobody would start again."""

    async def handler() -> str:
        guard.enter_attempt()
        try:
            await way()
        except (RuntimeError, ExceptionGroup, SystemExit) as error:  # the last one where no task was made, as on 3.12
            return repr(error)
        return "nothing"

    async def main() -> tuple[str, str]:
        guard.protect()
        beside = asyncio.create_task(asyncio.sleep(0.01, "beside"))
        return await asyncio.create_task(handler()), await beside

    raised, beside = asyncio.run(main())
    assert "a task of the handler raised" in raised or raised == "SystemExit(3)"
    assert beside == "beside"


def test_tasks_of_others_are_left_alone() -> None:
    """And so is a loop that makes its tasks in a way of its own."""

    async def main() -> None:
        guard.protect()
        await asyncio.create_task(exits())

    with pytest.raises(SystemExit):
        asyncio.run(main())

    async def own() -> Any:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coroutine, **options: asyncio.Task(coroutine, loop=loop, **options))
        before = loop.get_task_factory()
        guard.protect()
        return loop.get_task_factory() is before

    assert asyncio.run(own())
