"""Pure. Decides; never performs. Job, binding, snapshot -> candidates, best first, few.

A session keeps its pool while its language pair is unchanged and the pool can serve it; otherwise the pool is found
by weighted rendezvous hashing of the routing key (Thaler and Ravishankar 1998; weights by -w / ln h, Schindelhauer
and Schomaker 2005). Within the pool the strategy orders nodes; with more nodes than candidates, those are the least
loaded of a few drawn at random (Mitzenmacher 2001, the power of two choices), drawn once for all jobs of a call
(Ousterhout et al. 2013, batch sampling). `reserve` decides by the slots really held.
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
_SAMPLE_FACTOR: Final = 2  # nodes drawn for each that may be taken
_SPARE: Final = 2  # the bound node, and one that an earlier attempt failed on, may be among those drawn
_HASH_RANGE: Final = float(2**64)


class _Drawn:
    """Names drawn from a group, and whose turn it is. The group is kept, so that its id is nobody else's meanwhile."""

    __slots__ = ("group", "names", "turn")

    def __init__(self, group: Group, names: tuple[str, ...]) -> None:
        self.group = group
        self.names = names
        self.turn = 0


class Draws:
    """Nodes drawn at random, once for all jobs of one call, and dealt out in turn.

    A call of many jobs so names few nodes, and each of them is one that was believed to be little used.

    Args: loads, node -> slots believed in use; random, for drawing; jobs of the call.
    """

    def __init__(self, loads: Loads, random: Random, jobs: int = 1) -> None:
        self._loads = loads
        self._random = random
        self._jobs = jobs
        self._drawn: dict[int, _Drawn] = {}

    def take(self, nodes: Group, count: int, *without: str) -> tuple[str, ...]:
        """At most `count` of a group, least used first; another job gets others. without: at most _SPARE names."""
        if len(nodes.nodes) == 1:
            only = nodes.nodes[0].id
            return () if only in without else (only,)
        drawn = self._drawn.get(id(nodes))
        if drawn is None:
            drawn = self._drawn[id(nodes)] = _Drawn(nodes, self._draw(nodes.nodes, count))
        names = drawn.names
        start = drawn.turn % len(names)
        drawn.turn += 1
        dealt = [name for name in names[start : start + count + len(without)] if name not in without]
        if len(dealt) < count and start:
            dealt += [name for name in names[:start] if name not in without]
        return tuple(dealt[:count])

    def _draw(self, nodes: Sequence[Node], count: int) -> tuple[str, ...]:
        """The less used half of the nodes drawn, but at least `count` and the spare ones."""
        size = min(len(nodes), _SAMPLE_FACTOR * count + self._jobs)
        loads = self._loads
        used = [(loads.get(node.id, 0) / node.slots, node.id) for node in self._random.sample(nodes, size)]
        used.sort(key=_use)
        return tuple([name for _, name in used[: max(count + _SPARE, size // _SAMPLE_FACTOR)]])


def _use(drawn: tuple[float, str]) -> float:
    return drawn[0]


class Placement(msgspec.Struct, frozen=True):
    """Candidates for one job, and whether the first one with room is taken, or the freest."""

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


def place(job: Job, wanted: Class, binding: Binding | None, index: Index, draws: Draws, count: int) -> Placement | None:
    """Candidates of the preferred pool.

    Args: job; wanted, from classify; binding; index; draws of the call; count, candidates at most.
    Returns: None when no node of the pool can serve the job.
    """
    nodes = index.members(wanted.src_lang, wanted.tgt_lang, wanted.features).get(wanted.pool)
    if nodes is None:
        return None
    return choose(_strategy(index, wanted.pool), job, binding, nodes, draws, count)


def place_among(
    job: Job, wanted: Class, binding: Binding | None, index: Index, names: Sequence[str], loads: Loads, random: Random
) -> Placement | None:
    """Every named node that may take the job, those of the preferred pool before those of its fallback pools.

    Room is known to be scarce, so what the strategy or an earlier failure would rather avoid comes last, but it comes.
    Returns: None when no named node may take it.
    """
    draws = Draws(loads, random)
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
            placement = choose(_strategy(index, wanted.pool), job, binding, nodes, draws, len(nodes.nodes))
            left_over = sorted(nodes.ids.difference(placement.candidates))
            ordered += [*placement.candidates, *left_over]
            choice = "first" if left_over or len(by_tier) > 1 else placement.choice
    return Placement(tuple(ordered), choice) if ordered else None


def _strategy(index: Index, pool: str) -> Strategy:
    policy = index.pools.get(pool)
    return policy.strategy if policy is not None else "affinity"


def choose(strategy: Strategy, job: Job, binding: Binding | None, nodes: Group, draws: Draws, count: int) -> Placement:
    """Order nodes of one pool by its strategy, away from suspects and from the node that an earlier attempt failed on.

    Who is kept away from is a candidate only where nobody else is.
    """
    nodes = nodes.trusted or nodes
    avoid = job.avoid if len(nodes.nodes) > 1 and job.avoid in nodes.ids else ""
    bound = binding.node if binding is not None and binding.node in nodes.ids and binding.node != avoid else ""
    return STRATEGIES[strategy](bound, avoid, nodes, draws, count)


def affinity(bound: str, avoid: str, nodes: Group, draws: Draws, count: int) -> Placement:
    """The bound node first, then the least loaded of a few. bound, avoid: empty for none."""
    if not bound:
        return Placement(draws.take(nodes, count, avoid), "freest")
    return Placement((bound, *draws.take(nodes, count - 1, avoid, bound)), "first")


def spread(bound: str, avoid: str, nodes: Group, draws: Draws, count: int) -> Placement:
    """Not the session's last node, unless it is the only one."""
    others = draws.take(nodes, count, avoid, bound)
    return Placement(others or (bound,), "freest")


def least_loaded(_: str, avoid: str, nodes: Group, draws: Draws, count: int) -> Placement:
    """The least loaded of a few, whatever the session did before."""
    return Placement(draws.take(nodes, count, avoid), "freest")


STRATEGIES: Final[Mapping[str, Callable[[str, str, Group, Draws, int], Placement]]] = {
    "affinity": affinity,
    "spread": spread,
    "least_loaded": least_loaded,
}
