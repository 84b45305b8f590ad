"""A whole scheduler in one process, on a real server, with times short enough for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec

from scheduler.config import DEFAULTS, Settings
from scheduler.management.manager import Manager
from scheduler.node.attempts import Observer
from scheduler.node.node import Node
from scheduler.producer import Producer
from scheduler.reaper.reaper import Reaper
from scheduler.roles import Role, start_dispatcher, start_manager, start_reaper
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.store.store import Store, open_store

QUICK: Settings = msgspec.structs.replace(
    DEFAULTS,
    heartbeat_ms=100,
    silence_ms=600,
    start_ms=500,
    lease_ms=900,
    margin_ms=100,
    backoff_ms=10,
    publish_ms=20,
    partition_lease_ms=900,
    leader_lease_ms=900,
)
HASTY: Settings = msgspec.structs.replace(QUICK, no_node_grace_ms=300)
"""Where it is the point that no node serves a job. Elsewhere a node that starts late must not cost one."""
PATIENCE_MS = 20_000


class System:
    """The roles that run, and what tests ask of them."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        self.settings = settings
        self.nodes: dict[str, Node] = {}
        self.store: Store
        self.producer: Producer
        self.managers: list[tuple[Role, Manager]] = []
        self.dispatchers: list[tuple[Role, Dispatcher]] = []
        self.reapers: list[tuple[Role, Reaper]] = []

    @property
    def dispatcher(self) -> Dispatcher:
        """The newest dispatcher."""
        return self.dispatchers[-1][1]

    async def add_node(
        self,
        node_id: str,
        handler: Callable[[Any], Any],
        *,
        capacity: int = 4,
        pairs: Iterable[tuple[str, str]] = (("en", "zh"),),
        features: Iterable[str] = (),
        pool: str = "",
        observer: Observer | None = None,
    ) -> Node:
        """Start a node and wait until placement sees it."""
        node = Node(
            self.url,
            node_id,
            capacity=capacity,
            handler=handler,
            pairs=pairs,
            features=features,
            pool=pool,
            settings=self.settings,
            observer=observer,
        )
        self.nodes[node_id] = await node.__aenter__()
        await self.until(lambda: self._sees(node))
        return node

    def _sees(self, node: Node) -> bool:
        seen = self.dispatcher.snapshots.index.nodes.get(node.node_id)
        return seen is not None and seen.boot == node.boot

    async def remove_node(self, node_id: str) -> None:
        """Drain a node and stop it."""
        await self.nodes.pop(node_id).__aexit__()

    async def until(self, true: Callable[[], bool | Awaitable[bool]]) -> None:
        """Wait until something is true that nobody signals."""
        async with asyncio.timeout(PATIENCE_MS / 1000):
            while True:
                answer = true()
                if await answer if isinstance(answer, Awaitable) else answer:
                    return
                await self.store.control.time_us()

    async def used(self) -> int:
        """Slots in use on all nodes."""
        nodes = list(await self.store.reads.capacities())
        return sum(await self.store.reads.used(nodes))

    async def stop(self) -> None:
        """Stop everything, nodes first; a failure of one keeps no other one running."""
        roles = [role for role, _ in (*self.dispatchers, *self.reapers, *self.managers)]
        async with AsyncExitStack() as stack:
            for stop in reversed([*(node.__aexit__ for node in self.nodes.values()), *(role.stop for role in roles)]):
                stack.push_async_callback(stop)


@asynccontextmanager
async def running(url: str, settings: Settings = QUICK, *, dispatcher: bool = True) -> AsyncIterator[System]:
    """A system with one manager, dispatcher and reaper, and no node yet."""
    system = System(url, settings)
    try:
        system.managers.append(await start_manager(url, settings))
        if dispatcher:
            system.dispatchers.append(await start_dispatcher(url, settings))
        system.reapers.append(await start_reaper(url, settings))
    except BaseException:
        await system.stop()
        raise
    async with await open_store(url, settings) as store, Producer(url, settings=settings) as producer:
        system.store, system.producer = store, producer
        try:
            yield system
        finally:
            await system.stop()
