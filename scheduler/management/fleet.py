"""Pure. Decides; never performs. Heartbeats become what is known of each node, and that becomes capacities.

Rules: a higher boot replaces a lower one; what a node serves is fixed for a boot, so that a later heartbeat of it
changes capacity, health and load only; silence counts only while somebody listened. The pool of a node that names none
is found when the node joins, and again when the configuration changes.

What is done costs as much as what is new: a fleet tells which of its nodes are, and until when nobody can be silent for
too long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from scheduler.management.pools import DEFAULT_POOL, Documents, node_rules, pool_of
from scheduler.protocol.documents import NodeBeat, boot_order
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Reason, Snapshot

SERVING: Final = ("ready", "suspect")
SUSPECTS_MIN: Final = 3
SUSPECTS_SHARE: Final = 0.3
SUSPECT_PERIODS: Final = 5  # of silence, until a suspect is dead


class NodeState(msgspec.Struct, frozen=True):
    """What is known of a node.

    heard_ms: server time of its last heartbeat, or when listening began. suspect: silent, but so are many others.
    partial: only its capacity is known, from a cell, so that it is not placed on before it is heard. pool: the one that
    it names, or that was found for it.
    """

    beat: NodeBeat
    heard_ms: int
    dead: bool = False
    suspect: bool = False
    partial: bool = False
    pool: str = DEFAULT_POOL


class Fleet(msgspec.Struct, frozen=True):
    """Everything that the leader knows: nodes by id, and what was said of pools by their name.

    news: nodes whose capacity, or what placement sees of them, may be another one since `settled`. looked_ms: when ages
    were looked at last; due_ms: before that nobody can have been silent for too long, which is silence_ms.
    """

    nodes: Mapping[str, NodeState] = {}
    pools: Documents = {}
    changed: frozenset[str] = frozenset()
    looked_ms: int = 0
    due_ms: int = 0
    silence_ms: int = 0


class Ignored(msgspec.Struct, frozen=True):
    """A heartbeat that changed nothing, and why; for log and counter."""

    node: str
    why: str


def fold(fleet: Fleet, beats: Iterable[tuple[NodeBeat, int]], *, late: bool = False) -> tuple[Fleet, list[Ignored]]:
    """Fold heartbeats, in stream order.

    Args: fleet; beats, (document, heard_ms) each; the very document that is known already says nothing new, so it is
    best to decode equal ones once; late, newer ones may be folded already. Returns: the new fleet, what was ignored.
    """
    nodes = dict(fleet.nodes)
    rules = node_rules(fleet.pools)
    news: set[str] = set()
    ignored = []
    for beat, heard_ms in beats:
        known = nodes.get(beat.node)
        if known is None or _replaces(beat, known):
            nodes[beat.node] = NodeState(beat, heard_ms, pool=pool_of(beat, rules))
            news.add(beat.node)
        elif beat.boot != known.beat.boot:
            ignored.append(Ignored(beat.node, f"boot {beat.boot} is older than {known.beat.boot}"))
        elif not late or heard_ms >= known.heard_ms:
            said = beat if beat is known.beat else _within_boot(beat, known.beat)
            if said is not beat:
                ignored.append(Ignored(beat.node, f"boot {beat.boot} changed what it serves; that takes a new boot"))
            # What was known to be heard is: a stamp from before the clock was stepped makes nobody silent.
            nodes[beat.node] = NodeState(said, max(heard_ms, known.heard_ms), pool=known.pool)
            if known.dead or known.suspect or not _same_capacity(said, known.beat):
                news.add(beat.node)
    return _with(fleet, nodes, news), ignored


def _replaces(beat: NodeBeat, known: NodeState) -> bool:
    """Whether a heartbeat is a registration."""
    if beat.boot == known.beat.boot:
        return known.partial
    return boot_order(beat.boot) > boot_order(known.beat.boot)


def _within_boot(beat: NodeBeat, known: NodeBeat) -> NodeBeat:
    """What a later heartbeat of a boot can change of an earlier one: all of it, unless it says what it may not."""
    fixed = msgspec.structs.replace(
        known, capacity=beat.capacity, healthy=beat.healthy, draining=beat.draining, running=beat.running
    )
    return beat if fixed == beat else fixed


def _same_capacity(one: NodeBeat, other: NodeBeat) -> bool:
    return one is other or (one.capacity, one.healthy, one.draining) == (other.capacity, other.healthy, other.draining)


def _with(fleet: Fleet, nodes: Mapping[str, NodeState], changed: Iterable[str]) -> Fleet:
    """The fleet with other nodes. Changed ones may have been silent for longer than all others."""
    due_ms = min((nodes[name].heard_ms + fleet.silence_ms for name in changed), default=fleet.due_ms)
    return msgspec.structs.replace(
        fleet, nodes=nodes, changed=fleet.changed.union(changed), due_ms=min(due_ms, fleet.due_ms)
    )


def clear_changed(fleet: Fleet) -> Fleet:
    """The fleet without its news, which somebody has taken note of."""
    return msgspec.structs.replace(fleet, changed=frozenset()) if fleet.changed else fleet


def configure(fleet: Fleet, pools: Documents) -> Fleet:
    """The fleet with other pools: each node is where the rules put it now, unless it names its pool itself."""
    rules = node_rules(pools)
    moved = {}
    for node, known in fleet.nodes.items():
        pool = pool_of(known.beat, rules)
        if pool != known.pool:
            moved[node] = msgspec.structs.replace(known, pool=pool)
    return msgspec.structs.replace(_with(fleet, {**fleet.nodes, **moved}, moved), pools=pools)


def named_pools(fleet: Fleet) -> Counter[str]:
    """The pools that nodes name themselves, and how many nodes do. The dead do not count."""
    return Counter(known.beat.pool for known in fleet.nodes.values() if known.beat.pool and not known.dead)


def recover(snapshot: Snapshot, capacities: Mapping[str, CapacityItem], now_ms: int) -> Fleet:
    """What a new leader knows before it hears anybody: the stored snapshot and the cells' capacities. All ages are 0.

    A pool that was found for a node is not one that it names: `configure` finds it anew. Slots and reason are those of
    the cells: the leader before writes them there first, and may have acknowledged the heartbeat that told them.
    """
    nodes = {}
    for node in snapshot.nodes:
        beat = NodeBeat(
            node=node.id,
            boot=node.boot,
            capacity=node.slots,
            pairs=node.pairs,
            features=node.features,
            labels=node.labels,
            pool="" if node.assigned else node.pool,
            version=node.version,
            since_ms=node.since_ms,
        )
        nodes[node.id] = NodeState(beat, now_ms)
    for item in capacities.values():
        known = nodes.get(item.node)
        if known is None or known.beat.boot != item.boot or item.slots == 0:
            nodes[item.node] = _of_capacity(item, now_ms)
        else:
            beat = msgspec.structs.replace(known.beat, capacity=item.slots)
            nodes[item.node] = NodeState(beat, now_ms, suspect=item.reason == "suspect")
    return configure(Fleet(nodes, changed=frozenset(nodes)), {})


def _of_capacity(item: CapacityItem, now_ms: int) -> NodeState:
    """A node of which only a cell knows. The dead stay so until they are heard: they get no new period of grace."""
    beat = NodeBeat(
        node=item.node,
        boot=item.boot,
        capacity=item.slots,
        draining=item.reason == "draining",
        healthy=item.reason != "quarantined",
    )
    is_dead = item.reason == "dead"
    return NodeState(beat, 0 if is_dead else now_ms, dead=is_dead, partial=True)


def adopt(fleet: Fleet, capacities: Mapping[str, CapacityItem], now_ms: int) -> Fleet:
    """The fleet with those of whom only a cell knows: an earlier life, say, whose later one has left. Who is not heard
    is dead after a while, as everybody.
    """
    unknown = {node: _of_capacity(item, now_ms) for node, item in capacities.items() if node not in fleet.nodes}
    return _with(fleet, {**fleet.nodes, **unknown}, unknown) if unknown else fleet


def reset_silence(fleet: Fleet, now_ms: int) -> Fleet:
    """Ages start anew: nobody listened before `now_ms`, or the clock was another one, so nobody was silent either. The
    dead stay dead until heard.
    """
    nodes = {
        node: msgspec.structs.replace(known, heard_ms=min(known.heard_ms, now_ms) if known.dead else now_ms)
        for node, known in fleet.nodes.items()
    }
    return msgspec.structs.replace(fleet, nodes=nodes)


def age(fleet: Fleet, now_ms: int, silence_ms: int) -> Fleet:
    """Mark those dead that were silent for `silence_ms`, and alive those that were heard again.

    When many fall silent at once the network is the likelier cause: then they are suspect until they are heard, and
    dead only after SUSPECT_PERIODS of silence. All nodes are looked at only when the first of them can be due.
    """
    if silence_ms == fleet.silence_ms and fleet.looked_ms <= now_ms < fleet.due_ms:
        return msgspec.structs.replace(fleet, looked_ms=now_ms)
    fleet = _not_ahead(fleet, now_ms)
    many = _many_fall_silent(fleet.nodes.values(), now_ms, silence_ms)
    changed = {}
    due_ms = now_ms + silence_ms
    for node, known in fleet.nodes.items():
        silent = now_ms - known.heard_ms >= silence_ms
        doubted = not known.dead and not known.beat.draining and (known.suspect or (silent and many))
        suspect = doubted and now_ms - known.heard_ms < SUSPECT_PERIODS * silence_ms
        dead = known.dead or (silent and not suspect)  # the dead stay so until they are heard
        if (dead, suspect) != (known.dead, known.suspect):
            changed[node] = msgspec.structs.replace(known, dead=dead, suspect=suspect)
        if not dead:
            due_ms = min(due_ms, known.heard_ms + silence_ms * (SUSPECT_PERIODS if suspect else 1))
    aged = _with(fleet, {**fleet.nodes, **changed}, changed) if changed else fleet
    return msgspec.structs.replace(aged, looked_ms=now_ms, due_ms=due_ms, silence_ms=silence_ms)


def _not_ahead(fleet: Fleet, now_ms: int) -> Fleet:
    """Whoever seems to be heard later than now, because the clock went back, was heard now."""
    if all(known.heard_ms <= now_ms for known in fleet.nodes.values()):
        return fleet
    nodes = {
        node: msgspec.structs.replace(known, heard_ms=min(known.heard_ms, now_ms))
        for node, known in fleet.nodes.items()
    }
    return msgspec.structs.replace(fleet, nodes=nodes)


def doubtful(fleet: Fleet, names: Iterable[str], now_ms: int, silence_ms: int) -> set[str]:
    """Those of some nodes that seem to be alive, but were last heard `silence_ms` ago or earlier. Who has not heard all
    that was said cannot know: they may have died long ago, or a later heartbeat may wait to be read.
    """
    return {name for name in names if not (known := fleet.nodes[name]).dead and now_ms - known.heard_ms >= silence_ms}


def _many_fall_silent(nodes: Iterable[NodeState], now_ms: int, silence_ms: int) -> bool:
    """Whether more than SUSPECTS_MIN and SUSPECTS_SHARE of the nodes fell silent within one period around now.

    Half a period ahead, because those that fell silent together do not reach the end of their period together. A node
    that drains is expected to fall silent.
    """
    ages_ms = [now_ms - known.heard_ms for known in nodes if not known.beat.draining]
    counted = [age_ms for age_ms in ages_ms if 2 * age_ms < 3 * silence_ms]
    silent = sum(2 * age_ms >= silence_ms for age_ms in counted)
    return silent > max(SUSPECTS_MIN, SUSPECTS_SHARE * len(counted))


def forget(fleet: Fleet, present: Iterable[str], now_ms: int, keep_ms: int) -> Fleet:
    """Drop dead nodes that no cell knows any more and that were not heard for `keep_ms`."""
    kept = set(present)
    nodes = {
        node: known
        for node, known in fleet.nodes.items()
        if not known.dead or node in kept or now_ms - known.heard_ms < keep_ms
    }
    return fleet if len(nodes) == len(fleet.nodes) else msgspec.structs.replace(fleet, nodes=nodes)


def without(fleet: Fleet, left: Iterable[str]) -> Fleet:
    """The fleet without nodes that have left. A heartbeat of theirs that is read late brings them back."""
    gone = set(left)
    nodes = {node: known for node, known in fleet.nodes.items() if node not in gone}
    return msgspec.structs.replace(fleet, nodes=nodes)


def capacity_of(known: NodeState) -> CapacityItem:
    """Slots and reason of a node: no slots when dead, draining or quarantined (it calls itself unhealthy)."""
    beat = known.beat
    reason: Reason = "ready"
    if known.dead:
        reason = "dead"
    elif beat.draining:
        reason = "draining"
    elif not beat.healthy:
        reason = "quarantined"
    elif known.suspect:
        reason = "suspect"
    return CapacityItem(beat.node, beat.capacity if reason in SERVING else 0, beat.boot, reason)
