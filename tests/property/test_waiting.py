"""Waiting and placement as the dispatcher drives them: nobody waits beside a free slot, nobody is lost or overtaken.

What is checked stands in cell.py and checks.py; here is what happens to it. Two searches: one that hypothesis steers
and shrinks, and one over many more histories, drawn from a seed and shrunk by leaving out what is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.model import Strategy
from scheduler.runtime import skipped, waiting
from tests.property.cell import ENOUGH, FleetPlan, HostPlan, LimitPlan, MemoryPlan
from tests.property.simulator import Kind, Operation, Simulation

COMMON: Final[tuple[Kind, ...]] = (
    ("submit",) * 8 + ("run",) * 8 + ("finish",) * 6 + ("steal",) * 3 + ("sweep", "sweep", "prefetch", "prefetch")
)
LIMITS: Final[tuple[Kind, ...]] = ("limit", "publish")
NODES: Final[tuple[Kind, ...]] = ("give_back", "resize", "reboot", "publish", "cancel", "tick", "prefetch", "miss")
TIME: Final[tuple[Kind, ...]] = ("tick",) * 4
OWNERS: Final[tuple[Kind, ...]] = ("flag", "usurp", "return", "claim", "foreign")
STRATEGIES: Final[tuple[Strategy, ...]] = ("affinity", "spread", "least_loaded")
PAIRS: Final = (3, 3, 3, 2, 1, 0)
HINTS: Final = (1, 2, 16)  # nodes that a woken job tries at most: few, so that few nodes are too many
# Enough for all, and too little: for one class, for all together, to tell sessions apart.
MEMORIES: Final = (ENOUGH, ENOUGH, MemoryPlan(2, 100), MemoryPlan(3, 5), MemoryPlan(1, 3, 8))
HISTORIES: Final = 30


class History(NamedTuple):
    """A fleet and what happens to it. hint_max: nodes that a woken job tries at most; memory: for those who wait."""

    plan: FleetPlan
    operations: Sequence[Operation]
    seed: int
    hint_max: int
    memory: MemoryPlan = ENOUGH


small = st.integers(0, 7)
limits = st.builds(LimitPlan, st.integers(0, 2), st.integers(0, 3))
hosts = st.builds(HostPlan, st.integers(0, 3), st.integers(0, 1), st.sampled_from(PAIRS), st.booleans())
fleets = st.builds(
    FleetPlan,
    st.lists(hosts, min_size=1, max_size=5).map(tuple),
    st.tuples(st.sampled_from(STRATEGIES), st.sampled_from(STRATEGIES)),
    st.booleans(),
    st.tuples(limits, limits),
)
operation = st.builds(Operation, st.sampled_from(COMMON + LIMITS + NODES + OWNERS), small, small, small)
operations = st.integers(1, 40).flatmap(lambda count: st.lists(operation, min_size=count, max_size=count))
histories = st.builds(
    History, fleets, operations, st.integers(0, 2**16), st.sampled_from(HINTS), st.sampled_from(MEMORIES)
)


def drawn(random: Random) -> History:
    """A history: sometimes the owners stay the same, sometimes the nodes do as well."""
    kinds = random.choice((COMMON, COMMON + LIMITS, COMMON + NODES + TIME, COMMON + LIMITS + NODES + OWNERS))
    plan = FleetPlan(
        tuple(
            HostPlan(random.randrange(4), random.randrange(2), random.choice(PAIRS), random.random() < 0.3)
            for _ in range(random.randint(1, 5))
        ),
        (random.choice(STRATEGIES), random.choice(STRATEGIES)),
        random.random() < 0.7,
        (drawn_limits(random), drawn_limits(random)),
    )
    happening = [
        Operation(random.choice(kinds), random.randrange(8), random.randrange(8), random.randrange(8))
        for _ in range(random.randint(5, 80))
    ]
    return History(plan, happening, random.randrange(2**16), random.choice(HINTS), random.choice(MEMORIES))


def drawn_limits(random: Random) -> LimitPlan:
    """Often none."""
    return LimitPlan(random.choice((0, 0, 1, 2)), random.choice((0, 0, 1, 2, 3)))


def play(history: History) -> Simulation:
    """Let it happen, and then let everything be read and told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "WAKE_CANDIDATES_MAX", history.hint_max)
        patch.setattr(skipped, "LATE_EVERY_MS", 0)
        simulation = Simulation(history.plan, history.seed, history.memory)
        simulation.play(history.operations)
        simulation.settle()
        simulation.drain()
    return simulation


def fails(history: History) -> bool:
    """Whether a check fails, or anything else."""
    try:
        play(history)
    except Exception:
        return True
    return False


def shortened(history: History) -> History:
    """A history that fails as well, and would not with any one operation less."""
    position = 0
    while position < len(history.operations):
        without = [*history.operations[:position], *history.operations[position + 1 :]]
        shorter = history._replace(operations=without)
        if fails(shorter):
            history, position = shorter, 0
        else:
            position += 1
    return history


@settings(deadline=None, max_examples=150)
@given(histories)
def test_no_job_waits_beside_a_free_slot_or_is_lost_or_overtakes(history: History) -> None:
    """Whatever other dispatchers, nodes and operators do meanwhile, the simulator's checks hold at every step."""
    play(history)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32))
def test_the_same_holds_in_many_more_histories(seed: int) -> None:
    """As above; a failing history is shown at its shortest."""
    random = Random(seed)
    for _ in range(HISTORIES):
        history = drawn(random)
        if fails(history):
            shortest = shortened(history)
            print(shortest)
            play(shortest)
