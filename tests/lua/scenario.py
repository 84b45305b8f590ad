"""One run of every script to every answer that it can give, for the tests that watch what scripts do."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import msgspec

from scheduler.config import DEFAULTS
from scheduler.errors import Fenced, PublishConflict
from scheduler.protocol import messages
from scheduler.protocol.lifecycle import Verdict
from scheduler.protocol.snapshot import Delta, Snapshot
from scheduler.store.cell import Cell
from scheduler.store.store import Store
from tests.seeds import (
    BOOT,
    JOB,
    LATER_BOOT,
    MANAGER,
    NODE,
    OWNER,
    PARTITION,
    POISON_ID,
    SESSION,
    promote,
    reject,
    reject_item,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_closed,
    seed_delayed,
    seed_entry,
    seed_held,
    seed_job,
    seed_lapsed,
    seed_leader,
    seed_node,
    seed_owner,
    seed_poison,
    seed_record,
    seed_reserved,
    submit_item,
)


async def run_layout(store: Store) -> None:
    """Written, kept."""
    await store.control.write_layout()
    await store.control.write_layout()


async def run_beat(store: Store) -> None:
    """A node, a dispatcher, and a stream that takes no entry."""
    await store.control.beat(b"doc")
    await seed_poison(store, store.control.keys.heartbeats)
    await store.control.beat(b"doc", OWNER)


async def run_lead(store: Store) -> None:
    """Leading, following, given up."""
    await store.control.lead("m1")
    await store.control.lead("m2")
    await store.control.give_up_lead("m1")


async def run_take(store: Store) -> None:
    """Taken: new, pending, trimmed. Fenced."""
    epoch = await seed_leader(store)
    await store.control.beat(b"doc")
    await store.control.take(MANAGER, epoch)
    await store.connection.commands.xtrim(store.control.keys.heartbeats, maxlen=0)
    await store.control.take(MANAGER, epoch, ["1-1"], pending=True)
    with contextlib.suppress(Fenced):
        await store.control.take("m2", epoch)


async def run_publish(store: Store) -> None:
    """Published with everything, also over a poisoned stream, and as a delta. Fenced, stale, lost."""
    epoch = await seed_leader(store)
    added: bytes = await store.connection.commands.xadd(store.control.keys.commands, {"command": "drain"})
    await store.control.take(MANAGER, epoch)
    await seed_poison(store, store.control.keys.deltas)
    await store.control.publish(
        MANAGER,
        epoch,
        Snapshot(5),
        sets={"a": b"b"},
        deletes=["c"],
        answers=[(added.decode(), b"done")],
    )
    await store.control.publish(MANAGER, epoch, None, Delta(6, before=5))
    with contextlib.suppress(PublishConflict):
        await store.control.publish(MANAGER, epoch, None, Delta(8, before=7))
    with contextlib.suppress(Fenced):
        await store.control.publish(MANAGER, epoch, Snapshot(4))
    with contextlib.suppress(Fenced):
        await store.control.publish("m2", epoch, None)


async def run_command(store: Store) -> None:
    """Added, refused."""
    k = store.control.keys
    await store.connection.call("command", [k.commands], [b"document", 1000])
    await seed_poison(store, k.commands)
    await store.connection.call("command", [k.commands], [b"document", 1000])


async def run_claim(store: Store) -> None:
    """Owned, held, given up."""
    await store.cell.claim("d1", [1, 2])
    await store.cell.claim("d2", [1])
    await store.cell.claim("d1", [], [1, 2])


async def run_capacity(store: Store) -> None:
    """Written with each message, unchanged, older, refused, left. Fenced."""
    await seed_closed(store, store.cell.keys.inbox("n2"))
    item = messages.CapacityItem
    for each in (
        item(NODE, 2, BOOT, "ready"),
        item(NODE, 2, BOOT, "ready"),
        item(NODE, 0, BOOT, "draining"),
        item(NODE, 2, BOOT, "ready"),
        item(NODE, 1, LATER_BOOT, "ready"),
        item(NODE, 1, BOOT, "ready"),
        item("n2", 1, BOOT, "ready"),
    ):
        await store.cell.capacity(7, [each])
    await store.cell.leave(NODE, LATER_BOOT)
    await store.cell.capacity(7, [item(NODE, 1, LATER_BOOT, "ready")])
    with contextlib.suppress(Fenced):
        await store.cell.capacity(6, [])


async def run_count(store: Store) -> None:
    """Changed, unchanged, nothing; counted, stale. Fenced."""
    await seed_reserved(store, "j1", "s1", tenant="t1")
    session = messages.Counted(5, frozenset({"session"}))
    items = [messages.CountItem(NODE, "j1", "s1", "t1"), messages.CountItem(NODE, "j9", "s9", "")]
    await store.cell.count(8, session)
    await store.cell.count(8, session, items)
    await store.cell.count(8, session, items)
    await store.cell.count(8, messages.Counted())
    with contextlib.suppress(Fenced):
        await store.cell.count(7, session)


async def run_uncount(store: Store) -> None:
    """Removed, kept."""
    await seed_reserved(store)
    await seed_held(store)
    await store.connection.commands.zadd(store.cell.keys.held("session", SESSION), {"j9": 1})
    await store.cell.uncount("session", SESSION, [JOB, "j9"])


async def run_leave(store: Store) -> None:
    """Busy, replaced, closed, left, left again; dead."""
    token = await seed_reserved(store, slots=2)
    await store.cell.leave(NODE, BOOT, "drained")
    await store.cell.leave(NODE, "999-a")
    await store.cell.leave(NODE, BOOT)
    await release(store, release_item(token, "finish"))
    await store.cell.leave(NODE, BOOT)
    await store.cell.leave(NODE, BOOT)
    await seed_node(store, "n2")
    await seed_node(store, "n2", slots=0, reason="dead")
    await store.cell.leave("n2", BOOT, "dead")


async def run_submit(store: Store) -> None:
    """Accepted, duplicate, taken, busy, refused, invalid."""
    await seed_poison(store, store.cell.keys.jobs(2))
    await store.cell.submit([submit_item(), submit_item(nonce="other"), submit_item(session="s2")])
    await Cell(store.connection, msgspec.structs.replace(DEFAULTS, backlog_max=1)).submit([submit_item("j2")])
    await store.cell.submit([submit_item("j3", partition=2, payload=b""), submit_item("j4", "s 4")])


async def run_reserve(store: Store) -> None:
    """Reserved, and its repeat, and every word of who is not placed; also over a poisoned inbox."""
    epoch = await seed_owner(store)
    await seed_node(store)
    await seed_node(store, "n2")
    await seed_closed(store, store.cell.keys.inbox("n2"))
    entries = [await seed_job(store, f"j{i}", f"s{min(i, 3)}") for i in range(5)]
    await seed_record(store, "j2", cancel=1)
    copy, taken = await seed_entry(store, "j1", "s1"), await seed_entry(store, "j1", "s9")
    items = [
        reserve_item(entries[1], epoch, "j1", "s1", candidates=("n2", NODE), binding="default en:zh"),
        reserve_item(entries[2], epoch, "j2", "s2"),
        reserve_item(entries[3], epoch, "j3", "s3", choice="freest"),
        reserve_item(entries[4], epoch, "j4", "s3"),
        reserve_item(entries[0], epoch + 1, "j0", "s0"),
        reserve_item(copy, epoch, "j1", "s1"),
        reserve_item(taken, epoch, "j1", "s9"),
        reserve_item("5-5", epoch, "j9", "s8"),
        reserve_item(entries[4], epoch, "j4", "s9"),
    ]
    await reserve(store, items)
    await reserve(store, items)
    await seed_node(store, "n3", slots=2)
    entries = [await seed_job(store, f"l{i}", "s5", tenant="t1") for i in range(2)]
    limits = (("session", "s5", 1), ("tenant", "t1", 5))
    await reserve(
        store,
        [
            reserve_item(entry, epoch, f"l{i}", "s5", tenant="t1", candidates=("n3",), limits=limits, bound=NODE)
            for i, entry in enumerate(entries)
        ],
    )
    await reserve(store, [reserve_item(await seed_job(store, "b0", "s1"), epoch, "b0", "s1", unread=True)])
    await store.cell.count(7, messages.Counted(1, frozenset({"session"})))
    await reserve(store, [reserve_item(await seed_job(store, "o0", "s6"), epoch, "o0", "s6")])


async def run_boot(store: Store) -> None:
    """A node that is new, and one that holds a job."""
    await store.cell.boot(NODE)
    await seed_reserved(store)
    await store.cell.boot(NODE)


async def run_read(store: Store) -> None:
    """All there is, whole and by its head; and a part of it."""
    jobs, reads = store.cell.keys.jobs(PARTITION), store.reads
    for i in range(3):
        await seed_job(store, f"j{i}", f"s{i}")
    for parts_max in (100, 100, 100), (1, 100, 100):
        await reads.by_bytes({jobs: "0", store.cell.keys.freed: "0"}, 2, 10, parts_max, False, False)
    await reads.by_bytes({jobs: "0"}, 9, 10, (100, 100, 100), True, False)


async def run_renew(store: Store) -> None:
    """Renewed before and after the start, stale, unknown, cancelling, overrun, invalid; crowded, and without a slot."""
    token = await seed_reserved(store)
    await store.cell.renew(NODE, [], [(JOB, token)])
    await store.cell.renew(NODE, [(JOB, -1)])
    await store.cell.renew(NODE, [(JOB, token), (JOB, token + 1), ("j9", 1)])
    await seed_record(store, cancel=1)
    await store.cell.renew(NODE, [(JOB, token)])
    await seed_record(store, started_ms=1)
    await store.cell.renew(NODE, [(JOB, token)])
    lost, other = await seed_reserved(store, "j2", "s2", slots=2), await seed_reserved(store, "j3", "s3", slots=3)
    await store.connection.commands.zrem(store.cell.keys.slots(NODE), "j2")
    await store.cell.renew(NODE, [("j2", lost), ("j3", other)])
    await store.connection.commands.zrem(store.cell.keys.slots(NODE), "j2")
    await seed_node(store, slots=2)
    await store.cell.renew(NODE, [("j2", lost)])


async def run_release(store: Store) -> None:
    """Released by every verdict, to every place; stale, unknown, busy, moved, invalid."""
    tokens = [await seed_reserved(store, f"j{i}", f"s{i}", slots=9, reply_to="r1") for i in range(7)]

    def item(i: int, verdict: Verdict, **rest: Any) -> messages.ReleaseItem:
        fields: dict[str, Any] = {"reply_to": "r1"} | rest
        return release_item(tokens[i], verdict, f"j{i}", f"s{i}", **fields)

    await seed_held(store, "j3", "s3")
    await seed_lapsed(store, "j3")
    await seed_record(store, "j6", holder=f"{NODE} {tokens[6]}")
    await release(
        store,
        item(0, "expire"),
        item(0, "finish", node="n2"),
        item(0, "finish", result=b"out"),
        item(0, "dead"),
        item(1, "retry"),
        item(2, "retry", delay_ms=5),
        item(3, "expire"),
        item(4, "reboot", boot=LATER_BOOT),
        item(5, "dead", reason="poison"),
        item(6, "give_back"),
        item(6, cast(Any, "finsh")),
        release_item(1, "finish", "j9", "s9"),
    )


async def run_describe(store: Store) -> None:
    """Described, stale, unknown, invalid."""
    token = await seed_delayed(store)
    items = [
        release_item(token, "retry", detail="why"),
        release_item(1, "retry", detail="why"),
        release_item(1, "retry", "j9", detail="why"),
        release_item(1, "retry"),
    ]
    await store.cell.describe(items, 1_000)


async def run_reject(store: Store) -> None:
    """Rejected, fenced, duplicate, gone, busy, cancelled."""
    epoch = await seed_owner(store)
    first, second = await seed_job(store, "j1", "s1", reply_to="r1"), await seed_job(store, "j2", "s2")
    copy = await seed_entry(store, "j2", "s2")
    await reject(
        store,
        reject_item(first, epoch + 1, "expired", "j1", "s1"),
        reject_item(first, epoch, "expired", "j1", "s1", reply_to="r1"),
        reject_item(copy, epoch, "expired", "j2", "s9"),
        reject_item("5-5", epoch, "expired", "j9", "s9"),
    )
    await seed_poison(store, store.cell.keys.dead)
    await reject(store, reject_item(second, epoch, "expired", "j2", "s2"))
    await reject(store, reject_item(second, epoch, "cancelled", "j2", "s2"))


async def run_promote(store: Store) -> None:
    """Early, moved, promoted, stale, dead, busy."""
    await seed_delayed(store, due=False)
    await promote(store)
    await promote(store, reply_to="r1")
    await seed_delayed(store, "j2", "s2", reply_to="r1")
    await promote(store, "j2", reply_to="r1")
    await promote(store, "j2", reply_to="r1")
    await seed_delayed(store, "j3", "s3", reply_to="r1")
    await seed_record(store, "j3", parked_id="1-1")
    await promote(store, "j3", reply_to="r1")
    await seed_delayed(store, "j4", "s4")
    await seed_poison(store, store.cell.keys.jobs(PARTITION))
    await promote(store, "j4")


async def run_rebuild(store: Store) -> None:
    """Fenced, open, copying, records, rebuilt."""
    epoch = await seed_owner(store)
    jobs, dead = store.cell.keys.jobs(PARTITION), store.cell.keys.dead
    await store.cell.rebuild(jobs, "entry", (), (PARTITION, epoch + 1))
    await store.cell.rebuild(jobs, "entry", (), (PARTITION, epoch))
    for number in range(7):
        await store.connection.commands.xadd(dead, {"job": b"x" * 100_000}, id=f"{number + 1}-0")
    await store.cell.rebuild(dead, "dead_id")
    await seed_closed(store, dead, "j0")
    await seed_record(store, "j0", dead_id=POISON_ID)
    await store.cell.rebuild(dead, "dead_id")
    await store.connection.commands.xdel(dead, "3-0")
    await store.cell.rebuild(dead, "dead_id")
    await store.cell.rebuild(dead, "dead_id", [b"j0"])


async def run_last_ids(store: Store) -> None:
    """Of a stream, and of none."""
    await seed_entry(store)
    await store.reads.last_ids([store.cell.keys.jobs(PARTITION), store.cell.keys.freed])


async def run_restart(store: Store) -> None:
    """Fenced, open, busy, restarted."""
    epoch, commands = await seed_leader(store), store.control.keys.commands
    with contextlib.suppress(Fenced):
        await store.control.restart("m2", epoch, commands)
    await store.control.restart(MANAGER, epoch, commands)
    added: bytes = await store.connection.commands.xadd(commands, {"command": "drain"})
    await store.control.take(MANAGER, epoch)
    await seed_poison(store, commands)
    await store.control.restart(MANAGER, epoch, commands)
    await store.control.publish(MANAGER, epoch, None, answers=[(added.decode(), b"done")])
    await store.control.restart(MANAGER, epoch, commands)


async def run_unslotted(store: Store) -> None:
    """One assignment with a slot, one without, in pages of one."""
    await seed_reserved(store, slots=2)
    await seed_reserved(store, "j2", "s2", slots=2)
    await store.connection.commands.zrem(store.cell.keys.slots(NODE), JOB)
    await store.reads.unslotted(NODE, "0", 1)
    await store.reads.unslotted(NODE, "0", 9)


async def run_parked(store: Store) -> None:
    """One body with a time, one without, and one of nobody."""
    await seed_delayed(store)
    await seed_delayed(store, "j2", "s2")
    await store.connection.commands.zrem(store.cell.keys.delayed, JOB)
    await store.connection.commands.xadd(store.cell.keys.parked, {"other": "1"})
    await store.reads.parked("0", 9)


async def run_reopen(store: Store) -> None:
    """Opened, closed, right."""
    await seed_node(store)
    await seed_node(store, "n2", slots=0, reason="draining")
    await store.connection.commands.delete(store.cell.keys.open)
    await store.connection.commands.sadd(store.cell.keys.open, "n2")
    await store.cell.reopen([NODE, "n2"])
    await store.cell.reopen([NODE, "n2"])


async def run_retype(store: Store) -> None:
    """A string and a stream where a set and a zset belong, and one that is right; again, when all are."""
    keys = store.cell.keys
    await seed_node(store)
    await store.connection.commands.set(keys.slots(NODE), "somebody's")
    await store.connection.commands.xadd(keys.delayed, {"somebody": "s"})
    for _ in range(2):
        await store.connection.retype([keys.open, keys.slots(NODE), keys.delayed])


RUNS: Final[dict[str, Callable[[Store], Awaitable[None]]]] = {
    "layout": run_layout,
    "beat": run_beat,
    "lead": run_lead,
    "take": run_take,
    "publish": run_publish,
    "command": run_command,
    "boot": run_boot,
    "claim": run_claim,
    "capacity": run_capacity,
    "count": run_count,
    "leave": run_leave,
    "submit": run_submit,
    "reserve": run_reserve,
    "read": run_read,
    "renew": run_renew,
    "release": run_release,
    "describe": run_describe,
    "reject": run_reject,
    "promote": run_promote,
    "rebuild": run_rebuild,
    "restart": run_restart,
    "last_ids": run_last_ids,
    "unslotted": run_unslotted,
    "parked": run_parked,
    "reopen": run_reopen,
    "uncount": run_uncount,
    "retype": run_retype,
}
