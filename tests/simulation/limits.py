"""That limits hold: how many of a session or tenant run is counted from the records, of all pools together.

While some pool of the published snapshot has a limit of a kind, every reservation of the cell counts for it, from the
first moment on; and no job of a pool with such a limit is placed while as many run. Of a snapshot that was published
just now a dispatcher may not know yet: what was allowed before it is allowed for a moment longer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from scheduler import keys, model
from scheduler.deltas import chain, followed
from scheduler.errors import InvalidInput
from tests.simulation.fleet import SETTINGS
from tests.simulation.server import Server
from tests.simulation.world import World

NEWS_S: Final = 0.25  # in which dispatchers read a snapshot, or are sent back to it
_CELL: Final = keys.CellKeys(SETTINGS.namespace)
_CONTROL: Final = keys.ControlKeys(SETTINGS.namespace)
_HELD: Final = _CELL.held("", "")[:-1].encode()
_UNLIMITED: Final = 10**9

Records = Mapping[str, Mapping[str, str]]


def read_published(server: Server) -> model.Snapshot | None:
    """The published snapshot; None while there is none that can be read."""
    version = int(server.ask("GET", _CONTROL.version) or 0)
    try:
        stored = model.decode_snapshot(server.ask("GET", _CONTROL.snapshot) or b"")
        deltas = []
        for identifier, flat in server.ask("XRANGE", _CONTROL.deltas, f"({stored.version}-0", "+"):
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            if int(identifier.partition(b"-")[0]) <= version:
                deltas.append(model.decode_delta(fields[b"delta"]) if b"delta" in fields else None)
    except InvalidInput:
        return None
    found = chain(stored.version, deltas)
    snapshot = followed(stored, found) if found is not None else None
    return snapshot if snapshot is not None and snapshot.version == version else None


class LimitChecker:
    """Args: world; server; blame, called with each violation."""

    def __init__(self, world: World, server: Server, blame: Callable[[str, str], None]) -> None:
        self._world = world
        self._server = server
        self._blame = blame
        self._kinds: frozenset[str] = frozenset()
        self._limits: list[tuple[float, dict[str, dict[str, int]]]] = [(0.0, {})]

    def published(self, records: Records, exempt: Collection[str]) -> None:
        """There may be another snapshot. What is limited from now on was counted before."""
        snapshot = read_published(self._server)
        pools = snapshot.pools if snapshot is not None else ()
        limits = {pool.id: dict(model.limits_of_pool(pool)) for pool in pools if model.limited_kinds([pool])}
        if limits != self._limits[-1][1]:
            self._limits.append((self._world.now_s, limits))
        kinds = model.limited_kinds(pools)
        if not kinds <= self._kinds:
            for job_id, record in records.items():
                if record["state"] == "reserved" and job_id not in exempt:
                    self._check_counted(job_id, record, kinds - self._kinds)
        self._kinds = kinds

    def reserved(self, job_id: str, records: Records, exempt: Collection[str]) -> None:
        """A job was placed."""
        record = records[job_id]
        self._check_counted(job_id, record, self._kinds)
        for kind, most in self._allowed(record).items():
            who = record.get(kind, "")
            together = [
                each
                for each, other in records.items()
                if other["state"] == "reserved"
                and other.get(kind, "") == who
                and int(other["token"]) <= int(record["token"])  # those of the same call that came later do not count
                and each not in exempt
            ]
            if who and len(together) > most:
                self._blame("limit", f"job {job_id} runs beside others of {kind} {who}, of {most}: {sorted(together)}")

    def _allowed(self, record: Mapping[str, str]) -> dict[str, int]:
        """kind -> how many may run: the most that a snapshot of late said of the pool."""
        pool = record.get("policy", "").partition(" ")[0]
        since_s = self._world.now_s - NEWS_S
        of_late = [limits for at_s, limits in self._limits if at_s > since_s]
        of_late.append(next(limits for at_s, limits in reversed(self._limits) if at_s <= since_s))
        return {kind: max(each.get(pool, {}).get(kind, 0) or _UNLIMITED for each in of_late) for kind in model.LIMITS}

    def _check_counted(self, job_id: str, record: Mapping[str, str], kinds: frozenset[str]) -> None:
        """It is a member, and its record says so, that its ending takes it out."""
        for kind in sorted(kinds):
            who = record.get(kind, "")
            is_member = who and self._server.ask("SISMEMBER", _CELL.held(kind, who), job_id)
            if who and not (is_member and kind in record.get("held", "").split(" ")):
                self._blame("limit", f"job {job_id} is reserved and does not count for {kind} {who}")

    def check_held(self, name: bytes, records: Records) -> None:
        """Who counts for a limit runs."""
        kind, _, who = name[len(_HELD) :].decode().partition(":")
        for member in self._server.ask("SMEMBERS", name):
            state = records.get(member.decode(), {"state": "none"})["state"]
            if state != "reserved":
                self._blame("limit", f"job {member.decode()} counts for {kind} {who}, and is {state}")
