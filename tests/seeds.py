"""Arranging and acting: what lies in a server before a script is called, and the call itself."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from scheduler.protocol import messages
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.protocol.lifecycle import Verdict
from scheduler.protocol.snapshot import Pool, Reason
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
Opening = Callable[..., Coroutine[Any, Any, Store]]
"""What the fixture `opening` gives: `open_store`, without the URL."""


# ---- arranging ---------------------------------------------------------------------------------------------


async def seed_leader(store: Store, name: str = MANAGER) -> int:
    """Let `name` lead; returns the epoch."""
    answer = await store.control.lead(name)
    assert isinstance(answer, Leading)
    return answer.epoch


async def seed_owner(store: Store, partition: int = PARTITION, owner: str = OWNER) -> int:
    """Let `owner` hold the partition; returns the epoch."""
    _, (answer,) = await store.cell.claim(owner, [partition])
    assert isinstance(answer, messages.Owned)
    return answer.epoch


async def seed_node(store: Store, node: str = NODE, slots: int = 1, boot: str = BOOT, reason: Reason = "ready") -> None:
    """Let the leader say what the node has."""
    answer = await store.cell.capacity(LEADER_EPOCH, [messages.CapacityItem(node, slots, boot, reason)])
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
    assert isinstance(answer, messages.Submitted)
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
    pool: Pool | None = None,
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
    assert isinstance(answer, messages.Reserved)
    if started:
        await store.cell.renew(node, [(job_id, answer.token)])
    return answer.token


async def seed_delayed(
    store: Store, job_id: str = JOB, session: str = SESSION, *, due: bool = True, reply_to: str = ""
) -> int:
    """A job that was placed, failed and waits for its next attempt; returns the token of the first."""
    token = await seed_reserved(store, job_id, session, reply_to=reply_to)
    (answer,) = await release(store, release_item(token, "retry", job_id, session, delay_ms=60_000, reply_to=reply_to))
    assert answer == messages.Released("delayed")
    if due:
        await store.connection.commands.zadd(store.cell.keys.delayed, {job_id: 1})
    return token


async def seed_lapsed(store: Store, job_id: str = JOB, node: str = NODE) -> None:
    """Let the lease of a reservation end now."""
    await store.connection.commands.zadd(store.cell.keys.slots(node), {job_id: 1}, xx=True)


async def seed_held(store: Store, job_id: str = JOB, session: str = SESSION, most: int = 1) -> None:
    """Let a reservation count against a limit of its session. most: the limit of its pool."""
    await seed_record(store, job_id, held="session")
    await store.connection.commands.zadd(store.cell.keys.held("session", session), {job_id: most})


async def seed_poison(store: Store, stream: str) -> None:
    """Make a stream take no entry any more: its highest id is used, by an entry that is gone again."""
    await store.connection.commands.xadd(stream, {"poison": ""}, id=POISON_ID)
    await store.connection.commands.xdel(stream, POISON_ID)


async def seed_closed(store: Store, stream: str, job_id: str = "j0") -> None:
    """The same by an entry that is there, of a job whose record might name it: no script but `rebuild` opens that."""
    await store.connection.commands.xadd(stream, {"job_id": job_id}, id=POISON_ID)


async def seed_record(store: Store, job_id: str = JOB, **fields: str | int) -> None:
    """Write fields into a job's record."""
    await store.connection.commands.hset(store.cell.keys.job(job_id), mapping=fields)


# ---- acting ------------------------------------------------------------------------------------------------


def document(job_id: str = JOB, session: str = SESSION) -> bytes:
    """A job document; without a job id the entry gives one."""
    return encode_job(JobDocument(session_id=session, job_id=job_id))


def submit_item(
    job_id: str = JOB,
    session: str = SESSION,
    *,
    partition: int = PARTITION,
    tenant: str = "",
    reply_to: str = "",
    nonce: str = "",
    payload: bytes = b"body",
) -> messages.SubmitItem:
    """One submission; its nonce is made of the job id unless given."""
    nonce = nonce or f"nonce-{job_id}"
    return messages.SubmitItem(
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
    choice: str = "first",
    tenant: str = "",
    reply_to: str = "",
    **rest: Any,
) -> messages.ReserveItem:
    """One job of a reserve call. choice: of the candidates, the first with room is taken, or the freest."""
    groups = tuple((name,) for name in candidates) if choice == "first" else (candidates,)
    return messages.ReserveItem(
        partition, epoch, entry_id, job_id, session, tenant, reply_to, POOL, groups if candidates else (), **rest
    )


async def reserve(
    store: Store,
    items: Sequence[messages.ReserveItem],
    boots: dict[str, str] | None = None,
    *,
    pool: Pool | None = None,
) -> list[messages.Reserved | messages.Refused]:
    """Reserve with every candidate at its first boot unless `boots` says otherwise."""
    named = {node: BOOT for item in items for group in item.candidates for node in group}
    named |= {node: BOOT for item in items for node in (item.bound, item.preferred) if node} | (boots or {})
    return await store.cell.reserve(items, named, {POOL: pool or Pool(POOL)}, 1)


def release_item(
    token: int,
    verdict: Verdict,
    job_id: str = JOB,
    session: str = SESSION,
    *,
    node: str = NODE,
    partition: int = PARTITION,
    **rest: Any,
) -> messages.ReleaseItem:
    """One ending. rest: other fields of calls.ReleaseItem."""
    fields = {"tenant_id": "", "reply_to": ""} | rest
    return messages.ReleaseItem(
        job_id=job_id,
        node=node,
        partition=partition,
        session_id=session,
        token=token,
        verdict=verdict,
        **fields,
    )


async def release(store: Store, *items: messages.ReleaseItem) -> list[messages.Released | messages.NotReleased]:
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
) -> messages.RejectItem:
    """One entry to refuse."""
    return messages.RejectItem(partition, epoch, entry_id, job_id, session, "", reply_to, reason, detail)


async def reject(store: Store, *items: messages.RejectItem) -> list[str]:
    """Refuse entries."""
    return await store.cell.reject(items, RETENTION_MS, DEAD_RETENTION_MS)


async def promote(store: Store, job_id: str = JOB, *, partition: int = PARTITION, reply_to: str = "") -> str:
    """Send one delayed job back to the intake if it is due."""
    (answer,) = await store.cell.promote([(job_id, partition, reply_to)], RETENTION_MS)
    return answer
