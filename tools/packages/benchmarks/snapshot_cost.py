"""What a snapshot costs where it is read and made, without a server: in CPU time, for fleets of several sizes.

The index is that of a dispatcher which has placed jobs of many classes, so that it remembers answers that a change has
to revise. The manager's part is what it does with the heartbeats of a second, a step every 50 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final, cast

import msgspec

from benchmarks.measure import without_collections
from benchmarks.placement_cost import POOLS, Fleet
from scheduler.management.fleet import Fleet as NodeState
from scheduler.management.fleet import age, clear_changed, fold
from scheduler.management.heartbeats import HeartbeatDecoder
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.protocol.snapshot import (
    Delta,
    Node,
    Pool,
    Snapshot,
    decode_delta,
    decode_snapshot,
    encode_delta,
    encode_snapshot,
)
from scheduler.runtime.index import Index
from scheduler.runtime.snapshots import Snapshots

JOBS: Final = 1_280
READS: Final = 100_000
STEPS: Final = 20
STEP_MS: Final = 50
SILENCE_MS: Final = 5_000
_BOOT: Final = "1000-bench"


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of a fleet of so many nodes; medians.

    bytes, delta_bytes: of the whole snapshot, and of a change of one node. classes: of jobs, which the index remembers.
    scratch_ms: to make the index from a whole snapshot; whole_ms, delta_ms: to make it from the one before after one
    node changed, from the whole or from the delta. get_us, swap_us: to read and to replace the reference. second_ms: of
    the manager, for one heartbeat of each node.
    """

    nodes: int
    bytes: int
    delta_bytes: int
    classes: int
    encode_ms: float
    decode_ms: float
    scratch_ms: float
    whole_ms: float
    delta_ms: float
    get_us: float
    swap_us: float
    second_ms: float


def measure(sizes: Sequence[int], rounds: int, seed: int) -> list[Cost]:
    """Each fleet alone."""
    with without_collections():
        return [_measure(size, rounds, seed) for size in sizes]


def _measure(size: int, rounds: int, seed: int) -> Cost:
    fleet = Fleet(size, JOBS, seed)
    fleet.run_once()
    index, pools = fleet.index, tuple(Pool(name) for name in POOLS)
    nodes = tuple(index.nodes.values())
    changed = msgspec.structs.replace(nodes[0], slots=nodes[0].slots + 1)
    snapshot, after = Snapshot(1, nodes, pools), Snapshot(2, (changed, *nodes[1:]), pools)
    delta = encode_delta(Delta(2, 1, (changed,)))
    data = encode_snapshot(snapshot)
    get_us, swap_us = _reference(index, index.revised([decode_delta(delta)]))
    return Cost(
        nodes=size,
        bytes=len(data),
        delta_bytes=len(delta),
        classes=fleet.classes,
        encode_ms=_ms(rounds, lambda: encode_snapshot(snapshot)),
        decode_ms=_ms(rounds, lambda: decode_snapshot(data)),
        scratch_ms=_ms(rounds, lambda: Index(snapshot)),
        whole_ms=_ms(rounds, lambda: Index(after, index)),
        delta_ms=_ms(rounds, lambda: index.revised([decode_delta(delta)])),
        get_us=get_us,
        swap_us=swap_us,
        second_ms=_second_ms(nodes, rounds),
    )


def _ms(rounds: int, run: Callable[[], object]) -> float:
    """CPU milliseconds of a run; what it made is thrown away after that."""
    found = []
    for _ in range(rounds):
        from_ns = time.process_time_ns()
        made = run()
        found.append((time.process_time_ns() - from_ns) / 1e6)
        del made
    return round(median(found), 3)


def _reference(one: Index, other: Index) -> tuple[float, float]:
    """Microseconds to read the newest index, and to replace it; with the loop around it."""
    snapshots = Snapshots(cast(Any, None))
    snapshots.swap(one)
    from_ns = time.process_time_ns()
    for _ in range(READS):
        snapshots.index  # noqa: B018 - to read it is all that is measured
    read_ns = time.process_time_ns()
    for _ in range(READS // 2):
        snapshots.swap(one)
        snapshots.swap(other)
    swapped_ns = time.process_time_ns()
    return round((read_ns - from_ns) / READS / 1e3, 4), round((swapped_ns - read_ns) / READS / 1e3, 4)


def _second_ms(nodes: Sequence[Node], rounds: int) -> float:
    """CPU milliseconds of the manager's pure part for a second: decode, fold and age, when nothing is new."""
    beats = [NodeBeat(each.id, _BOOT, each.slots, each.pairs, each.features, pool=each.pool) for each in nodes]
    documents = [[encode_beat(beat) for beat in beats[place::STEPS]] for place in range(STEPS)]
    hearing, fleet, now_ms, found = HeartbeatDecoder(), NodeState(), 10_000, []
    for _ in range(rounds + 1):
        from_ns = time.process_time_ns()
        for step in documents:
            now_ms += STEP_MS
            heard = [(beat, now_ms) for each in step if (beat := hearing.beat(each, now_ms)) is not None]
            fleet = clear_changed(age(fold(fleet, heard)[0], now_ms, SILENCE_MS))
        found.append((time.process_time_ns() - from_ns) / 1e6)
    return round(median(found[1:]), 1)  # the first is that in which all nodes join
