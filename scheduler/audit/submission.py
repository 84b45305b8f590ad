"""Submits a load on time and hears what becomes of it: the producer's side of a rehearsal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

from scheduler.audit.records import Records
from scheduler.audit.workloads import Arrival
from scheduler.errors import NotAccepted
from scheduler.loop import end_tasks
from scheduler.producer import Producer, Request
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.messages import Submitted
from scheduler.store.reads import Reads

logger = logging.getLogger("scheduler.rehearsal")

T = TypeVar("T")


async def submit_load(
    producer: Producer,
    arrivals: Sequence[Arrival],
    records: Records,
    batch_max: int,
    payload_of: Callable[[Arrival], bytes],
    accepted: Callable[[], None] = lambda: None,
) -> None:
    """Submit each job when it is due; those that are due together go in one call, in their order.

    Args: producer; arrivals by rising at_ms, counted from now; records, where acknowledged ones are written down;
    batch_max, jobs of one call; payload_of, what the handler is given; accepted, called after each call.
    Raises: NotAccepted.
    """
    started_s = records.first_submission_s = time.monotonic()
    position = 0
    while position < len(arrivals):
        elapsed_ms = (time.monotonic() - started_s) * 1000
        if arrivals[position].at_ms > elapsed_ms:
            await asyncio.sleep((arrivals[position].at_ms - elapsed_ms) / 1000)
            elapsed_ms = (time.monotonic() - started_s) * 1000
        end = position + 1
        while end < len(arrivals) and end - position < batch_max and arrivals[end].at_ms <= elapsed_ms:
            end += 1
        records.lag_ms = max(records.lag_ms, elapsed_ms - arrivals[position].at_ms)
        due = arrivals[position:end]
        requests = [Request(_document(number, each), payload_of(each)) for number, each in enumerate(due, position)]
        for arrival, answer in zip(due, await producer.submit_many(requests), strict=True):
            if not isinstance(answer, Submitted):
                raise NotAccepted(answer.job_id, answer.why, answer.detail)
            records.submitted(arrival, answer)
        accepted()
        position = end


def _document(number: int, arrival: Arrival) -> JobDocument:
    return JobDocument(
        session_id=arrival.session_id,
        job_id=f"j{number:06d}",
        src_lang=arrival.src_lang,
        tgt_lang=arrival.tgt_lang,
        tenant_id=arrival.tenant_id,
    )


async def follow(producer: Producer, records: Records) -> None:
    """Write every outcome of the feed down."""
    async for _, outcome in producer.results("0"):
        records.ended_with(outcome)


async def wait_for_outcomes(records: Records, stall_ms: float) -> None:
    """Wait while jobs keep ending: until all have, or none has for `stall_ms`."""
    while records.open_jobs:
        records.news.clear()
        try:
            async with asyncio.timeout(stall_ms / 1000):
                await records.news.wait()
        except TimeoutError:
            logger.warning("nothing ended for %d s, %d jobs are open", stall_ms / 1000, records.open_jobs)
            return


async def look_up(reads: Reads, records: Records) -> None:
    """Read the records of the jobs that the feed did not tell of: the record is the truth."""
    for submission in records.submissions:
        if submission.job_id not in records.ended:
            outcome = await reads.outcome(submission.job_id)
            if outcome is not None:
                logger.warning("the feed did not tell of job %s, its record does: %s", outcome.job_id, outcome.state)
                records.ended_with(outcome)


@contextlib.asynccontextmanager
async def beside(work: Awaitable[None]) -> AsyncIterator[None]:
    """Run something beside the body and cancel it afterwards; its own failure is raised then."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        await end_tasks([task])
    if not task.cancelled():
        task.result()


async def to_its_end(work: Awaitable[T]) -> T:
    """Run something in a task of its own: it ends when we are cancelled, also where one cancellation is lost."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    finally:
        await end_tasks([task])
    return task.result()
