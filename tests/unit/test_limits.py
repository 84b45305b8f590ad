"""Who waits for a limit, who is let go by it, and what that means for the class and the session."""

from __future__ import annotations

import msgspec
import pytest

from scheduler.protocol.snapshot import Pool
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.waiting.limits import changed_limits, has_room, limits_of
from scheduler.runtime.waiting.queues import Waiter
from scheduler.runtime.waiting.waiting_jobs import Waiting
from tests.unit.arrange import EN_DE, a_class, a_job, an_index
from tests.unit.test_waiting import DE, ZH, everywhere, names, picture, settle

TENANT = "tenant:t1"


LIMITED = an_index(pools={name: Pool(name, tenant_concurrency=1) for name in ("a", "b", "c")})
"""Every job counts against its tenant."""


def a_tenants_job(job_id: str, session_id: str = "", tenant_id: str = "t1", priority: int = 0) -> Job:
    """A job of a tenant, by default in a session of its own."""
    return a_job(job_id, session_id or job_id, priority=priority, tenant_id=tenant_id)


def seed_limited(*job_ids: str, job_class: JobClass = ZH) -> Waiting:
    """These jobs, each of a session of its own, wait for the limit of their tenant."""
    waiting = Waiting(LIMITED)
    for job_id in job_ids:
        waiting.found_limit_full(a_tenants_job(job_id), job_class, 0, TENANT, waiting.limits.mark)
    return waiting


def tell(waiting: Waiting) -> None:
    """The limit may have room."""
    waiting.limits.notify([TENANT])


def try_all(waiting: Waiting, room: int) -> tuple[list[str], int]:
    """Try until none is left to be tried, with room for so many. Returns: what was placed, and vain tries."""
    placed: list[str] = []
    in_vain = 0
    while waiting.busy:
        settle(waiting)
        for waiter in waiting.next_attempts(128):
            if len(placed) < room:
                placed.append(waiter.job.job_id)
                waiting.leave(waiter, placed="n1")
            else:
                in_vain += 1
                waiting.still_limited(waiter, TENANT, waiting.limits.mark)
    return placed, in_vain


# ---- which limits, and whether they have room ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "tenant", "tenant_id", "expected"),
    [
        pytest.param(0, 0, "t1", (), id="no pool has limits"),
        pytest.param(2, 0, "t1", ("session:s1",), id="of a session"),
        pytest.param(0, 3, "t1", ("tenant:t1",), id="of a tenant"),
        pytest.param(2, 3, "t1", ("session:s1", "tenant:t1"), id="of both"),
        pytest.param(0, 3, "", (), id="a job without a tenant counts against none"),
    ],
)
def test_the_limits_of_a_job(session: int, tenant: int, tenant_id: str, expected: tuple[str, ...]) -> None:
    """By the policy of the pool that its session prefers."""
    index = an_index(pools={"a": Pool("a", session_concurrency=session, tenant_concurrency=tenant)})
    assert limits_of(a_tenants_job("j1", "s1", tenant_id), ZH, index) == expected


def test_limits_of_another_pool_hold_a_job_back_for_its_session_alone() -> None:
    """A job that runs under one may be of the same session; of a tenant each pool says what it starts itself."""
    index = an_index(pools={"a": Pool("a"), "b": Pool("b", session_concurrency=1, tenant_concurrency=1)})
    assert limits_of(a_tenants_job("j1", "s1"), ZH, index) == ("session:s1",)


def test_a_pool_that_is_gone_limits_nothing() -> None:
    """Its jobs are about to be decided anew."""
    index = an_index(pools={"b": Pool("b", session_concurrency=1)})
    assert limits_of(a_job(), ZH, index) == ()


def test_room_is_what_the_pool_leaves() -> None:
    """Each kind by its own number; no number, no end."""
    index = an_index(pools={"a": Pool("a", session_concurrency=1, tenant_concurrency=0)})
    assert {
        "session, nothing held": has_room("session:s1", 0, 0, "a", index),
        "session, full": has_room("session:s1", 1, 0, "a", index),
        "tenant, unlimited": has_room("tenant:t1", 99, 1, "a", index),
        "no such pool": has_room("tenant:t1", 0, 0, "b", index),
    } == {"session, nothing held": True, "session, full": False, "tenant, unlimited": True, "no such pool": False}


@pytest.mark.parametrize(
    ("own", "used", "least", "expected"),
    [
        pytest.param(0, 1, 2, True, id="one more may run beside it"),
        pytest.param(0, 2, 2, False, id="as many as may run beside it"),
        pytest.param(3, 2, 2, False, id="whatever its own pool says"),
        pytest.param(2, 2, 3, False, id="and no more than that says"),
        pytest.param(0, 9, 0, True, id="nobody has a limit"),
    ],
)
def test_room_in_a_session_is_what_those_that_run_leave(own: int, used: int, least: int, expected: bool) -> None:
    """The smallest limit of all of them, and its own."""
    index = an_index(pools={"a": Pool("a", session_concurrency=own), "b": Pool("b", session_concurrency=9)})
    assert has_room("session:s1", used, least, "a", index) == expected


def test_there_is_room_beside_jobs_whose_limit_is_no_more() -> None:
    """When no pool limits sessions any more, `reserve` does not look at it either."""
    assert has_room("session:s1", 1, 1, "a", an_index(pools={"a": Pool("a")}))


def test_other_limits_of_any_pool_let_jobs_of_a_session_try_in_all_pools() -> None:
    """One of those that run may have been what held them back; of a tenant only those of the pools that changed."""
    waiting = seed_limited("j1")
    waiting.found_limit_full(a_job("j2", "s2"), ZH, 0, "session:s2", waiting.limits.mark)
    waiting.limits.notify_pools(["b"])
    assert names(waiting.next_attempts(9)) == ["j2"]


def test_pools_whose_limits_changed() -> None:
    """New ones and those that are gone among them; another strategy is no other limit."""
    old = {"a": Pool("a"), "b": Pool("b", session_concurrency=1), "c": Pool("c"), "gone": Pool("gone")}
    new = {"a": Pool("a", "spread"), "b": Pool("b"), "c": Pool("c", tenant_concurrency=1), "new": Pool("new")}
    assert changed_limits(old, new) == ["b", "c", "gone", "new"]


# ---- who waits ---------------------------------------------------------------------------------------------


def test_a_limited_job_holds_up_its_session_and_its_limit_but_not_its_class() -> None:
    """Newcomers of another tenant pass it, whatever their class."""
    waiting = seed_limited("j1")
    assert (picture(waiting), waiting.classes(), waiting.busy) == ({"j1": "limited"}, [], False)
    assert {
        "same session": waiting.must_wait(a_tenants_job("j2", "j1", "t9"), DE),
        "same tenant": waiting.must_wait(a_tenants_job("j2"), DE),
        "same tenant, other pool": waiting.must_wait(a_tenants_job("j2"), a_class("b")),
        "other tenant, same class": waiting.must_wait(a_tenants_job("j2", tenant_id="t2"), ZH),
    } == {
        "same session": True,
        "same tenant": True,
        "same tenant, other pool": False,
        "other tenant, same class": False,
    }


def test_a_later_job_of_a_session_that_is_limited_too_queues_behind_the_first() -> None:
    """Both were in calls that were under way; it does not compete for the limit beside it."""
    waiting = seed_limited("j1")
    waiting.found_limit_full(a_tenants_job("j2", "j1"), DE, 0, TENANT, waiting.limits.mark)
    assert (picture(waiting), waiting.count((TENANT, "a"))) == ({"j1": "limited", "j2": "behind"}, 1)


def test_newcomers_queue_where_their_tenant_waits() -> None:
    """Those of a session behind it, others at the limit, also when their class waits for room."""
    waiting = seed_limited("j1")
    waiting.found_no_room(a_tenants_job("j2", tenant_id="t2"), ZH, 0)
    for job in (a_tenants_job("j3", "j1"), a_tenants_job("j4"), a_tenants_job("j5", tenant_id="t2")):
        waiting.queue(job, ZH, 0)
    settle(waiting)
    assert picture(waiting) == {"j1": "limited", "j2": "blocked", "j3": "behind", "j4": "limited", "j5": "blocked"}


def test_whoever_is_woken_by_a_node_does_not_pass_his_tenants_jobs_at_the_limit() -> None:
    """It joins them without a try, and the room is for the next of its class."""
    waiting = Waiting(LIMITED)
    for job in (a_tenants_job("j1"), a_tenants_job("j2", tenant_id="t2")):
        waiting.found_no_room(job, ZH, 0)
    settle(waiting)
    waiting.found_limit_full(a_tenants_job("j3"), DE, 0, TENANT, waiting.limits.mark)
    waiting.unblock(["n1"], everywhere)
    assert names(waiting.next_attempts(128)) == ["j2"]
    assert picture(waiting) == {"j1": "limited", "j2": "trying", "j3": "limited"}


# ---- who is let go -----------------------------------------------------------------------------------------


def test_an_event_lets_the_first_try_and_then_the_next() -> None:
    """By priority, then in the order of arrival, until one is limited again."""
    waiting = seed_limited("j1", "j2", "j3")
    waiting.found_limit_full(a_tenants_job("j4", priority=1), ZH, 0, TENANT, waiting.limits.mark)
    tell(waiting)
    assert try_all(waiting, room=2) == (["j4", "j1"], 1)
    assert picture(waiting) == {"j2": "limited", "j3": "limited"}


def test_an_event_lets_the_first_of_all_classes_try() -> None:
    """The more urgent one is of a class that came to the limit later."""
    waiting = seed_limited("j1")
    waiting.found_limit_full(a_tenants_job("j2", priority=1), DE, 0, TENANT, waiting.limits.mark)
    tell(waiting)
    assert names(waiting.next_attempts(1)) == ["j2"]


def test_other_limits_do_not_let_go() -> None:
    """Each event says which limits it is about."""
    waiting = seed_limited("j1")
    waiting.limits.notify(["tenant:t2", "session:j1"])
    assert not waiting.busy


@pytest.mark.parametrize("room", [0, 1, 5, 60, 499])
def test_tries_in_vain_are_few_however_many_wait(room: int) -> None:
    """At most one more than jobs that were placed."""
    waiting = seed_limited(*(f"j{i}" for i in range(500)))
    tell(waiting)
    placed, in_vain = try_all(waiting, room)
    assert placed == [f"j{i}" for i in range(room)]
    assert 1 <= in_vain <= room + 1


def test_the_next_of_the_session_takes_its_place_at_the_limit() -> None:
    """It is older than others of its tenant, and not tried before its turn."""
    waiting = seed_limited("j1", "j2")
    waiting.queue(a_tenants_job("j3", "j1"), ZH, 0)
    waiting.queue(a_tenants_job("j4"), ZH, 0)
    tell(waiting)
    assert try_all(waiting, room=3) == (["j1", "j2", "j3"], 1)


def test_whoever_leaves_lets_the_next_try() -> None:
    """The one that was let go is cancelled: the room that was told is still there."""
    waiting = seed_limited("j1", "j2")
    tell(waiting)
    (first,) = waiting.next_attempts(128)
    waiting.leave(first)
    assert names(waiting.next_attempts(128)) == ["j2"]


def test_only_placements_let_more_try_at_once() -> None:
    """Each shows room for another one; a job that was cancelled while it was tried shows none."""
    waiting = seed_limited(*(f"j{i}" for i in range(9)))
    tell(waiting)
    sizes = []
    for placed in ("", "n1", "n1", ""):
        chosen = waiting.next_attempts(128)
        sizes.append(len(chosen))
        for waiter in chosen:
            waiting.leave(waiter, placed)
    assert sizes == [1, 1, 2, 4]


def test_a_full_limit_lets_one_try_when_it_is_told_again() -> None:
    """However many it let go at a time before."""
    waiting = seed_limited(*(f"j{i}" for i in range(9)))
    tell(waiting)
    for _ in range(2):
        for waiter in waiting.next_attempts(128):
            waiting.leave(waiter, placed="n1")
    for waiter in waiting.next_attempts(128):
        waiting.still_limited(waiter, TENANT, waiting.limits.mark)
    assert waiting.next_attempts(128) == []
    tell(waiting)
    assert names(waiting.next_attempts(128)) == ["j3"]


def test_whoever_leaves_from_the_line_changes_nothing_for_the_others() -> None:
    """A deadline, or a lost partition."""
    waiting = seed_limited("j1", "j2")
    waiting.leave(next(iter(waiting)))
    assert (picture(waiting), waiting.busy) == ({"j2": "limited"}, False)


def test_no_room_for_one_is_no_reason_to_hold_back_other_classes() -> None:
    """The first waits for nodes from then on; of its class nobody else is let go, of others they are."""
    waiting = seed_limited("j1", "j2")
    waiting.found_limit_full(a_tenants_job("j3"), DE, 0, TENANT, waiting.limits.mark)
    tell(waiting)
    (first,) = waiting.next_attempts(1)
    waiting.still_full(first, ["n1"])
    settle(waiting)
    assert names(waiting.next_attempts(128)) == ["j3"]
    assert picture(waiting) == {"j1": "blocked", "j2": "limited", "j3": "trying"}
    waiting.unblock(["n1"], everywhere)
    (again,) = waiting.next_attempts(128)
    waiting.leave(again, placed="n1")
    assert names(waiting.next_attempts(128)) == ["j2"]


def test_whoever_is_let_go_does_not_pass_those_of_its_class_who_wait_for_room() -> None:
    """It stands among them, at its place."""
    waiting = seed_limited("j1")
    waiting.found_no_room(a_tenants_job("j2", tenant_id="t2"), ZH, 0)
    settle(waiting)
    tell(waiting)
    assert waiting.next_attempts(128) == []
    assert names(waiting.blocked(ZH)) == ["j1", "j2"]


def test_room_in_the_limit_is_not_lost_while_a_class_waits_for_nodes() -> None:
    """Whoever comes to the limit meanwhile, of another class, is let go as well."""
    waiting = seed_limited("j1", "j2")
    tell(waiting)
    (first,) = waiting.next_attempts(128)
    waiting.still_full(first, ["n1"])
    settle(waiting)
    assert waiting.next_attempts(128) == []
    waiting.queue(a_tenants_job("j3"), DE, 0)
    assert names(waiting.next_attempts(128)) == ["j3"]


def test_a_limit_that_is_full_for_one_pool_is_tried_for_another() -> None:
    """Pools differ in how much a tenant may hold."""
    waiting = seed_limited("j1")
    waiting.found_limit_full(a_tenants_job("j2"), a_class("b"), 0, TENANT, waiting.limits.mark)
    tell(waiting)
    for waiter in waiting.next_attempts(1):
        waiting.still_limited(waiter, TENANT, waiting.limits.mark)
    assert names(waiting.next_attempts(128)) == ["j2"]


def test_another_limit_in_the_way_lets_the_next_try() -> None:
    """The first has its tenant's room and waits for its session."""
    waiting = seed_limited("j1", "j2")
    tell(waiting)
    (first,) = waiting.next_attempts(128)
    waiting.still_limited(first, "session:j1", waiting.limits.mark)
    assert names(waiting.next_attempts(128)) == ["j2"]
    waiting.limits.notify(["session:j1"])
    assert names(waiting.next_attempts(128)) == ["j1"]


# ---- no event is lost --------------------------------------------------------------------------------------


def tried_meanwhile(*told: tuple[str, ...]) -> bool:
    """Whether a job is tried once more whose call was under way when these limits were told, each line at once."""
    waiting = Waiting(LIMITED)
    mark = waiting.limits.mark
    for limits in told:
        waiting.limits.notify(limits)
    waiting.found_limit_full(a_tenants_job("j1"), ZH, 0, TENANT, mark)
    return waiting.busy


def test_an_event_that_was_handed_over_before_the_answer_counts() -> None:
    """Only for the limit that it is about; but of longer ago than the last hand-over nothing is remembered."""
    assert {
        "nothing": tried_meanwhile(()),
        "this limit": tried_meanwhile((TENANT,)),
        "another": tried_meanwhile(("tenant:t2",)),
        "two hand-overs": tried_meanwhile(("tenant:t2",), ("tenant:t3",)),
    } == {"nothing": False, "this limit": True, "another": False, "two hand-overs": True}


def test_a_gap_lets_the_first_of_each_limit_try() -> None:
    """And those whose call is under way once more."""
    waiting = seed_limited("j1", "j2")
    mark = waiting.limits.mark
    waiting.ask_all()
    waiting.found_limit_full(a_job("j3", "s3"), DE, 0, "session:s3", mark)
    assert names(waiting.next_attempts(128)) == ["j1", "j3"]


def test_a_snapshot_with_other_limits_lets_those_of_its_pools_try() -> None:
    """Others are left alone."""
    waiting = seed_limited("j1", "j2")
    waiting.found_limit_full(a_job("j3", "s3"), a_class("b"), 0, "tenant:t3", waiting.limits.mark)
    waiting.limits.notify_pools(["a", "c"])
    assert try_all(waiting, room=9) == (["j1", "j2"], 0)
    assert picture(waiting) == {"j3": "limited"}


# ---- changes of the world ----------------------------------------------------------------------------------


def test_another_class_is_another_line_at_the_limit() -> None:
    """A pool that is gone: its limited jobs are tried in their new one, unless others wait there for the same."""
    waiting = seed_limited("j1", "j2")
    first, second = waiting
    waiting.reclassify(first, a_class("b"))
    assert picture(waiting) == {"j1": "ready", "j2": "limited"}
    (ready,) = waiting.next_attempts(128)
    waiting.still_limited(ready, TENANT, waiting.limits.mark)
    waiting.reclassify(second, a_class("b", EN_DE))
    assert (picture(waiting), waiting.busy) == ({"j1": "limited", "j2": "limited"}, False)


def test_lost_partitions_and_deadlines_take_limited_jobs_along() -> None:
    """With all that is behind them."""
    waiting = Waiting(LIMITED)
    late = msgspec.structs.replace(a_tenants_job("j1"), deadline_at_ms=5)
    lost = msgspec.structs.replace(a_tenants_job("j3"), partition=1)
    for job in (late, a_tenants_job("j2", "j1"), lost):
        waiting.found_limit_full(job, ZH, 0, TENANT, waiting.limits.mark)
    overdue: list[Waiter] = waiting.deadlines.overdue(5, 9)
    assert names(overdue) == ["j1"]
    for waiter in overdue:
        waiting.leave(waiter)
    waiting.drop_partitions({1})
    assert picture(waiting) == {"j2": "limited"}


# ---- the sweep ---------------------------------------------------------------------------------------------


def test_the_sweep_looks_at_limits_that_nothing_was_told_of() -> None:
    """What it finds is a hit when a job is placed; what an event told first is none."""
    hits = {}
    for story in ("swept", "told", "cancelled"):
        waiting = seed_limited("j1", "j2")
        assert waiting.limits.settled() == [(TENANT, "a")]
        if story == "told":
            tell(waiting)
        assert waiting.limits.settled() == ([] if story == "told" else [(TENANT, "a")])
        waiting.limits.sweep(TENANT, "a")
        waiting.limits.sweep("tenant:t9", "a")
        if story == "cancelled":
            (waiter,) = waiting.next_attempts(1)
            waiting.leave(waiter)
            assert try_all(waiting, room=0) == ([], 1)
        else:
            assert try_all(waiting, room=1) == (["j1"], 1)
        hits[story] = waiting.sweep_hits
    assert hits == {"swept": 1, "told": 0, "cancelled": 0}


def test_a_look_that_comes_late_wakes_no_later_job() -> None:
    """No job waits any more in the pool for which it found room."""
    waiting = seed_limited("j1")
    waiting.limits.sweep(TENANT, "b")
    waiting.found_limit_full(a_tenants_job("j2"), a_class("b"), 0, TENANT, waiting.limits.mark)
    waiting.queue(a_tenants_job("j3"), a_class("b"), 0)
    assert (picture(waiting), waiting.busy) == (dict.fromkeys(("j1", "j2", "j3"), "limited"), False)
