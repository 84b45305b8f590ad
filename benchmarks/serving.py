"""Runs the jobs of a whole fleet in one task: reads every inbox, holds each slot for a while, releases it.

The nodes exist in the books alone (fleet.py), so nobody renews; no reaper runs either, and a lease that has ended
stays valid until somebody takes it. Written down is what inbox entries and the answers of `release` say, by the
server's clock.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from benchmarks.history import Hold, Placed
from benchmarks.measure import BenchmarkFailed
from scheduler import calls, keys
from scheduler.store.reads import StreamEntry
from scheduler.store.store import Store

POLL_S: Final = 0.005
"""Between two looks at the inboxes and at what is due: a slot is held for up to so much longer than was planned."""
READ_COUNT: Final = 1_000


class _Running(NamedTuple):
    """A job in its slot; the one that is due first comes first. due_ms: server time."""

    due_ms: float
    token: int
    from_ms: int
    ending: calls.ReleaseItem


class Serving:
    """The fleet. `run` until it is cancelled.

    Attributes: placed, by job id; holds, of slots that are free again.
    """

    def __init__(self, store: Store, layout: calls.Layout, nodes: Sequence[str]) -> None:
        self.placed: dict[str, Placed] = {}
        self.holds: list[Hold] = []
        self._store = store
        self._layout = layout
        self._node_of = {store.reads.keys.inbox(node): node for node in nodes}
        self._cursors = dict.fromkeys(self._node_of, "0")
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
        while True:
            await self.run_once()
            await asyncio.sleep(POLL_S)

    async def run_once(self) -> None:
        """One look at every inbox, and the release of all that is due."""
        read = await self._store.reads.streams(self._cursors, READ_COUNT, block_ms=None)
        for inbox, entries in read.items():
            self._cursors[inbox] = entries[-1][0]
            for entry in entries:
                if b"job_id" in entry[1]:
                    self._begin(self._node_of[inbox], entry)
        now_ms = time.monotonic() * 1_000 + self._ahead_ms
        due: list[_Running] = []
        while self._running and self._running[0].due_ms <= now_ms:
            due.append(heapq.heappop(self._running))
        size = self._store.settings.batch_max
        for start in range(0, len(due), size):
            await self._release(due[start : start + size])

    def _begin(self, node: str, entry: StreamEntry) -> None:
        identifier, fields = entry
        job_id, inbox_ms, token = fields[b"job_id"].decode(), int(identifier.partition("-")[0]), int(fields[b"token"])
        if job_id in self.placed:
            raise BenchmarkFailed(f"job {job_id} was placed twice: on {self.placed[job_id].node}, then on {node}")
        self.placed[job_id] = Placed(node, inbox_ms, token, fields.get(b"decision", b"").decode())
        ending = calls.ReleaseItem(
            job_id=job_id,
            node=node,
            partition=keys.partition_of_entry(fields[b"entry"].decode()),
            session_id=fields[b"session"].decode(),
            tenant_id=fields[b"tenant"].decode(),
            reply_to=fields[b"reply_to"].decode(),
            token=token,
            verdict="finish",
        )
        heapq.heappush(self._running, _Running(inbox_ms + int(fields[b"payload"]), token, inbox_ms, ending))

    async def _release(self, due: Sequence[_Running]) -> None:
        endings = [each.ending for each in due]
        now_ms, answers = await self._store.cell.release(
            endings, self._layout.retention_ms, self._layout.dead_retention_ms
        )
        for each, answer in zip(due, answers, strict=True):
            if not isinstance(answer, calls.Released):
                raise BenchmarkFailed(f"job {each.ending.job_id} on {each.ending.node} was not released: {answer.why}")
            self.holds.append(Hold(each.ending.node, each.from_ms, now_ms))
