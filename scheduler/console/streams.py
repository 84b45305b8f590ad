"""The standard streams of a command: each may be closed, or take nothing.

- One that is closed becomes /dev/null, before the next file that is opened gets its number: what is printed would go
  into it. Nothing can be read from a stdin that was closed.
- What a stream does not take is lost, and said in a line on stderr where that can be. A command that serves goes on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from typing import BinaryIO, Final

from scheduler.console import terminal
from scheduler.errors import SchedulerError
from scheduler.visible import visible

logger = logging.getLogger("scheduler")

_NAMES: Final = ("stdin", "stdout", "stderr")
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def open_closed() -> None:
    """Give numbers and files to those that are closed."""
    for number, name in enumerate(_NAMES):
        try:
            os.fstat(number)
        except OSError:
            # Nothing can be read from stdin then: whoever reads it has closed it by mistake.
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != number:  # it cannot be; but a descriptor of somebody else's is not to be closed
                os.close(opened)
                continue
            os.set_inheritable(number, True)
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def announce(text: str) -> None:
    """A line on stdout of a command that serves, whether anybody can hear it or not."""
    try:
        terminal.write_line(text)
    except (OSError, ValueError) as error:
        logger.warning("stdout: %s: it is not told that this is %r", _words_of(error), text)
        _silence(1)


def fault_of(error: OSError) -> str:
    """What is wrong with a standard stream, if that is what the error says; else nothing."""
    if error.filename is not None:
        return ""
    if error.errno == errno.EBADF:
        return "stdin is closed: there is nothing to read"
    return f"the output is not complete: {_words_of(error)}" if error.errno in _NO_ROOM else ""


def unread(file: BinaryIO, error: OSError) -> SchedulerError | OSError:
    """What it means that a file, once open, cannot be read: else it would be taken for a fault of the output."""
    if error.errno == errno.EBADF:  # stdin was closed
        return error
    return SchedulerError(f"{visible(file.name)}: {_words_of(error)}: it cannot be read any further")


def settle() -> None:
    """Print what is left. What a stream does not take is not tried again by the interpreter, with a traceback."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            _silence(number)


def _silence(number: int) -> None:
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


def _words_of(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
