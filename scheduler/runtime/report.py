"""What a dispatcher has done since its start."""

from __future__ import annotations

import msgspec

from scheduler.timings import Histogram


class Report(msgspec.Struct):
    """Counts since the start.

    read: entries of the intake that were new to the dispatcher.
    placed: jobs that got a slot.
    full: attempts that found no node with room.
    limited: attempts that found a limit full.
    rejected: jobs that the dispatcher ended.
    calls: of the script `reserve`.
    sweep_hits: jobs that were placed only because the sweep looked; each is a lost event.
    waiting: jobs that wait now.
    deferred: entries that there was no memory for, counted each time that they were read.
    decision_us: how long it took to choose the candidates of a job, on average over its call.
    session_wait_ms: how long a job that was placed had waited for an earlier job of its session.
    """

    read: int = 0
    placed: int = 0
    full: int = 0
    limited: int = 0
    rejected: int = 0
    calls: int = 0
    sweep_hits: int = 0
    waiting: int = 0
    deferred: int = 0
    decision_us: Histogram = msgspec.field(default_factory=Histogram)
    session_wait_ms: Histogram = msgspec.field(default_factory=Histogram)
