"""Pure. Decides; never performs. The configuration of pools as a manager last saw it, for a server that loses it.

Nobody else has it: the commands that made it are gone from the server, too. So managers that stand by look at it as
well, for after a loss any of them may be the next to lead.
"""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.management.pools import PoolDocument


class ConfigurationMemory:
    """What was seen last, and the version that was published then: versions never fall but by a loss."""

    def __init__(self) -> None:
        self._version = 0
        self._documents: Mapping[str, PoolDocument] = {}

    def saw(self, version: int, documents: Mapping[str, PoolDocument]) -> None:
        """What is in force under a published version."""
        if version >= self._version:
            self._version, self._documents = version, documents

    def missing(self, version: int, stored: Mapping[str, PoolDocument]) -> dict[str, PoolDocument]:
        """What the server, which has this version and these documents, has lost: none if it has lost nothing."""
        if version >= self._version:
            return {}
        return {name: said for name, said in self._documents.items() if stored.get(name) != said}
