"""Pure. Decides; never performs. What was sent, what appeared and what is stored become latencies and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from benchmarks.measure import BenchmarkFailed


class Errors(msgspec.Struct, frozen=True):
    """What went wrong. lost: jobs in no inbox; doubled: further entries of a job in inboxes; double_reservations:
    further slots that a job holds; unreserved: jobs in an inbox that hold none; over_capacity: slots beyond those that
    a node has.
    """

    lost: int = 0
    doubled: int = 0
    double_reservations: int = 0
    unreserved: int = 0
    over_capacity: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.lost + self.doubled + self.double_reservations + self.unreserved + self.over_capacity


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one. jobs: that arrived while it counted; latencies_us: of those that were sent then. CPU times in
    microseconds; others: processes that have nothing to do with it, None where it is not told.
    """

    seconds: float
    jobs: int
    latencies_us: tuple[int, ...]
    errors: Errors
    server_us: float
    scheduler_us: float
    load_us: float
    others_us: float | None


def errors(
    sent: Iterable[str], inboxes: Mapping[str, Sequence[str]], held: Mapping[str, Sequence[str]], slots: int
) -> Errors:
    """What went wrong.

    Args: sent, job ids; inboxes, the job ids in each; held, of each node the ids of jobs that hold a slot; slots, that
    each node has.
    """
    entries = Counter(job_id for job_ids in inboxes.values() for job_id in job_ids)
    reserved = Counter(job_id for job_ids in held.values() for job_id in job_ids)
    return Errors(
        lost=sum(job_id not in entries for job_id in sent),
        doubled=entries.total() - len(entries),
        double_reservations=reserved.total() - len(reserved),
        unreserved=sum(job_id not in reserved for job_id in entries),
        over_capacity=sum(max(0, len(job_ids) - slots) for job_ids in held.values()),
    )


def arrivals(seen: Iterable[tuple[str, int]], inboxes: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """When each job appeared: entries of an inbox appear in the order in which they lie there.

    Args: seen, (inbox, when) in the order of the times; inboxes, the job ids in each, in their order.
    Raises: BenchmarkFailed when some entry was not seen, or seen and is not there.
    """
    times: dict[str, list[int]] = {}
    for inbox, at_ns in seen:
        times.setdefault(inbox, []).append(at_ns)
    found: dict[str, int] = {}
    for inbox in {*times, *inboxes}:
        at, job_ids = times.get(inbox, []), inboxes.get(inbox, ())
        if len(at) != len(job_ids):
            raise BenchmarkFailed(f"{inbox}: {len(job_ids)} entries, but {len(at)} were told of")
        for job_id, at_ns in zip(job_ids, at, strict=True):
            found.setdefault(job_id, at_ns)
    return found


def latencies_us(
    sent_ns: Mapping[str, int], arrived_ns: Mapping[str, int], from_ns: int, until_ns: int
) -> tuple[int, ...]:
    """Of the jobs that were sent within a time, whenever they arrived."""
    return tuple(
        (arrived_ns[job_id] - at_ns) // 1_000
        for job_id, at_ns in sent_ns.items()
        if from_ns <= at_ns < until_ns and job_id in arrived_ns
    )


def completed(arrived_ns: Mapping[str, int], from_ns: int, until_ns: int) -> int:
    """Jobs that arrived within a time, whenever they were sent."""
    return sum(from_ns <= at_ns < until_ns for at_ns in arrived_ns.values())
