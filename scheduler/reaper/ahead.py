"""Cuts what lies further ahead than its own length: leases and delays from before the server's clock went back.

The scripts know how long each may be, and cut what they are called for. Nobody calls for a lease that ends in an hour,
or a job that is due then, so a reaper looks at all of them when it starts and when it sees that the clock went back: a
slice of the nodes and a page of the delayed jobs a step.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from scheduler.config import Settings
from scheduler.protocol import messages, record_fields
from scheduler.reaper.lapses import partition_of, read_lapses, unknown_lapses
from scheduler.store.reads import Reads

logger = logging.getLogger("scheduler.reaper")

NODES_MAX: Final = 1_000  # of one step
_NOWHERE: Final = ""  # before the name of every node


class Ahead:
    """One reaper's looks.

    Args: reads; settings; expire(endings), promote(job_id, partition and reply_to of each), which cut what is too far
    ahead and change nothing else, for nothing of it is due.
    """

    def __init__(
        self,
        reads: Reads,
        settings: Settings,
        expire: Callable[[list[messages.ReleaseItem]], Awaitable[object]],
        promote: Callable[[list[tuple[str, int, str]]], Awaitable[object]],
    ) -> None:
        self._reads = reads
        self._settings = settings
        self._expire = expire
        self._promote = promote
        self._after_node: str | None = _NOWHERE
        self._delayed_from: int | None = 0

    def look_again(self) -> None:
        """Begin a look at everything."""
        self._after_node, self._delayed_from = _NOWHERE, 0

    async def step(self, nodes: Sequence[str], now_ms: int) -> None:
        """Go on with the look, if there is one. nodes: all, sorted; now_ms: server time."""
        if self._after_node is not None:
            slice_of = [node for node in nodes if node > self._after_node][:NODES_MAX]
            await self._cut_leases(slice_of, now_ms)
            self._after_node = slice_of[-1] if len(slice_of) == NODES_MAX else None
        if self._delayed_from is not None:
            self._delayed_from = await self._cut_delays(self._delayed_from, now_ms)

    async def _cut_leases(self, nodes: Sequence[str], now_ms: int) -> None:
        count, start = self._settings.batch_max, 0
        least_ms = min(self._settings.start_ms, self._settings.lease_ms)
        while nodes:
            found = await self._reads.slots_after(nodes, now_ms + least_ms, start, count)
            for first in range(0, len(found), count):
                batch = found[first : first + count]
                until_ms = {(job_id, node): until for job_id, node, until in batch}
                lapses, unknown = await read_lapses(self._reads, list(until_ms))
                cut = [
                    each.item
                    for each in lapses
                    if each.length_ms and until_ms[each.item.job_id, each.item.node] > now_ms + each.length_ms
                ]
                # Of what no record knows the script cuts only what is longer than any lease of it.
                longest_ms = max(self._settings.start_ms, self._settings.lease_ms)
                far = [each for each in unknown if until_ms[each] > now_ms + longest_ms]
                cut += await unknown_lapses(self._reads, far, longest_ms)
                if cut:
                    logger.warning("the leases of %d jobs lie too far ahead, for the clock went back: cut", len(cut))
                    await self._expire(cut)
            # A lease that was cut may be one place further ahead now: what is skipped by that is near, and harmless.
            full = {node for node in nodes if sum(each[1] == node for each in found) >= count}
            nodes, start = [node for node in nodes if node in full], start + count

    async def _cut_delays(self, start: int, now_ms: int) -> int | None:
        """One page, the latest first. Returns: where the next one begins, None at the end."""
        count = self._settings.batch_max
        found = await self._reads.delayed_after(now_ms, start, count)
        records = await self._reads.records([job_id for job_id, _ in found], ("delay_ms", "entry", "reply_to"))
        cut = [
            (job_id, partition_of(entry), reply_to or "")
            for (job_id, due_ms), (delay_ms, entry, reply_to) in zip(found, records, strict=True)
            if (longest_ms := record_fields.number_of(delay_ms)) is not None and due_ms > now_ms + longest_ms
        ]
        if cut:
            logger.warning("%d delayed jobs are due too late, for the clock went back: cut", len(cut))
            await self._promote(cut)
        # What was cut is behind what was not.
        return start + len(found) - len(cut) if len(found) == count else None
