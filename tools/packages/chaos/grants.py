"""Pure. Decides; never performs. Leases as somebody saw them who looks at the slots all the time, and the handlers
that started without one.

All times are of one clock, which the onlooker and the nodes' records share, whatever the server's clock did. The
onlooker sees that a lease was given between two looks, so it counts the lease's length from the second one. That is
lenient by the time between two looks, and never blames a node that did right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from scheduler.audit.audit import Run

PROMPT_US: Final = 100_000
"""Within which a job starts that is reserved."""


class Grant(msgspec.Struct):
    """One lease. Times: microseconds.

    until_ms: its end, as stored, to tell it from the next; is_first: not renewed yet; after_us: it was given later than
    this; seen_us: it was there by then; gone_us: by then there was neither it nor a renewed one.
    """

    node: str
    job_id: str
    until_ms: int
    is_first: bool
    after_us: int
    seen_us: int
    gone_us: int | None = None


class Grants:
    """All leases that were seen. Attributes: all, oldest first; looks, (asked, answered) of each look."""

    def __init__(self) -> None:
        self.all: list[Grant] = []
        self.looks: list[tuple[int, int]] = []
        self._open: dict[tuple[str, str], Grant] = {}

    def look(self, asked_us: int, answered_us: int, found: Mapping[tuple[str, str], int]) -> None:
        """What was there at some time in between. found: (node, job_id) -> end of the lease as stored."""
        before_us = self.looks[-1][0] if self.looks else asked_us
        self.looks.append((asked_us, answered_us))
        for seat in self._open.keys() - found.keys():
            self._open.pop(seat).gone_us = answered_us
        for (node, job_id), until_ms in found.items():
            known = self._open.get((node, job_id))
            if known is None or known.until_ms != until_ms:
                grant = Grant(node, job_id, until_ms, known is None, before_us, answered_us)
                self._open[node, job_id] = grant
                self.all.append(grant)


def starts_past_lease(runs: Iterable[Run], grants: Grants, start_ms: int, lease_ms: int) -> list[str]:
    """Handlers that started when their lease was over, or gone, or before there was one, a line each.

    Args: start_ms, lease_ms: how long first and renewed leases are. A run that lay between two looks is not judged.
    """
    of: dict[tuple[str, str], list[Grant]] = defaultdict(list)
    for grant in grants.all:
        of[grant.node, grant.job_id].append(grant)
    lines = []
    for run in runs:
        given = [grant for grant in of[run.node, run.job_id] if grant.after_us <= run.started_us]
        if given:
            last = given[-1]
            ended_us = last.seen_us + (start_ms if last.is_first else lease_ms) * 1_000
            if last.gone_us is not None:
                ended_us = min(ended_us, last.gone_us)
            if run.started_us > ended_us:
                late_ms = (run.started_us - ended_us) // 1_000
                lines.append(f"job {run.job_id} started on {run.node} {late_ms} ms after the end of its lease")
        elif _was_looked_at(run, grants.looks):
            lines.append(f"job {run.job_id} started on {run.node} without a lease")
    return lines


def _was_looked_at(run: Run, looks: Sequence[tuple[int, int]]) -> bool:
    """Whether a whole look lay within a run."""
    ended_us = run.ended_us
    return ended_us is not None and any(run.started_us <= asked and answered <= ended_us for asked, answered in looks)


def without_steps(runs: Iterable[Run], ahead_us: Iterable[int], entries: Mapping[str, str], start_ms: int) -> list[Run]:
    """Runs with tokens of the clock of `started_us`, so that they rise as the reservations followed each other.

    Args: ahead_us, by how much the server's clock was ahead of that clock, all values that it had; entries, job id ->
    the entry of its submission; start_ms, within which a job must start. A token is the time of a reservation, which
    came shortly before the start: the latest time that is not after the start. But that of a later reservation is above
    the one before, whatever the clock says, and so is that of a job reserved in one call with it; such a one can be of
    long ago, and tells no time.
    """
    known = sorted(ahead_us)
    straight = []
    for run in runs:
        token = run.token - next((each for each in known if run.token - each <= run.started_us), known[-1])
        late_us = start_ms * 1_000 if run.entry == entries.get(run.job_id) else PROMPT_US
        if len(known) > 1 and run.started_us - token > late_us:
            token = run.started_us - 1
        straight.append(msgspec.structs.replace(run, token=token))
    return straight


def overlaps(runs: Iterable[Run]) -> list[str]:
    """A line for each job that ran twice at once. A run without a recorded end is taken to have ended long ago."""
    of: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        of[run.job_id].append(run)
    return [
        f"job {job_id} started on {later.node} while it ran on {before.node}"
        for job_id, several in of.items()
        for before, later in pairwise(sorted(several, key=lambda run: run.started_us))
        if before.ended_us is not None and later.started_us < before.ended_us
    ]
