"""The roles as they run: each a task that starts, repeats its step and stops in order. Used by every command that
runs one.

`up` and `demo` run all of them in one process; the role commands run one each.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from scheduler import calls
from scheduler.config import Settings
from scheduler.loop import Loop, end_tasks
from scheduler.management.manager import Manager
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.runtime.reaper import Reaper
from scheduler.store.store import Store, open_store

logger = logging.getLogger("scheduler")

MANAGER_EVERY_MS: Final = 50
REAPER_EVERY_MS: Final = 250


def process_name(role: str) -> tuple[str, str]:
    """(name, boot) of this process in a role: the name says where it runs, the boot is this life of it."""
    host = "".join(letter for letter in socket.gethostname() if letter.isalnum() or letter in "-.")[:32] or "host"
    return f"{role}-{host}-{os.getpid()}", secrets.token_hex(4)


class Role:
    """A role that runs. url: of its server.

    Args: name; loop; close, hands over what is held; store, which is the role's own; wake, ends a step that waits; end,
    ends what runs beside the loop, without a word to the server.
    """

    def __init__(
        self,
        name: str,
        loop: Loop,
        close: Callable[[], Awaitable[None]],
        store: Store,
        wake: Callable[[], None] = lambda: None,
        end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.url = store.connection.url
        self._loop = loop
        self._close = close
        self._store = store
        self._wake = wake
        self._end = end or _nothing
        self._task = asyncio.create_task(loop.run(), name=name)

    async def stop(self) -> None:
        """Finish the step that is under way, hand over what is held, and disconnect."""
        self._loop.stop()
        self._wake()
        try:
            await asyncio.gather(self._task, return_exceptions=True)
            await self._close()
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """End at once and disconnect: what is held is free when its lease ends. Does nothing after `stop`."""
        try:
            await end_tasks([self._task])
            await self._end()
        finally:
            await self._store.close()


async def start_manager(url: str, settings: Settings) -> tuple[Role, Manager]:
    """Write or check the layout, and manage or stand by."""
    store = await open_store(url, settings, patience_ms=None)
    try:
        await store.control.write_layout()
    except BaseException:
        await store.close()
        raise
    name, boot = process_name("manager")
    manager = Manager(store, settings, f"{name}+{boot}")
    return Role(name, Loop("manager", manager.run_once, MANAGER_EVERY_MS), manager.give_up, store), manager


async def start_dispatcher(url: str, settings: Settings) -> tuple[Role, Dispatcher]:
    """Wait for the layout, claim partitions, and dispatch."""
    store = await open_store(url, settings, patience_ms=None)
    try:
        name, boot = process_name("dispatcher")
        dispatcher = Dispatcher(store, settings, await _layout(store), f"{name}+{boot}")
        await dispatcher.open()
    except BaseException:
        await store.close()
        raise
    loop = Loop("dispatcher", dispatcher.run_once, 0)
    return Role(name, loop, dispatcher.close, store, dispatcher.wake, dispatcher.end), dispatcher


async def start_reaper(url: str, settings: Settings) -> tuple[Role, Reaper]:
    """Wait for the layout, and reap."""
    store = await open_store(url, settings, patience_ms=None)
    try:
        name, boot = process_name("reaper")
        reaper = Reaper(store, settings, await _layout(store), name, boot)
    except BaseException:
        await store.close()
        raise
    return Role(name, Loop("reaper", reaper.run_once, REAPER_EVERY_MS), _nothing, store), reaper


async def _layout(store: Store) -> calls.Layout:
    layout = await store.control.read_layout()
    if layout is None:
        logger.info("waiting for a manager to write the layout")
        layout = await store.layout()
    return layout


async def _nothing() -> None:
    return None
