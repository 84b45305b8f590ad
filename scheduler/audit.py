"""Pure. Decides; never performs. Checks a whole run from what its producers and nodes wrote down themselves.

Behind `scheduler demo --json` and `scheduler replay --json`. It never asks the server: a scheduler that marks its
own work would find it good. A missing record shows as a violation, never as a pass: a run on a node that told no
capacity is over it, an acknowledged job without an outcome is lost.

Order is judged by token, never by handler start. Two clocks, never mixed: milliseconds are the server's (from
stream ids), microseconds are CLOCK_MONOTONIC, which all nodes of one machine share. The order of the lists does
not matter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import ceil
from typing import Literal

import msgspec

from scheduler.errors import InvalidInput

EXAMPLES_MAX = 5
"""Violations of a kind that are shown: enough to start looking, few enough to read."""

State = Literal["completed", "failed", "dead", "cancelled"]

# Events of a node at one microsecond, in the order they count: an end makes room for a start.
_ENDS, _CHANGES, _STARTS = 0, 1, 2


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

    entry is the intake entry that this run came from (a retry has a new one); inbox_ms the milliseconds of the
    inbox entry's id; started_us and ended_us the shared monotonic clock. ended_us is None where the node could not
    say: the run is then taken to last until another boot of the node shows up, else until the end.
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
    """All that a run left behind; first_submission_s, last_ended_s: seconds of one clock of the caller."""

    submissions: Sequence[Submission]
    runs: Sequence[Run]
    outcomes: Sequence[Outcome]
    capacities: Sequence[Capacity]
    first_submission_s: float
    last_ended_s: float


class Percentiles(msgspec.Struct, frozen=True):
    """Nearest-rank percentiles in the unit of the field that holds them; None without values."""

    p50: int | None
    p99: int | None


class Report(msgspec.Struct, frozen=True):
    """What a run came to. submitted = completed + failed + dead + cancelled + lost, in jobs.

    affinity_rate is 0 to 1, None where no session had a second job. contradictions are records that cannot all be
    true: a token run twice, a run that ends before it starts, two states in one life. violations are a few lines
    of each kind.
    """

    submitted: int
    completed: int
    failed: int
    dead: int
    cancelled: int
    lost: int
    duplicates: int
    over_capacity: int
    affinity_rate: float | None
    order_violations: int
    dispatch_ms: Percentiles
    jobs_per_s: float
    contradictions: int = 0
    violations: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every guarantee held."""
        return not (
            self.lost or self.duplicates or self.over_capacity or self.order_violations or self.contradictions
        )

    def examples(self) -> tuple[str, ...]:
        """At most EXAMPLES_MAX readable lines of each kind of violation; empty when `ok`."""
        return self.violations

    def document(self) -> dict[str, object]:
        """The keys of `--json`; `contradictions` and `violations` only where something is broken."""
        document: dict[str, object] = msgspec.to_builtins(self)
        if self.ok:
            del document["contradictions"], document["violations"]
        return document


def audit(evidence: Evidence) -> Report:
    """Check one whole run.

    Args: evidence, lists in any order; about n log n in their length.
    Returns: the report; its counts are exact, its examples bounded.
    Raises: InvalidInput for an entry id that is not `ms-seq`.
    """
    submitted = _first_submissions(evidence.submissions)
    runs = sorted(evidence.runs, key=lambda run: (run.token, run.job_id, run.node, run.started_us))
    outcomes = set(evidence.outcomes)
    final = _final_states(outcomes)
    states = Counter(final[job_id] for job_id in submitted if job_id in final)
    found = {
        "lost": _lost(submitted, final),
        "duplicate": _duplicates(outcomes),
        "over capacity": _over_capacity(runs, evidence.capacities),
        "order": _order_violations(submitted, runs),
        "contradiction": _contradictions(runs, outcomes),
    }
    seconds = evidence.last_ended_s - evidence.first_submission_s
    return Report(
        submitted=len(submitted),
        completed=states["completed"],
        failed=states["failed"],
        dead=states["dead"],
        cancelled=states["cancelled"],
        lost=len(found["lost"]),
        duplicates=len(found["duplicate"]),
        over_capacity=len(found["over capacity"]),
        affinity_rate=_affinity_rate(runs),
        order_violations=len(found["order"]),
        dispatch_ms=_dispatch_ms(submitted, runs),
        jobs_per_s=states.total() / seconds if seconds > 0 else 0.0,
        contradictions=len(found["contradiction"]),
        violations=tuple(
            f"{kind}: {line}" for kind, lines in found.items() for line in sorted(lines)[:EXAMPLES_MAX]
        ),
    )


def percentile(ordered: Sequence[int], percent: float) -> int | None:
    """Nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed.

    Args: ordered, ascending; percent, above 0 and up to 100. Returns: None without values.
    """
    return ordered[max(1, ceil(percent * len(ordered) / 100)) - 1] if ordered else None


def _entry_order(entry_id: str) -> tuple[int, int]:
    """Milliseconds and sequence of a stream id: as text, `9-0` would come after `10-0`."""
    milliseconds, dash, sequence = entry_id.partition("-")
    if dash and milliseconds.isdecimal() and sequence.isdecimal():
        return int(milliseconds), int(sequence)
    raise InvalidInput(f"entry_id = {entry_id!r}: expected a stream id like 1700000000000-0")


def _first_submissions(submissions: Iterable[Submission]) -> dict[str, Submission]:
    """Each acknowledged job's first entry: a job submitted twice may be acknowledged twice."""
    first: dict[str, Submission] = {}
    for submission in submissions:
        known = first.setdefault(submission.job_id, submission)
        if known is not submission and _first_key(submission) < _first_key(known):
            first[submission.job_id] = submission
    return first


def _first_key(submission: Submission) -> tuple[tuple[int, int], int, str]:
    return _entry_order(submission.entry_id), submission.partition, submission.session_id


def _final_states(outcomes: Iterable[Outcome]) -> dict[str, State]:
    """Each job's state at the end: that of its last life, and there of its last token."""
    last: dict[str, tuple[int, int, State]] = {}
    for outcome in outcomes:
        candidate = (outcome.life, outcome.token, outcome.state)
        if last.setdefault(outcome.job_id, candidate) < candidate:
            last[outcome.job_id] = candidate
    return {job_id: state for job_id, (_, _, state) in last.items()}


def _lost(submitted: dict[str, Submission], final: dict[str, State]) -> list[str]:
    """Acknowledged jobs without an outcome, one line each."""
    return [
        f"job {job_id} (entry {submission.entry}) has no outcome"
        for job_id, submission in submitted.items()
        if job_id not in final
    ]


def _duplicates(outcomes: Iterable[Outcome]) -> list[str]:
    """Lives that completed more than once, one line each."""
    completions = Counter((each.job_id, each.life) for each in outcomes if each.state == "completed")
    return [
        f"job {job_id} completed {count} times in life {life}"
        for (job_id, life), count in completions.items()
        if count > 1
    ]


def _contradictions(runs: Sequence[Run], outcomes: Iterable[Outcome]) -> list[str]:
    """Records that cannot all be true, one line each; runs in token order."""
    lines = [
        f"job {run.job_id} ran twice with token {run.token} (on {before.node} and {run.node})"
        for before, run in pairwise(runs)
        if run.token == before.token and run.job_id == before.job_id
    ]
    lines += [
        f"job {run.job_id} on {run.node} ends at {run.ended_us} us, before it starts at {run.started_us} us"
        for run in runs
        if run.ended_us is not None and run.ended_us < run.started_us
    ]
    states = Counter(
        (job_id, life) for job_id, life, _ in {(each.job_id, each.life, each.state) for each in outcomes}
    )
    lines += [
        f"job {job_id} ended in {count} different states in life {life}"
        for (job_id, life), count in states.items()
        if count > 1
    ]
    return lines


def _affinity_rate(runs: Iterable[Run]) -> float | None:
    """Of a session's jobs after its first, the share on the node of the job before; runs in token order."""
    last_runs: dict[str, Run] = {}
    for run in runs:
        last_runs.pop(run.job_id, None)  # a later run moves its job to the end: the dict stays in token order
        last_runs[run.job_id] = run
    node_before: dict[str, str] = {}
    followers = stayed = 0
    for run in last_runs.values():
        before = node_before.get(run.session_id)
        if before is not None:
            followers += 1
            stayed += run.node == before
        node_before[run.session_id] = run.node
    return stayed / followers if followers else None


def _dispatch_ms(submitted: dict[str, Submission], runs: Iterable[Run]) -> Percentiles:
    """From a job's first intake entry to the inbox entry of its first run; runs in token order."""
    first_inbox_ms: dict[str, int] = {}
    for run in runs:
        first_inbox_ms.setdefault(run.job_id, run.inbox_ms)
    waits_ms = sorted(
        first_inbox_ms[job_id] - _entry_order(submission.entry_id)[0]
        for job_id, submission in submitted.items()
        if job_id in first_inbox_ms
    )
    return Percentiles(p50=percentile(waits_ms, 50), p99=percentile(waits_ms, 99))


def _order_violations(submitted: dict[str, Submission], runs: Iterable[Run]) -> list[str]:
    """Neighbours of a session, in entry order, whose tokens do not rise; runs in token order.

    Only runs from a job's first entry count: a retry is a new arrival. Jobs without such a run are skipped.
    """
    placed: dict[tuple[str, int], dict[tuple[int, int], Run]] = defaultdict(dict)
    for run in runs:
        submission = submitted.get(run.job_id)
        if submission is not None and run.entry == submission.entry:
            session = placed[submission.session_id, submission.partition]
            session.setdefault(_entry_order(submission.entry_id), run)
    return [
        f"session {session_id}: job {later.job_id} (entry {later.entry}, token {later.token}) passed "
        f"job {earlier.job_id} (entry {earlier.entry}, token {earlier.token})"
        for (session_id, _), session in placed.items()
        for earlier, later in pairwise(session[order] for order in sorted(session))
        if later.token <= earlier.token
    ]


def _over_capacity(runs: Sequence[Run], capacities: Sequence[Capacity]) -> list[str]:
    """Starts that left a node, all its boots together, with more handlers than slots, one line each.

    A run fills [started_us, ended_us). Before its first record a node has no slots. Where two boots change the
    capacity at one instant, the higher boot counts.
    """
    boots = _boot_starts(runs, capacities)
    events: dict[str, list[tuple[int, int, str, int]]] = defaultdict(list)
    for capacity in capacities:
        events[capacity.node].append((capacity.from_us, _CHANGES, capacity.boot, capacity.slots))
    for run in runs:
        ended_us = run.ended_us
        if ended_us is None:  # its process died without a word; the one that took its place tells the latest
            later = boots[run.node][bisect_right(boots[run.node], run.started_us) :]
            ended_us = later[0] if later else None
        if ended_us is None or ended_us > run.started_us:
            events[run.node].append((run.started_us, _STARTS, run.job_id, 0))
            if ended_us is not None:
                events[run.node].append((ended_us, _ENDS, run.job_id, 0))
    return [line for node in events for line in _sweep(node, sorted(events[node]))]


def _sweep(node: str, events: Iterable[tuple[int, int, str, int]]) -> list[str]:
    """One line for each start over capacity; events are (us, kind, job or boot, slots), ascending."""
    lines: list[str] = []
    running = slots = 0
    for at_us, kind, name, changed_slots in events:
        if kind == _CHANGES:
            slots = changed_slots
        elif kind == _ENDS:
            running -= 1
        else:
            running += 1
            if running > slots:
                lines.append(f"node {node}: {running} handlers in {slots} slots at {at_us} us (job {name})")
    return lines


def _boot_starts(runs: Iterable[Run], capacities: Iterable[Capacity]) -> dict[str, list[int]]:
    """Node -> first sign of each of its boots, in us, ascending."""
    first: dict[tuple[str, str], int] = {}
    signs = [(each.node, each.boot, each.from_us) for each in capacities]
    signs += [(each.node, each.boot, each.started_us) for each in runs]
    for node, boot, at_us in signs:
        key = (node, boot)
        if first.setdefault(key, at_us) > at_us:
            first[key] = at_us
    starts: dict[str, list[int]] = defaultdict(list)
    for (node, _), at_us in sorted(first.items(), key=lambda item: item[1]):
        starts[node].append(at_us)
    return starts
