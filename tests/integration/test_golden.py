"""What lies in the server, byte by byte, as clients in other languages find it: compared with tests/golden/.

Inputs are fixed. Clocks and what is made of them are masked by their shape: `<ms>` and `<us>` for times of 13 and 16
digits, `<id>` for ids of stream entries. After a change that is wanted, `GOLDEN_WRITE=1 ./tools/test
tests/integration/test_golden.py` writes the files anew; the difference then shows what other languages will notice.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.management.commands import ApplyPools, RemovePool, encode_command
from scheduler.management.manager import Manager
from scheduler.management.pools import PoolDocument
from scheduler.protocol import messages
from scheduler.protocol.documents import (
    Beat,
    DispatcherBeat,
    JobDocument,
    NodeBeat,
    ReaperBeat,
    decode_beat,
    decode_job,
    encode_beat,
    encode_job,
)
from scheduler.protocol.lifecycle import Verdict
from scheduler.protocol.results import JSON, TEXT
from scheduler.protocol.snapshot import Delta, Node, Pool, Snapshot
from scheduler.store.scripts import load_scripts
from scheduler.store.store import Store
from tests.seeds import (
    BOOT,
    LATER_BOOT,
    LEADER_EPOCH,
    MANAGER,
    NODE,
    OWNER,
    PARTITION,
    promote,
    reject,
    reject_item,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_delayed,
    seed_entry,
    seed_job,
    seed_lapsed,
    seed_leader,
    seed_node,
    seed_owner,
    seed_record,
    seed_reserved,
)
from tests.unit.test_pools import GOLD

GOLDEN: Final = Path(__file__).resolve().parents[1] / "golden"
WRITE: Final = "GOLDEN_WRITE" in os.environ
SLOTS: Final = 32
SHAPES: Final = ((r"\b\d{13}-\d+\b", "<id>"), (r"\b\d{16}\b", "<us>"), (r"\b\d{13}\b", "<ms>"))

JOB: Final = JobDocument(
    session_id="call-7",
    job_id="job-1",
    src_lang="en",
    tgt_lang="zh-Hant",
    tenant_id="acme",
    routing_key="room-3",
    features=("asr", "gpu"),
    priority=-2,
    deadline_ms=60_000,
    reply_to="desk-9",
)
NODE_BEAT: Final = NodeBeat(
    node="n1",
    boot="1735689600000000-a1b2c3",
    capacity=8,
    pairs=(("en", "zh-Hant"), ("zh-Hant", "en")),
    features=("asr", "gpu"),
    labels={"zone": "b"},
    pool="speech",
    version="2.1",
    draining=True,
    healthy=False,
    running=3,
)
BEATS: Final[dict[str, Beat]] = {
    "node": NODE_BEAT,
    "node_smallest": NodeBeat(node="n2", boot="1735689600000001-d4e5f6", capacity=1),
    "dispatcher": DispatcherBeat(name="d1", boot="0a1b2c3d", waiting={"speech": 4}, snapshot_version=17),
    "reaper": ReaperBeat(name="r1", boot="4e5f6a7b", expired={"n1": 2}),
}
SNAPSHOT: Final = Snapshot(
    version=1735689600000000,
    nodes=(
        Node("n1", "1735689600000000-a1b2c3", 8, "speech", (("en", "zh-Hant"),), ("asr",), {"zone": "b"}, "2.1"),
        Node("n2", "1735689600000001-d4e5f6", 1, "default", suspect=True, assigned=True),
    ),
    pools=(Pool("default"), Pool("speech", "spread", ("default",), 1, 2, 3, 4, 6)),
)
DELTA: Final = Delta(
    version=1735689600000001,
    before=1735689600000000,
    nodes=(Node("n3", "1735689600000002-a7b8c9", 2, "gpu", features=("llm",)),),
    removed=("n2",),
    pools=(Pool("default"), Pool("gpu"), *SNAPSHOT.pools[1:]),
)


# ---- reading ---------------------------------------------------------------------------------------------------------


def masked(text: str) -> str:
    """A text without what differs from run to run."""
    for shape, mask in SHAPES:
        text = re.sub(shape, mask, text)
    return text


def plain(fields: dict[bytes, bytes]) -> dict[str, str]:
    """Fields as text, masked; in the order of the server."""
    return {name.decode(): masked(value.decode()) for name, value in fields.items()}


async def hash_at(store: Store, key: str) -> dict[str, str]:
    """A hash, by the names of its fields: it has no order."""
    return dict(sorted(plain(await store.connection.commands.hgetall(key)).items()))


async def record(store: Store, job_id: str) -> dict[str, str]:
    """A job record."""
    return await hash_at(store, store.cell.keys.job(job_id))


async def entries(store: Store, stream: str) -> list[dict[str, str]]:
    """All entries of a stream."""
    return [plain(fields) for _, fields in await store.reads.entries(stream)]


async def newest(store: Store, stream: str) -> dict[str, str]:
    """The newest entry of a stream."""
    return (await entries(store, stream))[-1]


# ---- acting ----------------------------------------------------------------------------------------------------------


async def reserved(store: Store, job_id: str, **rest: Any) -> int:
    """A job on a node with room for all of them; returns the token."""
    return await seed_reserved(store, job_id, session=f"s-{job_id}", slots=SLOTS, **rest)


async def end(store: Store, job_id: str, token: int, verdict: Verdict, **rest: Any) -> str:
    """One ending; returns the state."""
    (answer,) = await release(store, release_item(token, verdict, job_id, f"s-{job_id}", **rest))
    assert isinstance(answer, messages.Released)
    return answer.state


async def ended(store: Store, job_id: str, verdict: Verdict, **rest: Any) -> None:
    """A job that was placed and has had this ending."""
    reply_to = rest.get("reply_to", "")
    await end(store, job_id, await reserved(store, job_id, reply_to=reply_to), verdict, **rest)


# ---- what is golden --------------------------------------------------------------------------------------------------


async def layout(store: Store) -> dict[str, str]:
    """The hash `layout`; of the sources only the first line that says something."""
    await store.control.write_layout()
    stored = await hash_at(store, store.control.keys.layout)
    sources = {f"script:{name}": script.source for name, script in load_scripts().items()}
    agreed = {name: value for name, value in stored.items() if name not in sources}
    assert {name: masked(source) for name, source in sources.items()} == {name: stored[name] for name in sources}
    return agreed | {name: f"<the source of lua/{name.removeprefix('script:')}.lua>" for name in sorted(sources)}


async def documents(_: Store) -> dict[str, dict[str, str]]:
    """Job documents and heartbeats, as JSON and as msgpack; both decode to the same."""
    smallest = JobDocument(session_id="call-7")
    found = {}
    for name, job in {"job": JOB, "job_smallest": smallest}.items():
        packed = msgspec.msgpack.encode(job)
        assert decode_job(packed) == decode_job(encode_job(job)) == job
        found[name] = {"json": encode_job(job).decode(), "msgpack_hex": packed.hex()}
    for name, beat in BEATS.items():
        packed = msgspec.msgpack.encode(beat)
        assert decode_beat(packed) == decode_beat(encode_beat(beat)) == beat
        found[f"beat_{name}"] = {"json": encode_beat(beat).decode(), "msgpack_hex": packed.hex()}
    return found


async def snapshot(store: Store) -> dict[str, Any]:
    """What `publish` stores: a whole snapshot and its version, then what changed, and the entries that tell of both."""
    epoch = await seed_leader(store)
    await store.control.publish("m1+1", epoch, SNAPSHOT)
    await store.control.publish("m1+1", epoch, None, DELTA)
    k, client = store.control.keys, store.connection.commands
    stored: bytes = await client.get(k.snapshot)
    return {
        "msgpack_hex": stored.hex(),
        "decoded": msgspec.msgpack.decode(stored),
        "version": (await client.get(k.version)).decode(),
        "deltas": {entry: _delta(fields) for entry, fields in await store.reads.entries(k.deltas)},
    }


def _delta(fields: dict[bytes, bytes]) -> dict[str, Any]:
    body = fields.pop(b"delta", None)
    shown: dict[str, Any] = dict(_text(fields))
    return shown if body is None else shown | {"delta_hex": body.hex(), "delta": msgspec.msgpack.decode(body)}


def _text(fields: dict[bytes, bytes]) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in fields.items()]


async def heartbeats(store: Store) -> list[dict[str, str]]:
    """Entries of the stream, by beat.lua."""
    await store.control.beat(encode_beat(BEATS["node_smallest"]))
    return [
        {"node": fields[b"node"].decode(), "time_ms": masked(fields[b"time_ms"].decode())}
        for _, fields in await store.reads.entries(store.control.keys.heartbeats)
    ]


async def intake(store: Store) -> dict[str, dict[str, str]]:
    """Intake entries, by who wrote them."""
    jobs = store.cell.keys.jobs(PARTITION)
    await seed_job(store, "submitted")
    found = {"submit": await newest(store, jobs)}
    await seed_job(store, "without-payload", payload=b"")
    found["submit_without_payload"] = await newest(store, jobs)
    await ended(store, "retried", "retry")
    found["release"] = await newest(store, jobs)
    await ended(store, "delayed", "retry", delay_ms=60_000)
    await store.connection.commands.zadd(store.cell.keys.delayed, {"delayed": 1})
    assert await promote(store, "delayed") == "promoted"
    found["promote"] = await newest(store, jobs)
    return found


async def inbox(store: Store) -> dict[str, dict[str, str]]:
    """An assignment, a second attempt, and every word to a node."""
    key = store.cell.keys.inbox(NODE)
    await seed_node(store, slots=SLOTS)
    found = {"boot": await newest(store, key)}
    await seed_node(store, slots=0, reason="draining")
    found["drained"] = await newest(store, key)
    await seed_node(store, slots=SLOTS)
    found["resumed"] = await newest(store, key)
    token = await reserved(store, "job-1", tenant="acme", reply_to="desk-9")
    found["assignment"] = await newest(store, key)
    item = release_item(token, "retry", "job-1", "s-job-1", tenant_id="acme", reply_to="desk-9")
    await release(store, item)
    ((entry_id, _),) = await store.reads.entries(store.cell.keys.jobs(PARTITION))
    await reserve(
        store,
        [
            reserve_item(
                entry_id,
                await seed_owner(store),
                "job-1",
                "s-job-1",
                tenant="acme",
                reply_to="desk-9",
                binding="default :",
            )
        ],
    )
    found["second_attempt"] = await newest(store, key)
    return found


async def records(store: Store) -> dict[str, dict[str, str]]:
    """The record after each of the main transitions."""
    await seed_node(store, slots=SLOTS)
    await seed_job(store, "queued", session="s-queued")
    await reserved(store, "reserved")
    entry_id = await seed_entry(store, "reserved_without_submit", "s-reserved_without_submit")
    await reserve(
        store,
        [reserve_item(entry_id, await seed_owner(store), "reserved_without_submit", "s-reserved_without_submit")],
    )
    await reserved(store, "started", started=True)
    await ended(store, "completed", "finish", content_type=JSON, result=b'{"text":"hello"}')
    await ended(store, "failed", "finish", state="failed", reason="rejected", content_type=TEXT, result=b"no")
    await ended(store, "retried", "retry", reason="handler_failed")
    await ended(store, "given_back", "give_back", reason="given_back")
    await ended(store, "delayed", "retry", delay_ms=60_000, reason="handler_failed")
    await ended(store, "promoted", "retry", delay_ms=60_000, reason="handler_failed")
    await store.connection.commands.zadd(store.cell.keys.delayed, {"promoted": 1})
    assert await promote(store, "promoted") == "promoted"
    token = await reserved(store, "expired", started=True)
    await seed_lapsed(store, "expired")
    await end(store, "expired", token, "expire", reason="lease_expired")
    await ended(store, "rebooted", "reboot", boot=LATER_BOOT, reason="reboot")
    await ended(store, "dead", "dead", reason="broken")
    token = await reserved(store, "exhausted", pool=Pool("default", attempts_max=1))
    await end(store, "exhausted", token, "retry", reason="handler_failed")
    token = await reserved(store, "cancelled")
    await seed_record(store, "cancelled", cancel="1")
    await end(store, "cancelled", token, "give_back")
    token = await reserved(store, "body_lost")
    (lost,) = [
        entry_id
        for entry_id, fields in await store.reads.entries(store.cell.keys.inbox(NODE))
        if fields.get(b"job_id") == b"body_lost"
    ]
    await store.connection.commands.xdel(store.cell.keys.inbox(NODE), lost)
    await end(store, "body_lost", token, "retry")
    await _rejected(store, "rejected", "expired")
    names = [
        "queued", "reserved", "reserved_without_submit", "started", "completed", "failed", "retried", "given_back",
        "delayed", "promoted", "expired", "rebooted", "dead", "exhausted", "cancelled", "body_lost", "rejected",
    ]  # fmt: skip
    return {name: await record(store, name) for name in names}


async def _rejected(store: Store, job_id: str, reason: str) -> None:
    entry_id = await seed_job(store, job_id, session=f"s-{job_id}")
    item = reject_item(entry_id, await seed_owner(store), reason, job_id, f"s-{job_id}", detail="why, for people")
    assert await reject(store, item) == ["rejected"]


async def outcomes(store: Store) -> dict[str, dict[str, str]]:
    """Entries of the feed, and of the feed of one producer."""
    feed, reply = store.cell.keys.results, store.cell.keys.replies("desk-9")
    await ended(store, "completed", "finish", content_type=JSON, result=b'{"text":"hello"}', reply_to="desk-9")
    found = {"completed": await newest(store, feed)}
    assert await entries(store, reply) == [found["completed"]]
    await ended(store, "nothing_returned", "finish")
    found["nothing_returned"] = await newest(store, feed)
    await ended(store, "large", "finish", content_type=TEXT, result=b"x" * 4_097)
    found["large"] = await newest(store, feed)
    await ended(
        store, "failed", "finish", state="failed", reason="rejected", detail="no", content_type=TEXT, result=b"no"
    )
    found["failed"] = await newest(store, feed)
    await ended(store, "dead", "dead", reason="broken", detail="why, for people")
    found["dead"] = await newest(store, feed)
    await _rejected(store, "rejected", "expired")
    found["rejected"] = await newest(store, feed)
    await _rejected(store, "cancelled", "cancelled")
    found["cancelled"] = await newest(store, feed)
    return found


async def bodies(store: Store) -> dict[str, dict[str, str]]:
    """Entries of the dead and of the parked stream."""
    k = store.cell.keys
    await ended(store, "dead", "dead", reason="broken", detail="why, for people")
    found = {"dead_after_release": await newest(store, k.dead)}
    await _rejected(store, "rejected", "expired")
    found["dead_after_reject"] = await newest(store, k.dead)
    await ended(store, "delayed", "retry", delay_ms=60_000)
    found["parked"] = await newest(store, k.parked)
    return found


async def others(store: Store) -> dict[str, Any]:
    """Small values: bindings, capacities, owners, what got free, the leader."""
    k, control, client = store.cell.keys, store.control.keys, store.connection.commands
    await seed_leader(store)
    epoch = await seed_owner(store)
    await seed_node(store, slots=1)
    token = await seed_delayed(store, "job-2", "call-8", due=False)
    failed = release_item(token, "retry", "job-2", "call-8", detail="why")
    await store.cell.describe([failed], DEFAULTS.retention_ms)
    entry_id = await seed_job(store, "job-1", "call-7")
    item = reserve_item(entry_id, epoch, "job-1", "call-7", binding="default en:zh-Hant")
    (answer,) = await reserve(store, [item])
    assert isinstance(answer, messages.Reserved)
    await store.cell.capacity(LEADER_EPOCH, [messages.CapacityItem("n2", 0, BOOT, "draining")])
    slots = await client.zrange(k.slots(NODE), 0, -1, withscores=True)
    held = await hash_at(store, k.owners)
    await store.cell.claim(OWNER, [], [PARTITION])
    await release(store, release_item(answer.token, "finish", "job-1", "call-7"))
    await store.cell.count(LEADER_EPOCH, messages.Counted(1735689600000000, frozenset({"session", "tenant"})))
    return {
        "session": (await client.get(k.session("call-7"))).decode(),
        "capacity": await hash_at(store, k.capacity),
        "leader_epoch": (await client.get(k.leader_epoch)).decode(),
        "counted": (await client.get(k.counted)).decode(),
        "owners": held,
        "owners_given_up": await hash_at(store, k.owners),
        "slots": {member.decode(): masked(f"{score:.0f}") for member, score in slots},
        "detail": (await client.get(k.detail("job-2"))).decode(),
        "freed": await entries(store, k.freed),
        "leader": await hash_at(store, control.leader),
    }


async def commands(store: Store) -> dict[str, Any]:
    """What operators ask, what is stored of it, and what they are answered."""
    k, manager = store.control.keys, Manager(store, DEFAULTS, MANAGER)
    asked = [
        encode_command(ApplyPools({"gold": GOLD, "silver": PoolDocument()})),
        encode_command(ApplyPools({"bronze": PoolDocument()})),
        encode_command(RemovePool("bronze")),
        encode_command(RemovePool("silver")),
    ]
    for command in asked:
        await store.connection.commands.xadd(k.commands, {"command": command})
    await manager.run_once()
    return {
        "commands": await entries(store, k.commands),
        "config": await hash_at(store, k.config),
        "answers": await entries(store, k.answers),
    }


FILES: Final[dict[str, Callable[[Store], Awaitable[Any]]]] = {
    "layout": layout,
    "documents": documents,
    "snapshot": snapshot,
    "heartbeats": heartbeats,
    "intake": intake,
    "inbox": inbox,
    "records": records,
    "outcomes": outcomes,
    "bodies": bodies,
    "others": others,
    "commands": commands,
}


@pytest.mark.parametrize("name", FILES)
async def test_what_lies_in_the_server_is_golden(store: Store, name: str) -> None:
    """Field by field: those of a stream in their order, those of a hash by name."""
    text = json.dumps(await FILES[name](store), indent=2, ensure_ascii=False) + "\n"
    path = GOLDEN / f"{name}.json"
    if WRITE:
        path.write_text(text, encoding="utf-8")

    assert text == path.read_text(encoding="utf-8")


def test_every_golden_file_is_compared() -> None:
    """None is left over from an earlier protocol."""
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(f"{name}.json" for name in FILES)
