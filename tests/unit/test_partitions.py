"""Which partitions a dispatcher holds, when it claims, and what it forgets; the cell is a stand-in that answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

import pytest

from scheduler.config import DEFAULTS
from scheduler.protocol import messages
from scheduler.runtime.partitions import Partitions, counted
from scheduler.session import ring
from scheduler.store.cell import Cell
from tests.clock import HandClock

COUNT: Final = 8
ALL: Final = frozenset(range(COUNT))
OURS: Final = ring.partitions_of("d1", ["d1", "d2"], COUNT)
SERVER_MS: Final = 9_000_000


class Desk:
    """One dispatcher, its clock, and a cell whose answers are set."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.epochs = dict.fromkeys(range(COUNT), 5)
        self.others: dict[int, int] = {}  # until when another dispatcher holds a partition
        self.asked: list[tuple[list[int], list[int]]] = []
        self.partitions = Partitions(
            cast(Cell, self),
            "d1",
            COUNT,
            DEFAULTS,
            self.clock,
        )

    async def claim(
        self, owner: str, take: Iterable[int], give_up: Iterable[int] = ()
    ) -> tuple[int, list[messages.Owned | messages.HeldByOther]]:
        """As the cell: everything is free, but for what others hold."""
        taken = list(take)
        self.asked.append((taken, list(give_up)))
        return SERVER_MS, [
            messages.HeldByOther(each, "d2", self.others[each])
            if each in self.others
            else messages.Owned(each, self.epochs[each])
            for each in taken
        ]

    def beat(self, *live: str, after_ms: float = 0.0) -> bool:
        """A heartbeat is told who is alive."""
        self.clock.go(after_ms)
        return self.partitions.update_members(live)


@pytest.fixture
async def desk() -> Desk:
    """A dispatcher that is alone and holds all partitions."""
    made = Desk()
    made.beat("d1")
    await made.partitions.claim()
    assert (made.partitions.held, made.asked) == (ALL, [(sorted(ALL), [])])
    assert made.partitions.take_changes() == (ALL, dict.fromkeys(ALL, 5))
    made.asked.clear()
    return made


async def test_a_renewal_forgets_nothing(desk: Desk) -> None:
    """RULES 5: the epoch is the same, so what is known holds."""
    await desk.partitions.claim()
    assert (desk.partitions.has_changes, desk.partitions.held) == (False, ALL)


async def test_another_epoch_is_another_hold(desk: Desk) -> None:
    """RULES 4: another dispatcher held it in between: what was known of it is forgotten, what was read is not ours."""
    desk.epochs[3] = 7
    await desk.partitions.claim()
    assert desk.partitions.has_changes
    assert desk.partitions.take_changes() == (frozenset({3}), {3: 7})
    assert [desk.partitions.holds(3, epoch) for epoch in (5, 7)] == [False, True]


async def test_what_another_one_should_own_is_given_up(desk: Desk) -> None:
    """A dispatcher that joins gets its share at once."""
    assert desk.beat("d1", "d2")
    assert desk.partitions.next_ms() <= 0
    await desk.partitions.claim()
    assert desk.asked == [(sorted(OURS), sorted(ALL - OURS))]
    assert (desk.partitions.held, desk.partitions.take_changes()) == (OURS, (ALL - OURS, {}))
    await desk.partitions.claim()
    assert desk.asked[1:] == [(sorted(OURS), [])]


async def test_a_step_of_the_clock_lets_it_claim_at_once(desk: Desk) -> None:
    """Whose leases the claim cuts lapse so much earlier; nobody is called silent for it."""
    desk.beat("d1", "d2")
    await desk.partitions.claim()
    assert desk.partitions.next_ms() > 0
    assert desk.partitions.update_members(["d1"], stepped=True)
    assert desk.partitions.next_ms() <= 0
    await desk.partitions.claim()
    assert (desk.partitions.held, len(desk.asked)) == (OURS, 2)


async def test_what_another_one_holds_is_ours_no_more(desk: Desk) -> None:
    """It is claimed once more at once, then when that lease ends; renewals of the others go on meanwhile."""
    desk.others = {3: SERVER_MS + 500, 4: SERVER_MS + 800}
    await desk.partitions.claim()
    assert (desk.partitions.held, desk.partitions.take_changes()) == (ALL - {3, 4}, (frozenset({3, 4}), {}))
    assert desk.partitions.next_ms() <= 0
    await desk.partitions.claim()
    assert desk.partitions.next_ms() == 501
    desk.others = {3: SERVER_MS + 60_000}
    await desk.partitions.claim()
    assert desk.partitions.next_ms() == DEFAULTS.partition_lease_ms / 3


async def test_a_partition_that_a_script_refused_is_claimed_at_once(desk: Desk) -> None:
    """It should be ours; one that should not be is left to its owner."""
    assert desk.partitions.next_ms() > 0
    assert [desk.partitions.lose(3), desk.partitions.lose(3)] == [True, False]
    assert desk.partitions.next_ms() <= 0


@pytest.mark.parametrize(("after_ms", "changed"), [(1_000, True), (60_000, False)])
async def test_a_dispatcher_that_was_deaf_leaves_the_others_time_to_be_heard(
    desk: Desk, after_ms: float, changed: bool
) -> None:
    """RULES 16: the first answer after an outage names no other dispatcher; a later one is believed."""
    desk.beat("d1", "d2")
    assert desk.beat("d1", after_ms=after_ms) is changed
    assert desk.beat("d1", after_ms=desk.partitions._return_ms) is not changed


async def test_a_dispatcher_is_alive_itself(desk: Desk) -> None:
    """Also when the server has not heard it for long."""
    desk.beat("d1", "d2")
    desk.beat("d2")
    assert desk.partitions._wished == OURS


async def test_each_lane_is_about_half_of_what_is_held(desk: Desk) -> None:
    """Whichever partitions these are."""
    desk.others = dict.fromkeys((1, 3, 5, 7), SERVER_MS + 60_000)
    desk.epochs[0] = 6
    await desk.partitions.claim()
    assert {partition: desk.partitions.lane(partition) for partition in desk.partitions.held} == {
        0: 0,
        2: 1,
        4: 0,
        6: 1,
    }


async def test_giving_up_forgets_everything_first(desk: Desk) -> None:
    """And once: another try after a lost answer has nothing more to say."""
    await desk.partitions.give_up()
    await desk.partitions.give_up()
    assert (desk.asked, desk.partitions.take_changes(), len(desk.partitions)) == ([([], sorted(ALL))], (ALL, {}), 0)


def test_numbers_are_told_as_people_do() -> None:
    """One is, two are."""
    assert [counted(number, "dispatcher") for number in (0, 1, 2)] == [
        "0 dispatchers are",
        "1 dispatcher is",
        "2 dispatchers are",
    ]
