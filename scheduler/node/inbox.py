"""What a node reads of its inbox: new entries, bodies that did not come with them, and when to read it all again."""

from __future__ import annotations

import logging
from typing import Final

import msgspec
from redis.exceptions import RedisError

from scheduler.clock import Clock
from scheduler.errors import ServerUnavailable, WrongType
from scheduler.node.bodies import LateBodies
from scheduler.node.handlers import Job
from scheduler.protocol import messages
from scheduler.store.reads import READ_BLOCK_MS, is_behind
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.node")

INBOX_COUNT: Final = 128
NEVER_MS: Final = float("-inf")
COMPARE_MS: Final = 1_000  # after so long without an entry the cursor is compared with the inbox


class InboxEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry, or the head of one.

    id: of the stream.
    fields: as they are stored.
    made_after_ms: own time when the entry was not there yet.
    head: of an entry whose body comes later.
    """

    id: str
    fields: dict[bytes, bytes]
    made_after_ms: float
    head: messages.Head | None = None


class Inbox:
    """Args: store; node_id; clock, the process's own.

    late: assignments whose bodies are still to be read.
    is_read_to_end: whether the last read brought all that there was, and no body is missing.
    """

    def __init__(self, store: Store, node_id: str, clock: Clock) -> None:
        self._stream = store.cell.keys.inbox(node_id)
        self._store = store
        self._node_id = node_id
        self._clock = clock
        self._paced = store.paced(bodies_later=True)
        self.late = LateBodies(store.reads, self._stream, self._paced.pace, clock)
        self.is_read_to_end = False
        self._cursor = "0"
        self._life = store.connection.life
        self._compared_at_ms = 0.0
        self._read_to_end_ms = clock.ms()

    async def must_begin_again(self) -> bool:
        """Whether the inbox is not the one that was read: another server process answers, or nothing came for a while
        and its ids end below the cursor. It is read from its start then, and what runs is to be renewed.
        """
        is_other = self._store.connection.life != self._life
        if not is_other and self._clock.ms() - self._compared_at_ms < COMPARE_MS:
            return False
        last_id = (await self._store.reads.last_ids([self._stream]))[0]
        self._compared_at_ms = self._clock.ms()
        is_other = self._store.connection.life != self._life
        if is_other:
            self._life = self._store.connection.life
            logger.warning("%s: another server process answers: the inbox is read from its start", self._node_id)
        elif is_behind(last_id, self._cursor):
            logger.warning(
                "%s ends at %s, and was read up to %s: %s; it is read from its start",
                self._stream, last_id or "nothing", self._cursor, await self._store.reads.why_behind(self._cursor),
            )  # fmt: skip
        else:
            return False
        self._cursor = "0"
        self._read_to_end_ms = NEVER_MS
        self.late.clear()
        return True

    async def read(self) -> list[InboxEntry]:
        """What is new. Blocks, unless bodies are still to be read: control words and renewals do not wait for these."""
        block_ms = None if self.late else READ_BLOCK_MS
        sent_ms, after_ms = self._clock.ms(), self._read_to_end_ms
        try:
            read = await self._paced.read({self._stream: self._cursor}, INBOX_COUNT, block_ms)
        except RedisError as error:
            self._compared_at_ms = NEVER_MS
            raise ServerUnavailable(f"reading the inbox failed: {error}") from error
        except WrongType:
            self._compared_at_ms = NEVER_MS
            raise
        part = read.get(self._stream)
        entries = []
        if part is not None:
            if part.last_id:
                self._cursor = part.last_id
                self._compared_at_ms = self._clock.ms()  # what comes after the cursor shows that it is right
            entries = [InboxEntry(identifier, fields, after_ms) for identifier, fields in part.entries]
            entries += [InboxEntry(head.id, head.fields, after_ms, head) for head in part.heads]
        self.is_read_to_end = part is None or part.is_end
        if self.is_read_to_end:
            self._read_to_end_ms = sent_ms
        return entries

    async def read_late(self) -> list[tuple[Job, InboxEntry | None]]:
        """Some of the bodies that are still to be read; None for one that is gone: somebody has ended its lease."""
        return [
            (job, InboxEntry(job.inbox_id, body, NEVER_MS) if body is not None else None)  # its lease is known
            for job, body in await self.late.read()
        ]
