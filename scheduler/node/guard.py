"""Tasks that a handler creates raise no KeyboardInterrupt and no SystemExit.

asyncio raises these two out of the event loop, whoever awaits the task: `sys.exit()` in a task of one job would end all
jobs of the process. In a guarded task they become a RuntimeError, which the handler gets where it awaits the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Coroutine
from typing import Any, Final

_IN_ATTEMPT: Final[contextvars.ContextVar[bool]] = contextvars.ContextVar("scheduler_in_attempt", default=False)


def protect() -> None:
    """From now on the running event loop guards the tasks of handlers, unless it makes tasks in a way of its own."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # of a loop that is no asyncio's
        if loop.get_task_factory() is None:
            loop.set_task_factory(_make_task)


def enter_attempt() -> None:
    """What the running task creates from now on is a handler's."""
    _IN_ATTEMPT.set(True)


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """A task as the loop makes them; options: those of `asyncio.Task`, which differ between versions of Python."""
    context = options.get("context")
    if (_IN_ATTEMPT.get() if context is None else context.get(_IN_ATTEMPT, False)) and asyncio.iscoroutine(coroutine):
        coroutine = _guarded(coroutine)
    return asyncio.Task(coroutine, loop=loop, **options)


async def _guarded(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (KeyboardInterrupt, SystemExit) as error:
        raise RuntimeError(f"a task of the handler raised {type(error).__name__}") from error
