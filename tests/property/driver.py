"""The dispatcher's steps around `Waiting`, synchronous: with the names of runtime/dispatcher.py and placer.py, without
connections and clocks. What must hold is in checks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple

import msgspec

from scheduler.runtime import placement
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Class, Job
from scheduler.runtime.limits import changed_limits, has_room
from scheduler.runtime.lines import Cause, gains, order_of
from scheduler.runtime.tries import Try
from scheduler.runtime.waiting import Waiter
from tests.property.cell import PARTITIONS, Cell, Event, MemoryPlan
from tests.property.checks import check_bindings, check_newcomers, check_settled, check_turns
from tests.property.placing import Between, Placing

GRACE_MS: Final = 3


class Batch(NamedTuple):
    """What a read brought. events: how many of `freed` were handed over with it and before."""

    entries: tuple[Job, ...] = ()
    freed: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    gap: bool = False
    events: int = 0


class Driver(Placing):
    """The dispatcher's steps around `Waiting`."""

    def __init__(self, cell: Cell, between: Between, random: Random, memory: MemoryPlan) -> None:
        super().__init__(cell, between, random, memory)
        self.cursors = dict.fromkeys(cell.epochs, 0)
        self.events_read = 0
        self.events_handed = 0
        self.ahead: Batch | None = None
        self.no_node_since: dict[Class, int] = {}
        self.homeless: dict[Class, None] = {}

    def check_newcomers(self, tries: Sequence[Try], again: bool) -> None:
        check_newcomers(self, tries, again)

    def check_turns(self, chosen: Sequence[Waiter]) -> None:
        check_turns(self, chosen)

    def check_bindings(self, sent: Sequence[Try]) -> None:
        check_bindings(self, sent)

    # ---- the reader ----

    def read(self, events: int, entries: int, gap: bool = False) -> Batch:
        """At most `events` of `freed` and `entries` of each partition. gap: the events are lost on the way."""
        end = min(len(self.cell.events), self.events_read + events)
        events_read = [] if gap else self.cell.events[self.events_read : end]
        freed = dict.fromkeys(node for event in events_read for node in event.nodes)
        limits = dict.fromkeys(limit for event in events_read for limit in event.limits)
        self.events_read = end
        found: list[Job] = []
        for partition, epoch in self.epochs.items():
            fresh = [job for entry, job in self.cell.intake[partition].items() if entry > self.cursors[partition]][
                :entries
            ]
            if fresh:
                self.cursors[partition] = int(fresh[-1].entry_id)
            found += [msgspec.structs.replace(job, epoch=epoch) for job in fresh]
        return Batch(tuple(found), tuple(freed), tuple(limits), gap, end)

    # ---- the step ----

    def run_once(self, events: int, entries: int, gap: bool) -> None:
        self.keep()
        if not self.waiting.busy:
            check_settled(self)
        batch, self.ahead = self.ahead or self.read(events, entries, gap), None
        self._swap()
        self._rehouse()
        newcomers = self._take(batch)
        for waiter in self.waiting.deadlines.overdue(self.cell.now_ms, 100):
            self._refuse(waiter.job)
            self.waiting.leave(waiter)
        self._wake(batch)
        others = self._try_waiting_beside(newcomers) if self.waiting.busy and newcomers else newcomers
        self._try_waiting()
        self._newcomers(others)
        self._try_waiting()
        self._read_again()
        self._try_waiting()
        self._reject_refused()

    def _take(self, batch: Batch) -> list[Job]:
        return self._in_time(batch.entries)

    def _in_time(self, jobs: Sequence[Job]) -> list[Job]:
        in_time = []
        for job in jobs:
            if job.deadline_at_ms is not None and job.deadline_at_ms <= self.cell.now_ms:
                self._refuse(job)
            else:
                in_time.append(job)
        return in_time

    def _wake(self, batch: Batch) -> None:
        self.events_handed = batch.events
        for node in batch.freed:
            if node in self.loads:
                self.loads[node] = max(0, self.loads[node] - 1)
        self.waiting.wake(batch.freed, self.index.serves)
        self.waiting.limits.tell(batch.limits)
        if batch.gap:
            self.waiting.ask_all()

    def more(self) -> list[Job]:
        if self.ahead is None or self.waiting.busy or self.homeless or self.is_due:
            return []
        batch, self.ahead = self.ahead, None
        self._swap()
        newcomers = self._take(batch)
        self._wake(batch)
        return newcomers

    def _swap(self) -> None:
        old, new = self.index, self.index
        if self.cell.snapshot.version != old.version:
            new = self.index = Index(self.cell.snapshot)
        if new is old:
            return
        for wanted, gained in gains(self.waiting.classes(), old, new):
            self.waiting.wake_class(wanted, gained)
        self.waiting.limits.tell_pools(changed_limits(old.pools, new.pools))
        self.homeless = dict.fromkeys(wanted for wanted in self.waiting.members.classes() if not new.eligible(wanted))

    def _rehouse(self) -> None:
        """Two at a time."""
        left = 2
        for wanted in list(self.homeless):
            waiters = self.waiting.members.first(wanted, left)
            self._know([waiter.job.session_id for waiter in waiters])
            moved = [waiter for waiter in waiters if self._classify_again(waiter)]
            if not moved:
                del self.homeless[wanted]
            left -= len(waiters)
            if not left:
                return

    def _classify_again(self, waiter: Waiter) -> bool:
        binding, _ = self.bindings.get(waiter.job.session_id, 0)
        wanted = placement.classify(waiter.job, binding, self.index)
        if wanted == waiter.wanted:
            return False
        self.waiting.reclassify(waiter, wanted)
        return True

    @property
    def is_due(self) -> bool:
        """Whether a part of what was skipped is to be read again."""
        return self.skipped.is_due(self.waiting.count, len(self.waiting), self.cell.now_ms)

    def _read_again(self) -> None:
        """Two entries of each partition at a time."""
        if not self.is_due:
            return
        found: list[Job] = []
        read_to: dict[int, str | None] = {}
        for partition, cursor in self.skipped.cursors().items():
            entries = self.cell.intake[partition].values()
            part = [job for job in entries if order_of(job.entry_id) > order_of(cursor)][:2]
            read_to[partition] = part[-1].entry_id if len(part) == 2 else None
            found += [msgspec.structs.replace(job, epoch=self.epochs[partition]) for job in part]
        self._between()
        refused = {job.entry_id for job in self.refused}
        found = [job for job in found if self.skipped.is_skipped(job) and job.entry_id not in refused]
        found = [job for job in found if not self.waiting.holds(job)]
        self._know([job.session_id for job in found])
        fresh = self._in_time(found)
        jobs = self.skipped.admit(fresh, self._cause_of, self.waiting.count, len(self.waiting))
        self._newcomers(jobs, again=True)
        self.skipped.went_on(read_to, self.waiting.count, len(self.waiting), self.cell.now_ms)

    def _cause_of(self, job: Job) -> Cause:
        binding, _ = self.bindings.get(job.session_id, 0)
        return self.waiting.cause(job, placement.classify(job, binding, self.index))

    # ---- what runs on timers ----

    def keep(self) -> None:
        self._between(timers=True)

    def claim(self) -> None:
        for partition, epoch in self.cell.epochs.items():
            if not self.cell.ours[partition]:
                self.lose(partition)
            elif self.epochs.get(partition) != epoch:
                self.lose(partition)
                self.epochs[partition] = epoch
                self.cursors[partition] = 0

    def lose(self, partition: int) -> None:
        if self.epochs.pop(partition, None) is None:
            return
        self.waiting.drop_partitions({partition})
        self.skipped.forget({partition})
        self.refused = [job for job in self.refused if job.partition != partition]
        self.bindings.forget([name for name in self.bindings.sessions() if int(name[1:]) % PARTITIONS == partition])

    def sweep(self) -> None:
        self.loads.clear()
        wanted = [each for each in self.waiting.members.classes() if each not in self.homeless]
        unservable = [each for each in wanted if not self.index.eligible(each)]
        now_ms = self.cell.now_ms
        self.no_node_since = {each: self.no_node_since.get(each, now_ms) for each in unservable}
        for given_up, since_ms in self.no_node_since.items():
            if now_ms - since_ms >= GRACE_MS:
                for waiter in self.waiting.members.last(given_up, 100):
                    self._refuse(waiter.job)
                    self.waiting.leave(waiter)
        settled = [each for each in self.waiting.settled_classes() if self.index.eligible(each)]
        limits = self.waiting.limits.settled()
        is_open = set(self.cell.open)
        self._between()
        used = {limit: self.cell.used(limit) for limit, _ in limits}
        self._between()
        nodes_told, limits_told = self.told()
        for each in settled:
            untold = [node.id for node in self.index.eligible(each) if node.id in is_open - nodes_told]
            if untold:
                self.waiting.wake_class(each, untold, swept=True)
        for limit, pool in limits:
            if limit not in limits_told and has_room(limit, used[limit], self.index.pools.get(pool)):
                self.waiting.limits.sweep(limit, pool)

    def told(self) -> tuple[set[str], set[str]]:
        """Nodes and limits of events that are in the stream and not handed over yet."""
        events: list[Event] = self.cell.events[self.events_handed :]
        return {node for each in events for node in each.nodes}, {limit for each in events for limit in each.limits}
