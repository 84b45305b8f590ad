"""Pure. Decides; never performs. One try at placing a job, what `reserve` is asked for it, and how jobs share calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from scheduler import calls, keys
from scheduler.runtime.intake import Class, Job, refuse_job
from scheduler.runtime.placement import Placement
from scheduler.runtime.waiting import Waiter
from scheduler.session.bindings import Binding, prefix


class Try(msgspec.Struct, frozen=True):
    """One job of a call. waiter: None for a newcomer. placement: None when it is held back from this call."""

    job: Job
    wanted: Class
    waiter: Waiter | None
    placement: Placement | None


class Chunk(msgspec.Struct, frozen=True):
    """Jobs of one call. apart: none of them is of a partition of the chunk before."""

    jobs: Sequence[Job]
    apart: bool


def chunks(jobs: Sequence[Job], size: int) -> Iterator[Chunk]:
    """Divide jobs into calls of at most `size`, each partition in its order.

    More than one call is divided into two lanes that share no partition, and the lanes take turns: so a call can be
    sent while the one before is under way.
    """
    if len(jobs) <= size:
        yield Chunk(jobs, False)
        return
    counts: dict[int, int] = {}
    for job in jobs:
        counts[job.partition] = counts.get(job.partition, 0) + 1
    # The fullest partitions first, each to the lane that has less.
    loads, lane_of = [0, 0], {}
    for partition in sorted(counts, key=lambda each: (-counts[each], each)):
        lane = lane_of[partition] = int(loads[1] < loads[0])
        loads[lane] += counts[partition]
    lanes: tuple[list[Job], list[Job]] = ([], [])
    for job in jobs:
        lanes[lane_of[job.partition]].append(job)
    last = -1
    for start in range(0, max(loads), size):
        for lane, members in enumerate(lanes):
            if members[start : start + size]:
                yield Chunk(members[start : start + size], last not in (-1, lane))
                last = lane


def reserve_item(each: Try, placement: Placement, binding: Binding | None, fresh: bool) -> calls.ReserveItem:
    """What `reserve` is asked.

    Args: each; placement, its candidates; binding of the session; fresh, whether the stored binding may be left alone
    when it names the node that is taken.
    """
    job, wanted = each.job, each.wanted
    same = binding is not None and binding.pool == wanted.pool and binding.fits(job.src_lang, job.tgt_lang)
    return calls.ReserveItem(
        partition=job.partition,
        epoch=job.epoch,
        entry_id=job.entry_id,
        job_id=job.job_id,
        session_id=job.session_id,
        tenant_id=job.tenant_id,
        reply_to=job.reply_to,
        pool=wanted.pool,
        candidates=placement.candidates,
        choice=placement.choice,
        binding="" if keeps_binding(each, binding) else prefix(wanted.pool, job.src_lang, job.tgt_lang),
        bound_node=binding.node if binding is not None and same and fresh else "",
    )


def keeps_binding(each: Try, binding: Binding | None) -> bool:
    """Whether the session stays bound as it is: an attempt that keeps away from its node does not move the session."""
    if not each.job.avoid or binding is None or each.placement is None:
        return False
    return binding.node not in each.placement.candidates


def refusal_of(job: Job, answer: calls.Refused, cell: int) -> calls.RejectItem | None:
    """How a job ends that `reserve` will never place; None when nothing is left to do."""
    if answer.why == "job_id_taken":
        generated = keys.generated_job_id(cell, job.partition, job.entry_id)
        return refuse_job(job, "job_id_taken", f"job_id {job.job_id!r} belongs to another session", generated)
    if answer.why == "cancelling":
        return refuse_job(job, "cancelled", "cancelled before it was placed")
    if answer.why == "broken":
        return refuse_job(job, "invalid", "its placement fails; what is stored under its id is no job record")
    return None
