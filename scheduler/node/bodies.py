"""Bodies of assignments that a node knows by their heads alone: read by id, as many at once as the link takes."""

from __future__ import annotations

from typing import Final

from scheduler.clock import Clock
from scheduler.node.handlers import Job
from scheduler.protocol import messages
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.store.cutting import cut
from scheduler.store.pace import Pace
from scheduler.store.reads import Reads

AT_ONCE_MAX: Final = 128


def without_body(node: str, head: messages.Head) -> Job:
    """An assignment whose document and payload are not here: enough to renew it and to give it back."""
    document = JobDocument(head.fields[b"session"].decode(), tenant_id=head.fields.get(b"tenant", b"").decode())
    return Job(node, head.id, head.fields | {b"job": encode_job(document)})


class LateBodies:
    """What is still to be read.

    Args: reads; inbox, the stream; pace, of whoever reads the inbox; clock, the process's own.
    """

    def __init__(self, reads: Reads, inbox: str, pace: Pace, clock: Clock) -> None:
        self._reads = reads
        self._inbox = inbox
        self._pace = pace
        self._clock = clock
        self._due: list[tuple[Job, int]] = []

    def __bool__(self) -> bool:
        return bool(self._due)

    def add(self, job: Job, size_bytes: int) -> None:
        """An assignment without its body."""
        self._due.append((job, size_bytes))

    def clear(self) -> None:
        """None of them is needed any more."""
        self._due = []

    async def read(self) -> list[tuple[Job, dict[bytes, bytes] | None]]:
        """The next ones, each with its fields; None when it is gone, which it is when somebody has ended its lease."""
        if not self._due:
            return []
        part = next(cut(self._due, lambda each: each[1], AT_ONCE_MAX, self._pace.bytes_max))
        started_ms = self._clock.ms()
        found = await self._reads.by_id(self._inbox, [job.inbox_id for job, _ in part])
        now_ms = self._clock.ms()
        self._due = self._due[len(part) :]
        self._pace.read(now_ms, now_ms - started_ms, not self._due)
        return [(job, found.get(job.inbox_id)) for job, _ in part]
