"""Pure. Decides; never performs. One try at placing a job, and what `reserve` is asked for it."""

from __future__ import annotations

import msgspec

from scheduler import model
from scheduler.runtime.intake import Class, Job
from scheduler.runtime.placement import Placement
from scheduler.runtime.waiting import Waiter
from scheduler.session.bindings import Binding, prefix


class Try(msgspec.Struct, frozen=True):
    """One job of a call. waiter: None for a newcomer. placement: None when it is held back from this call."""

    job: Job
    wanted: Class
    waiter: Waiter | None
    placement: Placement | None


def reserve_item(each: Try, placement: Placement, binding: Binding | None, fresh: bool) -> model.ReserveItem:
    """What `reserve` is asked.

    Args: each; placement, its candidates; binding of the session; fresh, whether the stored binding may be left alone
    when it names the node that is taken.
    """
    job, wanted = each.job, each.wanted
    same = binding is not None and binding.pool == wanted.pool and binding.fits(job.src_lang, job.tgt_lang)
    return model.ReserveItem(
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


def failed(item: model.ReserveItem, error: str) -> model.RejectItem:
    """The refusal of the one job that a script cannot handle."""
    return model.RejectItem(
        partition=item.partition,
        epoch=item.epoch,
        entry_id=item.entry_id,
        job_id=item.job_id,
        session_id=item.session_id,
        tenant_id=item.tenant_id,
        reply_to=item.reply_to,
        reason="invalid",
        detail=error,
    )
