"""Jobs that count for a limit although nobody runs them, because somebody deleted their records.

They are looked for where others wait for that limit, who would wait for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random
from typing import Final

from scheduler.store.cell import Cell
from scheduler.store.reads import Reads

logger = logging.getLogger("scheduler.dispatcher")

LIMITS_AT_ONCE_MAX: Final = 20  # that one look asks for,
MEMBERS_AT_ONCE_MAX: Final = 20  # and jobs of each; others the next time


async def uncount_strays(limits: Sequence[str], reads: Reads, cell: Cell, random: Random) -> int:
    """Look at some of those who count for some of these limits (`<kind>:<id>`), and take out who is not reserved.

    Returns: how many were taken out.
    """
    chosen = random.sample(limits, min(len(limits), LIMITS_AT_ONCE_MAX))
    removed = 0
    for limit, members in zip(chosen, await reads.some_held(chosen, MEMBERS_AT_ONCE_MAX), strict=True):
        states = await reads.records(members, ("state",))
        strays = [job_id for job_id, (state,) in zip(members, states, strict=True) if state != "reserved"]
        if strays:
            kind, _, name = limit.partition(":")
            gone = (await cell.uncount(kind, name, strays)).count("removed")
            logger.warning("%d jobs counted for the limit %s and were not reserved, so they do no more", gone, limit)
            removed += gone
    return removed
