"""Pure. Decides; never performs. The registry of v2.0: all nodes in memory, and a scan that chooses one of them.

Section 2.2.3 has the registry in the management domain, section 1.1.2 the dispatch path of v2.0 that reaches into it.
Being in memory, it costs no round trip, and it is always up to date here: nobody else reserves.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

import msgspec

from scheduler.protocol.documents import JobDocument
from scheduler.protocol.snapshot import Snapshot

Pair = tuple[str, str]
FULL: Final = 1 - 1e-9
"""Shares are added up, so that of a full node may be a little less than one."""


class Entry(msgspec.Struct, gc=False):
    """A node. use: the share of its slots that is in use as far as this process knows."""

    name: str
    slots: int
    pool: str
    pairs: frozenset[Pair]
    features: frozenset[str]
    healthy: bool
    use: float

    def take(self) -> None:
        """One slot more is in use."""
        self.use += 1 / self.slots

    def correct(self, used: int) -> None:
        """So many slots are in use."""
        self.use = used / self.slots


class Registry:
    """All nodes by their names as Redis returns them, and which pools serve a language pair (`lang_index`)."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._pools: dict[Pair, list[str]] = {}
        for node in snapshot.nodes:
            pairs = frozenset(node.pairs)
            features, use = frozenset(node.features), 0.0 if node.slots else 1.0
            self._entries[node.id.encode()] = Entry(
                node.id, node.slots, node.pool, pairs, features, not node.suspect, use
            )
            for pair in pairs:
                pools = self._pools.setdefault(pair, [])
                if node.pool not in pools:
                    pools.append(node.pool)

    def members(self) -> dict[str, list[bytes]]:
        """pool -> names of its nodes."""
        found: dict[str, list[bytes]] = {}
        for name, entry in self._entries.items():
            found.setdefault(entry.pool, []).append(name)
        return found

    def pools_for(self, job: JobDocument) -> list[str]:
        """The pools that serve the pair of a job, the preferred one first.

        Section 3.2: the preferred pool is decided on the dispatch path, and computed again for each job.
        """
        pools = self._pools.get((job.src_lang, job.tgt_lang), [])
        if len(pools) <= 1:
            return pools
        routing_key = job.routing_key or job.tenant_id or job.session_id
        first = zlib.crc32(routing_key.encode()) % len(pools)
        return pools[first:] + pools[:first]

    def choose(self, members: Iterable[bytes], job: JobDocument) -> Entry | None:
        """The least loaded of the members that are healthy, serve the job and have room; None when none has.

        Section 3.1, step 4, and section 1.1.1: every member is looked at, for every job. The comparison that rules out
        most of them comes first.
        """
        known, pair, features = self._entries.get, (job.src_lang, job.tgt_lang), job.features
        best, least = None, FULL
        for name in members:
            entry = known(name)
            if (
                entry is not None
                and entry.use < least
                and entry.healthy
                and pair in entry.pairs
                and entry.features.issuperset(features)
            ):
                best, least = entry, entry.use
        return best
