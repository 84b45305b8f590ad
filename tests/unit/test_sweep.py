"""The look once a second at all that waits: which jobs are given up, and which room no event told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.protocol.snapshot import Pool
from scheduler.runtime import sweep as sweep_module
from scheduler.runtime.reader import PendingEvents, Reader
from scheduler.runtime.sweep import Sweep, _Turn
from scheduler.runtime.waiting.waiting_jobs import Waiting
from scheduler.store.reads import Reads
from tests.unit.arrange import a_job, a_node, an_index
from tests.unit.test_limits import TENANT, seed_limited
from tests.unit.test_waiting import DE, ZH, add, names, seed_waiting, settle

GRACE_MS: Final = DEFAULTS.no_node_grace_ms
NO_NODES: Final = an_index()
NODES: Final = an_index(
    a_node("n1"),
    a_node("n2"),
    pools={"a": Pool("a", tenant_concurrency=2), "b": Pool("b", session_concurrency=1)},
)


class Server:
    """Stands for the server: nodes that are open, how much of each limit is held, and events that are on their way."""

    def __init__(self, are_open: str = "", held: int = 9, nodes: str = "", limits: str = "", least: int = 0) -> None:
        self._are_open = are_open.split()
        self._held = (held, least)
        self._pending = PendingEvents(frozenset(nodes.split()), frozenset(limits.split()))

    async def are_open(self, nodes: Sequence[str]) -> list[bool]:
        return [node in self._are_open for node in nodes]

    async def held_sizes(self, limits: Sequence[str]) -> list[tuple[int, int]]:
        return [self._held] * len(limits)

    async def peek_freed(self) -> PendingEvents:
        return self._pending


async def look(waiting: Waiting, server: Server) -> list[str]:
    """Who is tried after a look."""
    await Sweep(waiting, DEFAULTS).look(NODES, cast(Reads, server), cast(Reader, server))
    return names(waiting.next_attempts(128))


# ---- what ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("since_ms", "ended"), [(GRACE_MS - 1, []), (GRACE_MS, ["j1", "j2"])])
def test_a_class_that_no_node_serves_is_given_up_after_its_time_of_grace(since_ms: float, ended: list[str]) -> None:
    """Counted from the first look that found no node for it; its jobs end with the reason."""
    waiting = seed_waiting("j1", "j2")
    sweep = Sweep(waiting, DEFAULTS)
    for passed_ms in (0, since_ms / 2, since_ms):
        sweep.judge(NO_NODES, (), 1_000 + passed_ms)
    refused = sweep.unservable(NO_NODES)
    assert ([item.job_id for item in refused], {item.reason for item in refused} - {"no_compatible_node"}) == (
        ended,
        set(),
    )
    assert len(waiting) == 2 - len(ended)


@pytest.mark.parametrize("second_ms", [1, 300, GRACE_MS - 300, GRACE_MS + 5_000])
def test_each_job_has_its_own_time_of_grace(second_ms: int) -> None:
    """A job that comes when its class had no node for long waits for one as long as the first did."""
    waiting = seed_waiting("j1")
    sweep = Sweep(waiting, DEFAULTS)
    ended: dict[str, int] = {}
    for now_ms in range(0, 3 * GRACE_MS, 100):
        if now_ms - 100 < second_ms <= now_ms:
            add(waiting, "j2", "s2")
        sweep.judge(NO_NODES, (), now_ms)
        ended |= {item.job_id: now_ms for item in sweep.unservable(NO_NODES)}
    assert ended["j1"] == GRACE_MS
    assert second_ms + GRACE_MS <= ended["j2"] < second_ms + GRACE_MS + 200


def test_a_job_that_comes_from_another_class_has_a_time_of_grace_of_its_own() -> None:
    """A node served it there."""
    waiting = seed_waiting("j1")
    add(waiting, "j2", "s2", DE)
    sweep = Sweep(waiting, DEFAULTS)
    sweep.judge(NO_NODES, (), 0)
    moved = next(waiter for waiter in waiting if waiter.job.job_id == "j2")
    waiting.reclassify(moved, ZH)
    sweep.judge(NO_NODES, (), GRACE_MS)
    assert [item.job_id for item in sweep.unservable(NO_NODES)] == ["j1"]
    sweep.judge(NO_NODES, (), 2 * GRACE_MS)
    assert [item.job_id for item in sweep.unservable(NO_NODES)] == ["j2"]


def test_what_is_remembered_of_who_came_when_is_bounded() -> None:
    """However often it looks, and however long the time of grace is."""
    waiting = seed_waiting("j1")
    sweep = Sweep(waiting, DEFAULTS)
    for now_ms in range(0, 3 * GRACE_MS, 10):
        add(waiting, f"k{now_ms}", f"k{now_ms}")
        sweep.judge(NO_NODES, (), now_ms)
        sweep.unservable(NO_NODES)
    assert len(sweep._marks) <= sweep_module.MARKS_MAX + 1
    assert len(waiting) <= (GRACE_MS + 2 * GRACE_MS / sweep_module.MARKS_MAX) / 10 + 1


def test_the_time_of_grace_begins_anew_when_a_node_was_there() -> None:
    """It could have served them."""
    waiting = seed_waiting("j1")
    sweep = Sweep(waiting, DEFAULTS)
    for index, now_ms in ((NO_NODES, 0), (NODES, GRACE_MS - 1), (NO_NODES, GRACE_MS)):
        sweep.judge(index, (), now_ms)
    assert not sweep.busy


def test_jobs_that_are_about_to_be_decided_anew_are_not_given_up() -> None:
    """Another pool may serve them."""
    waiting = seed_waiting("j1")
    sweep = Sweep(waiting, DEFAULTS)
    for now_ms in (0, GRACE_MS):
        sweep.judge(NO_NODES, {ZH}, now_ms)
    assert not sweep.busy


def test_a_node_that_comes_at_the_last_moment_saves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step ends so many jobs at most, in the order in which they came; those that are left wait for the node then."""
    monkeypatch.setattr(sweep_module, "ENDED_AT_ONCE_MAX", 2)
    waiting = seed_waiting("j1", "j2", "j3")
    sweep = Sweep(waiting, DEFAULTS)
    for now_ms in (0, GRACE_MS):
        sweep.judge(NO_NODES, (), now_ms)
    assert [item.job_id for item in sweep.unservable(NO_NODES)] == ["j1", "j2"]
    assert sweep.busy
    assert sweep.unservable(NODES) == []
    assert (names(waiting), sweep.busy) == (["j3"], False)


def test_a_step_ends_no_more_than_its_number_of_jobs_whatever_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest has its turn in the next one."""
    monkeypatch.setattr(sweep_module, "ENDED_AT_ONCE_MAX", 3)
    waiting = seed_waiting("j1", "j2")
    for job_id in ("j3", "j4"):
        add(waiting, job_id, job_id, DE)
    sweep = Sweep(waiting, DEFAULTS)
    for now_ms in (0, GRACE_MS):
        sweep.judge(NO_NODES, (), now_ms)
    assert [len(sweep.unservable(NO_NODES)) for _ in range(3)] == [3, 1, 0]


def test_jobs_whose_deadline_has_passed_end() -> None:
    """By the server's time, with the reason."""
    waiting = Waiting()
    waiting.queue(a_job("j1", deadline_at_ms=5), ZH, 0)
    waiting.queue(a_job("j2", "s2", deadline_at_ms=6), ZH, 0)
    refused = Sweep(waiting, DEFAULTS).overdue(5)
    assert [(item.job_id, item.reason) for item in refused] == [("j1", "expired")]
    assert names(waiting) == ["j2"]


# ---- room that no event told -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "tried"),
    [
        pytest.param(Server(), [], id="no room"),
        pytest.param(Server("n1"), ["j1"], id="room that no event told"),
        pytest.param(Server("n1", nodes="n1"), [], id="an event is on its way"),
        pytest.param(Server("n1 n2", nodes="n1"), ["j1"], id="but not for all of it"),
    ],
)
async def test_room_on_nodes(server: Server, tried: list[str]) -> None:
    """A class that waits is woken; a placement then counts as one that was found."""
    waiting = seed_waiting("j1")
    assert await look(waiting, server) == tried


@pytest.mark.parametrize(
    ("server", "tried"),
    [
        pytest.param(Server(held=2), [], id="full"),
        pytest.param(Server(held=1), ["j1"], id="room that no event told"),
        pytest.param(Server(held=1, limits=TENANT), [], id="an event is on its way"),
    ],
)
async def test_room_in_limits(server: Server, tried: list[str]) -> None:
    """By the policy of the pool."""
    waiting = seed_limited("j1")
    assert await look(waiting, server) == tried


@pytest.mark.parametrize(("held", "tried"), [(2, []), (1, ["j1"])])
async def test_room_beside_jobs_of_the_session_in_other_pools(held: int, tried: list[str]) -> None:
    """By the smallest of their limits, if the pool has none itself."""
    waiting = Waiting()
    waiting.found_limit_full(a_job("j1"), ZH, 0, "session:s1", waiting.limits.mark)
    assert await look(waiting, Server(held=held, least=2)) == tried


async def test_classes_that_find_out_by_themselves_are_left_alone() -> None:
    """One that asks is answered."""
    waiting = seed_waiting("j1")
    add(waiting, "j2", "s2", DE)
    assert await look(waiting, Server("n1")) == ["j1"]
    settle(waiting)
    assert names(waiting) == ["j1", "j2"]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([5, 5, 5], [["a", "b"], ["c", "a"], ["a", "b"]], id="two at a time"),
        pytest.param([3, 3, 3], [["a", "b", "c"], ["a", "b", "c"], ["a", "b", "c"]], id="all fit"),
        pytest.param([99, 1, 1], [["a"], ["b", "c", "a"], ["a"]], id="one that is too much alone"),
    ],
)
def test_everybody_has_a_turn(sizes: list[int], expected: list[list[str]]) -> None:
    """Until the costs reach the bound; from the first on again, once the last one had its turn."""
    turn = _Turn[str]()
    costs = dict(zip("abc", sizes, strict=True))
    assert [turn.take(list("abc"), 10, costs.__getitem__) for _ in range(3)] == expected


def test_a_class_without_jobs_is_not_remembered() -> None:
    """Grace that was counted for those before is not that of those who come later."""
    waiting = seed_waiting("j1")
    sweep = Sweep(waiting, msgspec.structs.replace(DEFAULTS, no_node_grace_ms=10))
    sweep.judge(NO_NODES, (), 0)
    for waiter in list(waiting):
        waiting.leave(waiter)
    sweep.judge(NO_NODES, (), 5)
    add(waiting, "j2", "s2")
    sweep.judge(NO_NODES, (), 10)
    assert not sweep.busy
