"""The dispatcher's steps around `Waiting`, synchronous: with the names of runtime/dispatcher.py and placer.py, without
connections and clocks. What must hold between two steps is checked here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple, Protocol

import msgspec

from scheduler.calls import Refused as NotPlaced
from scheduler.calls import Reserved
from scheduler.runtime import placement
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Class, Job
from scheduler.runtime.limits import changed_limits, has_room, limits_of
from scheduler.runtime.lines import Cause, gains, order_of, tier_of
from scheduler.runtime.skipped import Skipped
from scheduler.runtime.tries import Try, chunks
from scheduler.runtime.waiting import Waiter, Waiting
from scheduler.session.bindings import Binding, Bindings
from tests.property.cell import PARTITIONS, Cell, Event

BATCH_MAX: Final = 3
SESSIONS_MAX: Final = 4
GRACE_MS: Final = 3
ROUNDS_MAX: Final = 500


class Batch(NamedTuple):
    """What a read brought. events: how many of `freed` were handed over with it and before."""

    entries: tuple[Job, ...] = ()
    freed: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    gap: bool = False
    events: int = 0


class Call(NamedTuple):
    """A call that was sent, with the answers that it will be given.

    chosen_by: the snapshot of then; mark: what had been told of limits by then; again: whether its jobs had been
    scanned past before.
    """

    tries: list[Try]
    answers: list[Reserved | NotPlaced]
    chosen_by: Index
    mark: int
    again: bool


class MemoryPlan(NamedTuple):
    """How many may wait for the same, and in all; bits: in which sessions with skipped jobs are remembered."""

    share: int = 100
    total: int = 100
    bits: int = 64


ENOUGH: Final = MemoryPlan()


class Between(Protocol):
    def __call__(self, timers: bool = False) -> None: ...


class Driver:
    """The dispatcher's steps around `Waiting`. between: lets something else happen; timers: also what is on timers."""

    def __init__(self, cell: Cell, between: Between, random: Random, memory: MemoryPlan) -> None:
        self.memory = memory
        self.skipped = Skipped(memory.share, memory.total, memory.bits)
        self.waiting = Waiting(self._limits_of, self._tier_of)
        self.bindings = Bindings(SESSIONS_MAX, 1_000_000)
        self.index = Index(cell.snapshot)
        self.epochs = dict(cell.epochs)
        self.refused: list[Job] = []
        self.loads: dict[str, int] = {}
        self.cursors = dict.fromkeys(cell.epochs, 0)
        self.events_read = 0
        self.events_handed = 0
        self.ahead: Batch | None = None
        self.no_node_since: dict[Class, int] = {}
        self.homeless: dict[Class, None] = {}
        self.tries_in_vain = 0
        self._cell = cell
        self._between = between
        self._random = random

    def _limits_of(self, job: Job, wanted: Class) -> tuple[str, ...]:
        return limits_of(job, wanted, self.index.pools)

    def _tier_of(self, wanted: Class, node: str) -> int:
        return tier_of(self.index, wanted, node)

    # ---- the reader ----

    def read(self, events: int, entries: int, gap: bool = False) -> Batch:
        """At most `events` of `freed` and `entries` of each partition. gap: the events are lost on the way."""
        end = min(len(self._cell.events), self.events_read + events)
        events_read = [] if gap else self._cell.events[self.events_read : end]
        freed = dict.fromkeys(node for event in events_read for node in event.nodes)
        limits = dict.fromkeys(limit for event in events_read for limit in event.limits)
        self.events_read = end
        found: list[Job] = []
        for partition, epoch in self.epochs.items():
            fresh = [job for entry, job in self._cell.intake[partition].items() if entry > self.cursors[partition]][
                :entries
            ]
            if fresh:
                self.cursors[partition] = int(fresh[-1].entry_id)
            found += [msgspec.structs.replace(job, epoch=epoch) for job in fresh]
        return Batch(tuple(found), tuple(freed), tuple(limits), gap, end)

    # ---- the step ----

    def run_once(self, events: int, entries: int, gap: bool) -> None:
        self._keep()
        if not self.waiting.busy:
            self.check_settled()
        batch, self.ahead = self.ahead or self.read(events, entries, gap), None
        self._swap()
        self._rehouse()
        newcomers = self._take(batch)
        for waiter in self.waiting.deadlines.overdue(self._cell.now_ms, 100):
            self._refuse(waiter.job)
            self.waiting.leave(waiter)
        self._wake(batch)
        self._try_waiting()
        self._newcomers(newcomers)
        self._try_waiting()
        self._read_again()
        self._try_waiting()
        self._reject_refused()

    def _take(self, batch: Batch) -> list[Job]:
        return self._in_time(batch.entries)

    def _in_time(self, jobs: Sequence[Job]) -> list[Job]:
        in_time = []
        for job in jobs:
            if job.deadline_at_ms is not None and job.deadline_at_ms <= self._cell.now_ms:
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

    def _more(self) -> list[Job]:
        if self.ahead is None or self.waiting.busy or self.homeless or self.is_due:
            return []
        batch, self.ahead = self.ahead, None
        self._swap()
        newcomers = self._take(batch)
        self._wake(batch)
        return newcomers

    def _swap(self) -> None:
        old, new = self.index, self.index
        if self._cell.snapshot.version != old.version:
            new = self.index = Index(self._cell.snapshot)
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
        return self.skipped.is_due(self.waiting.count, len(self.waiting), self._cell.now_ms)

    def _read_again(self) -> None:
        """Two entries of each partition at a time."""
        if not self.is_due:
            return
        found: list[Job] = []
        read_to: dict[int, str | None] = {}
        for partition, cursor in self.skipped.cursors().items():
            entries = self._cell.intake[partition].values()
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
        self.skipped.went_on(read_to, self.waiting.count, len(self.waiting), self._cell.now_ms)

    def _cause_of(self, job: Job) -> Cause:
        binding, _ = self.bindings.get(job.session_id, 0)
        return self.waiting.cause(job, placement.classify(job, binding, self.index))

    def _newcomers(self, jobs: Sequence[Job], again: bool = False) -> None:
        """As placer.py: a call is made ready, and may be answered, before the one before it is settled."""
        self._between()
        under_way: list[Call] = []
        while jobs:
            if self.skipped and not again:
                self._know([job.session_id for job in jobs])
                jobs = self._scan_past(jobs)
            for chunk in chunks(jobs, BATCH_MAX, lambda partition: partition % 2):
                partitions = {job.partition for job in chunk}
                if under_way and any(each.job.partition in partitions for each in under_way[0].tries):
                    self._land(under_way)
                if self.waiting.busy:
                    self._land(under_way)
                    self._try_waiting()
                self._know([job.session_id for job in chunk])
                tries = self._tries(chunk if again else self._scan_past(chunk))
                self._check_newcomers(tries, again)
                under_way.append(self._send(tries, again))
                if len(under_way) > 1:
                    self._land(under_way, 1)
            for _ in range(2):  # an event, and a read that brings it, before the last call is settled
                self._between()
            jobs = [] if again else self._more()
        self._land(under_way)

    def _land(self, under_way: list[Call], count: int | None = None) -> None:
        for _ in range(len(under_way) if count is None else count):
            self._settle_all(under_way.pop(0))

    def _know(self, sessions: Sequence[str]) -> None:
        """Read the bindings that memory has not, or has no more."""
        missing = [session for session in dict.fromkeys(sessions) if session not in self.bindings]
        for session in sessions if missing else ():
            self.bindings.get(session, 0)
        for session in missing:
            self.bindings.learn(session, self._cell.bindings.get(session))

    def _scan_past(self, jobs: Sequence[Job]) -> list[Job]:
        kept = []
        for job in jobs:
            binding, _ = self.bindings.get(job.session_id, 0)
            wanted = placement.classify(job, binding, self.index)
            if self.epochs.get(job.partition) == job.epoch and self._passes_over(job, wanted):
                self.skipped.skip(job)
            else:
                kept.append(job)
        return kept

    def _passes_over(self, job: Job, wanted: Class) -> bool:
        causes = [(limit, wanted.pool) for limit in self._limits_of(job, wanted)]
        return self.skipped.passes_over(job.session_id, [wanted, *causes])

    def _tries(self, jobs: Sequence[Job]) -> list[Try]:
        draws = placement.Draws(self.loads, self._random, len(jobs))
        tries: list[Try] = []
        held: set[str] = set()
        for job in jobs:
            if self.epochs.get(job.partition) != job.epoch:
                continue
            binding, _ = self.bindings.get(job.session_id, 0)
            wanted = placement.classify(job, binding, self.index)
            found = None
            if job.session_id not in held and not self.waiting.must_wait(job, wanted):
                found = placement.place(job, wanted, binding, self.index, draws)
            if found is None:
                held.add(job.session_id)
            tries.append(Try(job, wanted, None, found))
        return tries

    def _try_waiting(self) -> None:
        rounds = 0
        while self.waiting.busy:
            rounds += 1
            assert rounds < ROUNDS_MAX, "the waiting are tried without end"
            self._keep()
            asking = self.waiting.asking()
            if asking:
                self._ask(asking)
            tries = []
            chosen = self.waiting.tries(BATCH_MAX)
            self._check_turns(chosen)
            self._know([waiter.job.session_id for waiter in chosen])
            for waiter in chosen:
                attempt = self._place_waiter(waiter)
                if attempt is not None:
                    tries.append(attempt)
            self._reserve(tries)

    def _place_waiter(self, waiter: Waiter) -> Try | None:
        binding, _ = self.bindings.get(waiter.job.session_id, 0)
        job, wanted = waiter.job, waiter.wanted
        if waiter.hint is None:
            wanted = placement.classify(job, binding, self.index)
            if wanted != waiter.wanted:
                self.waiting.reclassify(waiter, wanted)
                return None
            draws = placement.Draws(self.loads, self._random)
            found = placement.place(job, wanted, binding, self.index, draws)
            if found is None:
                self.waiting.park(waiter)
                return None
        else:
            found = placement.place_among(job, wanted, binding, self.index, waiter.hint, self.loads, self._random)
            if found is None:
                waiter.complete = False
                self.waiting.still_full(waiter, waiter.hint)
                return None
        return Try(job, wanted, waiter, found)

    def _ask(self, waiters: list[Waiter]) -> None:
        self._between()
        is_open = set(self._cell.open)
        for waiter in waiters:
            nodes = [node.id for node in self.index.eligible(waiter.wanted) if node.id in is_open]
            self._random.shuffle(nodes)
            self.waiting.answer_open(waiter, tuple(nodes))

    def _reserve(self, tries: list[Try]) -> None:
        self._settle_all(self._send(tries))

    def _send(self, tries: list[Try], again: bool = False) -> Call:
        sent = [each for each in tries if each.placement is not None]
        mark = self.waiting.limits.mark
        if not sent:
            return Call(tries, [], self.index, mark, again)
        self._between()
        self._check_bindings(sent)
        return Call(tries, self._cell.reserve(sent, self.index), self.index, mark, again)

    def _settle_all(self, call: Call) -> None:
        answered = iter(call.answers)
        for each in call.tries:
            self._settle(each, next(answered) if each.placement is not None else None, call)
        self._reject_refused()

    def _settle(self, each: Try, answer: Reserved | NotPlaced | None, call: Call) -> None:
        job, waiter = each.job, each.waiter
        if self.epochs.get(job.partition) != job.epoch:
            return
        if isinstance(answer, Reserved):
            self.loads[answer.node] = answer.used
            self.bindings.wrote(job.session_id, Binding(each.wanted.pool, job.src_lang, job.tgt_lang, answer.node), 0)
            if waiter is not None:
                self.waiting.leave(waiter, placed=answer.node)
        elif answer is None or answer.why in ("full", "behind", "limited"):
            if waiter is None:
                self._wait(each, answer, call)
            else:
                assert answer is not None
                assert each.placement is not None
                self.tries_in_vain += 1
                if answer.why == "limited":
                    self.waiting.still_limited(waiter, answer.limit, call.mark)
                else:
                    self.waiting.still_full(waiter, each.placement.candidates)
        elif answer.why == "fenced":
            self._lose(job.partition)
        else:
            if answer.why == "cancelling":
                self._refuse(job)
            if waiter is not None:
                self.waiting.leave(waiter)

    def _wait(self, each: Try, answer: NotPlaced | None, call: Call) -> None:
        job, wanted = each.job, each.wanted
        if call.chosen_by is not self.index:
            binding, _ = self.bindings.get(job.session_id, 0)
            wanted = placement.classify(job, binding, self.index)
            answer = answer if wanted == each.wanted else None
        limited = answer is not None and answer.why == "limited"
        if not call.again:
            cause = self.waiting.cause(job, wanted)
            if limited and cause == wanted and answer is not None:
                cause = (answer.limit, wanted.pool)
            full = self.skipped.is_full(self.waiting.count(cause), len(self.waiting))
            if full or self._passes_over(job, wanted):
                self.skipped.skip(job, cause if full else None)
                return
        if limited and answer is not None:
            self.waiting.newly_limited(job, wanted, 0, answer.limit, call.mark)
        elif answer is None and self.waiting.must_wait(job, wanted):
            self.waiting.queue(job, wanted, 0)
        else:
            self.waiting.tried_in_vain(job, wanted, 0)

    def _reject_refused(self) -> None:
        refused, self.refused = self.refused, []
        for job in refused:
            if self.epochs.get(job.partition) == job.epoch:
                self._between()
                if not self._cell.reject(job):
                    self._lose(job.partition)

    # ---- what runs on timers ----

    def _keep(self) -> None:
        self._between(timers=True)

    def claim(self) -> None:
        for partition, epoch in self._cell.epochs.items():
            if not self._cell.ours[partition]:
                self._lose(partition)
            elif self.epochs.get(partition) != epoch:
                self._lose(partition)
                self.epochs[partition] = epoch
                self.cursors[partition] = 0

    def _lose(self, partition: int) -> None:
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
        now_ms = self._cell.now_ms
        self.no_node_since = {each: self.no_node_since.get(each, now_ms) for each in unservable}
        for given_up, since_ms in self.no_node_since.items():
            if now_ms - since_ms >= GRACE_MS:
                for waiter in self.waiting.members.last(given_up, 100):
                    self._refuse(waiter.job)
                    self.waiting.leave(waiter)
        settled = [each for each in self.waiting.settled_classes() if self.index.eligible(each)]
        limits = self.waiting.limits.settled()
        is_open = set(self._cell.open)
        self._between()
        used = {limit: self._cell.used(limit) for limit, _ in limits}
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
        events: list[Event] = self._cell.events[self.events_handed :]
        return {node for each in events for node in each.nodes}, {limit for each in events for limit in each.limits}

    def _refuse(self, job: Job) -> None:
        self.refused.append(job)
        self._cell.ending.add(job.job_id)

    # ---- what must hold ----

    def first(self) -> dict[str, Waiter]:
        """The first waiter of each session, found without any of the bookkeeping under test."""
        first: dict[str, Waiter] = {}
        for waiter in sorted(self.waiting, key=lambda waiter: waiter.order):
            first.setdefault(waiter.job.session_id, waiter)
        return first

    def _check_bindings(self, sent: Sequence[Try]) -> None:
        """What a session is bound to is known in every call, however many sessions there are."""
        for each in sent:
            session = each.job.session_id
            if self._cell.ours[each.job.partition] and self._cell.epochs[each.job.partition] == each.job.epoch:
                known, _ = self.bindings.get(session, 0)
                assert known == self._cell.bindings.get(session), f"{session} is taken to be bound to {known}"

    def _check_newcomers(self, tries: list[Try], again: bool) -> None:
        """Newcomers pass neither those of their class who compete, nor those who wait for a limit, nor anybody of
        their session, nor such as were skipped.
        """
        first = self.first()
        classes = {waiter.wanted for waiter in first.values() if waiter.status != "limited"}
        for each in tries:
            if each.placement is not None:
                assert each.wanted not in classes, f"{each.job.job_id} passes competing jobs of its class"
                assert each.job.session_id not in first, f"{each.job.job_id} passes its session"
                skipped = not again and each.wanted in self.skipped._causes
                assert not skipped, f"{each.job.job_id} passes skipped jobs of its class"
                for limit in self._limits_of(each.job, each.wanted):
                    passed = self.limited(limit, each.wanted.pool)
                    assert not passed, f"{each.job.job_id} passes {passed} at the limit {limit}"

    def limited(self, limit: str, pool: str) -> list[Waiter]:
        """Those who wait for a limit."""
        return [
            waiter
            for waiter in self.waiting
            if waiter.parked_at is not None and waiter.parked_at.limit == limit and waiter.wanted.pool == pool
        ]

    def _check_turns(self, chosen: Sequence[Waiter]) -> None:
        """A limit lets them go in order, those apart whose class waits for room; and they pass nobody in the class."""
        for waiter in chosen:
            if waiter.woken:
                left = set(self.waiting._lines[waiter.wanted].wakes).difference(waiter.hint or ())
                last = max(self._tier_of(waiter.wanted, node) for node in waiter.hint or ())
                assert all(last <= self._tier_of(waiter.wanted, node) for node in left), "a later pool is tried before"
        competing = {waiter.wanted for waiter in self.waiting if waiter.status in ("parked", "asking")}
        let_go = {(waiter.let_go.limit, waiter.wanted) for waiter in self.waiting if waiter.let_go is not None}
        for waiter in chosen:
            if waiter.let_go is not None and not waiter.competes:
                limit = waiter.let_go.limit
                assert waiter.wanted not in competing, f"{waiter.job.job_id} passes competing jobs of its class"
                for other in self.limited(limit, waiter.wanted.pool):
                    apart = other.wanted != waiter.wanted and (limit, other.wanted) in let_go
                    assert apart or waiter < other, f"{waiter.job.job_id} passes {other.job.job_id} at {limit}"
            elif waiter.woken and waiter.let_go is None:
                for limit in self._limits_of(waiter.job, waiter.wanted):
                    passed = self.limited(limit, waiter.wanted.pool)
                    assert not passed, f"{waiter.job.job_id} passes {passed} at {limit}"

    def check_settled(self) -> None:
        """Before the blocking read: nobody is in between, nobody is lost, nobody waits beside a free slot."""
        assert not self.waiting.busy, "the step ends although somebody is to be tried"
        first = self.first()
        waiters = list(self.waiting)
        for waiter in waiters:
            expected = ("parked", "limited") if first[waiter.job.session_id] is waiter else ("behind",)
            assert waiter.status in expected, f"{waiter.job.job_id} is {waiter.status}"
            assert (waiter.status == "limited") == (waiter.parked_at is not None)
            assert (waiter.status == "parked") == waiter.competes
            if waiter.wanted not in self.homeless and not self.index.eligible(waiter.wanted):
                binding = self._cell.bindings.get(waiter.job.session_id)
                wanted = placement.classify(waiter.job, binding, self.index)
                assert not self.index.eligible(wanted), f"{waiter.job.job_id} waits in a class that has no nodes"
        competing = [waiter for waiter in first.values() if waiter.status == "parked"]
        self._check_rooms(competing)
        self._check_limits([waiter for waiter in first.values() if waiter.status == "limited"], competing)
        counts = Counter(waiter.wanted for waiter in competing)
        assert set(self.waiting.classes()) == set(counts)
        assert {wanted: len(self.waiting.parked(wanted)) for wanted in counts} == dict(counts)
        assert len(self.waiting) == len(waiters)
        assert len(waiters) <= self.memory.total + 2 * BATCH_MAX, "more wait than there is memory for"
        self._check_nobody_lost(waiters)
        assert self.waiting.sweep_hits == 0, "the sweep found what no event told"

    def _check_rooms(self, competing: Sequence[Waiter]) -> None:
        told, _ = self.told()
        for waiter in competing:
            for node in self.index.eligible(waiter.wanted):
                host = self._cell.hosts[node.id]
                if host.has_room and node.boot == f"{host.boot}-x":
                    assert node.id in told, f"{waiter.job.job_id} is parked, {node.id} has room, and nothing tells it"

    def _check_limits(self, limited: Sequence[Waiter], competing: Sequence[Waiter]) -> None:
        """Who waits for a limit waits for one that is full, or about to be told; or one of its class was let go by that
        limit and waits for room.
        """
        _, told = self.told()
        let_go = {(waiter.let_go.limit, waiter.wanted) for waiter in competing if waiter.let_go is not None}
        for waiter in limited:
            assert waiter.parked_at is not None
            limit, wanted = waiter.parked_at.limit, waiter.wanted
            if has_room(limit, self._cell.used(limit), self.index.pools.get(wanted.pool)):
                assert limit in told or (limit, wanted) in let_go, f"{waiter.job.job_id} waits, and {limit} has room"

    def _check_nobody_lost(self, waiters: list[Waiter]) -> None:
        ahead = {job.entry_id for job in self.ahead.entries} if self.ahead else set()
        in_hand = Counter(waiter.job.entry_id for waiter in waiters)
        assert not in_hand or max(in_hand.values()) == 1, "a job waits twice"
        for partition, epoch in self.epochs.items():
            for entry, job in self._cell.intake[partition].items():
                if entry <= self.cursors[partition] and str(entry) not in ahead:
                    kept = in_hand[job.entry_id] + sum(each.entry_id == job.entry_id for each in self.refused)
                    assert kept == 1 or (kept == 0 and self.will_be_read(job)), f"{job.job_id} of epoch {epoch} is lost"

    def will_be_read(self, job: Job) -> bool:
        """Whether an entry is one of those that were scanned past, and later ones of its session are as well."""
        found = self.skipped._ranges.get(job.partition)
        if found is None or order_of(job.entry_id) > found.highest:
            return False
        first = found.lowest
        if self.skipped._passing:
            first = min(found.left or found.highest, (found.cursor[0], found.cursor[1] + 1))
        return order_of(job.entry_id) >= first and self.skipped.passes_over(job.session_id, [])
