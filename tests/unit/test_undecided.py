"""Who is decided anew after a snapshot, and in which turn."""

from __future__ import annotations

from scheduler.runtime.waiting.queues import Waiter
from scheduler.runtime.waiting.undecided import Undecided
from scheduler.runtime.waiting.waiting_jobs import Waiting
from tests.unit.arrange import EN_DE, a_class, a_job

ZH = a_class()
DE = a_class(pair=EN_DE)


def seed_waiting(count: int) -> tuple[Waiting, Undecided]:
    """So many waiters of one class, each of a session of its own."""
    waiting = Waiting()
    for number in range(count):
        waiting.queue(a_job(f"j{number}", f"s{number}"), ZH, 0)
    return waiting, Undecided(waiting.members)


def names(waiters: list[Waiter]) -> list[str]:
    """The jobs of waiters."""
    return [waiter.job.job_id for waiter in waiters]


def decide(undecided: Undecided, count: int) -> list[str]:
    """One step. Returns: who was decided."""
    named = names(undecided.next(count))
    undecided.decided()
    return named


def test_some_are_decided_in_each_step_until_all_are() -> None:
    """From the first of their class to the last."""
    _, undecided = seed_waiting(5)
    undecided.add(ZH)
    assert [decide(undecided, 2) for _ in range(3)] == [["j0", "j1"], ["j2", "j3"], ["j4"]]
    assert (bool(undecided), ZH in undecided) == (False, False)


def test_however_often_snapshots_come_each_has_its_turn() -> None:
    """And is decided once more by the last of them."""
    _, undecided = seed_waiting(4)
    found = []
    for _ in range(4):
        undecided.add(ZH)
        found += decide(undecided, 1)
    assert found == ["j0", "j1", "j2", "j3"]
    assert decide(undecided, 9) == ["j0", "j1", "j2", "j3"]
    assert not undecided


def test_who_was_named_and_not_decided_is_named_again() -> None:
    """What is to be known of them could not be read."""
    _, undecided = seed_waiting(3)
    undecided.add(ZH)
    assert names(undecided.next(2)) == names(undecided.next(2)) == ["j0", "j1"]


def test_whoever_left_its_class_is_passed_over() -> None:
    """It was placed, or has another class already."""
    waiting, undecided = seed_waiting(4)
    undecided.add(ZH)
    gone, moved, *_ = list(waiting)
    waiting.leave(gone)
    waiting.reclassify(moved, DE)
    assert decide(undecided, 9) == ["j2", "j3"]
    assert not undecided


def test_classes_share_a_step() -> None:
    """The second begins where the first ends."""
    waiting, undecided = seed_waiting(2)
    waiting.queue(a_job("j9", "s9"), DE, 0)
    undecided.add(ZH)
    undecided.add(DE)
    assert [decide(undecided, 1), decide(undecided, 2)] == [["j0"], ["j1", "j9"]]
    assert not undecided
