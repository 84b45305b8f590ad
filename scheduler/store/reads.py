"""Plain reads of one cell: streams, records, bindings. Nothing here writes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from scheduler.errors import WrongType
from scheduler.protocol import keys, messages, record_fields
from scheduler.protocol.lifecycle import TERMINAL
from scheduler.store.connection import Argument, Client, Connection, ask, keeping_cancellation
from scheduler.store.fast_connection import Cap
from scheduler.texts import DETAIL_LENGTH_MAX, cut_middle

READ_BLOCK_MS: Final = 250
DIGITS_MAX: Final = 18  # of a number that a script has written; Python reads none of thousands
TIME_MS_MAX: Final = 2.0**52
DUE_ALIKE_MAX: Final = 1_000  # jobs that are due at the same millisecond and are put into order
LAST_PLACE: Final = (2**64, 0)  # after every entry


_OWNED: Final = re.compile(r"(\d+) (\S+) (\d+)", re.ASCII)

StreamEntry = tuple[str, dict[bytes, bytes]]


class Lease(NamedTuple):
    """What is known of a reservation. until_ms: the end of its lease, None when its node has no slot for it."""

    holder: record_fields.Holder | None
    until_ms: int | None
    started_ms: int | None
    policy: record_fields.Policy


class Unslotted(NamedTuple):
    """An assignment without a slot. entry_id: in the inbox."""

    entry_id: str
    job_id: str
    session_id: str
    tenant_id: str
    token: int


class Part(NamedTuple):
    """What was read of a stream. heads: of entries without their bodies. last_id: of all these, empty for none. is_end:
    whether nothing came after it.
    """

    entries: list[StreamEntry]
    heads: list[messages.Head]
    last_id: str
    is_end: bool


class Reads:
    """Reads of one cell over the connection for commands, and over one of its own where a read blocks."""

    def __init__(self, connection: Connection, cell_keys: keys.CellKeys) -> None:
        self.keys = cell_keys
        self._connection = connection
        self._blocking: Client | None = None
        self._series = connection.series()

    async def close(self) -> None:
        """Close the connection for reads that block; the next such read opens another."""
        self._series.close()
        if self._blocking is not None:
            client, self._blocking = self._blocking, None
            await self._connection.close_client(client)

    def _client(self, is_blocking: bool) -> Client:
        """For reads that block one of their own, so that commands need not wait for them."""
        if not is_blocking:
            return self._connection.commands
        if self._blocking is None:
            self._blocking = self._connection.blocking(READ_BLOCK_MS)
        return self._blocking

    async def streams(
        self, cursors: Mapping[str, str], count: int, block_ms: int | None = READ_BLOCK_MS, cap: Cap | None = None
    ) -> dict[str, list[StreamEntry]]:
        """XREAD: what came after each cursor; blocks until something did, at most `block_ms` (None: not at all).

        Args: cursors, stream -> last id seen; count, entries of *each* stream; cap, of the reply. Raises: TooSlow.
        """
        client = self._client(block_ms is not None)
        block = () if block_ms is None else ("BLOCK", block_ms)
        command = ("XREAD", "COUNT", count, *block, "STREAMS", *cursors, *cursors.values())

        def read() -> Any:
            return ask(client, *command, cap=cap)

        if block_ms is None:
            connection = self._connection
            reply = await connection.explaining(lambda: connection.patiently(read), list(cursors))
        else:
            reply = await self._series.run(keeping_cancellation(read()), block_ms)
        return {
            stream.decode(): [(identifier.decode(), _pairs(fields)) for identifier, fields in entries if fields]
            for stream, entries in reply or ()
        }

    async def now_ms(self) -> int:
        """The server's time."""
        seconds, microseconds = await self._command(lambda client: client.time())
        return int(seconds) * 1_000 + int(microseconds) // 1_000

    async def slots_after(
        self, nodes: Sequence[str], after_ms: int, start: int, count: int
    ) -> list[tuple[str, str, int]]:
        """(job_id, node, lease deadline) of leases that end later, of each node `count` from the `start`-th."""
        rows = await self._connection.all_of(
            [
                ("ZRANGEBYSCORE", self.keys.slots(node), f"({after_ms}", "+inf", "WITHSCORES", "LIMIT", start, count)
                for node in nodes
            ]
        )
        return [
            (member.decode(), node, time_of(score))
            for node, members in zip(nodes, rows, strict=True)
            for member, score in zip(members[::2], members[1::2], strict=True)
        ]

    async def delayed_after(self, after_ms: int, start: int, count: int) -> list[tuple[str, int]]:
        """(job_id, due time) of delayed jobs that are due later, the latest first, from the `start`-th."""
        rows = await self._command(
            lambda client: client.zrevrangebyscore(
                self.keys.delayed, "+inf", f"({after_ms}", start, count, withscores=True
            )
        )
        return [(member.decode(), time_of(score)) for member, score in rows]

    async def by_bytes(
        self,
        cursors: Mapping[str, str],
        count: int,
        bytes_max: int,
        parts_max: tuple[int, int, int],
        with_heads: bool,
        is_blocking: bool,
    ) -> dict[str, Part]:
        """What came after each cursor, as much of it as has `bytes_max` in all, and one entry at least; one try.

        Args: cursors and count, as of `streams`; parts_max, bytes of document, payload and all else, above which only
        the head of an entry is read; with_heads, read the heads of those that do not fit, in place of their bodies;
        is_blocking, for somebody who else would read so.
        Raises: the errors of redis-py.
        """
        arguments: list[Argument] = [count, bytes_max, *parts_max, "heads" if with_heads else "stop", *cursors.values()]
        client = self._client(is_blocking)
        once = keeping_cancellation(self._connection.call_once(client, "read", list(cursors), arguments))
        answer = await (self._series.run(once, 0) if is_blocking else once)
        return {stream: _part(found) for stream, found in zip(cursors, answer, strict=True)}

    async def bindings(self, session_ids: Sequence[str]) -> list[bytes | None]:
        """The stored binding of each session."""
        names = [self.keys.session(session_id) for session_id in session_ids]
        return list(await self._command(lambda client: client.mget(names)))

    async def are_open(self, nodes: Sequence[str]) -> list[bool]:
        """Which of the nodes have room, in one question."""
        return [
            bool(flag) for flag in await self._command(lambda client: client.smismember(self.keys.open, list(nodes)))
        ]

    async def held_sizes(self, limits: Sequence[str]) -> list[tuple[int, int]]:
        """How many jobs count against each limit (`<kind>:<id>`), and the smallest limit of the pools of these jobs, 0
        for none; in one round trip.
        """
        commands: list[Sequence[Argument]] = []
        for kind, _, name in [limit.partition(":") for limit in limits]:
            held = self.keys.held(kind, name)
            commands += [("ZCARD", held), ("ZRANGEBYSCORE", held, "(0", "+inf", "WITHSCORES", "LIMIT", 0, 1)]
        rows = await self._connection.all_of(commands)
        return [
            (int(size), int(float(least[1])) if least else 0) for size, least in zip(rows[::2], rows[1::2], strict=True)
        ]

    async def some_held(self, limits: Sequence[str], count: int) -> list[list[str]]:
        """Some of the jobs that count for each limit (`<kind>:<id>`), at most `count` of each, others each time."""
        names = [limit.partition(":") for limit in limits]
        rows = await self._connection.all_of(
            [("ZRANDMEMBER", self.keys.held(kind, name), count) for kind, _, name in names]
        )
        return [[member.decode(errors="replace") for member in members] for members in rows]

    async def rest_of(self, stream: str, since: str, after: str, count: int) -> tuple[list[StreamEntry], bool]:
        """At most `count` entries after `after`, and whether all that came since `since` is still there."""
        rows, first = await self._connection.all_of(
            [("XRANGE", stream, _after(after), "+", "COUNT", count), ("XRANGE", stream, since, since)]
        )
        return [(identifier.decode(), fields) for identifier, fields in rows], bool(first)

    async def record(self, job_id: str) -> dict[str, str]:
        """The job record, empty when there is none; words of `holder`, `assignment`, `last_ending` are fields too."""
        return record_fields.split_words(
            _text(await self._command(lambda client: client.hgetall(self.keys.job(job_id))))
        )

    async def records(self, job_ids: Sequence[str], fields: Sequence[str]) -> list[list[str | None]]:
        """Some fields of several records, in one round trip."""
        rows = await self._rows([self.keys.job(job_id) for job_id in job_ids], fields)
        return [[_readable(value) for value in row] for row in rows]

    async def _rows(self, records: Sequence[str], fields: Sequence[str]) -> list[Sequence[bytes | None]]:
        """Some fields of records. What is of another type is none, and keeps no other from being read."""
        wrong: set[str] = set()
        while True:
            asked = [record for record in records if record not in wrong]
            try:
                rows = iter(await self._connection.all_of([("HMGET", record, *fields) for record in asked]))
                return [[None] * len(fields) if record in wrong else next(rows) for record in records]
            except WrongType as error:
                if wrong.issuperset(error.keys):
                    raise
                wrong.update(error.keys)

    async def leases(self, node: str, job_ids: Sequence[str]) -> list[Lease]:
        """What is known of each job's reservation on that node.

        The end of a lease is read after the record that says whose it is: if that is another one's by then, whatever is
        done by the token of the record is `stale`.
        """
        rows = await self._rows([self.keys.job(job_id) for job_id in job_ids], ("holder", "started_ms", "policy"))
        (scores,) = await self._connection.all_of([("ZMSCORE", self.keys.slots(node), *job_ids)])
        leases = []
        for score, row in zip(scores, rows, strict=True):
            holder, started_ms, policy = (_readable(value) for value in row)
            leases.append(
                Lease(
                    record_fields.parse_holder(holder),
                    None if score is None else time_of(score),
                    record_fields.number_of(started_ms),
                    record_fields.policy_of(policy),
                )
            )
        return leases

    async def result(self, job_id: str) -> bytes | None:
        """What the handler returned, None when there is nothing (any more)."""
        result: bytes | None = await self._command(lambda client: client.get(self.keys.result(job_id)))
        return result

    async def outcome(self, job_id: str) -> messages.Outcome | None:
        """How a job ended, from its record and its result; None while it has not ended, or when nothing is known of
        it.
        """
        return (await self.look_up(job_id))[1]

    async def look_up(self, job_id: str) -> tuple[bool, messages.Outcome | None]:
        """(Whether there is a record of a job; how it ended, None while it has not)."""
        record = await self.record(job_id)
        if record.get("state") not in TERMINAL:
            return bool(record), None
        return True, await self._ended(job_id, record)

    async def _ended(self, job_id: str, record: Mapping[str, str]) -> messages.Outcome:
        """What the record and the result of a job that has ended say."""
        number = record_fields.number_of
        detail = ""
        if dead_id := record_fields.entry_id_of(record.get("dead_id")):
            buried = await self.entries(self.keys.dead, dead_id, dead_id, 1)
            kept = buried[0][1].get(b"detail", b"").decode(errors="replace") if buried else ""
            detail = kept or await self.detail(job_id)
        result, content_type = await self.result(job_id), record.get("content_type", "")
        if record["state"] == "failed" and content_type.startswith("text/plain"):  # why is what it has for a result
            detail = cut_middle((result or b"").decode(errors="replace"), DETAIL_LENGTH_MAX)
        return messages.Outcome(
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
            content_type=content_type,
            result=result,
        )

    async def detail(self, job_id: str) -> str:
        """What is known of the last failed attempt of a job, empty when there was none, or it is not kept any more."""
        kept: bytes | None = await self._command(lambda client: client.get(self.keys.detail(job_id)))
        return (kept or b"").decode(errors="replace")

    async def capacities(self) -> dict[str, messages.CapacityItem]:
        """Every node's slots, boot and reason as the scripts see them."""
        stored = _text(await self._command(lambda client: client.hgetall(self.keys.capacity)))
        items = {}
        for node, value in stored.items():
            slots, _, rest = value.partition(" ")
            boot, _, reason = rest.partition(" ")
            number = record_fields.number_of(slots)
            if number is None:
                continue  # not written by us: no script takes it for a capacity either
            items[node] = messages.CapacityItem(node, number, boot, reason)  # type: ignore[arg-type]
        return items

    async def last_boot(self) -> int:
        """The highest boot that was given, 0 when there is none."""
        stored = await self._command(lambda client: client.get(self.keys.last_boot))
        return record_fields.number_of(_readable(stored)) or 0

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
        return [(member.decode(), time_of(score)) for member, score in rows]

    async def lapsed(self, nodes: Sequence[str], now_ms: int, count: int) -> list[tuple[str, str]]:
        """(job_id, node) of the reservations of these nodes whose lease has ended, at most `count` a node."""
        rows = await self._connection.all_of(
            [("ZRANGEBYSCORE", self.keys.slots(node), "-inf", now_ms, "LIMIT", 0, count) for node in nodes]
        )
        return [(member.decode(), node) for node, members in zip(nodes, rows, strict=True) for member in members]

    async def room(self, nodes: Sequence[str]) -> list[tuple[bool, int, int]]:
        """(whether it is in the set of open ones, slots in use, entries of its inbox) of each node, in one round trip;
        not all at one moment.
        """
        if not nodes:
            return []
        commands: list[Sequence[Argument]] = [("SMISMEMBER", self.keys.open, *nodes)]
        for node in nodes:
            commands += [("ZCARD", self.keys.slots(node)), ("XLEN", self.keys.inbox(node))]
        flags, *sizes = await self._connection.all_of(commands)
        return [
            (bool(flag), int(used), int(entries))
            for flag, used, entries in zip(flags, sizes[::2], sizes[1::2], strict=True)
        ]

    async def unslotted(self, node: str, after: str, count: int) -> tuple[list[Unslotted], str]:
        """Assignments of a page of the inbox that have no slot, and the id to go on from, empty after the last page."""
        answer = await self._connection.call(
            "unslotted", [self.keys.inbox(node), self.keys.slots(node)], [after, count]
        )
        words = [each.decode(errors="replace") for each in answer]
        rows = zip(words[1::5], words[2::5], words[3::5], words[4::5], words[5::5], strict=True)
        return [
            Unslotted(entry, job, session, tenant, int(token)) for entry, job, session, tenant, token in rows
        ], _next_page(words[0])

    async def parked(self, after: str, count: int) -> tuple[list[tuple[str, str]], str]:
        """(id, job_id) of a page of the parked bodies whose job is not known to be delayed, and the id to go on from,
        empty after the last page.
        """
        answer = await self._connection.call("parked", [self.keys.parked, self.keys.delayed], [after, count])
        words = [each.decode(errors="replace") for each in answer]
        return list(zip(words[1::2], words[2::2], strict=True)), _next_page(words[0])

    async def held(self, nodes: Sequence[str], count: int) -> list[tuple[str, str, int]]:
        """(job_id, node, lease deadline) of the reservations of these nodes, at most `count` a node."""
        rows = await self._connection.all_of(
            [("ZRANGE", self.keys.slots(node), 0, count - 1, "WITHSCORES") for node in nodes]
        )
        return [
            (member.decode(), node, time_of(score))
            for node, members in zip(nodes, rows, strict=True)
            for member, score in zip(members[::2], members[1::2], strict=True)
        ]

    async def reserved(self, nodes: Sequence[str], count: int) -> AsyncIterator[list[tuple[str, str]]]:
        """(job_id, node) of all reservations of these nodes, about `count` of a node at a time. Those that are there
        from the first to the last read are told, perhaps twice; those that come or go meanwhile may be.
        """
        cursors = dict.fromkeys(nodes, 0)
        while cursors:
            rows = await self._connection.all_of(
                [("ZSCAN", self.keys.slots(node), cursor, "COUNT", count) for node, cursor in cursors.items()]
            )
            yield [
                (member.decode(), node)
                for node, (_, members) in zip(cursors, rows, strict=True)
                for member, _ in members
            ]
            cursors = {node: int(cursor) for node, (cursor, _) in zip(cursors, rows, strict=True) if int(cursor)}

    async def counted(self) -> messages.Counted:
        """What the cell counts."""
        stored = await self._command(lambda client: client.get(self.keys.counted))
        return messages.parse_counted((stored or b"").decode(errors="replace"))

    async def due_ms(self, job_id: str) -> int | None:
        """When a delayed job is due, None when it is not delayed."""
        score = await self._command(lambda client: client.zscore(self.keys.delayed, job_id))
        return None if score is None else time_of(score)

    async def delayed(self) -> int:
        """How many jobs are delayed."""
        return int(await self._command(lambda client: client.zcard(self.keys.delayed)))

    async def due(self, now_ms: int, count: int) -> list[str]:
        """Delayed jobs whose time has come, at most `count`: of those that are due at the same time, the first ones by
        their first intake entries. `promote` brings these into their order.
        """
        rows = await self._due("-inf", now_ms, count)
        if len(rows) < count:
            return [job_id for job_id, _ in rows]
        last_ms = rows[-1][1]
        equal = [job_id for job_id, _ in await self._due(last_ms, last_ms, DUE_ALIKE_MAX)]
        ids = await self.records(equal, ("first_id", "entry"))
        places = {job_id: _place(first_id, entry) for job_id, (first_id, entry) in zip(equal, ids, strict=True)}
        earlier = [job_id for job_id, due_ms in rows if due_ms < last_ms]
        return [*earlier, *sorted(equal, key=places.__getitem__)][:count]

    async def _due(self, least_ms: float | str, most_ms: float, count: int) -> list[tuple[str, float]]:
        rows = await self._command(
            lambda client: client.zrangebyscore(self.keys.delayed, least_ms, most_ms, 0, count, withscores=True)
        )
        return [(member.decode(), score) for member, score in rows]

    async def length(self, stream: str) -> int:
        """Entries of a stream."""
        return int(await self._command(lambda client: client.xlen(stream)))

    async def lengths(self, streams: Sequence[str]) -> list[int]:
        """Entries of each stream, in one round trip."""
        return [int(count) for count in await self._connection.all_of([("XLEN", stream) for stream in streams])]

    async def backlogs(self, partitions: Iterable[int]) -> list[tuple[int, str]]:
        """(entries, id of the oldest one or "") of each partition's intake; no body is read."""
        streams = [self.keys.jobs(partition) for partition in partitions]
        lengths = await self.lengths(streams)
        filled = [stream for stream, length in zip(streams, lengths, strict=True) if length]
        oldest = dict(zip(filled, await asyncio.gather(*[self._oldest_id(stream) for stream in filled]), strict=True))
        return [(length, oldest.get(stream, "")) for stream, length in zip(streams, lengths, strict=True)]

    async def _oldest_id(self, stream: str) -> str:
        return (await self.heads(stream, "0", 1)).last_id

    async def heads(self, stream: str, cursor: str, count: int) -> Part:
        """The heads of what comes after a cursor; no body is read."""
        read = self._connection.patiently(lambda: self.by_bytes({stream: cursor}, count, 0, (0, 0, 0), True, False))
        return (await read)[stream]

    async def last_id(self, stream: str) -> str:
        """The id of the newest entry, "0" when there is none."""
        entries = await self._command(lambda client: client.xrevrange(stream, count=1))
        return entries[0][0].decode() if entries else "0"

    async def last_ids(self, streams: Sequence[str]) -> list[str]:
        """The highest id that each stream has ever had, empty for one that is not there."""
        return [each.decode() for each in await self._connection.call("last_ids", streams, [])]

    async def why_behind(self, cursor: str) -> str:
        """Why a stream may end before a cursor, for people."""
        if keys.is_absurd(cursor, await self.now_ms()):
            return "it had an id that no clock gives, and was made anew"
        return "the server has lost writes, or the key was deleted"

    async def entries(self, stream: str, start: str = "-", end: str = "+", count: int = 100) -> list[StreamEntry]:
        """A range of a stream."""
        rows = await self._command(lambda client: client.xrange(stream, start, end, count))
        return [(identifier.decode(), fields) for identifier, fields in rows]

    async def by_id(self, stream: str, ids: Sequence[str]) -> dict[str, dict[bytes, bytes]]:
        """The entries of these ids that are there, in one round trip."""
        rows = await self._connection.all_of([("XRANGE", stream, each, each) for each in ids])
        return {each: dict(found[0][1]) for each, found in zip(ids, rows, strict=True) if found}

    async def newest(self, stream: str, before: str = "+", count: int = 100) -> list[StreamEntry]:
        """The newest entries of a stream, the newest first. before: `(<id>`, to go on from the last one of them."""
        rows = await self._command(lambda client: client.xrevrange(stream, before, "-", count))
        return [(identifier.decode(), fields) for identifier, fields in rows]

    async def owners(self) -> dict[int, tuple[int, str, int]]:
        """partition -> (epoch, owner or "-", until_ms)."""
        stored = _text(await self._command(lambda client: client.hgetall(self.keys.owners)))
        held = {}
        for partition, value in stored.items():
            numbers = _OWNED.match(value)
            if numbers and partition.isascii() and partition.isdigit():  # else no script takes it for a hold either
                held[int(partition)] = (int(numbers[1]), numbers[2], int(numbers[3]))
        return held

    async def _command(self, run: Any) -> Any:
        connection = self._connection
        return await connection.explaining(lambda: connection.patiently(lambda: run(connection.commands)))


def _after(identifier: str) -> str:
    """From where a range begins that leaves this entry out. After the highest id the server allows none, so that one
    is not left out.
    """
    return identifier if identifier == keys.HIGHEST_ID else f"({identifier}"


def _next_page(last_id: str) -> str:
    """The id to go on from, empty after the last page: the server allows no range after the highest id."""
    return "" if last_id == keys.HIGHEST_ID else last_id


def is_behind(last_id: str, cursor: str) -> bool:
    """Whether a stream has not come as far as somebody has read it: it is not the one that was read.

    Args: last_id, as of `Reads.last_ids`, not asked for before the cursor was as it is; cursor, id of an entry, or 0.
    """
    return position(last_id or "0") < position(cursor)


def position(entry: str) -> tuple[int, int]:
    """Where an entry stands in its stream."""
    first, _, second = entry.partition("-")
    return int(first), int(second or 0)


def _place(first_id: str | None, entry: str | None) -> tuple[int, int]:
    """Where the first intake entry of a job stands; what no script has written comes last."""
    try:
        return position(first_id or (entry or "").partition("/")[2])
    except ValueError:
        return LAST_PLACE


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Fields and values, which a reply has in turns."""
    turns = iter(flat)
    return dict(zip(turns, turns))  # noqa: B905 (`strict` would be a third of this)


def _part(found: Sequence[Any]) -> Part:
    """One stream of an answer of `read`."""
    entries: list[StreamEntry] = []
    heads: list[messages.Head] = []
    for identifier, fields, *sizes in found[1:]:
        if sizes:
            heads.append(messages.Head(identifier.decode(), _pairs(fields), *sizes))
        else:
            entries.append((identifier.decode(), _pairs(fields)))
    return Part(entries, heads, found[-1][0].decode() if len(found) > 1 else "", found[0] == b"end")


def parse_outcome(fields: Mapping[bytes, bytes]) -> messages.Outcome:
    """An outcome from an entry of a results stream."""

    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    def number(name: bytes) -> int:
        value = fields.get(name, b"")
        return int(value) if value.isdigit() and len(value) <= DIGITS_MAX else 0

    return messages.Outcome(
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


def time_of(score: bytes | float) -> int:
    """A time that is kept as a score. Of what no script has written, such as `inf`, one that is far away."""
    return round(max(-TIME_MS_MAX, min(float(score), TIME_MS_MAX)))


def _text(stored: dict[bytes, bytes]) -> dict[str, str]:
    return {field.decode(errors="replace"): value.decode(errors="replace") for field, value in stored.items()}


def _readable(value: bytes | None) -> str | None:
    """A field of a record. Bytes that no script has written are no reason to stop: the others of a batch come too."""
    return None if value is None else value.decode(errors="replace")
