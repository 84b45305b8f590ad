"""Nodes that only beat: once a second each, evenly over the second, written by one task.

Real nodes wait for the answer of each heartbeat. Here nobody does, and what is written was put together before, or this
process would need more of the machine than the scheduler that is measured on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from random import Random
from typing import Any, Final

import hiredis
import msgspec

from scheduler.config import Settings
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.store.connection import Client
from scheduler.store.scripts import load_scripts
from scheduler.store.store import Store

SLICES: Final = 100
"""Writes a second, so that heartbeats come as evenly as those of independent nodes."""
VARIANTS: Final = 4
"""Of what runs on a node: another one each second."""
_pack: Final[Any] = hiredis.pack_command


class Beating:
    """A fleet of nodes that beat. late_ms: how late the latest write was."""

    def __init__(self, store: Store, settings: Settings, nodes: Sequence[NodeBeat], seed: int) -> None:
        self.late_ms = 0.0
        self._store = store
        self._nodes = list(nodes)
        self._random = Random(seed)
        keys, sha = store.control.keys, load_scripts()["beat"].sha
        self._head = ("EVALSHA", sha, 2, keys.heartbeats, keys.dispatchers)
        self._tail = ("", settings.heartbeats_max, settings.silence_ms, "stays")
        self._commands = [self._packed(node) for node in self._nodes]

    async def run(self) -> None:
        """Beat until this is cancelled."""
        client: Client = self._store.connection.commands
        await client.script_load(load_scripts()["beat"].source)
        silent = await client.connection_pool.get_connection()
        try:
            await silent.send_command("CLIENT", "REPLY", "OFF")
            await self._write(silent)
        finally:
            await silent.disconnect()
            await client.connection_pool.release(silent)

    async def _write(self, connection: Any) -> None:
        from_s, number = time.monotonic(), 0
        while True:
            (turn, place), number = divmod(number, SLICES), number + 1
            await connection.send_packed_command(
                [b"".join(each[turn % VARIANTS] for each in self._commands[place::SLICES])]
            )
            ahead_s = from_s + number / SLICES - time.monotonic()
            self.late_ms = max(self.late_ms, -ahead_s * 1_000)
            await asyncio.sleep(max(0.0, ahead_s))

    async def change(self) -> tuple[str, int]:
        """Let a node change its capacity and say so at once. Returns: the node and its slots."""
        place = self._random.randrange(len(self._nodes))
        before = self._nodes[place]
        node = self._nodes[place] = msgspec.structs.replace(before, capacity=before.capacity % 1_000 + 1)
        self._commands[place] = self._packed(node)
        await self._store.control.beat(encode_beat(node))
        return node.node, node.capacity

    def _packed(self, node: NodeBeat) -> list[bytes]:
        """A heartbeat for each variant."""
        running = [self._random.randint(0, node.capacity) for _ in range(VARIANTS)]
        documents = [encode_beat(msgspec.structs.replace(node, running=count)) for count in running]
        return [_pack((*self._head, document, *self._tail)) for document in documents]
