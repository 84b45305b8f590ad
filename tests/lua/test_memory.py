"""A server without memory left refuses new jobs and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import pytest
from redis.exceptions import OutOfMemoryError

from scheduler.errors import ServerUnavailable
from scheduler.protocol import messages
from scheduler.protocol.snapshot import Snapshot
from scheduler.store.scripts import SCRIPT_NAMES
from scheduler.store.store import Store
from tests.dumps import dump, unchanged
from tests.seeds import (
    BOOT,
    JOB,
    LEADER_EPOCH,
    MANAGER,
    NODE,
    OWNER,
    SESSION,
    Opening,
    promote,
    reject,
    reject_item,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_delayed,
    seed_entry,
    seed_held,
    seed_job,
    seed_leader,
    seed_node,
    seed_owner,
    seed_reserved,
    submit_item,
)

Act = Callable[[], Awaitable[object]]


@contextlib.asynccontextmanager
async def full_memory(store: Store) -> AsyncIterator[None]:
    """The server has used more than it may."""
    await store.connection.commands.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await store.connection.commands.config_set("maxmemory", 0)


async def prepare(store: Store, script: str) -> tuple[Act, object]:
    """What must be there before; returns a call that writes, and the answer to expect (None: any)."""
    if script == "layout":
        return store.control.write_layout, None
    if script == "beat":
        return lambda: store.control.beat(b"doc", OWNER), None
    if script == "lead":
        return lambda: store.control.lead(MANAGER), None
    if script in ("take", "publish"):
        epoch = await seed_leader(store)
        await store.control.beat(b"doc")
        if script == "take":
            return lambda: store.control.take(MANAGER, epoch), None
        return lambda: store.control.publish(MANAGER, epoch, Snapshot(5), sets={"a": b"b"}), None
    if script == "command":
        return lambda: store.connection.call("command", [store.control.keys.commands], [b"document", 1000]), None
    if script == "claim":
        return lambda: store.cell.claim(OWNER, [1]), None
    if script == "capacity":
        return lambda: store.cell.capacity(1, [messages.CapacityItem(NODE, 1, BOOT, "ready")]), ["written"]
    if script == "leave":
        await seed_node(store, slots=0, reason="draining")
        return lambda: store.cell.leave(NODE, BOOT), "left"
    return await prepare_job(store, script)


async def prepare_job(store: Store, script: str) -> tuple[Act, object]:
    """As `prepare`, for the scripts of a job."""
    if script in ("reserve", "reject"):
        epoch = await seed_owner(store)
        await seed_node(store)
        entry_id = await seed_job(store)
        if script == "reserve":
            return lambda: reserve(store, [reserve_item(entry_id, epoch)]), None
        return lambda: reject(store, reject_item(entry_id, epoch)), ["rejected"]
    if script == "promote":
        await seed_delayed(store)
        return lambda: promote(store), "promoted"
    token = await seed_reserved(store)
    if script == "renew":
        return lambda: store.cell.renew(NODE, [(JOB, token)]), None
    return lambda: release(store, release_item(token, "retry")), [messages.Released("queued")]


MENDING: Final = ("last_ids", "unslotted", "parked", "reopen", "retype")


async def test_rule_34_what_was_deleted_is_found_and_made_again_with_full_memory(store: Store) -> None:
    """Who looks for what is lost needs no memory for it."""
    await seed_delayed(store, "j2", "s2")
    token = await seed_reserved(store)
    await seed_held(store)
    k = store.cell.keys
    await store.connection.commands.delete(k.slots(NODE), k.open, k.held("session", SESSION), k.delayed)
    await store.connection.commands.set(k.open, "rubbish")

    async with full_memory(store):
        assert await store.reads.last_ids([k.jobs(9)]) == [""]
        assert len((await store.reads.unslotted(NODE, "0", 10))[0]) == 1
        assert len((await store.reads.parked("0", 10))[0]) == 1
        await store.connection.retype([k.open])
        assert await store.cell.reopen([NODE]) == ["opened"]
        assert isinstance((await store.cell.renew(NODE, [(JOB, token)]))[2][0], messages.Renewed)
        item = messages.CountItem(NODE, JOB, SESSION, "")
        assert (await store.cell.count(LEADER_EPOCH, messages.Counted(1, frozenset({"session"})), [item]))[1] == [
            "added"
        ]


@pytest.mark.parametrize("script", [name for name in SCRIPT_NAMES if name not in ("submit", "describe", *MENDING)])
async def test_rule_34_every_other_script_writes_with_full_memory(store: Store, script: str) -> None:
    """What is under way goes on and ends, and the fleet is managed, while memory is full."""
    act, expected = await prepare(store, script)
    before = await dump(store)

    async with full_memory(store):
        answer = await act()

    assert expected in (None, answer)
    assert await dump(store) != before


async def test_rule_34_submit_is_refused_with_full_memory(store: Store, opening: Opening) -> None:
    """A producer is told that the server does not take the job now, and nothing is written."""
    await seed_job(store, "earlier", "s9")

    async with await opening(patience_ms=0) as impatient, full_memory(store), unchanged(store):
        with pytest.raises(ServerUnavailable, match="maxmemory"):
            await impatient.cell.submit([submit_item()])


async def test_rule_34_raw_entry_is_refused_with_full_memory(store: Store) -> None:
    """An entry that is added by hand is refused by the server itself."""
    async with full_memory(store), unchanged(store):
        with pytest.raises(OutOfMemoryError):
            await seed_entry(store)


async def test_rule_34_submit_goes_on_when_there_is_memory_again(store: Store, opening: Opening) -> None:
    """The refusal leaves nothing behind: the same submission is accepted afterwards."""
    async with await opening(patience_ms=0) as impatient:
        async with full_memory(store):
            with pytest.raises(ServerUnavailable):
                await impatient.cell.submit([submit_item()])

        (answer,) = await impatient.cell.submit([submit_item()])

    assert isinstance(answer, messages.Submitted)


async def test_rule_34_reads_that_belong_together_go_on_with_full_memory(store: Store) -> None:
    """Redis refuses all that stands in a MULTI, so none of them does."""
    epoch = await seed_leader(store)
    await store.control.publish(MANAGER, epoch, Snapshot(5))
    token = await seed_reserved(store)

    async with full_memory(store):
        snapshot, version = await store.control.read_snapshot(), await store.control.stored_version()
        (lease,) = await store.reads.leases(NODE, [JOB])

    assert (snapshot.version, version) == (5, 5)
    assert lease.holder is not None
    assert lease.holder.token == token
