"""Finds jobs that count for a limit although no node runs them, because their records were deleted.

They are looked for in limits that other jobs wait for, and would wait for without end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random
from typing import Final

from scheduler.store.cell import Cell
from scheduler.store.reads import Reads

logger = logging.getLogger("scheduler.dispatcher")

LIMITS_AT_ONCE_MAX: Final = 20  # limits that one look asks for
MEMBERS_AT_ONCE_MAX: Final = 20  # jobs of each of these that one look asks for


async def uncount_strays(limits: Sequence[str], reads: Reads, cell: Cell, random: Random) -> int:
    """Look at some of the jobs that count for some of these limits, and take out those that are not reserved.

    limits: as `<kind>:<id>`.
    Returns: how many jobs were taken out.
    """
    chosen = random.sample(limits, min(len(limits), LIMITS_AT_ONCE_MAX))
    removed = 0
    for limit, members in zip(chosen, await reads.some_held(chosen, MEMBERS_AT_ONCE_MAX), strict=True):
        states = await reads.records(members, ("state",))
        strays = [job_id for job_id, (state,) in zip(members, states, strict=True) if state != "reserved"]
        if strays:
            kind, _, name = limit.partition(":")
            gone = (await cell.uncount(kind, name, strays)).count("removed")
            logger.warning("%d jobs counted for the limit %s without being reserved: they count no more", gone, limit)
            removed += gone
    return removed
