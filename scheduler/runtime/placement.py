"""Pure. Decides; never performs. Job, binding, snapshot -> candidates, best first, few.

A session keeps its pool while its language pair is unchanged and the pool can serve it; otherwise the pool is found
by weighted rendezvous hashing of the routing key (Thaler and Ravishankar 1998; weights by -w / ln h, Schindelhauer
and Schomaker 2005). Within the pool the strategy orders nodes; with more nodes than candidates, those are the least
loaded of a few drawn at random (Mitzenmacher 2001, the power of two choices). `reserve` decides by the slots really
held.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Final, Literal

import msgspec

from scheduler.model import Node, Strategy
from scheduler.runtime.index import Group, Index, Members, group
from scheduler.runtime.intake import Class, Job
from scheduler.session.bindings import Binding

Choice = Literal["first", "freest"]
Loads = Mapping[str, int]
_SAMPLE_FACTOR: Final = 2  # nodes drawn for each candidate wanted
_HASH_RANGE: Final = float(2**64)


class Placement(msgspec.Struct, frozen=True):
    """Candidates for one job. bound: the node that the session's binding names, if it still stands."""

    candidates: tuple[str, ...]
    choice: Choice


def classify(job: Job, binding: Binding | None, index: Index) -> Class:
    """The class of a job under a snapshot: what it needs, and the pool that its session prefers."""
    members = index.members(job.src_lang, job.tgt_lang, job.features)
    pool = preferred_pool(job, binding, members)
    return Class(job.src_lang, job.tgt_lang, job.features, pool)


def preferred_pool(job: Job, binding: Binding | None, members: Members) -> str:
    """The pool of a session: the bound one while it fits and can serve, else by the routing key; "" when none can."""
    if binding is not None and binding.pool in members and binding.fits(job.src_lang, job.tgt_lang):
        return binding.pool
    if len(members) <= 1:
        return next(iter(members), "")
    weights = {pool: sum(node.slots for node in each.nodes) for pool, each in members.items()}
    return rendezvous(job.routing_key, weights)


def rendezvous(key: str, weights: Mapping[str, int]) -> str:
    """The name with the highest weighted score for a key; names that come or go move only their own keys."""

    def score(name: str) -> tuple[float, str]:
        digest = hashlib.blake2b(f"{key} {name}".encode(), digest_size=8).digest()
        drawn = (int.from_bytes(digest) + 0.5) / _HASH_RANGE
        return -weights[name] / math.log(drawn), name

    return max(weights, key=score)


def place(
    job: Job, wanted: Class, binding: Binding | None, index: Index, loads: Loads, count: int, random: Random
) -> Placement | None:
    """Candidates of the preferred pool.

    Args: job; wanted, from classify; binding; index; loads, node -> slots believed in use; count, candidates at most;
    random, for drawing. Returns: None when no node of the pool can serve the job.
    """
    nodes = index.members(wanted.src_lang, wanted.tgt_lang, wanted.features).get(wanted.pool)
    if nodes is None:
        return None
    return choose(_strategy(index, wanted.pool), job, binding, nodes, loads, count, random)


def place_among(
    job: Job, wanted: Class, binding: Binding | None, index: Index, names: Sequence[str], loads: Loads, random: Random
) -> Placement | None:
    """Every named node that may take the job, those of the preferred pool before those of its fallback pools.

    Room is known to be scarce, so what the strategy or an earlier failure would rather avoid comes last, but it comes.
    Returns: None when no named node may take it.
    """
    by_tier: dict[str, list[Node]] = {}
    for name in names:
        node = index.nodes.get(name)
        if node is not None and index.serves(wanted, name):
            by_tier.setdefault(node.pool, []).append(node)
    ordered: list[str] = []
    choice: Choice = "first"
    for tier in index.tiers(wanted.pool):
        if tier in by_tier:
            nodes = group(by_tier[tier])
            placement = choose(_strategy(index, wanted.pool), job, binding, nodes, loads, len(nodes.nodes), random)
            left_over = sorted(nodes.ids.difference(placement.candidates))
            ordered += [*placement.candidates, *left_over]
            choice = "first" if left_over or len(by_tier) > 1 else placement.choice
    return Placement(tuple(ordered), choice) if ordered else None


def _strategy(index: Index, pool: str) -> Strategy:
    policy = index.pools.get(pool)
    return policy.strategy if policy is not None else "affinity"


def choose(
    strategy: Strategy, job: Job, binding: Binding | None, nodes: Group, loads: Loads, count: int, random: Random
) -> Placement:
    """Order nodes of one pool by its strategy, away from suspects and from the node that an earlier attempt failed on.

    Who is kept away from is a candidate only where nobody else is.
    """
    nodes = nodes.trusted or nodes
    if job.avoid in nodes.ids and len(nodes.nodes) > 1:
        nodes = group([node for node in nodes.nodes if node.id != job.avoid])
    return STRATEGIES[strategy](binding, nodes, loads, count, random)


def affinity(binding: Binding | None, nodes: Group, loads: Loads, count: int, random: Random) -> Placement:
    """The bound node first, then the least loaded of a few."""
    drawn = sample(nodes.nodes, loads, count, random)
    if binding is None or binding.node not in nodes.ids:
        return Placement(drawn, "freest")
    others = [name for name in drawn if name != binding.node]
    return Placement((binding.node, *others[: count - 1]), "first")


def spread(binding: Binding | None, nodes: Group, loads: Loads, count: int, random: Random) -> Placement:
    """Not the session's last node, unless it is the only one."""
    if binding is not None and binding.node in nodes.ids and len(nodes.nodes) > 1:
        others = [name for name in sample(nodes.nodes, loads, count + 1, random) if name != binding.node]
        return Placement(tuple(others[:count]), "freest")
    return Placement(sample(nodes.nodes, loads, count, random), "freest")


def least_loaded(_: Binding | None, nodes: Group, loads: Loads, count: int, random: Random) -> Placement:
    """The least loaded of a few, whatever the session did before."""
    return Placement(sample(nodes.nodes, loads, count, random), "freest")


STRATEGIES: Final[Mapping[str, Callable[[Binding | None, Group, Loads, int, Random], Placement]]] = {
    "affinity": affinity,
    "spread": spread,
    "least_loaded": least_loaded,
}


def sample(nodes: Sequence[Node], loads: Loads, count: int, random: Random) -> tuple[str, ...]:
    """The `count` least used of `2 * count` nodes drawn at random; all of them, least used first, when there are
    few.
    """
    if len(nodes) == 1:
        return (nodes[0].id,)
    drawn = random.sample(nodes, min(len(nodes), _SAMPLE_FACTOR * count))
    drawn.sort(key=lambda node: loads.get(node.id, 0) / node.slots)
    return tuple([node.id for node in drawn[:count]])
