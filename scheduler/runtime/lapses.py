"""What a reaper knows of reservations whose leases it judges: the ending that each would get, and its leases."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from scheduler import calls, keys, words
from scheduler.store.reads import Reads

_FIELDS = ("state", "holder", "entry", "session", "tenant", "reply_to", "policy", "assignment", "started_ms")


class Lapse(msgspec.Struct, frozen=True):
    """A reservation: its ending by the verdict `expire`; lease_ms, of its later leases; length_ms, of the one in force,
    0 when the record does not say.
    """

    item: calls.ReleaseItem
    lease_ms: int
    length_ms: int


async def read_lapses(reads: Reads, found: Sequence[tuple[str, str]]) -> list[Lapse]:
    """Those of (job_id, node) that their records say are held there."""
    records = await reads.records([job_id for job_id, _ in found], _FIELDS)
    lapses = []
    for (job_id, node), record in zip(found, records, strict=True):
        state, holder, entry, session, tenant, reply_to, policy, assignment, started_ms = record
        held = words.parse_holder(holder)
        if state != "reserved" or held is None or held.node != node:
            continue
        item = calls.ReleaseItem(
            job_id=job_id,
            node=node,
            partition=partition_of(entry),
            session_id=session or "",
            tenant_id=tenant or "",
            reply_to=reply_to or "",
            token=held.token,
            verdict="expire",
            reason="lease_expired",
            detail=f"the lease on node {node} was not renewed",
        )
        lease_ms = words.policy_of(policy).lease_ms
        lapses.append(Lapse(item, lease_ms, words.first_lease_ms(assignment) if started_ms is None else lease_ms))
    return lapses


def partition_of(entry: str | None) -> int:
    """Of the entry that a record names; what is no entry is of none, and the script finds that out."""
    try:
        return keys.partition_of_entry(entry or "")
    except ValueError:
        return 0
