"""That limits hold: how many of a session or tenant run is counted from the records, of all pools together.

While some pool of the published snapshot has a limit of a kind, every reservation of the cell counts for it, from the
first moment on; and no job of a pool with such a limit is placed while as many run, nor any job of a session while as
many run as the limit of one of these allows. Of a snapshot that was published
just now a dispatcher may not know yet: what was allowed before is allowed until `counted` names that version, or a
later one, from when on those are refused that do not know it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from scheduler.errors import InvalidInput
from scheduler.protocol import keys, messages
from scheduler.protocol.deltas import chain, followed
from scheduler.protocol.snapshot import LIMITS, Snapshot, decode_delta, decode_snapshot, limited_kinds, limits_of_pool
from tests.simulation.fleet import SETTINGS
from tests.simulation.server import Server

_CELL: Final = keys.CellKeys(SETTINGS.namespace)
_CONTROL: Final = keys.ControlKeys(SETTINGS.namespace)
_HELD: Final = _CELL.held("", "")[:-1].encode()
_UNLIMITED: Final = 10**9

Records = Mapping[str, Mapping[str, str]]
Limits = dict[str, dict[str, int]]
"""pool -> kind -> how many may run; pools without a limit are not there."""


def read_published(server: Server) -> Snapshot | None:
    """The published snapshot; None while there is none that can be read."""
    version = int(server.ask("GET", _CONTROL.version) or 0)
    try:
        stored = decode_snapshot(server.ask("GET", _CONTROL.snapshot) or b"")
        deltas = []
        for identifier, flat in server.ask("XRANGE", _CONTROL.deltas, f"({stored.version}-0", "+"):
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            if int(identifier.partition(b"-")[0]) <= version:
                deltas.append(decode_delta(fields[b"delta"]) if b"delta" in fields else None)
    except InvalidInput:
        return None
    found = chain(stored.version, deltas)
    snapshot = followed(stored, found) if found is not None else None
    return snapshot if snapshot is not None and snapshot.version == version else None


class LimitChecker:
    """Args: server; blame, called with each violation."""

    def __init__(self, server: Server, blame: Callable[[str, str], None]) -> None:
        self._server = server
        self._blame = blame
        self._kinds: frozenset[str] = frozenset()
        self._limits: list[tuple[int, Limits]] = [(0, {})]  # of versions, that may still be in use
        self._beside: dict[tuple[str, str], int] = {}  # (job_id, token) -> the most its session's limit ever was

    def published(self, records: Records, exempt: Collection[str]) -> None:
        """There may be another snapshot. What is limited from now on was counted before."""
        snapshot = read_published(self._server)
        pools = snapshot.pools if snapshot is not None else ()
        limits = {pool.id: dict(limits_of_pool(pool)) for pool in pools if limited_kinds([pool])}
        if limits != self._limits[-1][1]:
            self._limits.append((snapshot.version if snapshot is not None else 0, limits))
            self._beside = {
                (job_id, record["token"]): max(most, self._allowed(record)["session"])
                for job_id, record in records.items()
                if (most := self._beside.get((job_id, record.get("token", "")))) is not None
            }
        kinds = limited_kinds(pools)
        if not kinds <= self._kinds:
            for job_id, record in records.items():
                if record["state"] == "reserved" and job_id not in exempt:
                    self._check_counted(job_id, record, kinds - self._kinds)
        self._kinds = kinds

    def counted(self) -> None:
        """What the cell counts is another thing. Nothing is placed by an earlier version than it names."""
        version = self._stored().version
        known = [number for number, (each, _) in enumerate(self._limits) if each <= version]
        self._limits = self._limits[known[-1] if known else 0 :]

    def check_end(self) -> None:
        """What is counted is what is published."""
        snapshot, stored = read_published(self._server), self._stored()
        if snapshot is not None:
            kinds = limited_kinds(snapshot.pools)
            if stored.kinds != kinds or stored.version > snapshot.version:
                self._blame("limit", f"version {snapshot.version} has limits of {sorted(kinds)}, counted is {stored}")

    def _stored(self) -> messages.Counted:
        return messages.parse_counted((self._server.ask("GET", _CELL.counted) or b"").decode())

    def reserved(self, job_id: str, records: Records, exempt: Collection[str]) -> None:
        """A job was placed."""
        record = records[job_id]
        self._check_counted(job_id, record, self._kinds)
        allowed = self._allowed(record)
        self._beside[job_id, record["token"]] = allowed["session"]
        for kind, most in allowed.items():
            who = record.get(kind, "")
            together = [
                each
                for each, other in records.items()
                if other["state"] == "reserved"
                and other.get(kind, "") == who
                and int(other["token"]) <= int(record["token"])  # those of the same call that came later do not count
                and each not in exempt
            ]
            if kind == "session" and "session" in self._kinds:
                beside = [self._beside.get((each, records[each]["token"]), _UNLIMITED) for each in together]
                most = min([most, *beside])
            if who and len(together) > most:
                self._blame("limit", f"job {job_id} runs beside others of {kind} {who}, of {most}: {sorted(together)}")

    def _allowed(self, record: Mapping[str, str]) -> dict[str, int]:
        """kind -> how many may run: the most that a snapshot says of the pool that may be in use."""
        pool = record.get("policy", "").partition(" ")[0]
        return {
            kind: max(limits.get(pool, {}).get(kind, 0) or _UNLIMITED for _, limits in self._limits) for kind in LIMITS
        }

    def _check_counted(self, job_id: str, record: Mapping[str, str], kinds: frozenset[str]) -> None:
        """It is a member, and its record says so, that its ending takes it out."""
        for kind in sorted(kinds):
            who = record.get(kind, "")
            score = self._server.ask("ZSCORE", _CELL.held(kind, who), job_id) if who else None
            if who and not (score is not None and kind in record.get("held", "").split(" ")):
                self._blame("limit", f"job {job_id} is reserved and does not count for {kind} {who}")
            pool = record.get("policy", "").partition(" ")[0]
            said = [limits.get(pool, {}).get(kind, 0) for _, limits in self._limits]
            if score is not None and int(score) not in said:
                self._blame("limit", f"job {job_id} of {pool} stands for {int(score)} of {kind} {who}, of {said}")

    def check_held(self, name: bytes, records: Records) -> None:
        """Who counts for a limit runs."""
        kind, _, who = name[len(_HELD) :].decode().partition(":")
        for member in self._server.ask("ZRANGE", name, 0, -1):
            state = records.get(member.decode(), {"state": "none"})["state"]
            if state != "reserved":
                self._blame("limit", f"job {member.decode()} counts for {kind} {who}, and is {state}")
