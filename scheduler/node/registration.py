"""What a node says of itself in each heartbeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from scheduler import arguments
from scheduler.errors import InvalidInput
from scheduler.protocol import keys
from scheduler.protocol.documents import CAPACITY_MAX, NodeBeat, decode_beat, encode_beat

REGISTRATION_BYTES_MAX: Final = 2**18 - 1_024  # more than take.lua reads of a heartbeat would never be heard


def registration(
    node_id: str,
    capacity: int,
    pairs: Iterable[tuple[str, str]] = (),
    features: Iterable[str] = (),
    labels: Mapping[str, str] | None = None,
    pool: str = "",
    version: str = "",
) -> NodeBeat:
    """What a node says of itself, before it has a boot; arguments as of Node. Raises: InvalidInput."""
    document = NodeBeat(
        node=keys.check_name("node", arguments.text("node_id", node_id)),
        boot="0-unset",
        capacity=arguments.whole("capacity", capacity, 1, CAPACITY_MAX),
        pairs=tuple(sorted(arguments.pairs("pairs", pairs))),
        features=tuple(sorted(arguments.texts("features", features))),
        labels={} if labels is None else arguments.labels("labels", labels),
        pool=arguments.text("pool", pool),
        version=arguments.text("version", version),
    )
    data = encode_beat(document)
    decode_beat(data)
    if len(data) > REGISTRATION_BYTES_MAX:
        raise InvalidInput(
            f"pairs, features, labels and version of node {node_id}: {len(data)} bytes of heartbeat: expected at most "
            f"{REGISTRATION_BYTES_MAX}"
        )
    return document
