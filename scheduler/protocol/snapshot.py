"""The snapshot that a manager publishes and dispatchers place by: pools and nodes, and what changes between versions.

Pure. Every struct is frozen. A reader ignores fields that it does not know, so it survives a newer writer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal, TypeAlias, get_args

import msgspec

from scheduler.errors import InvalidInput

Strategy: TypeAlias = (
    Annotated[Literal["affinity"], "the node that the session is bound to, then the freest"]
    | Annotated[Literal["spread"], "not the session's last node, unless it is the only one"]
    | Annotated[Literal["least_loaded"], "the freest node, whatever the session did before"]
)
"""Which node of a pool a session gets: the names, each with a sentence for people.

This is the only list. A name is that of its function in runtime/placement/strategies.py.
"""
Pressure = Literal["stay", "return"]
Reason = Literal["ready", "suspect", "draining", "quarantined", "dead"]

STRATEGIES: Final[Mapping[str, str]] = {
    get_args(name)[0]: sentence for name, sentence in map(get_args, get_args(Strategy))
}
"""Each strategy with its sentence."""


class Match(msgspec.Struct, frozen=True, omit_defaults=True):
    """What belongs into a pool. labels, pairs, features: of a node that names no pool, which must have them all.

    tenants: whose jobs alone may use the pool; empty: everybody's.
    """

    labels: dict[str, str] = {}
    pairs: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()


class Pool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named set of nodes with a policy. Times in ms; `*_max` are counts unless they end in `_ms_max`.

    fallback: pools that take what this one has no room for, in their order. pressure: whether an `affinity` session
    that found its node full stays on the node that it got, or returns when there is room. tenants: whose sessions
    prefer this pool. candidates: nodes that one try names at most. session_concurrency, tenant_concurrency: no job of
    the pool starts while so many of its session, of its tenant, run in all pools together, and that of a session holds
    for jobs of all pools while one of this pool runs; 0: there is no such limit.
    """

    id: str
    strategy: Strategy = "affinity"
    fallback: tuple[str, ...] = ()
    start_ms: int = 5_000
    lease_ms: int = 15_000
    run_ms_max: int = 3_600_000
    attempts_max: int = 3
    crashes_max: int = 5
    description: str = ""
    match: Match = Match()
    pressure: Pressure = "stay"
    tenants: tuple[str, ...] = ()
    candidates: int = 4
    session_concurrency: int = 0
    tenant_concurrency: int = 0
    backoff_ms: int = 1_000
    backoff_ms_max: int = 60_000


LIMITS: Final = ("session", "tenant")
"""Kinds of limits: `<kind>_concurrency` of a pool."""


def limited_kinds(pools: Iterable[Pool]) -> frozenset[str]:
    """The kinds of which some pool has a limit: every reservation of the cell counts for these."""
    return frozenset([kind for pool in pools for kind, most in limits_of_pool(pool) if most])


def limits_of_pool(pool: Pool) -> tuple[tuple[str, int], ...]:
    """(kind, most) of each kind; 0: no limit."""
    return ("session", pool.session_concurrency), ("tenant", pool.tenant_concurrency)


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node as placement sees it. Nodes that cannot take work (draining, dead) are not in the snapshot.

    suspect: it fell silent together with many others, so it is placed on last. assigned: it named no pool, so that this
    one was found for it, and another one may be when the configuration changes. since_ms: server time when its boot
    began, 0 if it does not say.
    """

    id: str
    boot: str
    slots: int
    pool: str
    pairs: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    version: str = ""
    suspect: bool = False
    assigned: bool = False
    since_ms: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """The immutable picture of nodes and pools. `version` is a fencing number: it never falls back."""

    version: int
    nodes: tuple[Node, ...] = ()
    pools: tuple[Pool, ...] = ()


EMPTY_SNAPSHOT: Final = Snapshot(version=0)


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What makes `version` of the version `before`. nodes: those that are new or others; removed: ids of those that are
    no more; pools: all of them, None when they are as they were.
    """

    version: int
    before: int
    nodes: tuple[Node, ...] = ()
    removed: tuple[str, ...] = ()
    pools: tuple[Pool, ...] | None = None

    @property
    def size(self) -> int:
        """How many nodes and pools it names."""
        return len(self.nodes) + len(self.removed) + len(self.pools or ())


_SNAPSHOT: Final = msgspec.msgpack.Decoder(Snapshot)
_DELTA: Final = msgspec.msgpack.Decoder(Delta)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """A snapshot as msgpack."""
    return msgspec.msgpack.encode(snapshot)


def decode_snapshot(data: bytes) -> Snapshot:
    """The reverse of encode_snapshot. Raises: InvalidInput."""
    try:
        return _SNAPSHOT.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"snapshot is no valid msgpack document: {error}") from None


def encode_delta(delta: Delta) -> bytes:
    """A delta as msgpack."""
    return msgspec.msgpack.encode(delta)


def decode_delta(data: bytes) -> Delta:
    """The reverse of encode_delta. Raises: InvalidInput."""
    try:
        return _DELTA.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"delta is no valid msgpack document: {error}") from None
