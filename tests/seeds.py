"""Arranging and comparing: what lies in a server before a script is called, and what lies there after it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec

from scheduler import keys, model
from scheduler.store.control import Leading
from scheduler.store.store import Store

POOL: Final = "default"
NODE: Final = "n1"
BOOT: Final = "1000-a"
LATER_BOOT: Final = "2000-b"
OWNER: Final = "d1+1"
MANAGER: Final = "m1+1"
PARTITION: Final = 1
JOB: Final = "j1"
SESSION: Final = "s1"
LEADER_EPOCH: Final = 7
RETENTION_MS: Final = 60_000
DEAD_RETENTION_MS: Final = 600_000
FAR_US: Final = 4_102_444_800_000_000
"""2100-01-01 in microseconds: ahead of every clock that runs these tests."""
POISON_ID: Final = "18446744073709551615-18446744073709551615"
"""The highest id of a stream: after it, `XADD *` fails."""

Dump = dict[str, tuple[str, Any, bool]]


# ---- arranging ---------------------------------------------------------------------------------------------


async def seed_leader(store: Store, name: str = MANAGER) -> int:
    """Let `name` lead; returns the epoch."""
    answer = await store.control.lead(name)
    assert isinstance(answer, Leading)
    return answer.epoch


async def seed_owner(store: Store, partition: int = PARTITION, owner: str = OWNER) -> int:
    """Let `owner` hold the partition; returns the epoch."""
    _, (answer,) = await store.cell.claim(owner, [partition])
    assert isinstance(answer, model.Owned)
    return answer.epoch


async def seed_node(
    store: Store, node: str = NODE, slots: int = 1, boot: str = BOOT, reason: model.Reason = "ready"
) -> None:
    """Let the leader say what the node has."""
    answer = await store.cell.capacity(LEADER_EPOCH, [model.CapacityItem(node, slots, boot, reason)])
    assert answer in (["written"], ["unchanged"])


async def seed_job(
    store: Store,
    job_id: str = JOB,
    session: str = SESSION,
    *,
    partition: int = PARTITION,
    tenant: str = "",
    reply_to: str = "",
    payload: bytes = b"body",
) -> str:
    """Submit a job; returns its entry id."""
    (answer,) = await store.cell.submit(
        [submit_item(job_id, session, partition=partition, tenant=tenant, reply_to=reply_to, payload=payload)]
    )
    assert isinstance(answer, model.Submitted)
    return answer.entry.partition("/")[2]


async def seed_entry(
    store: Store,
    job_id: str = JOB,
    session: str = SESSION,
    *,
    partition: int = PARTITION,
    entry_id: str = "*",
    payload: bytes = b"body",
) -> str:
    """Add an intake entry by hand, without a record; returns its id."""
    added: bytes = await store.connection.commands.xadd(
        store.cell.keys.jobs(partition), {"job": document(job_id, session), "payload": payload}, id=entry_id
    )
    return added.decode()


async def seed_reserved(
    store: Store,
    job_id: str = JOB,
    session: str = SESSION,
    *,
    node: str = NODE,
    slots: int = 1,
    partition: int = PARTITION,
    tenant: str = "",
    reply_to: str = "",
    payload: bytes = b"body",
    pool: model.Pool | None = None,
    started: bool = False,
) -> int:
    """Place a new job on a node with `slots`; returns the token.

    started: renewed once, as its node does when it starts the job.
    """
    epoch = await seed_owner(store, partition)
    await seed_node(store, node, slots)
    entry_id = await seed_job(
        store, job_id, session, partition=partition, tenant=tenant, reply_to=reply_to, payload=payload
    )
    item = reserve_item(
        entry_id,
        epoch,
        job_id,
        session,
        partition=partition,
        candidates=(node,),
        tenant=tenant,
        reply_to=reply_to,
    )
    (answer,) = await reserve(store, [item], pool=pool)
    assert isinstance(answer, model.Reserved)
    if started:
        await store.cell.renew(node, [(job_id, answer.token)])
    return answer.token


async def seed_delayed(
    store: Store, job_id: str = JOB, session: str = SESSION, *, due: bool = True, reply_to: str = ""
) -> int:
    """A job that was placed, failed and waits for its next attempt; returns the token of the first."""
    token = await seed_reserved(store, job_id, session, reply_to=reply_to)
    (answer,) = await release(
        store, release_item(token, "retry", job_id, session, delay_ms=60_000, reply_to=reply_to)
    )
    assert answer == model.Released("delayed")
    if due:
        await store.connection.commands.zadd(store.cell.keys.delayed, {job_id: 1})
    return token


async def seed_lapsed(store: Store, job_id: str = JOB, node: str = NODE) -> None:
    """Let the lease of a reservation end now."""
    await store.connection.commands.zadd(store.cell.keys.slots(node), {job_id: 1}, xx=True)


async def seed_poison(store: Store, stream: str) -> None:
    """Make a stream take no entry any more: its highest id is used, by an entry that is gone again."""
    await store.connection.commands.xadd(stream, {"poison": ""}, id=POISON_ID)
    await store.connection.commands.xdel(stream, POISON_ID)


async def seed_record(store: Store, job_id: str = JOB, **fields: str | int) -> None:
    """Write fields into a job's record."""
    await store.connection.commands.hset(store.cell.keys.job(job_id), mapping=fields)


# ---- acting ------------------------------------------------------------------------------------------------


def document(job_id: str = JOB, session: str = SESSION) -> bytes:
    """A job document; without a job id the entry gives one."""
    return model.encode_job(model.JobDocument(session_id=session, job_id=job_id))


def submit_item(
    job_id: str = JOB,
    session: str = SESSION,
    *,
    partition: int = PARTITION,
    tenant: str = "",
    reply_to: str = "",
    nonce: str = "",
    payload: bytes = b"body",
) -> model.SubmitItem:
    """One submission; its nonce is made of the job id unless given."""
    nonce = nonce or f"nonce-{job_id}"
    return model.SubmitItem(
        partition,
        job_id,
        session,
        tenant,
        reply_to,
        nonce or f"nonce-{job_id}",
        document(job_id, session),
        payload,
    )


def reserve_item(
    entry_id: str,
    epoch: int,
    job_id: str = JOB,
    session: str = SESSION,
    *,
    partition: int = PARTITION,
    candidates: tuple[str, ...] = (NODE,),
    choice: Any = "first",
    binding: str = "",
    bound_node: str = "",
    tenant: str = "",
    reply_to: str = "",
) -> model.ReserveItem:
    """One job of a reserve call."""
    return model.ReserveItem(
        partition,
        epoch,
        entry_id,
        job_id,
        session,
        tenant,
        reply_to,
        POOL,
        candidates,
        choice,
        binding,
        bound_node,
    )


async def reserve(
    store: Store,
    items: Sequence[model.ReserveItem],
    boots: dict[str, str] | None = None,
    *,
    pool: model.Pool | None = None,
) -> list[model.Reserved | model.Refused]:
    """Reserve with every candidate at its first boot unless `boots` says otherwise."""
    named = {node: BOOT for item in items for node in item.candidates} | (boots or {})
    return await store.cell.reserve(items, named, {POOL: pool or model.Pool(POOL)}, 1)


def release_item(
    token: int,
    verdict: model.Verdict,
    job_id: str = JOB,
    session: str = SESSION,
    *,
    node: str = NODE,
    partition: int = PARTITION,
    **rest: Any,
) -> model.ReleaseItem:
    """One ending. rest: other fields of model.ReleaseItem."""
    fields = {"tenant_id": "", "reply_to": ""} | rest
    return model.ReleaseItem(
        job_id=job_id,
        node=node,
        partition=partition,
        session_id=session,
        token=token,
        verdict=verdict,
        **fields,
    )


async def release(store: Store, *items: model.ReleaseItem) -> list[model.Released | model.NotReleased]:
    """End reservations."""
    _, answers = await store.cell.release(items, RETENTION_MS, DEAD_RETENTION_MS)
    return answers


def reject_item(
    entry_id: str,
    epoch: int,
    reason: str = "expired",
    job_id: str = JOB,
    session: str = SESSION,
    *,
    partition: int = PARTITION,
    reply_to: str = "",
    detail: str = "",
) -> model.RejectItem:
    """One entry to refuse."""
    return model.RejectItem(partition, epoch, entry_id, job_id, session, "", reply_to, reason, detail)


async def reject(store: Store, *items: model.RejectItem) -> list[str]:
    """Refuse entries."""
    return await store.cell.reject(items, RETENTION_MS, DEAD_RETENTION_MS)


async def promote(store: Store, job_id: str = JOB, *, partition: int = PARTITION, reply_to: str = "") -> str:
    """Send one delayed job back to the intake if it is due."""
    (answer,) = await store.cell.promote([(job_id, partition, reply_to)], RETENTION_MS)
    return answer


# ---- comparing ---------------------------------------------------------------------------------------------


def transitions(script: str) -> tuple[model.Transition, ...]:
    """The rows of the transition table that a script performs."""
    return tuple(row for row in model.TRANSITIONS if row.script == script)


async def standing(store: Store, job_id: str = JOB) -> tuple[str, list[str]]:
    """The state of a job and every place of its body: what a row of the transition table says of it."""
    record = await store.reads.record(job_id)
    return record.get("state", "none"), await whereabouts(store, job_id)


def stands(row: model.Transition) -> tuple[str, list[str]]:
    """What `standing` is after a row of the transition table."""
    return row.next_state, [] if row.body == "none" else [row.body]


async def whereabouts(store: Store, job_id: str = JOB) -> list[str]:
    """Every place where a body of the job lies (intake, inbox, parked, dead), one word a copy."""
    return sorted(place for place, holder in await bodies(store) if holder == job_id)


async def bodies(store: Store) -> list[tuple[str, str]]:
    """(place, job_id) of every stream entry that holds a body."""
    k = store.cell.keys
    intake, inbox = k.jobs(0).removesuffix("0"), k.inbox("")
    places: dict[str, str] = {k.parked: "parked", k.dead: "dead"}
    found: list[tuple[str, str]] = []
    for key, (kind, value, _) in (await dump(store)).items():
        place = "intake" if key.startswith(intake) else "inbox" if key.startswith(inbox) else places.get(key)
        if kind == "stream" and place:
            partition = key.removeprefix(intake)
            found += [
                (place, job_id_of(fields, partition, entry_id))
                for entry_id, fields in value["entries"].items()
                if "control" not in fields
            ]
    return found


def job_id_of(fields: dict[str, str], partition: str, entry_id: str) -> str:
    """The field wins over the document; without either the entry names the job."""
    if "job_id" in fields:
        return fields["job_id"]
    try:
        named = str(msgspec.json.decode(fields["job"]).get("job_id", ""))
    except (KeyError, AttributeError, msgspec.DecodeError):
        named = ""
    return named or keys.generated_job_id(0, int(partition), entry_id)


@contextlib.asynccontextmanager
async def unchanged(store: Store) -> AsyncIterator[None]:
    """Whatever happens inside leaves everything in the server as it was."""
    before = await dump(store)
    yield
    assert await dump(store) == before


async def dump(store: Store) -> Dump:
    """Everything in the server: key -> (type, value, whether it expires); streams with counters, groups."""
    client = store.connection.commands
    names = sorted([name async for name in client.scan_iter(count=1_000)])
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.type(name)
    kinds = [kind.decode() for kind in await pipeline.execute()]
    for name, kind in zip(names, kinds, strict=True):
        pipeline.pttl(name)
        if kind == "string":
            pipeline.get(name)
        elif kind == "hash":
            pipeline.hgetall(name)
        elif kind == "set":
            pipeline.smembers(name)
        elif kind == "zset":
            pipeline.zrange(name, 0, -1, withscores=True)
        else:
            pipeline.execute_command("XINFO", "STREAM", name, "FULL", "COUNT", "0")
    rows = await pipeline.execute()
    return {
        name.decode(): (kind, _plain(value) if kind != "stream" else _stream(value), rows[2 * i] >= 0)
        for i, (name, kind, value) in enumerate(zip(names, kinds, rows[1::2], strict=True))
    }


def _plain(value: Any) -> Any:
    """Bytes as text, sets as sorted lists, so that a difference can be read."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, dict):
        return {_plain(field): _plain(each) for field, each in value.items()}
    if isinstance(value, set):
        return sorted(_plain(each) for each in value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _stream(value: Any) -> dict[str, Any]:
    """Entries, the counters that tell of a write when its entry is gone, and what each group has pending."""
    told = _pairs(value)
    groups = [_pairs(group) for group in told["groups"]]
    return {
        "entries": {entry_id: _pairs(fields) for entry_id, fields in told["entries"]},
        "last": told["last-generated-id"],
        "added": told["entries-added"],
        "groups": {
            group["name"]: (group["last-delivered-id"], [pending[0] for pending in group["pending"]])
            for group in groups
        },
    }


def _pairs(flat: Any) -> dict[str, Any]:
    plain = _plain(flat)
    return {plain[i]: plain[i + 1] for i in range(0, len(plain), 2)}
