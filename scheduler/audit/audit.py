"""Pure. Decides; never performs. Checks a whole run from what its producers and nodes wrote down themselves.

Behind `scheduler demo --json` and `scheduler replay --json`. It never asks the server: a scheduler that marks
its own work would find it good. A missing record shows as a violation, never as a pass: a run on a node that
told no capacity is over it, an acknowledged job without an outcome is lost.

Order is judged by token, never by handler start. Two clocks, never mixed: milliseconds are the server's (from
stream ids), microseconds are CLOCK_MONOTONIC, which all nodes of one machine share. The order of the lists
does not matter.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from math import ceil
from operator import attrgetter

import msgspec

from scheduler.audit.affinity import Sessions, affinity_rate, judge_sessions
from scheduler.audit.evidence import Capacity, Evidence, Outcome, Run, State, Submission
from scheduler.errors import InvalidInput

__all__ = [
    "EXAMPLES_MAX", "Capacity", "Evidence", "Outcome", "Percentiles", "Report", "Run", "Sessions", "State",
    "Submission", "audit", "percentile",
]  # fmt: skip

EXAMPLES_MAX = 5
"""Violations of a kind that are shown: enough to start looking, few enough to read."""


class Percentiles(msgspec.Struct, frozen=True):
    """Nearest-rank percentiles in the unit of the field that holds them; None without values."""

    p50: int | None
    p99: int | None


class Report(msgspec.Struct, frozen=True):
    """What a run came to. submitted = completed + failed + dead + cancelled + lost, in jobs.

    affinity_rate is 0 to 1, None where no session had a second job. sessions: whether they stayed on their nodes, by
    the decisions that the nodes recorded. contradictions are records that cannot all be true: a token run twice, a run
    that ends before it starts, two states in one life. violations are a few lines of each kind.
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
    sessions: Sessions = Sessions()
    contradictions: int = 0
    violations: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every guarantee held."""
        broken = self.lost or self.duplicates or self.over_capacity or self.order_violations or self.contradictions
        return not (broken or self.sessions.violations)

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

    Args: evidence, lists in any order; about n log n in their length. Returns: exact counts, bounded examples.
    Raises: InvalidInput for an entry id that is not `ms-seq`.
    """
    submitted = _first_submissions(evidence.submissions)
    runs = _by_token(evidence.runs)
    first_runs = {run.job_id: run for run in reversed(runs)}
    outcomes = set(evidence.outcomes)
    final = {each.job_id: each.state for each in outcomes}
    several = _of_jobs_with_several(outcomes) if len(final) < len(outcomes) else []
    final |= {each.job_id: each.state for each in several}  # of the last life, and there of the last token
    states = Counter(final[job_id] for job_id in submitted if job_id in final)
    sessions, moved = judge_sessions(submitted, runs, outcomes, evidence.session_ttl_ms)
    found = {
        "lost": _lost(submitted, final),
        "duplicate": _duplicates(several),
        "over capacity": _over_capacity(runs, evidence.capacities),
        "order": _order_violations(submitted, first_runs),
        "session": moved,
        "contradiction": _contradicting_runs(runs) + _contradicting_outcomes(several),
    }
    return Report(
        submitted=len(submitted),
        completed=states["completed"],
        failed=states["failed"],
        dead=states["dead"],
        cancelled=states["cancelled"],
        lost=len(found["lost"]),
        duplicates=len(found["duplicate"]),
        over_capacity=len(found["over capacity"]),
        affinity_rate=affinity_rate(runs),
        order_violations=len(found["order"]),
        dispatch_ms=_dispatch_ms(submitted, first_runs),
        jobs_per_s=_rate(states.total(), evidence.last_ended_s - evidence.first_submission_s),
        sessions=sessions,
        contradictions=len(found["contradiction"]),
        violations=tuple(f"{kind}: {line}" for kind, lines in found.items() for line in lines[:EXAMPLES_MAX]),
    )


def percentile(ordered: Sequence[int], percent: float) -> int | None:
    """Nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed.

    Args: ordered, ascending; percent, above 0 and up to 100. Returns: None without values.
    """
    return ordered[max(1, ceil(percent * len(ordered) / 100)) - 1] if ordered else None


def _rate(count: int, seconds: float) -> float:
    """How many a second; 0 where no time has passed."""
    return count / seconds if seconds > 0 else 0.0


def _by_token(runs: Iterable[Run]) -> list[Run]:
    """Runs in token order; equal tokens in an order that does not depend on that of the list."""
    ordered = sorted(runs, key=attrgetter("token"))
    if any(run.token == before.token for before, run in pairwise(ordered)):  # rare, and the full key is slow
        ordered.sort(key=attrgetter("token", "job_id", "node", "started_us"))
    return ordered


def _first_submissions(submissions: Iterable[Submission]) -> dict[str, Submission]:
    """Job id -> its first submission, in entry order: a job submitted twice may be acknowledged twice."""
    first: dict[str, Submission] = {}
    for submission in sorted(submissions, key=_entry_order):
        first.setdefault(submission.job_id, submission)
    return first


def _entry_order(submission: Submission) -> int:
    """Milliseconds, sequence (64 bits) and partition (16) as one number, which sorts faster than a tuple.

    As text, `10-0` would come before `9-0`.
    """
    milliseconds, _, sequence = submission.entry_id.partition("-")
    try:
        return (int(milliseconds) << 64 | int(sequence)) << 16 | submission.partition
    except ValueError:
        expected = "a stream id like 1700000000000-0"
        raise InvalidInput(f"entry_id = {submission.entry_id!r}: expected {expected}") from None


def _of_jobs_with_several(outcomes: Collection[Outcome]) -> list[Outcome]:
    """The outcomes, all different, of jobs that have more than one: by job, life and token."""
    counts = Counter(map(attrgetter("job_id"), outcomes))
    several = [each for each in outcomes if counts[each.job_id] > 1]
    return sorted(several, key=attrgetter("job_id", "life", "token", "state"))


def _lost(submitted: dict[str, Submission], final: dict[str, State]) -> list[str]:
    """Acknowledged jobs without an outcome, one line each."""
    return [
        f"job {job_id} (entry {submission.entry}) has no outcome"
        for job_id, submission in submitted.items()
        if job_id not in final
    ]


def _duplicates(several: Iterable[Outcome]) -> list[str]:
    """Lives that completed more than once, one line each."""
    completions = Counter((each.job_id, each.life) for each in several if each.state == "completed")
    return [
        f"job {job_id} completed {count} times in life {life}"
        for (job_id, life), count in completions.items()
        if count > 1
    ]


def _contradicting_outcomes(several: Iterable[Outcome]) -> list[str]:
    """Lives that ended in more than one state, one line each."""
    endings = dict.fromkeys((each.job_id, each.life, each.state) for each in several)
    states = Counter((job_id, life) for job_id, life, _ in endings)
    return [
        f"job {job_id} ended in {count} different states in life {life}"
        for (job_id, life), count in states.items()
        if count > 1
    ]


def _contradicting_runs(runs: Sequence[Run]) -> list[str]:
    """Tokens run again and runs that end before they start, one line each; runs in token order."""
    again = [
        f"job {run.job_id} ran again with token {run.token} (on {before.node}, then on {run.node})"
        for before, run in pairwise(runs)
        if run.token == before.token and run.job_id == before.job_id
    ]
    backwards = [
        f"job {run.job_id} on {run.node} ends at {run.ended_us} us, before it starts at {run.started_us} us"
        for run in runs
        if run.ended_us is not None and run.ended_us < run.started_us
    ]
    return again + backwards


def _dispatch_ms(submitted: dict[str, Submission], first_runs: dict[str, Run]) -> Percentiles:
    """From a job's first intake entry to the inbox entry of its first run."""
    waits_ms = sorted(
        max(0, first_runs[job_id].inbox_ms - int(submission.entry_id.partition("-")[0]))
        for job_id, submission in submitted.items()
        if job_id in first_runs
    )
    return Percentiles(p50=percentile(waits_ms, 50), p99=percentile(waits_ms, 99))


def _order_violations(submitted: dict[str, Submission], first_runs: dict[str, Run]) -> list[str]:
    """Neighbours of a session in one partition whose tokens do not rise, one line each.

    Jobs that never ran from their first entry are skipped: a retry is a new arrival.

    Args: submitted, in entry order; first_runs, each job's run with the lowest token.
    """
    lines: list[str] = []
    before: dict[tuple[str, int], Run] = {}
    for job_id, submission in submitted.items():
        later = first_runs.get(job_id)
        if later is None or later.entry != submission.entry:
            continue
        session = (submission.session_id, submission.partition)
        earlier = before.get(session)
        if earlier is not None and later.token <= earlier.token:
            lines.append(
                f"session {submission.session_id}: job {job_id} (entry {later.entry}, token {later.token})"
                f" passed job {earlier.job_id} (entry {earlier.entry}, token {earlier.token})"
            )
        before[session] = later
    return lines


def _over_capacity(runs: Iterable[Run], capacities: Iterable[Capacity]) -> list[str]:
    """Starts that left a node, all its boots together, with more handlers than slots, one line each.

    A run fills [started_us, ended_us). Before its first record a node has no slots. Where two boots change
    the capacity at one instant, the higher boot counts.
    """
    changes: dict[str, list[Capacity]] = defaultdict(list)
    boots: dict[str, dict[str, int]] = defaultdict(dict)  # node -> boot -> when it first told a capacity
    for capacity in sorted(capacities, key=attrgetter("from_us", "boot", "slots")):
        changes[capacity.node].append(capacity)
        boots[capacity.node].setdefault(capacity.boot, capacity.from_us)
    starts_us: dict[str, list[int]] = defaultdict(list)
    ends_us: dict[str, list[int]] = defaultdict(list)
    for run in runs:
        ended_us = run.ended_us
        if ended_us is None:  # its process died without a word; the one that took its place tells the latest
            ended_us = min((us for us in boots[run.node].values() if us > run.started_us), default=None)
        if ended_us is None or ended_us > run.started_us:
            starts_us[run.node].append(run.started_us)
            if ended_us is not None:
                ends_us[run.node].append(ended_us)
    return [
        line
        for node, starts in starts_us.items()
        for line in _sweep(node, sorted(starts), sorted(ends_us[node]), changes[node])
    ]


def _sweep(node: str, starts_us: list[int], ends_us: list[int], changes: Iterable[Capacity]) -> list[str]:
    """One line for each start over capacity; all ascending; at one instant, ends and changes come first."""
    lines: list[str] = []
    coming = deque(changes)
    ended = slots = 0
    for started, start_us in enumerate(starts_us, 1):
        while ended < len(ends_us) and ends_us[ended] <= start_us:
            ended += 1
        while coming and coming[0].from_us <= start_us:
            slots = coming.popleft().slots
        if started - ended > slots:
            lines.append(f"node {node}: {started - ended} handlers in {slots} slots at {start_us} us")
    return lines
