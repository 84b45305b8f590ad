"""Processes that are forked from one of ours: they get the signals of others, and never come back to its event loop."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

BEGIN: Final = """
import asyncio, multiprocessing, os, signal, sys, time
from random import Random
from scheduler import forks
from scheduler.config import DEFAULTS
from scheduler.node.handlers import attempt
from scheduler.threads import Threads
from tests.unit.test_handlers import a_job

def wait_for(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

async def main(handler):
    loop, heard = asyncio.get_running_loop(), []
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard.append, number)
    forks.protect()
    beside = asyncio.create_task(asyncio.sleep(0, "beside"))
    ending = await asyncio.create_task(attempt(handler, a_job(), Threads(2, "test"), DEFAULTS, Random(1)))
    print(os.getpid() == parent, ending.verdict, (ending.result.decode() or ending.detail), heard, await beside)

parent = os.getpid()
"""


def ran(handler: str, name: str = "handler") -> list[str]:
    """What a program prints that runs a handler: a line of the parent alone, or the child has come back."""
    program = f"{BEGIN}\n{handler}\nasyncio.run(main({name}))\n"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return [*ended.stdout.splitlines(), *ended.stderr.splitlines()]


FORMS: Final = pytest.mark.parametrize("form", ["def", "async def"], ids=["thread", "async"])


@FORMS
def test_a_signal_to_a_child_is_none_to_its_parent(form: str) -> None:
    """A child that is told to end does, and the node of its parent does not drain."""
    handler = f"""
{form} handler(job):
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, b"!")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    os.kill(child, signal.SIGTERM)
    return str(wait_for(child))
"""
    assert ran(handler) == ["True finish -15 [] beside"]


@FORMS
def test_a_pool_of_processes_can_be_ended(form: str) -> None:
    """multiprocessing ends its workers by signals."""
    handler = f"""
{form} handler(job):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        value = pool.apply(abs, (-7,))
    pool.join()
    return str(value)
"""
    assert ran(handler) == ["True finish 7 [] beside"]


@FORMS
@pytest.mark.parametrize(
    ("ends", "exit_code"),
    [("return 'child'", 0), ("sys.exit(3)", 3), ("sys.exit()", 0), ("raise SystemExit('no')", 1), ("1 / 0", 1)],
)
def test_a_child_ends_where_the_handler_does(form: str, ends: str, exit_code: int) -> None:
    """It reports nothing, and runs nobody else's job."""
    handler = f"""
{form} handler(job):
    if (child := os.fork()) == 0:
        os.close(2)
        {ends}
    return str(wait_for(child))
"""
    assert ran(handler) == [f"True finish {exit_code} [] beside"]


def test_a_child_does_not_go_on_with_the_event_loop() -> None:
    """It would read what was meant for its parent, and go on with the jobs beside."""
    handler = """
async def handler(job):
    asyncio.get_running_loop().call_soon(lambda: print("once"))
    if (child := os.fork()) == 0:
        await asyncio.sleep(0)
        print("comes back")
    return str(wait_for(child))
"""
    assert ran(handler) == [
        "once",
        "True finish 70 [] beside",
        "a forked process ends: the event loop is that of its parent",
    ]


def test_a_child_may_have_an_event_loop_of_its_own() -> None:
    """As with multiprocessing and a coroutine function."""
    handler = """
async def sleeps():
    await asyncio.sleep(0.01)
    print("slept", flush=True)

def handler(job):
    process = multiprocessing.get_context("fork").Process(target=lambda: asyncio.run(sleeps()))
    process.start()
    process.join()
    return str(process.exitcode)
"""
    assert ran(handler) == ["slept", "True finish 0 [] beside"]
