"""Pure. Decides; never performs. How a simulated node ends a job that it was assigned."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler import calls, keys, words


def ending(node: str, fields: Mapping[bytes, bytes], result: bytes = b"") -> calls.ReleaseItem:
    """It is finished. Args: node; fields of the entry in its inbox; result."""
    reservation = words.parse_reservation(fields[b"reservation"].decode())
    return calls.ReleaseItem(
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
