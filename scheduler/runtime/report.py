"""What a dispatcher has done since its start, and how long it took; what took too long is told at times."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from scheduler.clock import Clock
from scheduler.protocol import messages
from scheduler.runtime.placement.attempt import Try
from scheduler.runtime.timings import Histogram, Timing
from scheduler.runtime.waiting.waiting_jobs import Waiter

logger = logging.getLogger("scheduler.dispatcher")

TOO_LONG_MS: Final = 10  # a decision, or a wait for an earlier job of the session, that is counted and told


class Report(msgspec.Struct):
    """Counts since the start.

    decision_us: the time a job to choose its candidates, of calls as a whole; session_wait_ms: for how long a job that
    was placed had waited for an earlier job of its session.
    """

    read: int = 0
    placed: int = 0
    full: int = 0
    limited: int = 0
    rejected: int = 0
    calls: int = 0
    sweep_hits: int = 0
    waiting: int = 0
    skipped: int = 0
    decision_us: Histogram = msgspec.field(default_factory=Histogram)
    session_wait_ms: Histogram = msgspec.field(default_factory=Histogram)


class Times:
    """Takes the times of a report, by the process's own clock."""

    def __init__(self, report: Report, clock: Clock) -> None:
        self._clock = clock
        self.decisions = Timing(report.decision_us, 1_000 * TOO_LONG_MS)
        self.session_waits = Timing(report.session_wait_ms, TOO_LONG_MS)

    def decided(self, started_ms: float, jobs: int) -> None:
        """Candidates were chosen for so many jobs."""
        if jobs:
            now_ms = self._clock.ms()
            took_us = (now_ms - started_ms) * 1_000 / jobs
            if above := self.decisions.add(took_us, now_ms, jobs):
                logger.info(
                    "choosing candidates took more than %d ms a job for %d jobs, %d ms at most",
                    TOO_LONG_MS, above.count, above.max / 1_000,
                )  # fmt: skip

    def settled(self, tries: Sequence[Try], answers: Sequence[messages.Reserved | messages.Refused | None]) -> None:
        """A call was answered: for how long had those that were placed waited for their session?"""
        now_ms = self._clock.ms()
        at_once = 0
        for each, answer in zip(tries, answers, strict=True):
            if isinstance(answer, messages.Reserved):
                waited_ms = each.waiter.first_ms - each.waiter.since_ms if each.waiter is not None else 0
                if waited_ms < 1:
                    at_once += 1
                elif above := self.session_waits.add(waited_ms, now_ms):
                    logger.info(
                        "%d jobs waited more than %d ms for an earlier one of their session, half of them %d ms, the "
                        "longest %d ms: job %s of session %s is the last of them",
                        above.count, TOO_LONG_MS, above.p50, above.max, each.job.job_id, each.job.session_id,
                    )  # fmt: skip
        self.session_waits.add(0, now_ms, at_once)

    def promoted(self, waiters: list[Waiter]) -> None:
        """Nothing of their session is before these any more."""
        now_ms = self._clock.ms()
        for waiter in waiters:
            waiter.first_ms = now_ms
        waiters.clear()
