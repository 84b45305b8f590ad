"""Settle: what an answer of `reserve` means for a job, for those that wait, and for what is known.

Whoever has no slot waits, is scanned past when memory is full, or ends; a partition that turns out to be another
owner's is given up.
"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.protocol import messages
from scheduler.runtime.calling import Answer, Call
from scheduler.runtime.dispatch_state import Knowledge
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.placement.attempt import Try, bound_by, refusal_of
from scheduler.runtime.refusals import Refusals
from scheduler.runtime.report import Report, Times
from scheduler.runtime.waiting.waiting_jobs import Waiter


class Settler:
    """Args: known, which it changes; refusals, to which it adds what ends; report, in which it counts; times; cell."""

    def __init__(self, known: Knowledge, refusals: Refusals, report: Report, times: Times, cell: int) -> None:
        self._known = known
        self._waiting = known.waiting
        self._refusals = refusals
        self._report = report
        self._times = times
        self._cell = cell

    async def settle(self, call: Call, answers: Sequence[Answer | None]) -> None:
        """Note what came of each try of a call."""
        for each, answer in zip(call.tries, answers, strict=True):
            self._settle(each, answer, call)
        self._times.settled(call.tries, answers)
        self._times.promoted(self._waiting.promoted)
        await self._refusals.end()

    def _settle(self, each: Try, answer: Answer | None, call: Call) -> None:
        job, waiter, partitions = each.job, each.waiter, self._known.partitions
        if not partitions.holds(job.partition, job.epoch):
            return
        if isinstance(answer, messages.Reserved):
            self._placed(each, answer, call.sent_ms)
        elif answer is None or answer.why in messages.HOLDS_BACK:
            if answer is not None and answer.counted is not None:
                self._known.heed(answer.counted, call.sent_ms)
            if answer is not None and answer.why == "full" and each.placement is not None:
                self._known.believe(dict.fromkeys(each.placement.candidates, False))
            if waiter is None:
                self._wait(each, answer, call)
            else:
                self._wait_again(each, waiter, answer, call)
        elif answer.why == "fenced":
            partitions.lose(job.partition)
        else:
            if answer.why in messages.DEALT_WITH:  # perhaps by an earlier call of ours, whose answer never came
                self._known.bindings.forget([job.session_id])
            refusal = refusal_of(job, answer, self._cell)
            if refusal is not None:
                self._refusals.add([refusal])
            if waiter is not None:
                self._waiting.leave(waiter)

    def _placed(self, each: Try, answer: messages.Reserved, now_ms: float) -> None:
        job, known, bindings = each.job, self._known, self._known.bindings
        moved = False
        self._report.placed += 1
        if answer.used >= 0:
            known.loads[answer.node] = answer.used
            if each.unread:
                bindings.weigh(is_stored=False)
            binding = bindings.peek(job.session_id) or each.binding  # a repeat in the call made us forget it
            after = bound_by(each, binding, answer)
            if not each.fresh or after != binding:
                bindings.wrote(job.session_id, after, now_ms)
            moved = binding is None or after.pool != binding.pool
        else:
            bindings.forget([job.session_id])  # a repeat, which does not tell where the session is bound now
        if each.waiter is not None:
            self._waiting.leave(each.waiter, placed=answer.node)
            if answer.filled:
                self._waiting.filled(answer.node)
        if moved and len(self._waiting):
            for waiter in self._waiting.of_session(job.session_id):  # for room and limits of another pool now
                known.reclassify(waiter, now_ms)

    def _wait(self, each: Try, answer: messages.Refused | None, call: Call) -> None:
        """A newcomer that was not placed. answer: None when it was held back behind others, or no node can serve it.

        What the answer says of a class is of no use if the job has another one now.
        """
        job, job_class, waiting = each.job.without_body(), each.job_class, self._waiting
        self._count(answer)
        if call.index is not self._known.index or self._has_another_pool(each):
            job_class = self._known.classify(job, call.sent_ms)
            answer = answer if job_class == each.job_class else None
        if not call.again and self._skip(job, job_class, answer):
            return
        if answer is not None and answer.why == "limited":
            waiting.newly_limited(job, job_class, call.sent_ms, answer.limit, call.mark)
        elif answer is None and waiting.must_wait(job, job_class):
            waiting.queue(job, job_class, call.sent_ms)
        else:
            waiting.tried_in_vain(job, job_class, call.sent_ms)

    def _has_another_pool(self, each: Try) -> bool:
        """Whether an earlier job of the session was placed since this try was made, and bound it to another pool."""
        binding = self._known.bindings.peek(each.job.session_id)
        return binding is not None and (each.binding is None or each.binding.pool != binding.pool)

    def _skip(self, job: Job, job_class: JobClass, answer: messages.Refused | None) -> bool:
        """Scan past a newcomer if memory has no place for it, or for an earlier job of its session."""
        skipped = self._known.skipped
        cause = self._waiting.cause(job, job_class)
        if answer is not None and answer.why == "limited" and cause == job_class:
            cause = (answer.limit, job_class.pool)
        if skipped.is_full(cause, self._waiting.count(cause), len(self._waiting)):
            skipped.skip(job, cause)
        elif skipped and self._known.passes_over(job, job_class):
            skipped.skip(job)
        else:
            return False
        return True

    def _wait_again(self, each: Try, waiter: Waiter, answer: messages.Refused | None, call: Call) -> None:
        """One of those that wait was tried in vain."""
        assert each.placement is not None
        assert answer is not None
        self._count(answer)
        if answer.why == "limited":
            self._waiting.still_limited(waiter, answer.limit, call.mark)
        elif answer.why == "outdated":
            self._waiting.once_more(waiter)
        else:
            self._waiting.still_full(waiter, each.placement.candidates)

    def _count(self, answer: messages.Refused | None) -> None:
        if answer is not None and answer.why == "limited":
            self._report.limited += 1
        elif answer is not None and answer.why != "outdated":
            self._report.full += 1
