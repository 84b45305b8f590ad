"""A node without the package: runs jobs in threads under leases that its own clock bounds.

Written from docs/PROTOCOL.md alone; a start for other languages. One loop does everything that talks to the server; a
second thread only watches the leases, so that a server that does not answer cannot keep a handler running.
"""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from tests.raw.server import Argument, Server

HEARTBEATS_MAX: Final = 20_000
SILENCE_MS: Final = 5_000
NOT_STARTED_MAX: Final = 5
RESULTS_MAX: Final = 100_000
FREED_MAX: Final = 1_000
RESULT_INLINE_BYTES_MAX: Final = 4_096
BATCH_MAX: Final = 128
READ_BLOCK_MS: Final = 20
READ_MAX: Final = 128
COMPARE_MS: Final = 1_000
BACKOFF_MS: Final = 1_000
BACKOFF_MS_MAX: Final = 60_000
TOO_LATE_MS: Final = 500


@dataclass
class Assignment:
    """A job as the inbox has it. stopped: set when its handler should end."""

    job_id: str
    payload: bytes
    session: str
    tenant: str
    reply_to: str
    partition: str
    token: str
    boot: str
    attempt: int
    lease_until_ms: int
    lease_ms: int
    length_ms: int
    ends_s: float
    stopped: threading.Event = field(default_factory=threading.Event)
    ending: Ending | None = None
    lost: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """Two jobs can have the same token."""
        return self.job_id, self.token


@dataclass(frozen=True)
class Ending:
    """What is reported of an attempt."""

    verdict: str
    state: str = "completed"
    delay_ms: int = 0
    reason: str = ""
    detail: str = ""
    content_type: str = ""
    result: bytes = b""


Work = Callable[[Assignment], object]


def own_s() -> float:
    """The own clock: one that runs on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Node:
    """One node.

    Args: url; node_id; work, runs an assignment and returns bytes, text, None or something for JSON; capacity; pairs;
    heartbeat_ms; margin_ms. Raises: Refused.
    """

    def __init__(
        self,
        url: str,
        node_id: str,
        work: Work,
        *,
        capacity: int = 4,
        pairs: Sequence[tuple[str, str]] = (("en", "zh"),),
        heartbeat_ms: int = 1_000,
        margin_ms: int = 1_000,
    ) -> None:
        self.server = Server(url)
        self.node_id = node_id
        self.phase = "joining"
        names = ("last_boot", "capacity", f"slots:{node_id}")
        self._since_ms, number, held = self.server.call("boot", [self.server.key(name) for name in names], [node_id])
        self.boot = f"{number.decode()}-{secrets.token_hex(4)}"
        self._held_before = {job_id.decode(): until_ms for job_id, until_ms in zip(held[::2], held[1::2], strict=True)}
        self._work = work
        self._capacity = capacity
        self._pairs = pairs
        self._heartbeat_ms = heartbeat_ms
        self._margin_ms = margin_ms
        self._cursor = "0"
        self._read_to_end_s = own_s()
        self._compare_due_s = 0.0
        self._run_id = ""
        self._beat_due_s = 0.0
        self._margin_over_s = float("inf")
        self._renew_at_once = False
        self._wants_to_leave = threading.Event()
        self._over = threading.Event()
        self._running: dict[tuple[str, str], Assignment] = {}
        self._earlier: list[Assignment] = []
        self._finished: queue.SimpleQueue[Assignment] = queue.SimpleQueue()
        self._endings: list[tuple[Assignment, Ending]] = []

    def run(self) -> None:
        """Serve until it has left or was replaced."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            while not self._over.is_set():
                if self.phase != "replaced":
                    self._beat()
                self._read_inbox()
                self._renew()
                if self.phase == "replaced":
                    self._hand_over()
                else:
                    self._end_earlier()
                self._report()
        finally:
            self._over.set()
            for assignment in list(self._running.values()):
                assignment.stopped.set()
            watcher.join()
            self.server.close()

    def drain(self) -> None:
        """Leave once what runs has ended; from any thread."""
        self._wants_to_leave.set()

    def die(self) -> None:
        """End without a word, as a process that is killed; from any thread."""
        self._over.set()

    # ---- heartbeat ----

    def _beat(self) -> None:
        if time.monotonic() < self._beat_due_s:
            return
        self._beat_due_s = time.monotonic() + self._heartbeat_ms / 1000
        wants_to_leave = self._wants_to_leave.is_set()
        document = {
            "kind": "node",
            "node": self.node_id,
            "boot": self.boot,
            "capacity": self._capacity,
            "pairs": self._pairs,
            "since_ms": self._since_ms,
            "draining": wants_to_leave,
            "running": len(self._running),
        }
        keys = [self.server.control_key("heartbeats"), self.server.control_key("dispatchers")]
        self.server.call("beat", keys, [json.dumps(document), "", HEARTBEATS_MAX, SILENCE_MS, "stays"])
        if wants_to_leave and self.phase in ("joining", "serving"):
            self.phase = "draining"
        if wants_to_leave or (self.phase == "draining" and not (self._running or self._earlier or self._endings)):
            self._leave()

    def _leave(self) -> None:
        names = ("capacity", "open", f"slots:{self.node_id}", f"inbox:{self.node_id}", f"left:{self.node_id}")
        arguments = [self.node_id, self.boot, "leaves" if self._wants_to_leave.is_set() else "drained"]
        answer = self.server.call("leave", [self.server.key(name) for name in names], arguments)
        if answer[0] != b"busy":
            self.phase = answer[0].decode()
            self._over.set()

    # ---- inbox ----

    def _compare_inbox(self) -> None:
        """Read the inbox from its start again when the server has less than it had."""
        if time.monotonic() < self._compare_due_s:
            return
        self._compare_due_s = time.monotonic() + COMPARE_MS / 1000
        last_id, run_id = self.server.last_id(self.server.key(f"inbox:{self.node_id}")), self.server.run_id()
        is_behind = [int(part) for part in last_id.split("-")] < [int(part) for part in self._cursor.split("-")]
        if is_behind or self._run_id not in ("", run_id):
            self._cursor = "0"
            self._read_to_end_s = float("-inf")
            self._renew_at_once = True
        self._run_id = run_id

    def _read_inbox(self) -> None:
        self._compare_inbox()
        sent_s, not_there_s = own_s(), self._read_to_end_s
        entries = self.server.read(self.server.key(f"inbox:{self.node_id}"), self._cursor, READ_BLOCK_MS, READ_MAX)
        for identifier, fields in entries:
            self._cursor = identifier
            if "control" in fields:
                self._obey(fields["control"].decode(), fields["boot"].decode())
            else:
                self._assign(assignment_of(fields, not_there_s))
        if len(entries) < READ_MAX:
            self._read_to_end_s = sent_s

    def _obey(self, control: str, boot: str) -> None:
        if number_of(boot) > number_of(self.boot):
            self.phase = "replaced"
            self._renew_at_once = True
            for assignment in list(self._running.values()):
                self._stop(assignment, given_back("a later boot took over"))
        elif boot != self.boot:
            return
        elif control == "boot":
            self.phase = "serving" if self.phase == "joining" else self.phase
            self._margin_over_s = time.monotonic() + self._margin_ms / 1000
        elif control == "drained" and self.phase == "serving":
            self.phase = "draining"
        elif control == "resumed" and self.phase == "draining" and not self._wants_to_leave.is_set():
            self.phase = "serving"

    def _assign(self, assignment: Assignment) -> None:
        known = [*self._earlier, *(each for each, _ in self._endings)]
        if assignment.key in self._running or any(each.key == assignment.key for each in known):
            return
        if number_of(assignment.boot) < number_of(self.boot):
            self._earlier.append(assignment)
        elif assignment.boot == self.boot:
            self._start(assignment)

    def _end_earlier(self) -> None:
        """What lower boots still hold, once they had their time to hand over, but for what they have renewed."""
        if time.monotonic() < self._margin_over_s:
            return
        for each in self._earlier:
            if not self._is_kept(each):
                self._endings.append((each, Ending("reboot", reason="reboot")))
        self._earlier = []

    def _is_kept(self, assignment: Assignment) -> bool:
        """Whether an earlier life was alive to renew it since this one began."""
        key = self.server.key(f"job:{assignment.job_id}")
        slots = self.server.key(f"slots:{self.node_id}")
        fields = ("holder", "started_ms")
        both = self.server.client.pipeline(transaction=False).hmget(key, *fields).zscore(slots, assignment.job_id)
        (holder, started_ms), until_ms = self.server.patiently(both.execute)
        if None in (holder, started_ms, until_ms) or holder.split()[1] != assignment.token.encode():
            return False
        return int(until_ms) != int(self._held_before.get(assignment.job_id, b"-1"))

    def _hand_over(self) -> None:
        """Exit when every handler has ended and is reported."""
        if not (self._running or self._endings):
            self._over.set()

    def _start(self, assignment: Assignment) -> None:
        if not self._may_run(assignment) and not self._is_renewed(assignment):
            return
        if len(self._running) >= self._capacity:
            self._endings.append((assignment, given_back("it could not be started", TOO_LATE_MS)))
            return
        self._running[assignment.key] = assignment
        threading.Thread(target=self._attempt, args=(assignment,), daemon=True).start()

    def _attempt(self, assignment: Assignment) -> None:
        """Run the handler, in a thread of its own. Why it was stopped goes before what it comes to."""
        try:
            ending = completed(self._work(assignment))
        except Exception as error:
            delay_ms = min(BACKOFF_MS * 2 ** min(assignment.attempt - 1, 30), BACKOFF_MS_MAX)
            ending = Ending("retry", delay_ms=delay_ms, reason="handler_failed", detail=str(error)[:500])
        assignment.ending = assignment.ending or ending
        self._finished.put(assignment)

    # ---- leases ----

    def _may_run(self, assignment: Assignment) -> bool:
        margin_ms = min(self._margin_ms, assignment.length_ms / 2)
        return own_s() < assignment.ends_s - margin_ms / 1000

    def _is_renewed(self, assignment: Assignment) -> bool:
        """Whether an assignment that came too late, or at a time that cannot be, is still ours to start."""
        self._renew_all([assignment])
        if assignment.ending is not None:
            self._endings.append((assignment, assignment.ending))
        return not assignment.lost and assignment.ending is None and self._may_run(assignment)

    def _watch(self) -> None:
        """Stop what may run past its lease."""
        while not self._over.wait(self._margin_ms / 4_000):
            for assignment in list(self._running.values()):
                if not assignment.stopped.is_set() and not self._may_run(assignment):
                    self._stop(assignment, given_back("the lease could not be renewed in time"))

    def _stop(self, assignment: Assignment, ending: Ending) -> None:
        assignment.ending = assignment.ending or ending
        assignment.stopped.set()

    def _renew(self) -> None:
        """All in one call, when a third of some lease has passed."""
        running = list(self._running.values())
        due = any(own_s() >= each.ends_s - each.length_ms * 2 / 3_000 for each in running)
        if not running or not (due or self._renew_at_once):
            return
        self._renew_at_once = False
        self._renew_all(running)

    def _renew_all(self, running: Sequence[Assignment]) -> None:
        names = [f"slots:{self.node_id}", *(f"job:{each.job_id}" for each in running), "capacity"]
        keys = [self.server.key(name) for name in names]
        items = [
            word
            for each in running
            for word in (each.job_id, each.token, "started" if each.key in self._running else "waiting")
        ]
        answer = self.server.call("renew", keys, items)
        for assignment, (word, *_) in zip(running, answer[1:], strict=True):
            if word in (b"renewed", b"cancelling"):
                assignment.length_ms = assignment.lease_ms
                assignment.ends_s = self.server.sent_s + assignment.lease_ms / 1000
            if word == b"cancelling":
                self._stop(assignment, given_back("cancelled"))
            elif word == b"overrun":
                self._stop(assignment, Ending("retry", reason="overrun"))
            elif word == b"crowded":
                self._renew_at_once = True
            elif word in (b"stale", b"unknown"):
                assignment.lost = True
                assignment.stopped.set()

    # ---- endings ----

    def _report(self) -> None:
        """Report what has ended, up to 128 together; what the server is too busy for stays for the next time."""
        while not self._finished.empty():
            assignment = self._finished.get()
            del self._running[assignment.key]
            if not assignment.lost and assignment.ending is not None:
                self._endings.append((assignment, assignment.ending))
        batch, self._endings = self._endings[:BATCH_MAX], self._endings[BATCH_MAX:]
        if not batch or self._over.is_set():
            return
        answers = self.server.call_each("release", batch, self._build)[1]
        failed = []
        for (assignment, ending), answer in zip(batch, answers, strict=True):
            if answer is not None and answer[0] == b"busy" and ending.verdict != "reboot":
                self._endings.append((assignment, ending))
            elif answer is not None and answer[0] == b"released" and ending.verdict == "retry" and ending.detail:
                failed.append((assignment, ending))
        if failed:
            self._describe(failed)

    def _describe(self, failed: Sequence[tuple[Assignment, Ending]]) -> None:
        """Say for people why attempts failed; a server that does not take it is not asked again."""
        keys: list[str] = []
        arguments: list[Argument] = [self.server.layout["retention_ms"]]
        for job, ending in failed:
            keys += [self.server.key(f"job:{job.job_id}"), self.server.key(f"detail:{job.job_id}")]
            arguments += [job.job_id, job.token, ending.detail]
        with contextlib.suppress(redis.RedisError, OSError):
            self.server.call_once("describe", keys, arguments)

    def _build(self, batch: Sequence[tuple[Assignment, Ending]]) -> tuple[list[str], list[Argument]]:
        key, layout = self.server.key, self.server.layout
        partitions = sorted({assignment.partition for assignment, _ in batch})
        keys = [key(name) for name in ("capacity", "open", "freed", "results", "delayed", "parked", "dead")]
        keys += [key(f"jobs:{partition}") for partition in partitions]
        keys += [key(f"slots:{self.node_id}"), key(f"inbox:{self.node_id}")]
        arguments: list[Argument] = [len(partitions), 1, layout["retention_ms"], layout["dead_retention_ms"]]
        arguments += [NOT_STARTED_MAX, RESULTS_MAX, FREED_MAX, RESULT_INLINE_BYTES_MAX, *partitions, self.node_id]
        for job, ending in batch:
            keys += [key(f"job:{job.job_id}"), key(f"result:{job.job_id}"), self.server.results_key(job.reply_to)]
            keys += [key(f"held:session:{job.session}"), key(f"held:tenant:{job.tenant}")]
            arguments += [partitions.index(job.partition) + 1, 1, job.job_id, job.session, job.tenant, job.reply_to]
            arguments += [job.token, ending.verdict, self.boot, ending.delay_ms, ending.state, ending.reason]
            arguments += [ending.detail, ending.content_type, ending.result]
        return keys, arguments


def assignment_of(fields: dict[str, bytes], not_there_s: float) -> Assignment:
    """An inbox entry, and when it was surely not made yet."""
    text = {name: value.decode() for name, value in fields.items() if name not in ("job", "payload")}
    token, boot, lease_until_ms, entry, attempt, _, _, length_ms = text["reservation"].split(" ")[:8]
    return Assignment(
        job_id=text["job_id"],
        payload=fields["payload"],
        session=text["session"],
        tenant=text.get("tenant", ""),
        reply_to=text.get("reply_to", ""),
        partition=entry.partition("/")[0],
        token=token,
        boot=boot,
        attempt=int(attempt),
        lease_until_ms=int(lease_until_ms),
        lease_ms=int(text["policy"].split(" ")[1]),
        length_ms=int(length_ms),
        ends_s=not_there_s + int(length_ms) / 1000,
    )


def number_of(boot: str) -> int:
    """What orders the boots of a node."""
    return int(boot.partition("-")[0])


def given_back(detail: str, delay_ms: int = 0) -> Ending:
    """Through no fault of the job."""
    return Ending("give_back", delay_ms=delay_ms, reason="given_back", detail=detail)


def completed(value: Any) -> Ending:
    """What a handler returned."""
    if value is None:
        return Ending("finish")
    if isinstance(value, bytes):
        return Ending("finish", content_type="application/octet-stream", result=value)
    if isinstance(value, str):
        return Ending("finish", content_type="text/plain; charset=utf-8", result=value.encode())
    return Ending("finish", content_type="application/json", result=json.dumps(value).encode())
