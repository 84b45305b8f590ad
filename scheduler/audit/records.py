"""What the producer and the nodes of a rehearsal write down themselves: evidence for the checker, figures for the view.

Nothing here asks the server. Each event costs the same however many jobs there were, because it is counted as it comes.
Nodes in processes of their own write files (`--record`), which are read here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from pathlib import Path
from typing import Final, Literal, cast

import msgspec

from scheduler.audit import audit
from scheduler.audit.workloads import Arrival
from scheduler.node.attempts import Observer
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.protocol.messages import Outcome, Submitted

DECISIONS_MAX: Final = 100
EXACT_MS_MAX: Final = 1_000
COARSE_MS: Final = 100

Why = Literal["new", "bound", "spilled"]


class Decision(msgspec.Struct, frozen=True, gc=False):
    """Where a job of a session went. new: its first job; bound: the node of the job before; spilled: another one."""

    session_id: str
    node: str
    why: Why
    dispatch_ms: int


class Records:
    """All that was written down so far.

    ended: the ids of jobs with an outcome. news is set by each outcome. dispatch_ms counts milliseconds, those above
    EXACT_MS_MAX rounded, so that a percentile is quickly found.
    """

    def __init__(self) -> None:
        self.submissions: list[audit.Submission] = []
        self.runs: list[audit.Run] = []
        self.outcomes: list[audit.Outcome] = []
        self.capacities: list[audit.Capacity] = []
        self.ended: set[str] = set()
        self.states: Counter[str] = Counter()
        self.news = asyncio.Event()
        self.first_submission_s = self.last_ended_s = time.monotonic()
        self.lag_ms = 0.0
        self.dispatch_ms: Counter[int] = Counter()
        self.whys: Counter[Why] = Counter()
        self.decisions: deque[Decision] = deque(maxlen=DECISIONS_MAX)
        self._last_node: dict[str, str] = {}

    @property
    def open_jobs(self) -> int:
        """Jobs that the server acknowledged and that have no outcome yet."""
        return len(self.submissions) - len(self.ended)

    @property
    def affinity_rate(self) -> float | None:
        """The share of jobs on the node of their session's job before, in the order of their starts."""
        followers = self.whys["bound"] + self.whys["spilled"]
        return self.whys["bound"] / followers if followers else None

    def dispatch_percentile(self, percent: float) -> int | None:
        """Nearest rank over what was dispatched so far."""
        wanted = percent / 100 * self.dispatch_ms.total()
        below = 0
        for milliseconds, count in sorted(self.dispatch_ms.items()):
            below += count
            if below >= wanted:
                return milliseconds
        return None

    def submitted(self, arrival: Arrival, answer: Submitted) -> None:
        """The server acknowledged a job."""
        partition, _, entry_id = answer.entry.partition("/")
        self.submissions.append(audit.Submission(answer.job_id, arrival.session_id, int(partition), entry_id))

    def ended_with(self, outcome: Outcome) -> None:
        """The producer read an outcome."""
        state = cast(audit.State, outcome.state)
        self.outcomes.append(audit.Outcome(outcome.job_id, outcome.life, state, outcome.token))
        if outcome.job_id not in self.ended:
            self.ended.add(outcome.job_id)
            self.states[outcome.state] += 1
        self.last_ended_s = time.monotonic()
        self.news.set()

    def decided(self, job: Job) -> None:
        """A node began a job; first attempts count."""
        before = self._last_node.get(job.session_id)
        why: Why = "new" if before is None else "bound" if before == job.node else "spilled"
        self._last_node[job.session_id] = job.node
        self.whys[why] += 1
        waited_ms = _inbox_ms(job) - job.submitted_ms
        coarse = waited_ms if waited_ms < EXACT_MS_MAX else waited_ms // COARSE_MS * COARSE_MS
        if job.attempt == 1:
            self.dispatch_ms[coarse] += 1
        self.decisions.append(Decision(job.session_id, job.node, why, waited_ms))

    def evidence(self) -> audit.Evidence:
        """Everything, for the checker."""
        return audit.Evidence(
            submissions=self.submissions,
            runs=self.runs,
            outcomes=self.outcomes,
            capacities=self.capacities,
            first_submission_s=self.first_submission_s,
            last_ended_s=self.last_ended_s,
        )


class NodeRecords(Observer):
    """What one node writes down: its capacity before it serves, and each run."""

    def __init__(self, records: Records, node_id: str, capacity: int) -> None:
        self._records = records
        self._node_id = node_id
        self._capacity = capacity
        self._boot = ""
        self._started_us: dict[tuple[str, int], tuple[Job, int]] = {}

    @property
    def running(self) -> int:
        """Handlers that run now."""
        return len(self._started_us)

    def serves(self, node: Node, from_us: int) -> None:
        """The node has its boot; from_us: a moment before it could start anything."""
        self._boot = node.boot
        self._records.capacities.append(audit.Capacity(self._node_id, node.boot, from_us, self._capacity))

    def started(self, job: Job, at_us: int) -> None:
        """A handler begins."""
        self._started_us[job.key] = (job, at_us)
        self._records.decided(job)

    def ended(self, job: Job, at_us: int) -> None:
        """A handler has ended."""
        _, started_us = self._started_us.pop(job.key)
        self._records.runs.append(self._run(job, started_us, at_us))

    def give_up(self) -> None:
        """The node is gone: what still ran has no known end."""
        for job, started_us in self._started_us.values():
            self._records.runs.append(self._run(job, started_us, None))
        self._started_us.clear()

    def _run(self, job: Job, started_us: int, ended_us: int | None) -> audit.Run:
        return audit.Run(
            job_id=job.job_id,
            session_id=job.session_id,
            node=self._node_id,
            boot=self._boot,
            token=job.token,
            entry=job.entry,
            inbox_ms=_inbox_ms(job),
            started_us=started_us,
            ended_us=ended_us,
            attempt=job.attempt,
            pair=f"{job.src_lang}:{job.tgt_lang}",
            decision=job.decision,
        )


class _Line(msgspec.Struct):
    """A line of a node's file: `slots` stands in that of a capacity only."""

    slots: int | None = None


def read_file(path: Path) -> tuple[list[audit.Capacity], list[audit.Run]]:
    """What a node wrote with `--record`. A run that has no line of its end is one without an end.

    Raises: OSError; msgspec.DecodeError for a line that no node writes.
    """
    capacities: list[audit.Capacity] = []
    runs: dict[tuple[str, str, int], audit.Run] = {}
    for line in path.read_bytes().splitlines():
        if msgspec.json.decode(line, type=_Line).slots is not None:
            capacities.append(msgspec.json.decode(line, type=audit.Capacity))
        else:
            run = msgspec.json.decode(line, type=audit.Run)
            runs[run.boot, run.job_id, run.token] = run  # the line of the end comes after that of the start
    return capacities, list(runs.values())


def _inbox_ms(job: Job) -> int:
    return min(int(job.inbox_id.partition("-")[0]), job.token // 1_000)  # an id can lie ahead of the clock
