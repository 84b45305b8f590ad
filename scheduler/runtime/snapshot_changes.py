"""What another snapshot means for jobs that wait: which classes gained nodes, and which may belong to another pool.

Pure: no server, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scheduler.runtime.index import Index, Members
from scheduler.runtime.intake import JobClass


def gained_nodes(classes: Iterable[JobClass], old: Index, new: Index) -> Iterator[tuple[JobClass, list[str]]]:
    """The nodes that each class is to be tried on in a new snapshot: those that did not serve it before, or that did in
    another boot.
    """
    if old.pools == new.pools:
        changed = [node.id for node in new.nodes.values() if node != old.nodes.get(node.id)]
    else:
        changed = list(new.nodes)
    for job_class in classes:
        served = [node for node in changed if new.serves(job_class, node)]
        yield (
            job_class,
            [node for node in served if old.boots.get(node) != new.boots[node] or not old.serves(job_class, node)],
        )


def movable_classes(classes: Iterable[JobClass], old: Index, new: Index) -> Iterator[JobClass]:
    """Classes whose jobs may belong to another pool in a new snapshot.

    Their pool cannot serve them any more, another pool can now, the weights of the pools have changed, or tenants
    prefer other pools.
    """
    if (old.overrides, old.scopes) != (new.overrides, new.scopes):
        yield from classes
        return
    for job_class in classes:
        before, after = old.members_of(job_class), new.members_of(job_class)
        if after is not before and after.keys() != {job_class.pool} and _weights(before) != _weights(after):
            yield job_class


def any_may_move(old: Index, new: Index) -> bool:
    """Whether any job of any class may belong to another pool in a new snapshot."""
    if old.overrides != new.overrides or old.scopes != new.scopes:
        return True
    before, after = _places(old), _places(new)
    return before != after and len({place[0] for place in (*before.values(), *after.values())}) > 1


def _places(index: Index) -> dict[str, tuple[object, ...]]:
    """What the choice between pools depends on, by node; its pool is first."""
    return {name: (node.pool, node.slots, node.pairs, node.features) for name, node in index.nodes.items()}


def _weights(members: Members) -> dict[str, int]:
    """What the choice between pools depends on. A node that was restarted changes nothing in it."""
    return {pool: group.slots for pool, group in members.items()}
