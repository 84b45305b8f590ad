"""Pure. Decides; never performs. What the records of processes say that were paused in between.

A paused process runs nothing, whatever its record says: a handler that began before a pause and ended after it ran
until the pause, and again for the moment that the process needed after it woke to look at its clock. Where the node's
name has a later boot by then, that moment belongs to nobody's slot. It is measured instead; where it is not short, the
run is left as it is recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from scheduler.audit.audit import Run, Submission

RAN_ON_US_MAX: Final = 500_000


def without_pauses(runs: Iterable[Run], pauses: Sequence[tuple[int, int]]) -> tuple[list[Run], int]:
    """Let the runs of one process end with the pause that they lasted through.

    Args: runs; pauses, (from, until) each, in microseconds of the same clock, rising.
    Returns: the runs, and the longest time in microseconds that one of them went on after a pause.
    """
    cut: list[Run] = []
    longest_us = 0
    for run in runs:
        through = [] if run.ended_us is None else [each for each in pauses if run.started_us < each[0]]
        through = [each for each in through if run.ended_us is not None and each[1] <= run.ended_us]
        if through and run.ended_us is not None:
            ran_on_us = run.ended_us - through[-1][1]
            longest_us = max(longest_us, ran_on_us)
            if ran_on_us <= RAN_ON_US_MAX:
                run = msgspec.structs.replace(run, ended_us=through[0][0])
        cut.append(run)
    return cut, longest_us


def longest_gap_ms(submissions: Iterable[Submission], runs: Iterable[Run]) -> int:
    """The longest time in which nothing was dispatched although a job was there that was dispatched later.

    Only first runs from the entry of the submission count: a retry is another arrival.
    """
    submitted_ms = {each.entry: int(each.entry_id.partition("-")[0]) for each in submissions}
    dispatched = sorted((run.inbox_ms, submitted_ms[run.entry]) for run in runs if run.entry in submitted_ms)
    longest_ms, waiting_since_ms = 0, 0
    oldest_ms = _oldest_of_the_rest([since_ms for _, since_ms in dispatched])
    for (at_ms, _), since_ms in zip(dispatched, oldest_ms, strict=True):
        longest_ms = max(longest_ms, at_ms - max(waiting_since_ms, since_ms))
        waiting_since_ms = at_ms
    return longest_ms


def longest_partition_gap_ms(submissions: Iterable[Submission], runs: Sequence[Run]) -> int:
    """The same for the partition where it is the longest: what one lost owner costs."""
    partitions: dict[int, list[Submission]] = defaultdict(list)
    for submission in submissions:
        partitions[submission.partition].append(submission)
    ran: dict[int, list[Run]] = defaultdict(list)
    for run in runs:
        ran[int(run.entry.partition("/")[0])].append(run)
    return max((longest_gap_ms(each, ran[partition]) for partition, each in partitions.items()), default=0)


def _oldest_of_the_rest(values: Sequence[int]) -> list[int]:
    """At each position the least of this value and all later ones."""
    oldest = list(values)
    for position in range(len(oldest) - 2, -1, -1):
        oldest[position] = min(oldest[position], oldest[position + 1])
    return oldest
