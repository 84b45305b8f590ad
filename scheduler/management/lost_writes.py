"""Finds out once a second whether writes were lost that no other step would repeat, and repeats some of them.

The layout, and what the leader wrote last, can be lost with the last writes of a crash, by FLUSHALL, by a deleted key,
or because an empty server takes the place of the old one.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from scheduler.errors import ServerRefused
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.manager")

LOOK_MS: Final = 1_000


class Lost(msgspec.Struct, frozen=True):
    """What of the leader's own writes is gone."""

    capacities: bool
    snapshot: bool
    config: bool


class LostWrites:
    """Looks for a leading manager. Args: store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._complained = ""

    async def look(self, epoch: int, serving: int, version: int, configures: bool) -> Lost:
        """Write the layout and the epoch again if they are gone, and say what else is.

        Args: epoch, of the leader; serving, how many nodes have slots by what it wrote; version, that it published;
        configures, whether it knows of configured pools.
        """
        control, reads = self._store.control, self._store.reads
        await self._store.connection.retype([control.keys.answers, control.keys.commands, control.keys.heartbeats])
        there = await control.standing(reads.keys)
        if not there.has_layout:
            await self.write_layout()
        if not there.has_partitions:
            await self._store.cell.write_partitions()
        if there.leader_epoch < epoch:
            logger.warning("%s was lost: the epoch %d is written again", reads.keys.leader_epoch, epoch)
            await self._store.cell.capacity(epoch, [])
        lost = Lost(there.nodes < serving, there.version != version, configures and not there.has_config)
        for key, is_lost in (
            (reads.keys.capacity, lost.capacities),
            (control.keys.snapshot, lost.snapshot),
            (control.keys.config, lost.config),
        ):
            if is_lost:
                logger.warning(
                    "%s, or what leads to it, was lost or changed by somebody else: it is written again", key
                )
        return lost

    async def write_layout(self) -> None:
        """Write what is missing of the layout. One that says otherwise stays, and is named once."""
        try:
            await self._store.control.write_layout()
        except ServerRefused as error:
            if str(error) != self._complained:
                logger.error("the layout was changed by somebody else: %s", error)
            self._complained = str(error)
            return
        logger.warning("%s was lost: it is written again", self._store.control.keys.layout)
        self._complained = ""
