"""One attempt at placing a job, the call that makes it with others, and how a job ends that will never be placed.

Pure: no server, no clock.
"""

from __future__ import annotations

import msgspec

from scheduler.protocol import keys, messages
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass, refuse_job
from scheduler.runtime.placement.candidates import Placement
from scheduler.runtime.waiting.queues import Waiter
from scheduler.session.bindings import Binding


class PlacementAttempt(msgspec.Struct, frozen=True, gc=False):
    """One job of a call.

    job_class: decided once, for this attempt.
    waiter: None for a newcomer.
    placement: None when the job is held back from this call.
    binding: of the session, None when it has none or it is not known.
    is_fresh: whether the stored binding need not be written again if it does not change.
    is_unread: whether the binding is not known.
    follows: whether an earlier job of the session is in the call and has the same class.
    together: why the job is not tried where that earlier job goes.
    """

    job: Job
    job_class: JobClass
    waiter: Waiter | None
    placement: Placement | None
    binding: Binding | None = None
    is_fresh: bool = False
    is_unread: bool = False
    follows: bool = False
    together: str = ""


Answer = messages.Reserved | messages.Refused


class Call(msgspec.Struct):
    """The attempts of one script call.

    attempts: in the order of their partitions.
    partitions: of its jobs.
    sent_ms: when it was sent.
    index: the snapshot by which candidates were chosen.
    mark: of the limits, when it was sent.
    is_again: whether its jobs had been deferred, and there is memory for them now.
    """

    attempts: list[PlacementAttempt]
    partitions: frozenset[int]
    sent_ms: float
    index: Index
    mark: int
    is_again: bool = False


def rejection_of(job: Job, answer: messages.Refused, cell: int) -> messages.RejectItem | None:
    """How a job ends that `reserve` will never place; None when it needs no rejection."""
    if answer.why == "job_id_taken":
        generated = keys.generated_job_id(cell, job.partition, job.entry_id)
        return refuse_job(job, "job_id_taken", f"job_id {job.job_id!r} belongs to another session", generated)
    if answer.why == "cancelling":
        return refuse_job(job, "cancelled", "cancelled before it was placed")
    if answer.why == "mismatch":
        return _reject_mismatch(job, answer.submitted)
    if answer.why == "broken":
        return refuse_job(job, "invalid", "what is stored under its id is no job record")
    return None


def _reject_mismatch(job: Job, submitted: tuple[str, str, str]) -> messages.RejectItem:
    """It ends under its own id, as the job that was submitted, so that its producer gets the result."""
    documented = (job.session_id, job.tenant_id, job.reply_to)
    detail = ", ".join(
        f"{name} = {document!r} in the document, and it was submitted with {given!r}"
        for name, document, given in zip(("session_id", "tenant_id", "reply_to"), documented, submitted, strict=True)
        if document != given and (given or name == "session_id")
    )
    session, tenant, reply_to = submitted
    rejection = refuse_job(job, "invalid", f"{detail}: expected the same")
    return msgspec.structs.replace(rejection, session_id=session, tenant_id=tenant, reply_to=reply_to)
