"""beat.lua: heartbeats, stamped by the server."""

from __future__ import annotations

import msgspec

from scheduler.store.control import Beaten, Control
from scheduler.store.store import Store
from tests.dumps import dump
from tests.seeds import (
    FAR_US,
    MANAGER,
    seed_leader,
    seed_poison,
)


async def test_node_is_one_entry_more_and_nothing_else(store: Store) -> None:
    """A node's heartbeat is one stream entry with the server's time; no dispatcher is named."""
    beaten = await store.control.beat(b"doc")

    after = await dump(store)
    assert beaten.live == ()
    assert list(after) == [store.control.keys.heartbeats]
    assert list(after[store.control.keys.heartbeats][1]["entries"].values()) == [
        {"node": "doc", "time_ms": str(beaten.now_ms)}
    ]


async def test_dispatcher_joins_the_live_ones(store: Store) -> None:
    """A dispatcher's heartbeat answers with every live dispatcher, itself included."""
    await store.control.beat(b"doc", "d1+1")

    beaten = await store.control.beat(b"doc", "d2+1")

    assert beaten == Beaten(now_ms=beaten.now_ms, live=("d1+1", "d2+1"))


async def test_silent_dispatcher_is_forgotten(store: Store) -> None:
    """A dispatcher that was not heard within the silence is not live and not kept."""
    await store.connection.commands.zadd(store.control.keys.dispatchers, {"d0+1": 1})

    beaten = await store.control.beat(b"doc", "d1+1")

    assert beaten.live == ("d1+1",)
    assert await store.connection.commands.zrange(store.control.keys.dispatchers, 0, -1) == [b"d1+1"]


async def test_silent_dispatcher_is_missed_by_the_end_of_its_leases(store: Store) -> None:
    """However long a node may be silent: the heartbeat that comes before the leases end says so, not the one after."""
    lease_ms, heartbeat_ms = store.settings.partition_lease_ms, store.settings.heartbeat_ms
    patient = Control(store.connection, msgspec.structs.replace(store.settings, silence_ms=100 * lease_ms))
    heard_ms = (await patient.time_us()) // 1_000 - lease_ms + heartbeat_ms
    silent = {"d0+1": heard_ms - 1, "d1+1": heard_ms + 60_000}
    await store.connection.commands.zadd(patient.keys.dispatchers, silent)

    beaten = await patient.beat(b"doc", "d2+1")

    assert set(beaten.live) == {"d1+1", "d2+1"}


async def test_dispatcher_that_leaves_is_live_no_more(store: Store) -> None:
    """Its last beat takes it out at once, and a repeat of it changes nothing more."""
    await store.control.beat(b"doc", "d1+1")
    await store.control.beat(b"doc", "d2+1")

    for _ in range(2):
        beaten = await store.control.beat(b"doc", "d1+1", leaves=True)
        assert beaten.live == ("d2+1",)

    assert await store.connection.commands.zrange(store.control.keys.dispatchers, 0, -1) == [b"d2+1"]


async def test_rule_28_repeat_is_another_beat(store: Store) -> None:
    """A repeat adds a heartbeat, which is a complete registration, and no second membership."""
    await store.control.beat(b"doc", "d1+1")

    beaten = await store.control.beat(b"doc", "d1+1")

    assert beaten.live == ("d1+1",)
    assert await store.reads.length(store.control.keys.heartbeats) == 2


async def test_rule_32_age_is_a_field_not_the_entry_id(store: Store) -> None:
    """After an entry with an id of the future, the age of the next heartbeat is still the server's time."""
    await store.connection.commands.xadd(store.control.keys.heartbeats, {"node": "early"}, id=f"{FAR_US // 1000}-0")
    beaten = await store.control.beat(b"doc")
    epoch = await seed_leader(store)

    taken = await store.control.take(MANAGER, epoch)

    assert [(each.document, each.time_ms) for each in taken.heartbeats] == [
        (b"early", taken.now_ms),
        (b"doc", beaten.now_ms),
    ]


async def test_stream_is_bounded(store: Store) -> None:
    """The stream is trimmed to about the given length."""
    pipeline = store.connection.commands.pipeline(transaction=False)
    for _ in range(2_000):
        pipeline.xadd(store.control.keys.heartbeats, {"node": "doc"})
    await pipeline.execute()

    await store.connection.call(
        "beat", [store.control.keys.heartbeats, store.control.keys.dispatchers], ["doc", "", 1_000, 5_000, "stays"]
    )

    assert 1_000 <= await store.reads.length(store.control.keys.heartbeats) <= 1_150


async def test_rule_24_poisoned_stream_starts_anew(store: Store) -> None:
    """A heartbeat with the highest id, added by hand, does not silence the fleet: take reads the next one."""
    epoch = await seed_leader(store)
    await store.control.take(MANAGER, epoch)
    await seed_poison(store, store.control.keys.heartbeats)

    await store.control.beat(b"doc")

    taken = await store.control.take(MANAGER, epoch)
    assert [each.document for each in taken.heartbeats] == [b"doc"]


async def test_who_was_heard_ahead_of_the_clock_was_heard_now(store: Store) -> None:
    """The clock went back: a dispatcher that is dead counts as live for as long as any other, not until the clock has
    caught up.
    """
    await store.connection.commands.zadd(store.control.keys.dispatchers, {"d2+1": FAR_US // 1000})

    beaten = await store.control.beat(b"doc", "d1+1")

    assert beaten.live == ("d1+1", "d2+1")
    assert await store.connection.commands.zscore(store.control.keys.dispatchers, "d2+1") == beaten.now_ms
