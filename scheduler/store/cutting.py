"""Calls by bytes: on a slow link a large call keeps others waiting, and when it is lost all of it is sent again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

Item = TypeVar("Item")

CALL_BYTES_MAX: Final = 2 * 2**20
"""What one call carries at most, unless it is a single item: two seconds of a link of a megabyte a second."""


def cut(
    items: Sequence[Item], size_of: Callable[[Item], int], count_max: int, bytes_max: int = CALL_BYTES_MAX
) -> Iterator[Sequence[Item]]:
    """Parts of the items, in their order: each of at most `count_max`, and of at most `bytes_max` or one item."""
    first, size_bytes = 0, 0
    for number, item in enumerate(items):
        item_bytes = size_of(item)
        if number > first and (number - first >= count_max or size_bytes + item_bytes > bytes_max):
            yield items[first:number]
            first, size_bytes = number, 0
        size_bytes += item_bytes
    if first < len(items):
        yield items[first:]
