"""Pure. Decides; never performs. One try at placing a job, what `reserve` is asked for it, and how jobs share calls."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence

import msgspec

from scheduler.protocol import keys, messages
from scheduler.protocol.snapshot import Pool
from scheduler.runtime.intake import Job, JobClass, refuse_job
from scheduler.runtime.placement.candidates import Placement
from scheduler.runtime.waiting.limits import counted_by
from scheduler.runtime.waiting.waiting_jobs import Waiter
from scheduler.session.bindings import NO_VARIANT, Binding, prefix, source_to_bind


class Try(msgspec.Struct, frozen=True, gc=False):
    """One job of a call. waiter: None for a newcomer. placement: None when it is held back from this call. binding of
    its session; fresh, whether the stored one may be left alone when it names the node that the session is bound to
    afterwards; unread, whether it is not known. follows: an earlier job of its session is in the call and needs the
    same.
    """

    job: Job
    job_class: JobClass
    waiter: Waiter | None
    placement: Placement | None
    binding: Binding | None = None
    fresh: bool = False
    unread: bool = False
    follows: bool = False
    together: str = ""


def chunks(jobs: Sequence[Job], size: int, lane_of: Callable[[int], int]) -> Iterator[Sequence[Job]]:
    """Divide jobs into calls of at most `size`, each partition in its order.

    More than one call is divided into two lanes that take turns, and lane_of (partition -> 0 or 1) says into which. So
    a call shares no partition with the one before, and can be sent while that one is under way.
    """
    if len(jobs) <= size:
        yield jobs
        return
    lanes: tuple[list[Job], list[Job]] = ([], [])
    for job in jobs:
        lanes[lane_of(job.partition)].append(job)
    for start in range(0, max(map(len, lanes)), size):
        for members in lanes:
            if start < len(members):
                yield members[start : start + size]


def reserve_item(each: Try, placement: Placement, policy: Pool, kinds: Container[str]) -> messages.ReserveItem:
    """What `reserve` is asked.

    Args: each; placement, its candidates; policy of the pool; kinds of limits that it counts for.
    """
    job, binding, pool = each.job, each.binding, each.job_class.pool
    source = source_to_bind(binding, job.src_lang, job.tgt_lang)
    same = (
        binding is not None and binding.pool == pool and binding.src_lang == source and binding.tgt_lang == job.tgt_lang
    )
    return messages.ReserveItem(  # in the order of its fields: to name them costs five times as much
        job.partition,
        job.epoch,
        job.entry_id,
        job.job_id,
        job.session_id,
        job.tenant_id,
        job.reply_to,
        pool,
        placement.groups,
        placement.bound,
        placement.preferred,
        placement.why,
        placement.note,
        prefix(pool, source, job.tgt_lang),
        binding.node if binding is not None and same and each.fresh else "",
        NO_VARIANT,
        each.unread,
        placement.keeps,
        each.follows,
        each.together,
        counted_by(job, policy, kinds),
        job.body,
    )


def bound_by(each: Try, binding: Binding | None, answer: messages.Reserved) -> Binding:
    """The binding of a session after a job of it was placed. binding: before that."""
    job = each.job
    source = source_to_bind(binding, job.src_lang, job.tgt_lang)
    return Binding(each.job_class.pool, source, job.tgt_lang, answer.home)


def refusal_of(job: Job, answer: messages.Refused, cell: int) -> messages.RejectItem | None:
    """How a job ends that `reserve` will never place; None when nothing is left to do."""
    if answer.why == "job_id_taken":
        generated = keys.generated_job_id(cell, job.partition, job.entry_id)
        return refuse_job(job, "job_id_taken", f"job_id {job.job_id!r} belongs to another session", generated)
    if answer.why == "cancelling":
        return refuse_job(job, "cancelled", "cancelled before it was placed")
    if answer.why == "mismatch":
        return _refuse_mismatch(job, answer.submitted)
    if answer.why == "broken":
        return refuse_job(job, "invalid", "what is stored under its id is no job record")
    return None


def _refuse_mismatch(job: Job, submitted: tuple[str, str, str]) -> messages.RejectItem:
    """It ends under its own id, as the job that was submitted: who submitted it is told."""
    said = (job.session_id, job.tenant_id, job.reply_to)
    detail = ", ".join(
        f"{name} = {document!r} in the document, and it was submitted with {given!r}"
        for name, document, given in zip(("session_id", "tenant_id", "reply_to"), said, submitted, strict=True)
        if document != given and (given or name == "session_id")
    )
    session, tenant, reply_to = submitted
    refusal = refuse_job(job, "invalid", f"{detail}: expected the same")
    return msgspec.structs.replace(refusal, session_id=session, tenant_id=tenant, reply_to=reply_to)
