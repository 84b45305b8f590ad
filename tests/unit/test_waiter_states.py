"""The states of a waiting job: the table is what the code runs on, and the code uses all of it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Final, get_args

import pytest

from scheduler.errors import IllegalTransition
from scheduler.runtime.waiting.queues import TRANSITIONS, Event, State, Waiter
from scheduler.runtime.waiting.waiting_jobs import Waiting
from tests.unit.arrange import a_class, a_job
from tests.unit.test_limits import LIMITED, TENANT, a_tenants_job, seed_limited
from tests.unit.test_waiting import DE, ZH, everywhere, seed_waiting, settle

Row = tuple[State, Event]

ROOT: Final = Path(__file__).resolve().parents[2]
STATES: Final[tuple[State, ...]] = get_args(State)
EVENTS: Final[tuple[Event, ...]] = get_args(Event)
FR: Final = a_class(pair=("en", "fr"))


def a_waiter(state: State) -> Waiter:
    """A waiter in a state."""
    waiter = Waiter(a_job(), ZH, 1, 0.0)
    waiter.state = state
    return waiter


# ---- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "event"), [pytest.param(*row, id=" ".join(row)) for row in TRANSITIONS])
def test_a_row_of_the_table_leads_where_it_says(state: State, event: Event) -> None:
    """From the state, by the event."""
    waiter = a_waiter(state)
    waiter.change(event)
    assert waiter.state == TRANSITIONS[state, event]


@pytest.mark.parametrize(
    ("state", "event"),
    [pytest.param(*row, id=" ".join(row)) for row in product(STATES, EVENTS) if row not in TRANSITIONS],
)
def test_any_other_event_is_refused_and_changes_nothing(state: State, event: Event) -> None:
    """With the state and the event in the error."""
    waiter = a_waiter(state)
    with pytest.raises(IllegalTransition, match=f"'{event}' of a waiting job that is '{state}'"):
        waiter.change(event)
    assert waiter.state == state


def test_every_state_is_reached_from_the_first() -> None:
    """And the table names no others."""
    reached: set[State] = {"new"}
    while reached != (more := reached | {after for (state, _), after in TRANSITIONS.items() if state in reached}):
        reached = more
    assert reached == set(STATES)
    assert {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values()) == set(STATES)
    assert {event for _, event in TRANSITIONS} == set(EVENTS)


def test_a_job_that_left_stays_away() -> None:
    """Every other state leads on."""
    assert set(STATES) - {state for state, _ in TRANSITIONS} == {"left"}


# ---- each row is used --------------------------------------------------------------------------------------


def a_session() -> tuple[Waiting, Waiter, Waiter]:
    """Two jobs of one session, of which the first is blocked."""
    waiting = seed_waiting("j1")
    (first,) = waiting
    second = waiting.queue(a_job("j2", "j1"), ZH, 0)
    return waiting, first, second


def ready() -> tuple[Waiting, Waiter]:
    """The next of a session whose first job left."""
    waiting, first, second = a_session()
    waiting.leave(first)
    return waiting, second


def trying() -> tuple[Waiting, Waiter]:
    """A job in a call that names the nodes of an event."""
    waiting = seed_waiting("j1")
    waiting.unblock(["n1"], everywhere)
    (waiter,) = waiting.next_attempts(1)
    return waiting, waiter


def trying_afresh() -> tuple[Waiting, Waiter]:
    """A job in a call that names a few nodes."""
    waiting, waiter = ready()
    waiting.next_attempts(1)
    return waiting, waiter


def one_is_to_ask(waiting: Waiting) -> None:
    """The asker of a class leaves while another one of it is in a call and none is blocked: the next one asks."""
    in_call = waiting.found_no_room(a_job("asked", "asked"), ZH, 0)
    settle(waiting, ("n1",))
    assert waiting.next_attempts(1) == [in_call]
    waiting.leave(waiting.found_no_room(a_job("asks", "asks"), ZH, 0))


def new_follow() -> None:
    """A later job of a session that waits."""
    a_session()


def new_limit() -> None:
    """A newcomer whose limit is full."""
    seed_limited("j1")


def new_block() -> None:
    """A newcomer of a class that waits."""
    seed_waiting("j1").queue(a_job("j2", "j2"), ZH, 0)


def new_ask() -> None:
    """A newcomer that no node has room for."""
    Waiting().found_no_room(a_job(), ZH, 0)


def new_prepare() -> None:
    """The next of a session, of a class in which no other job waits."""
    ready()


def behind_lead() -> None:
    """The job before it leaves."""
    ready()


def behind_leave() -> None:
    """Its deadline passes."""
    waiting, _, second = a_session()
    waiting.leave(second)


def limited_attempt() -> None:
    """The limit may have room."""
    waiting = seed_limited("j1")
    waiting.limits.notify([TENANT])
    waiting.next_attempts(1)


def limited_block() -> None:
    """The limit may have room, and its class waits."""
    waiting = seed_limited("j1")
    waiting.found_no_room(a_tenants_job("j2", tenant_id="t2"), ZH, 0)
    settle(waiting)
    waiting.limits.notify([TENANT])
    waiting.next_attempts(1)


def limited_ask() -> None:
    """The limit may have room, and the next of its class is to ask."""
    waiting = seed_limited("j1")
    one_is_to_ask(waiting)
    waiting.limits.notify([TENANT])
    waiting.next_attempts(1)


def limited_move() -> None:
    """Another pool."""
    waiting = seed_limited("j1")
    (waiter,) = waiting
    waiting.reclassify(waiter, DE)


def limited_leave() -> None:
    """Its deadline passes."""
    waiting = seed_limited("j1")
    (waiter,) = waiting
    waiting.leave(waiter)


def blocked_attempt() -> None:
    """A node got room."""
    trying()


def blocked_ask() -> None:
    """Events may have been missed."""
    seed_waiting("j1").ask_all()


def blocked_move() -> None:
    """Another pool."""
    waiting, first, _ = a_session()
    waiting.reclassify(first, DE)


def blocked_leave() -> None:
    """Its deadline passes."""
    ready()


def ready_attempt() -> None:
    """The next call."""
    trying_afresh()


def ready_move() -> None:
    """Another pool."""
    waiting, waiter = ready()
    waiting.reclassify(waiter, DE)


def ready_leave() -> None:
    """Its deadline passes."""
    waiting, waiter = ready()
    waiting.leave(waiter)


def trying_limit() -> None:
    """The call finds the limit full."""
    waiting, waiter = trying()
    waiting.still_limited(waiter, TENANT, waiting.limits.mark)


def trying_limit_of_others() -> None:
    """A node got room, and others wait for its limit."""
    waiting = Waiting(LIMITED)
    waiting.found_no_room(a_tenants_job("j1"), ZH, 0)
    settle(waiting)
    waiting.found_limit_full(a_tenants_job("j2"), ZH, 0, TENANT, waiting.limits.mark)
    waiting.unblock(["n1"], everywhere)
    assert waiting.next_attempts(1) == []


def trying_block() -> None:
    """None of the nodes with room has any now."""
    waiting, waiter = trying()
    waiting.still_full(waiter, ["n1"])


def trying_ask() -> None:
    """A few nodes had no room."""
    waiting, waiter = trying_afresh()
    waiting.still_full(waiter, ["n1"])


def trying_prepare() -> None:
    """The call asks for another snapshot."""
    waiting, waiter = trying()
    waiting.try_again(waiter)


def trying_move() -> None:
    """Another pool, by what its session is bound to now."""
    waiting, waiter = trying_afresh()
    waiting.reclassify(waiter, FR)


def trying_leave() -> None:
    """It is placed."""
    waiting, waiter = trying()
    waiting.leave(waiter, placed="n1")


def asking_block() -> None:
    """The server names the nodes with room."""
    seed_waiting("j1")


def asking_move() -> None:
    """Another pool."""
    waiting = Waiting()
    waiting.reclassify(waiting.found_no_room(a_job(), ZH, 0), DE)


def asking_leave() -> None:
    """Its deadline passes."""
    waiting = Waiting()
    waiting.leave(waiting.found_no_room(a_job(), ZH, 0))


SITUATIONS: Final[Mapping[Row, tuple[Callable[[], None], ...]]] = {
    ("new", "follow"): (new_follow,),
    ("new", "limit"): (new_limit,),
    ("new", "block"): (new_block,),
    ("new", "ask"): (new_ask,),
    ("new", "prepare"): (new_prepare,),
    ("behind", "lead"): (behind_lead,),
    ("behind", "leave"): (behind_leave,),
    ("limited", "attempt"): (limited_attempt,),
    ("limited", "block"): (limited_block,),
    ("limited", "ask"): (limited_ask,),
    ("limited", "move"): (limited_move,),
    ("limited", "leave"): (limited_leave,),
    ("blocked", "attempt"): (blocked_attempt,),
    ("blocked", "ask"): (blocked_ask,),
    ("blocked", "move"): (blocked_move,),
    ("blocked", "leave"): (blocked_leave,),
    ("ready", "attempt"): (ready_attempt,),
    ("ready", "move"): (ready_move,),
    ("ready", "leave"): (ready_leave,),
    ("trying", "limit"): (trying_limit, trying_limit_of_others),
    ("trying", "block"): (trying_block,),
    ("trying", "ask"): (trying_ask,),
    ("trying", "prepare"): (trying_prepare,),
    ("trying", "move"): (trying_move,),
    ("trying", "leave"): (trying_leave,),
    ("asking", "block"): (asking_block,),
    ("asking", "move"): (asking_move,),
    ("asking", "leave"): (asking_leave,),
}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[Row]:
    """The rows that were used so far."""
    rows: set[Row] = set()
    change = Waiter.change

    def recorded(waiter: Waiter, event: Event) -> None:
        row = waiter.state, event
        change(waiter, event)
        rows.add(row)

    monkeypatch.setattr(Waiter, "change", recorded)
    return rows


def test_every_row_has_a_situation() -> None:
    """A row that no job can go through does not belong in the table."""
    assert SITUATIONS.keys() == TRANSITIONS.keys()


@pytest.mark.parametrize(
    ("row", "situation"),
    [pytest.param(row, each, id=each.__name__) for row, situations in SITUATIONS.items() for each in situations],
)
def test_a_situation_uses_its_row(row: Row, situation: Callable[[], None], used: set[Row]) -> None:
    """The waiting jobs go through it."""
    situation()
    assert row in used


# ---- nothing else sets a state -----------------------------------------------------------------------------


def assignments(path: Path) -> Iterator[str]:
    """`file:line` of each assignment of a `state`, except that of an object to its own in its class."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store):
            is_own = isinstance(node.value, ast.Name) and node.value.id == "self"
            if not is_own:
                yield f"{path.relative_to(ROOT)}:{node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if name in ("setattr", "__setattr__") and "state" in names:
                yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_nothing_but_a_waiter_sets_its_state() -> None:
    """Of all sources and all tests only this file sets one, to begin with it."""
    paths = [path for name in ("scheduler", "tests", "tools") for path in sorted((ROOT / name).rglob("*.py"))]
    found = [place for path in paths if path != Path(__file__).resolve() for place in assignments(path)]
    assert found == []


def test_a_waiter_sets_its_state_when_it_is_made_and_in_change() -> None:
    """Every other method goes through `change`."""
    tree = ast.parse((ROOT / "scheduler/runtime/waiting/queues.py").read_text(encoding="utf-8"))
    methods = [
        (made.name, method.name)
        for made in tree.body
        if isinstance(made, ast.ClassDef)
        for method in made.body
        if isinstance(method, ast.FunctionDef)
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store)
    ]
    assert methods == [("Waiter", "__init__"), ("Waiter", "change")]
