"""Who should own which partition: for any dispatchers, one that comes or goes moves only what is its own."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from scheduler.session import ring

PARTITIONS = 64
names = st.text("abcdefghij0123456789-+", min_size=1, max_size=12)
fleets = st.lists(names, min_size=1, max_size=16, unique=True)


def wishes(owners: list[str]) -> list[str]:
    """The owner of each partition."""
    return [ring.owner_of(partition, owners) for partition in range(PARTITIONS)]


@given(fleets, names)
def test_one_that_joins_takes_only_what_it_gains(owners: list[str], newcomer: str) -> None:
    """Whoever joins, a partition stays where it was or goes to the newcomer."""
    before = wishes(owners)

    after = wishes([*owners, newcomer])

    assert all(new in (old, newcomer) for old, new in zip(before, after, strict=True))


@given(fleets, st.data())
def test_one_that_leaves_moves_only_what_it_had(owners: list[str], data: st.DataObject) -> None:
    """Whoever leaves, only its own partitions move, and each goes to one of the others."""
    leaver = data.draw(st.sampled_from(owners))
    others = [owner for owner in owners if owner != leaver]
    if not others:
        return
    before = wishes(owners)

    after = wishes(others)

    assert all(new == old if old != leaver else new in others for old, new in zip(before, after, strict=True))


@given(fleets)
def test_each_partition_has_one_owner_whoever_asks(owners: list[str]) -> None:
    """What each computes for itself divides the partitions among all, in whatever order it knows them."""
    shares = [ring.partitions_of(owner, reversed(owners), PARTITIONS) for owner in owners]

    assert sorted(partition for share in shares for partition in share) == list(range(PARTITIONS))


def test_many_partitions_are_shared_evenly() -> None:
    """With 4,096 partitions and 16 dispatchers nobody's share is far from the mean of 256."""
    owners = [f"dispatcher-{number}+boot" for number in range(16)]

    shares = [len(ring.partitions_of(owner, owners, 4096)) for owner in owners]

    assert min(shares) > 192
    assert max(shares) < 320
