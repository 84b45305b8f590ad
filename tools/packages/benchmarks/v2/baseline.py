"""The dispatch path of v2.0 on this project's server and client: one request at a time, from the intake into an inbox.

What it does for each job, and the section that says so:

- it takes the management lock for writing, and keeps it over everything that follows, Redis calls too (section 1.1.1);
- it decides the pool anew (section 3.2) and reads the members of the pool from Redis (section 3.1, step 4; section
  4.2.1: a cache of them was defined and never used);
- it scans all of them for the least loaded node that serves the job (section 3.1, step 4);
- it reserves a slot there for a time: one round trip (`try_reserve`, section 3.1, step 4);
- it inserts the job under the write lock of the job table, and hands it to the node: one round trip (section 3.1, step
  5; section 3.2: `jobs.write()`);
- it remembers the session's last node in a map of the process (section 1.1.1); spreading by it is off (section 4.2.2).

It is written as well as that allows: decoding happens outside of the lock, what one step writes goes in one pipeline
without a transaction, the registry is in memory, and there are as many connections as requests. Heartbeats, which took
the same lock for writing, are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final, NamedTuple

from redis.asyncio import Redis

from benchmarks.v2.registry import Entry, Registry
from benchmarks.v2.rows import Row
from scheduler.protocol.documents import JobDocument, decode_job
from scheduler.protocol.snapshot import Snapshot
from scheduler.store.connection import Client
from scheduler.store.connection_pool import Pool
from scheduler.store.reads import READ_BLOCK_MS
from scheduler.store.store import Store

RESERVATION_MS: Final = 15_000
CACHED_S: Final = 1.0
"""How old remembered members of a pool may be."""
CONNECTIONS_MAX: Final = 1_000
SCRIPT: Final = Path(__file__).with_name("try_reserve.lua")
_Lock = asyncio.Lock | contextlib.nullcontext[None]


class Request(NamedTuple):
    """One entry of the intake."""

    stream: str
    entry_id: str
    fields: dict[bytes, bytes]


class Baseline:
    """The scheduler of v2.0. `open` first; then `run` until it is cancelled, or `dispatch` request by request; `close`.

    Args: store; snapshot, of the fleet; row, which of its locks and caches it has; reservation_ms, how long a slot
    stays reserved without a sign of the node.
    """

    def __init__(self, store: Store, snapshot: Snapshot, row: Row, reservation_ms: int = RESERVATION_MS) -> None:
        self.registry = Registry(snapshot)
        self._store = store
        self._keys = store.cell.keys
        self._cached = row.cached
        self._reservation_ms = reservation_ms
        self._management_lock: _Lock = asyncio.Lock() if row.locked else contextlib.nullcontext()
        self._jobs_lock: _Lock = asyncio.Lock() if row.locked else contextlib.nullcontext()
        self._members: dict[str, tuple[Collection[bytes], float]] = {}
        self._last_node_by_session: dict[str, str] = {}
        self._client: Client = Redis.from_pool(
            Pool.from_url(store.connection.url.whole, max_connections=CONNECTIONS_MAX, protocol=2)
        )
        self._script_sha = ""

    async def open(self) -> None:
        """Load the script, and write the members of all pools, as the management domain does (section 2.1)."""
        self._script_sha = await self._client.script_load(SCRIPT.read_text(encoding="utf-8"))
        for pool, names in self.registry.members().items():
            await self._client.sadd(self._pool_key(pool), *names)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def run(self) -> None:
        """Dispatch what comes into the intake, each entry in a task of its own. Ends with the first error."""
        settings = self._store.settings
        cursors = {self._keys.jobs(partition): "0" for partition in range(settings.partitions)}
        count = max(1, settings.read_ahead_max // len(cursors))
        async with asyncio.TaskGroup() as requests:
            while True:
                for stream, entries in (await self._store.reads.streams(cursors, count, READ_BLOCK_MS)).items():
                    cursors[stream] = entries[-1][0]
                    for entry_id, fields in entries:
                        requests.create_task(self.dispatch(Request(stream, entry_id, fields)))

    async def dispatch(self, request: Request) -> str | None:
        """Dispatch one request. Returns: the node, None when no node has room."""
        job = decode_job(request.fields[b"job"])
        async with self._management_lock:
            for pool in self.registry.pools_for(job):
                members = await self._members_of(pool)
                while (node := self.registry.choose(members, job)) is not None:
                    if await self._try_reserve(node, job):
                        await self._insert(node, job, request)
                        return node.name
        return None

    async def _members_of(self, pool: str) -> Collection[bytes]:
        """Section 3.1, step 4: from Redis, for each job. Cached: the `PoolMembersCache` of section 4.2.1."""
        if self._cached:
            remembered, until_s = self._members.get(pool, ((), 0.0))
            if time.monotonic() < until_s:
                return remembered
        members: set[bytes] = await self._client.smembers(self._pool_key(pool))
        if self._cached:
            self._members[pool] = (members, time.monotonic() + CACHED_S)
        return members

    async def _try_reserve(self, node: Entry, job: JobDocument) -> bool:
        """Section 3.1, step 4: `redis.try_reserve()`. The slot counts from before the call, so that without the lock
        others choose other nodes meanwhile.
        """
        node.take()
        word, used = await self._client.execute_command(
            "EVALSHA", self._script_sha, 1, self._keys.slots(node.name), job.job_id, node.slots, self._reservation_ms
        )
        if word == b"full":
            node.correct(used)
        return bool(word == b"reserved")

    async def _insert(self, node: Entry, job: JobDocument, request: Request) -> None:
        """Section 3.1, step 5: the record, the hand-over, and the entry's end, in one round trip."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.execute_command(
            "HSET", self._keys.job(job.job_id), "state", "reserved", "entry", request.entry_id,
            "session", job.session_id, "tenant", job.tenant_id, "reply_to", job.reply_to, "node", node.name,
            "pool", node.pool, "lease_ms", self._reservation_ms,
        )  # fmt: skip
        pipeline.execute_command(
            "XADD", self._keys.inbox(node.name), "*", "job", request.fields[b"job"],
            "payload", request.fields.get(b"payload", b""), "job_id", job.job_id, "session", job.session_id,
            "tenant", job.tenant_id, "reply_to", job.reply_to, "lease_ms", self._reservation_ms,
        )  # fmt: skip
        pipeline.execute_command("XDEL", request.stream, request.entry_id)
        async with self._jobs_lock:
            await pipeline.execute()
            self._last_node_by_session[job.session_id] = node.name

    def _pool_key(self, pool: str) -> str:
        return f"{{{self._store.settings.namespace}:{self._keys.cell}}}:v2:pool:{pool}"
