"""Pure. Decides; never performs. The language index of one snapshot: (src, tgt, features) -> pools -> members.

Built once a version; an answer for a class is remembered, so that the hot path reads no member list twice. A job
without languages matches by features alone; a node without pairs serves only such jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from scheduler.model import EMPTY_SNAPSHOT, Node, Pool, Snapshot
from scheduler.runtime.intake import Class

Pair = tuple[str, str]
CLASSES_MAX: Final = 10_000  # answers that are remembered; jobs can name any languages and features


class Group(NamedTuple):
    """Nodes that are alike for a job; `ids` answers at once whether a node is one of them.

    trusted: those that are not suspect, None when that makes no difference.
    """

    nodes: Sequence[Node]
    ids: frozenset[str]
    trusted: Group | None = None


Members = Mapping[str, Group]


def group(nodes: Sequence[Node]) -> Group:
    """A group of these nodes."""
    trusted = [node for node in nodes if not node.suspect]
    apart = 0 < len(trusted) < len(nodes)
    return Group(nodes, frozenset(node.id for node in nodes), group(trusted) if apart else None)


class Index:
    """Read-only. Replaced as a whole when a new version arrives."""

    def __init__(self, snapshot: Snapshot = EMPTY_SNAPSHOT) -> None:
        self.version = snapshot.version
        self.nodes: dict[str, Node] = {node.id: node for node in snapshot.nodes}
        self.boots: dict[str, str] = {node.id: node.boot for node in snapshot.nodes}
        self.pools: dict[str, Pool] = {pool.id: pool for pool in snapshot.pools}
        by_pair: dict[Pair, list[Node]] = {}
        for node in snapshot.nodes:
            for pair in set(node.pairs):
                by_pair.setdefault(pair, []).append(node)
        self._by_pair = by_pair
        self._all = list(snapshot.nodes)
        self._members: dict[tuple[str, str, tuple[str, ...]], Members] = {}
        self._eligible: dict[Class, tuple[Node, ...]] = {}
        self._serving: dict[Class, frozenset[str]] = {}

    def members(self, src_lang: str, tgt_lang: str, features: tuple[str, ...]) -> Members:
        """pool -> nodes that can serve the pair with all features. Pools without such a node are missing."""
        key = (src_lang, tgt_lang, features)
        found = self._members.get(key)
        if found is None:
            if len(self._members) >= CLASSES_MAX:
                self._members.clear()
            nodes = self._by_pair.get((src_lang, tgt_lang), []) if src_lang else self._all
            grouped: dict[str, list[Node]] = {}
            for node in nodes:
                if all(feature in node.features for feature in features):
                    grouped.setdefault(node.pool, []).append(node)
            found = self._members[key] = {pool: group(nodes) for pool, nodes in grouped.items()}
        return found

    def eligible(self, wanted: Class) -> tuple[Node, ...]:
        """Every node that may take jobs of a class: of its pool first, then of the fallback pools in their order."""
        found = self._eligible.get(wanted)
        if found is None:
            if len(self._eligible) >= CLASSES_MAX:
                self._eligible.clear()
                self._serving.clear()
            members = self.members(wanted.src_lang, wanted.tgt_lang, wanted.features)
            found = self._eligible[wanted] = tuple(
                node for tier in self.tiers(wanted.pool) if tier in members for node in members[tier].nodes
            )
        return found

    def serves(self, wanted: Class, node: str) -> bool:
        """Whether a node may take jobs of a class."""
        if wanted not in self._serving:
            self._serving[wanted] = frozenset(each.id for each in self.eligible(wanted))
        return node in self._serving[wanted]

    def tiers(self, pool: str) -> tuple[str, ...]:
        """A pool and its fallback pools, each once."""
        policy = self.pools.get(pool)
        fallback = policy.fallback if policy else ()
        return tuple(dict.fromkeys((pool, *fallback)))
