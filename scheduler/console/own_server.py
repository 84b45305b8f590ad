"""Runs something on a server of its own, or in a namespace of its own, and stops on signals."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

import msgspec

from scheduler.config import Settings
from scheduler.console.failures import BY_SIGNAL
from scheduler.console.process import ignore_hangups, is_same_signal, run_async, stay_one_signal
from scheduler.server.embedded import start_embedded
from scheduler.url import ServerUrl, parse_url

T = TypeVar("T")


def on_own_server(
    name: str,
    url: str | ServerUrl | None,
    settings: Settings,
    perform: Callable[[str, Settings], Coroutine[Any, Any, T]],
) -> T:
    """Run something on a server in memory; on that of a typed URL in a namespace of its own, which it has to remove.

    Args: name, of the command, for the namespace; url, None for a server of its own; settings; perform, is given the
    server's URL and the settings to use. Blocks, and stops on signals.
    Raises: ServerUnavailable, what `perform` raises; KeyboardInterrupt or, on SIGTERM and SIGHUP, SystemExit.
    """
    with _signals_as_exit():
        if url is not None:
            own = msgspec.structs.replace(settings, namespace=f"{name}-{secrets.token_hex(4)}")
            return run_async(_until_signal(perform(parse_url(url).whole, own)))
        with start_embedded() as server:
            return run_async(_until_signal(perform(server.url, settings)))


def _ending_signals() -> list[signal.Signals]:
    """Those that end a command beside Ctrl-C; nohup has SIGHUP, of a closed terminal, ignored."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGHUP]


@contextlib.contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Let signals raise SystemExit, so that what was started is stopped on the way out."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(BY_SIGNAL + number)

    before = [(number, signal.signal(number, leave)) for number in _ending_signals()]
    is_ending = False
    try:
        yield
    except SystemExit:  # what the signal has set for the way out stays: another one would cut it off
        is_ending = True
        raise
    finally:
        for number, handler in before:
            if not is_ending:
                signal.signal(number, handler)


async def _until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Let signals cancel the work, as Ctrl-C does by itself. Raises: SystemExit then."""
    received: list[tuple[int, float]] = []
    task = asyncio.current_task()
    assert task is not None

    def stop(number: int) -> None:
        if number == signal.SIGHUP:
            ignore_hangups()
        if received and is_same_signal(received[0][1]):
            return
        received.append((number, time.monotonic()))
        task.cancel()

    for number in _ending_signals():
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        if received:
            stay_one_signal(received[0][1])
            raise SystemExit(BY_SIGNAL + received[0][0]) from None
        raise
