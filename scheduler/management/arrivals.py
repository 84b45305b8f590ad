"""Pure. Decides; never performs. What is worth telling of a node when its capacity is written.

It has come, is back, was started again, drains, takes jobs again, or calls itself unhealthy. Its death and its end are
told where they are seen.
"""

from __future__ import annotations

from typing import Final

from scheduler.management.fleet import SERVING, NodeState
from scheduler.protocol.messages import CapacityItem

PAIRS_SHOWN_MAX: Final = 8


def news_of(before: CapacityItem | None, after: CapacityItem, known: NodeState) -> str:
    """What has happened to a node, as the rest of a sentence; empty when it is not worth a line.

    Args: before, what was told of it last, None when it was not known; after, what it is now; known, what it serves.
    """
    serves = after.reason in SERVING
    if before is None:
        return f"has come: {in_words(known)}" if serves else ""
    if before.boot != after.boot:
        again = "is back" if before.reason == "dead" else "was started again"
        return f"{again}, as boot {after.boot} after {before.boot}: {in_words(known)}"
    if before.reason == after.reason or after.reason in ("dead", "suspect"):
        return ""
    if after.reason == "draining":
        return f"drains: it takes no new jobs, {known.beat.running} run"
    if after.reason == "quarantined":
        return "calls itself unhealthy: it is given no jobs"
    if before.reason in ("dead", "suspect"):
        return "is heard again, and takes jobs"
    return "takes jobs again"


def in_words(known: NodeState) -> str:
    """What a node serves, and how much of it at once."""
    beat = known.beat
    pairs = [f"{source}:{target}" for source, target in beat.pairs]
    more = f", and {len(pairs) - PAIRS_SHOWN_MAX} more" if len(pairs) > PAIRS_SHOWN_MAX else ""
    languages = ", ".join(pairs[:PAIRS_SHOWN_MAX]) + more if pairs else "jobs without languages"
    features = f", features {', '.join(beat.features)}" if beat.features else ""
    slots = "1 slot" if beat.capacity == 1 else f"{beat.capacity} slots"
    return f"{slots} in pool {known.pool}, {languages}{features}"
