"""Pure. Decides; never performs. The designs that are measured beside each other."""

from __future__ import annotations

from typing import Final

import msgspec


class Row(msgspec.Struct, frozen=True):
    """One design. locked, cached: of v2.0, whether it holds its locks and whether it remembers members of pools; both
    None for others.
    """

    name: str
    label: str
    locked: bool | None = None
    cached: bool | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's dispatcher."""
        return self.name == "dispatch"


V2: Final = Row("v2", "v2", True, False)
UNLOCKED: Final = Row("v2_unlocked", "v2, no lock", False, False)
CACHED: Final = Row("v2_cached", "v2, cached", True, True)
UNLOCKED_CACHED: Final = Row("v2_unlocked_cached", "v2, both", False, True)
OURS: Final = Row("dispatch", "dispatch")
RELAY: Final = Row("relay", "relay")
ROWS: Final = (V2, UNLOCKED, CACHED, UNLOCKED_CACHED, OURS)
"""What `v2` measures; the relay decides nothing, and is measured elsewhere."""
ROWS_BY_NAME: Final = {row.name: row for row in (*ROWS, RELAY)}
