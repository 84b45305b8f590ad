"""Looks at the streams without an owner, inboxes, parked and dead bodies: one that takes no entry is rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scheduler.clock import Clock
from scheduler.protocol.keys import is_absurd
from scheduler.store.cell import Cell
from scheduler.store.reads import Reads
from scheduler.store.rebuilding import rebuild

LOOK_MS: Final = 1_000
INBOXES_MIN: Final = 20  # that one look asks for at least; of more, some have their turn a second later
INBOXES_MAX: Final = 1_000
CALL_MS: Final = 10  # that a call should take, and with it the server: it makes two bodies of each stream


class Streams:
    """A reaper's look at what has no owner: inboxes, parked and dead bodies."""

    def __init__(self, cell: Cell, reads: Reads, clock: Clock) -> None:
        self._cell = cell
        self._reads = reads
        self._clock = clock
        self._due_ms = 0.0
        self._position = 0
        self._at_once = INBOXES_MIN

    async def look(self, nodes: Sequence[str], now_ms: int) -> None:
        """Rebuild what takes no entry any more, once a second; of the inboxes a part, as many as are told fast.

        Args: nodes, all that there are, in an order that stays; now_ms, of the server.
        """
        if self._clock.ms() < self._due_ms:
            return
        self._due_ms = self._clock.ms() + LOOK_MS
        if self._position >= len(nodes):
            self._position = 0
        chosen = nodes[self._position : self._position + self._at_once]
        self._position += self._at_once
        keys = self._cell.keys
        fields = {keys.inbox(node): "assignment" for node in chosen} | {keys.parked: "parked_id", keys.dead: "dead_id"}
        asked_at_ms = self._clock.ms()
        last_ids = await self._reads.last_ids(list(fields))
        is_long = self._clock.ms() - asked_at_ms > CALL_MS
        self._at_once = max(self._at_once // 2, INBOXES_MIN) if is_long else min(2 * self._at_once, INBOXES_MAX)
        for (stream, field), last_id in zip(fields.items(), last_ids, strict=True):
            if is_absurd(last_id, now_ms):
                await rebuild(self._cell, stream, last_id, field)
