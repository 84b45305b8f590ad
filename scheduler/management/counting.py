"""What a cell counts for limits, as the leader writes it. A limit is in force once every reservation counts for it.

Whatever is placed in a cell counts for a limit of its session (or tenant) in some pool, also in pools without one. So
before a snapshot with the first limit of a kind is published, the cell is told that the kind is counted, and from then
on `reserve` places nothing that does not count; then the reservations that were made before are added. After that the
snapshot is published. Each step may be repeated; a leader that finds them half done begins anew. When the last limit of
a kind is gone, so is the counting; what is held goes with the jobs.

Beside each who counts stands the limit of its pool. When pools get other limits, or none, all of these are written anew
before the snapshot with them is published; one that was placed meanwhile by the old ones has its turn within a lease.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from scheduler.config import Settings
from scheduler.protocol import record_fields
from scheduler.protocol.messages import Counted, CountItem
from scheduler.protocol.snapshot import Pool, limited_kinds, limits_of_pool
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.manager")

NODES_AT_ONCE: Final = 64  # whose reservations are read together
MEMBERS_AT_ONCE: Final = 100  # of each of them, about
PATROL_MS: Final = 1_000
PATROL_NODES_MAX: Final = 128  # of one look: of more than about 1,900 nodes, a round takes longer than a lease


class Counting:
    """What one leader knows of it. kinds: those of limits for which all reservations are counted.

    Args: store; settings; keep, called between calls, so that the lead is not lost meanwhile.
    """

    def __init__(self, store: Store, settings: Settings, keep: Callable[[], Awaitable[None]]) -> None:
        self.kinds: frozenset[str] = frozenset()
        self._cell = store.cell
        self._reads = store.reads
        self._settings = settings
        self._keep = keep
        self._version = 0
        self._is_known = False
        self._patrolled_at_ms = 0.0
        self._turn = 0

    def forget(self) -> None:
        """Trust nothing that is stored: somebody else led, or the server has lost something."""
        self.kinds, self._version, self._is_known = frozenset(), 0, False

    async def look(self, epoch: int, pools: Collection[Pool], version: int, nodes: Collection[str]) -> None:
        """Put right what is stored.

        Args: epoch of the leader; pools of the published snapshot; its version; nodes that are known.
        """
        kinds = limited_kinds(pools)
        stored = await self._reads.counted()
        if not self._is_known:  # it was published only after all were counted
            self.kinds, self._version, self._is_known = stored.kinds & kinds, version if kinds else 0, True
        missing = kinds - stored.kinds
        if missing:
            logger.warning(
                "the server has lost that limits are counted (%s): counting anew", ", ".join(sorted(missing))
            )
            self.kinds -= missing
            await self.add(epoch, pools, nodes)
        if stored != self._counted(kinds):
            await self._cell.count(epoch, self._counted(kinds))
            self.kinds = kinds

    async def add(self, epoch: int, pools: Collection[Pool], nodes: Collection[str]) -> None:
        """From now on every reservation counts for the limits of these pools, also those that were made before.

        Args: as of `look`.
        """
        kinds = limited_kinds(pools)
        counted = self._counted(self.kinds | kinds)
        await self._cell.count(epoch, counted)
        names = {*nodes, *await self._reads.capacities()}
        added = await self._add_earlier(epoch, counted, pools, names)
        while added is None:  # somebody deleted what is counted, so that some were placed uncounted
            added = await self._add_earlier(epoch, counted, pools, names)
        if not kinds <= self.kinds:
            logger.info("limits are counted now (%s), with %d reservations", ", ".join(sorted(kinds)), added)
        self.kinds |= kinds

    async def settle(self, epoch: int, kinds: frozenset[str], version: int) -> None:
        """Other limits are in force.

        Args: epoch of the leader; kinds of which there still is one; version, which is published and has them.
        """
        self._version = version if kinds else 0
        await self._cell.count(epoch, self._counted(kinds))
        self.kinds = kinds

    async def patrol(self, epoch: int, pools: Collection[Pool], nodes: Collection[str], now_ms: float) -> None:
        """Once a second, look at some nodes, so that a round takes a lease if they are not too many: somebody may have
        deleted what counts for a limit.

        Args: epoch of the leader; pools of the published snapshot; nodes that are known; now_ms, monotonic.
        """
        if not self.kinds or now_ms - self._patrolled_at_ms < PATROL_MS:
            return
        self._patrolled_at_ms = now_ms
        names = sorted(nodes)
        size = min(PATROL_NODES_MAX, math.ceil(len(names) * PATROL_MS / self._settings.lease_ms))
        self._turn = self._turn if self._turn < len(names) else 0
        part = names[self._turn : self._turn + size]
        self._turn += size
        added = await self._add_earlier(epoch, self._counted(self.kinds), pools, part)
        if added is None:
            logger.warning("the server has lost what is counted for limits: counting anew")
            await self.add(epoch, pools, nodes)
        elif added:
            logger.warning("%d jobs were lost from those that count for limits; they count again", added)

    def _counted(self, kinds: frozenset[str]) -> Counted:
        return Counted(self._version, kinds)

    async def _add_earlier(
        self, epoch: int, counted: Counted, pools: Collection[Pool], nodes: Collection[str]
    ) -> int | None:
        """Add what is reserved on these nodes. Returns: how many were new; None when what is stored was another one
        meanwhile.
        """
        names, batch_max = sorted(nodes), self._settings.batch_max
        limits = {pool.id: dict(limits_of_pool(pool)) for pool in pools}
        added = 0
        for start in range(0, len(names), NODES_AT_ONCE):
            async for found in self._reads.reserved(names[start : start + NODES_AT_ONCE], MEMBERS_AT_ONCE):
                for first in range(0, len(found), batch_max):
                    count = await self._add_batch(epoch, counted, limits, found[first : first + batch_max])
                    if count is None:
                        return None
                    added += count
                    await self._keep()
        return added

    async def _add_batch(
        self, epoch: int, counted: Counted, limits: Mapping[str, Mapping[str, int]], found: list[tuple[str, str]]
    ) -> int | None:
        """Those whose record is gone are no reservations any more. limits: pool -> kind -> how many may run."""
        records = await self._reads.records([job_id for job_id, _ in found], ("session", "tenant", "policy"))
        items = []
        for (job_id, node), (session, tenant, policy) in zip(found, records, strict=True):
            if session:
                most = limits.get(record_fields.policy_of(policy).pool, {})
                items.append(
                    CountItem(node, job_id, session, tenant or "", most.get("session", 0), most.get("tenant", 0))
                )
        is_changed, answers = await self._cell.count(epoch, counted, items)
        return None if is_changed else answers.count("added")
