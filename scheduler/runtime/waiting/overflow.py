"""Pure. Decides; never performs. Entries that were scanned past because memory for waiting jobs is bounded.

What a job would wait for (its class, a limit, its session) has a share of the memory, and all together have one bound.
A few of each class and each limit are remembered beyond it, or a flood of others would keep their jobs from free slots;
that has a bound of its own, for classes are as many as clients can name, and those that no node serves get half of it.
A newcomer above that is skipped: it is not remembered, only that its session has a skipped job, and between which ids
of the partition the skipped ones are. Until they have been read again, whatever would wait for the same is skipped as
well, and so is every job of those sessions, or it would pass an earlier one. False hits of sessions only delay.

Once there is memory again, what was skipped is read again in parts, from the lowest id of each partition on. Entries
that there is memory for are admitted, in order; others are left. A pass ends when it has come to the highest id in all
partitions, and then only what it left counts as skipped: that is how sessions and classes have caught up. A pass that
cannot admit anybody any more is given up, and the next one begins at the first that was left. Now and then one is made
to its end all the same: when many sessions may be taken for skipped ones, when the deadline of a skipped job passed, or
when a snapshot came since which some of them may belong to another pool, and would not wait for what they did.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.waiting.queues import Cause, Order, order_of

SESSION_BITS: Final = 2**23  # 1 MiB; with 100,000 skipped sessions, 1 of 200,000 others is taken for one
CAUSES_MAX: Final = 1_000  # what newcomers are told apart by; above it all are skipped
BEYOND_SHARE: Final = 8  # one of so many that may wait, in all, when memory is full of others,
BEYOND_MIN: Final = 256
FEW_MAX: Final = 256  # and of these, for the same class or limit; a pass over millions must be worth it
FEW_SHARE: Final = 16
LATE_EVERY_MS: Final = 10_000  # how often all of it is read because deadlines passed
_HASHES: Final = 4
_BITS_A_SESSION_MIN: Final = 32  # with fewer, a pass is made to its end, so that the bits are set anew
_LAST_SEQUENCE: Final = 2**64 - 1


def _before(order: Order) -> Order:
    milliseconds, sequence = order
    return (milliseconds, sequence - 1) if sequence else (milliseconds - 1, _LAST_SEQUENCE)


def _add(causes: set[Cause], cause: Cause) -> None:
    if len(causes) <= CAUSES_MAX:
        causes.add(cause)


def _deadline_of(job: Job) -> float:
    return math.inf if job.deadline_at_ms is None else job.deadline_at_ms


class _Sessions:
    """A set of sessions that may say yes too often, never no (Bloom 1970). bits: a power of two, 2**32 at most."""

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
    """All of them, 32 bits each."""
    return int.from_bytes(hashlib.blake2b(session_id.encode(), digest_size=4 * _HASHES).digest())


class _Range:
    """Where the skipped entries of a partition are. cursor: how far the pass has come; left: the first that it left."""

    __slots__ = ("cursor", "highest", "left", "lowest")

    def __init__(self, order: Order) -> None:
        self.lowest = self.highest = order
        self.cursor = _before(order)
        self.left: Order | None = None

    def add(self, order: Order) -> None:
        if order > self.highest:
            self.highest = order
        elif order < self.lowest:
            self.lowest = order
        if order <= self.cursor:
            self.cursor = _before(order)


class Skipped:
    """What was scanned past by one dispatcher.

    Args: share_max, jobs that may wait for the same; waiting_max, that may wait in all; bits, to remember sessions by.
    skipped: how many were, each time that they were read.
    """

    def __init__(self, share_max: int, waiting_max: int, bits: int = SESSION_BITS) -> None:
        self.skipped = 0
        self._share_max = share_max
        self._waiting_max = waiting_max
        self._beyond_max = max(waiting_max // BEYOND_SHARE, BEYOND_MIN)
        self._few = min(FEW_MAX, self._beyond_max // FEW_SHARE, max(1, share_max // 2))
        self._bits = bits
        self._looked_ms: float = -math.inf
        self._caught_up()

    def _caught_up(self) -> None:
        self._ranges: dict[int, _Range] = {}
        self._causes: set[Cause] = set()
        self._sessions: _Sessions | None = None
        self._since_pass = 0
        self._left_by_pass = 0
        self._deadline_ms: float = math.inf
        self._moved = False
        self._begin_pass()
        self._passing = False

    def __bool__(self) -> bool:
        """Whether anything is skipped."""
        return bool(self._ranges)

    # ---- newcomers ----

    def passes_over(self, session_id: str, causes: Iterable[Cause]) -> bool:
        """Whether a newcomer has to be skipped, by its session and by what it may have to wait for."""
        if self._sessions is None:
            return False
        known = self._causes
        return len(known) > CAUSES_MAX or any(cause in known for cause in causes) or session_id in self._sessions

    def is_full(self, cause: Cause, count: int, waiting: int) -> bool:
        """Whether memory has no place for one more with a cause, when `count` of all that wait do so for the same."""
        if waiting < self._waiting_max:
            return count >= self._share_max
        return count >= self._least(cause) or waiting >= self._most_beyond(cause)

    def _least(self, cause: Cause) -> int:
        """How many may wait for the same however many others do: a few of a class or limit, the first of a session."""
        if isinstance(cause, JobClass):
            return self._few if cause.pool else 1
        return self._few if cause[0] else 1

    def _most_beyond(self, cause: Cause) -> int:
        """How many may wait in all when one with this cause comes. What no node serves leaves room for the others."""
        is_unserved = isinstance(cause, JobClass) and not cause.pool
        return self._waiting_max + (self._beyond_max // 2 if is_unserved else self._beyond_max)

    def skip(self, job: Job, cause: Cause | None = None) -> None:
        """Scan past a newcomer. cause: what it would have waited for, if there was no memory for it."""
        self.skipped += 1
        self._since_pass += 1
        if self._sessions is None:
            self._sessions = _Sessions(self._bits)
        self._sessions.add(job.session_id)
        if cause is not None:
            _add(self._causes, cause)
        self._deadline_ms = min(self._deadline_ms, _deadline_of(job))
        order = order_of(job.entry_id)
        found = self._ranges.get(job.partition)
        if found is None:
            self._ranges[job.partition] = _Range(order)
        else:
            found.add(order)

    def forget(self, partitions: Collection[int]) -> None:
        """Partitions are another owner's, or are read anew."""
        self._ranges = {partition: each for partition, each in self._ranges.items() if partition not in partitions}
        if not self._ranges:
            self._caught_up()

    # ---- reading again ----

    def look_again(self) -> None:
        """Some of what is skipped may belong to another pool now."""
        self._moved = bool(self._ranges)

    def is_due(self, count_of: Callable[[Cause], int], waiting: int, now_ms: float) -> bool:
        """Whether the next part should be read again now.

        Args: count_of, how many wait for a cause; waiting, for any; now_ms, by our own clock.
        """
        if not self._ranges:
            return False
        if self._must_end(now_ms):
            return True
        if self._passing:
            return self._has_room(count_of, waiting)
        enough = self._waiting_max - self._waiting_max // 16
        is_low = waiting < self._waiting_max and waiting <= enough
        if is_low and any(count_of(cause) <= self._share_max // 2 for cause in self._causes):
            return True
        return any(
            count_of(cause) <= self._least(cause) // 2 and waiting < self._most_beyond(cause) for cause in self._causes
        )

    def _has_room(self, count_of: Callable[[Cause], int], waiting: int) -> bool:
        return any(not self.is_full(cause, count_of(cause), waiting) for cause in self._causes)

    def _must_end(self, now_ms: float) -> bool:
        """Whether a pass must come to its end: pools changed, a deadline passed, or many sessions were added since one
        did.
        """
        if self._moved or self._to_end:
            return True
        if self._deadline_ms <= now_ms and now_ms - self._looked_ms >= LATE_EVERY_MS:
            return True
        many = max(self._bits // _BITS_A_SESSION_MIN, 2 * self._left_by_pass)
        return self._left_by_pass + self._since_pass > many

    def cursors(self) -> dict[int, str]:
        """The id after which each partition is read next."""
        if not self._passing:
            self._begin_pass()
            for each in self._ranges.values():
                each.cursor, each.left = _before(each.lowest), None
        unread = {partition: each for partition, each in self._ranges.items() if each.cursor < each.highest}
        return {partition: "{}-{}".format(*each.cursor) for partition, each in unread.items()}

    def _begin_pass(self) -> None:
        self._passing = True
        self._to_end, self._moved = self._moved, False
        self._left_causes: set[Cause] = set()
        self._left_sessions: _Sessions | None = None
        self._left_deadline_ms: float = math.inf
        self._left = 0

    def is_skipped(self, job: Job) -> bool:
        """Whether an entry that was read again may be one of those; later ones are newcomers, or will be."""
        found = self._ranges.get(job.partition)
        return found is not None and found.cursor < order_of(job.entry_id) <= found.highest

    def admit(
        self, jobs: Sequence[Job], cause_of: Callable[[Job], Cause], count_of: Callable[[Cause], int], waiting: int
    ) -> list[Job]:
        """Who of a part there is memory for; the others are left.

        Args: jobs, such as are skipped and not in hand, in the order of their partitions; cause_of, what a job would
        wait for; count_of, how many wait for it; waiting, how many wait in all.
        """
        admitted: list[Job] = []
        taken: Counter[Cause] = Counter()
        for job in jobs:
            if self._left_sessions is not None and job.session_id in self._left_sessions:
                self._leave(job)
                continue
            cause = cause_of(job)
            if self.is_full(cause, count_of(cause) + taken[cause], waiting + len(admitted)):
                self._leave(job)
                _add(self._left_causes, cause)
                _add(self._causes, cause)
            else:
                admitted.append(job)
                taken[cause] += 1
        return admitted

    def _leave(self, job: Job) -> None:
        self._left += 1
        if self._left_sessions is None:
            self._left_sessions = _Sessions(self._bits)
        self._left_sessions.add(job.session_id)
        self._left_deadline_ms = min(self._left_deadline_ms, _deadline_of(job))
        each = self._ranges[job.partition]
        order = order_of(job.entry_id)
        each.left = order if each.left is None else min(each.left, order)

    def went_on(
        self, read_to: Mapping[int, str | None], count_of: Callable[[Cause], int], waiting: int, now_ms: float
    ) -> None:
        """A part has been decided. read_to: the last entry of each partition that was read, None when it had no more.

        The pass ends here if it has come to its end, or if nobody else could be admitted.
        """
        for partition, entry_id in read_to.items():
            each = self._ranges.get(partition)
            if each is not None:
                order = each.highest if entry_id is None else min(order_of(entry_id), each.highest)
                each.cursor = max(each.cursor, order)
        if all(each.cursor >= each.highest for each in self._ranges.values()):
            self._end_pass(now_ms)
        elif not self._must_end(now_ms) and not self._has_room(count_of, waiting):
            self._give_up_pass()

    def _end_pass(self, now_ms: float) -> None:
        self._looked_ms = now_ms
        left = {partition: each for partition, each in self._ranges.items() if each.left is not None}
        if not left:
            self._caught_up()
            return
        for each in left.values():
            assert each.left is not None
            each.lowest = each.left
        self._ranges = left
        self._causes, self._sessions = self._left_causes, self._left_sessions
        self._deadline_ms = self._left_deadline_ms
        self._left_by_pass, self._since_pass = self._left, 0
        self._passing = self._to_end = False

    def _give_up_pass(self) -> None:
        self._passing = False
        for partition, each in list(self._ranges.items()):
            if each.left is not None:
                each.lowest = each.left
            elif each.cursor < each.highest:
                each.lowest = max(each.lowest, (each.cursor[0], each.cursor[1] + 1))
            else:
                del self._ranges[partition]
        if not self._ranges:
            self._caught_up()
