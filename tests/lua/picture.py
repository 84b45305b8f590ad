"""What lies in a server, as the guarantees speak of it: records, slots, bodies, open nodes, outcomes."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from scheduler.protocol import keys
from scheduler.protocol.lifecycle import State
from scheduler.protocol.record_fields import split_words
from tests.dumps import Dump

CELL: Final = keys.CellKeys()
_JOB: Final = CELL.job("")
_SLOTS: Final = CELL.slots("")
_INBOX: Final = CELL.inbox("")
_JOBS: Final = CELL.jobs(0).removesuffix("0")


class Picture:
    """A dump, sorted by meaning.

    records: job_id -> fields, unfolded. slots: node -> {job_id: deadline_ms}. capacities: node -> (slots, boot).
    open: nodes.
    owners: partition -> (epoch, who holds it), "-" after it was given up.
    intake: entries as `<partition>/<id>`. inbox: (node, entry id) of assignments. parked, dead: entry ids.
    freed, freed_limits: the nodes and the limits of each entry. held: (kind, name) -> {job_id: the limit of its pool}.
    outcomes: how often each job was told to have ended.
    """

    def __init__(self, dump: Dump) -> None:
        self.dump = dump
        self.records = {job_id: split_words(record) for job_id, record in _by_name(dump, _JOB).items()}
        self.slots = {node: dict(members) for node, members in _by_name(dump, _SLOTS).items()}
        self.capacities = {
            node: (int(value.split(" ")[0]), value.split(" ")[1]) for node, value in _value(dump, CELL.capacity).items()
        }
        self.owners = {
            int(partition): (int(value.split(" ")[0]), value.split(" ")[1])
            for partition, value in _value(dump, CELL.owners).items()
        }
        self.open = set(_value(dump, CELL.open))
        self.intake = {
            f"{partition}/{entry_id}": fields
            for partition, stream in _by_name(dump, _JOBS).items()
            for entry_id, fields in stream["entries"].items()
        }
        self.inbox = {
            (node, entry_id): fields["job_id"]
            for node, stream in _by_name(dump, _INBOX).items()
            for entry_id, fields in stream["entries"].items()
            if "control" not in fields
        }
        self.parked = set(_entries(dump, CELL.parked))
        self.dead = set(_entries(dump, CELL.dead))
        events = _entries(dump, CELL.freed).values()
        self.freed = [fields["nodes"].split(" ") for fields in events if "nodes" in fields]
        self.freed_limits = [fields["limits"].split(" ") for fields in events if "limits" in fields]
        self.held: dict[tuple[str, str], dict[str, float]] = {
            (kind, name): dict(members)
            for kind in ("session", "tenant")
            for name, members in _by_name(dump, CELL.held(kind, "")).items()
        }
        self.outcomes = Counter(fields["job_id"] for fields in _entries(dump, CELL.results).values())

    def state(self, job_id: str) -> str:
        """Where a job is in the transition table."""
        return self.records.get(job_id, {}).get("state", "none")

    def jobs_held(self) -> set[str]:
        """Jobs that count against any limit."""
        return {job for jobs in self.held.values() for job in jobs}

    def room(self, node: str, boot: str) -> int:
        """Slots that a reserve which knows `boot` may still take."""
        slots, stored = self.capacities.get(node, (0, ""))
        return slots - len(self.slots.get(node, {})) if stored == boot else 0

    def timeless(self) -> Dump:
        """The dump without what moves with the clock alone: ends of leases."""
        still = dict(self.dump)
        for node, members in self.slots.items():
            still[CELL.slots(node)] = ("zset", sorted(members), False)
        owners = {partition: value.split(" ")[:2] for partition, value in _value(self.dump, CELL.owners).items()}
        return still | {CELL.owners: ("hash", owners, False)}

    def contradictions(self, lost: set[str], raw: set[str]) -> list[str]:
        """Everything in this picture alone that breaks a guarantee; empty when all is well.

        Args: lost, jobs whose body was deleted by hand; raw, intake entries that were added by hand.
        """
        return [
            *self._slots_against_records(),
            *self._held_against_records(),
            *self._held_against_limits(),
            *self._bodies_against_records(lost, raw),
            *self._open_against_room(),
        ]

    def _held_against_records(self) -> list[str]:
        """What counts against limits are the live reservations that were made under them."""
        live = {
            (kind, record[kind], job_id)
            for job_id, record in self.records.items()
            for kind in record.get("held", "").split()
            if record.get("state") == "reserved"
        }
        held = {(kind, name, job_id) for (kind, name), jobs in self.held.items() for job_id in jobs}
        return [] if live == held else [f"held {held}, reserved under limits {live}"]

    def _held_against_limits(self) -> list[str]:
        """No session runs more than the smallest limit of those that run allows."""
        return [
            f"session {name}: {jobs}"
            for (kind, name), jobs in self.held.items()
            if kind == "session" and len(jobs) > min((most for most in jobs.values() if most), default=len(jobs))
        ]

    def _slots_against_records(self) -> list[str]:
        """Slots in use are the live reservations."""
        reserved = sorted((r["node"], job_id) for job_id, r in self.records.items() if r.get("state") == "reserved")
        held = sorted((node, job_id) for node, members in self.slots.items() for job_id in members)
        return [] if reserved == held else [f"slots {held}, reserved {reserved}"]

    def _bodies_against_records(self, lost: set[str], raw: set[str]) -> list[str]:
        """The body of each job is exactly one entry, where its state says; there are no others."""
        live = {job_id: record for job_id, record in self.records.items() if job_id not in lost}

        def expected(state: State, field: str) -> set[str]:
            return {record[field] for record in live.values() if record.get("state") == state and field in record}

        queued = expected("queued", "entry")
        in_inbox = {(r["node"], r["inbox_id"]): job for job, r in live.items() if r.get("state") == "reserved"}
        found = []
        if not queued <= set(self.intake) <= queued | raw:
            found.append(f"intake {set(self.intake)}, queued {queued}, raw {raw}")
        if in_inbox != self.inbox:
            found.append(f"inbox {self.inbox}, reserved {in_inbox}")
        if expected("delayed", "parked_id") != self.parked:
            found.append(f"parked {self.parked}, delayed {expected('delayed', 'parked_id')}")
        if not expected("dead", "dead_id") <= self.dead:
            found.append(f"dead {self.dead}, records {expected('dead', 'dead_id')}")
        return found

    def _open_against_room(self) -> list[str]:
        """A node is open exactly while it has room."""
        room = {node for node, (_, boot) in self.capacities.items() if self.room(node, boot) > 0}
        return [] if room == self.open else [f"open {self.open}, room {room}"]


def _value(dump: Dump, key: str) -> Any:
    return dump[key][1] if key in dump else {}


def _entries(dump: Dump, key: str) -> dict[str, dict[str, str]]:
    entries: dict[str, dict[str, str]] = dump[key][1]["entries"] if key in dump else {}
    return entries


def _by_name(dump: Dump, prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, (_, value, _) in dump.items() if key.startswith(prefix)}
