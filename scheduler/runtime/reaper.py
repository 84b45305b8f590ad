"""The reaper shell: lapsed leases end, the dead leave, and delayed jobs that are due go back to the intake.

It works from `capacity`, a slice of the nodes a step, so that what it looks at is what the scripts see. Any number of
reapers may run: each of their scripts is checked and safe to repeat, so they need no leader.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from scheduler import calls, keys, model, words
from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.config import Settings
from scheduler.store.connection import or_each_alone
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.reaper")

SLICE_NODES_MAX: Final = 1_000
DEAF_MS: Final = 1_000
TRIM_EVERY_MS: Final = 60_000
_FIELDS: Final = ("state", "holder", "entry", "session", "tenant", "reply_to")


class Report(msgspec.Struct):
    """What a reaper has done since its start."""

    expired: int = 0
    left: int = 0
    promoted: int = 0


class Reaper:
    """One reaper of a cell.

    Args: store; settings; layout, as stored; name and boot, of this life of the process; clock, its own.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        layout: calls.Layout,
        name: str,
        boot: str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.report = Report()
        self._store = store
        self._settings = settings
        self._layout = layout
        self._name = name
        self._boot = boot
        self._clock = clock
        self._expired: dict[str, int] = {}
        self._position = 0
        self._now_ms = 0
        self._heard_at_ms = float("-inf")
        self._quiet_until_ms = 0.0
        self._beat_due_ms = 0.0
        self._trim_due_ms = 0.0

    async def run_once(self) -> Report:
        """One slice: expire what lapsed, let the dead leave, promote what is due. Returns the counts so far."""
        capacities = await self._store.reads.capacities()
        if await self._listen():
            await self._judge(capacities)
        await self._promote()  # also by one that was deaf: what is due is nobody's silence
        await self._trim()
        return self.report

    async def _judge(self, capacities: Mapping[str, calls.CapacityItem]) -> None:
        nodes = self._slice(sorted(capacities))
        await self._expire(nodes)
        for node in nodes:
            item = capacities[node]
            if item.reason == "dead" and await self._store.cell.leave(node, item.boot, "dead") == "left":
                self.report.left += 1
                logger.info("node %s is gone", node)

    async def _listen(self) -> bool:
        """Ask for the time; whoever was deaf waits one renewal first, so that nodes can renew before they are
        judged.
        """
        asked_at_ms = self._clock.ms()
        if asked_at_ms >= self._beat_due_ms:
            beat = model.ReaperBeat(self._name, self._boot, self._expired)
            self._now_ms = (await self._store.control.beat(model.encode_beat(beat))).now_ms
            self._expired = {}
            self._beat_due_ms = asked_at_ms + self._settings.heartbeat_ms
        else:
            self._now_ms = await self._store.control.time_us() // 1000
        heard_at_ms = self._clock.ms()
        deaf_ms = heard_at_ms - self._heard_at_ms
        self._heard_at_ms = heard_at_ms
        if deaf_ms > DEAF_MS:
            self._quiet_until_ms = heard_at_ms + self._settings.lease_ms / 3
        return heard_at_ms >= self._quiet_until_ms

    def _slice(self, nodes: list[str]) -> list[str]:
        if self._position >= len(nodes):
            self._position = 0
        chosen = nodes[self._position : self._position + SLICE_NODES_MAX]
        self._position += SLICE_NODES_MAX
        return chosen

    async def _expire(self, nodes: list[str]) -> None:
        lapsed = await self._store.reads.lapsed(nodes, self._now_ms, self._settings.batch_max)
        for start in range(0, len(lapsed), self._settings.batch_max):
            batch = lapsed[start : start + self._settings.batch_max]
            records = await self._store.reads.records([job_id for job_id, _ in batch], _FIELDS)
            items = [
                calls.ReleaseItem(
                    job_id=job_id,
                    node=node,
                    partition=_partition(entry),
                    session_id=session or "",
                    tenant_id=tenant or "",
                    reply_to=reply_to or "",
                    token=held.token,
                    verdict="expire",
                    reason="lease_expired",
                    detail=f"the lease on node {node} was not renewed",
                )
                for (job_id, node), (state, holder, entry, session, tenant, reply_to) in zip(
                    batch, records, strict=True
                )
                if state == "reserved" and (held := words.parse_holder(holder)) is not None and held.node == node
            ]
            if items:
                await self._release(items)

    async def _release(self, items: list[calls.ReleaseItem]) -> None:
        answers = await or_each_alone(items, self._call_release, lambda _: calls.NotReleased("broken"))
        for item, answer in zip(items, answers, strict=True):
            if isinstance(answer, calls.Released):
                self.report.expired += 1
                self._expired[item.node] = self._expired.get(item.node, 0) + 1
                logger.warning("job %s: its lease on %s ended, it is %s", item.job_id, item.node, answer.state)

    async def _call_release(self, items: Sequence[calls.ReleaseItem]) -> list[calls.Released | calls.NotReleased]:
        layout = self._layout
        return (await self._store.cell.release(items, layout.retention_ms, layout.dead_retention_ms))[1]

    async def _promote(self) -> None:
        due = await self._store.reads.due(self._now_ms, self._settings.batch_max)
        if not due:
            return
        records = await self._store.reads.records(due, ("entry", "reply_to"))
        items = [
            (job_id, _partition(entry), reply_to or "") for job_id, (entry, reply_to) in zip(due, records, strict=True)
        ]
        answers = await or_each_alone(
            items, lambda batch: self._store.cell.promote(batch, self._layout.retention_ms), lambda _: "broken"
        )
        self.report.promoted += answers.count("promoted")

    async def _trim(self) -> None:
        """Dead entries go with their records, when their retention ends."""
        if self._clock.ms() >= self._trim_due_ms:
            self._trim_due_ms = self._clock.ms() + TRIM_EVERY_MS
            await self._store.cell.forget_dead(self._now_ms - self._layout.dead_retention_ms)


def _partition(entry: str | None) -> int:
    """Of the entry that a record names; what is no entry is of none, and the script finds that out."""
    try:
        return keys.partition_of_entry(entry or "")
    except ValueError:
        return 0
