"""What a reaper knows of reservations whose leases it judges: the ending that each would get, and its leases."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

import msgspec

from scheduler.protocol import keys, messages, record_fields
from scheduler.store.reads import Reads

HEADS_AT_ONCE: Final = 1_000
_FIELDS: Final = ("state", "holder", "entry", "session", "tenant", "reply_to", "policy", "assignment", "started_ms")


class Lapse(msgspec.Struct, frozen=True):
    """A reservation: its ending by the verdict `expire`; lease_ms, of its later leases; length_ms, of the one in force,
    0 when the record does not say.
    """

    item: messages.ReleaseItem
    lease_ms: int
    length_ms: int


async def read_lapses(reads: Reads, found: Sequence[tuple[str, str]]) -> tuple[list[Lapse], list[tuple[str, str]]]:
    """Those of (job_id, node) that their records say are held there; and those of which no record says so."""
    records = await reads.records([job_id for job_id, _ in found], _FIELDS)
    lapses, unknown = [], []
    for (job_id, node), record in zip(found, records, strict=True):
        state, holder, entry, session, tenant, reply_to, policy, assignment, started_ms = record
        held = record_fields.parse_holder(holder)
        if state != "reserved" or held is None or held.node != node:
            unknown.append((job_id, node))
        else:
            item = _expiry(job_id, node, held.token, session or "", tenant or "")
            item = msgspec.structs.replace(item, partition=partition_of(entry), reply_to=reply_to or "")
            lease_ms = record_fields.policy_of(policy).lease_ms
            length_ms = record_fields.first_lease_ms(assignment) if started_ms is None else lease_ms
            lapses.append(Lapse(item, lease_ms, length_ms))
    return lapses, unknown


async def unknown_lapses(reads: Reads, found: Sequence[tuple[str, str]], lease_ms: int) -> list[messages.ReleaseItem]:
    """The endings of reservations, (job_id, node) each, whose records were deleted: the inbox says of which sessions
    they were, if they are still there, and whether their leases are longer than `lease_ms`. None of them lies further
    ahead than these. It is read once a node, and no body of it.
    """
    nodes = {node for _, node in found}
    said = {node: {job_id: fields async for job_id, fields in _heads(reads, node)} for node in nodes}
    items = []
    for job_id, node in found:
        fields = said[node].get(job_id.encode(), {})
        session, tenant, policy, reservation = (
            fields.get(name, b"").decode(errors="replace")
            for name in (b"session", b"tenant", b"policy", b"reservation")
        )
        first_ms = record_fields.number_of("".join(reservation.split(" ")[7:8])) or 0
        longest_ms = max(lease_ms, record_fields.policy_of(policy).lease_ms, first_ms)
        items.append(msgspec.structs.replace(_expiry(job_id, node, 0, session, tenant), delay_ms=longest_ms))
    return items


async def _heads(reads: Reads, node: str) -> AsyncIterator[tuple[bytes, Mapping[bytes, bytes]]]:
    cursor, is_end = "0", False
    while not is_end:
        part = await reads.heads(reads.keys.inbox(node), cursor, HEADS_AT_ONCE)
        for head in part.heads:
            yield head.fields.get(b"job_id", b""), head.fields
        cursor, is_end = part.last_id or cursor, part.is_end


def _expiry(job_id: str, node: str, token: int, session: str, tenant: str) -> messages.ReleaseItem:
    return messages.ReleaseItem(
        job_id=job_id,
        node=node,
        partition=0,
        session_id=session,
        tenant_id=tenant,
        reply_to="",
        token=token,
        verdict="expire",
        reason="lease_expired",
        detail=f"the lease on node {node} was not renewed",
    )


def partition_of(entry: str | None) -> int:
    """Of the entry that a record names; what is no entry is of none, and the script finds that out."""
    try:
        return keys.partition_of_entry(entry or "")
    except ValueError:
        return 0
