"""Pure. Decides; never performs. Which of the live dispatchers should own which partition.

Rendezvous hashing (Thaler and Ravishankar 1998): each dispatcher has a score for each partition, and the highest one
wins. One that joins or leaves moves only the partitions that it gains or had. It is a wish: `claim.lua` has the truth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def owner_of(partition: int, owners: Iterable[str]) -> str:
    """The one of `owners` (at least one) that should own a partition; the same whatever their order."""
    return max(owners, key=lambda owner: (_score(owner, partition), owner))


def partitions_of(owner: str, owners: Iterable[str], count: int) -> frozenset[int]:
    """Those of the partitions 0 to count - 1 that `owner` should own, being one of `owners`."""
    candidates = tuple({owner, *owners})
    return frozenset(partition for partition in range(count) if owner_of(partition, candidates) == owner)


def _score(owner: str, partition: int) -> bytes:
    return hashlib.blake2b(f"{owner} {partition}".encode(), digest_size=8).digest()
