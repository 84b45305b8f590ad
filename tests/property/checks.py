"""What must hold of a driver: when it tries somebody, when it sends a call, and between two steps.

As far as possible it is found without the bookkeeping that is under test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scheduler.runtime import placement
from scheduler.runtime.intake import Job
from scheduler.runtime.limits import has_room
from scheduler.runtime.lines import order_of
from scheduler.runtime.tries import Try
from scheduler.runtime.waiting import Waiter

if TYPE_CHECKING:
    from tests.property.driver import Driver


def first_of_sessions(driver: Driver) -> dict[str, Waiter]:
    """The first waiter of each session, found without any of the bookkeeping under test."""
    first: dict[str, Waiter] = {}
    for waiter in sorted(driver.waiting, key=lambda waiter: waiter.order):
        first.setdefault(waiter.job.session_id, waiter)
    return first


def check_bindings(driver: Driver, sent: Sequence[Try]) -> None:
    """What a session is bound to is known in every call, however many sessions there are."""
    for each in sent:
        session = each.job.session_id
        if driver.cell.ours[each.job.partition] and driver.cell.epochs[each.job.partition] == each.job.epoch:
            known, _ = driver.bindings.get(session, 0)
            assert known == driver.cell.bindings.get(session), f"{session} is taken to be bound to {known}"


def check_newcomers(driver: Driver, tries: Sequence[Try], again: bool) -> None:
    """Newcomers pass neither those of their class who compete, nor those who wait for a limit, nor anybody of
    their session, nor such as were skipped.
    """
    first = first_of_sessions(driver)
    classes = {waiter.wanted for waiter in first.values() if waiter.status != "limited"}
    for each in tries:
        if each.placement is not None:
            assert each.wanted not in classes, f"{each.job.job_id} passes competing jobs of its class"
            assert each.job.session_id not in first, f"{each.job.job_id} passes its session"
            skipped = not again and each.wanted in driver.skipped._causes
            assert not skipped, f"{each.job.job_id} passes skipped jobs of its class"
            for limit in driver.limits_of(each.job, each.wanted):
                passed = _limited(driver, limit, each.wanted.pool)
                assert not passed, f"{each.job.job_id} passes {passed} at the limit {limit}"


def _limited(driver: Driver, limit: str, pool: str) -> list[Waiter]:
    """Those who wait for a limit."""
    return [
        waiter
        for waiter in driver.waiting
        if waiter.parked_at is not None and waiter.parked_at.limit == limit and waiter.wanted.pool == pool
    ]


def check_turns(driver: Driver, chosen: Sequence[Waiter]) -> None:
    """A limit lets them go in order, those apart whose class waits for room; and they pass nobody in the class."""
    for waiter in chosen:
        if waiter.woken:
            left = set(driver.waiting._lines[waiter.wanted].wakes).difference(waiter.hint or ())
            last = max(driver.tier_of(waiter.wanted, node) for node in waiter.hint or ())
            assert all(last <= driver.tier_of(waiter.wanted, node) for node in left), "a later pool is tried before"
    competing = {waiter.wanted for waiter in driver.waiting if waiter.status in ("parked", "asking")}
    let_go = {(waiter.let_go.limit, waiter.wanted) for waiter in driver.waiting if waiter.let_go is not None}
    for waiter in chosen:
        if waiter.let_go is not None and not waiter.competes:
            limit = waiter.let_go.limit
            assert waiter.wanted not in competing, f"{waiter.job.job_id} passes competing jobs of its class"
            for other in _limited(driver, limit, waiter.wanted.pool):
                apart = other.wanted != waiter.wanted and (limit, other.wanted) in let_go
                assert apart or waiter < other, f"{waiter.job.job_id} passes {other.job.job_id} at {limit}"
        elif waiter.woken and waiter.let_go is None:
            for limit in driver.limits_of(waiter.job, waiter.wanted):
                passed = _limited(driver, limit, waiter.wanted.pool)
                assert not passed, f"{waiter.job.job_id} passes {passed} at {limit}"


def check_settled(driver: Driver) -> None:
    """Before the blocking read: nobody is in between, nobody is lost, nobody waits beside a free slot."""
    assert not driver.waiting.busy, "the step ends although somebody is to be tried"
    first = first_of_sessions(driver)
    waiters = list(driver.waiting)
    for waiter in waiters:
        expected = ("parked", "limited") if first[waiter.job.session_id] is waiter else ("behind",)
        assert waiter.status in expected, f"{waiter.job.job_id} is {waiter.status}"
        assert (waiter.status == "limited") == (waiter.parked_at is not None)
        assert (waiter.status == "parked") == waiter.competes
        if waiter.wanted not in driver.homeless and not driver.index.eligible(waiter.wanted):
            binding = driver.cell.bindings.get(waiter.job.session_id)
            wanted = placement.classify(waiter.job, binding, driver.index)
            assert not driver.index.eligible(wanted), f"{waiter.job.job_id} waits in a class that has no nodes"
    competing = [waiter for waiter in first.values() if waiter.status == "parked"]
    _check_rooms(driver, competing)
    _check_limits(driver, [waiter for waiter in first.values() if waiter.status == "limited"], competing)
    counts = Counter(waiter.wanted for waiter in competing)
    assert set(driver.waiting.classes()) == set(counts)
    assert {wanted: len(driver.waiting.parked(wanted)) for wanted in counts} == dict(counts)
    assert len(driver.waiting) == len(waiters)
    assert len(waiters) <= driver.memory.total + 2 * driver.batch_max, "more wait than there is memory for"
    _check_nobody_lost(driver, waiters)
    assert driver.waiting.sweep_hits == 0, "the sweep found what no event told"


def _check_rooms(driver: Driver, competing: Sequence[Waiter]) -> None:
    told, _ = driver.told()
    for waiter in competing:
        for node in driver.index.eligible(waiter.wanted):
            host = driver.cell.hosts[node.id]
            if host.has_room and node.boot == f"{host.boot}-x":
                assert node.id in told, f"{waiter.job.job_id} is parked, {node.id} has room, and nothing tells it"


def _check_limits(driver: Driver, limited: Sequence[Waiter], competing: Sequence[Waiter]) -> None:
    """Who waits for a limit waits for one that is full, or about to be told; or one of its class was let go by that
    limit and waits for room.
    """
    _, told = driver.told()
    let_go = {(waiter.let_go.limit, waiter.wanted) for waiter in competing if waiter.let_go is not None}
    for waiter in limited:
        assert waiter.parked_at is not None
        limit, wanted = waiter.parked_at.limit, waiter.wanted
        if has_room(limit, driver.cell.used(limit), driver.index.pools.get(wanted.pool)):
            assert limit in told or (limit, wanted) in let_go, f"{waiter.job.job_id} waits, and {limit} has room"


def _check_nobody_lost(driver: Driver, waiters: list[Waiter]) -> None:
    ahead = {job.entry_id for job in driver.ahead.entries} if driver.ahead else set()
    in_hand = Counter(waiter.job.entry_id for waiter in waiters)
    assert not in_hand or max(in_hand.values()) == 1, "a job waits twice"
    for partition, epoch in driver.epochs.items():
        for entry, job in driver.cell.intake[partition].items():
            if entry <= driver.cursors[partition] and str(entry) not in ahead:
                kept = in_hand[job.entry_id] + sum(each.entry_id == job.entry_id for each in driver.refused)
                assert kept == 1 or (kept == 0 and _will_be_read(driver, job)), f"{job.job_id} of epoch {epoch} is lost"


def _will_be_read(driver: Driver, job: Job) -> bool:
    """Whether an entry is one of those that were scanned past, and later ones of its session are as well."""
    found = driver.skipped._ranges.get(job.partition)
    if found is None or order_of(job.entry_id) > found.highest:
        return False
    first = found.lowest
    if driver.skipped._passing:
        first = min(found.left or found.highest, (found.cursor[0], found.cursor[1] + 1))
    return order_of(job.entry_id) >= first and driver.skipped.passes_over(job.session_id, [])
