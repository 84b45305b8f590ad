"""Runs commands in this process, and arranges what they find on their server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from click.testing import CliRunner, Result

from scheduler.cli import main
from scheduler.store.store import Store, open_store

T = TypeVar("T")


def on_server(url: str, act: Callable[[Store], Awaitable[T]]) -> T:
    """Arrange something on the server."""

    async def run() -> T:
        async with await open_store(url) as store:
            return await act(store)

    return asyncio.run(run())


def run(*arguments: str, **environment: str) -> Result:
    """Run a command, 80 columns wide."""
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "80", **environment})


def told_url(directory: Path, shown: str) -> str:
    """The URL that the file of a directory tells, of the server whose address was shown without its password."""
    url = (directory / ".scheduler" / "url").read_text().strip()
    assert re.sub("//default:[0-9a-f]{32}@", "//", url) == shown.replace("***@", "")
    return url


def refusal(result: Result) -> tuple[int, str]:
    """Exit code and stderr of a command that printed nothing else."""
    assert result.stdout == ""
    return result.exit_code, result.stderr
