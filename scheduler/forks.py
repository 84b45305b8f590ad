"""What becomes of a process that somebody forks from one of ours: a handler, or a library that it uses.

- The child has the signals of a process that has none of our duties. It would hand the signals that it gets to its
  parent, through the pipe that both share: a child that is told to end would have the parent drain.
- It does not come back to us. Where the handler returns in the child, or lets the child's copy of the event loop go on,
  the child ends: it would read from the sockets of its parent, and speak on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import threading
import weakref
from typing import Final, NoReturn

CAME_BACK: Final = 70  # exit code of a child that goes on with the event loop of its parent (EX_SOFTWARE)
_LOOPS: Final = ("asyncio", "uvloop")
_HELD_BACK: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_MASK: Final = threading.local()  # of the thread that forks, before it does


# A hook of `os.register_at_fork` stays for as long as the process, and so does what it looks at: each event loop that
# is not to be shared, with the thread that runs it.
_PROTECTED: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, int]] = weakref.WeakKeyDictionary()


def protect() -> None:
    """From now on children of this process are as said above. Call it in the event loop that is not to be shared."""
    _PROTECTED[asyncio.get_running_loop()] = threading.get_ident()
    _register()


def process_id() -> int:
    """Of this process: another one after a fork, in the child."""
    return os.getpid()


@functools.cache
def _register() -> None:
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def _before() -> None:
    """A signal that the child gets before it has its own handlers has to wait, or its parent would hear it."""
    _MASK.before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)


def _after_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _MASK.before)


def _after_in_child() -> None:
    """Runs in the child, in the thread that forked, which is its only one."""
    _take_default_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, _MASK.before)
    for loop, thread in list(_PROTECTED.items()):
        if thread == threading.get_ident() and loop.is_running():
            _end_instead_of(loop)


def _take_default_signals() -> None:
    with contextlib.suppress(ValueError):  # a fork of a subinterpreter
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if _is_of_a_loop(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _is_of_a_loop(handler: object) -> bool:
    """Whether a signal is handled by an event loop, which does not run in a child."""
    module = getattr(getattr(handler, "func", handler), "__module__", None) or ""
    return callable(handler) and module.partition(".")[0] in _LOOPS


def _end_instead_of(loop: asyncio.AbstractEventLoop) -> None:
    """End before anything else that the loop would do in the child."""
    ready = getattr(loop, "_ready", None)
    end = functools.partial(_leave, CAME_BACK, "a forked process ends: the event loop is that of its parent")
    if hasattr(ready, "appendleft"):
        ready.appendleft(asyncio.Handle(end, (), loop))  # type: ignore[union-attr]
    else:
        loop.call_soon(end)


def end_child(began_in: int, error: BaseException | None = None) -> None:
    """End this process if a handler that began in the process `began_in` has returned, or raised, in a child of it."""
    if os.getpid() == began_in:
        return
    if error is None:
        _leave(0)
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            _leave(error.code or 0)
        _leave(1, str(error.code))
    with contextlib.suppress(BaseException):
        sys.excepthook(type(error), error, error.__traceback__)
    _leave(1)


def _leave(exit_code: int, said: str = "") -> NoReturn:
    """End as other processes do, but for what the parent will do: no hook of `atexit`, no connection closed."""
    with contextlib.suppress(BaseException):
        if said:
            print(said, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code & 0xFF)
