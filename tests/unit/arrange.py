"""Jobs, nodes and snapshots for tests of the pure files: what matters is named, the rest is plain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast

from scheduler.clock import SYSTEM_CLOCK
from scheduler.config import DEFAULTS, Settings
from scheduler.management.fleet import Fleet
from scheduler.management.publication import FleetView, revise, snapshot_of
from scheduler.protocol.documents import JobDocument, NodeBeat
from scheduler.protocol.messages import Layout
from scheduler.protocol.snapshot import Node, Pool, Snapshot
from scheduler.runtime.dispatch_state import DispatchState
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.partitions import Partitions
from scheduler.store.cell import Cell

EN_ZH: Final = ("en", "zh")
EN_DE: Final = ("en", "de")
BOOT: Final = "1000-a"
LATER_BOOT: Final = "2000-b"
LAYOUT: Final = Layout(protocol=1, partitions=8, cells=1, retention_ms=60_000, dead_retention_ms=60_000)


def a_job(
    job_id: str = "j1",
    session_id: str = "s1",
    pair: tuple[str, str] = EN_ZH,
    features: tuple[str, ...] = (),
    *,
    partition: int = 0,
    priority: int = 0,
    deadline_at_ms: int | None = None,
    routing_key: str = "",
    avoid: str = "",
    tenant_id: str = "",
    reply_to: str = "",
    preferred_node: str = "",
) -> Job:
    """A job in the hands of its dispatcher."""
    document = JobDocument(
        session_id,
        job_id,
        *pair,
        tenant_id=tenant_id,
        routing_key=routing_key,
        features=features,
        priority=priority,
        reply_to=reply_to,
        preferred_node=preferred_node,
    )
    return Job(
        partition=partition,
        epoch=1,
        entry_id=f"{job_id}-0",
        job_id=job_id,
        document=document,
        features=features,
        routing_key=routing_key or session_id,
        deadline_at_ms=deadline_at_ms,
        avoid=avoid,
    )


def a_class(pool: str = "a", pair: tuple[str, str] = EN_ZH, features: tuple[str, ...] = ()) -> JobClass:
    """What a job needs."""
    return JobClass(*pair, features, pool)


def a_node(
    node_id: str,
    pool: str = "a",
    slots: int = 4,
    pairs: tuple[tuple[str, str], ...] = (EN_ZH,),
    features: tuple[str, ...] = (),
    boot: str = BOOT,
) -> Node:
    """A node as placement sees it."""
    return Node(node_id, boot, slots, pool, pairs, features)


def an_index(*nodes: Node, pools: Mapping[str, Pool] | None = None, version: int = 1) -> Index:
    """The index of these nodes; pools that are not given have the default policy."""
    given = dict(pools or {})
    names = sorted({node.pool for node in nodes} | set(given))
    return Index(Snapshot(version, nodes, tuple(given.get(name, Pool(name)) for name in names)))


def a_state(settings: Settings = DEFAULTS) -> DispatchState:
    """What a dispatcher knows that holds no partition and has read nothing."""
    partitions = Partitions(cast(Cell, None), "d1", LAYOUT.partitions, settings, SYSTEM_CLOCK)
    return DispatchState(settings, LAYOUT, 0, partitions, SYSTEM_CLOCK)


def a_beat(
    node: str = "n1",
    boot: str = BOOT,
    capacity: int = 4,
    pairs: tuple[tuple[str, str], ...] = (EN_ZH,),
    *,
    pool: str = "",
    draining: bool = False,
    healthy: bool = True,
    running: int = 0,
) -> NodeBeat:
    """A heartbeat."""
    return NodeBeat(node, boot, capacity, pairs, pool=pool, draining=draining, healthy=healthy, running=running)


def picture(fleet: Fleet, version: int, settings: Settings) -> Snapshot:
    """What placement sees of a fleet."""
    return snapshot_of(revise(FleetView(), fleet, fleet.nodes, version, settings)[0])


def same_picture(one: Snapshot, other: Snapshot) -> bool:
    """Whether placement would see the same: everything but the version."""
    return one.nodes == other.nodes and one.pools == other.pools
