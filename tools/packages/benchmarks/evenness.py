"""Pure. Decides; never performs. How evenly nodes are used: on average over a time, and at single instants.

The two differ much. At an instant a node of 8 slots has 5, 6 or 7 in use, so that 5.6 in the mean lets nobody come
close; over a time such differences even out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

import msgspec

from benchmarks.history import Hold, Window


class Evenness(msgspec.Struct, frozen=True):
    """Use of a node (share of its slots) divided by the mean of all nodes: the busiest, and the idlest node."""

    busiest: float
    idlest: float


class Instants(msgspec.Struct, frozen=True):
    """The busiest node divided by the mean at single instants: in the median, and at the worst of them."""

    samples: int
    median: float
    worst: float


def averaged(slots: Mapping[str, int], holds: Iterable[Hold], window: Window) -> Evenness:
    """Use averaged over a window, node by node."""
    used_ms = dict.fromkeys(slots, 0)
    for hold in holds:
        used_ms[hold.node] += hold.within_ms(window)
    uses = [used_ms[node] / count for node, count in slots.items()]
    return Evenness(_ratio(max(uses), uses), _ratio(min(uses), uses))


def sampled(slots: Mapping[str, int], holds: Sequence[Hold], window: Window, every_ms: int) -> Instants:
    """Use at instants of a window, `every_ms` apart."""
    changes = [(hold.from_ms, 1, hold.node) for hold in holds]
    changes += [(hold.until_ms, -1, hold.node) for hold in holds if hold.until_ms is not None]
    changes.sort(key=lambda change: change[0])
    used, position, ratios = dict.fromkeys(slots, 0), 0, []
    for at_ms in range(window.from_ms, window.until_ms, every_ms):
        while position < len(changes) and changes[position][0] <= at_ms:
            used[changes[position][2]] += changes[position][1]
            position += 1
        uses = [used[node] / count for node, count in slots.items()]
        ratios.append(_ratio(max(uses), uses))
    return Instants(len(ratios), round(median(ratios), 3), max(ratios)) if ratios else Instants(0, 0.0, 0.0)


def _ratio(use: float, uses: Sequence[float]) -> float:
    mean = sum(uses) / len(uses)
    return round(use / mean, 3) if mean else 0.0
