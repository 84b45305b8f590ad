"""What the clients of a run saw, in the order in which it happened; its digest tells whether two runs are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from scheduler.audit.evidence import Run
from scheduler.node.handlers import Job
from tests.simulation.world import Process, World

_DIGITS: Final = 6  # of seconds


class History:
    """Everything that clients record. on_start: told of each handler that begins."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._digest = hashlib.sha256()
        self.running: dict[tuple[Process, tuple[str, int]], Job] = {}
        self.runs: list[Run] = []
        self.on_start: Callable[[Process, Job], None] = lambda process, job: None
        self.lines: list[str] = []
        self.keeps_lines = False

    def add(self, *what: object) -> None:
        """Something happened now."""
        self._digest.update(self.tell(" ".join(map(str, what))).encode())

    def tell(self, what: str) -> str:
        """Something for readers of the log alone. Returns: the line."""
        line = f"{self._world.elapsed_s:.{_DIGITS}f} {what}"
        if self.keeps_lines:
            self.lines.append(line)
        return line

    def digest(self) -> str:
        """Of all so far."""
        return self._digest.hexdigest()[:16]

    def started(self, process: Process, job: Job) -> None:
        """A handler begins."""
        if process.is_alive:
            self.add("start", process.name, job.job_id, job.token)
            self.running[process, job.key] = job
            self.runs.append(_run_of(job, round(self._world.now_s * 1_000_000)))
            self.on_start(process, job)

    def ended(self, process: Process, job: Job) -> None:
        """Nothing of a handler runs any more."""
        if process.is_alive and self.running.pop((process, job.key), None) is not None:
            self.add("end", process.name, job.job_id, job.token)

    def died(self, process: Process) -> None:
        """Whatever ran in a process runs no more."""
        for key in [key for key in self.running if key[0] is process]:
            del self.running[key]


def _run_of(job: Job, started_us: int) -> Run:
    """A run as a node records it. When it ended is of no interest to whom these are for."""
    return Run(
        job_id=job.job_id,
        session_id=job.session_id,
        node=job.node,
        boot=job.reservation.boot,
        token=job.token,
        entry=job.entry,
        inbox_ms=int(job.inbox_id.partition("-")[0]),
        started_us=started_us,
        ended_us=None,
        attempt=job.attempt,
        pair=f"{job.src_lang}:{job.tgt_lang}",
        decision=job.decision,
    )
