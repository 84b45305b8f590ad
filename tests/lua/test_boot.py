"""boot.lua: the numbers of the lives of nodes."""

from __future__ import annotations

import pytest

from scheduler.store.store import Store
from tests.seeds import FAR_US, JOB, NODE, seed_node, seed_reserved


async def test_a_first_boot_is_the_time(store: Store) -> None:
    """So a number of another node, or of a server that lost everything, is most likely below it."""
    before_us = await store.control.time_us()

    now_ms, number, held = await store.cell.boot(NODE)

    assert before_us <= number <= await store.control.time_us()
    assert now_ms == number // 1000
    assert held == {}


async def test_boots_rise_whatever_the_clock_says(store: Store) -> None:
    """A node that starts again after the clock went back is later than its own past."""
    await store.connection.commands.set(store.cell.keys.last_boot, FAR_US)

    assert [(await store.cell.boot(node))[1] for node in ("n1", "n2", "n1")] == [FAR_US + 1, FAR_US + 2, FAR_US + 3]


async def test_a_boot_is_above_the_one_that_is_known_of_the_node(store: Store) -> None:
    """Also when the server has lost the last number."""
    await seed_node(store, boot=f"{FAR_US}-a")

    assert (await store.cell.boot(NODE))[1] == FAR_US + 1


async def test_a_boot_that_no_clock_gives_raises_those_of_nobody_else(store: Store) -> None:
    """However it came into the capacities: its own node is later than it, and the numbers of the others stay as low."""
    await seed_node(store, boot=f"{FAR_US}-a")

    numbers = [(await store.cell.boot(node))[1] for node in ("n2", NODE, "n2", NODE)]

    now_us = await store.control.time_us()
    assert numbers[0] < numbers[2] <= now_us + 2
    assert numbers[1] == numbers[3] == FAR_US + 1
    assert await store.reads.last_boot() <= now_us + 4


async def test_a_boot_that_a_clock_gives_is_the_last_one_of_all(store: Store) -> None:
    """The clock went back, and the last number is lost: two lives that begin at once are not of one number."""
    ahead_us = await store.control.time_us() + 3_600_000_000
    await seed_node(store, boot=f"{ahead_us}-a")

    assert [(await store.cell.boot(NODE))[1] for _ in range(2)] == [ahead_us + 1, ahead_us + 2]


@pytest.mark.parametrize("junk", ["", "x", "-5", "1e15", "9" * 400, str(2**52 - 1)])
async def test_a_last_boot_that_is_no_number_is_none(store: Store, junk: str) -> None:
    """Somebody else has written it; numbers go on with the clock's."""
    await store.connection.commands.set(store.cell.keys.last_boot, junk)
    await store.connection.commands.hset(store.cell.keys.capacity, NODE, f"1 {'9' * 400}-a ready")

    _, number, _ = await store.cell.boot(NODE)
    assert 0 <= await store.control.time_us() - number < 60_000_000


async def test_what_earlier_lives_hold_is_told(store: Store) -> None:
    """So the new life sees later what was renewed since."""
    await seed_reserved(store)
    ((_, until_ms),) = await store.reads.reservations(NODE)

    assert (await store.cell.boot(NODE))[2] == {JOB: until_ms}
