"""Reads that follow streams, at the pace of the link: one XREAD while that is quick, else by bytes (pace.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from redis.exceptions import TimeoutError as RedisTimeoutError

from scheduler.clock import Clock
from scheduler.config import Settings
from scheduler.store.connection import Connection, TooSlow
from scheduler.store.fast_connection import Cap
from scheduler.store.pace import Pace
from scheduler.store.reads import READ_BLOCK_MS, Part, Reads

logger = logging.getLogger("scheduler.store")

CAP: Final = Cap(s=0.5, bytes=16 * 2**20)
"""Of a reply with whatever is there: above it the rest is not waited for, and is read by bytes."""
HEADS_BYTES: Final = 2**14  # of small bodies that come with heads: these are to be here soon
LOOK_AGAIN_MS: Final = 20  # at streams without anything new, while they are read by bytes: that does not block
_NO_LIMIT: Final = 2**53


class PacedReads:
    """What came after cursors.

    Args: reads; connection; settings; clock, the process's own; bodies_later, an entry that does not fit is told by its
    head at once, and its body is asked for by its id; if not, it is read by the next read, and one above the limits of
    the settings is known by its head alone.
    """

    def __init__(
        self, reads: Reads, connection: Connection, settings: Settings, clock: Clock, *, bodies_later: bool = False
    ) -> None:
        self.pace = Pace()
        self._reads = reads
        self._connection = connection
        self._clock = clock
        self._bodies_later = bodies_later
        self._turn = 0
        sizes = (settings.document_bytes_max, settings.payload_bytes_max, settings.other_bytes_max)
        self._parts_max = (_NO_LIMIT, _NO_LIMIT, _NO_LIMIT) if bodies_later else sizes

    async def read(
        self, cursors: Mapping[str, str], count: int, block_ms: int | None = READ_BLOCK_MS, first: str = ""
    ) -> dict[str, Part]:
        """As `Reads.streams`, with what is known of each stream that has something new, or may have.

        first: the stream whose entries go before those of all others, empty for none.
        Raises: WrongType; with `block_ms` the errors of redis-py, without, it is repeated.
        """
        return await self._connection.explaining(lambda: self._read(cursors, count, block_ms, first), list(cursors))

    async def _read(self, cursors: Mapping[str, str], count: int, block_ms: int | None, first: str) -> dict[str, Part]:
        if not self.pace.is_slow(self._clock.ms()):
            try:
                read = await self._reads.streams(cursors, count, block_ms, CAP)
                return {
                    stream: Part(entries, [], entries[-1][0], len(entries) < count)
                    for stream, entries in read.items()
                    if entries
                }
            except TooSlow as error:
                logger.info("streams are read by bytes for a while: %s", error)
                self.pace.gave_up(self._clock.ms())
            except RedisTimeoutError:
                self.pace.gave_up(self._clock.ms())
                raise

        async def once() -> dict[str, Part]:
            return await self._by_bytes(cursors, count, first, block_ms is not None)

        read_by_bytes = await (once() if block_ms is not None else self._connection.patiently(once))
        if block_ms is not None and all(part.is_end and not part.last_id for part in read_by_bytes.values()):
            await asyncio.sleep(min(block_ms, LOOK_AGAIN_MS) / 1000)
        return {stream: part for stream, part in read_by_bytes.items() if part.last_id or not part.is_end}

    async def _by_bytes(self, cursors: Mapping[str, str], count: int, first: str, is_blocking: bool) -> dict[str, Part]:
        started_ms = self._clock.ms()
        bytes_max = HEADS_BYTES if self._bodies_later else self.pace.bytes_max
        try:
            read = await self._reads.by_bytes(
                self._in_turn(cursors, first),
                count,
                bytes_max,
                self._parts_max,
                self._bodies_later,
                is_blocking,
            )
        except RedisTimeoutError:
            self.pace.timed_out(self._clock.ms())
            raise
        now_ms = self._clock.ms()
        if not self._bodies_later:
            self.pace.read(now_ms, now_ms - started_ms, all(part.is_end and not part.heads for part in read.values()))
        elif any(part.heads for part in read.values()):
            self.pace.gave_up(now_ms)  # what it brings is measured by who reads the bodies
        return read

    def _in_turn(self, cursors: Mapping[str, str], first: str) -> Mapping[str, str]:
        """Another stream first each time, behind the one that always is, or the bodies of one would fill all reads."""
        streams = [stream for stream in cursors if stream != first]
        self._turn += 1
        turned = self._turn % max(1, len(streams))
        order = [*([first] if first in cursors else []), *streams[turned:], *streams[:turned]]
        return {stream: cursors[stream] for stream in order}
