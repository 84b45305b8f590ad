"""Who waits, in what order, and who is tried when something happens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
import pytest

from scheduler.protocol.snapshot import Delta, Match, Node, Pool
from scheduler.runtime.intake import JobClass
from scheduler.runtime.snapshot_changes import any_may_move, gained_nodes, movable_classes
from scheduler.runtime.waiting.queues import DEADLINES_SPARE, Waiter
from scheduler.runtime.waiting.waiting_jobs import CANDIDATES_MAX, Waiting
from tests.unit.arrange import EN_DE, LATER_BOOT, a_class, a_job, a_node, an_index

ZH = a_class()
DE = a_class(pair=EN_DE)
TWO_TIERS = an_index(
    *(a_node(f"own{i}", "a") for i in range(40)),
    *(a_node(f"fallback{i}", "b") for i in range(40)),
    pools={"a": Pool("a", fallback=("b",))},
)
"""Nodes of the pool that ZH prefers, and of its fallback pool."""


def everywhere(job_class: JobClass, node: str) -> bool:
    """Every node serves every class."""
    return True


def seed_waiting(*job_ids: str, job_class: JobClass = ZH) -> Waiting:
    """These jobs, each of a session of its own, wait for room; no node of the class had any."""
    waiting = Waiting()
    for job_id in job_ids:
        add(waiting, job_id, job_id, job_class)
    settle(waiting)
    return waiting


def add(waiting: Waiting, job_id: str, session_id: str, job_class: JobClass = ZH, priority: int = 0) -> Waiter:
    """A newcomer that finds no room, or must queue."""
    job = a_job(job_id, session_id, priority=priority)
    if waiting.must_wait(job, job_class):
        return waiting.queue(job, job_class, 0)
    return waiting.found_no_room(job, job_class, 0)


def settle(waiting: Waiting, open_nodes: tuple[str, ...] = ()) -> None:
    """Answer the questions to `open` that are asked now."""
    for waiter in waiting.asking():
        waiting.apply_open(waiter, open_nodes)


def picture(waiting: Waiting) -> dict[str, str]:
    """Every waiting job and what it does."""
    return {waiter.job.job_id: waiter.state for waiter in sorted(waiting, key=lambda waiter: waiter.order)}


def names(waiters: Iterable[Waiter]) -> list[str]:
    """The jobs of these waiters."""
    return [waiter.job.job_id for waiter in waiters]


def tried(waiting: Waiting, limit: int = 128) -> dict[str, tuple[str, ...] | None]:
    """Who is tried now, and on which nodes."""
    return {waiter.job.job_id: waiter.hint for waiter in waiting.next_attempts(limit)}


# ---- who must wait -----------------------------------------------------------------------------------------


def test_a_newcomer_waits_behind_its_session_and_behind_its_class_only() -> None:
    """Another session and another class pass; a job that waits for its session does not hold up its own class."""
    waiting = seed_waiting("j1")
    add(waiting, "j2", "j1", DE)
    assert picture(waiting) == {"j1": "blocked", "j2": "behind"}
    assert {
        "same session, same class": waiting.must_wait(a_job(session_id="j1"), ZH),
        "same session, other class": waiting.must_wait(a_job(session_id="j1"), DE),
        "other session, same class": waiting.must_wait(a_job(session_id="s9"), ZH),
        "other session, other class": waiting.must_wait(a_job(session_id="s9"), DE),
    } == {
        "same session, same class": True,
        "same session, other class": True,
        "other session, same class": True,
        "other session, other class": False,
    }


def test_a_job_that_was_tried_in_vain_asks_before_it_parks() -> None:
    """The first of its session asks `open`; the next one of it queues behind."""
    waiting = Waiting()
    add(waiting, "j1", "s1")
    waiting.found_no_room(a_job("j2", "s1"), ZH, 0)
    assert picture(waiting) == {"j1": "asking", "j2": "behind"}
    assert waiting.busy
    assert names(waiting.asking()) == ["j1"]


def test_nothing_open_parks_and_ends_the_step() -> None:
    """When no eligible node has room the dispatcher goes back to its blocking read."""
    waiting = seed_waiting("j1", "j2")
    assert picture(waiting) == {"j1": "blocked", "j2": "blocked"}
    assert not waiting.busy


# ---- wakes -------------------------------------------------------------------------------------------------


def test_room_wakes_those_whom_the_node_serves() -> None:
    """A class that the node does not serve is left alone."""
    waiting = seed_waiting("j1")
    add(waiting, "j2", "s2", DE)
    settle(waiting)
    waiting.unblock(["n1"], lambda job_class, node: job_class == DE)
    assert tried(waiting) == {"j2": ("n1",)}


def test_the_more_urgent_are_tried_first_then_the_earlier() -> None:
    """Priority counts among those who compete in a class."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "s3", priority=5)
    add(waiting, "j4", "s4", priority=-1)
    nodes = ("n1", "n2", "n3", "n4")
    waiting.unblock(nodes, everywhere)
    assert tried(waiting) == dict.fromkeys(["j3", "j1", "j2", "j4"], nodes)


def test_a_wake_lasts_until_a_try_finds_the_node_full() -> None:
    """One event may stand for many slots: tries go on, more at a time, and end at the first refusal."""
    waiting = seed_waiting(*(f"j{i}" for i in range(20)))
    waiting.unblock(["n1"], everywhere)
    rounds = []
    free = 9
    while waiting.busy:
        chosen = waiting.next_attempts(128)
        rounds.append(len(chosen))
        for waiter in chosen:
            if free:
                free -= 1
                waiting.leave(waiter, placed="n1")
            else:
                waiting.still_full(waiter, waiter.hint or ())
    assert rounds == [1, 2, 4, 8]
    assert picture(waiting) == {f"j{i}": "blocked" for i in range(9, 20)}


def test_a_refusal_lets_the_next_wake_begin_with_one_job() -> None:
    """However many were tried at a time before: the next event may stand for a single slot."""
    waiting = seed_waiting(*(f"j{i}" for i in range(20)))
    waiting.unblock(["n1"], everywhere)
    for _ in range(3):
        for waiter in waiting.next_attempts(128):
            waiting.leave(waiter, placed="n1")
    for waiter in waiting.next_attempts(128):
        waiting.still_full(waiter, ["n1"])
    waiting.unblock(["n1"], everywhere)
    assert list(tried(waiting)) == ["j7"]


def test_who_takes_the_last_slot_spends_the_wakes_of_the_node() -> None:
    """Of every class: nobody is tried in vain for what is known to be taken."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "s3", DE)
    settle(waiting)
    waiting.unblock(["n1", "n2"], everywhere)
    first, *_ = waiting.next_attempts(1)
    waiting.leave(first, placed="n1")
    waiting.filled("n1")
    assert tried(waiting) == {"j2": ("n2",), "j3": ("n2",)}


def test_a_freed_slot_that_others_take_costs_one_try_in_vain_at_most() -> None:
    """Of 60 nodes with one slot each others take every third: 40 jobs are placed, and at most 20 tried in vain."""
    waiting = seed_waiting(*(f"j{i}" for i in range(500)))
    free = {f"n{i}": int(i % 3 > 0) for i in range(60)}
    waiting.unblock(free, everywhere)
    in_vain = 0
    while waiting.busy:
        for waiter in waiting.next_attempts(128):
            node = next((name for name in waiter.hint or () if free[name]), None)
            if node:
                free[node] -= 1
                waiting.leave(waiter, placed=node)
                waiting.filled(node)
            else:
                in_vain += 1
                waiting.still_full(waiter, waiter.hint or ())
    assert len(waiting) == 460
    assert in_vain <= 20


def test_a_refusal_spends_the_wakes_of_its_candidates_only() -> None:
    """Nodes that were not among the candidates may still have room."""
    waiting = seed_waiting("j1")
    waiting.unblock(["n1", "n2"], everywhere)
    (waiter,) = waiting.next_attempts(128)
    waiting.still_full(waiter, ["n1"])
    assert tried(waiting) == {"j1": ("n2",)}


def test_a_wake_without_anybody_parked_keeps_for_the_next_who_parks() -> None:
    """Room that is told while the only waiter asks is not forgotten."""
    waiting = Waiting()
    add(waiting, "j1", "s1")
    waiting.unblock(["n1"], everywhere)
    assert tried(waiting) == {}
    settle(waiting)
    assert tried(waiting) == {"j1": ("n1",)}


def test_a_call_takes_no_more_than_its_limit() -> None:
    """Who does not fit into a call is tried in the next one."""
    waiting = seed_waiting("j1", "j2", "j3")
    waiting.unblock(["n1", "n2"], everywhere)
    assert list(tried(waiting, limit=2)) == ["j1", "j2"]
    assert list(tried(waiting, limit=2)) == ["j3"]


def test_a_call_takes_no_more_than_its_limit_of_those_that_are_tried_afresh() -> None:
    """The next jobs of sessions whose first ones left at once."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "j1", DE)
    add(waiting, "j4", "j2", a_class("b"))
    for waiter in [each for each in waiting if each.state == "blocked"]:
        waiting.leave(waiter)
    assert list(tried(waiting, limit=1)) == ["j3"]
    assert list(tried(waiting, limit=1)) == ["j4"]


# ---- questions ---------------------------------------------------------------------------------------------


def test_open_nodes_wake_the_class() -> None:
    """What `open` names is tried by those of the class whose turn it is."""
    waiting = Waiting()
    add(waiting, "j1", "s1")
    add(waiting, "j2", "s2", priority=1)
    settle(waiting, ("n1",))
    assert tried(waiting) == {"j2": ("n1",)}


def test_more_open_nodes_than_a_try_takes_end_all_the_same() -> None:
    """Nodes that are open but refuse, such as those of a boot that no snapshot has yet, are each tried once."""
    waiting = Waiting()
    add(waiting, "j1", "s1")
    nodes = tuple(f"n{i}" for i in range(2 * CANDIDATES_MAX + 1))
    settle(waiting, nodes)
    hints = []
    while waiting.busy:
        (waiter,) = waiting.next_attempts(128)
        hints.append(waiter.hint or ())
        waiting.still_full(waiter, waiter.hint or ())
    assert [len(hint) for hint in hints] == [16, 16, 1]
    assert sorted(node for hint in hints for node in hint) == sorted(nodes)
    assert picture(waiting) == {"j1": "blocked"}


def test_more_open_nodes_than_a_try_takes_are_tried_pool_by_pool() -> None:
    """Those of the preferred pool before those of its fallback pools, whatever the order in which they were named."""
    waiting = Waiting(TWO_TIERS)
    add(waiting, "j1", "s1")
    nodes = [f"{tier}{i}" for i in range(CANDIDATES_MAX) for tier in ("fallback", "own")]
    settle(waiting, tuple(nodes))
    (waiter,) = waiting.next_attempts(128)
    assert waiter.hint == tuple(node for node in nodes if node.startswith("own"))
    waiting.still_full(waiter, waiter.hint)
    assert tried(waiting) == {"j1": tuple(node for node in nodes if node.startswith("fallback"))}


def test_many_open_nodes_are_tried_by_many_at_once() -> None:
    """Each part of the nodes by its share of the jobs, and none of them by all; fallback pools wait for their turn."""
    waiting = Waiting(TWO_TIERS)
    for number in range(100):
        add(waiting, f"j{number}", f"s{number}")
    own = [f"own{i}" for i in range(2 * CANDIDATES_MAX + 1)]
    settle(waiting, (*(f"fallback{i}" for i in range(9)), *own))
    hints = Counter(waiter.hint for waiter in waiting.next_attempts(128))
    assert sorted(node for hint in hints for node in hint or ()) == sorted(own)
    assert sorted(hints.values()) == [1, 16, 16]


def test_a_job_that_is_tried_afresh_in_vain_asks_before_it_parks() -> None:
    """Its few candidates were full; the other nodes of its class were not asked."""
    waiting = seed_waiting("j1")
    add(waiting, "j2", "j1", DE)
    waiting.leave(next(iter(waiting)))
    (waiter,) = waiting.next_attempts(128)
    waiting.still_full(waiter, ["n1"])
    assert picture(waiting) == {"j2": "asking"}


def test_an_answer_holds_for_the_class_whoever_asked() -> None:
    """One that was to find out left while none was parked; another one had asked meanwhile."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "j1", DE)
    add(waiting, "j4", "j2", DE)
    for waiter in [each for each in waiting if each.state == "blocked"]:
        waiting.leave(waiter)
    waiting.unblock(["n1"], everywhere)
    afresh, _ = waiting.next_attempts(128)
    waiting.found_no_room(a_job("j5", "s5"), DE, 0)
    waiting.leave(afresh, placed="n1")
    settle(waiting)
    assert picture(waiting) == {"j4": "trying", "j5": "blocked"}


def test_who_parked_behind_a_question_asks_when_the_asker_leaves() -> None:
    """A deadline, a cancel or a placement of the asker leaves nobody parked without a question."""
    waiting = Waiting()
    first = add(waiting, "j1", "s1")
    add(waiting, "j2", "s2")
    add(waiting, "j3", "s3")
    waiting.leave(first)
    assert picture(waiting) == {"j2": "asking", "j3": "blocked"}
    assert names(waiting.asking()) == ["j2"]


def test_who_leaves_after_the_answer_leaves_the_others_parked() -> None:
    """The answer to a question holds for the whole class."""
    waiting = seed_waiting("j1", "j2")
    first = next(iter(waiting))
    waiting.leave(first)
    assert picture(waiting) == {"j2": "blocked"}
    assert not waiting.busy


def test_a_gap_lets_one_of_each_class_ask() -> None:
    """When events may have been missed, one question a class tells enough."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "s3", DE)
    settle(waiting)
    waiting.ask_all()
    assert picture(waiting) == {"j1": "asking", "j2": "blocked", "j3": "asking"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param([a_node("n1")], [a_node("n1"), a_node("n2")], ["n2"], id="a node that joined"),
        pytest.param([a_node("n1")], [a_node("n1", slots=9)], [], id="more slots are told by an event"),
        pytest.param([a_node("n1")], [a_node("n1", boot=LATER_BOOT)], ["n1"], id="a node that was started again"),
        pytest.param([a_node("n1", "b")], [a_node("n1")], ["n1"], id="a node of another pool"),
        pytest.param([a_node("n1")], [a_node("n1", "b")], [], id="a node that went to another pool"),
        pytest.param([a_node("n1")], [], [], id="a node that left"),
    ],
)
def test_what_a_snapshot_brings_for_a_class(old: list[Node], new: list[Node], expected: list[str]) -> None:
    """Nodes that it was not tried on."""
    assert list(gained_nodes([ZH], an_index(*old), an_index(*new, version=2))) == [(ZH, expected)]


def test_another_fallback_brings_nodes_that_did_not_change() -> None:
    """The pools are other ones, the nodes are the same."""
    nodes = (a_node("a1"), a_node("b1", "b"))
    old, new = an_index(*nodes), an_index(*nodes, pools={"a": Pool("a", fallback=("b",))})
    assert list(gained_nodes([ZH, DE], old, new)) == [(ZH, ["b1"]), (DE, [])]
    assert [new.tier_of(ZH, node) for node in ("a1", "b1", "gone")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("nodes", "pools", "moves"),
    [
        pytest.param([a_node("n1"), a_node("n2")], {}, False, id="its own pool alone serves it"),
        pytest.param([a_node("n1"), a_node("n2", "b", pairs=(EN_DE,))], {}, False, id="another pool serves others"),
        pytest.param([a_node("n1"), a_node("n2", "b")], {}, True, id="another pool serves it too"),
        pytest.param([a_node("n2", "b")], {}, True, id="another pool serves it instead"),
        pytest.param([], {}, True, id="no pool serves it any more"),
        pytest.param([a_node("n1")], {"b": Pool("b", tenants=("t1",))}, True, id="a tenant prefers another pool"),
    ],
)
def test_a_snapshot_after_which_jobs_may_belong_to_another_pool(
    nodes: list[Node], pools: dict[str, Pool], moves: bool
) -> None:
    """Jobs that wait are placed by the pool that a newcomer would go to."""
    before = an_index(a_node("n1"))
    assert list(movable_classes([a_class()], before, an_index(*nodes, pools=pools, version=2))) == [a_class()] * moves


@pytest.mark.parametrize(
    ("node", "moves"),
    [
        pytest.param(a_node("n2", "b"), False, id="nothing changed"),
        pytest.param(a_node("n2", "b", boot=LATER_BOOT), False, id="it was started again"),
        pytest.param(a_node("n2", "b", slots=5), True, id="its pool counts for more"),
    ],
)
def test_a_snapshot_moves_jobs_only_by_the_slots_of_pools(node: Node, moves: bool) -> None:
    """Where several pools serve a class; a fleet that is restarted gives no reason to look at all that wait."""
    before = an_index(a_node("n1"), a_node("n2", "b"))
    assert len(before.eligible(a_class())) == 1  # asked for, as every class is of which a job waits
    after = before.revised([Delta(2, 1, nodes=(node,))])
    assert list(movable_classes([a_class()], before, after)) == [a_class()] * moves


def test_a_pool_for_certain_tenants_moves_jobs_that_waited_in_no_such_scope() -> None:
    """Their class has a tenant now, although nothing changed for the class that they have."""
    nodes = (a_node("n1"), a_node("n2", "b"))
    before = an_index(*nodes, pools={"b": Pool("b", match=Match(tenants=("t1",)))})
    after = an_index(*nodes, pools={"b": Pool("b", match=Match(tenants=("t1", "t2")))}, version=2)
    assert list(movable_classes([a_class()], before, after)) == [a_class()]


@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        pytest.param([a_node("n1")], [a_node("n1"), a_node("n2")], False, id="one pool has another node"),
        pytest.param([a_node("n1")], [a_node("n1"), a_node("n2", "b")], True, id="another pool has come"),
        pytest.param([a_node("n1"), a_node("n2", "b")], [a_node("n1")], True, id="a pool has gone"),
        pytest.param(
            [a_node("n1"), a_node("n2", "b")],
            [a_node("n1"), a_node("n2", "b", boot=LATER_BOOT)],
            False,
            id="a node was started again",
        ),
        pytest.param(
            [a_node("n1"), a_node("n2", "b")],
            [a_node("n1"), a_node("n2", "b", pairs=(EN_DE,))],
            True,
            id="a node serves another pair",
        ),
    ],
)
def test_a_snapshot_after_which_what_is_skipped_may_belong_to_another_pool(
    before: list[Node], after: list[Node], moves: bool
) -> None:
    """Nobody knows its classes."""
    assert any_may_move(an_index(*before), an_index(*after, version=2)) is moves


def test_a_tenant_that_gets_a_pool_of_its_own_may_move_what_is_skipped() -> None:
    """Although no node changed."""
    nodes = (a_node("n1"), a_node("n2", "b"))
    after = an_index(*nodes, pools={"b": Pool("b", tenants=("t1",))}, version=2)
    assert any_may_move(an_index(*nodes), after)


def test_nodes_that_are_new_to_a_class_wake_it_alone() -> None:
    """A snapshot with another node for a class says nothing about other classes."""
    waiting = seed_waiting("j1")
    add(waiting, "j2", "s2", DE)
    settle(waiting)
    waiting.unblock_class(DE, ["n7"])
    waiting.unblock_class(a_class("unknown"), ["n7"])
    assert tried(waiting) == {"j2": ("n7",)}


# ---- sessions ----------------------------------------------------------------------------------------------


def test_the_next_of_a_session_is_tried_at_once_when_the_first_leaves() -> None:
    """It is placed afresh, because nobody of its class competes."""
    waiting = seed_waiting("j1")
    add(waiting, "j2", "j1", DE)
    waiting.leave(next(iter(waiting)))
    assert picture(waiting) == {"j2": "ready"}
    assert tried(waiting) == {"j2": None}


def test_the_next_of_a_session_keeps_its_place_in_a_class_that_waits() -> None:
    """It is older than others of its class, so it comes before them, and it does not pass the older ones."""
    waiting = seed_waiting("j1")
    add(waiting, "j2", "j1", DE)
    add(waiting, "j3", "s3", DE)
    add(waiting, "j4", "s4", DE)
    settle(waiting)
    waiting.leave(next(iter(waiting)))
    assert picture(waiting) == {"j2": "blocked", "j3": "blocked", "j4": "blocked"}
    assert names(waiting.blocked(DE)) == ["j2", "j3", "j4"]


def test_a_job_that_leaves_from_behind_changes_nothing_for_the_others() -> None:
    """A cancelled later job of a session takes no part in anything."""
    waiting = seed_waiting("j1")
    second = add(waiting, "j2", "j1")
    add(waiting, "j3", "j1")
    waiting.leave(second)
    assert picture(waiting) == {"j1": "blocked", "j3": "behind"}


def test_whoever_left_is_not_moved_by_late_answers() -> None:
    """A partition can be lost while its jobs are in a call."""
    waiting = seed_waiting("j1")
    waiting.unblock(["n1"], everywhere)
    (waiter,) = waiting.next_attempts(128)
    waiting.drop_partitions({0})
    waiting.still_full(waiter, ["n1"])
    waiting.apply_open(waiter, ("n1",))
    waiting.block(waiter)
    waiting.reclassify(waiter, DE)
    waiting.leave(waiter, placed="n1")
    assert (picture(waiting), len(waiting), waiting.classes(), waiting.busy) == ({}, 0, [], False)


# ---- changes of the world ----------------------------------------------------------------------------------


def test_another_class_is_tried_afresh() -> None:
    """A parked job whose class nobody serves any more is decided anew; one behind it only changes its class."""
    waiting = seed_waiting("j1")
    behind = add(waiting, "j2", "j1")
    first = next(iter(waiting))
    waiting.reclassify(behind, DE)
    waiting.reclassify(first, DE)
    assert picture(waiting) == {"j1": "ready", "j2": "behind"}
    assert waiting.classes() == [DE]
    assert tried(waiting) == {"j1": None}


def test_who_parked_behind_a_try_asks_when_that_one_changes_its_class() -> None:
    """The one that was to find out goes elsewhere, so the next of the class asks."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "j1", DE)
    add(waiting, "j4", "j2", DE)
    for waiter in [each for each in waiting if each.job.job_id in ("j1", "j2")]:
        waiting.leave(waiter)
    assert picture(waiting) == {"j3": "ready", "j4": "blocked"}
    (ready,) = waiting.next_attempts(128)
    waiting.reclassify(ready, a_class("b", EN_DE))
    assert picture(waiting) == {"j3": "ready", "j4": "asking"}


def test_who_was_in_a_call_when_the_one_that_was_to_find_out_left_asks_before_it_parks() -> None:
    """It was tried on a node that an event named; nobody has looked at the others."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "j1", DE)
    add(waiting, "j4", "j2", DE)
    for waiter in [each for each in waiting if each.job.job_id in ("j1", "j2")]:
        waiting.leave(waiter)
    waiting.unblock(["n1"], everywhere)
    afresh, woken = waiting.next_attempts(128)
    assert (afresh.hint, woken.hint) == (None, ("n1",))
    waiting.leave(afresh, placed="n1")
    waiting.still_full(woken, ["n1"])
    assert picture(waiting) == {"j4": "asking"}
    settle(waiting)
    assert picture(waiting) == {"j4": "blocked"}


def test_a_lost_partition_takes_its_jobs_along_and_nobody_elses() -> None:
    """Those who waited behind its question ask themselves."""
    waiting = Waiting()
    waiting.found_no_room(a_job("j1", "s1", partition=1), ZH, 0)
    waiting.queue(a_job("j2", "s1", partition=1), ZH, 0)
    waiting.queue(a_job("j3", "s3", partition=2), ZH, 0)
    waiting.drop_partitions({1})
    assert (picture(waiting), names(waiting.promoted)) == ({"j3": "asking"}, [])


def test_overdue_are_those_whose_deadline_has_passed_competing_or_not() -> None:
    """Each is named once, at most so many at a time; who left before is not."""
    waiting = Waiting()
    for job_id, deadline_at_ms in (("j1", 30), ("j2", 10), ("j3", 20), ("j4", None), ("j5", 10)):
        waiting.queue(a_job(job_id, "s1", deadline_at_ms=deadline_at_ms), ZH, 0)
    waiting.leave(list(waiting)[4])
    assert names(waiting.deadlines.overdue(9, 9)) == []
    assert names(waiting.deadlines.overdue(20, 1)) == ["j2"]
    assert names(waiting.deadlines.overdue(20, 9)) == ["j3"]
    assert names(waiting.deadlines.overdue(20, 9)) == []


def test_far_deadlines_of_those_who_left_are_forgotten() -> None:
    """A steady stream of jobs with a deadline next year must not fill the memory."""
    waiting = Waiting()
    stays = waiting.queue(a_job("stays", "s0", deadline_at_ms=10**12), ZH, 0)
    kept = 0
    for i in range(3 * DEADLINES_SPARE):
        waiting.leave(waiting.queue(a_job(f"j{i}", deadline_at_ms=10**12), ZH, 0))
        kept = max(kept, len(waiting.deadlines))
    assert kept <= DEADLINES_SPARE + 4
    assert waiting.deadlines.overdue(10**13, 9) == [stays]


def test_what_a_newcomer_would_wait_for_and_how_many_do() -> None:
    """Its session, or its class; who waits behind a session is not counted for its class."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "j1", DE)
    jobs = {"session": a_job(session_id="j1"), "class": a_job(session_id="s9")}
    causes = {name: waiting.cause(job, ZH) for name, job in jobs.items()}
    assert causes == {"session": ("", "j1"), "class": ZH}
    assert {cause: waiting.count(cause) for cause in (*causes.values(), DE, ("", "s9"), ("tenant:t1", "a"))} == {
        ("", "j1"): 2,
        ZH: 2,
        DE: 0,
        ("", "s9"): 0,
        ("tenant:t1", "a"): 0,
    }


def test_an_entry_that_waits_is_known_again() -> None:
    """Of its session in its partition, up to the last one: later ones were skipped."""
    waiting = Waiting()
    jobs = [msgspec.structs.replace(a_job(f"j{i}"), entry_id=f"{i}-0") for i in range(3)]
    for job in jobs[:2]:
        waiting.queue(job, ZH, 0)
    elsewhere = msgspec.structs.replace(jobs[0], partition=1)
    another = msgspec.structs.replace(a_job("j0", "s2"), entry_id="0-0")
    assert [waiting.holds(job) for job in (*jobs, elsewhere, another)] == [True, True, False, False, False]


def comparisons_of_a_wake(count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often waiters are compared until one of so many is placed and the next one has found no room."""
    waiting = seed_waiting(*(f"j{i}" for i in range(count)))
    compared = 0

    def compare(self: Waiter, other: Waiter) -> bool:
        nonlocal compared
        compared += 1
        return self.key < other.key

    monkeypatch.setattr(Waiter, "__lt__", compare)
    monkeypatch.setattr(Waiting, "__iter__", None)
    waiting.unblock(["n1"], everywhere)
    (first,) = waiting.next_attempts(128)
    waiting.leave(first, placed="n1")
    for waiter in waiting.next_attempts(128):
        waiting.still_full(waiter, ["n1"])
    assert not waiting.busy
    return compared


def test_a_wake_does_not_look_at_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who could not be placed finds its place by halving."""
    assert comparisons_of_a_wake(50_000, monkeypatch) <= 2 * comparisons_of_a_wake(300, monkeypatch)


@pytest.mark.parametrize("sessions", [1, 20_000])
def test_a_lost_partition_does_not_look_for_each_of_many(sessions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether they are of one session or of many: the last is the next to go, of session and class."""
    waiting = Waiting()
    for i in range(20_000):
        waiting.queue(a_job(f"j{i}", f"s{i % sessions}"), ZH, 0)
    compared = 0

    def compare(self: Waiter, other: object) -> bool:
        nonlocal compared
        compared += 1
        return self is other

    monkeypatch.setattr(Waiter, "__eq__", compare)
    monkeypatch.setattr(Waiter, "__hash__", object.__hash__)
    waiting.drop_partitions({0})
    assert (len(waiting), compared) == (0, 0)


# ---- the sweep ---------------------------------------------------------------------------------------------


def test_the_sweep_looks_at_classes_that_are_settled() -> None:
    """A class with somebody who asks, or is to be tried, finds out by itself."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "s3", DE)
    add(waiting, "j4", "s4", DE)
    assert waiting.settled_classes() == [ZH]
    settle(waiting)
    assert waiting.settled_classes() == [ZH, DE]
    waiting.unblock_class(ZH, ["n1"])
    assert waiting.settled_classes() == [DE]


def test_only_a_placement_that_no_event_announced_is_a_hit_of_the_sweep() -> None:
    """A swept wake that leads nowhere, or elsewhere, or comes before or after an event, is none; nor is a try that has
    nothing to do with it any more.
    """
    hits = {}
    for story in ("placed", "full", "announced", "announced before", "elsewhere", "another class"):
        waiting = seed_waiting("j1")
        if story == "announced before":
            waiting.unblock(["n1"], everywhere)
        waiting.unblock_class(ZH, ["n1"], is_swept=True)
        if story == "announced":
            waiting.unblock(["n1"], everywhere)
        (waiter,) = waiting.next_attempts(128)
        if story == "another class":
            waiting.reclassify(waiter, DE)
            (waiter,) = waiting.next_attempts(128)
        if story == "full":
            waiting.still_full(waiter, ["n1"])
        else:
            waiting.leave(waiter, placed="bound" if story == "elsewhere" else "n1")
        hits[story] = waiting.sweep_hits
    assert hits == {"placed": 1, "full": 0, "announced": 0, "announced before": 0, "elsewhere": 0, "another class": 0}


def test_reports_count_the_competing_by_pool() -> None:
    """Jobs that wait for their session are counted as waiting, not as competing."""
    waiting = seed_waiting("j1", "j2")
    add(waiting, "j3", "j1")
    add(waiting, "j4", "s4", a_class("b"))
    assert (waiting.by_pool(), len(waiting)) == ({"a": 2, "b": 1}, 4)
