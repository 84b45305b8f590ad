"""lead.lua: one leader of the management group, under a rising epoch."""

from __future__ import annotations

import pytest

from scheduler.store.control import Following, Leading
from scheduler.store.store import Store
from tests.dumps import unchanged
from tests.seeds import (
    FAR_US,
    seed_leader,
)


async def stored(store: Store) -> tuple[str, int, int]:
    """(name, epoch, until_ms)."""
    values = await store.connection.commands.hmget(store.control.keys.leader, "name", "epoch", "until_ms")
    return values[0].decode(), int(values[1]), int(values[2])


async def test_first_caller_leads(store: Store) -> None:
    """Without a leader the caller leads until the end of its lease, under an epoch of the server's clock."""
    answer = await store.control.lead("m1")

    assert isinstance(answer, Leading)
    assert answer.epoch // 1000 == answer.now_ms
    assert await stored(store) == ("m1", answer.epoch, answer.now_ms + store.settings.leader_lease_ms)


async def test_second_caller_follows_and_changes_nothing(store: Store) -> None:
    """While a leader's lease runs, everybody else follows."""
    await seed_leader(store, "m1")
    _, _, until_ms = await stored(store)

    async with unchanged(store):
        answer = await store.control.lead("m2")

    assert answer == Following("m1", until_ms, answer.now_ms)


async def test_rule_28_repeat_keeps_the_epoch(store: Store) -> None:
    """Leading again as the leader prolongs the lease under the same epoch."""
    epoch = await seed_leader(store, "m1")

    answer = await store.control.lead("m1")

    assert answer == Leading(epoch, answer.now_ms)
    assert await stored(store) == ("m1", epoch, answer.now_ms + store.settings.leader_lease_ms)


async def test_rule_28_lapsed_lease_that_nobody_took_is_renewed(store: Store) -> None:
    """A leader that comes late, but before any other, keeps its epoch."""
    epoch = await seed_leader(store, "m1")
    await store.connection.commands.hset(store.control.keys.leader, "until_ms", 1)

    answer = await store.control.lead("m1")

    assert answer == Leading(epoch, answer.now_ms)


async def test_rule_7_lapsed_lease_goes_to_another_under_a_higher_epoch(store: Store) -> None:
    """Who takes over has a higher epoch than the leader before."""
    epoch = await seed_leader(store, "m1")
    await store.connection.commands.hset(store.control.keys.leader, "until_ms", 1)

    answer = await store.control.lead("m2")

    assert isinstance(answer, Leading)
    assert answer.epoch > epoch


async def test_rule_7_clock_that_went_back_still_raises_the_epoch(store: Store) -> None:
    """With a stored epoch ahead of the clock the next one is larger by one."""
    await store.connection.commands.hset(
        store.control.keys.leader, mapping={"name": "m1", "epoch": FAR_US, "until_ms": 1}
    )

    answer = await store.control.lead("m2")

    assert isinstance(answer, Leading)
    assert answer.epoch == FAR_US + 1


async def test_give_up_lets_another_lead_at_once(store: Store) -> None:
    """After giving up nobody leads, and the next caller need not wait for the lease."""
    epoch = await seed_leader(store, "m1")

    await store.control.give_up_lead("m1")

    name, last, until_ms = await stored(store)
    assert (name, last) == ("", epoch)
    assert 0 <= await store.reads.now_ms() - until_ms < 5_000
    assert isinstance(await store.control.lead("m2"), Leading)


async def test_rule_7_leader_that_gave_up_comes_back_under_a_higher_epoch(store: Store) -> None:
    """Giving up ends the epoch, also for the same name."""
    epoch = await seed_leader(store, "m1")
    await store.control.give_up_lead("m1")

    assert await seed_leader(store, "m1") > epoch


@pytest.mark.parametrize("name", ["m1", "m2"])
async def test_rule_28_repeated_or_foreign_give_up_changes_nothing(store: Store, name: str) -> None:
    """Giving up twice, or without leading, is answered and changes nothing."""
    await seed_leader(store, "m1")
    if name == "m1":
        await store.control.give_up_lead("m1")

    async with unchanged(store):
        answer = await store.connection.call("lead", [store.control.keys.leader], [name, 0, "give_up"])

    assert answer[0] == b"given_up"


async def test_a_lease_from_before_the_clock_went_back_is_cut(store: Store) -> None:
    """A dead leader is followed for one lease at most, however far ahead its lease seems to end."""
    await seed_leader(store, "m1")
    await store.connection.commands.hset(store.control.keys.leader, "until_ms", FAR_US // 1000)

    answer = await store.control.lead("m2")

    until_ms = answer.now_ms + store.settings.leader_lease_ms
    assert answer == Following("m1", until_ms, answer.now_ms)
    assert (await stored(store))[2] == until_ms


@pytest.mark.parametrize("is_first", [True, False])
async def test_rule_31_epoch_is_above_the_one_that_a_cell_has_seen(store: Store, is_first: bool) -> None:
    """The clock went back, and the leader was deleted: who leads would be fenced for as long as the step. A lower one
    changes nothing.
    """
    if not is_first:
        await seed_leader(store, "m1")

    for floor, epoch in ((FAR_US, FAR_US + 1), (FAR_US, FAR_US + 1), (5, FAR_US + 1), (FAR_US + 1, FAR_US + 2)):
        answer = await store.control.lead("m1", floor)
        assert isinstance(answer, Leading)
        assert answer.epoch == epoch
