"""Pure. Decides; never performs. What placement sees of a fleet, what of it is new, and how that is published.

A publication is a delta: the nodes that are others now, and the pools when they are. The whole snapshot is stored again
when the deltas after it have become many, so that it costs little beside them, and who comes new reads it and not much
more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from scheduler.config import Settings
from scheduler.management.fleet import Fleet, NodeState, capacity_of
from scheduler.management.pools import DEFAULT_POOL, Documents, PoolDocument, complete
from scheduler.protocol.deltas import applied
from scheduler.protocol.snapshot import Delta, Node, Pool, Snapshot

DELTA_SIZE_MAX: Final = 500  # nodes and pools: with more, everybody reads the whole
WHOLE_SHARE: Final = 4  # the whole is stored again when the deltas after it have a quarter of its nodes
_SILENT: Final = PoolDocument()


class FleetView(msgspec.Struct, frozen=True):
    """What placement sees: the nodes that can take work, by id, and all pools, sorted by id, under a version.

    said: what was said of the pools, None before anything was published.
    """

    version: int = 0
    nodes: Mapping[str, Node] = {}
    pools: tuple[Pool, ...] = ()
    said: Documents | None = None


class Stored(msgspec.Struct, frozen=True):
    """What the server holds of a picture: the whole of version `whole` (0: that is not known), and deltas after it.

    oldest: the whole before that one; deltas from there on are kept, for those who are a little behind. deltas, size:
    how many there are after the whole, and nodes and pools in them.
    """

    whole: int = 0
    oldest: int = 0
    deltas: int = 0
    size: int = 0


def node_of(known: NodeState) -> Node | None:
    """A node as placement sees it, None when it can take no work."""
    item = capacity_of(known)
    if item.slots == 0 or known.partial:
        return None
    beat = known.beat
    return Node(
        id=beat.node,
        boot=beat.boot,
        slots=item.slots,
        pool=known.pool,
        pairs=beat.pairs,
        features=beat.features,
        labels=beat.labels,
        version=beat.version,
        suspect=item.reason == "suspect",
        assigned=not beat.pool,
        since_ms=beat.since_ms,
    )


def revise(
    before: FleetView, fleet: Fleet, names: Iterable[str], version: int, settings: Settings
) -> tuple[FleetView, Delta]:
    """The picture of a fleet, and what of it is new.

    Args: before, the picture of an earlier fleet; names, of all nodes that may be others since; version, of the new
    picture. Returns: the picture before and a delta of no size when nothing is new.
    """
    changed, removed = [], []
    for name in sorted(names):
        known = fleet.nodes.get(name)
        node, seen = node_of(known) if known is not None else None, before.nodes.get(name)
        if node is not None and node != seen:
            changed.append(node)
        elif node is None and seen is not None:
            removed.append(name)
    delta = Delta(version, before.version, tuple(changed), tuple(removed))
    if not delta.size and fleet.pools is before.said:
        return before, delta
    nodes = applied(before.nodes, [delta])
    stay = fleet.pools is before.said and not _moves_pools(before, delta)
    pools = before.pools if stay else _pools(fleet.pools, nodes.values(), settings)
    if pools != before.pools:
        delta = msgspec.structs.replace(delta, pools=pools)
    return FleetView(version if delta.size else before.version, nodes, pools, fleet.pools), delta


def _moves_pools(before: FleetView, delta: Delta) -> bool:
    """Whether a pool may have got its first node, or lost its last."""
    names = (*delta.removed, *(node.id for node in delta.nodes))
    left = {before.nodes[name].pool for name in names if name in before.nodes}
    return left != {node.pool for node in delta.nodes}


def _pools(said: Documents, nodes: Iterable[Node], settings: Settings) -> tuple[Pool, ...]:
    """Those of which something was said, those that nodes are in, and the default one."""
    names = {DEFAULT_POOL, *said, *(node.pool for node in nodes)}
    return tuple(complete(name, said.get(name, _SILENT), settings) for name in sorted(names))


def view_of(snapshot: Snapshot) -> FleetView:
    """A published snapshot."""
    return FleetView(snapshot.version, {node.id: node for node in snapshot.nodes}, snapshot.pools)


def snapshot_of(picture: FleetView) -> Snapshot:
    """The whole, with the nodes sorted by id."""
    return Snapshot(picture.version, tuple(node for _, node in sorted(picture.nodes.items())), picture.pools)


def told(delta: Delta) -> Delta:
    """What is told of a delta: of one that is too large only that it is there."""
    return delta if delta.before and delta.size <= DELTA_SIZE_MAX else Delta(delta.version, delta.before)


def store(stored: Stored, delta: Delta, nodes: int, deltas_max: int) -> Stored:
    """What is stored after a delta; the whole picture again, if its version is that of the delta.

    Args: nodes, of the picture; deltas_max, after a whole one.
    """
    deltas, size = stored.deltas + 1, stored.size + delta.size
    if not stored.whole or not told(delta).size or deltas > deltas_max or size * WHOLE_SHARE > nodes:
        return Stored(whole=delta.version, oldest=stored.whole)
    return msgspec.structs.replace(stored, deltas=deltas, size=size)
