"""Chooses the nodes that a job is tried on: job, binding and snapshot give a few candidates, best first.

Pure: no server, no clock.

A session keeps its pool while its language pair is unchanged and the pool can serve it. Otherwise the pool is that of
its tenant, or is found by weighted rendezvous hashing of the routing key (Thaler and Ravishankar 1998; weights by
-w / ln h, Schindelhauer and Schomaker 2005). Within the pool the strategy chooses the nodes (strategies.py), from a
sample of the less loaded ones (sampler.py). `reserve` decides by the slots really held, and stores the reason when a
job is not where its session is bound.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

import msgspec

from scheduler.protocol.snapshot import Node, Pool
from scheduler.runtime.index import Group, Index, Members, group
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.placement import strategies
from scheduler.runtime.placement.sampler import SPARE, Loads, Sampler
from scheduler.session.bindings import Binding

Groups = tuple[tuple[str, ...], ...]
_HASH_RANGE: Final = float(2**64)


class Placement(msgspec.Struct, frozen=True, gc=False):
    """Candidates for one job: the freest of the first group that has room is taken.

    See messages.ReserveItem.

    groups: of nodes, best first.
    bound: the node that the session is bound to, when its slots at the decision are stored with the reason.
    why: one word, should the job go elsewhere.
    preferred: the node that the job asks for.
    note: why it cannot go there.
    keeps: the session stays bound to `bound` if the job goes elsewhere for this reason.
    """

    groups: Groups
    bound: str = ""
    why: str = "new"
    preferred: str = ""
    note: str = ""
    keeps: str = ""

    @property
    def candidates(self) -> tuple[str, ...]:
        """All candidates, best first."""
        return tuple([name for group in self.groups for name in group])


class SessionAffinity(msgspec.Struct, frozen=True, gc=False):
    """Whether a job is tried where its session is bound.

    node: that the session is bound to, "" for none that matters.
    first: whether the job is tried there before all other nodes.
    why: one word, should the job go elsewhere.
    """

    node: str
    first: bool
    why: str


_NEW: Final = SessionAffinity("", False, "new")


# ---- the pool -------------------------------------------------------------------------------------------------------


def classify(job: Job, binding: Binding | None, index: Index) -> JobClass:
    """The class of a job by a snapshot: what it needs, and the pool that its session prefers."""
    document, features = job.document, job.features
    tenant = index.scope_of(document.tenant_id)
    members = index.members(document.src_lang, document.tgt_lang, features, tenant)
    pool = preferred_pool(job, binding, members, index.overrides)
    return JobClass(document.src_lang, document.tgt_lang, features, pool, tenant)


def preferred_pool(job: Job, binding: Binding | None, members: Members, overrides: Mapping[str, str]) -> str:
    """The pool of a session: the bound one while it fits and can serve, else that of its tenant, else by the routing
    key; "" when none can serve.

    overrides: tenant -> pool.
    """
    if binding is not None and binding.pool in members and binding.fits(job.src_lang, job.tgt_lang):
        return binding.pool
    if overrides.get(job.tenant_id) in members:
        return overrides[job.tenant_id]
    if len(members) <= 1:
        return next(iter(members), "")
    return rendezvous(job.routing_key, {pool: nodes.slots for pool, nodes in members.items()})


def rendezvous(key: str, weights: Mapping[str, int]) -> str:
    """The name with the highest weighted score for a key. A name that comes or goes moves only its own keys."""

    def score(name: str) -> tuple[float, str]:
        digest = hashlib.blake2b(f"{key} {name}".encode(), digest_size=8).digest()
        drawn = (int.from_bytes(digest) + 0.5) / _HASH_RANGE
        return -weights[name] / math.log(drawn), name

    return max(weights, key=score)


# ---- the nodes ------------------------------------------------------------------------------------------------------


def place(job: Job, job_class: JobClass, binding: Binding | None, index: Index, sampler: Sampler) -> Placement | None:
    """Candidates of the preferred pool. Before them the node that the job asks for and the one that its session is
    bound to, in any eligible pool.

    Args:
        job: to be placed.
        job_class: from `classify`.
        binding: of the session.
        index: of the snapshot.
        sampler: of the call.
    Returns: None when no node of the pool can serve the job.
    """
    nodes = index.members_of(job_class).get(job_class.pool)
    if nodes is None:
        return None
    bound = session_affinity(job, job_class, binding, index)
    preferred, note = preferred_node(job, job_class, index) if job.preferred_node else ("", "")
    nodes = nodes.trusted or nodes
    policy = index.policy(job_class.pool)
    first_groups = first_choices(preferred, bound)
    avoid = _avoided(job, nodes)
    chosen = strategies.FUNCTIONS[policy.strategy](
        bound.node, avoid, preferred, nodes, sampler, policy.candidates - len(first_groups)
    )
    return _placement((*first_groups, chosen) if chosen else first_groups, bound, preferred, note, policy)


def place_among(
    job: Job,
    job_class: JobClass,
    binding: Binding | None,
    index: Index,
    names: Sequence[str],
    loads: Loads,
    random: Random,
) -> Placement | None:
    """Every named node that may take the job, those of the preferred pool before those of its fallback pools. Before
    them the node that the job asks for and the one that its session is bound to, named or not.

    Room is scarce, so nodes that the strategy or an earlier failure would rather avoid are candidates too, the last.

    Returns: None when no named node may take the job.
    """
    bound = session_affinity(job, job_class, binding, index)
    preferred, note = preferred_node(job, job_class, index)
    policy = index.policy(job_class.pool)
    sampler = Sampler(loads, random)
    by_tier: dict[str, list[Node]] = {}
    for name in names:
        node = index.nodes.get(name)
        if node is not None and index.serves(job_class, name):
            by_tier.setdefault(node.pool, []).append(node)
    if not by_tier:
        return None
    groups = first_choices(preferred, bound)
    for tier in index.tiers(job_class.pool):
        if tier in by_tier:
            named = group(by_tier[tier])
            nodes = named.trusted or named
            count = len(nodes.nodes) + SPARE
            avoid = _avoided(job, nodes)
            groups += (strategies.FUNCTIONS[policy.strategy](bound.node, avoid, preferred, nodes, sampler, count),)
            groups += (tuple(sorted(named.ids)),)
    return _placement(_each_once(groups), bound, preferred, note, policy)


def session_affinity(job: Job, job_class: JobClass, binding: Binding | None, index: Index) -> SessionAffinity:
    """Whether a job is tried where its session is bound, and why it would go elsewhere."""
    if binding is None:
        return _NEW
    node = index.nodes.get(binding.node)
    policy = index.policy(job_class.pool)
    if policy.strategy != "affinity":
        return SessionAffinity(binding.node if node is not None else "", False, "strategy")
    if not binding.fits(job.src_lang, job.tgt_lang):
        return SessionAffinity("", False, "pair")
    if node is None:
        return SessionAffinity("", False, f"gone {binding.node}")
    if not index.serves(job_class, node.id):
        return SessionAffinity("", False, "unfit" if node.pool in index.tiers(job_class.pool) else "pool")
    if node.pool != job_class.pool and policy.pressure == "return":
        return SessionAffinity("", False, "pool")
    if node.id == job.avoid and len(index.eligible(job_class)) > 1:
        return SessionAffinity(node.id, False, "avoid")
    if node.suspect and index.members_of(job_class)[node.pool].trusted is not None:
        return SessionAffinity(node.id, False, "suspect")
    return SessionAffinity(node.id, True, "full")


def together(job_class: JobClass, before: JobClass, binds: bool) -> str:
    """Why a job is not tried where an earlier job of its session goes that is in the same call.

    Args:
        job_class: of the job.
        before: the class of the earlier job.
        binds: whether the strategy binds sessions to nodes.
    """
    if not binds:
        return "strategy"
    same_pair = (job_class.src_lang, job_class.tgt_lang) == (before.src_lang, before.tgt_lang)
    return "together" if same_pair else "pair"


def preferred_node(job: Job, job_class: JobClass, index: Index) -> tuple[str, str]:
    """(node, note): the node that a job asks for, "" when it asks for none or cannot have it; note says why."""
    name = job.preferred_node
    if not name or name == job.avoid:
        return "", ""
    if index.serves(job_class, name):
        return name, ""
    return "", f"preferred {name} {'unfit' if name in index.nodes else 'gone'}"


def first_choices(preferred: str, bound: SessionAffinity) -> Groups:
    """The nodes that are tried first: the one that the job asks for, then the one that its session is bound to."""
    if bound.first and bound.node != preferred:
        return ((preferred,), (bound.node,)) if preferred else ((bound.node,),)
    return ((preferred,),) if preferred else ()


def _avoided(job: Job, nodes: Group) -> str:
    """The node that an earlier attempt failed on, "" where it is the only one."""
    return job.avoid if len(nodes.nodes) > 1 else ""


def _each_once(groups: Groups) -> Groups:
    """The groups with every node once, where it comes first."""
    seen: set[str] = set()
    kept = []
    for names in groups:
        fresh = tuple([name for name in names if name not in seen])
        if fresh:
            seen.update(fresh)
            kept.append(fresh)
    return tuple(kept)


def _placement(groups: Groups, bound: SessionAffinity, preferred: str, note: str, policy: Pool) -> Placement:
    why = bound.why
    keeps = "avoid" if why == "avoid" else "full" if policy.pressure == "return" else ""
    return Placement(groups, bound.node if why != "strategy" else "", why, preferred, note, keeps)
