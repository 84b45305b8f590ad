"""claim.lua: who may place the jobs of a partition, and under which epoch."""

from __future__ import annotations

import pytest

from scheduler.protocol import messages
from scheduler.store.store import Store
from tests.dumps import unchanged
from tests.seeds import (
    FAR_US,
)


async def claim(store: Store, owner: str, partition: int = 1) -> messages.Owned | messages.HeldByOther:
    """What one claim of one partition is answered."""
    _, (answer,) = await store.cell.claim(owner, [partition])
    return answer


async def owned(store: Store, owner: str, partition: int = 1) -> int:
    """Claim and get; returns the epoch."""
    answer = await claim(store, owner, partition)
    assert isinstance(answer, messages.Owned)
    return answer.epoch


async def seed_owners(store: Store, value: str, partition: int = 1) -> None:
    """Write `epoch owner until_ms` of a partition as it is stored."""
    await store.connection.commands.hset(store.cell.keys.owners, str(partition), value)


async def test_free_partitions_are_owned(store: Store) -> None:
    """Each free partition is owned until the end of the lease, under an epoch of the server's clock."""
    now_ms, answers = await store.cell.claim("d1", [1, 2])

    (epoch,) = {answer.epoch for answer in answers if isinstance(answer, messages.Owned)}
    assert answers == [messages.Owned(1, epoch), messages.Owned(2, epoch)]
    assert epoch // 1000 == now_ms
    until_ms = now_ms + store.settings.partition_lease_ms
    assert await store.reads.owners() == {1: (epoch, "d1", until_ms), 2: (epoch, "d1", until_ms)}


async def test_held_partition_is_refused_and_nothing_changes(store: Store) -> None:
    """While the owner's lease runs, another one is told who holds the partition and for how long."""
    await owned(store, "d1")
    ((_, _, until_ms),) = (await store.reads.owners()).values()

    async with unchanged(store):
        assert await claim(store, "d2") == messages.HeldByOther(1, "d1", until_ms)


async def test_answers_are_given_one_by_one(store: Store) -> None:
    """A partition of somebody else does not keep the caller from the next one."""
    await owned(store, "d1", 1)

    _, (first, second) = await store.cell.claim("d2", [1, 2])

    assert isinstance(first, messages.HeldByOther)
    assert isinstance(second, messages.Owned)


async def test_rule_5_claiming_again_as_the_holder_renews_without_a_new_epoch(store: Store) -> None:
    """The holder's next claim, or a repeat of it, prolongs its lease under the same epoch."""
    epoch = await owned(store, "d1")

    now_ms, answers = await store.cell.claim("d1", [1])

    assert answers == [messages.Owned(1, epoch)]
    assert await store.reads.owners() == {1: (epoch, "d1", now_ms + store.settings.partition_lease_ms)}


async def test_rule_5_another_boot_of_the_same_name_is_another_owner(store: Store) -> None:
    """A dispatcher that came back is not the holder: its lease from before must end first."""
    await owned(store, "d1+1")

    assert isinstance(await claim(store, "d1+2"), messages.HeldByOther)


async def test_rule_28_lapsed_lease_that_nobody_took_is_renewed(store: Store) -> None:
    """An owner that comes late, but before any other, keeps its epoch."""
    await seed_owners(store, "1000 d1 1")

    assert await claim(store, "d1") == messages.Owned(1, 1000)


async def test_rule_7_lapsed_lease_goes_to_another_under_a_higher_epoch(store: Store) -> None:
    """Who takes over a partition has a higher epoch than the owner before."""
    epoch = await owned(store, "d1")
    await seed_owners(store, f"{epoch} d1 1")

    assert await owned(store, "d2") > epoch


async def test_rule_7_clock_that_went_back_still_raises_the_epoch(store: Store) -> None:
    """With a stored epoch ahead of the clock the next one is larger by one."""
    await seed_owners(store, f"{FAR_US} d1 1")

    assert await claim(store, "d2") == messages.Owned(1, FAR_US + 1)


async def test_given_up_partition_is_free_at_once(store: Store) -> None:
    """After giving up nobody owns the partition, and another one need not wait for the lease."""
    epoch = await owned(store, "d1")

    await store.cell.claim("d1", [], [1])

    assert await store.reads.owners() == {1: (epoch, "-", 0)}
    assert await owned(store, "d2") > epoch


async def test_rule_7_owner_that_gave_up_comes_back_under_a_higher_epoch(store: Store) -> None:
    """Giving up ends the epoch, also for the same owner: what it remembers is dropped."""
    epoch = await owned(store, "d1")
    await store.cell.claim("d1", [], [1])

    assert await owned(store, "d1") > epoch


async def test_what_is_given_up_is_told_in_the_same_step(store: Store) -> None:
    """One event names every partition that a call gave up, and none that it did not hold."""
    await store.cell.claim("d1", [1, 2])

    await store.cell.claim("d1", [4], [1, 2, 3])

    ((_, fields),) = await store.reads.entries(store.cell.keys.freed)
    assert fields == {b"partitions": b"1 2"}


async def test_partition_that_is_given_up_and_taken_in_one_call_has_another_epoch(store: Store) -> None:
    """What is given up comes first, so that nothing read under the old hold is placed under the new one."""
    epoch = await owned(store, "d1")

    _, (answer,) = await store.cell.claim("d1", [1], [1])

    assert isinstance(answer, messages.Owned)
    assert answer.epoch > epoch


@pytest.mark.parametrize("owner", ["d1", "d2"])
async def test_rule_28_repeated_or_foreign_give_up_changes_nothing(store: Store, owner: str) -> None:
    """Giving up twice, or what somebody else holds, is answered and changes nothing."""
    await owned(store, "d1")
    if owner == "d1":
        await store.cell.claim("d1", [], [1])

    async with unchanged(store):
        names = [store.cell.keys.owners, store.cell.keys.freed]
        answer = await store.connection.call("claim", names, [owner, 6_000, 10, 1, "give_up"])

    assert answer[1:] == [[b"given_up"]]


@pytest.mark.parametrize("length_ms", ["", " 2000"])
async def test_a_lease_from_before_the_clock_went_back_is_cut(store: Store, length_ms: str) -> None:
    """A dead owner holds its partition for one lease at most, however far ahead that seems to end."""
    await seed_owners(store, f"7 d1 {FAR_US // 1000}{length_ms}")

    now_ms, answers = await store.cell.claim("d2", [1])

    until_ms = now_ms + (int(length_ms) if length_ms else store.settings.partition_lease_ms)
    assert answers == [messages.HeldByOther(1, "d1", until_ms)]
    assert await store.reads.owners() == {1: (7, "d1", until_ms)}


@pytest.mark.parametrize("action", ["take", "give up"])
async def test_who_sees_that_the_clock_went_back_cuts_the_leases_of_all(store: Store, action: str) -> None:
    """Nobody claims the partitions of a dead owner before he is called silent; they are to lapse meanwhile."""
    await seed_owners(store, f"7 d1 {FAR_US // 1000}")
    key, far = store.cell.keys.owners, f"{FAR_US // 1000}"
    await store.connection.commands.hset(key, mapping={"2": f"8 dead {far} 2000", "3": f"9 dead {far}"})
    await store.connection.commands.hset(key, mapping={"4": "10 d1 5 2000", "5": "11 - 0 0"})

    taken = action == "take"
    now_ms, _ = await store.cell.claim("d1", [1] if taken else [], [] if taken else [1])

    lease_ms = store.settings.partition_lease_ms
    first = (7, "d1", now_ms + lease_ms) if taken else (7, "-", 0)
    rest = {2: (8, "dead", now_ms + 2000), 3: (9, "dead", now_ms + lease_ms), 4: (10, "d1", 5), 5: (11, "-", 0)}
    assert await store.reads.owners() == {1: first} | rest
