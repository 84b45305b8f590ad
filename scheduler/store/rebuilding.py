"""Rebuilds a stream that takes no entry any more, because its highest id is one that no clock gives.

The highest id of a stream never falls, even when its entry is deleted. The stream is therefore copied beside itself, in
calls that are short, and the copy takes its place in the step that sees that nothing is missing. An intake is rebuilt
by its owner, which claims it anew and reads it from the start; inboxes, parked and dead bodies by the reapers. The
scripts that write feeds and `freed` make them anew, and a short inbox too; `publish` does so for the leader's streams.
"""

from __future__ import annotations

import logging
from typing import Final

from scheduler.store.cell import Cell

logger = logging.getLogger("scheduler.streams")

CALLS_MAX: Final = 10_000  # of one attempt to rebuild a stream, which goes on with the next look


async def rebuild(
    cell: Cell, stream: str, last_id: str, field: str, hold: tuple[int, int] | None = None, above_ms: int = 0
) -> bool:
    """Rebuild a stream. Any number of processes may do so at once, and each goes on where the last one stopped.

    Args: cell; stream; last_id, what is absurd; field, of a record, that names an entry of the stream; hold,
    (partition, epoch) of an intake; above_ms, above all ids that it gave before, 0 for unknown. Returns: whether it
    takes entries again.
    """
    logger.warning("stream %s has the id %s, which no clock gives, and takes no entry: it is rebuilt", stream, last_id)
    job_ids: tuple[bytes, ...] = ()
    for _ in range(CALLS_MAX):
        found = await cell.rebuild(stream, field, job_ids, hold, above_ms)
        if found.answer == "records":
            job_ids = tuple(dict.fromkeys((*job_ids, *found.job_ids)))  # it names those that are missing
        elif found.answer == "rebuilt":
            kept, renamed = found.entries, found.renamed
            logger.warning("stream %s takes entries again: %d kept their ids, %d have new ones", stream, kept, renamed)
            return True
        elif found.answer != "copying":
            return found.answer == "open"
    return False
