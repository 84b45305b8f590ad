"""Pure. Decides; never performs. From one version of the snapshot to the next ones, by what changed between them.

A delta fits one version alone, which it names. So whoever has another one, or misses a delta, or gets one twice, knows
it, and reads the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from scheduler.protocol.snapshot import Delta, Node, Pool, Snapshot


def applied(nodes: Mapping[str, Node], deltas: Iterable[Delta]) -> dict[str, Node]:
    """The nodes, by id, after some deltas, in their order."""
    after = dict(nodes)
    for delta in deltas:
        for node in delta.nodes:
            after[node.id] = node
        for name in delta.removed:
            after.pop(name, None)
    return after


def newest_pools(pools: tuple[Pool, ...], deltas: Iterable[Delta]) -> tuple[Pool, ...]:
    """The pools after some deltas."""
    for delta in deltas:
        pools = pools if delta.pools is None else delta.pools
    return pools


def chain(version: int, deltas: Iterable[Delta | None]) -> list[Delta] | None:
    """Deltas that lead on from a version, each from the one before it; None when they do not.

    Args: version; deltas, in the order of their stream, None for an entry that only says that something changed.
    """
    found = []
    for delta in deltas:
        if delta is None or delta.before != version or delta.version == version:
            return None
        found.append(delta)
        version = delta.version
    return found


def followed(snapshot: Snapshot, deltas: Sequence[Delta]) -> Snapshot:
    """A snapshot after a chain of deltas, with the nodes sorted by id."""
    if not deltas:
        return snapshot
    nodes = applied({node.id: node for node in snapshot.nodes}, deltas)
    ordered = tuple(node for _, node in sorted(nodes.items()))
    return Snapshot(deltas[-1].version, ordered, newest_pools(snapshot.pools, deltas))
