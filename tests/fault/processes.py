"""Roles as processes of their own, so that they can be killed and paused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from chaos.processes import Process

from scheduler.config import Settings
from tests.system import QUICK

READY_MS_MAX = 30_000
TOLD_CHARACTERS_MAX = 4_000


@asynccontextmanager
async def process(
    url: str, *arguments: str, settings: Settings = QUICK, log: Path | None = None
) -> AsyncIterator[Process]:
    """A role that is ready; killed at the end if it still runs.

    Args: url; arguments, as typed after `scheduler`; settings; log, the file for its stderr, by default our own. What
    fails meanwhile carries the end of the file.
    """
    role = await Process.start(url, arguments, settings, log)
    try:
        async with asyncio.timeout(READY_MS_MAX / 1000):
            await role.ready()
        yield role
    except Exception as error:
        if log is not None:
            error.add_note(f"{log.name}: {log.read_text()[-TOLD_CHARACTERS_MAX:]}")
        raise
    finally:
        await role.close()
