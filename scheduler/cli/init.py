"""A command that is the first process of a container.

The system gives processes whose parent has ended to the first one, which has to collect them: what handlers leave
behind would fill the table of processes. Only a parent that started nothing else can collect every child, so the
command runs in a child of the first process. That one passes signals on, collects, and ends as the command does.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Final

FIRST: Final = 1
PASSED_ON: Final = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip
_FROM_A_TERMINAL: Final = 0x80  # SI_KERNEL: the whole group of processes gets it
_BY_SIGNAL: Final = 128


def run_in_child_of_first() -> None:
    """Go on in a child if this is the first process; it does nothing else from now on. Call it before any thread."""
    if os.getpid() == FIRST:
        run_in_child()


def run_in_child() -> None:
    """Go on in a child. This process passes signals on to it, collects what becomes its child, and ends with it."""
    awaited = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # before there is a child that could end unseen
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        info = signal.sigwaitinfo(awaited)
        if info.si_signo == signal.SIGCHLD:
            if (exit_code := _collect(child)) is not None:
                os._exit(exit_code)
        elif info.si_code != _FROM_A_TERMINAL:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, info.si_signo)


def _collect(child: int) -> int | None:
    """Collect all children that have ended. Returns: how `child` did, when it was among them."""
    exit_code = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                exit_code = code if code >= 0 else _BY_SIGNAL - code
    return exit_code
