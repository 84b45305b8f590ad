"""Finds nodes that hold reservations by their keys alone, for a leader that has no other trace of them."""

from __future__ import annotations

import re
from typing import Final

from scheduler.protocol.documents import boot_order
from scheduler.protocol.messages import CapacityItem
from scheduler.store.connection import Connection
from scheduler.store.store import Store

SCAN_COUNT: Final = 1_000


async def read_holders(store: Store) -> dict[str, CapacityItem]:
    """Every node that has slots in use, as a dead one; the boot is above the one that left last, below any later one.

    Walks over all keys, in pages. Raises: ServerUnavailable.
    """
    connection, names, left_of = store.connection, store.cell.keys.slots, store.cell.keys.left
    pattern = re.sub(r"([*?\[\]^\\])", r"\\\1", names("")) + "*"
    found: set[str] = set()
    cursor, is_first = 0, True
    while cursor or is_first:
        cursor, page = await _read_page(connection, cursor, pattern)
        is_first = False
        found |= {name.decode(errors="replace")[len(names("")) :] for name in page}
    nodes = sorted(found)
    boots = await connection.all_of([("GET", left_of(node)) for node in nodes])
    return {
        node: CapacityItem(node, 0, f"{_order(boot) + 1}-lost", "dead") for node, boot in zip(nodes, boots, strict=True)
    }


async def _read_page(connection: Connection, cursor: int, pattern: str) -> tuple[int, list[bytes]]:
    client = connection.commands
    following, names = await connection.patiently(lambda: client.scan(cursor, match=pattern, count=SCAN_COUNT))
    return int(following), list(names)


def _order(boot: bytes | None) -> int:
    try:
        return boot_order((boot or b"0-").decode())
    except ValueError:
        return 0
