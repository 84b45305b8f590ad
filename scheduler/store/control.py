"""The control plane: one method a script, and the reads of snapshot and version."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from scheduler.config import Settings
from scheduler.errors import Fenced, InvalidInput, PublishConflict, ServerRefused
from scheduler.protocol import deltas, keys, messages
from scheduler.protocol.snapshot import (
    EMPTY_SNAPSHOT,
    Delta,
    Snapshot,
    decode_delta,
    decode_snapshot,
    encode_delta,
    encode_snapshot,
)
from scheduler.store.connection import Argument, Client, Connection, keeping_cancellation
from scheduler.store.reads import position
from scheduler.store.scripts import load_scripts

VERSION_BLOCK_MS: Final = 1_000
DELTAS_AT_ONCE: Final = 100  # that one read returns: each can be of some 10,000 bytes
CLOSED_MS_MAX: Final = 3_000  # for which a stream of commands may take no entry
HEAD_BYTES: Final = 64  # of a stored snapshot, by which one that somebody else wrote is known
READS_MAX: Final = 3  # of a snapshot, until what was read belongs together
COMMANDS_MAX: Final = 1_000  # entries of the stream: as many as anybody could ask for at once


class Leading(msgspec.Struct, frozen=True):
    """We lead, under `epoch`."""

    epoch: int
    now_ms: int


class Following(msgspec.Struct, frozen=True):
    """Somebody else leads until `until_ms`."""

    leader: str
    until_ms: int
    now_ms: int


class Beaten(msgspec.Struct, frozen=True):
    """A heartbeat arrived. live: the dispatchers heard of late (for a dispatcher's beat only)."""

    now_ms: int
    live: tuple[str, ...]


class Standing(msgspec.Struct, frozen=True):
    """What is there of what is written once.

    has_layout: all of it, as we would write it; has_partitions: the cell's part of it; nodes: that have a capacity;
    version: the published one, 0 while there is none, None when something that leads to it is missing.
    """

    has_layout: bool
    has_partitions: bool
    leader_epoch: int
    nodes: int
    has_config: bool
    version: int | None


class Led(msgspec.Struct, frozen=True):
    """Whether a manager leads, and for how long the last one has not been heard, None when nothing is known of one."""

    is_led: bool
    silence_ms: int | None


class Control:
    """Everything under the tag `{sched}`."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.keys = keys.ControlKeys(settings.namespace)
        self._connection = connection
        self._settings = settings
        self._blocking: Client | None = None
        self._written: tuple[int, bytes] | None = None  # size and head of the snapshot that is to be stored, if known
        self._series = connection.series()

    async def write_layout(self) -> messages.Layout:
        """Agree on the layout: written if there is none, compared if there is one.

        Raises: ServerRefused when the stored layout differs, or when it is of another protocol.
        """
        wanted = self._layout_wanted()
        arguments: list[Argument] = [len(wanted)]
        for field, value in wanted.items():
            arguments += [field, value]
        for script in load_scripts().values():
            arguments += [f"script:{script.name}", script.source]
        answer = await self._connection.call("layout", [self.keys.layout], arguments)
        stored = {answer[i].decode(): answer[i + 1].decode(errors="replace") for i in range(1, len(answer), 2)}
        self._check_protocol(stored["protocol"])
        for field, value in wanted.items():
            if stored[field] != str(value):
                raise ServerRefused(
                    f"{self._connection.url}: layout {field} = {stored[field]!r} is stored: expected {value}; "
                    f"use the same setting everywhere, or another namespace"
                )
        return _layout(stored)

    def _layout_wanted(self) -> dict[str, int]:
        """The agreed fields as our settings have them."""
        settings = self._settings
        return {
            "partitions": settings.partitions,
            "cells": settings.cells,
            "protocol": keys.PROTOCOL,
            "retention_ms": settings.retention_ms,
            "dead_retention_ms": settings.dead_retention_ms,
        }

    async def standing(self, cell: keys.CellKeys) -> Standing:
        """What is there of what is written once, in one round trip."""
        wanted = self._layout_wanted()
        stored, fields, partitions, epoch, nodes, configs, *version = await self._connection.all_of(
            [
                ("HMGET", self.keys.layout, *wanted),
                ("HLEN", self.keys.layout),
                ("GET", cell.partitions),
                ("GET", cell.leader_epoch),
                ("HLEN", cell.capacity),
                ("HLEN", self.keys.config),
                *self._version_questions(),
            ]
        )
        is_same = stored == [str(value).encode() for value in wanted.values()]
        return Standing(
            has_layout=is_same and int(fields) >= len(wanted) + len(load_scripts()),
            has_partitions=partitions == str(self._settings.partitions).encode(),
            leader_epoch=_number(epoch),
            nodes=int(nodes),
            has_config=bool(configs),
            version=self._whole_version(*version),
        )

    async def led(self) -> Led:
        """Who leads renews its lease, so its end tells when it was heard last; one that gave up has said when."""
        fields = ("name", "until_ms", "lease_ms")
        stored, (seconds, microseconds) = await self._connection.all_of(
            [("HMGET", self.keys.leader, *fields), ("TIME",)]
        )
        now_ms = int(seconds) * 1_000 + int(microseconds) // 1_000
        name, until_ms, lease_ms = stored[0], _number(stored[1]), _number(stored[2])
        if not until_ms:
            return Led(False, None)
        return Led(bool(name) and until_ms > now_ms, max(0, now_ms - until_ms + (lease_ms if name else 0)))

    async def read_layout(self) -> messages.Layout | None:
        """The stored layout, None while no manager has written it. Raises: ServerRefused for another protocol."""
        names = messages.Layout.__struct_fields__

        values = await self._command(lambda client: client.hmget(self.keys.layout, list(names)))
        stored = {
            name: value.decode(errors="replace") for name, value in zip(names, values, strict=True) if value is not None
        }
        if not stored:
            return None
        # First of all: of the other fields another protocol may have made something else.
        self._check_protocol(stored.get("protocol", "none"))
        wrong = {name: value for name, value in stored.items() if not value.isdigit()}
        if wrong:
            said = ", ".join(f"{name} = {value!r}" for name, value in wrong.items())
            raise ServerRefused(
                f"{self._connection.url}: {self.keys.layout} says {said}: expected numbers; somebody else wrote it; "
                f"delete the key, and the leading manager writes it again"
            )
        return _layout({name: stored.get(name, "0") for name in names})

    def _check_protocol(self, stored: str) -> None:
        """Raises: ServerRefused when the stored number is not that of this version."""
        if stored != str(keys.PROTOCOL):
            raise ServerRefused(
                f"{self._connection.url}: protocol {stored} is in use in namespace {self._settings.namespace!r}: "
                f"expected {keys.PROTOCOL}, which this version speaks; install the version that speaks {stored}, or "
                f"use another namespace (SCHED_NAMESPACE)"
            )

    async def time_us(self) -> int:
        """The server's clock, microseconds."""

        seconds, microseconds = await self._command(lambda client: client.time())
        return int(seconds) * 1_000_000 + int(microseconds)

    async def beat(self, document: bytes, dispatcher: str = "", *, leaves: bool = False) -> Beaten:
        """Send a heartbeat.

        Args: document; dispatcher, name+boot of a dispatcher, empty for others; leaves, it is its last.
        """
        settings = self._settings
        # The others see at their next heartbeat that a dispatcher fell silent: no later than when its leases end.
        heard_ms = max(settings.partition_lease_ms - settings.heartbeat_ms, 2 * settings.heartbeat_ms)
        silence_ms = min(settings.silence_ms, heard_ms)
        answer = await self._connection.call(
            "beat",
            [self.keys.heartbeats, self.keys.dispatchers],
            [document, dispatcher, settings.heartbeats_max, silence_ms, "leaves" if leaves else "stays"],
        )
        return Beaten(now_ms=answer[0], live=tuple(member.decode() for member in answer[1]))

    async def lead(self, name: str, floor: int = 0) -> Leading | Following:
        """Take or keep the leadership. floor: an epoch that was seen in a cell; ours will be above it."""
        lease_ms = self._settings.leader_lease_ms
        answer = await self._connection.call("lead", [self.keys.leader], [name, lease_ms, "take", floor])
        if answer[0] == b"leading":
            return Leading(epoch=int(answer[1]), now_ms=answer[2])
        return Following(leader=answer[1].decode(), until_ms=answer[2], now_ms=answer[3])

    async def give_up_lead(self, name: str) -> None:
        """Stop leading at once, so that a standby need not wait for the lease."""
        await self._connection.call("lead", [self.keys.leader], [name, 0, "give_up", 0])

    async def take(
        self, name: str, epoch: int, acknowledge: Sequence[str] = (), *, pending: bool = False, count: int = 1_000
    ) -> messages.Taken:
        """Read the next heartbeats and commands, acknowledging the last heartbeats.

        Args: name, epoch of the leader; acknowledge, ids of the heartbeats of the last take; pending, what an earlier
        leader left unanswered; count, entries of each stream, of commands at most 4 MiB or one. Raises: Fenced.
        """
        answer = await self._connection.call(
            "take",
            [self.keys.leader, self.keys.heartbeats, self.keys.commands],
            [
                name,
                epoch,
                keys.MANAGEMENT_GROUP,
                keys.LEADER_CONSUMER,
                count,
                "pending" if pending else "new",
                *acknowledge,
            ],
        )
        if answer[0] == b"fenced":
            raise Fenced(f"{name} leads no more: {answer[1].decode() or 'nobody'} does")
        now_ms = int(answer[1])
        return messages.Taken(
            now_ms=now_ms,
            heartbeats=_heartbeats(answer[2], now_ms),
            commands=tuple(messages.Command(id=entry[0].decode(), fields=_fields(entry[1])) for entry in answer[3]),
            more=bool(answer[4]),
            groups_made=answer[5],
        )

    async def publish(
        self,
        name: str,
        epoch: int,
        snapshot: Snapshot | None,
        delta: Delta | None = None,
        *,
        oldest: int = 0,
        sets: dict[str, bytes] | None = None,
        deletes: Sequence[str] = (),
        answers: Sequence[tuple[str, bytes]] = (),
    ) -> int:
        """Write a version, configuration, and answers to commands, in one step.

        Args: snapshot, the whole of it, None to leave what is stored; delta, what it changes: of no size when everybody
        has to read the whole, None when it does not matter either what is stored; oldest, the version from which on
        deltas are kept when a whole is stored.
        Returns: how many commands have no answer, because its stream takes none; they are pending as before.
        Raises: Fenced, also when a higher version is stored already; PublishConflict when the
        delta does not fit what is stored.
        """
        news = snapshot or delta
        whole = encode_snapshot(snapshot) if snapshot else b""
        arguments: list[Argument] = [
            name,
            epoch,
            keys.MANAGEMENT_GROUP,
            news.version if news else 0,
            delta.before if delta else 0,
            encode_delta(delta) if delta and delta.size else b"",
            whole,
            oldest,
            self._settings.answers_max,
            len(sets or {}),
            len(deletes),
            len(answers),
        ]
        for field, value in (sets or {}).items():
            arguments += [field, value]
        arguments += deletes
        for command, answer_document in answers:
            arguments += [command, answer_document]
        k = self.keys
        answer = await self._connection.call(
            "publish", [k.leader, k.commands, k.config, k.snapshot, k.version, k.deltas, k.answers], arguments
        )
        if answer[0] == b"fenced":
            raise Fenced(f"{name} leads no more: {answer[1].decode() or 'nobody'} does")
        if answer[0] == b"stale":
            raise Fenced(f"version {answer[1].decode()} is stored already")
        if answer[0] == b"lost":
            raise PublishConflict(f"version {answer[1].decode()} is stored, from which the new one does not lead on")
        if whole:
            self._written = len(whole), whole[:HEAD_BYTES]
        return int(answer[2])

    async def restart(self, name: str, epoch: int, stream: str) -> str:
        """Begin a stream whose ids are absurd anew, once all of it was taken and dealt with.

        Args: name, epoch of the leader; stream, heartbeats or commands. Returns: open, busy or restarted.
        Raises: Fenced.
        """
        answer = await self._connection.call(
            "restart", [self.keys.leader, stream], [name, epoch, keys.MANAGEMENT_GROUP]
        )
        if answer[0] == b"fenced":
            raise Fenced(f"{name} leads no more: {answer[1].decode() or 'nobody'} does")
        return str(answer[0].decode())

    async def read_snapshot(self) -> Snapshot:
        """The published snapshot, empty while there is none: the stored one, with the deltas after it.

        Raises: InvalidInput when something of it is missing or cannot be read.
        """
        for _ in range(READS_MAX - 1):
            with contextlib.suppress(InvalidInput):  # deltas went while this was read: there is a newer whole
                return await self._read_snapshot()
        return await self._read_snapshot()

    async def _read_snapshot(self) -> Snapshot:
        """One try. Whole and version are of one moment; deltas after the version are left out, those before it stay
        for as long as the whole is not two publications old.
        """
        (data, stored_version), entries = await self._connection.all_of(
            [("MGET", self.keys.snapshot, self.keys.version), ("XRANGE", self.keys.deltas, "-", "+")]
        )
        stored = EMPTY_SNAPSHOT if data is None else decode_snapshot(data)
        self._written = None if data is None else (len(data), data[:HEAD_BYTES])
        version = _number(stored_version) if stored_version else stored.version
        after = [_delta(fields) for entry, fields in entries if stored.version < _version_of(entry) <= version]
        found = deltas.chain(stored.version, after)
        if found is None or (found[-1] if found else stored).version != version:
            raise InvalidInput(f"version {version}: the stored snapshot is {stored.version}, and deltas are missing")
        return deltas.followed(stored, found)

    async def read_version(self) -> int:
        """The published version, 0 while there is none."""
        return _number(await self._command(lambda client: client.get(self.keys.version)))

    async def read_config(self) -> dict[str, bytes]:
        """The durable configuration: field -> document."""

        stored = await self._command(lambda client: client.hgetall(self.keys.config))
        return {field.decode(errors="replace"): value for field, value in stored.items()}

    async def send_command(self, document: bytes, wait_ms: int) -> bytes | None:
        """Ask the leader for something, and wait for its answer at most `wait_ms`.

        Returns: the answer; None when there was none in time. The command is taken back then, as when this is
        cancelled, so that it is not done later by a manager which did not have it in hand yet.
        """
        cursor = await self._last_id(self.keys.answers)
        now_s = asyncio.get_running_loop().time
        until_s = now_s() + wait_ms / 1000
        adding: asyncio.Task[bytes] = asyncio.create_task(self._add_command(document))
        answer = None
        try:
            added = await asyncio.shield(adding)
            while answer is None and (left_ms := (until_s - now_s()) * 1000) > 0:
                answer, cursor = await self._find_answer(added, cursor, min(VERSION_BLOCK_MS, max(1, round(left_ms))))
        except asyncio.CancelledError:
            await self._take_back(await adding)  # whose id is known only at its end
            raise
        if answer is None:
            await self._take_back(added)
            answer, _ = await self._find_answer(added, "0", 1)  # the stream may have been made anew since the last look
        return answer

    async def _add_command(self, document: bytes) -> bytes:
        """Tried for a while when the stream takes no entry, for the leader makes it anew. Raises: ServerRefused."""
        until_ms = asyncio.get_running_loop().time() * 1000 + CLOSED_MS_MAX
        while True:
            word, added = await self._connection.call("command", [self.keys.commands], [document, COMMANDS_MAX])
            if word != b"refused":
                return bytes(added)
            if asyncio.get_running_loop().time() * 1000 > until_ms:
                raise ServerRefused(f"{self._connection.url}: {self.keys.commands} takes no command: {added.decode()}")
            await asyncio.sleep(CLOSED_MS_MAX / 30_000)

    async def _take_back(self, command: bytes) -> None:
        await self._command(lambda client: client.xdel(self.keys.commands, command))

    async def _find_answer(self, command: bytes, after: str, block_ms: int) -> tuple[bytes | None, str]:
        """The answer to a command among the next ones, and the id to go on from: the first there is, if the answers do
        not reach so far any more.
        """
        read = self._connection.patiently(
            lambda: self._read_blocking(self.keys.answers, after, block_ms, is_alone=False)
        )
        for identifier, fields in await read:
            after = identifier.decode()
            if fields.get(b"command") == command:
                return fields.get(b"answer", b""), after
        newest = await self._last_id(self.keys.answers)
        return None, after if position(newest) >= position(after) else "0"

    async def read_deltas(self, after: str) -> tuple[list[Delta | None], str]:
        """Block until something was published after an entry of the deltas, at most a second.

        Returns: what was, in order, None for an entry that only says that there is another version; and the id of the
        last entry, `after` if there was none. The entry of a version is `version_entry`.
        """
        stream = self.keys.deltas
        entries = await self._connection.explaining(
            lambda: self._read_blocking(stream, after, VERSION_BLOCK_MS, DELTAS_AT_ONCE), [stream]
        )
        return [_delta(fields) for _, fields in entries], entries[-1][0].decode() if entries else after

    async def stored_version(self) -> int | None:
        """The published version, 0 while there is none; None when something that leads to it is missing.

        For who leads: nobody else publishes between these reads.
        """
        return self._whole_version(*await self._connection.all_of(self._version_questions()))

    def _version_questions(self) -> list[tuple[Argument, ...]]:
        newest_entry = ("XREVRANGE", self.keys.deltas, "+", "-", "COUNT", 1)
        snapshot = self.keys.snapshot
        head = ("GETRANGE", snapshot, 0, HEAD_BYTES - 1)
        return [("GET", self.keys.version), ("STRLEN", snapshot), head, newest_entry]

    def _whole_version(self, stored: bytes, size_bytes: int, head: bytes, newest: list[Any]) -> int | None:
        version = _number(stored)
        if stored and str(version).encode() != stored:
            return None
        is_ours = size_bytes > 0 and self._written in (None, (size_bytes, head))
        is_whole = is_ours and bool(newest) and newest[0][0].decode() == version_entry(version)
        return version if is_whole or not (version or size_bytes or newest) else None

    async def _last_id(self, stream: str) -> str:
        entries = await self._command(lambda client: client.xrevrange(stream, count=1))
        return str(entries[0][0].decode()) if entries else "0"

    async def _read_blocking(
        self, stream: str, after: str, block_ms: int, count: int | None = None, *, is_alone: bool = True
    ) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """What comes after an entry of a stream; waits for it at most `block_ms`, which is VERSION_BLOCK_MS at most.

        is_alone: nobody repeats it here.
        """
        if self._blocking is None:
            self._blocking = self._connection.blocking(VERSION_BLOCK_MS)
        read = keeping_cancellation(self._blocking.xread({stream: after}, count=count, block=block_ms))
        reply = await (self._series.run(read, block_ms) if is_alone else read)
        return list(reply[0][1]) if reply else []

    async def _command(self, run: Callable[[Client], Awaitable[Any]]) -> Any:
        connection = self._connection
        return await connection.explaining(lambda: connection.patiently(lambda: run(connection.commands)))


def _layout(stored: dict[str, str]) -> messages.Layout:
    return messages.Layout(**{name: int(stored[name]) for name in messages.Layout.__struct_fields__})


def _number(stored: bytes | None) -> int:
    """A stored number, 0 for none, and for what no script has written."""
    return int(stored) if stored and stored.isdigit() else 0


def version_entry(version: int) -> str:
    """The id of the entry of the deltas that leads to a version."""
    return f"{version}-0"


def _version_of(entry: bytes) -> int:
    return int(entry.partition(b"-")[0])


def _delta(fields: dict[bytes, bytes]) -> Delta | None:
    """What an entry of the deltas tells, None when that is not all that changed, or cannot be read."""
    try:
        return decode_delta(fields[b"delta"]) if b"delta" in fields else None
    except InvalidInput:
        return None


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return {flat[i]: flat[i + 1] for i in range(0, len(flat), 2)}


def _heartbeats(flat: Sequence[bytes], now_ms: int) -> tuple[messages.Heartbeat, ...]:
    """From id, document and time each; the time is that of beat.lua, else that of the id, and never in the future."""
    found = []
    each = iter(flat)
    for identifier, document, stamp in zip(each, each, each, strict=True):
        entry = identifier.decode()
        time_ms = int(stamp) if stamp.isdigit() and len(stamp) <= 16 else int(entry.partition("-")[0])
        found.append(messages.Heartbeat(entry, document, min(time_ms, now_ms)))
    return tuple(found)
