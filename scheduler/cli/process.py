"""How the coroutine of a command runs: its event loop, and what signals do to it.

- A command that ends by itself: Ctrl-C cancels it and raises KeyboardInterrupt.
- A command that serves: the first SIGTERM or SIGINT asks it to stop in order, a second one cuts it off.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from scheduler.cli.failures import BY_SIGNAL, CutOff
from scheduler.config import Settings
from scheduler.loop import end_tasks
from scheduler.roles import Role
from scheduler.store.store import open_store

logger = logging.getLogger("scheduler")

T = TypeVar("T")
Serve = Callable[[asyncio.Event], Coroutine[Any, Any, T]]
"""What a command does until the event is set."""

StartRole = Callable[[str, Settings], Coroutine[Any, Any, tuple[Role, Any]]]
"""One of `start_manager`, `start_dispatcher`, `start_reaper`."""

START_MS_MAX: Final = 2_000
STOP_MS_MAX: Final = 10_000


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, on uvloop where the extra `fast` is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def run_serving(serve: Serve[T]) -> T:
    """Run a command that serves until it is told to stop. Raises: CutOff on the second signal."""
    return run_async(_with_signals(serve))


async def _with_signals(serve: Serve[T]) -> T:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    second: asyncio.Future[int] = loop.create_future()

    def received(number: int) -> None:
        if not stopping.is_set():
            logger.info("%s: stopping in order; a second one stops at once", signal.Signals(number).name)
            stopping.set()
        elif not second.done():
            second.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received, number)
    worker = asyncio.create_task(serve(stopping))
    either: set[asyncio.Future[Any]] = {worker, second}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if worker.done():
        return worker.result()
    await end_tasks([worker])  # again and again: a cancellation that begins the clean-up does not end it
    raise CutOff(BY_SIGNAL + second.result())


async def unless_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` comes to; None, and it is cancelled, when `stopping` is set first."""
    worker = asyncio.ensure_future(work)
    stopper = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({worker, stopper}, return_when=asyncio.FIRST_COMPLETED)
        return worker.result() if worker.done() else None
    finally:
        await end_tasks([stopper, worker])


async def check_server(url: str, settings: Settings) -> bool:
    """Refuse to start on a server that does not answer or cannot be used; whether a scheduler was started there.

    Raises: ServerUnavailable, ServerRefused.
    """
    async with await open_store(url, settings, START_MS_MAX) as store:
        return await store.control.read_layout() is not None


async def stop_roles(roles: Sequence[Role], stop_ms_max: int = STOP_MS_MAX) -> None:
    """Stop roles, the last one first. A server that is gone keeps nobody here: leases end by themselves."""
    try:
        async with asyncio.timeout(stop_ms_max / 1000):
            for role in reversed(roles):
                await role.stop()
    except TimeoutError:
        logger.warning("not stopped in order within %d ms: what was held is free when its lease ends", stop_ms_max)
