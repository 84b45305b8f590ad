"""Writes jobs into the intake when they are due, by plain XADDs, as a producer without the SDK does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.history import Submitted
from benchmarks.traffic import Planned, Traffic
from scheduler.protocol import messages
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.store.store import Store

TICK_S: Final = 0.003
"""The least time between two writes: jobs that are due within it go together."""
AT_ONCE_MAX: Final = 500


class Submitting:
    """The producer. Attributes: submitted, by job id; lag_ms, the latest job after its time."""

    def __init__(self, store: Store, layout: messages.Layout) -> None:
        self.submitted: dict[str, Submitted] = {}
        self.lag_ms = 0.0
        self._store = store
        self._layout = layout

    async def pace(self, traffic: Traffic, seconds: float) -> None:
        """Submit what is due for so long, or until nothing more is to come."""
        started_s = time.monotonic()
        while True:
            elapsed_s = time.monotonic() - started_s
            due = traffic.until(min(elapsed_s, seconds))
            if due:
                self.lag_ms = max(self.lag_ms, (elapsed_s - due[0].at_s) * 1_000)
            for start in range(0, len(due), AT_ONCE_MAX):
                await self.submit(due[start : start + AT_ONCE_MAX])
            if elapsed_s >= seconds or traffic.is_over:
                return
            await asyncio.sleep(max(TICK_S, min(traffic.next_s, seconds) - (time.monotonic() - started_s)))

    async def submit(self, jobs: Sequence[Planned]) -> None:
        """Write these jobs in one round trip, behind a question for the server's time."""
        pipeline = self._store.connection.commands.pipeline(transaction=False)
        pipeline.time()
        for job in jobs:
            stream = self._store.reads.keys.jobs(self._store.partition_of(job.session_id, self._layout))
            pipeline.execute_command("XADD", stream, "*", "job", _document(job), "payload", str(job.hold_ms))
        (seconds, microseconds), *identifiers = await pipeline.execute()
        at_us = int(seconds) * 1_000_000 + int(microseconds)
        for job, identifier in zip(jobs, identifiers, strict=True):
            entry_ms = int(identifier.partition(b"-")[0])
            self.submitted[job.job_id] = Submitted(job.session_id, job.pair, entry_ms, at_us)


def _document(job: Planned) -> bytes:
    return encode_job(
        JobDocument(session_id=job.session_id, job_id=job.job_id, src_lang=job.src_lang, tgt_lang=job.tgt_lang)
    )
