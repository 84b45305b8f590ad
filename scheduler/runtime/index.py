"""Pure. Decides; never performs. The language index of one snapshot: (src, tgt, features) -> pools -> members.

Made from the index before it: what no change touched is shared, so that a new version costs as much as its change and
the groups in which that stands. A look-up walks the shortest list that has all who could serve (those of the pair, or
of the rarest feature), once; its answer is remembered, so that the hot path reads no member list twice. A job without
languages matches by features alone; a node without pairs serves only such jobs. `auto` is any source, of a job and of
a node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from scheduler.model import ANY_LANGUAGE, EMPTY_SNAPSHOT, Node, Pool, Snapshot
from scheduler.runtime.intake import Class

CLASSES_MAX: Final = 10_000  # answers that are remembered; jobs can name any languages and features
REVISED_MAX: Final = 50_000  # (change, answer) pairs of one version; with more, all answers are made anew when needed

Term = tuple[str, ...]
"""What a posting is of: ("pair", src, tgt), ("target", tgt) or ("feature", name)."""
Posting = dict[str, Node]
_Needs = tuple[str, str, tuple[str, ...], str]
"""src_lang, tgt_lang, features, tenant: what members depend on."""


class Group(NamedTuple):
    """Nodes that are alike for a job; `ids` answers at once whether a node is one of them. slots: of all together.

    trusted: those that are not suspect, None when that makes no difference.
    """

    nodes: Sequence[Node]
    ids: frozenset[str]
    slots: int
    trusted: Group | None = None


Members = Mapping[str, Group]


def group(nodes: Sequence[Node]) -> Group:
    """A group of these nodes."""
    trusted = [node for node in nodes if not node.suspect]
    apart = 0 < len(trusted) < len(nodes)
    ids = frozenset([node.id for node in nodes])
    return Group(nodes, ids, sum([node.slots for node in nodes]), group(trusted) if apart else None)


def _revised(members: Members, lost: Sequence[Node], come: Sequence[Node]) -> Members:
    """Members without some nodes and with others; pools in which none of them is are shared."""
    ids = {node.id for node in lost}
    revised = dict(members)
    for pool in {node.pool for node in (*lost, *come)}:
        stay = [node for node in members[pool].nodes if node.id not in ids] if pool in members else []
        nodes = stay + [node for node in come if node.pool == pool]
        if nodes:
            revised[pool] = group(nodes)
        else:
            revised.pop(pool, None)
    return revised


class Index:
    """Read-only. Replaced as a whole when a new version arrives.

    Args: snapshot; before, the index of an earlier version, whose parts are shared where nothing changed.
    """

    def __init__(self, snapshot: Snapshot = EMPTY_SNAPSHOT, before: Index | None = None) -> None:
        self.version = snapshot.version
        self.nodes: Posting = {node.id: node for node in snapshot.nodes}
        self.boots: dict[str, str] = {node.id: node.boot for node in snapshot.nodes}
        self.pools: dict[str, Pool] = {pool.id: pool for pool in snapshot.pools}
        self.overrides: dict[str, str] = {tenant: pool.id for pool in snapshot.pools for tenant in pool.tenants}
        self._scopes = frozenset(tenant for pool in snapshot.pools for tenant in pool.match.tenants)
        self._postings: dict[Term, Posting] = {}
        self._members: dict[_Needs, Members] = {}
        self._eligible: dict[Class, tuple[Node, ...]] = {}
        self._serving: dict[Class, frozenset[str]] = {}
        self._post(before)

    # ---- made from the one before ----

    def _post(self, before: Index | None) -> None:
        """Share what did not change, and post the nodes that did."""
        earlier = before.nodes if before is not None else {}
        gone = [node for name, node in earlier.items() if self.nodes.get(name) != node]
        come = [node for name, node in self.nodes.items() if earlier.get(name) != node]
        if before is not None:
            self._postings = dict(before._postings)
        owned: set[Term] = set()
        for node in gone:
            for term in _terms(node):
                self._own(term, owned).pop(node.id)
        for node in come:
            for term in _terms(node):
                self._own(term, owned)[node.id] = node
        for term in owned:
            if not self._postings[term]:
                del self._postings[term]
        if before is not None and _reach(before.pools) == _reach(self.pools):
            self._share_answers(before, gone, come)

    def _own(self, term: Term, owned: set[Term]) -> Posting:
        """A posting that may be changed: a copy of the shared one."""
        if term not in owned:
            owned.add(term)
            self._postings[term] = dict(self._postings.get(term, ()))
        return self._postings[term]

    def _share_answers(self, before: Index, gone: Sequence[Node], come: Sequence[Node]) -> None:
        """Answers in which no changed node stands are still right; the others are revised, if that is little work."""
        if (len(gone) + len(come)) * len(before._members) > REVISED_MAX:
            return
        for needs, found in before._members.items():
            fits = [node for node in come if serves(node, *needs[:3]) and self._admits(node.pool, needs[3])]
            lost = [node for node in gone if node.pool in found and node.id in found[node.pool].ids]
            self._members[needs] = _revised(found, lost, fits) if fits or lost else found

        def is_shared(wanted: Class) -> bool:
            needs = (wanted.src_lang, wanted.tgt_lang, wanted.features, wanted.tenant)
            return self._members.get(needs) is before._members.get(needs)

        self._eligible = {wanted: found for wanted, found in before._eligible.items() if is_shared(wanted)}
        self._serving = {wanted: found for wanted, found in before._serving.items() if is_shared(wanted)}

    # ---- answers ----

    def scope_of(self, tenant: str) -> str:
        """The tenant, if some pool is for certain tenants alone and for this one too; else empty."""
        return tenant if tenant in self._scopes else ""

    def members(self, src_lang: str, tgt_lang: str, features: tuple[str, ...], tenant: str = "") -> Members:
        """pool -> nodes that can serve the pair with all features. Pools without such a node are missing, and so are
        those that are for other tenants alone. tenant: of scope_of.
        """
        needs = (src_lang, tgt_lang, features, tenant)
        found = self._members.get(needs)
        if found is None:
            if len(self._members) >= CLASSES_MAX:
                self._members.clear()
            grouped: dict[str, list[Node]] = {}
            for node in self._shortest(src_lang, tgt_lang, features):
                if serves(node, src_lang, tgt_lang, features) and self._admits(node.pool, tenant):
                    grouped.setdefault(node.pool, []).append(node)
            found = self._members[needs] = {pool: group(nodes) for pool, nodes in grouped.items()}
        return found

    def _shortest(self, src_lang: str, tgt_lang: str, features: tuple[str, ...]) -> Iterable[Node]:
        """The shortest list that has every node that could serve; of all nodes only where nothing is asked for."""
        lists = [self._postings.get(("feature", feature), {}) for feature in features]
        if src_lang == ANY_LANGUAGE:
            lists.append(self._postings.get(("target", tgt_lang), {}))
        elif src_lang:
            exact = self._postings.get(("pair", src_lang, tgt_lang), {})
            anything = self._postings.get(("pair", ANY_LANGUAGE, tgt_lang))
            lists.append({**exact, **anything} if anything else exact)
        return min(lists, key=len).values() if lists else self.nodes.values()

    def _admits(self, pool: str, tenant: str) -> bool:
        policy = self.pools.get(pool)
        return policy is None or not policy.match.tenants or tenant in policy.match.tenants

    def eligible(self, wanted: Class) -> tuple[Node, ...]:
        """Every node that may take jobs of a class: of its pool first, then of the fallback pools in their order."""
        found = self._eligible.get(wanted)
        if found is None:
            if len(self._eligible) >= CLASSES_MAX:
                self._eligible.clear()
                self._serving.clear()
            members = self.members_of(wanted)
            found = self._eligible[wanted] = tuple(
                node for tier in self.tiers(wanted.pool) if tier in members for node in members[tier].nodes
            )
        return found

    def members_of(self, wanted: Class) -> Members:
        """The members of a class."""
        return self.members(wanted.src_lang, wanted.tgt_lang, wanted.features, wanted.tenant)

    def serves(self, wanted: Class, node: str) -> bool:
        """Whether a node may take jobs of a class."""
        if wanted not in self._serving:
            self._serving[wanted] = frozenset(each.id for each in self.eligible(wanted))
        return node in self._serving[wanted]

    def policy(self, pool: str) -> Pool:
        """The policy of a pool; of one that is not in the snapshot, that of a pool of which nobody said anything."""
        return self.pools.get(pool) or Pool(pool)

    def tiers(self, pool: str) -> tuple[str, ...]:
        """A pool and its fallback pools, each once."""
        policy = self.pools.get(pool)
        fallback = policy.fallback if policy else ()
        return tuple(dict.fromkeys((pool, *fallback)))


def serves(node: Node, src_lang: str, tgt_lang: str, features: tuple[str, ...]) -> bool:
    """Whether a node can serve a pair with all features."""
    if any(feature not in node.features for feature in features):
        return False
    if not src_lang:
        return True
    return any(
        target == tgt_lang and (source in (src_lang, ANY_LANGUAGE) or src_lang == ANY_LANGUAGE)
        for source, target in node.pairs
    )


def _terms(node: Node) -> set[Term]:
    """The postings that a node stands in."""
    pairs = {("pair", source, target) for source, target in node.pairs}
    targets = {("target", target) for _, target in node.pairs}
    return {*pairs, *targets, *(("feature", feature) for feature in node.features)}


def _reach(pools: Mapping[str, Pool]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """What eligibility depends on, of each pool."""
    return {pool.id: (pool.fallback, pool.match.tenants) for pool in pools.values()}
