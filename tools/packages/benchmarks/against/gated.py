"""Runs `python -m benchmarks` of a commit, and holds it after each line of progress until it is told to go on.

Run by its path with the environment of that commit, whose own code is on the path; nothing beside this file is
imported. With it two commits take turns round by round, each in a process that goes on: a process for each round would
spend most of the time starting and warming up. Every commit tells its progress with `click.echo` on stderr, after a
round and outside of what it measures, so this works for commits that know nothing of it.

It waits at the start, too. A line on standard input lets it go on; the end of the input ends it.
"""

from __future__ import annotations

import os
import runpy
from typing import IO, Any, Final

import click

ENDED: Final = 143


def hold_after_progress() -> None:
    """Wait, and let every line of progress wait. Processes that are started later get an empty standard input."""
    told = os.fdopen(os.dup(0), "rb", buffering=0)  # of this process alone
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    echo = click.echo

    def wait() -> None:
        if not told.readline():
            raise SystemExit(ENDED)

    def echo_and_wait(
        message: Any = None, file: IO[Any] | None = None, nl: bool = True, err: bool = False, color: bool | None = None
    ) -> None:
        echo(message, file=file, nl=nl, err=err, color=color)
        if err:
            wait()

    click.echo = echo_and_wait
    wait()


if __name__ == "__main__":
    hold_after_progress()
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
