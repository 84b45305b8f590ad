"""Removes everything that a scheduler of one namespace left in a server. For namespaces made for one run only."""

from __future__ import annotations

import re
from typing import Final

from scheduler.protocol import keys
from scheduler.store.store import Store

SCAN_COUNT: Final = 1_000


async def remove_namespace(store: Store, cells: int = 1) -> int:
    """Unlink every key under the tags of the store's namespace; nothing may run in it any more.

    Args: store; cells, of its layout. Returns: how many keys went. Raises: ServerUnavailable.
    """
    namespace = store.settings.namespace
    some_keys = [keys.ControlKeys(namespace).layout, *(keys.CellKeys(namespace, cell).owners for cell in range(cells))]
    removed = 0
    for key in some_keys:
        tag = key[: key.index("}") + 1]
        pattern = re.sub(r"([*?\[\]^\\])", r"\\\1", tag) + ":*"
        cursor = -1
        while cursor != 0:
            cursor, unlinked = await _unlink_page(store, max(cursor, 0), pattern)
            removed += unlinked
    return removed


async def _unlink_page(store: Store, cursor: int, pattern: str) -> tuple[int, int]:
    """Unlink what one page of a scan shows. Returns: (the next cursor, how many went)."""
    connection, client = store.connection, store.connection.commands
    following, names = await connection.patiently(lambda: client.scan(cursor, match=pattern, count=SCAN_COUNT))
    unlinked = await connection.patiently(lambda: client.unlink(*names)) if names else 0
    return int(following), int(unlinked)
