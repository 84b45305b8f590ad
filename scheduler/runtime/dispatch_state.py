"""What one dispatcher knows when it decides: the snapshot, the load of nodes, who waits, and where sessions are bound.

One place for it, shared by what places and what settles. All of it may be out of date, which costs a try in vain at
most: what is true, the script looks up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from scheduler.clock import Clock
from scheduler.protocol import messages
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.partitions import Partitions
from scheduler.runtime.placement import candidates
from scheduler.runtime.waiting.limits import limits_of
from scheduler.runtime.waiting.overflow import Skipped
from scheduler.runtime.waiting.queues import Cause
from scheduler.runtime.waiting.waiting_jobs import Waiter, Waiting
from scheduler.session.bindings import Bindings, parse
from scheduler.store.reads import Reads

COUNTED_MS: Final = 60_000
"""For so long a kind is counted that no snapshot names: `reserve` says so again if it still has to be."""


class Knowledge:
    """Args: reads; clock, the process's own; partitions, those that are ours; waiting, skipped, bindings, of these.

    index: the snapshot by which jobs are placed. loads: node -> slots believed in use. counted: what the cell was last
    heard to count.
    """

    def __init__(
        self,
        reads: Reads,
        clock: Clock,
        partitions: Partitions,
        waiting: Waiting,
        skipped: Skipped,
        bindings: Bindings,
    ) -> None:
        self.index = Index()
        self.loads: dict[str, int] = {}
        self.counted = messages.Counted()
        self._counted_at_ms = 0.0
        self.partitions = partitions
        self.waiting = waiting
        self.skipped = skipped
        self.bindings = bindings
        self._reads = reads
        self._clock = clock

    @property
    def must_read(self) -> bool:
        """Whether bindings are read before jobs are tried: while most are stored, or jobs wait, which is by class."""
        return self.bindings.likely_stored or len(self.waiting) > 0 or bool(self.skipped)

    async def read(self, sessions: Sequence[str]) -> None:
        """Read the bindings that memory has no more, for a session without one would move. The others are used, so that
        none of them is forgotten for these. As owner of their partitions nobody but we can change them.
        """
        missing = [session for session in dict.fromkeys(sessions) if session not in self.bindings]
        if missing:
            stored = await self._reads.bindings(missing)
            now_ms = self._clock.ms()
            for session in sessions:
                self.bindings.get(session, now_ms)
            for session, binding in zip(missing, stored, strict=True):
                self.bindings.learn(session, parse(binding))

    # ---- what is counted for limits ----

    def kinds(self, index: Index) -> frozenset[str]:
        """The kinds of limits that a reservation counts for: those of the snapshot, and those that the cell told, which
        are of a later one.
        """
        return index.counted | self.counted.kinds if self.counted.kinds else index.counted

    def heed(self, counted: messages.Counted, now_ms: float) -> None:
        """The cell counts something else than the snapshot says."""
        self.counted, self._counted_at_ms = counted, now_ms

    @property
    def is_outdated(self) -> bool:
        """Whether the cell refuses what is placed by this snapshot."""
        return self.counted.version > self.index.version

    def forget_counted(self, now_ms: float) -> None:
        """What the cell told is over, if the snapshot says as much, or if that was long ago."""
        is_said = self.counted.kinds <= self.index.counted and not self.is_outdated
        if is_said or now_ms - self._counted_at_ms > COUNTED_MS:
            self.counted = messages.Counted()

    # ---- classes ----

    def classify(self, job: Job, now_ms: float) -> JobClass:
        """The class of a job by what is known now; now_ms: monotonic."""
        binding, _ = self.bindings.get(job.session_id, now_ms)
        return candidates.classify(job, binding, self.index)

    def reclassify(self, waiter: Waiter, now_ms: float) -> None:
        """Decide the class of a waiting job anew; now_ms: monotonic. What is bound must have been read."""
        job_class = self.classify(waiter.job, now_ms)
        if job_class != waiter.job_class:
            self.waiting.reclassify(waiter, job_class)

    def passes_over(self, job: Job, job_class: JobClass) -> bool:
        """Whether a job would pass one that was scanned past: of its session, its class, or one of its limits."""
        causes: list[Cause] = [job_class]
        causes += [(limit, job_class.pool) for limit in limits_of(job, job_class, self.index)]
        return self.skipped.passes_over(job.session_id, causes)

    def believe(self, is_open: Mapping[str, bool]) -> None:
        """Nodes were seen just now. is_open: node -> whether it has room."""
        for name, has_room in is_open.items():
            node = self.index.nodes.get(name)
            if node is not None and (not has_room or self.loads.get(name, 0) >= node.slots):
                self.loads[name] = node.slots - has_room
