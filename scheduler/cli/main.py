"""The command `scheduler`: finds the subcommand. Errors become a line on stderr and an exit code, see failures.py.

A subcommand's module is imported when the command is asked for, so that `scheduler --version` does not wait for redis
and rich.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import sys
from collections.abc import Mapping
from typing import Any, Final

import click

from scheduler import __version__
from scheduler.cli import init
from scheduler.console import streams, terminal
from scheduler.console.failures import Explained

COMMANDS: Final[Mapping[str, str]] = {
    "up": "scheduler.cli.up:up",
    "demo": "scheduler.cli.demo:demo",
    "replay": "scheduler.cli.replay:replay",
    "jobs": "scheduler.cli.jobs:jobs",
    "streams": "scheduler.cli.listings:streams",
    "reservations": "scheduler.cli.listings:reservations",
    "nodes": "scheduler.cli.listings:nodes",
    "pools": "scheduler.cli.pools:pools",
    "server": "scheduler.cli.server:server",
    "node": "scheduler.cli.roles:node",
    "manager": "scheduler.cli.roles:manager",
    "dispatcher": "scheduler.cli.roles:dispatcher",
    "reaper": "scheduler.cli.roles:reaper",
}
"""Each command and its home, `module:attribute`, in the order of `--help`."""


class Commands(Explained, click.Group):
    """The subcommands of COMMANDS, imported when they are asked for, and what becomes of their errors."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line: with streams that take what is printed, and below a process that collects orphans."""
        streams.open_closed()
        init.run_in_child_of_first()
        try:
            return super().main(*args, **extra)
        except OSError as error:  # of what click itself prints
            if error.errno != errno.EPIPE:
                with contextlib.suppress(OSError):
                    terminal.write_line(f"Error: {streams.fault_of(error) or error}", err=True)
            sys.exit(1)
        finally:
            streams.settle()

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for a name that is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, and name the nearest one for a name that is none."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"no such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scheduler")
def main() -> None:
    """A session-affine, capacity-exact job scheduler on Redis or Valkey streams.

    \b
    A first look, in two terminals of one directory:
      scheduler up
      scheduler node --id n1 --capacity 4 --pair en:zh
    and jobs from a third:
      echo '{"session_id": "s1", "src_lang": "en", "tgt_lang": "zh"}' \\
        | scheduler jobs submit - --wait

    The server is the one of --redis-url, else of SCHED_REDIS_URL or REDIS_URL, else the one that `up` or `server`
    runs in this directory. Settings come from SCHED_<NAME> variables, such as SCHED_LEASE_MS=20000.

    Exit codes: 0 done, 1 failure, 2 usage, 3 no server or no scheduler there, 130 Ctrl-C.
    """
