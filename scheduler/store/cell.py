"""The data plane of one cell: one method a script. Keys are declared group by group, as the script's header says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from redis.exceptions import OutOfMemoryError, RedisError

from scheduler.config import Settings
from scheduler.errors import Fenced, ServerUnavailable
from scheduler.protocol import keys, messages
from scheduler.protocol.snapshot import Pool
from scheduler.store.connection import Argument, Connection, keeping_cancellation
from scheduler.store.reads import time_of

RENAMED_MAX: Final = 10_000  # entries that get other ids in one step: about 100 ms of the server
REBUILT_BYTES_MAX: Final = 500_000  # of entries that one call of `rebuild` copies: about 10 ms of the server
Leaves = Literal["leaves", "drained", "dead"]

_encode: Final = msgspec.msgpack.Encoder().encode
_WHY: Final = {
    word: messages.Refused(word.decode())  # type: ignore[arg-type]
    for word in (b"full", b"bound", b"behind", b"fenced", b"duplicate", b"gone", b"job_id_taken", b"cancelling")
}


class _Indices(dict[Any, int]):
    """Names in the order of their first use, each with its index counted from 1."""

    def __missing__(self, name: Any) -> int:
        index = self[name] = len(self) + 1
        return index


def _policy(name: str, pool: Pool, snapshot_version: int) -> str:
    """The text that record and assignment carry, as `words.parse_policy` reads it."""
    return (
        f"{name} {pool.lease_ms} {pool.attempts_max} {pool.crashes_max} {pool.run_ms_max} {pool.backoff_ms}"
        f" {pool.backoff_ms_max} {snapshot_version}"
    )


def _add_candidates(indices: list[int], groups: Iterable[Iterable[str]], nodes: _Indices) -> None:
    """Add the indices of a job's candidates, with a 0 between groups."""
    first = len(indices)
    for group in groups:
        if len(indices) > first:
            indices.append(0)
        indices += [nodes[name] for name in group]


def _packed(values: Sequence[Any]) -> bytes:
    """Msgpack of values one after the other: that of an array without its header, of a size by their number."""
    header_bytes = 1 if len(values) < 16 else 3 if len(values) < 2**16 else 5
    return _encode(values)[header_bytes:]


def _rare(item: messages.ReserveItem, nodes: _Indices, limits: _Indices) -> dict[str, Any]:
    """What few jobs have, and is left out for all others."""
    rare: dict[str, Any] = {}
    if item.preferred:
        rare["preferred"] = nodes[item.preferred]
    if item.note:
        rare["note"] = f" {item.note}"
    if item.keeps:
        rare["keeps"] = item.keeps
    if item.together:
        rare["together"] = item.together
    if item.limits:
        rare["limits"] = [(kind, limits[kind, name], most) for kind, name, most in item.limits]
    return rare


def _reserved(item: messages.ReserveItem, given: bytes) -> messages.Reserved | messages.Refused:
    if given in _WHY:
        return _WHY[given]
    word, *words = given.decode(errors="replace").split(" ")  # a repeat's are from a record, whoever wrote into it
    if word == "outdated":
        return messages.Refused("outdated", counted=messages.parse_counted(" ".join(words)))
    if word == "limited":
        return messages.Refused("limited", next(f"{kind}:{name}" for kind, name, _ in item.limits if kind == words[0]))
    if word == "mismatch":
        session, tenant, reply_to, *_ = [*words, "", ""]
        return messages.Refused("mismatch", submitted=(session, tenant, reply_to))
    node, token, used, *rest = words
    return messages.Reserved(node, int(token), int(used), rest[0] if rest else "", "filled" in rest[1:])


def _not_released(given: Sequence[bytes]) -> messages.NotReleased:
    why: Any = given[0].decode()
    return messages.NotReleased(why, given[1].decode(errors="replace") if why == "invalid" else "")


def _fenced(epoch: int, seen: str) -> Fenced:
    return Fenced(f"leader epoch {epoch} is over: {seen} was seen", int(seen))


class Cell:
    """Everything under the tag `{sched:<cell>}`."""

    def __init__(self, connection: Connection, settings: Settings, cell: int = 0) -> None:
        self.keys = keys.CellKeys(settings.namespace, cell)
        self.cell = cell
        self._connection = connection
        self._settings = settings

    # ---- ownership and capacity ----

    async def write_partitions(self) -> None:
        """Tell `submit` how many partitions there are. That never changes, so anybody may write it, and late: when
        memory is full, a later look does.
        """
        client, partitions = self._connection.commands, self._settings.partitions

        async def once() -> None:
            with contextlib.suppress(OutOfMemoryError):
                await client.set(self.keys.partitions, partitions)

        await self._connection.patiently(once)

    async def claim(
        self, owner: str, take: Iterable[int], give_up: Iterable[int] = ()
    ) -> tuple[int, list[messages.Owned | messages.HeldByOther]]:
        """Give partitions up, then take or renew others.

        Args: owner, name+boot; take and give_up, partitions of this cell; one in both gets another epoch.
        Returns: (now_ms, an answer for each of `take`).
        """
        taken, given_up = list(take), list(give_up)
        arguments: list[Argument] = [owner, self._settings.partition_lease_ms, self._settings.freed_max]
        for partition in given_up:
            arguments += [partition, "give_up"]
        for partition in taken:
            arguments += [partition, "take"]
        answer = await self._connection.call("claim", [self.keys.owners, self.keys.freed], arguments)
        answers: list[messages.Owned | messages.HeldByOther] = []
        for partition, held in zip(taken, answer[1 + len(given_up) :], strict=True):
            if held[0] == b"owned":
                answers.append(messages.Owned(partition, int(held[1])))
            else:
                answers.append(messages.HeldByOther(partition, held[1].decode(), held[2]))
        return answer[0], answers

    async def capacity(self, epoch: int, items: Sequence[messages.CapacityItem]) -> list[str]:
        """Write capacities as the leader of `epoch`; without items it only raises the cell's epoch.

        Returns: an answer for each item: written, unchanged, older, refused or left. Raises: Fenced.
        """
        k = self.keys
        names = [k.capacity, k.leader_epoch, k.open, k.freed, k.control_ids]
        arguments: list[Argument] = [epoch, self._settings.freed_max]
        for item in items:
            names += [k.slots(item.node), k.inbox(item.node), k.left(item.node)]
            arguments += [item.node, item.slots, item.boot, item.reason]
        answer = await self._connection.call("capacity", names, arguments)
        if answer[0] == b"fenced":
            raise _fenced(epoch, answer[1].decode())
        return [word.decode() for word in answer[1:]]

    async def boot(self, node: str) -> tuple[int, int, dict[str, int]]:
        """Begin a life of a node.

        Returns: now_ms; the number of its boot, above all others; what earlier lives hold: job_id -> end of its lease.
        """
        answer = await self._connection.call(
            "boot", [self.keys.last_boot, self.keys.capacity, self.keys.slots(node)], [node]
        )
        held = answer[2]
        return answer[0], int(answer[1]), {held[i].decode(): time_of(held[i + 1]) for i in range(0, len(held), 2)}

    async def count(
        self, epoch: int, counted: messages.Counted, items: Sequence[messages.CountItem] = ()
    ) -> tuple[bool, list[str]]:
        """Say as the leader of `epoch` what is counted, and count reservations that were made before.

        Returns: whether something else was stored; an answer for each item: added, counted or stale. Raises: Fenced.
        """
        nodes = _Indices()
        body: list[Argument] = []
        job_keys: list[str] = []
        for item in items:
            body += [nodes[item.node], item.job_id, item.session_id, item.tenant_id, item.session_max, item.tenant_max]
            job_keys += [self.keys.job(item.job_id), self.keys.held("session", item.session_id)]
            job_keys.append(self.keys.held("tenant", item.tenant_id))
        names = [self.keys.leader_epoch, self.keys.counted, *[self.keys.slots(node) for node in nodes], *job_keys]
        answer = await self._connection.call("count", names, [epoch, str(counted), len(nodes), *nodes, *body])
        if answer[0] == b"fenced":
            raise _fenced(epoch, answer[1].decode())
        return answer[1] == b"changed", [word.decode() for word in answer[2:]]

    async def uncount(self, kind: str, name: str, job_ids: Sequence[str]) -> list[str]:
        """Take jobs out of a limit that are not reserved. Returns: removed or kept for each."""
        names = [self.keys.freed, self.keys.held(kind, name), *[self.keys.job(job_id) for job_id in job_ids]]
        arguments: list[Argument] = [self._settings.freed_max, f"{kind}:{name}", *job_ids]
        return [word.decode() for word in await self._connection.call("uncount", names, arguments)]

    async def leave(self, node: str, boot: str, why: Leaves = "leaves") -> str:
        """End a node that holds nothing. why: it asks for it; others drained it, so it has no slots; or it is dead.

        Returns: left, busy or replaced.
        """
        k = self.keys
        answer = await self._connection.call(
            "leave", [k.capacity, k.open, k.slots(node), k.inbox(node), k.left(node)], [node, boot, why]
        )
        return str(answer[0].decode())

    # ---- the way of a job ----

    async def submit(self, items: Sequence[messages.SubmitItem]) -> list[messages.Submitted | messages.NotSubmitted]:
        """Accept jobs into the intake; an answer for each."""
        partitions = _Indices()
        body: list[Argument] = []
        for item in items:
            body += [partitions[item.partition], item.job_id, item.session_id, item.tenant_id, item.reply_to]
            body += [item.nonce, item.document, item.payload]
        names = [self.keys.jobs(partition) for partition in partitions]
        names += [self.keys.job(item.job_id) for item in items]
        names.append(self.keys.partitions)
        arguments = [len(partitions), self._settings.backlog_max, *partitions, *body]
        answer = await self._connection.call("submit", names, arguments)
        answers: list[messages.Submitted | messages.NotSubmitted] = []
        for item, given in zip(items, answer[1:], strict=True):
            if given[0] == b"accepted":
                answers.append(messages.Submitted(item.job_id, given[1].decode()))
            else:
                detail = given[1] if len(given) > 1 else b""
                text = detail.decode() if isinstance(detail, bytes) else str(detail)
                answers.append(messages.NotSubmitted(item.job_id, given[0].decode(), text))
        return answers

    async def reserve(
        self,
        items: Sequence[messages.ReserveItem],
        boots: Mapping[str, str],
        pools: Mapping[str, Pool],
        snapshot_version: int,
        life: str = "",
    ) -> list[messages.Reserved | messages.Refused]:
        """Place a batch of jobs in the order given.

        Args: items, one at least, at most `batch_max`; boots, of every candidate node, as the snapshot has them; pools,
        of every item; life, of the server process that the entries were read from, empty for any.
        Returns: an answer for each item. Raises: ServerReplaced.
        """
        partitions, nodes, policies, limits = _Indices(), _Indices(), _Indices(), _Indices()
        jobs: list[Any] = []
        candidates: list[int] = []
        bodies: list[Argument] = []
        job_keys: list[str] = []
        for item in items:
            first = len(candidates) + 1
            _add_candidates(candidates, item.candidates, nodes)
            jobs += (
                item.entry_id, partitions[item.partition, item.epoch], policies[item.pool], item.job_id,
                item.session_id, item.tenant_id, item.reply_to,
                first, len(candidates),
                nodes[item.bound] if item.bound else 0, item.why, item.binding, item.stored_node, item.variant,
                item.unread, item.follows, len(bodies) + 5 if item.body is not None else 0,
                _rare(item, nodes, limits)
                if item.preferred or item.note or item.keeps or item.together or item.limits
                else False,
            )  # fmt: skip
            if item.body is not None:
                bodies += item.body
            job_keys += [self.keys.job(item.job_id), self.keys.session(item.session_id)]
        names = [self.keys.owners, self.keys.capacity, self.keys.open, self.keys.counted]
        names += [self.keys.jobs(partition) for partition, _ in partitions]
        for node in nodes:
            names += [self.keys.slots(node), self.keys.inbox(node)]
        names += job_keys
        names += [self.keys.held(kind, name) for kind, name in limits]
        head = (
            str(self._settings.session_ttl_ms),
            [str(partition) for partition, _ in partitions],
            [str(epoch) for _, epoch in partitions],
            [_policy(name, pools[name], snapshot_version) for name in policies],
            [pools[name].start_ms for name in policies],
            str(snapshot_version),
        )
        members = [*nodes, *[boots[node] for node in nodes]]
        request = (_packed(head), _packed(members), _packed(candidates), _packed(jobs))
        answer = await self._connection.call("reserve", names, [*request, *bodies], life)
        return [_reserved(item, given) for item, given in zip(items, answer[1:], strict=True)]

    async def renew(
        self, node: str, started: Sequence[tuple[str, int]], waiting: Sequence[tuple[str, int]] = ()
    ) -> tuple[int, float, list[messages.Renewed | messages.NotRenewed]]:
        """Prolong leases of one node.

        Args: node; (job_id, token) each: started, of jobs that run or have run, and waiting, of those that did not
        start yet. Returns: (now_ms; sent_ms, own time when the try that was answered was sent; an answer for each of
        these and then of those).
        """
        job_keys = [self.keys.job(job_id) for job_id, _ in (*started, *waiting)]
        names = [self.keys.slots(node), *job_keys, self.keys.capacity]
        arguments: list[Argument] = []
        for job_id, token in started:
            arguments += [job_id, token, "started"]
        for job_id, token in waiting:
            arguments += [job_id, token, "waiting"]
        sent_ms, answer = await self._connection.call_timed("renew", names, arguments)
        answers: list[messages.Renewed | messages.NotRenewed] = []
        for given in answer[1:]:
            if given[0] in (b"renewed", b"cancelling"):
                answers.append(messages.Renewed(int(given[1]), given[0] == b"cancelling"))
            else:
                answers.append(messages.NotRenewed(given[0].decode()))
        return answer[0], sent_ms, answers

    async def release(
        self, items: Sequence[messages.ReleaseItem], retention_ms: int, dead_retention_ms: int
    ) -> tuple[int, list[messages.Released | messages.NotReleased]]:
        """End reservations. Returns: (now_ms, an answer for each item)."""
        partitions, nodes = _Indices(), _Indices()
        body: list[Argument] = []
        job_keys: list[str] = []
        for item in items:
            body += [
                partitions[item.partition], nodes[item.node], item.job_id, item.session_id, item.tenant_id,
                item.reply_to, item.token, item.verdict, item.boot, item.delay_ms, item.state, item.reason, item.detail,
                item.content_type, item.result,
            ]  # fmt: skip
            job_keys += [self.keys.job(item.job_id), self.keys.result(item.job_id), self.keys.replies(item.reply_to)]
            job_keys += [self.keys.held("session", item.session_id), self.keys.held("tenant", item.tenant_id)]
        k, settings = self.keys, self._settings
        names = [k.capacity, k.open, k.freed, k.results, k.delayed, k.parked, k.dead]
        names += [k.jobs(partition) for partition in partitions]
        for node in nodes:
            names += [k.slots(node), k.inbox(node)]
        arguments: list[Argument] = [
            len(partitions), len(nodes), retention_ms, dead_retention_ms, settings.not_started_max,
            settings.results_max, settings.freed_max, settings.result_inline_bytes_max, *partitions, *nodes,
        ]  # fmt: skip
        answer = await self._connection.call("release", names + job_keys, arguments + body)
        answers: list[messages.Released | messages.NotReleased] = [
            messages.Released(given[1].decode()) if given[0] == b"released" else _not_released(given)
            for given in answer[1:]
        ]
        return answer[0], answers

    async def describe(self, items: Sequence[messages.ReleaseItem], retention_ms: int) -> list[str]:
        """Keep the details of failed attempts, once they have been released. One try: nothing waits for it.

        Returns: described, stale, unknown or invalid for each. Raises: ServerUnavailable, also when the memory of the
        server is full.
        """
        names: list[str] = []
        arguments: list[Argument] = [retention_ms]
        for item in items:
            names += [self.keys.job(item.job_id), self.keys.detail(item.job_id)]
            arguments += [item.job_id, item.token, item.detail]
        try:
            call = self._connection.call_once(self._connection.commands, "describe", names, arguments)
            answer = await keeping_cancellation(call)
        except (RedisError, OSError) as error:
            raise ServerUnavailable(f"details of failed attempts are not kept: {error}") from error
        return [given[0].decode() for given in answer]

    async def reject(
        self, items: Sequence[messages.RejectItem], retention_ms: int, dead_retention_ms: int, life: str = ""
    ) -> list[str]:
        """Refuse entries as their owner.

        Args: items; retention_ms; dead_retention_ms; life, of the server process that the entries were read from, empty
        for any. Returns: rejected, fenced, duplicate, gone or busy for each. Raises: ServerReplaced.
        """
        settings = self._settings
        names = [self.keys.owners, self.keys.dead, self.keys.results]
        arguments: list[Argument] = [
            retention_ms, dead_retention_ms, settings.results_max,
            settings.document_bytes_max, settings.payload_bytes_max, settings.other_bytes_max,
        ]  # fmt: skip
        for item in items:
            names += [self.keys.jobs(item.partition), self.keys.job(item.job_id), self.keys.replies(item.reply_to)]
            arguments += [item.partition, item.epoch, item.entry_id, item.job_id, item.session_id, item.tenant_id]
            arguments += [item.reply_to, item.reason, item.detail]
        answer = await self._connection.call("reject", names, arguments, life)
        return [given[0].decode() for given in answer[1:]]

    async def promote(self, items: Sequence[tuple[str, int, str]], retention_ms: int) -> list[str]:
        """Send delayed jobs that are due back to the intake.

        Args: items, (job_id, partition, reply_to) each. Returns: promoted, early, stale, moved, dead or busy for each.
        """
        names = [self.keys.delayed, self.keys.parked, self.keys.results]
        arguments: list[Argument] = [retention_ms, self._settings.results_max]
        for job_id, partition, reply_to in items:
            names += [self.keys.job(job_id), self.keys.jobs(partition), self.keys.replies(reply_to)]
            arguments += [job_id, partition, reply_to]
        answer = await self._connection.call("promote", names, arguments)
        return [given[0].decode() for given in answer[1:]]

    async def rebuild(
        self,
        stream: str,
        field: str,
        job_ids: Sequence[bytes] = (),
        hold: tuple[int, int] | None = None,
        above_ms: int = 0,
    ) -> messages.Rebuilding:
        """Go on with the copy that takes the place of a stream whose ids are absurd.

        Args: stream; field, of a record, that names an entry of it; job_ids, of entries that get new ids, as asked for
        by earlier answers; hold, (partition, epoch) of an intake; above_ms, above all ids that were given before, 0 for
        unknown.
        """
        partition, epoch = ("", 0) if hold is None else hold
        job_keys = [self.keys.job("").encode() + job_id for job_id in job_ids]
        answer = await self._connection.call(
            "rebuild",
            [self.keys.owners, stream, self.keys.rebuilt(stream), self.keys.renamed(stream), *job_keys],  # type: ignore[list-item]
            [partition, epoch, field, REBUILT_BYTES_MAX, RENAMED_MAX, above_ms, *job_ids],
        )
        word = answer[0].decode()
        if word == "records":
            return messages.Rebuilding("records", tuple(dict.fromkeys(answer[1:])))
        return messages.Rebuilding(word, (), *answer[1:])

    # ---- what was lost ----

    async def reopen(self, nodes: Sequence[str]) -> list[str]:
        """Put the set of nodes with room right. Returns: opened, closed or right for each."""
        names = [self.keys.capacity, self.keys.open, self.keys.freed, *[self.keys.slots(node) for node in nodes]]
        answer = await self._connection.call("reopen", names, [self._settings.freed_max, *nodes])
        return [word.decode() for word in answer]

    async def drop(self, stream: str, ids: Sequence[str]) -> None:
        """Drop entries of `parked` or of an inbox that no record names, nor ever will."""
        client = self._connection.commands
        await self._connection.patiently(lambda: client.xdel(stream, *ids))

    async def forget_dead(self, before_ms: int) -> None:
        """Drop dead entries that are older than `before_ms`; their records expire by themselves."""
        client = self._connection.commands
        await self._connection.patiently(
            lambda: client.xtrim(self.keys.dead, minid=max(0, before_ms), approximate=True)
        )
