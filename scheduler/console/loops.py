"""The event loop of a command that serves. Other people's code runs in it: it goes on whatever that does to it, and its
end waits for nobody for long.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from scheduler.console.failures import CutOff
from scheduler.loop import forget_task

logger = logging.getLogger("scheduler")

T = TypeVar("T")

END_MS_MAX: Final = 300  # for tasks and threads of others at the end
_WORKERS: Final = "asyncio"


def run_through(work: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> T:
    """Run a coroutine to its end. It handles the signals itself, from its first step on.

    What it leaves behind is cancelled. Where that does not end, or a thread of the loop's own executor does not, the
    loop is not closed; such a thread keeps the process, see `threads_run_on`.
    """
    runner = asyncio.Runner(loop_factory=loop_factory)
    loop = runner.get_loop()
    workers = ThreadPoolExecutor(thread_name_prefix=_WORKERS)
    loop.set_default_executor(workers)
    try:
        value = _until_done(loop, loop.create_task(work))
    except CutOff:
        raise  # the process ends now, whatever runs
    except BaseException:
        _close(runner, workers)
        raise
    _close(runner, workers)
    return value


def _until_done(loop: asyncio.AbstractEventLoop, task: asyncio.Task[T]) -> T:
    """Run the loop until the task has ended.

    asyncio leaves the loop with the KeyboardInterrupt or SystemExit of any task or callback. The attempts of a node
    raise none; a task that a handler has created can. A Ctrl-C that nobody handles yet is obeyed.
    """
    while True:
        try:
            return loop.run_until_complete(task)
        except (KeyboardInterrupt, SystemExit) as error:
            if task.done() or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                raise
            logger.error("%s out of a task or callback that a handler has left: ignored", type(error).__name__)
        except RuntimeError:
            if task.done():
                raise
            logger.error("a handler stopped the event loop: it goes on")


def _close(runner: asyncio.Runner, workers: ThreadPoolExecutor) -> None:
    loop = runner.get_loop()
    if tasks := asyncio.all_tasks(loop):
        _until_done(loop, loop.create_task(_cancel(tasks)))
    workers.shutdown(wait=False, cancel_futures=True)
    if not threads_run_on():
        runner.close()


async def _cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    _, pending = await asyncio.wait(tasks, timeout=END_MS_MAX / 1000)
    for task in pending:
        logger.warning("%s does not end: it is cut off", task.get_name())
        forget_task(task)


def threads_run_on() -> bool:
    """Whether threads would keep this process alive. Idle ones have been told to end, and need a moment."""
    until_s = time.monotonic() + END_MS_MAX / 1000
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    for thread in others:
        thread.join(max(0.0, until_s - time.monotonic()))
    return any(thread.is_alive() for thread in others)
