"""Pure. Decides; never performs. How a simulated node ends a job that it was assigned."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.protocol import keys, messages, record_fields


def ending(node: str, fields: Mapping[bytes, bytes], result: bytes = b"") -> messages.ReleaseItem:
    """It is finished. Args: node; fields of the entry in its inbox; result."""
    reservation = record_fields.parse_reservation(fields[b"reservation"].decode())
    return messages.ReleaseItem(
        job_id=fields[b"job_id"].decode(),
        node=node,
        partition=keys.partition_of_entry(reservation.entry),
        session_id=fields[b"session"].decode(),
        tenant_id=fields.get(b"tenant", b"").decode(),
        reply_to=fields.get(b"reply_to", b"").decode(),
        token=reservation.token,
        verdict="finish",
        result=result,
    )
