"""How a command ends otherwise than well: an exit code and a line for people. Light, for every start imports it.

Exit codes: 1 failure, also of a server that answers and refuses, 2 usage, 3 no server or none that answers, 130 Ctrl-C,
143 SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import IO, Any, Final, NoReturn

import click

from scheduler.console import streams, terminal
from scheduler.errors import InvalidInput, SchedulerError, ServerNotReady, ServerUnavailable, without_credentials
from scheduler.visible import visible

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
            terminal.write_line(f"Error: {self.message}", err=True)


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
    if isinstance(error, ServerUnavailable) and not isinstance(error, ServerNotReady):
        return Unreachable(str(error))
    return Failure(str(error))


class Explained(click.Command):
    """A command whose errors become a line on stderr and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program does."""
        terminal.prepare()
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options that stand before a subcommand."""
        with _visible_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it printed is flushed here, where a closed stdout can still be handled."""
        try:
            with _visible_errors():
                value = super().invoke(ctx)
            sys.stdout.flush()
        except CutOff as error:
            _end_at_once(error)
        except KeyboardInterrupt:
            ctx.exit(BY_SIGNAL + signal.SIGINT)
        except SchedulerError as error:
            raise as_failure(error) from error
        except UnicodeEncodeError as error:  # of an argument or a variable, which Python takes whatever they are
            raise WrongUsage(f"'{visible(error.object)}': expected text in UTF-8") from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly: whoever read our output has seen enough
                raise
            fault = streams.fault_of(error)
            raise (Failure(fault) if fault else as_failure(error)) from error
        return value


@contextlib.contextmanager
def _visible_errors() -> Iterator[None]:
    """What click says of wrong usage has what was typed in it, as it was typed: its secrets go, its controls show."""
    try:
        yield
    except Failure:
        raise
    except click.ClickException as error:
        has_lines = isinstance(error, click.MissingParameter)  # one for each choice
        message = terminal.for_stderr(_without_values(error.format_message()), has_lines=has_lines)
        error.format_message = lambda: message  # type: ignore[method-assign]
        raise


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
