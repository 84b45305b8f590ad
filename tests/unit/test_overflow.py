"""What is deferred, when it is read again, and who of it there is memory for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
import pytest

from scheduler.runtime.intake import Job
from scheduler.runtime.waiting import overflow, waiting_jobs
from scheduler.runtime.waiting.overflow import Overflow
from scheduler.runtime.waiting.queues import Cause, entry_order
from scheduler.runtime.waiting.waiting_jobs import MemoryBounds
from tests.unit.arrange import EN_DE, a_class, a_job

ZH = a_class()
DE = a_class(pair=EN_DE)


class Memory:
    """Ten places in all, four for the same: a stand-in for those that wait, and the intake that is read again."""

    def __init__(self, bits: int = 4096) -> None:
        self.overflow = Overflow(MemoryBounds(share_max=4, waiting_max=10), bits)
        self.waiting: Counter[Cause] = Counter()
        self.intake: list[Job] = []
        self.now_ms = 0

    def add(self, job: Job, cause: Cause = ZH) -> bool:
        """A newcomer that finds no room. Returns: whether it waits, rather than being deferred."""
        self.intake.append(job)
        full = self.overflow.bounds.are_full(cause, self.waiting[cause], self.waiting.total())
        if full or self.overflow.must_defer(job.session_id, [cause]):
            self.overflow.defer(job, cause if full else None)
            return False
        self.waiting[cause] += 1
        return True

    def is_due(self) -> bool:
        """Whether a part is to be read again."""
        return self.overflow.is_due(self.waiting.__getitem__, self.waiting.total(), self.now_ms)

    def part(self, causes: Mapping[str, Cause], size: int = 99) -> list[str]:
        """Read so many entries of each partition again, and let those wait that are admitted.

        causes: of jobs, or of all jobs of a session; of others it is ZH.
        """
        read, read_to = [], {}
        for partition, cursor in self.overflow.cursors().items():
            ahead = [job for job in self.intake if job.partition == partition and _after(job, cursor)]
            read += ahead[:size]
            read_to[partition] = ahead[size - 1].entry_id if len(ahead) >= size else None
        found = [job for job in read if self.overflow.is_deferred(job)]

        def cause_of(job: Job) -> Cause:
            return causes.get(job.job_id, causes.get(job.session_id, ZH))

        admitted = self.overflow.admit(found, cause_of, self.waiting.__getitem__, self.waiting.total())
        for job in admitted:
            self.intake.remove(job)
            self.waiting[cause_of(job)] += 1
        self.overflow.advance(read_to, self.waiting.__getitem__, self.waiting.total(), self.now_ms)
        return [job.job_id for job in admitted]


def _after(job: Job, cursor: str) -> bool:
    return entry_order(job.entry_id) > entry_order(cursor)


def entry(number: int, session: str = "", partition: int = 0, deadline_at_ms: int | None = None) -> Job:
    """The entry of that number, by default of a session of its own."""
    job = a_job(f"j{number}", session or f"s{number}", partition=partition, deadline_at_ms=deadline_at_ms)
    return msgspec.structs.replace(job, entry_id=f"{number}-0")


def seed_flood(count: int = 8, bits: int = 4096) -> Memory:
    """So many jobs of one class, each of a session of its own: four wait, the others are deferred."""
    memory = Memory(bits)
    assert [memory.add(entry(i)) for i in range(count)] == [True] * min(4, count) + [False] * (count - 4)
    return memory


# ---- who is deferred ----------------------------------------------------------------------------------------


def test_nobody_is_deferred_while_there_is_memory() -> None:
    """The usual case costs nothing."""
    memory = seed_flood(4)
    assert (bool(memory.overflow), memory.is_due(), memory.overflow.must_defer("s0", [ZH])) == (False, False, False)


def test_a_class_over_its_share_is_deferred_with_the_sessions_that_have_a_deferred_job() -> None:
    """Other classes go on, but not for those sessions: their job would pass an earlier one."""
    memory = seed_flood()
    assert {
        "its class": memory.overflow.must_defer("s99", [ZH]),
        "its limit": memory.overflow.must_defer("s99", [DE, ("tenant:t1", "a")]),
        "a session that was deferred": memory.overflow.must_defer("s5", [DE]),
        "a session that waits": memory.overflow.must_defer("s2", [DE]),
    } == {"its class": True, "its limit": False, "a session that was deferred": True, "a session that waits": False}


def test_all_together_have_a_bound_too() -> None:
    """Whatever comes last is deferred, but for a few of each class."""
    memory = Memory()
    causes: list[Cause] = [ZH, DE, ("tenant:t1", "a")]
    assert [memory.add(entry(i), causes[i // 4]) for i in range(12)] == [True] * 10 + [False] * 2
    assert [memory.add(entry(i), a_class("another")) for i in range(12, 15)] == [True] * 2 + [False]


def test_too_many_reasons_are_one_reason() -> None:
    """What is remembered does not grow with what jobs can name."""
    memory = Overflow(MemoryBounds(1, 1), 4096)
    for i in range(overflow.CAUSES_MAX + 1):
        memory.defer(entry(i, "s1"), a_class(f"pool{i}"))
    assert memory.must_defer("s2", [a_class("yet another")])
    assert len(memory._causes) == overflow.CAUSES_MAX + 1


# ---- when it is read again ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("waiting", "expected"), [(4, False), (3, False), (2, True), (0, True)])
def test_a_class_is_read_again_when_half_of_its_share_is_free(waiting: int, expected: bool) -> None:
    """Not for each place: a read costs as much for one."""
    memory = seed_flood()
    memory.waiting[ZH] = waiting
    assert memory.is_due() == expected


@pytest.mark.parametrize(("waiting", "due", "admitted"), [(2, False, []), (1, True, ["j4"]), (0, True, ["j4", "j5"])])
def test_a_few_of_a_class_are_read_again_while_others_use_all_memory(
    waiting: int, due: bool, admitted: list[str]
) -> None:
    """Or they would wait beside free slots for as long as the others do; half of a share of four are a few."""
    memory = seed_flood()
    memory.waiting[ZH], memory.waiting[DE] = waiting, 10
    assert memory.is_due() == due
    assert memory.part({}) == admitted


def test_the_next_of_a_session_is_read_again_when_nobody_of_it_waits_any_more() -> None:
    """However many others wait, and however many of those are read before it."""
    memory = Memory()
    memory.waiting[DE], memory.waiting["", "s9"] = 9, 1
    assert [memory.add(entry(i), DE) for i in (1, 2, 3)] == [False] * 3
    assert not memory.add(entry(9, "s9"), ("", "s9"))
    assert not memory.is_due()
    memory.waiting[DE], memory.waiting["", "s9"] = 10, 0
    causes: dict[str, Cause] = {f"s{i}": DE for i in (1, 2, 3)}
    parts: list[list[str]] = []
    while memory.is_due() and len(parts) < 9:
        parts.append(memory.part(causes, size=1))
    assert parts == [[], [], [], ["j9"]]


def test_a_pass_admits_in_order_as_many_as_there_is_memory_for() -> None:
    """In parts, and it ends when there is no place left; the next one begins where it ended."""
    memory = seed_flood(12)
    memory.waiting[ZH] = 0
    assert (memory.part({}, size=3), memory.is_due()) == (["j4", "j5", "j6"], True)
    assert (memory.part({}, size=3), memory.is_due()) == (["j7"], False)
    memory.waiting[ZH] = 2
    assert (memory.part({}, size=9), memory.is_due()) == (["j8", "j9"], False)


def test_a_pass_that_is_given_up_goes_on_behind_the_last_entry_that_was_read() -> None:
    """All of that part were admitted; if the last one were read again it could be admitted again."""
    memory = seed_flood(12)
    memory.waiting[ZH] = 0
    assert memory.part({}, size=4) == ["j4", "j5", "j6", "j7"]
    memory.waiting[ZH] = 2
    assert memory.overflow.cursors() == {0: "7-0"}
    assert [memory.overflow.is_deferred(entry(i)) for i in (7, 8)] == [False, True]


def test_all_have_caught_up_when_nothing_is_left() -> None:
    """Newcomers are placed again; until then they are deferred, though there is memory."""
    memory = seed_flood(6)
    memory.waiting[ZH] = 0
    assert not memory.add(entry(6))
    assert memory.part({}, size=2) == ["j4", "j5"]
    assert not memory.add(entry(7))
    assert memory.is_due()
    assert memory.part({}) == ["j6", "j7"]
    assert (bool(memory.overflow), memory.overflow.must_defer("s4", [ZH]), memory.is_due()) == (False, False, False)


def test_a_class_that_has_caught_up_does_not_wait_for_another() -> None:
    """A pass to the end leaves only what is full."""
    memory = Memory()
    causes = {f"s{i}": (ZH if i % 2 else DE) for i in range(14)}
    for i in range(14):
        memory.add(entry(i), causes[f"s{i}"])
    memory.waiting[DE] = 0
    assert memory.part(causes) == ["j8", "j10", "j12"]
    assert {
        "caught up": memory.overflow.must_defer("s99", [DE]),
        "not yet": memory.overflow.must_defer("s99", [ZH]),
        "a session that has caught up": memory.overflow.must_defer("s8", [DE]),
        "one that has not": memory.overflow.must_defer("s9", [DE]),
    } == {"caught up": False, "not yet": True, "a session that has caught up": False, "one that has not": True}


def test_later_jobs_of_a_session_are_left_with_the_first() -> None:
    """Though there is memory for their own class, and they come with it."""
    memory = Memory()
    causes = {f"s{i}": DE for i in range(8)} | {"j8": ZH}
    for i in range(8):
        memory.add(entry(i), DE)
    assert not memory.add(entry(8, "s7"), ZH)
    memory.waiting[DE] = 2
    assert memory.part(causes) == ["j4", "j5"]
    memory.waiting[DE] = 0
    assert memory.part(causes) == ["j6", "j7", "j8"]


def test_what_is_left_for_another_reason_keeps_newcomers_from_passing() -> None:
    """It was deferred for its class, and now it would have to wait for another one that is full."""
    memory = seed_flood(8)
    memory.waiting[ZH], memory.waiting[DE] = 0, 4
    assert not memory.overflow.must_defer("s99", [DE])
    assert memory.part({"s4": DE}, size=1) == []
    assert memory.overflow.must_defer("s99", [DE])


def test_entries_may_be_deferred_in_any_order() -> None:
    """Also before the place where all were read again already: none of them is lost."""
    memory = Overflow(MemoryBounds(4, 10), 4096)
    for number in (8, 5):
        memory.defer(entry(number), ZH)
    assert memory.cursors() == {0: f"4-{2**64 - 1}"}
    memory.advance({0: "6-0"}, lambda _: 0, 0, 0)
    assert memory.cursors() == {0: "6-0"}
    memory.defer(entry(6), ZH)
    assert memory.cursors() == {0: f"5-{2**64 - 1}"}


def test_a_partition_that_was_read_to_its_end_is_not_read_further() -> None:
    """Another one has more."""
    memory = seed_flood(5)
    for number in (1, 2, 3):
        memory.add(entry(number, f"t{number}", partition=1))
    memory.waiting[ZH] = 0
    assert memory.part({}, size=1) == ["j4", "j1"]
    assert memory.overflow.cursors() == {1: "1-0"}


def test_each_partition_has_a_place_of_its_own() -> None:
    """Ids of two partitions are not compared."""
    memory = Memory()
    for i in range(4):
        memory.add(entry(i))
    for number, partition in ((50, 0), (7, 1), (8, 1), (51, 0)):
        memory.add(entry(number, partition=partition))
    assert memory.overflow.cursors() == {0: f"49-{2**64 - 1}", 1: f"6-{2**64 - 1}"}
    memory.waiting[ZH] = 0
    assert memory.part({}) == ["j50", "j51", "j7", "j8"]
    assert not memory.overflow


def test_what_is_not_deferred_is_not_taken() -> None:
    """Entries after the last deferred one are newcomers, or will be."""
    memory = seed_flood(6)
    memory.overflow.cursors()
    assert [memory.overflow.is_deferred(entry(i)) for i in range(8)] == [False] * 4 + [True] * 2 + [False] * 2
    assert not memory.overflow.is_deferred(entry(4, partition=1))


def test_lost_partitions_are_forgotten() -> None:
    """With the last of them everything is."""
    memory = seed_flood(6)
    memory.add(entry(1, "s9", partition=1))
    memory.overflow.forget({0})
    assert (list(memory.overflow.cursors()), bool(memory.overflow)) == ([1], True)
    memory.overflow.forget({1})
    assert (bool(memory.overflow), memory.overflow.must_defer("s5", [ZH])) == (False, False)


# ---- passes to the end -------------------------------------------------------------------------------------


def test_many_sessions_make_a_pass_go_to_its_end() -> None:
    """Also if nobody can be admitted, or each newcomer would be taken for a session that was deferred before."""
    memory = seed_flood(4 + 4, bits=128)
    assert not memory.is_due()
    memory.add(entry(99, "s7"))
    assert memory.is_due()
    parts = 0
    while memory.is_due():
        assert memory.part({}, size=2) == []
        parts += 1
        assert parts < 9
    assert [memory.overflow.must_defer(f"s{i}", []) for i in (4, 5, 6, 7)] == [True] * 4


def test_a_deadline_that_was_dealt_with_makes_no_further_pass() -> None:
    """The job is gone; the others have none."""
    memory = seed_flood(6)
    memory.add(entry(6, deadline_at_ms=1))
    memory.now_ms = 1
    assert memory.is_due()
    memory.intake.pop()
    assert memory.part({}) == []
    memory.now_ms += overflow.LATE_EVERY_MS
    assert (memory.is_due(), bool(memory.overflow)) == (False, True)


def test_a_deadline_makes_a_pass_go_to_its_end() -> None:
    """Now and then, so that whose deadline has passed is refused in time."""
    memory = seed_flood(6)
    memory.now_ms = 50_000
    memory.add(entry(6, deadline_at_ms=50_001))
    assert not memory.is_due()
    memory.now_ms += 1
    assert memory.is_due()
    memory.intake.pop()
    assert (memory.part({}), memory.is_due()) == ([], False)
    memory.add(entry(7, deadline_at_ms=memory.now_ms))
    assert not memory.is_due()
    memory.now_ms += overflow.LATE_EVERY_MS
    assert memory.is_due()


def test_classes_without_end_fill_no_memory() -> None:
    """Clients can name as many as they like; what no node serves leaves half of the last places to the others."""
    memory = Memory(bits=2**20)
    beyond = waiting_jobs.BEYOND_MIN
    unserved = [memory.add(entry(i), a_class("", features=(f"f{i}",))) for i in range(2 * beyond)]
    assert unserved == [True] * (10 + beyond // 2) + [False] * (2 * beyond - 10 - beyond // 2)
    served = [memory.add(entry(i, f"t{i}"), a_class(features=(f"f{i}",))) for i in range(beyond)]
    assert served == [True] * (beyond // 2) + [False] * (beyond // 2)
    assert not memory.is_due()
    memory.waiting[a_class("", features=("f0",))] = 0
    assert memory.is_due()


def test_a_class_that_no_node_serves_has_one_place_when_memory_is_full() -> None:
    """It is read again when that one has left, for the class may have a node since."""
    memory = Memory()
    for number in range(10):
        memory.add(entry(number), a_class(features=(f"f{number}",)))
    nobody = a_class("", features=("none",))
    assert [memory.add(entry(10 + i), nobody) for i in range(3)] == [True, False, False]
    assert not memory.is_due()
    memory.waiting[nobody] = 0
    assert memory.is_due()


def test_what_may_belong_to_another_pool_now_is_looked_at_again() -> None:
    """All of it, although there is no memory for what it waited for before."""
    memory = seed_flood(4 + 4)
    assert not memory.is_due()
    memory.overflow.review()
    assert memory.is_due()
    assert memory.part({}, size=2) == []
    assert memory.is_due()  # this pass goes to its end
    assert memory.part({"s7": DE}, size=9) == ["j7"]
    assert not memory.is_due()


def test_a_snapshot_in_the_middle_of_a_pass_makes_another_one() -> None:
    """What was read before may have moved since."""
    memory = seed_flood(4 + 4)
    memory.overflow.review()
    memory.part({}, size=2)
    memory.overflow.review()
    memory.part({}, size=9)
    assert memory.is_due()
    memory.part({}, size=9)
    assert not memory.is_due()


def test_nothing_deferred_is_not_looked_at_again() -> None:
    """Whatever the snapshot says."""
    memory = Memory()
    memory.overflow.review()
    assert not memory.is_due()
