"""A manager that is driven step by step, beside an operator."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from scheduler.config import Settings
from scheduler.management import pools
from scheduler.management.commands import Wanted, encode_command
from scheduler.management.manager import Manager
from scheduler.management.pools import PoolDocument
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.protocol.snapshot import Pool
from scheduler.store.store import Store
from tests.system import QUICK

UNHURRIED: Final[Settings] = msgspec.structs.replace(QUICK, publish_ms=60_000, silence_ms=60_000)
"""No snapshot would be published again for a minute."""


class Desk:
    """A manager that is driven step by step, and an operator who writes commands and reads answers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.control = store.control
        self.manager = Manager(store, UNHURRIED, "m1+1")

    async def ask(self, wanted: Wanted | bytes) -> str:
        """Write a command; its id."""
        document = wanted if isinstance(wanted, bytes) else encode_command(wanted)
        added: bytes = await self.store.connection.commands.xadd(self.control.keys.commands, {"command": document})
        return added.decode()

    async def answers(self) -> list[tuple[str, str]]:
        """The id of each answered command, and whether it was accepted or refused."""
        entries = await self.store.reads.entries(self.control.keys.answers)
        return [(fields[b"command"].decode(), next(iter(json.loads(fields[b"answer"])))) for _, fields in entries]

    async def answer(self) -> Any:
        """The newest answer."""
        return json.loads((await self.store.reads.entries(self.control.keys.answers))[-1][1][b"answer"])

    async def beat(self, node: str, **rest: Any) -> None:
        """A heartbeat of a new node."""
        boot = f"{await self.control.time_us()}-test"
        await self.control.beat(encode_beat(NodeBeat(node, boot, 1, **rest)))

    async def placed(self) -> dict[str, str]:
        """The pool of each node of the published snapshot."""
        return {node.id: node.pool for node in (await self.control.read_snapshot()).nodes}

    async def in_force(self) -> dict[str, Pool]:
        """The pools of the published snapshot."""
        return {pool.id: pool for pool in (await self.control.read_snapshot()).pools}

    async def stored(self) -> dict[str, PoolDocument]:
        """The stored configuration."""
        documents, complaints = pools.read(await self.control.read_config())
        assert complaints == []
        return documents

    async def unanswered(self) -> int:
        """Commands that were read and not answered."""
        pending = await self.store.connection.commands.xpending(self.control.keys.commands, "management")
        return int(pending["pending"])
