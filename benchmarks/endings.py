"""Pure. Decides; never performs. How a simulated node ends a job that it was assigned."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler import calls, keys


def ending(node: str, fields: Mapping[bytes, bytes], result: bytes = b"") -> calls.ReleaseItem:
    """It is finished. Args: node; fields of the entry in its inbox; result."""
    return calls.ReleaseItem(
        job_id=fields[b"job_id"].decode(),
        node=node,
        partition=keys.partition_of_entry(fields[b"entry"].decode()),
        session_id=fields[b"session"].decode(),
        tenant_id=fields[b"tenant"].decode(),
        reply_to=fields[b"reply_to"].decode(),
        token=int(fields[b"token"]),
        verdict="finish",
        result=result,
    )
