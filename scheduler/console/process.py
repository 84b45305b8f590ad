"""How the coroutine of a command runs: its event loop, and what signals do to it.

- A command that ends by itself: Ctrl-C cancels it and raises KeyboardInterrupt.
- A command that serves: the first SIGTERM or SIGINT asks it to stop in order, a second one cuts it off. SIGHUP, of a
  terminal that is closed, asks too, but cuts nothing off. Under nohup it is ignored.
- What comes within a second of the first is the same one: a terminal sends SIGINT to a process manager and to all that
  it runs, and the manager sends them SIGTERM then.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import FrameType
from typing import Any, Final, TypeVar

import click

from scheduler.clock import SYSTEM_CLOCK
from scheduler.config import Settings
from scheduler.console.common import find_server, milliseconds
from scheduler.console.failures import BY_SIGNAL, CutOff
from scheduler.console.loops import run_through
from scheduler.errors import ServerRefused, ServerUnavailable
from scheduler.loop import end_tasks
from scheduler.roles import Role
from scheduler.store.blocking import ping
from scheduler.store.store import open_store
from scheduler.store.telling import Call, Telling
from scheduler.url import ServerUrl

logger = logging.getLogger("scheduler")

T = TypeVar("T")
_Command = TypeVar("_Command", bound=Callable[..., None])
Serve = Callable[[asyncio.Event], Coroutine[Any, Any, T]]
"""What a command does until the event is set."""

StartRole = Callable[..., Coroutine[Any, Any, tuple[Role, Any]]]
"""One of `start_manager`, `start_dispatcher`, `start_reaper`."""

START_MS_MAX: Final = 2_000
STOP_MS_MAX: Final = 10_000
GONE_MS: Final = 2_000  # a server that is silent for so long keeps nobody who stops; supervisors kill after 5 s
PING_MS_MAX: Final = 500
POLL_MS: Final = 100
SAME_SIGNAL_S: Final = 1.0
BEGIN_AGAIN_MS: Final = 500


def wait_server_option(command: _Command) -> _Command:
    """`--wait-server-ms`."""
    return click.option(
        "--wait-server-ms",
        type=milliseconds(),
        default=0,
        show_default=True,
        help="For how long a start waits for a server that is not there yet.",
    )(command)


def shutdown_grace_option(whom: str) -> Callable[[_Command], _Command]:
    """`--shutdown-grace-ms`: for how long an end waits for others, who are told in its help."""
    return click.option(
        "--shutdown-grace-ms",
        type=milliseconds(),
        default=0,
        show_default=True,
        help=f"After the first signal, for how long to wait for {whom}.",
    )


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
    return run_through(_with_signals(serve), _loop_factory())


async def _with_signals(serve: Serve[T]) -> T:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    first_s: float | None = None
    second: asyncio.Future[int] = loop.create_future()

    def received(number: int) -> None:
        nonlocal first_s
        if number == signal.SIGHUP:
            ignore_hangups()
        if first_s is None:
            logger.info("%s: stopping in order; a second one stops at once", signal.Signals(number).name)
            first_s = time.monotonic()
            stopping.set()
        elif number != signal.SIGHUP and not is_same_signal(first_s) and not second.done():
            second.set_result(number)

    for number in (*_STOP, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, received, number)
    worker = asyncio.create_task(serve(stopping))
    either: set[asyncio.Future[Any]] = {worker, second}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if first_s is not None and not second.done():
        stay_one_signal(first_s)
    if worker.done():
        return worker.result()
    await end_tasks([worker])  # again and again: a cancellation that begins the clean-up does not end it
    raise CutOff(BY_SIGNAL + second.result())


_STOP: Final = (signal.SIGTERM, signal.SIGINT)


def is_same_signal(first_s: float) -> bool:
    """Whether a signal now belongs to the one that came then."""
    return time.monotonic() - first_s < SAME_SIGNAL_S


def stay_one_signal(first_s: float) -> None:
    """Also on the way out, when the event loop handles no signal any more, what belongs to the first changes nothing;
    a later one ends the process, as it would without us.
    """
    loop = asyncio.get_running_loop()

    def received(number: int, _frame: FrameType | None) -> None:
        if is_same_signal(first_s):
            return
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)  # in between a signal would kill
    for number in _STOP:
        loop.remove_signal_handler(number)
        signal.signal(number, received)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
    atexit.register(_ignore_signals)


def _ignore_signals() -> None:
    """Nothing is left to be cut off but the interpreter's own end."""
    for number in _STOP:
        signal.signal(number, signal.SIG_IGN)


def ignore_hangups() -> None:
    """Ignore SIGHUP from now on: shell and system send one each, the later one at any time, also after the loop."""
    asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


async def unless_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` comes to; None, and it is cancelled, when `stopping` is set first."""
    worker = asyncio.ensure_future(work)
    stopper = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({worker, stopper}, return_when=asyncio.FIRST_COMPLETED)
        return worker.result() if worker.done() else None
    finally:
        await end_tasks([stopper, worker])


async def await_server(redis_url: str | None, wait_ms: int) -> ServerUrl:
    """The URL of the server to talk to, which may come to run here within `wait_ms`.

    Raises: InvalidInput; ServerUnavailable, naming the places looked at.
    """
    until_s = time.monotonic() + wait_ms / 1000
    said = False
    while True:
        try:
            return find_server(redis_url)
        except ServerUnavailable:
            if time.monotonic() >= until_s:
                raise
        if not said:
            logger.info("waiting for a server")
            said = True
        await asyncio.sleep(POLL_MS / 1000)


async def check_server(url: str | ServerUrl, settings: Settings, wait_ms: int = 0) -> bool:
    """Refuse to start on a server that cannot be used, or does not answer within `wait_ms` or a moment, whichever is
    longer; one that is busy is waited for. Returns: whether a scheduler was started there.

    Raises: ServerUnavailable, ServerRefused.
    """
    async with await open_store(url, settings, max(START_MS_MAX, wait_ms), waits_while_busy=True) as store:
        return await store.control.read_layout() is not None


async def begin_within(url: ServerUrl, wait_ms: int, begin: Callable[[int], Coroutine[Any, Any, T]]) -> T:
    """What `begin` comes to. For `wait_ms` it is tried again when the server is refused, for somebody may mend that.

    begin: is told what is left of that time. Raises: ServerRefused, and what `begin` raises otherwise.
    """
    until_ms = SYSTEM_CLOCK.ms() + wait_ms
    watch = Telling(url, SYSTEM_CLOCK).watch()
    refused: Call | None = None
    try:
        while True:
            try:
                begun_with = await begin(max(0, round(until_ms - SYSTEM_CLOCK.ms())))
            except ServerRefused as error:
                if SYSTEM_CLOCK.ms() >= until_ms:
                    raise
                refused = refused or watch.begin(SYSTEM_CLOCK.ms(), is_told=True)
                refused.code = refused.words = str(error).partition(": ")[2] or str(error)
            else:
                if refused is not None:
                    refused.is_well = True
                    watch.end(refused)
                return begun_with
            await asyncio.sleep(BEGIN_AGAIN_MS / 1000)
    finally:
        watch.close()


async def begun(role: Role) -> Role:
    """A role that was started, once its first step has shown that the server can be used. Raises: ServerRefused."""
    try:
        await role.begun.wait()
        if role.refusal is not None:
            raise role.refusal
    except BaseException:
        await role.abandon()
        raise
    return role


async def unless_refused(roles: Sequence[Role], work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to. Raises: ServerRefused, and it is cancelled, when the server is of no use any more."""
    worker = asyncio.ensure_future(work)
    watchers = [asyncio.ensure_future(role.until_refused()) for role in roles]
    try:
        await asyncio.wait({worker, *watchers}, return_when=asyncio.FIRST_COMPLETED)
        for watcher in watchers:
            if watcher.done():
                raise watcher.result()
        return worker.result()
    finally:
        await end_tasks([worker, *watchers])


async def unless_gone(
    url: ServerUrl, work: Coroutine[Any, Any, None], busy: Callable[[], bool] = lambda: False
) -> bool:
    """Whether `work` came to its end; it is cancelled when the server is silent for GONE_MS and `busy` says no."""
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_until_gone(url, busy))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
        return worker.done()
    finally:
        await end_tasks([watcher, worker])


async def _until_gone(url: ServerUrl, busy: Callable[[], bool]) -> None:
    heard_s = time.monotonic()
    while busy() or time.monotonic() - heard_s < GONE_MS / 1000:
        await asyncio.sleep(POLL_MS / 1000)
        if await ask_aside(partial(ping, url, PING_MS_MAX / 1000), True):  # not asked, nothing says that it is gone
            heard_s = time.monotonic()


async def ask_aside(ask: Callable[[], T], unasked: T) -> T:
    """What `ask`, which blocks, returns in a thread beside the event loop; `unasked` where no thread can start."""
    try:
        return await asyncio.to_thread(ask)
    except RuntimeError as error:
        logger.debug("the server cannot be asked: %s", error)
        return unasked


async def stop_roles(roles: Sequence[Role], stop_ms_max: int = STOP_MS_MAX) -> None:
    """Stop roles, the last one first. A server that is gone keeps nobody here: leases end by themselves.

    However that ends, none of them runs any more, and none is connected.
    """

    async def stop_each() -> None:
        for role in reversed(roles):
            await role.stop()

    if not roles:
        return
    try:
        async with asyncio.timeout(stop_ms_max / 1000):
            stopped = await unless_gone(roles[0].url, stop_each())
    except TimeoutError:
        stopped = False
    finally:
        await asyncio.gather(*(role.abandon() for role in roles))
    if not stopped:
        logger.warning("not stopped in order: what was held is free when its lease ends")
