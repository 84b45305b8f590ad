"""Entries that were deferred because memory for waiting jobs is bounded.

Pure: no server, no clock.

Each cause that a job waits for (its class, a limit, its session) has a share of the memory, see `MemoryBounds`. A
newcomer above that share is deferred: the job itself is not remembered. What is remembered is its session, and between
which ids of each partition the deferred entries are. Until they have been read again, every job with the same cause and
every job of those sessions is deferred too, or it would pass an earlier one. Sessions are kept in a Bloom filter; a
false hit only delays a job.

Once there is memory again, deferred entries are read again in parts, from the lowest id of each partition on: this is a
pass. Entries that there is memory for are admitted, in order; the rest remain deferred. A pass ends at the highest id
of every partition. Sessions and causes without a remaining entry have then caught up, and are open to newcomers again.
A pass that cannot admit any more is given up, and the next one begins at the first entry that remains. A pass goes to
its end nevertheless in three cases: the filter has many sessions, the deadline of a deferred job has passed, or since a
snapshot some of the deferred jobs may belong to another pool and have another cause.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from scheduler.runtime.intake import Job
from scheduler.runtime.waiting.queues import Cause, EntryOrder, entry_order
from scheduler.runtime.waiting.waiting_jobs import MemoryBounds

SESSION_BITS: Final = 2**23  # 1 MiB; with 100,000 deferred sessions, 1 of 200,000 others is taken for one
CAUSES_MAX: Final = 1_000  # causes that are remembered; with more, every newcomer is deferred
LATE_EVERY_MS: Final = 10_000  # the least time between two passes that go to their end because deadlines passed
_HASHES: Final = 4
_BITS_A_SESSION_MIN: Final = 32  # with fewer, a pass goes to its end, and the bits are set anew
_LAST_SEQUENCE: Final = 2**64 - 1


def _before(order: EntryOrder) -> EntryOrder:
    milliseconds, sequence = order
    return (milliseconds, sequence - 1) if sequence else (milliseconds - 1, _LAST_SEQUENCE)


def _add(causes: set[Cause], cause: Cause) -> None:
    if len(causes) <= CAUSES_MAX:
        causes.add(cause)


def _deadline_of(job: Job) -> float:
    return math.inf if job.deadline_at_ms is None else job.deadline_at_ms


class _Sessions:
    """A set of sessions that may have false hits, but no false misses (Bloom 1970).

    bits: a power of two, 2**32 at most.
    """

    def __init__(self, bits: int) -> None:
        self._mask = bits - 1
        self._bytes = bytearray(bits // 8)

    def add(self, session_id: str) -> None:
        drawn = _hashes(session_id)
        for _ in range(_HASHES):
            bit = drawn & self._mask
            self._bytes[bit >> 3] |= 1 << (bit & 7)
            drawn >>= 32

    def __contains__(self, session_id: str) -> bool:
        drawn = _hashes(session_id)
        for _ in range(_HASHES):
            bit = drawn & self._mask
            if not self._bytes[bit >> 3] >> (bit & 7) & 1:
                return False
            drawn >>= 32
        return True


def _hashes(session_id: str) -> int:
    """All hashes of a session in one number, 32 bits each."""
    return int.from_bytes(hashlib.blake2b(session_id.encode(), digest_size=4 * _HASHES).digest())


class _Range:
    """Where the deferred entries of a partition are.

    cursor: how far the pass has come.
    first_remaining: the first entry that it did not admit.
    """

    __slots__ = ("cursor", "first_remaining", "highest", "lowest")

    def __init__(self, order: EntryOrder) -> None:
        self.lowest = self.highest = order
        self.cursor = _before(order)
        self.first_remaining: EntryOrder | None = None

    def add(self, order: EntryOrder) -> None:
        if order > self.highest:
            self.highest = order
        elif order < self.lowest:
            self.lowest = order
        if order <= self.cursor:
            self.cursor = _before(order)


class Overflow:
    """The entries that one dispatcher deferred.

    Args:
        bounds: of the memory for waiting jobs.
        bits: of the filter of sessions.

    deferred: how many entries were deferred, counted each time that they were read.
    """

    def __init__(self, bounds: MemoryBounds, bits: int = SESSION_BITS) -> None:
        self.deferred = 0
        self.bounds = bounds
        self._bits = bits
        self._looked_ms: float = -math.inf
        self._clear()

    def _clear(self) -> None:
        self._ranges: dict[int, _Range] = {}
        self._causes: set[Cause] = set()
        self._sessions: _Sessions | None = None
        self._since_pass = 0
        self._remaining_after_pass = 0
        self._deadline_ms: float = math.inf
        self._must_review = False
        self._begin_pass()
        self._passing = False

    def __bool__(self) -> bool:
        """Whether anything is deferred."""
        return bool(self._ranges)

    # ---- newcomers ----

    def must_defer(self, session_id: str, causes: Iterable[Cause]) -> bool:
        """Whether a newcomer has to be deferred, by its session and by the causes that it may have to wait for."""
        if self._sessions is None:
            return False
        closed = self._causes
        return len(closed) > CAUSES_MAX or any(cause in closed for cause in causes) or session_id in self._sessions

    def defer(self, job: Job, cause: Cause | None = None) -> None:
        """Defer a newcomer. cause: what it would have waited for, if its share is used up."""
        self.deferred += 1
        self._since_pass += 1
        if self._sessions is None:
            self._sessions = _Sessions(self._bits)
        self._sessions.add(job.session_id)
        if cause is not None:
            _add(self._causes, cause)
        self._deadline_ms = min(self._deadline_ms, _deadline_of(job))
        order = entry_order(job.entry_id)
        deferred = self._ranges.get(job.partition)
        if deferred is None:
            self._ranges[job.partition] = _Range(order)
        else:
            deferred.add(order)

    def forget(self, partitions: Collection[int]) -> None:
        """Forget partitions: they have another owner now, or are read anew."""
        for partition in partitions:
            self._ranges.pop(partition, None)
        if not self._ranges:
            self._clear()

    # ---- reading again ----

    def review(self) -> None:
        """Look at every deferred job: some may belong to another pool now."""
        self._must_review = bool(self._ranges)

    def is_due(self, count_of: Callable[[Cause], int], waiting: int, now_ms: float) -> bool:
        """Whether the next part should be read again now.

        Args:
            count_of: how many jobs wait for a cause.
            waiting: how many jobs wait in all.
            now_ms: by our own clock.
        """
        if not self._ranges:
            return False
        if self._must_end(now_ms):
            return True
        if self._passing:
            return self._has_room(count_of, waiting)
        bounds = self.bounds
        enough = bounds.waiting_max - bounds.waiting_max // 16
        is_low = waiting < bounds.waiting_max and waiting <= enough
        if is_low and any(count_of(cause) <= bounds.share_max // 2 for cause in self._causes):
            return True
        return any(
            count_of(cause) <= bounds.share_kept(cause) // 2 and waiting < bounds.most(cause) for cause in self._causes
        )

    def _has_room(self, count_of: Callable[[Cause], int], waiting: int) -> bool:
        return any(not self.bounds.are_full(cause, count_of(cause), waiting) for cause in self._causes)

    def _must_end(self, now_ms: float) -> bool:
        """Whether a pass must go to its end: pools changed, a deadline passed, or many sessions were deferred since the
        last pass that did.
        """
        if self._must_review or self._to_end:
            return True
        if self._deadline_ms <= now_ms and now_ms - self._looked_ms >= LATE_EVERY_MS:
            return True
        many = max(self._bits // _BITS_A_SESSION_MIN, 2 * self._remaining_after_pass)
        return self._remaining_after_pass + self._since_pass > many

    def cursors(self) -> dict[int, str]:
        """The id after which each partition is read next."""
        if not self._passing:
            self._begin_pass()
            for deferred in self._ranges.values():
                deferred.cursor, deferred.first_remaining = _before(deferred.lowest), None
        return {
            partition: "{}-{}".format(*deferred.cursor)
            for partition, deferred in self._ranges.items()
            if deferred.cursor < deferred.highest
        }

    def _begin_pass(self) -> None:
        self._passing = True
        self._to_end, self._must_review = self._must_review, False
        self._remaining_causes: set[Cause] = set()
        self._remaining_sessions: _Sessions | None = None
        self._remaining_deadline_ms: float = math.inf
        self._remaining = 0

    def is_deferred(self, job: Job) -> bool:
        """Whether an entry that was read again may be a deferred one. Later entries are newcomers, or will be."""
        deferred = self._ranges.get(job.partition)
        return deferred is not None and deferred.cursor < entry_order(job.entry_id) <= deferred.highest

    def admit(
        self, jobs: Sequence[Job], cause_of: Callable[[Job], Cause], count_of: Callable[[Cause], int], waiting: int
    ) -> list[Job]:
        """Admit the jobs of a part that there is memory for; the rest remain deferred.

        Args:
            jobs: deferred ones that are not in hand, in the order of their partitions.
            cause_of: what a job would wait for.
            count_of: how many jobs wait for a cause.
            waiting: how many jobs wait in all.
        """
        admitted: list[Job] = []
        taken: Counter[Cause] = Counter()
        for job in jobs:
            if self._remaining_sessions is not None and job.session_id in self._remaining_sessions:
                self._remain(job)
                continue
            cause = cause_of(job)
            if self.bounds.are_full(cause, count_of(cause) + taken[cause], waiting + len(admitted)):
                self._remain(job)
                _add(self._remaining_causes, cause)
                _add(self._causes, cause)
            else:
                admitted.append(job)
                taken[cause] += 1
        return admitted

    def _remain(self, job: Job) -> None:
        self._remaining += 1
        if self._remaining_sessions is None:
            self._remaining_sessions = _Sessions(self._bits)
        self._remaining_sessions.add(job.session_id)
        self._remaining_deadline_ms = min(self._remaining_deadline_ms, _deadline_of(job))
        deferred = self._ranges[job.partition]
        order = entry_order(job.entry_id)
        first = deferred.first_remaining
        deferred.first_remaining = order if first is None else min(first, order)

    def advance(
        self, read_to: Mapping[int, str | None], count_of: Callable[[Cause], int], waiting: int, now_ms: float
    ) -> None:
        """Go on after a part. The pass ends if it has come to its end, or if no more jobs could be admitted.

        Args:
            read_to: the last entry of each partition that was read, None when it had no more.
            count_of: how many jobs wait for a cause.
            waiting: how many jobs wait in all.
            now_ms: by our own clock.
        """
        for partition, entry_id in read_to.items():
            deferred = self._ranges.get(partition)
            if deferred is not None:
                order = deferred.highest if entry_id is None else min(entry_order(entry_id), deferred.highest)
                deferred.cursor = max(deferred.cursor, order)
        if all(deferred.cursor >= deferred.highest for deferred in self._ranges.values()):
            self._end_pass(now_ms)
        elif not self._must_end(now_ms) and not self._has_room(count_of, waiting):
            self._give_up_pass()

    def _end_pass(self, now_ms: float) -> None:
        self._looked_ms = now_ms
        remaining: dict[int, _Range] = {}
        for partition, deferred in self._ranges.items():
            if deferred.first_remaining is not None:
                deferred.lowest = deferred.first_remaining
                remaining[partition] = deferred
        if not remaining:
            self._clear()
            return
        self._ranges = remaining
        self._causes, self._sessions = self._remaining_causes, self._remaining_sessions
        self._deadline_ms = self._remaining_deadline_ms
        self._remaining_after_pass, self._since_pass = self._remaining, 0
        self._passing = self._to_end = False

    def _give_up_pass(self) -> None:
        self._passing = False
        for partition, deferred in list(self._ranges.items()):
            if deferred.first_remaining is not None:
                deferred.lowest = deferred.first_remaining
            elif deferred.cursor < deferred.highest:
                deferred.lowest = max(deferred.lowest, (deferred.cursor[0], deferred.cursor[1] + 1))
            else:
                del self._ranges[partition]
        if not self._ranges:
            self._clear()
