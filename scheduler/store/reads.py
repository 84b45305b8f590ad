"""Plain reads of one cell: streams, records, bindings. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from scheduler import calls, keys, model, words
from scheduler.store.connection import Argument, Client, Connection, ask, keeping_cancellation

READ_BLOCK_MS: Final = 250


StreamEntry = tuple[str, dict[bytes, bytes]]


class Lease(NamedTuple):
    """What is known of a reservation. until_ms: the end of its lease, None when its node has no slot for it."""

    holder: words.Holder | None
    until_ms: int | None
    started_ms: int | None
    policy: words.Policy


class Reads:
    """Reads of one cell over the connection for commands, and over one of its own where a read blocks."""

    def __init__(self, connection: Connection, cell_keys: keys.CellKeys) -> None:
        self.keys = cell_keys
        self._connection = connection
        self._blocking: Client | None = None

    async def close(self) -> None:
        """Close the connection for reads that block; the next such read opens another."""
        if self._blocking is not None:
            client, self._blocking = self._blocking, None
            await self._connection.close_client(client)

    async def streams(
        self, cursors: Mapping[str, str], count: int, block_ms: int | None = READ_BLOCK_MS
    ) -> dict[str, list[StreamEntry]]:
        """XREAD: what came after each cursor; blocks until something did, at most `block_ms` (None: not at all).

        Args: cursors, stream -> last id seen; count, entries of *each* stream.
        """
        if block_ms is None:
            client = self._connection.commands
        else:
            if self._blocking is None:
                self._blocking = self._connection.blocking(READ_BLOCK_MS)
            client = self._blocking

        block = () if block_ms is None else ("BLOCK", block_ms)
        command = ("XREAD", "COUNT", count, *block, "STREAMS", *cursors, *cursors.values())

        def read() -> Any:
            return ask(client, *command)

        reply = await (keeping_cancellation(read()) if block_ms is not None else self._connection.patiently(read))
        return {
            stream.decode(): [(identifier.decode(), _pairs(fields)) for identifier, fields in entries if fields]
            for stream, entries in reply or ()
        }

    async def bindings(self, session_ids: Sequence[str]) -> list[bytes | None]:
        """The stored binding of each session."""
        names = [self.keys.session(session_id) for session_id in session_ids]
        return list(await self._command(lambda client: client.mget(names)))

    async def are_open(self, nodes: Sequence[str]) -> list[bool]:
        """Which of the nodes have room, in one question."""
        return [
            bool(flag) for flag in await self._command(lambda client: client.smismember(self.keys.open, list(nodes)))
        ]

    async def held_sizes(self, limits: Sequence[str]) -> list[int]:
        """How many jobs count against each limit (`<kind>:<id>`), in one round trip."""
        names = [limit.partition(":") for limit in limits]
        sizes = await self._connection.all_of([("SCARD", self.keys.held(kind, name)) for kind, _, name in names])
        return [int(size) for size in sizes]

    async def rest_of(self, stream: str, since: str, after: str, count: int) -> tuple[list[StreamEntry], bool]:
        """At most `count` entries after `after`, and whether all that came since `since` is still there."""
        rows, first = await self._connection.all_of(
            [("XRANGE", stream, f"({after}", "+", "COUNT", count), ("XRANGE", stream, since, since)]
        )
        return [(identifier.decode(), fields) for identifier, fields in rows], bool(first)

    async def record(self, job_id: str) -> dict[str, str]:
        """The job record, empty when there is none; words of `holder`, `assignment`, `last_ending` are fields too."""
        return words.split_words(_text(await self._command(lambda client: client.hgetall(self.keys.job(job_id)))))

    async def records(self, job_ids: Sequence[str], fields: Sequence[str]) -> list[list[str | None]]:
        """Some fields of several records, in one round trip."""
        rows = await self._connection.all_of([("HMGET", self.keys.job(job_id), *fields) for job_id in job_ids])
        return [[_readable(value) for value in row] for row in rows]

    async def leases(self, node: str, job_ids: Sequence[str]) -> list[Lease]:
        """What is known of each job's reservation on that node.

        The end of a lease is read after the record that says whose it is: if that is another one's by then, whatever is
        done by the token of the record is `stale`.
        """
        commands = [("HMGET", self.keys.job(job_id), "holder", "started_ms", "policy") for job_id in job_ids]
        ends = ("ZMSCORE", self.keys.slots(node), *job_ids)
        *rows, scores = await self._connection.all_of([*commands, ends])
        leases = []
        for score, row in zip(scores, rows, strict=True):
            holder, started_ms, policy = (_readable(value) for value in row)
            leases.append(
                Lease(
                    words.parse_holder(holder),
                    None if score is None else int(score),
                    words.number_of(started_ms),
                    words.policy_of(policy),
                )
            )
        return leases

    async def result(self, job_id: str) -> bytes | None:
        """What the handler returned, None when there is nothing (any more)."""
        result: bytes | None = await self._command(lambda client: client.get(self.keys.result(job_id)))
        return result

    async def outcome(self, job_id: str) -> calls.Outcome | None:
        """How a job ended, from its record and its result; None while it has not ended, or when nothing is known of
        it.
        """
        record = await self.record(job_id)
        if record.get("state") not in model.TERMINAL:
            return None
        number = words.number_of
        detail = ""
        if dead_id := words.entry_id_of(record.get("dead_id")):
            buried = await self.entries(self.keys.dead, dead_id, dead_id, 1)
            detail = buried[0][1].get(b"detail", b"").decode(errors="replace") if buried else ""
        return calls.Outcome(
            job_id=job_id,
            session_id=record.get("session", ""),
            life=number(record.get("life")) or 1,
            state=record["state"],
            reason=record.get("reason", ""),
            detail=detail,
            node=record.get("node", ""),
            token=number(record.get("token")) or 0,
            attempts=number(record.get("attempts")) or 0,
            entry=record.get("entry", ""),
            submitted_ms=number(record.get("submitted_ms")) or 0,
            ended_ms=number(record.get("ended_ms")) or 0,
            content_type=record.get("content_type", ""),
            result=await self.result(job_id),
        )

    async def capacities(self) -> dict[str, calls.CapacityItem]:
        """Every node's slots, boot and reason as the scripts see them."""
        stored = _text(await self._command(lambda client: client.hgetall(self.keys.capacity)))
        items = {}
        for node, value in stored.items():
            slots, _, rest = value.partition(" ")
            boot, _, reason = rest.partition(" ")
            if not slots.isdigit():
                continue  # not written by us: no script takes it for a capacity either
            items[node] = calls.CapacityItem(node, int(slots), boot, reason)  # type: ignore[arg-type]
        return items

    async def used(self, nodes: Sequence[str]) -> list[int]:
        """Slots in use on each node."""
        counts = await self._connection.all_of([("ZCARD", self.keys.slots(node)) for node in nodes])
        return [int(count) for count in counts]

    async def reservations(self, node: str, until_ms: int | None = None, count: int = 1_000) -> list[tuple[str, int]]:
        """(job_id, lease deadline) of a node, earliest first; only those that end by `until_ms` if it is given."""
        latest = "+inf" if until_ms is None else until_ms
        rows = await self._command(
            lambda client: client.zrangebyscore(self.keys.slots(node), "-inf", latest, 0, count, withscores=True)
        )
        return [(member.decode(), int(score)) for member, score in rows]

    async def lapsed(self, nodes: Sequence[str], now_ms: int, count: int) -> list[tuple[str, str]]:
        """(job_id, node) of the reservations of these nodes whose lease has ended, at most `count` a node."""
        rows = await self._connection.all_of(
            [("ZRANGEBYSCORE", self.keys.slots(node), "-inf", now_ms, "LIMIT", 0, count) for node in nodes]
        )
        return [(member.decode(), node) for node, members in zip(nodes, rows, strict=True) for member in members]

    async def held(self, nodes: Sequence[str], count: int) -> list[tuple[str, str, int]]:
        """(job_id, node, lease deadline) of the reservations of these nodes, at most `count` a node."""
        rows = await self._connection.all_of(
            [("ZRANGE", self.keys.slots(node), 0, count - 1, "WITHSCORES") for node in nodes]
        )
        return [
            (member.decode(), node, int(score))
            for node, members in zip(nodes, rows, strict=True)
            for member, score in zip(members[::2], members[1::2], strict=True)
        ]

    async def due_ms(self, job_id: str) -> int | None:
        """When a delayed job is due, None when it is not delayed."""
        score = await self._command(lambda client: client.zscore(self.keys.delayed, job_id))
        return None if score is None else int(score)

    async def delayed(self) -> int:
        """How many jobs are delayed."""
        return int(await self._command(lambda client: client.zcard(self.keys.delayed)))

    async def due(self, now_ms: int, count: int) -> list[str]:
        """Delayed jobs whose time has come."""
        members = await self._command(lambda client: client.zrangebyscore(self.keys.delayed, "-inf", now_ms, 0, count))
        return [member.decode() for member in members]

    async def length(self, stream: str) -> int:
        """Entries of a stream."""
        return int(await self._command(lambda client: client.xlen(stream)))

    async def lengths(self, streams: Sequence[str]) -> list[int]:
        """Entries of each stream, in one round trip."""
        return [int(count) for count in await self._connection.all_of([("XLEN", stream) for stream in streams])]

    async def backlogs(self, partitions: Iterable[int]) -> list[tuple[int, str]]:
        """(entries, id of the oldest one or "") of each partition's intake, in one round trip."""
        commands: list[Sequence[Argument]] = []
        for partition in partitions:
            jobs = self.keys.jobs(partition)
            commands += [("XLEN", jobs), ("XRANGE", jobs, "-", "+", "COUNT", 1)]
        answers = await self._connection.all_of(commands)
        return [
            (int(length), oldest[0][0].decode() if oldest else "")
            for length, oldest in zip(answers[::2], answers[1::2], strict=True)
        ]

    async def last_id(self, stream: str) -> str:
        """The id of the newest entry, "0" when there is none."""
        entries = await self._command(lambda client: client.xrevrange(stream, count=1))
        return entries[0][0].decode() if entries else "0"

    async def entries(self, stream: str, start: str = "-", end: str = "+", count: int = 100) -> list[StreamEntry]:
        """A range of a stream."""
        rows = await self._command(lambda client: client.xrange(stream, start, end, count))
        return [(identifier.decode(), fields) for identifier, fields in rows]

    async def newest(self, stream: str, before: str = "+", count: int = 100) -> list[StreamEntry]:
        """The newest entries of a stream, the newest first. before: `(<id>`, to go on from the last one of them."""
        rows = await self._command(lambda client: client.xrevrange(stream, before, "-", count))
        return [(identifier.decode(), fields) for identifier, fields in rows]

    async def owners(self) -> dict[int, tuple[int, str, int]]:
        """partition -> (epoch, owner or "-", until_ms)."""
        stored = _text(await self._command(lambda client: client.hgetall(self.keys.owners)))
        held = {}
        for partition, value in stored.items():
            epoch, owner, until_ms = value.split(" ")
            held[int(partition)] = (int(epoch), owner, int(until_ms))
        return held

    async def _command(self, run: Any) -> Any:
        return await self._connection.patiently(lambda: run(self._connection.commands))


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Fields and values, which a reply has in turns."""
    turns = iter(flat)
    return dict(zip(turns, turns))  # noqa: B905 (`strict` would be a third of this)


def parse_outcome(fields: Mapping[bytes, bytes]) -> calls.Outcome:
    """An outcome from an entry of a results stream."""

    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    def number(name: bytes) -> int:
        value = fields.get(name, b"")
        return int(value) if value.isdigit() else 0

    return calls.Outcome(
        job_id=text(b"job_id"),
        session_id=text(b"session"),
        life=number(b"life") or 1,
        state=text(b"state"),
        reason=text(b"reason"),
        detail=text(b"detail"),
        node=text(b"node"),
        token=number(b"token"),
        attempts=number(b"attempts"),
        entry=text(b"entry"),
        submitted_ms=number(b"submitted_ms"),
        ended_ms=number(b"ended_ms"),
        content_type=text(b"content_type"),
        result=fields.get(b"result"),
    )


def _text(stored: dict[bytes, bytes]) -> dict[str, str]:
    return {field.decode(errors="replace"): value.decode(errors="replace") for field, value in stored.items()}


def _readable(value: bytes | None) -> str | None:
    """A field of a record. Bytes that no script has written are no reason to stop: the others of a batch come too."""
    return None if value is None else value.decode(errors="replace")
