"""boot.lua: the numbers of the lives of nodes."""

from __future__ import annotations

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


async def test_what_earlier_lives_hold_is_told(store: Store) -> None:
    """So the new life sees later what was renewed since."""
    await seed_reserved(store)
    ((_, until_ms),) = await store.reads.reservations(NODE)

    assert (await store.cell.boot(NODE))[2] == {JOB: until_ms}
