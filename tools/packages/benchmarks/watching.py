"""Jobs on their way from the intake into an inbox, seen from outside: a fleet, what is sent, and what appears where.

The server itself tells of every entry in an inbox (keyspace notifications), whoever wrote it. An XREAD over a thousand
inboxes would cost the server more than most designs do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import ConnectionPool

from benchmarks.fleet import Member, register
from scheduler.config import Settings
from scheduler.loop import end_tasks
from scheduler.protocol.documents import decode_job
from scheduler.store.cleanup import remove_namespace
from scheduler.store.store import Store, open_store

NOTIFY: Final = "notify-keyspace-events"
_STREAM_EVENTS: Final = "Kt"
_READ_AT_ONCE: Final = 100


class Sending(NamedTuple):
    """A job to send: the intake stream, and its document."""

    stream: str
    document: bytes


@contextlib.asynccontextmanager
async def fleet(url: str, settings: Settings, members: Sequence[Member]) -> AsyncIterator[Store]:
    """A registered fleet without a job; nothing is left of it afterwards. Raises: BenchmarkFailed."""
    async with await open_store(url, settings) as store:
        try:
            await store.control.write_layout()
            await register(store, settings, members)
            yield store
        finally:
            await remove_namespace(store)


@contextlib.asynccontextmanager
async def watching(store: Store, appeared: Callable[[str], None]) -> AsyncIterator[None]:
    """Let the server tell of every entry in an inbox; its configuration is put back afterwards. appeared: is told the
    inbox.
    """
    before = (await store.connection.commands.config_get(NOTIFY))[NOTIFY]
    pool: Any = ConnectionPool.from_url(
        store.connection.url.whole, protocol=2, socket_timeout=None
    )  # silence is no failure
    connection = await pool.get_connection()
    inboxes = store.reads.keys.inbox("")

    async def listen() -> None:
        while True:
            _, _, channel, event = await connection.read_response()
            if event == b"xadd":
                appeared(channel.partition(b"__:")[2].decode())

    await connection.send_command("PSUBSCRIBE", f"__keyspace@*__:{inboxes}*")
    await connection.read_response()
    await store.connection.commands.config_set(NOTIFY, before + _STREAM_EVENTS)
    listening = asyncio.create_task(listen())
    try:
        yield
        if listening.done():
            listening.result()
    finally:
        await end_tasks([listening])
        await store.connection.commands.config_set(NOTIFY, before)
        await pool.disconnect()


async def job_ids_in(store: Store, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """The ids of the jobs in each inbox, in their order. Words to the node are none."""
    found: dict[str, list[str]] = {}
    for start in range(0, len(names), _READ_AT_ONCE):
        some = names[start : start + _READ_AT_ONCE]
        pipeline = store.connection.commands.pipeline(transaction=False)
        for name in some:
            pipeline.xrange(name)
        for name, entries in zip(some, await pipeline.execute(), strict=True):
            found[name] = [_job_id(fields) for _, fields in entries if b"job" in fields]
    return found


def _job_id(fields: Mapping[bytes, bytes]) -> str:
    """Of an entry in an inbox; the relay hands on nothing but the document and the payload."""
    job_id = fields.get(b"job_id")
    return job_id.decode() if job_id is not None else decode_job(fields[b"job"]).job_id
