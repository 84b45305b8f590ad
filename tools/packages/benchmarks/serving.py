"""Runs the jobs of a whole fleet in two tasks: one reads the inboxes, the other releases slots that were held for long
enough.

A few inboxes are read at a time. One question for a thousand of them keeps the server busy for milliseconds, and what
is measured would be how long jobs stood behind it; to block on each, as nodes do, takes a core of this machine.

The nodes exist in the books alone (fleet.py), so nobody renews; no reaper runs either, and a lease that has ended
stays valid until somebody takes it. Written down is what inbox entries and the answers of `release` say, by the
server's clock.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from benchmarks.endings import ending
from benchmarks.history import Hold, Placed
from benchmarks.measure import BenchmarkFailed
from scheduler.loop import end_tasks
from scheduler.protocol import messages
from scheduler.store.reads import StreamEntry
from scheduler.store.store import Store

POLL_S: Final = 0.005
"""Between two looks at what is due: a slot is held for up to so much longer than was planned."""
READ_COUNT: Final = 1_000
INBOXES_AT_ONCE: Final = 50
ROUND_S: Final = 0.04
"""In which every inbox is read. When a slot is to be released counts from the entry, not from its reading."""


class _Running(NamedTuple):
    """A job in its slot; the one that is due first comes first. due_ms: server time."""

    due_ms: float
    token: int
    from_ms: int
    ending: messages.ReleaseItem


class Serving:
    """The fleet. `run` until it is cancelled.

    Attributes: placed, by job id; holds, of slots that are free again.
    """

    def __init__(self, store: Store, layout: messages.Layout, nodes: Sequence[str]) -> None:
        self.placed: dict[str, Placed] = {}
        self.holds: list[Hold] = []
        self._store = store
        self._layout = layout
        self._node_of = {store.reads.keys.inbox(node): node for node in nodes}
        self._running: list[_Running] = []
        self._ahead_ms = 0.0  # the server's clock, of ours

    @property
    def running(self) -> int:
        """Slots in use."""
        return len(self._running)

    @property
    def all_holds(self) -> list[Hold]:
        """Also those of slots that are in use."""
        return self.holds + [Hold(each.ending.node, each.from_ms, None) for each in self._running]

    async def run(self) -> None:
        """Serve until cancelled. Raises: BenchmarkFailed."""
        self._ahead_ms = await self._store.control.time_us() / 1_000 - time.monotonic() * 1_000
        tasks = [asyncio.create_task(each) for each in (self._read(), self._end_due())]
        try:
            await asyncio.gather(*tasks)
        finally:
            await end_tasks(tasks)

    async def _read(self) -> None:
        """Begin what arrives, some inboxes after the other."""
        inboxes = list(self._node_of)
        parts = [
            dict.fromkeys(inboxes[start : start + INBOXES_AT_ONCE], "0")
            for start in range(0, len(inboxes), INBOXES_AT_ONCE)
        ]
        for cursors in itertools.cycle(parts):
            for inbox, entries in (await self._store.reads.streams(cursors, READ_COUNT, block_ms=None)).items():
                cursors[inbox] = entries[-1][0]
                for entry in entries:
                    if b"job_id" in entry[1]:
                        self._begin(self._node_of[inbox], entry)
            await asyncio.sleep(ROUND_S / len(parts))

    async def _end_due(self) -> None:
        """Release what is due, again and again."""
        size = self._store.settings.batch_max
        while True:
            now_ms = time.monotonic() * 1_000 + self._ahead_ms
            due: list[_Running] = []
            while self._running and self._running[0].due_ms <= now_ms:
                due.append(heapq.heappop(self._running))
            for start in range(0, len(due), size):
                await self._release(due[start : start + size])
            await asyncio.sleep(POLL_S)

    def _begin(self, node: str, entry: StreamEntry) -> None:
        identifier, fields = entry
        job_id, inbox_ms, ended = fields[b"job_id"].decode(), int(identifier.partition("-")[0]), ending(node, fields)
        if job_id in self.placed:
            raise BenchmarkFailed(f"job {job_id} was placed twice: on {self.placed[job_id].node}, then on {node}")
        self.placed[job_id] = Placed(node, inbox_ms, ended.token, fields.get(b"decision", b"").decode())
        due_ms = inbox_ms + int(fields[b"payload"])
        heapq.heappush(self._running, _Running(due_ms, ended.token, inbox_ms, ended))

    async def _release(self, due: Sequence[_Running]) -> None:
        endings = [each.ending for each in due]
        now_ms, answers = await self._store.cell.release(
            endings, self._layout.retention_ms, self._layout.dead_retention_ms
        )
        for each, answer in zip(due, answers, strict=True):
            if not isinstance(answer, messages.Released):
                raise BenchmarkFailed(f"job {each.ending.job_id} on {each.ending.node} was not released: {answer.why}")
            self.holds.append(Hold(each.ending.node, each.from_ms, now_ms))
