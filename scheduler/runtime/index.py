"""The language index of one snapshot: (src, tgt, features) -> pools -> members.

Pure: no server, no clock.

It is made from the index before it and a snapshot, or the changes. Parts that did not change are shared, so a new
version costs as much as its changes and the groups that they are in. A look-up goes through the shortest list that has
every node that could serve (that of the pair, or of the rarest feature), once; its answer is remembered. A job without
languages matches by features alone; a node without pairs serves only such jobs. `auto` is any source, of a job and of a
node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from scheduler.protocol.deltas import applied, newest_pools
from scheduler.protocol.documents import ANY_LANGUAGE
from scheduler.protocol.snapshot import EMPTY_SNAPSHOT, Delta, Node, Pool, Snapshot, limited_kinds
from scheduler.runtime.intake import JobClass

CLASSES_MAX: Final = 10_000  # answers that are remembered; jobs can name any languages and features
REVISED_MAX: Final = 50_000  # (change, answer) pairs of one version; with more, all answers are made anew when needed
MOVED_MIN: Final = 64  # nodes that may differ from the posted ones in a small fleet,
MOVED_SHARE: Final = 50  # and in a large one: this part of it

Term = tuple[str, ...]
"""What a posting lists nodes for: ("pair", src, tgt), ("target", tgt) or ("feature", name)."""
Posting = dict[str, Node]
_Needs = tuple[str, str, tuple[str, ...], str]
"""src_lang, tgt_lang, features and tenant, on which the members depend."""


class Group(NamedTuple):
    """Nodes that are alike for a job.

    nodes: in no order.
    ids: of the nodes.
    slots: of all together.
    trusted: the nodes that are not suspect, None when all or none are.
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
    """Members after nodes were lost and others came. Pools without any of these are shared."""
    revised = dict(members)
    for pool in dict.fromkeys(node.pool for node in (*lost, *come)):
        before = members.get(pool, _NO_NODES)
        after = _regrouped(
            before, [node for node in lost if node.pool == pool], [node for node in come if node.pool == pool]
        )
        if after.nodes:
            revised[pool] = after
        else:
            revised.pop(pool, None)
    return revised


def _regrouped(before: Group, lost: Sequence[Node], come: Sequence[Node]) -> Group:
    """A group after nodes were lost and others came: as `group` makes it, with less work."""
    gone, joined = frozenset([node.id for node in lost]), frozenset([node.id for node in come])
    nodes = [node for node in before.nodes if node.id not in gone] if gone else list(before.nodes)
    is_alike = before.trusted is None and not any(node.suspect for node in (*nodes[:1], *come))
    nodes.extend(come)
    if not is_alike:
        return group(nodes)
    ids = before.ids if gone == joined else before.ids - gone | joined
    return Group(nodes, ids, before.slots + sum([node.slots for node in come]) - sum([node.slots for node in lost]))


_NO_NODES: Final = group([])


class Index:
    """The index of a snapshot. It does not change; a new version has a new one.

    Args:
        snapshot: of nodes and pools.
        before: the index of an earlier version, whose parts are shared where nothing changed.
    """

    def __init__(self, snapshot: Snapshot = EMPTY_SNAPSHOT, before: Index | None = None) -> None:
        earlier = before.nodes if before is not None else {}
        nodes = {node.id: node for node in snapshot.nodes}
        names = [name for name, node in nodes.items() if earlier.get(name) != node]
        names += [name for name in earlier if name not in nodes]
        self.boots: dict[str, str] = {node.id: node.boot for node in snapshot.nodes}
        self._set_pools(snapshot.pools)
        self._fill(snapshot.version, nodes, before, names)

    def revised(self, deltas: Sequence[Delta]) -> Index:
        """The index after one or more deltas that follow its version."""
        nodes = applied(self.nodes, deltas)
        named = [name for delta in deltas for name in (*delta.removed, *(node.id for node in delta.nodes))]
        names = [name for name in dict.fromkeys(named) if self.nodes.get(name) != nodes.get(name)]
        after = Index.__new__(Index)
        after.boots = dict(self.boots)
        for name in names:
            after.boots.pop(name, None)
            if name in nodes:
                after.boots[name] = nodes[name].boot
        if any(delta.pools is not None for delta in deltas):
            after._set_pools(newest_pools((), deltas))
        else:
            after.pools, after.overrides, after.scopes = self.pools, self.overrides, self.scopes
            after.counted = self.counted
        after._fill(deltas[-1].version, nodes, self, names)
        return after

    # ---- made from the one before ----

    def _set_pools(self, pools: Sequence[Pool]) -> None:
        self.pools: dict[str, Pool] = {pool.id: pool for pool in pools}
        self.overrides: dict[str, str] = {tenant: pool.id for pool in pools for tenant in pool.tenants}
        self.scopes = frozenset(tenant for pool in pools for tenant in pool.match.tenants)
        self.counted = limited_kinds(pools)

    def _fill(self, version: int, nodes: Posting, before: Index | None, names: Sequence[str]) -> None:
        """Share what did not change. names: of all nodes that came, went or changed."""
        self.version = version
        self.nodes = nodes
        self._members: dict[_Needs, Members] = {}
        self._eligible: dict[JobClass, tuple[Node, ...]] = {}
        self._serving: dict[JobClass, frozenset[str]] = {}
        self._postings: Mapping[Term, Posting] = {}
        self._posted: Posting = {}
        self._moved: dict[str, Node | None] = {}
        if before is not None:
            self._postings, self._posted, self._moved = before._postings, before._posted, dict(before._moved)
        self._moved.update((name, nodes.get(name)) for name in names)
        if len(self._moved) > max(MOVED_MIN, len(nodes) // MOVED_SHARE):
            self._post()
        if before is not None and (before.pools is self.pools or _reach(before.pools) == _reach(self.pools)):
            gone = [before.nodes[name] for name in names if name in before.nodes]
            self._share_answers(before, gone, [nodes[name] for name in names if name in nodes])

    def _post(self) -> None:
        """Post the nodes that moved, in copies of the postings that they are in. The cost grows with the fleet, so it
        is done for many nodes at a time. Until then look-ups leave out the nodes that moved, and look at them apart.
        """
        postings = dict(self._postings)
        owned: set[Term] = set()

        def own(term: Term) -> Posting:
            if term not in owned:
                owned.add(term)
                postings[term] = dict(postings.get(term, ()))
            return postings[term]

        for name, node in self._moved.items():
            if name in self._posted:
                for term in _terms(self._posted[name]):
                    del own(term)[name]
            if node is not None:
                for term in _terms(node):
                    own(term)[name] = node
        self._postings = {term: posting for term, posting in postings.items() if posting}
        self._posted, self._moved = self.nodes, {}

    def _share_answers(self, before: Index, gone: Sequence[Node], come: Sequence[Node]) -> None:
        """Share the answers without a changed node, and revise those with one, if that is little work."""
        if (len(gone) + len(come)) * len(before._members) > REVISED_MAX:
            return
        for needs, members in before._members.items():
            fits = [node for node in come if serves(node, *needs[:3]) and self._admits(node.pool, needs[3])]
            lost = [node for node in gone if node.pool in members and node.id in members[node.pool].ids]
            self._members[needs] = _revised(members, lost, fits) if fits or lost else members

        def is_shared(job_class: JobClass) -> bool:
            needs = (job_class.src_lang, job_class.tgt_lang, job_class.features, job_class.tenant)
            return self._members.get(needs) is before._members.get(needs)

        self._eligible = {job_class: nodes for job_class, nodes in before._eligible.items() if is_shared(job_class)}
        self._serving = {job_class: ids for job_class, ids in before._serving.items() if is_shared(job_class)}

    # ---- answers ----

    def scope_of(self, tenant: str) -> str:
        """The tenant, if some pool is for certain tenants alone and for this one too; else empty."""
        return tenant if tenant in self.scopes else ""

    def members(self, src_lang: str, tgt_lang: str, features: tuple[str, ...], tenant: str = "") -> Members:
        """pool -> nodes that can serve the pair with all features. Pools without such a node are missing, and so are
        pools that are for other tenants alone.

        tenant: as `scope_of` returns it.
        """
        needs = (src_lang, tgt_lang, features, tenant)
        members = self._members.get(needs)
        if members is None:
            if len(self._members) >= CLASSES_MAX:
                self._members.clear()
            grouped: dict[str, list[Node]] = {}
            for node in self._shortest(src_lang, tgt_lang, features):
                if serves(node, src_lang, tgt_lang, features) and self._admits(node.pool, tenant):
                    grouped.setdefault(node.pool, []).append(node)
            members = self._members[needs] = {pool: group(nodes) for pool, nodes in grouped.items()}
        return members

    def _shortest(self, src_lang: str, tgt_lang: str, features: tuple[str, ...]) -> Iterable[Node]:
        """The shortest list with every node that could serve, and the nodes that moved. All nodes if nothing is asked
        for.
        """
        lists = [self._postings.get(("feature", feature), {}) for feature in features]
        if src_lang == ANY_LANGUAGE:
            lists.append(self._postings.get(("target", tgt_lang), {}))
        elif src_lang:
            exact = self._postings.get(("pair", src_lang, tgt_lang), {})
            anything = self._postings.get(("pair", ANY_LANGUAGE, tgt_lang))
            lists.append({**exact, **anything} if anything else exact)
        if not lists:
            return self.nodes.values()
        shortest = min(lists, key=len)
        stayed = [node for name, node in shortest.items() if name not in self._moved]
        return stayed + [node for node in self._moved.values() if node is not None]

    def _admits(self, pool: str, tenant: str) -> bool:
        policy = self.pools.get(pool)
        return policy is None or not policy.match.tenants or tenant in policy.match.tenants

    def eligible(self, job_class: JobClass) -> tuple[Node, ...]:
        """Every node that may take jobs of a class: of its pool first, then of the fallback pools in their order."""
        nodes = self._eligible.get(job_class)
        if nodes is None:
            if len(self._eligible) >= CLASSES_MAX:
                self._eligible.clear()
                self._serving.clear()
            members = self.members_of(job_class)
            nodes = self._eligible[job_class] = tuple(
                node for tier in self.tiers(job_class.pool) if tier in members for node in members[tier].nodes
            )
        return nodes

    def members_of(self, job_class: JobClass) -> Members:
        """The members of a class."""
        return self.members(job_class.src_lang, job_class.tgt_lang, job_class.features, job_class.tenant)

    def serves(self, job_class: JobClass, node: str) -> bool:
        """Whether a node may take jobs of a class."""
        if job_class not in self._serving:
            self._serving[job_class] = frozenset(eligible.id for eligible in self.eligible(job_class))
        return node in self._serving[job_class]

    def policy(self, pool: str) -> Pool:
        """The policy of a pool; the default one if the pool is not in the snapshot."""
        return self.pools.get(pool) or Pool(pool)

    def tiers(self, pool: str) -> tuple[str, ...]:
        """A pool and its fallback pools, each once."""
        policy = self.pools.get(pool)
        fallback = policy.fallback if policy else ()
        return tuple(dict.fromkeys((pool, *fallback)))

    def tier_of(self, job_class: JobClass, node: str) -> int:
        """The place of a node's pool among those that may serve a class: 0 for its own, then its fallback pools."""
        tiers = self.tiers(job_class.pool)
        member = self.nodes.get(node)
        return tiers.index(member.pool) if member is not None and member.pool in tiers else len(tiers)


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
    """The terms of the postings that a node is in."""
    pairs = {("pair", source, target) for source, target in node.pairs}
    targets = {("target", target) for _, target in node.pairs}
    return {*pairs, *targets, *(("feature", feature) for feature in node.features)}


def _reach(pools: Mapping[str, Pool]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """What eligibility depends on, by pool."""
    return {pool.id: (pool.fallback, pool.match.tenants) for pool in pools.values()}
