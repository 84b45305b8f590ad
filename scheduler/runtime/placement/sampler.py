"""Draws the nodes that a call names, at random among the less used ones.

Pure: no server, no clock.

The power of two choices (Mitzenmacher 2001), with one sample for all jobs of a call (batch sampling, Ousterhout et al.
2013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from scheduler.protocol.snapshot import Node
from scheduler.runtime.index import Group

Loads = Mapping[str, int]
"""node -> slots believed in use."""

SPARE: Final = 3  # the bound node, the preferred one, and one that an attempt failed on may be among those drawn
_SAMPLE_FACTOR: Final = 2  # nodes drawn for each that may be taken
_WIDER_MAX: Final = 8  # times so many are looked at where those drawn first are believed to be full


class _Sample:
    """Nodes drawn from a group.

    group: kept here, so that no other group gets its id meanwhile.
    names: of nodes that may have room, least used first.
    full: a few that are believed to be full, for when there are no others.
    next_offset: how many jobs were served from it.
    room_is_scarce: nodes that are believed to be full were among those drawn.
    exhausted: no more are to be drawn.
    """

    __slots__ = ("exhausted", "full", "group", "names", "next_offset", "room_is_scarce")

    def __init__(self, group: Group) -> None:
        self.group = group
        self.names: list[str] = []
        self.full: list[str] = []
        self.next_offset = 0
        self.room_is_scarce = False
        self.exhausted = False


class Sampler:
    """Nodes drawn at random, once for all jobs of one call, and dealt out in turn.

    A call of many jobs thus names few nodes, each of which is believed to be little used. Few are drawn of a group that
    only a few of the jobs can use.

    Args:
        loads: node -> slots believed in use.
        random: for drawing.
        jobs: how many the call has.
    """

    def __init__(self, loads: Loads, random: Random, jobs: int = 1) -> None:
        self._loads = loads
        self._random = random
        self._jobs = jobs
        self._drawn: dict[int, _Sample] = {}

    def take(self, nodes: Group, count: int, *without: str) -> tuple[str, ...]:
        """At most `count` nodes of a group, least used first. The next job gets the ones after these.

        without: nodes that are left out; "" names none.
        """
        if len(nodes.nodes) == 1:
            only = nodes.nodes[0].id
            return () if only in without else (only,)
        without = tuple([name for name in without if name])
        drawn = self._drawn.get(id(nodes))
        if drawn is None:
            drawn = self._drawn[id(nodes)] = _Sample(nodes)
        served = drawn.next_offset if drawn.room_is_scarce else drawn.next_offset // _SAMPLE_FACTOR
        if not drawn.exhausted and served + count + len(without) > len(drawn.names):
            self._draw(drawn, count)
        names = drawn.names
        start = drawn.next_offset % (len(names) or 1)
        drawn.next_offset += 1
        if without:
            dealt = [name for name in names[start : start + count + len(without)] if name not in without]
        else:
            dealt = names[start : start + count]
        if len(dealt) < count and start:
            dealt += [name for name in names[:start] if name not in without]
        if len(dealt) < count and drawn.full:
            dealt += [name for name in drawn.full if name not in without]
        return tuple(dealt if len(dealt) <= count else dealt[:count])

    def _draw(self, drawn: _Sample, count: int) -> None:
        """Double the nodes that are drawn, at first to enough for one job: twice as many are looked at, and the less
        used half is taken.

        At most one node for every two jobs of the call is drawn beside those for the first. Where room is scarce, one
        for each job, and more nodes are looked at.
        """
        nodes, names = drawn.group.nodes, drawn.names
        jobs = self._jobs if drawn.room_is_scarce else self._jobs // _SAMPLE_FACTOR
        needed = min(max(count + SPARE, 2 * len(names)), count + max(SPARE, jobs)) - len(names)
        if needed <= 0 or len(names) + len(drawn.full) == len(nodes):
            drawn.exhausted = True
            return
        size = min(len(nodes), _SAMPLE_FACTOR * needed + len(names) if names else _SAMPLE_FACTOR * count + 1)
        found, room = self._look(drawn, size)
        if room < len(found):
            drawn.room_is_scarce = True
            if room < needed and size < len(nodes):
                wider = min(_WIDER_MAX, -(-needed // max(1, room)) + 1)
                found, room = self._look(drawn, min(len(nodes), wider * size))
                drawn.exhausted = not room
            drawn.full = drawn.full or found[room:][: count + SPARE]
        names += found[: min(room, needed)]

    def _look(self, drawn: _Sample, size: int) -> tuple[list[str], int]:
        """Look at `size` nodes of the group. Returns: those that are not drawn yet, least used first, and how many of
        them may have room.
        """
        loads = self._loads
        used = [
            (loads.get(node.id, 0) / node.slots, node.id) for node in _sample(drawn.group.nodes, size, self._random)
        ]
        if drawn.names or drawn.full:
            drawn_before = {*drawn.names, *drawn.full}
            used = [(use, name) for use, name in used if name not in drawn_before]
        used.sort(key=_use)
        room = len(used) if not used or used[-1][0] < 1 else sum([use < 1 for use, _ in used])
        return [name for _, name in used], room


def _sample(nodes: Sequence[Node], size: int, random: Random) -> list[Node]:
    """As `random.sample`, in two thirds of the time where few are drawn of many."""
    count, draw = len(nodes), random.random
    if 2 * size > count:
        return random.sample(nodes, size)
    places: dict[int, None] = {}
    while len(places) < size:
        places[int(draw() * count)] = None
    return [nodes[place] for place in places]


def _use(drawn: tuple[float, str]) -> float:
    return drawn[0]
