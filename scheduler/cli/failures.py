"""How a command ends otherwise than well: an exit code and a line for people. Light, for every start imports it.

Exit codes: 1 failure, 2 usage, 3 no server or none that answers, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
from typing import IO, Any, Final, NoReturn

import click

from scheduler.cli import streams
from scheduler.errors import InvalidInput, SchedulerError, ServerUnavailable, without_credentials

BY_SIGNAL: Final = 128
_EXTRA_ARGUMENTS: Final = re.compile(r"(Got unexpected extra arguments?) \(.*\)", re.DOTALL)


class Failure(click.ClickException):
    """Ends the command with 1, and with a line on stderr unless the message is empty."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it."""
        if self.message:
            click.echo(f"Error: {self.message}", file=file, err=file is None)


class WrongUsage(Failure):
    """Ends the command with 2: something that was typed, or a setting, is wrong."""

    exit_code = 2


class Unreachable(Failure):
    """Ends the command with 3: no server, none that answers, or no scheduler there."""

    exit_code = 3


class CutOff(Exception):
    """The process is to end at once, whatever still runs. exit_code; message, a line on stderr unless it is empty."""

    def __init__(self, exit_code: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.message = message


def as_failure(error: SchedulerError | OSError) -> Failure:
    """The failure that an error is to the user of a command."""
    if isinstance(error, InvalidInput):
        return WrongUsage(str(error))
    return Unreachable(str(error)) if isinstance(error, ServerUnavailable) else Failure(str(error))


class Explained(click.Command):
    """A command whose errors become a line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it printed is flushed here, where a closed stdout can still be handled."""
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
        except CutOff as error:
            _end_at_once(error)
        except click.UsageError as error:
            raise click.UsageError(_without_values(error.format_message()), error.ctx) from error
        except KeyboardInterrupt:
            ctx.exit(BY_SIGNAL + signal.SIGINT)
        except SchedulerError as error:
            raise as_failure(error) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly: whoever read our output has seen enough
                raise
            fault = streams.fault_of(error)
            raise (Failure(fault) if fault else as_failure(error)) from error
        return value


def _without_values(message: str) -> str:
    """What click says of something typed wrongly, without what stands where nothing is expected, and without
    passwords: both may be one that went astray.
    """
    return _EXTRA_ARGUMENTS.sub(r"\1", without_credentials(message))


def _end_at_once(why: CutOff) -> NoReturn:
    """End without waiting for threads that run handlers."""
    with contextlib.suppress(OSError):
        Failure(why.message).show()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(why.exit_code)
