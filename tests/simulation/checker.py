"""What must hold of a run, found from the server's keys and from what clients recorded, not from any role's memory.

After each command of a client, of the keys that it touched: transitions, tokens, slots, limits, order. Now and then:
nobody waits beside a free slot (rest.py). At the end: every acknowledged job has ended once, and nothing is left.
docs/SIMULATION.md has a table of all of it.

What a fault of the data takes with it is exempt, and counted: jobs acknowledged before it whose record, entry or
reservation is no longer what it was. What is acknowledged afterwards is not exempt.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec

from scheduler.audit.affinity import judge_sessions
from scheduler.audit.evidence import Outcome, Submission
from scheduler.errors import InvalidInput
from scheduler.node.handlers import Job
from scheduler.protocol import keys, record_fields
from scheduler.protocol.documents import decode_job
from scheduler.protocol.lifecycle import TERMINAL, TRANSITIONS
from tests.simulation.fleet import CAPACITY, SETTINGS, can_run
from tests.simulation.history import History
from tests.simulation.limits import LimitChecker
from tests.simulation.network import SCRIPTS
from tests.simulation.plan import NODES
from tests.simulation.server import Server
from tests.simulation.world import Process, World

_HAPPENS: Final = {*SCRIPTS.values(), "XADD", "retention"}
_LEGAL: Final = {(row.state, row.next_state) for row in TRANSITIONS if row.script in _HAPPENS} | {
    (state, state) for state in ("queued", "reserved", "delayed")
}
_CELL: Final = keys.CellKeys(SETTINGS.namespace)
_DELAYED: Final = _CELL.delayed.encode()
_SLOTS: Final = _CELL.slots("").encode()
_JOB: Final = _CELL.job("").encode()
_HELD: Final = _CELL.held("", "")[:-1].encode()
_COUNTED: Final = _CELL.counted.encode()
_CONTROL: Final = keys.ControlKeys(SETTINGS.namespace)
WAKE_S: Final = 0.5  # in which a node notices that it slept, or that a lease is over
_FENCES: Final = frozenset({_CELL.owners, _CONTROL.leader, _CONTROL.version})
ADDING: Final = frozenset({"beat", "boot", "take"})
"""Scripts of which each call adds or takes something: a heartbeat, what is next in a stream."""
ANSWERED_AGAIN: Final = {
    ("promote", "promoted"): "stale",
    ("capacity", "written"): "unchanged",
    ("count", "changed"): "unchanged",
    ("count", "added"): "counted",
}
"""Scripts that say of a repeat that it comes late; all others answer it as they did at first."""
_GONE: Final = {"state": "none"}
RUN_MS_MAX: Final = 300_000  # no run takes so long
INVARIANTS: Final = frozenset(
    {
        "broken", "capacity", "closed", "crash", "deadline", "epoch", "leak", "lease", "left", "limit", "lost", "moved",
        "order", "overdue", "past", "repeat", "running", "slots", "spins", "stale", "start", "token", "transition",
        "twice", "unfit", "unheard", "waits",
    }
)  # fmt: skip
"""The words by which violations are told apart; docs/SIMULATION.md says what each means."""


class Violation(NamedTuple):
    """invariant: one of INVARIANTS; detail: what was seen, and when."""

    invariant: str
    detail: str


class Entry(NamedTuple):
    """An intake entry. session: empty when the entry is broken; deadline_at_ms: of the server, infinite without one."""

    number: tuple[int, int]
    job_id: str
    session: str
    deadline_at_ms: float


class Checker:
    """is_excused: whether a process is the earlier life of a node and could not hear that a later one has begun, which
    so took it for dead. acknowledged: job id -> the entry that its producer was told of. due_s: entry -> when the
    deadline of its job is over, as its producer counts the time. broken: entries that are no jobs.
    strays: sessions of which a job was written into another partition.
    unbound: sessions whose binding may have expired by a step of the clock, and be remembered all the same.
    lease_ends_s: (node, job id) -> when the lease ends, due_at_s: job id -> when a delayed job is due, both by the time
    of the world: from when they were written on, whatever the server's clock did since.
    slotless_until_s: job id -> until when its reservation may have no slot, for somebody has deleted it;
    forgotten_jobs: those whose records were deleted, which may leave a slot taken until its lease ends;
    unlimited_until_s: until when a limit may not count those that ran before, for the same reason.
    judges_sessions: whether a session is bound to the node of its last job; where it returns to another one it is not.
    """

    def __init__(self, world: World, server: Server, history: History) -> None:
        self.world = world
        self.server = server
        self.history = history
        self.violations: list[Violation] = []
        self.limits = LimitChecker(server, self.blame)
        self.exempt: set[str] = set()
        self.acknowledged: dict[str, str] = {}
        self.due_s: dict[str, float] = {}
        self.broken: set[str] = set()
        self.strays: set[str] = set()
        self.unbound: set[str] = set()
        self._expires_s: dict[str, float] = {}
        self.data_faults = 0
        self.judges_sessions = True
        self.records: dict[str, dict[str, str]] = {}
        self.slots: dict[str, dict[str, int]] = {}
        self.lease_ends_s: dict[tuple[str, str], float] = {}
        self.due_at_s: dict[str, float] = {}
        self._scores: dict[str, int] = {}
        self._in_order: dict[tuple[str, int], int] = {}
        self.tokens: dict[str, int] = {}
        self._entries: dict[tuple[str, str], Entry] = {}
        self.ended: set[str] = set()
        self._fences: dict[str, tuple[int, str]] = {}
        self.slotless_until_s: dict[str, float] = {}
        self.forgotten_jobs: set[str] = set()
        self.unlimited_until_s = 0.0
        self._past_since_s: dict[tuple[str, tuple[str, int]], float] = {}
        self.is_excused: Callable[[Process], bool] = lambda process: False
        server.on_touch = self.touched
        server.on_repeat = self.repeated
        history.on_start = self.started

    def blame(self, invariant: str, detail: str) -> None:
        """Something does not hold."""
        assert invariant in INVARIANTS, invariant
        self.violations.append(Violation(invariant, f"{self.world.elapsed_s:.3f} s: {detail}"))

    # ---- after each command ----

    def touched(self, names: Iterable[bytes]) -> None:
        """Keys that a command changed; records first, for the others are held against them."""
        jobs: dict[str, dict[str, str]] = {}
        nodes: list[str] = []
        limits: list[bytes] = []
        is_published = False
        for name in names:
            if name.startswith(_JOB):
                job_id = name[len(_JOB) :].decode()
                jobs[job_id] = self.records.get(job_id, _GONE)
                self.records[job_id] = self.read_record(job_id)
            elif name.startswith(_SLOTS):
                nodes.append(name[len(_SLOTS) :].decode())
            elif name.startswith(_HELD):
                limits.append(name)
            elif name == _DELAYED:
                self._note_delayed()
            elif name == _COUNTED:
                self.limits.counted()
            elif name.decode() in _FENCES:
                self._check_fences()
                is_published = is_published or name.decode() == _CONTROL.version
        for node in nodes:
            self._note_slots(node)
        for job_id, before in jobs.items():
            self._check_record(job_id, before, self.records[job_id])
        for node in nodes:
            self._check_slots(node)
        for limit in limits:
            self.limits.check_held(limit, self.records)
        if is_published:
            self.limits.published(self.records, self.exempt)

    def repeated(self, command: list[bytes], reply: Any, again: Any, changed: list[bytes]) -> None:
        """The same call again leaves everything as it is, and is answered so that its caller has nothing else to do.
        Streams that take each call anew are not asked, nor who gives partitions up to take them anew: that is another
        hold each time, under an epoch that its answer tells.
        """
        script = SCRIPTS[command[1]]
        if script in ADDING or (script == "claim" and {b"give_up", b"take"} <= set(command)):
            return
        if changed:
            self.blame("repeat", f"{script} was repeated and changed {changed}")
        first, second = _words_of(reply), _words_of(again)
        for one, other in itertools.zip_longest(first, second):
            # A job without a slot is tried again, whatever kept it from one; perhaps the call itself has changed that.
            is_refused = script == "reserve" and "reserved" not in (one, other)
            if other != ANSWERED_AGAIN.get((script, one), one) and not is_refused:
                self.blame("repeat", f"{script} was answered {one}, and {other} when it was repeated")

    def read_record(self, job_id: str) -> dict[str, str]:
        """A record as it is stored, with its words; state `none` when there is none."""
        flat = self.server.ask("HGETALL", _CELL.job(job_id))
        fields = {flat[i].decode(): flat[i + 1].decode(errors="replace") for i in range(0, len(flat), 2)}
        return record_fields.split_words(fields) if fields else _GONE

    def _note_slots(self, node: str) -> None:
        before = self.slots.get(node, {})
        self.slots[node] = self._read_slots(node)
        for job_id in before.keys() - self.slots[node].keys():
            del self.lease_ends_s[node, job_id]
        for job_id, until_ms in self.slots[node].items():
            if before.get(job_id) != until_ms:
                self.lease_ends_s[node, job_id] = self._world_s(until_ms)

    def _note_delayed(self) -> None:
        flat = self.server.ask("ZRANGE", _CELL.delayed, 0, -1, "WITHSCORES")
        before = self._scores
        self._scores = {flat[i].decode(): int(float(flat[i + 1])) for i in range(0, len(flat), 2)}
        self.due_at_s = {
            job_id: self.due_at_s[job_id] if before.get(job_id) == due_ms else self._world_s(due_ms)
            for job_id, due_ms in self._scores.items()
        }

    def _world_s(self, server_ms: int) -> float:
        """When the server's clock says so, if nobody steps it."""
        return self.world.now_s + server_ms / 1000 - self.server.wall_s()

    def _read_slots(self, node: str) -> dict[str, int]:
        flat = self.server.ask("ZRANGE", _CELL.slots(node), 0, -1, "WITHSCORES")
        return {flat[i].decode(): int(float(flat[i + 1])) for i in range(0, len(flat), 2)}

    def _check_record(self, job_id: str, before: dict[str, str], after: dict[str, str]) -> None:
        old, new = before["state"], after.get("state", "none")
        if old in TERMINAL and self.world.now_s >= self._expires_s.get(job_id, math.inf):
            old = "none"  # it expired unseen
        self.history.add("record", job_id, new, after.get("token", ""), after.get("reason", ""))
        if new in TERMINAL:
            self.ended.add(job_id)
        if (old, new) not in _LEGAL:
            self.blame("transition", f"job {job_id} went from {old} to {new}")
        token = int(after.get("token", 0) or 0)
        if new == "reserved" and (old != "reserved" or before.get("token") != after.get("token")):
            # Of a job that the server has lost nobody knows which token was its last.
            if token <= self.tokens.get(job_id, 0) and job_id not in self.exempt:
                self.blame("token", f"job {job_id} was reserved with token {token} after {self.tokens[job_id]}")
            unstepped_us = int((self.server.wall_s() - self.server.shift_s) * 1_000_000)
            self._in_order[job_id, token] = max(unstepped_us, 1 + next(reversed(self._in_order.values()), 0))
            self._check_capacity(job_id, after)
            self._check_order(job_id, after)
            if self.world.now_s >= self.unlimited_until_s:
                self.limits.reserved(job_id, self.records, self.exempt)
        self.tokens[job_id] = max(token, self.tokens.get(job_id, 0))
        held_by = [node for node, members in self.slots.items() if job_id in members]
        should = [after["node"]] if new == "reserved" and "node" in after else []
        if job_id in self.forgotten_jobs:
            return
        if held_by != should and not (should and self._is_slotless(job_id)):
            self.blame("slots", f"job {job_id} is {new}, held by {should}, and has slots on {held_by}")

    def _is_slotless(self, job_id: str) -> bool:
        """Whether its slot was deleted, and need not be there again yet."""
        return self.slotless_until_s.get(job_id, 0.0) > self.world.now_s

    def _check_slots(self, node: str) -> None:
        members = self.slots[node]
        if len(members) > CAPACITY:
            self.blame("capacity", f"{node} has {len(members)} of {CAPACITY} slots in use: {sorted(members)}")
        for job_id in members:
            record = self.records.get(job_id, _GONE)
            if (record["state"] != "reserved" or record.get("node") != node) and job_id not in self.exempt:
                self.blame("slots", f"a slot of {node} is taken by job {job_id}, which is {record['state']}")

    def _check_capacity(self, job_id: str, record: dict[str, str]) -> None:
        """A node gets a job only for the life that `capacity` names, and while it has a slot by that."""
        node = record.get("node", "")
        slots, boot, *_ = (self.server.ask("HGET", _CELL.capacity, node) or b"0 -").decode().split(" ")
        used = self.server.ask("ZCARD", _CELL.slots(node))
        if boot != record.get("boot") or used > int(slots):
            wrong = f"boot {record.get('boot')} in slot {used}, while it has {slots} as {boot}"
            self.blame("capacity", f"job {job_id} is reserved on {node}, {wrong}")

    def _check_fences(self) -> None:
        """Epochs and versions never fall, and each new holder has a higher epoch than the one before."""
        flat = self.server.ask("HGETALL", _CELL.owners)
        held = {}
        for number in range(0, len(flat), 2):
            epoch, owner, *_ = flat[number + 1].decode().split(" ")
            held[f"partition {flat[number].decode()}"] = int(epoch), owner.removeprefix("-")
        name, epoch = self.server.ask("HMGET", _CONTROL.leader, "name", "epoch")
        held["the lead"] = int(epoch or 0), (name or b"").decode()
        held["the snapshot"] = int(self.server.ask("GET", _CONTROL.version) or 0), ""
        held = {what: each for what, each in held.items() if each[0]}  # others were deleted, and come again
        for what, (number, holder) in held.items():
            number_before, holder_before = self._fences.get(what, (0, ""))
            is_new = holder not in ("", holder_before)
            if number < number_before or (is_new and number == number_before):
                before = f"{number_before} of {holder_before!r}"
                self.blame("epoch", f"{what} has the epoch {number} of {holder!r} after {before}")
        self._fences |= held

    def _check_order(self, job_id: str, record: dict[str, str]) -> None:
        """No earlier entry of the session may still be in the intake of the partition."""
        partition, _, entry_id = record.get("entry", "").partition("/")
        if not entry_id:
            return
        own, now_s = _number(entry_id), self.server.wall_s()
        for entry in self.intake(int(partition)):
            is_earlier = entry.number < own and entry.session == record.get("session") and entry.job_id != job_id
            earlier = "{}-{}".format(*entry.number)
            # One whose deadline has passed is about to be ended by its owner.
            is_late = (
                min(
                    entry.deadline_at_ms / 1000 - now_s,
                    self.due_s.get(f"{partition}/{earlier}", math.inf) - self.world.now_s,
                )
                <= 0
            )
            if is_earlier and not is_late:
                self.blame("order", f"job {job_id} ({entry_id}) passed {entry.job_id} ({earlier}) of {entry.session}")

    def intake(self, partition: int) -> list[Entry]:
        """What is in the intake of a partition, in order."""
        name = _CELL.jobs(partition)
        found = []
        for identifier, flat in self.server.ask("XRANGE", name, "-", "+"):
            key = name, identifier.decode()
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _entry(partition, identifier.decode(), flat)
            found.append(entry)
        return found

    # ---- handlers ----

    def started(self, process: Process, job: Job) -> None:
        """A handler begins only under a lease that is in force, and in a slot."""
        node = job.node
        record, ends_s = self.records.get(job.job_id, _GONE), self.lease_ends_s.get((node, job.job_id))
        late_s = self.world.now_s - (ends_s or 0)
        if ends_s is None or record.get("token") != str(job.token) or record["state"] != "reserved":
            if job.job_id not in self.exempt and not self.is_excused(process) and not self._is_slotless(job.job_id):
                held = f"{record['state']}, token {record.get('token')}"
                self.blame("start", f"{process.name} starts job {job.job_id} with token {job.token}, but it is {held}")
        elif late_s >= 0 and job.job_id not in self.exempt:
            self.blame("lease", f"{process.name} starts job {job.job_id} {late_s * 1000:.0f} ms after its lease")
        if not can_run(node, job.src_lang, job.tgt_lang, job.features):
            asked = f"{job.src_lang}:{job.tgt_lang} {' '.join(job.features)}"
            self.blame("unfit", f"{process.name} starts job {job.job_id}, which asks for {asked}")
        self._check_running(process, node)

    def check_leases(self) -> None:
        """No handler that was not told to stop runs past its lease; what was asleep has a moment to notice."""
        past = {}
        for (process, key), job in self.history.running.items():
            ends_s = self.lease_ends_s.get((job.node, job.job_id), 0.0)
            is_held = self.records.get(job.job_id, _GONE).get("token") == str(job.token)
            is_over = not is_held or ends_s < self.world.now_s
            awake_s = self.world.now_s - process.suspended_until_s
            is_exempt = job.job_id in self.exempt or self._is_slotless(job.job_id)
            if is_over and awake_s > WAKE_S and not job.stopped.is_set() and not is_exempt:
                past[process.name, key] = self._past_since_s.get((process.name, key), self.world.now_s)
                if self.world.now_s - past[process.name, key] > WAKE_S and not self.is_excused(process):
                    self.blame("past", f"{process.name} runs job {job.job_id} past its lease")
        self._past_since_s = past

    def _check_running(self, process: Process, node: str) -> None:
        """Of one life all handlers count; of others those that were not told to stop, if the server can reach them."""
        running = self.history.running.items()
        mine = [job.job_id for (each, _), job in running if each is process]
        others = [
            job.job_id
            for (each, _), job in running
            if job.node == node and each is not process and not job.stopped.is_set() and not self.is_excused(each)
        ]
        if len(mine) > CAPACITY or (len(mine) + len(others) > CAPACITY and not self.is_excused(process)):
            self.blame("running", f"{process.name} runs {mine}, earlier lives {others}; it has {CAPACITY} slots")

    # ---- faults of the data ----

    def before_loss(self) -> dict[str, dict[str, str]]:
        """What is known of all jobs, to be handed to `after_loss`."""
        return dict(self.records)

    def after_loss(self, before: dict[str, dict[str, str]]) -> None:
        """Begin anew with what is there now; jobs of which something is missing are exempt.

        A lease that is there as it was ends when it did: the clock may have been stepped since it was written.
        """
        self._fences = {}
        exempt, slots = len(self.exempt), dict(self.slots)
        self._scores = {}
        for node in NODES:
            self._note_slots(node)
        self._note_delayed()
        entries = {entry.job_id for partition in range(SETTINGS.partitions) for entry in self.intake(partition)}
        for job_id in {*before, *self.acknowledged}:
            record = self.read_record(job_id)
            known = before.get(job_id, _GONE)
            if record != known or (known["state"] == _GONE["state"] and job_id not in entries):
                self.exempt.add(job_id)
            self.records[job_id] = record
        self.ended = {job_id for job_id, record in self.records.items() if record["state"] in TERMINAL}
        self.data_faults += len(self.exempt) > exempt or slots != self.slots
        self.limits.published(self.records, self.exempt)

    def forgotten(self, names: Iterable[str]) -> None:
        """Keys were deleted. Records are read anew; who had a slot has time to get it back."""
        self.data_faults += 1
        for name in names:
            if name.startswith(_JOB.decode()):
                job_id = name[len(_JOB) :]
                self.records[job_id] = _GONE
                self.ended.discard(job_id)
                self.forgotten_jobs.add(job_id)
            elif name.startswith(_SLOTS.decode()):
                node = name[len(_SLOTS) :]
                until_s = self.world.now_s + 2 * SETTINGS.lease_ms / 1000 + WAKE_S
                self.slotless_until_s |= dict.fromkeys(self.slots.get(node, {}), until_s)
                self._note_slots(node)
        self._note_delayed()

    def after_jump(self, s: float) -> None:
        """The server's clock was stepped: records may have expired, or do so within the run; then their ids are new."""
        if abs(s) * 1000 >= SETTINGS.session_ttl_ms:
            self.data_faults += 1
            self.unbound |= {record.get("session", "") for record in self.records.values()}
        for job_id, record in self.records.items():
            left_ms = self.server.ask("PTTL", _CELL.job(job_id)) if record["state"] in TERMINAL else -1
            if left_ms != -1 and left_ms < RUN_MS_MAX:
                self.exempt.add(job_id)
                self._expires_s[job_id] = self.world.now_s + max(left_ms, 0) / 1000
                if self.read_record(job_id) is _GONE:
                    self.records[job_id] = _GONE
            else:
                self._expires_s.pop(job_id, None)  # a step back has postponed it

    # ---- the end ----

    def is_clean(self) -> bool:
        """Whether nothing is held or kept any more."""
        ask = self.server.ask
        held = any(ask("ZCARD", _CELL.slots(node)) for node in NODES) or ask("KEYS", _CELL.held("*", "*"))
        return not held and not any(ask("XLEN", _CELL.jobs(each)) for each in range(SETTINGS.partitions))

    def is_done(self) -> bool:
        """Whether every acknowledged job has ended, those too of which a fault of the data took only a part."""
        if not all(job_id in self.exempt or job_id in self.ended for job_id in self.acknowledged):
            return False
        states = {self.records.get(job_id, _GONE)["state"] for job_id in self.exempt}
        if states & {"reserved", "delayed"}:
            return False
        return "queued" not in states or not any(self.intake(each) for each in range(SETTINGS.partitions))

    def check_end(self) -> None:
        """Once nothing happens any more."""
        for job_id in self.acknowledged:
            if job_id not in self.ended and job_id not in self.exempt:
                state = self.records.get(job_id, _GONE)["state"]
                self.blame("lost", f"job {job_id} was acknowledged and is {state}")
        for node in NODES:
            if used := self._read_slots(node):
                self.blame("leak", f"slots of {node} at the end: {used}")
        for partition in range(SETTINGS.partitions):
            left = [entry.job_id for entry in self.intake(partition) if entry.job_id not in self.exempt]
            if left:
                self.blame("left", f"partition {partition} still has {left}")
        for name in self.server.ask("KEYS", _CELL.held("*", "*")):
            self.blame("leak", f"{name.decode()} at the end: {self.server.ask('ZRANGE', name, 0, -1)}")
        if delayed := self.server.ask("ZRANGE", _CELL.delayed, 0, -1):
            self.blame("left", f"delayed at the end: {delayed}")
        parked = [
            identifier for identifier, flat in self.server.ask("XRANGE", _CELL.parked, "-", "+") if b"job" in flat
        ]
        if parked:
            self.blame("left", f"{len(parked)} bodies are parked at the end")
        for partition in range(SETTINGS.partitions):
            self._check_open(_CELL.jobs(partition))
        self.limits.check_end()
        self._check_outcomes()
        self._check_broken()
        if self.judges_sessions and not self.data_faults:
            self._check_sessions()

    def _check_open(self, stream: str) -> None:
        """One more entry can be written."""
        try:
            self.server.ask("XADD", stream, "*", "last", "1")
        except RuntimeError as error:
            self.blame("closed", f"{stream} takes no entry any more: {error}")

    def _check_broken(self) -> None:
        """What is no job is dead, with a reason."""
        for job_id in self.broken - self.exempt:
            record = self.records.get(job_id, _GONE)
            if (record["state"], record.get("reason")) not in (("dead", "invalid"), ("dead", "too_large")):
                self.blame("broken", f"the broken entry {job_id} is {record['state']}: {record.get('reason')}")

    def _check_sessions(self) -> None:
        """Sessions stay on their nodes, and those that moved had a reason that is true. Nothing is promised to those of
        which a job was written into another partition.
        """
        submissions = {}
        for job_id, entry in self.acknowledged.items():
            if not entry:
                continue  # it was answered that the job is known, and not where
            partition, _, entry_id = entry.partition("/")
            session = self.records.get(job_id, _GONE).get("session", "")
            submissions[job_id] = Submission(job_id, session, int(partition), entry_id)
        submissions = {job_id: each for job_id, each in submissions.items() if each.session_id not in self.strays}
        outcomes = [
            Outcome(job_id, 1, record["state"], self._ordered(job_id, int(record.get("token", 0))))  # type: ignore[arg-type]
            for job_id, record in self.records.items()
            if record["state"] in TERMINAL
        ]
        runs = [
            msgspec.structs.replace(run, token=self._ordered(run.job_id, run.token))
            for run in self.history.runs
            if run.session_id not in self.strays
        ]
        runs.sort(key=lambda run: run.token)
        _, moved = judge_sessions(submissions, runs, outcomes, SETTINGS.session_ttl_ms)
        for line in moved:
            self.blame("moved", line)

    def _ordered(self, job_id: str, token: int) -> int:
        """A token as it would be if nobody had stepped the server's clock: they rise with time."""
        return self._in_order.get((job_id, token), token)

    def _check_outcomes(self) -> None:
        """One terminal outcome a life, told once."""
        outcomes: dict[tuple[str, str], list[str]] = defaultdict(list)
        for _, flat in self.server.ask("XRANGE", _CELL.results, "-", "+"):
            fields = {flat[i].decode(): flat[i + 1].decode(errors="replace") for i in range(0, len(flat), 2)}
            if "job_id" in fields:  # others are those that somebody wrote with an absurd id
                outcome = f"{fields['state']} {fields.get('token', '')}"
                outcomes[fields["job_id"], fields.get("life", "1")].append(outcome)
        for (job_id, _), found in outcomes.items():
            if len(found) > 1 and job_id not in self.exempt:
                self.blame("twice", f"job {job_id} ended as {sorted(found)}")


def _words_of(reply: Any) -> list[str]:
    """The first word of each answer of a script."""
    answers = reply if isinstance(reply, list) else [reply]
    first = [each[0] if isinstance(each, list) and each else each for each in answers]
    return [each.decode().split(" ")[0] for each in first if isinstance(each, bytes)]


def _number(entry_id: str) -> tuple[int, int]:
    first, _, second = entry_id.partition("-")
    return int(first), int(second)


def _entry(partition: int, entry_id: str, flat: list[bytes]) -> Entry:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    job_id = fields.get(b"job_id", b"").decode(errors="replace")
    try:
        document = decode_job(fields.get(b"job", b""))
        job_id = keys.check_id("job_id", job_id) if job_id else document.job_id
    except InvalidInput:
        document, job_id = None, ""
    if len(fields.get(b"payload", b"")) > SETTINGS.payload_bytes_max:
        document = None
    submitted_ms = min(_number(entry_id)[0], int(fields.get(b"submitted_ms", b"9" * 16)))
    deadline_ms = document.deadline_ms if document is not None else None
    return Entry(
        _number(entry_id),
        job_id or keys.generated_job_id(0, partition, entry_id),
        document.session_id if document is not None else "",
        float("inf") if deadline_ms is None else submitted_ms + deadline_ms,
    )
