"""The roles as they run: each a task that starts, repeats its step and stops in order. Used by every command that
runs one.

`up` and `demo` run all of them in one process; the role commands run one each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from scheduler.config import Settings
from scheduler.errors import ServerRefused
from scheduler.host import Host
from scheduler.loop import Loop, end_tasks
from scheduler.management.manager import Manager
from scheduler.protocol import messages
from scheduler.reaper.reaper import Reaper
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.store.store import Store, open_store
from scheduler.url import ServerUrl

logger = logging.getLogger("scheduler")

MANAGER_EVERY_MS: Final = 50
REAPER_EVERY_MS: Final = 250


class Role:
    """A role that runs. url: of its server. begun: set when its first step has succeeded, or it is refused.

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
        self.begun = asyncio.Event()
        self._is_refused = asyncio.Event()
        store.connection.refused = self._refused
        loop.succeeded = self.has_begun
        self._loop = loop
        self._close = close
        self._store = store
        self._wake = wake
        self._end = end or _nothing
        self._task = asyncio.create_task(loop.run(), name=name)

    def _refused(self, why: ServerRefused) -> None:
        self._loop.refusal = why
        self.begun.set()
        self._is_refused.set()

    def has_begun(self) -> None:
        """From now on the role waits for a server that it can do nothing with."""
        self._store.connection.has_started = True
        self.begun.set()
        self._loop.succeeded = lambda: None

    @property
    def refusal(self) -> ServerRefused | None:
        """Why the server is of no use any more, if that is so."""
        return self._store.connection.refusal

    async def until_refused(self) -> ServerRefused:
        """Wait until the server is of no use any more. Returns: why."""
        await self._is_refused.wait()
        assert self.refusal is not None
        return self.refusal

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


async def start_manager(url: str | ServerUrl, settings: Settings, host: Host | None = None) -> tuple[Role, Manager]:
    """Write or check the layout, and manage or stand by."""
    host = host or Host()
    store = await _open_store(url, settings, host)
    try:
        await store.control.write_layout()
        await store.cell.write_partitions()
    except BaseException:
        await store.close()
        raise
    name, boot = _name_and_boot("manager", host)
    manager = Manager(store, settings, f"{name}+{boot}", host.clock)
    loop = Loop("manager", manager.run_once, MANAGER_EVERY_MS, host.random)
    return Role(name, loop, manager.give_up, store), manager


async def start_dispatcher(
    url: str | ServerUrl, settings: Settings, host: Host | None = None
) -> tuple[Role, Dispatcher]:
    """Wait for the layout, claim partitions, and dispatch."""
    host = host or Host()
    store = await _open_store(url, settings, host)
    try:
        name, boot = _name_and_boot("dispatcher", host)
        dispatcher = Dispatcher(store, settings, await _layout(store), f"{name}+{boot}", host.random, host.clock)
        await dispatcher.open()
    except BaseException:
        await store.close()
        raise
    loop = Loop("dispatcher", dispatcher.run_once, 0, host.random)
    role = Role(name, loop, dispatcher.close, store, dispatcher.wake, dispatcher.end)
    role.has_begun()  # to open it is all that a step asks of the server, and its first one waits for work
    return role, dispatcher


async def start_reaper(url: str | ServerUrl, settings: Settings, host: Host | None = None) -> tuple[Role, Reaper]:
    """Wait for the layout, and reap."""
    host = host or Host()
    store = await _open_store(url, settings, host)
    try:
        name, boot = _name_and_boot("reaper", host)
        reaper = Reaper(store, settings, await _layout(store), name, boot, host.clock)
    except BaseException:
        await store.close()
        raise
    return Role(name, Loop("reaper", reaper.run_once, REAPER_EVERY_MS, host.random), _nothing, store), reaper


def _name_and_boot(role: str, host: Host) -> tuple[str, str]:
    """The name says where a role runs, the boot is this life of it."""
    return f"{role}-{host.name}", host.token_hex(4)


async def _open_store(url: str | ServerUrl, settings: Settings, host: Host) -> Store:
    """A store that waits for its server as long as it takes."""
    store = await open_store(url, settings, None, host.clock, host.connect)
    store.connection.mends = True
    return store


async def _layout(store: Store) -> messages.Layout:
    layout = await store.control.read_layout()
    if layout is None:
        logger.info("waiting for a manager to write the layout")
        layout = await store.layout()
    return layout


async def _nothing() -> None:
    return None
