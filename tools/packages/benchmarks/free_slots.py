"""Pure. Decides; never performs. Whether anybody waited while there was room for him, from the records of all slots.

Times are milliseconds of the server's clock. A slot is in use from the inbox entry of a job until its release; what
happens in the same millisecond happens at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import inf
from operator import itemgetter
from typing import NamedTuple

from benchmarks.history import Hold, Wait


class Stretch(NamedTuple):
    """A time in which some slot was free throughout."""

    from_ms: float
    until_ms: float


def free_stretches(slots: Mapping[str, int], holds: Iterable[Hold]) -> list[Stretch]:
    """The longest stretches in which at least one of these nodes had a free slot, ascending.

    Args: slots, node -> how many; holds, those of other nodes are passed over.
    """
    used = dict.fromkeys(slots, 0)
    full = sum(count == 0 for count in slots.values())
    stretches: list[Stretch] = []
    free_since: float | None = -inf if full < len(slots) else None
    for at_ms, changes in groupby(_changes(slots, holds), key=itemgetter(0)):
        for _, node, change in changes:
            was_full = used[node] >= slots[node]
            used[node] += change
            full += (used[node] >= slots[node]) - was_full
        if full == len(slots) and free_since is not None:
            stretches.append(Stretch(free_since, at_ms))
            free_since = None
        elif full < len(slots) and free_since is None:
            free_since = at_ms
    if free_since is not None:
        stretches.append(Stretch(free_since, inf))
    return stretches


def _changes(slots: Mapping[str, int], holds: Iterable[Hold]) -> list[tuple[int, str, int]]:
    """(when, node, slots more in use), ascending."""
    changes = []
    for hold in holds:
        if hold.node in slots:
            changes.append((hold.from_ms, hold.node, 1))
            if hold.until_ms is not None:
                changes.append((hold.until_ms, hold.node, -1))
    changes.sort()
    return changes


def longest_ms(stretches: Sequence[Stretch], from_ms: int, until_ms: int) -> int:
    """The longest part of a time that lies in one stretch."""
    first = max(0, bisect_right(stretches, from_ms, key=itemgetter(0)) - 1)
    longest: float = 0
    for position in range(first, len(stretches)):
        begin, end = stretches[position]
        if begin >= until_ms:
            break
        longest = max(longest, min(end, until_ms) - max(begin, from_ms))
    return int(longest)


def waits_beside_room(
    waits: Sequence[Wait], holds: Sequence[Hold], eligible: Mapping[str, Mapping[str, int]]
) -> list[int]:
    """For each wait the longest part during which an eligible node had a free slot throughout.

    Args: waits; holds, of all jobs; eligible, pair -> the nodes that serve it, each with its slots.
    """
    stretches: dict[str, list[Stretch]] = defaultdict(list)
    for pair in {wait.pair for wait in waits}:
        stretches[pair] = free_stretches(eligible[pair], holds)
    return [longest_ms(stretches[wait.pair], wait.from_ms, wait.until_ms) for wait in waits]
