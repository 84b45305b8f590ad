"""Calls are cut by count and by bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.store.cutting import cut


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([], []),
        ([1, 1, 1, 1], [[1, 1, 1], [1]]),
        ([4, 6, 1], [[4, 6], [1]]),
        ([4, 7], [[4], [7]]),
        ([99, 1, 99], [[99], [1], [99]]),
    ],
    ids=["nothing", "by count", "up to the limit", "by bytes", "one item is never cut"],
)
def test_parts(sizes: list[int], parts: list[list[int]]) -> None:
    """Three items and ten bytes at most."""
    assert [list(part) for part in cut(sizes, int, 3, 10)] == parts


@given(st.lists(st.integers(0, 20)))
def test_nothing_is_lost_and_each_part_fits(sizes: list[int]) -> None:
    """In order; and no part could have taken the first item of the next."""
    parts = [list(part) for part in cut(sizes, int, 3, 10)]
    assert [each for part in parts for each in part] == sizes
    assert all(len(part) == 1 or (len(part) <= 3 and sum(part) <= 10) for part in parts)
    assert all(len(part) == 3 or sum(part) + after[0] > 10 for part, after in itertools.pairwise(parts))
