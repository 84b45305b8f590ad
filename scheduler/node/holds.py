"""Handlers that let nothing else of their process run: who they are, and whose start is told before it.

An async handler that computes keeps the event loop; a plain one can keep Python's lock (the GIL), inside a regular
expression, say, or an extension. Until it ends no lease is renewed. The first lease is short, and a job that was never
renewed counts as one that was not started. So the server is told of a start before the handler has the word, where that
matters and costs little: while nothing is known of the handler, where its runs last so long that they are renewed
anyway, where it has held everything up before, and for a job that comes again. Then such a run has a whole lease; if it
takes longer, it is lost with its node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scheduler.clock import Clock
from scheduler.node.handlers import Handler, Job, is_async, name_of

HELD_MS_MIN: Final = 500
FADES: Final = 0.95  # what is known of long runs, with each later run
SHARE_MIN: Final = 0.1  # of the time, on a machine where others compute too
NAMED_MAX: Final = 3


class Holds:
    """What a node knows of how its handler runs. Args: handler; start_ms, of a first lease; clock."""

    def __init__(self, handler: Handler, start_ms: int, clock: Clock) -> None:
        self._is_async = is_async(handler)
        self._name = name_of(handler)
        self._renewed_after_ms = start_ms / 3
        self._clock = clock
        self._began_ms: dict[tuple[str, int], float] = {}
        self._longest_ms: float | None = None
        self._has_held = False
        self._jobs: dict[tuple[str, int], Job] = {}
        self._ended: list[tuple[str, int]] = []

    def is_told_first(self, job: Job) -> bool:
        """Whether the server should know that a job starts before it does."""
        if self._has_held or self._longest_ms is None or job.attempt > 1:
            return True
        return self._longest_ms >= self._renewed_after_ms

    def began(self, job: Job) -> None:
        """Its handler is about to be called."""
        self._jobs[job.key] = job
        self._began_ms[job.key] = self._clock.ms()

    def ended(self, job: Job) -> None:
        """Nothing of it runs any more."""
        if (began_ms := self._began_ms.pop(job.key, None)) is not None:
            self._longest_ms = max((self._longest_ms or 0.0) * FADES, self._clock.ms() - began_ms)
            self._ended.append(job.key)

    def watch(self, late_ms: float, used: Sequence[tuple[Job, float]]) -> str | None:
        """Look at how much later than it should this is called, some times a second.

        used: the jobs in threads since the last call, and for how many milliseconds each had a processor.
        Returns: what to tell when something held the process up, and who.
        """
        told = None
        if late_ms > HELD_MS_MIN:
            self._has_held = self._has_held or bool(self._jobs)
            least_ms = max(late_ms * SHARE_MIN, max((used_ms for _, used_ms in used), default=0.0) / 2)
            computed = [job for job, used_ms in used if used_ms >= least_ms]
            told = self._told(late_ms, computed or list(self._jobs.values())[::-1], is_sure=bool(computed))
        for key in self._ended:
            self._jobs.pop(key, None)
        self._ended.clear()
        return told

    def _told(self, late_ms: float, jobs: Sequence[Job], is_sure: bool) -> str:
        names = ", ".join(f"{job.job_id} (attempt {job.attempt})" for job in jobs[:NAMED_MAX])
        if len(jobs) > NAMED_MAX:
            names += f" and {len(jobs) - NAMED_MAX} more"
        if not jobs:
            return (
                f"nothing of this process ran for {late_ms:.0f} ms, no lease was renewed: it was paused, or is too busy"
            )
        if self._is_async:
            return (
                f"the event loop was blocked for {late_ms:.0f} ms; a handler that computes must not be async: "
                f"{self._name} ran, for job {names}"
            )
        if is_sure:
            return (
                f"{self._name} held Python's lock (GIL) for {late_ms:.0f} ms, for job {names}: no lease was renewed "
                "meanwhile; what computes for long in one call belongs into a process of its own"
            )
        return (
            f"nothing of this process ran for {late_ms:.0f} ms, no lease was renewed: it was paused, or {self._name} "
            f"held Python's lock (GIL), for job {names}"
        )
