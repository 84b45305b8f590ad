"""What one dispatcher knows, and how it changes: by a snapshot, by a batch that was read, by answers of the server.

All of it may be out of date, which costs at most an attempt without success, because the scripts decide by what is
stored. Only the methods here change it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from scheduler.clock import Clock
from scheduler.config import Settings
from scheduler.protocol import keys, messages
from scheduler.repeats import Repeats
from scheduler.runtime import snapshot_changes
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass, expired
from scheduler.runtime.partitions import Partitions
from scheduler.runtime.placement import candidates
from scheduler.runtime.placement.attempt import Answer, Call, PlacementAttempt, rejection_of
from scheduler.runtime.reader import Batch
from scheduler.runtime.report import Report
from scheduler.runtime.waiting.limits import changed_limits, limits_of
from scheduler.runtime.waiting.overflow import Overflow
from scheduler.runtime.waiting.queues import Cause, Waiter
from scheduler.runtime.waiting.undecided import Undecided
from scheduler.runtime.waiting.waiting_jobs import MemoryBounds, Waiting
from scheduler.session.bindings import Binding, Bindings, binding_after, parse
from scheduler.timings import Timing

logger = logging.getLogger("scheduler.dispatcher")

COUNTED_MS: Final = 60_000
"""How long a kind of limit is counted that no snapshot names. `reserve` asks for it again if that is too short."""
TOO_LONG_MS: Final = 10  # a decision, or a wait for an earlier job of the session, that is counted and logged


class DispatchState:
    """The state of one dispatcher.

    Args:
        settings: of the process.
        layout: as stored.
        cell: its number.
        partitions: those that are ours.
        clock: the process's own.

    index: the snapshot by which jobs are placed.
    loads: node -> slots believed in use.
    counted: the limits that the cell counts for, by its last answer that named them.
    waiting: jobs that wait.
    overflow: entries that there is no memory for.
    undecided: waiting jobs that may belong to another pool.
    bindings: of sessions.
    report: counts since the start.
    decisions: how long it took to choose candidates.
    session_waits: how long jobs waited for an earlier job of their session.
    """

    def __init__(
        self, settings: Settings, layout: messages.Layout, cell: int, partitions: Partitions, clock: Clock
    ) -> None:
        self.index = Index()
        self.loads: dict[str, int] = {}
        self.counted = messages.Counted()
        self.partitions = partitions
        self.clock = clock
        self.waiting = Waiting()
        self.overflow = Overflow(MemoryBounds(settings.waiting_class_max, settings.waiting_max))
        self.undecided = Undecided(self.waiting.members)
        self.bindings = Bindings(settings.sessions_max, settings.session_ttl_ms)
        self.report = Report()
        self.decisions = Timing(self.report.decision_us, 1_000 * TOO_LONG_MS)
        self.session_waits = Timing(self.report.session_wait_ms, TOO_LONG_MS)
        self._sessions_max = settings.sessions_max
        self._layout = layout
        self._cell = cell
        self._counted_at_ms = 0.0
        self._rejections: list[messages.RejectItem] = []
        self._stuck: list[messages.RejectItem] = []
        self._repeats = Repeats(logger, clock)

    # ---- questions ----

    @property
    def must_read_bindings(self) -> bool:
        """Whether bindings are read before jobs are tried: while most are stored, or jobs wait, whose class depends on
        them.
        """
        return self.bindings.should_prefetch or len(self.waiting) > 0 or bool(self.overflow)

    @property
    def is_outdated(self) -> bool:
        """Whether the cell refuses what is placed by this snapshot."""
        return self.counted.version > self.index.version

    @property
    def must_read_again(self) -> bool:
        """Whether a part of what was deferred is to be read again."""
        return bool(self.overflow) and self.overflow.is_due(self.waiting.count, len(self.waiting), self.clock.ms())

    def kinds(self, index: Index) -> frozenset[str]:
        """The kinds of limits that a reservation counts for: those of the snapshot, and those that the cell named
        because a later snapshot has them.
        """
        return index.counted | self.counted.kinds if self.counted.kinds else index.counted

    def unread(self, sessions: Iterable[str]) -> list[str]:
        """The sessions whose bindings must be read before they are placed; without its binding a session would move."""
        return [session for session in dict.fromkeys(sessions) if session not in self.bindings]

    def classify(self, job: Job, now_ms: float) -> JobClass:
        """The class of a job by what is known now."""
        binding, _ = self.bindings.get(job.session_id, now_ms)
        return candidates.classify(job, binding, self.index)

    def must_defer(self, job: Job, job_class: JobClass) -> bool:
        """Whether a job would pass one that was deferred: of its session, its class, or one of its limits."""
        causes: list[Cause] = [job_class]
        causes += [(limit, job_class.pool) for limit in limits_of(job, job_class, self.index)]
        return self.overflow.must_defer(job.session_id, causes)

    # ---- the snapshot ----

    def apply_snapshot(self, index: Index) -> None:
        """Place by another snapshot: a class that gained a node is tried, and jobs that may belong to another pool now
        are to be decided anew.
        """
        old, self.index, self.waiting.index = self.index, index, index
        if index is old:
            return
        self.forget_counted()
        for job_class, nodes in snapshot_changes.gained_nodes(self.waiting.classes(), old, index):
            self.waiting.unblock_class(job_class, nodes)
        self.waiting.limits.notify_pools(changed_limits(old.pools, index.pools))
        for job_class in snapshot_changes.movable_classes(self.waiting.members.classes(), old, index):
            self.undecided.add(job_class)
        if self.overflow and snapshot_changes.any_may_move(old, index):
            self.overflow.review()

    def reclassify(self, waiters: Iterable[Waiter], now_ms: float) -> None:
        """Decide the class of waiting jobs anew. What their sessions are bound to must have been read."""
        for waiter in waiters:
            job_class = self.classify(waiter.job, now_ms)
            if job_class != waiter.job_class:
                self.waiting.reclassify(waiter, job_class)

    def forget_counted(self) -> None:
        """Forget the kinds that the cell named, if the snapshot has them now, or if that was long ago."""
        is_in_snapshot = self.counted.kinds <= self.index.counted and not self.is_outdated
        if is_in_snapshot or self.clock.ms() - self._counted_at_ms > COUNTED_MS:
            self.counted = messages.Counted()

    # ---- what was read ----

    def apply_batch(self, batch: Batch) -> list[Job]:
        """Events, bindings and rejections of a batch. Returns: its jobs that are still ours and in time."""
        self.report.read += len(batch.jobs) + len(batch.refused)
        self._rejections += batch.refused
        # Once memory is full, what was read ahead may be older than what was written and forgotten since.
        if batch.bindings and len(self.bindings) < self._sessions_max:
            for job in batch.jobs:
                is_news = job.session_id in batch.bindings and job.session_id not in self.bindings
                if is_news and self.partitions.holds(job.partition, job.epoch):
                    self.bindings.learn(job.session_id, parse(batch.bindings[job.session_id]))
        for node in batch.freed:
            if node in self.loads:
                self.loads[node] = max(0, self.loads[node] - 1)
        if batch.freed:
            self.waiting.unblock(batch.freed, self.index.serves)
        if batch.limits:
            self.waiting.limits.notify(batch.limits)
        if batch.gap:
            self.waiting.ask_all()
        return self.in_time([job for job in batch.jobs if self.partitions.holds(job.partition, job.epoch)])

    def apply_bindings(self, sessions: Sequence[str], unread: Sequence[str], read: Sequence[Binding | None]) -> None:
        """Learn the bindings that were read. Those that were known are used first, so that none is dropped for these.

        Args:
            sessions: all that are needed.
            unread: those of them that were not known.
            read: the bindings of these.
        """
        now_ms = self.clock.ms()
        for session in sessions:
            self.bindings.get(session, now_ms)
        for session, binding in zip(unread, read, strict=True):
            self.bindings.learn(session, binding)

    def in_time(self, jobs: Iterable[Job]) -> list[Job]:
        """Jobs whose deadline has not passed; the others are rejected."""
        now_ms = self.clock.ms()
        in_time = []
        for job in jobs:
            if job.deadline_at_ms is not None and job.deadline_at_ms <= now_ms:
                self._rejections.append(expired(job))
            else:
                in_time.append(job)
        return in_time

    def deferred_of(self, jobs: Iterable[Job]) -> list[Job]:
        """Of entries that were read again, those that were deferred and are not in hand."""
        ending = {(item.partition, item.entry_id) for item in self._rejections + self._stuck}
        return [
            job
            for job in jobs
            if self.overflow.is_deferred(job) and not self.waiting.holds(job) and job.key not in ending
        ]

    def admit(self, jobs: Iterable[Job]) -> list[Job]:
        """Those of deferred jobs that there is memory for now. Their bindings must have been read."""
        now_ms, waiting = self.clock.ms(), self.waiting
        in_time = self.in_time(jobs)
        causes = {job.key: waiting.cause(job, self.classify(job, now_ms)) for job in in_time}
        return self.overflow.admit(in_time, lambda job: causes[job.key], waiting.count, len(waiting))

    def forget(self, partitions: Collection[int]) -> None:
        """Forget everything about partitions: they have another owner now, or are read anew."""
        self.waiting.drop_partitions(partitions)
        self.overflow.forget(partitions)
        self._rejections = [item for item in self._rejections if item.partition not in partitions]
        self._stuck = [item for item in self._stuck if item.partition not in partitions]
        count, cells = self._layout.partitions, self._layout.cells
        sessions = self.bindings.sessions()
        self.bindings.forget([name for name in sessions if keys.partition_of(name, count, cells) in partitions])

    # ---- answers of `reserve` ----

    def apply_lookups(self, call: Call, answers: Sequence[Answer | None]) -> list[int]:
        """Learn what the script found of sessions whose bindings were not known.

        Returns: the numbers of the attempts that have no slot yet and whose sessions are bound, or may be. They are
        decided anew, because a job that waits must do so in the class that its binding gives it.
        """
        bound = set()
        for attempt, answer in zip(call.attempts, answers, strict=True):
            if isinstance(answer, messages.Reserved):
                continue
            if answer is not None and answer.why == "bound" and not attempt.is_unread:
                bound.add(attempt.job.session_id)  # by an earlier call, whose answer was lost
                self.bindings.forget([attempt.job.session_id])
            elif not attempt.is_unread:
                continue
            elif answer is None or answer.why == "bound":
                bound.add(attempt.job.session_id)
            elif answer.why in ("full", "limited"):
                self.bindings.learn(attempt.job.session_id, None)
        if not bound:
            return []
        return [
            number
            for number, attempt in enumerate(call.attempts)
            if attempt.job.session_id in bound and not isinstance(answers[number], messages.Reserved)
        ]

    def apply_answers(self, call: Call, answers: Sequence[Answer | None]) -> None:
        """Apply the answer to each attempt of a call; None for an attempt without candidates."""
        at_once, waited = 0, []
        holds = self.partitions.holds
        for attempt, answer in zip(call.attempts, answers, strict=True):
            job, waiter = attempt.job, attempt.waiter
            is_placed = isinstance(answer, messages.Reserved)
            if is_placed and waiter is None:
                at_once += 1
            elif is_placed and waiter is not None:
                waited.append((waiter.first_ms - waiter.since_ms, job))
            if not holds(job.partition, job.epoch):
                continue
            if isinstance(answer, messages.Reserved):
                self._apply_placed(attempt, answer, call.sent_ms)
            elif answer is not None and answer.why not in messages.HOLDS_BACK:
                self._apply_end(attempt, answer)
            else:
                if answer is not None:
                    self._apply_held_back(attempt, answer, call.sent_ms)
                if waiter is None:
                    self._wait(attempt, answer, call)
                else:
                    self._wait_again(attempt, waiter, answer, call.mark)
        self._time_waits(at_once, waited)

    def _apply_placed(self, attempt: PlacementAttempt, answer: messages.Reserved, now_ms: float) -> None:
        job, bindings = attempt.job, self.bindings
        has_moved = False
        self.report.placed += 1
        if answer.used >= 0:
            self.loads[answer.node] = answer.used
            if attempt.is_unread:
                bindings.record_lookup(is_stored=False)
            binding = bindings.peek(job.session_id) or attempt.binding  # a repeat in the call made us forget it
            after = binding_after(binding, attempt.job_class.pool, job.src_lang, job.tgt_lang, answer.home)
            if not attempt.is_fresh or after != binding:
                bindings.wrote(job.session_id, after, now_ms)
            has_moved = binding is None or after.pool != binding.pool
        else:
            bindings.forget([job.session_id])  # a repeat, which does not tell where the session is bound now
        if attempt.waiter is not None:
            self.waiting.leave(attempt.waiter, placed=answer.node)
            if answer.filled:
                self.waiting.filled(answer.node)
        if has_moved and len(self.waiting):  # for room and limits of another pool now
            self.reclassify(self.waiting.of_session(job.session_id), now_ms)

    def _apply_end(self, attempt: PlacementAttempt, answer: messages.Refused) -> None:
        """A job that is not ours, that was dealt with before, or that ends."""
        job = attempt.job
        if answer.why == "fenced":
            self.partitions.lose(job.partition)
            return
        if answer.why in messages.DEALT_WITH:  # perhaps by an earlier call of ours, whose answer never came
            self.bindings.forget([job.session_id])
        rejection = rejection_of(job, answer, self._cell)
        if rejection is not None:
            self._rejections.append(rejection)
        if attempt.waiter is not None:
            self.waiting.leave(attempt.waiter)

    def _apply_held_back(self, attempt: PlacementAttempt, answer: messages.Refused, sent_ms: float) -> None:
        """Learn what the answer says about nodes and limits."""
        if answer.counted is not None:
            self.counted, self._counted_at_ms = answer.counted, sent_ms
        if answer.why == "full" and attempt.placement is not None:
            self._believe(dict.fromkeys(attempt.placement.candidates, False))
        if answer.why == "limited":
            self.report.limited += 1
        elif answer.why != "outdated":
            self.report.full += 1

    def _wait(self, attempt: PlacementAttempt, answer: messages.Refused | None, call: Call) -> None:
        """A newcomer that was not placed. answer: None when it was held back behind others, or no node can serve it.

        The answer is of no use if the job has another class now.
        """
        job, job_class, waiting = attempt.job.without_body(), attempt.job_class, self.waiting
        sent_ms = call.sent_ms
        if call.index is not self.index or self._has_another_pool(attempt):
            job_class = self.classify(job, sent_ms)
            answer = answer if job_class == attempt.job_class else None
        if not call.is_again and self._defer(job, job_class, answer):
            return
        if answer is not None and answer.why == "limited":
            waiting.found_limit_full(job, job_class, sent_ms, answer.limit, call.mark)
        elif answer is None and waiting.must_wait(job, job_class):
            waiting.queue(job, job_class, sent_ms)
        else:
            waiting.found_no_room(job, job_class, sent_ms)

    def _has_another_pool(self, attempt: PlacementAttempt) -> bool:
        """Whether an earlier job of the session was placed since the attempt was decided, and bound it elsewhere."""
        binding = self.bindings.peek(attempt.job.session_id)
        return binding is not None and (attempt.binding is None or attempt.binding.pool != binding.pool)

    def _defer(self, job: Job, job_class: JobClass, answer: messages.Refused | None) -> bool:
        """Defer a newcomer if memory has no place for it, or for an earlier job of its session."""
        cause = self.waiting.cause(job, job_class)
        if answer is not None and answer.why == "limited" and cause == job_class:
            cause = (answer.limit, job_class.pool)
        if self.overflow.bounds.are_full(cause, self.waiting.count(cause), len(self.waiting)):
            self.overflow.defer(job, cause)
        elif self.overflow and self.must_defer(job, job_class):
            self.overflow.defer(job)
        else:
            return False
        return True

    def _wait_again(
        self, attempt: PlacementAttempt, waiter: Waiter, answer: messages.Refused | None, mark: int
    ) -> None:
        """An attempt of a waiting job had no success."""
        assert attempt.placement is not None
        assert answer is not None
        if answer.why == "limited":
            self.waiting.still_limited(waiter, answer.limit, mark)
        elif answer.why == "outdated":
            self.waiting.try_again(waiter)
        else:
            self.waiting.still_full(waiter, attempt.placement.candidates)

    # ---- other answers ----

    def _believe(self, has_room: Mapping[str, bool]) -> None:
        """Correct the believed loads. has_room: node -> whether the server has just said that it has room."""
        for name, is_open in has_room.items():
            node = self.index.nodes.get(name)
            if node is not None and (not is_open or self.loads.get(name, 0) >= node.slots):
                self.loads[name] = node.slots - is_open

    def apply_open(
        self,
        waiters: Sequence[Waiter],
        open_nodes: Mapping[JobClass, Sequence[str]],
        has_room: Mapping[str, bool],
    ) -> None:
        """Apply which nodes have room for the asking waiters. The first of a class gets the nodes, for all of it.

        Args:
            waiters: that asked.
            open_nodes: by class, in the order in which they are to be tried.
            has_room: of every node that was asked about.
        """
        self._believe(has_room)
        answered: set[JobClass] = set()
        for waiter in waiters:
            nodes: Sequence[str] = ()
            if waiter.job_class not in answered and waiter.state != "left":
                answered.add(waiter.job_class)
                nodes = open_nodes.get(waiter.job_class, ())
            self.waiting.apply_open(waiter, tuple(nodes))

    def reject(self, items: Iterable[messages.RejectItem]) -> None:
        """Add jobs that are to be ended."""
        self._rejections += items

    def take_rejections(self) -> list[messages.RejectItem]:
        """Take the jobs that are to be ended now."""
        items, self._rejections = self._rejections, []
        return items

    def retry_rejections(self) -> None:
        """End the jobs now that could not be ended before."""
        self._repeats.step()
        self._rejections += self._stuck
        self._stuck = []

    def apply_rejected(self, items: Sequence[messages.RejectItem], answers: Sequence[str]) -> None:
        """Apply the answers to jobs that were to be ended."""
        for item, answer in zip(items, answers, strict=True):
            generated = keys.generated_job_id(self._cell, item.partition, item.entry_id)
            if answer == "fenced":
                self.partitions.lose(item.partition)
            elif answer in ("duplicate", "broken") and item.job_id != generated:
                # The record under its id is another entry's, or unreadable: it ends under an id of its own.
                self._rejections.append(msgspec.structs.replace(item, job_id=generated))
            elif answer in ("busy", "broken"):
                logger.error("job %s cannot be ended (%s): %s", item.job_id, item.reason, answer)
                self._stuck.append(item)
            else:
                self.report.rejected += 1
                if answer == "rejected":
                    self._log_rejected(item)

    def _log_rejected(self, item: messages.RejectItem) -> None:
        """A job that died is a warning; one that was cancelled is not, because a person asked for that."""
        if item.reason == "cancelled":
            logger.info("job %s of session %s is cancelled: %s", item.job_id, item.session_id, item.detail)
            return
        whose = f" of session {item.session_id}" if item.session_id else ""  # an unreadable document names none
        line = f"job {item.job_id}{whose} is dead, {item.reason}: {item.detail}"
        self._repeats.warn(f"jobs are dead, {item.reason}", lambda: line)

    # ---- times ----

    def decided(self, started_ms: float, jobs: int) -> None:
        """Count the time that it took to choose candidates. jobs: for how many they were chosen."""
        now_ms = self.clock.ms()
        took_us = (now_ms - started_ms) * 1_000 / max(1, jobs)
        if jobs and (above := self.decisions.add(took_us, now_ms, jobs)):
            logger.info(
                "choosing candidates took more than %d ms a job for %d jobs, %d ms at most",
                TOO_LONG_MS, above.count, above.max / 1_000,
            )  # fmt: skip

    def _time_waits(self, at_once: int, waited: Iterable[tuple[float, Job]]) -> None:
        """Count how long jobs that were placed had waited for an earlier job of their session.

        Args: at_once, jobs that did not wait at all; waited, milliseconds of each other one.
        """
        now_ms = self.clock.ms()
        for waited_ms, job in waited:
            if waited_ms < 1:
                at_once += 1
            elif above := self.session_waits.add(waited_ms, now_ms):
                logger.info(
                    "%d jobs waited more than %d ms for an earlier one of their session, half of them %d ms, the "
                    "longest %d ms: job %s of session %s is the last of them",
                    above.count, TOO_LONG_MS, above.p50, above.max, job.job_id, job.session_id,
                )  # fmt: skip
        self.session_waits.add(0, now_ms, at_once)
        for waiter in self.waiting.promoted:
            waiter.first_ms = now_ms
        self.waiting.promoted.clear()
