"""The strategies of pools: which nodes a job is tried on after the ones that its session or the job itself asks for.

Pure: no server, no clock.

To add a strategy, list it with its sentence in `Strategy` of protocol/snapshot.py, and write the function of that name
here. Settings, pool files and the help of the command line take it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from scheduler.protocol.snapshot import STRATEGIES
from scheduler.runtime.index import Group
from scheduler.runtime.placement.sampler import Sampler

StrategyFunction = Callable[[str, str, str, Group, Sampler, int], tuple[str, ...]]
"""Chooses nodes of one group. None of the first three is among them unless the group has no other.

Args:
    last: the node that the session is bound to, or "".
    avoid: the node that an earlier attempt failed on, or "".
    preferred: the node that the job asks for, or "".
    nodes: the group, of nodes that are alike for the job.
    sampler: of the call.
    count: how many nodes to name at most.
"""


def affinity(last: str, avoid: str, preferred: str, nodes: Group, sampler: Sampler, count: int) -> tuple[str, ...]:
    """The least loaded of a few. The bound node is tried before these, see candidates.first_choices."""
    return sampler.take(nodes, count, avoid, last, preferred)


def spread(last: str, avoid: str, preferred: str, nodes: Group, sampler: Sampler, count: int) -> tuple[str, ...]:
    """Not the session's last node, unless it is the only one."""
    return sampler.take(nodes, count, avoid, last, preferred) or ((last,) if last in nodes.ids else ())


def least_loaded(_: str, avoid: str, preferred: str, nodes: Group, sampler: Sampler, count: int) -> tuple[str, ...]:
    """The least loaded of a few, whatever the session did before."""
    return sampler.take(nodes, count, avoid, preferred)


FUNCTIONS: Final[Mapping[str, StrategyFunction]] = {name: globals()[name] for name in STRATEGIES}
