"""Pure. Decides; never performs. What producers and nodes wrote down of a run: the records that `audit` judges.

Two clocks, never mixed but where it is said: milliseconds are the server's (from stream ids), microseconds are
CLOCK_MONOTONIC, which all nodes of one machine share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from scheduler.config import DEFAULTS

State = Literal["completed", "failed", "dead", "cancelled"]


class Submission(msgspec.Struct, frozen=True, gc=False):
    """A submission that the server acknowledged; entry_id is the intake entry's `ms-seq`."""

    job_id: str
    session_id: str
    partition: int
    entry_id: str

    @property
    def entry(self) -> str:
        """The entry as nodes see it: `<partition>/<ms-seq>`."""
        return f"{self.partition}/{self.entry_id}"


class Run(msgspec.Struct, frozen=True, gc=False):
    """One run of a handler, as its node recorded it.

    entry is the intake entry that this run came from (a retry has a new one); inbox_ms the milliseconds of
    the inbox entry's id; started_us and ended_us the shared monotonic clock. ended_us is None where the node
    could not say: the run is then taken to last until the next boot of the node tells a capacity, else until
    the end. pair: `source:target` of the job, `:` without languages. decision: why `reserve` put the job there, with
    the slots that it counted; empty where none was written.
    """

    job_id: str
    session_id: str
    node: str
    boot: str
    token: int
    entry: str
    inbox_ms: int
    started_us: int
    ended_us: int | None
    attempt: int = 1
    pair: str = ""
    decision: str = ""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """A terminal outcome, as a producer read it; read twice with the same life and token it counts once."""

    job_id: str
    life: int
    state: State
    token: int


class Capacity(msgspec.Struct, frozen=True, gc=False):
    """A node's own record: from from_us (shared monotonic clock) on it offers this many slots.

    A lower value belongs here once no job reserved under the higher one can still start.
    """

    node: str
    boot: str
    from_us: int
    slots: int


class Evidence(msgspec.Struct, frozen=True):
    """All that a run left behind.

    first_submission_s, last_ended_s: seconds of one clock of the caller; session_ttl_ms: how long a binding is stored.
    """

    submissions: Sequence[Submission]
    runs: Sequence[Run]
    outcomes: Sequence[Outcome]
    capacities: Sequence[Capacity]
    first_submission_s: float
    last_ended_s: float
    session_ttl_ms: int = DEFAULTS.session_ttl_ms
