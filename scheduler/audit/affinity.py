"""Pure. Decides; never performs. Whether sessions stayed on their nodes, and whether those that moved had a reason.

`reserve` writes with each placement why the job is where it is, and how many slots it counted on the node that the
session was bound to; the node writes that down with the run. Here it is held against what all nodes wrote down: a
session is bound to the node of the job before, and leaves it only for a reason that is true.

Only first runs from the entry of the submission are judged; a retry is a new arrival. A reservation that never became a
run binds a session too and leaves no record, so whoever comes after one of those is counted as not judged.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import inf
from typing import Final, NamedTuple

import msgspec

from scheduler.audit.evidence import Outcome, Run, Submission
from scheduler.session.decisions import WORDS, Decision, parse

SPILLS: Final = WORDS.keys() - {"new", "stayed"}
"""Decisions that say why a session is not where it was."""
NAMING: Final = frozenset({"full", "closed", "gone", "suspect", "avoid"})
"""Decisions that name the node that the session was bound to."""
COUNTING: Final = frozenset({"full", "closed"})
"""Decisions that are true only of a node without a free slot; one that takes no work has none at all."""
ABSENT: Final = frozenset({"closed", "gone", "suspect"})
"""Decisions that say of a node that it does not serve."""

SERVED_MS: Final = 5_000
STEADY_MS: Final = 500
PROMPT_MS: Final = 250
"""A node surely served when for SERVED_MS before and for STEADY_MS after no STEADY_MS passed without a job that was
given to it and that it started within PROMPT_MS: then it was neither silent, nor drained, nor just published again.
"""

_VIOLATION: Final = "violation"
_UNJUDGED: Final = "not judged"
_FRESH: Final = "fresh"


class Sessions(msgspec.Struct, frozen=True):
    """What became of the jobs that followed another one of their session.

    stayed: on the node of the job before; spilled: on another one, by the first word of the decision, for a reason that
    nothing contradicts; violations: moved, or said to have moved, without a true reason; unjudged: where the session
    was bound cannot be known, or nobody recorded decisions at all.
    """

    stayed: int = 0
    spilled: dict[str, int] = {}
    violations: int = 0
    unjudged: int = 0

    @property
    def judged(self) -> int:
        """Jobs of which something is known."""
        return self.stayed + sum(self.spilled.values()) + self.violations


class Span(NamedTuple):
    """Microseconds of the server's clock, which is what tokens are."""

    from_us: int
    until_us: float


class _Last(NamedTuple):
    """The last run of a session, and where that left it bound; None: that is not known."""

    run: Run
    bound: str | None


def affinity_rate(runs: Iterable[Run]) -> float | None:
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


def judge_sessions(
    submitted: Mapping[str, Submission], runs: Sequence[Run], outcomes: Iterable[Outcome], session_ttl_ms: int
) -> tuple[Sessions, list[str]]:
    """Judge every job that followed another one of its session.

    Args: submitted, the first submission of each job; runs, in token order; outcomes; session_ttl_ms, of stored
    bindings.
    Returns: the counts, and a line for each violation.
    """
    judge = _Judge(runs, _hidden(submitted, runs, outcomes), session_ttl_ms)
    counts: Counter[str] = Counter()
    lines: list[str] = []
    last: dict[str, _Last] = {}
    ran: set[str] = set()
    for run in runs:
        newcomer = run.job_id not in ran and _is_from_first_entry(run, submitted)
        ran.add(run.job_id)
        before = last.get(run.session_id)
        if newcomer and before is not None:
            outcome, why = judge.look_at(run, before)
            counts[outcome] += 1
            if why:
                lines.append(f"session {run.session_id}: job {run.job_id} (entry {run.entry}) {why}")
        last[run.session_id] = _Last(run, run.node if newcomer else judge.bound_after(run, before))
    spilled = {word: count for word, count in sorted(counts.items()) if word in SPILLS}
    return Sessions(counts["stayed"], spilled, len(lines), counts[_UNJUDGED]), lines


def _is_from_first_entry(run: Run, submitted: Mapping[str, Submission]) -> bool:
    submission = submitted.get(run.job_id)
    return submission is not None and submission.entry == run.entry


class _Judge:
    """Knows all runs; looks at one of them at a time."""

    def __init__(self, runs: Sequence[Run], hidden: Mapping[str, Sequence[Span]], session_ttl_ms: int) -> None:
        self._recorded = any(run.decision for run in runs)
        self._bound_ms = session_ttl_ms / 2  # a binding is written again when half of its time has passed
        self._hidden = hidden
        self._serving = _Serving(runs)

    def bound_after(self, run: Run, before: _Last | None) -> str | None:
        """Where a retry leaves its session: it keeps the binding as it was, or takes it along."""
        stays = before is not None and before.bound == run.node and not self._is_doubtful(run, before.run)
        return run.node if stays else None

    def look_at(self, run: Run, before: _Last) -> tuple[str, str]:
        """A word to count it under, and what is wrong with it, empty for nothing."""
        if not self._recorded:
            return _UNJUDGED, ""
        decision = parse(run.decision)
        if decision is None:
            return _VIOLATION, f"on {run.node}: {run.decision!r} is no reason"
        if decision.why == "new" and run.inbox_ms - before.run.inbox_ms >= self._bound_ms:
            return _FRESH, ""
        bound = None if self._is_doubtful(run, before.run) else before.bound
        wrong = self._untrue(run, decision) or _unfounded(run, decision, before.run) or _elsewhere(run, decision, bound)
        if wrong:
            return _VIOLATION, f"on {run.node}: {run.decision!r}, but {wrong}"
        if bound is None:
            return _UNJUDGED, ""
        return "stayed" if run.node == bound else decision.why, ""

    def _untrue(self, run: Run, decision: Decision) -> str:
        """What the nodes' records say against a decision, wherever the session was bound."""
        if decision.why in COUNTING and (decision.used is None or decision.slots is None):
            return "no slots were told"
        if decision.why in COUNTING and (decision.used or 0) < (decision.slots or 0):
            return "there was room"
        if decision.why in ABSENT and self._serving.surely(decision.node, run.inbox_ms):
            return f"{decision.node} served before and after"
        return ""

    def _is_doubtful(self, run: Run, before: Run) -> bool:
        """Whether a reservation that left no record may have moved the session between these two."""
        spans = self._hidden.get(run.session_id, ())
        return any(each.from_us < run.token and each.until_us > before.token for each in spans)


def _unfounded(run: Run, decision: Decision, before: Run) -> str:
    """What the session's own jobs say against a decision."""
    if decision.why == "new":
        return f"job {before.job_id} ran before"
    if decision.why == "avoid":
        return "no attempt had failed"
    if decision.why == "pair" and run.pair and run.pair == before.pair:
        return f"it was {run.pair} before, too"
    return ""


def _elsewhere(run: Run, decision: Decision, bound: str | None) -> str:
    """Whether a decision speaks of another node than the one that the session was bound to."""
    if bound is None or decision.why == "pair":
        return ""
    if decision.why == "stayed" and run.node != bound:
        return f"the session was on {bound}"
    if decision.why in NAMING and decision.node != bound:
        return f"the session was on {bound}"
    return ""


def _hidden(
    submitted: Mapping[str, Submission], runs: Iterable[Run], outcomes: Iterable[Outcome]
) -> dict[str, list[Span]]:
    """Session -> when reservations may have been made of which no node has a record.

    A job may have had one before its first run if that is from a later entry than that of its submission, between two
    of its runs, and after its last one if its outcome is of another token. Runs in token order.
    """
    ran: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        ran[run.job_id].append(run)
    ended = {(each.job_id, each.token) for each in outcomes}
    spans: dict[str, list[Span]] = defaultdict(list)
    for job_id, submission in submitted.items():
        mine, session = ran[job_id], submission.session_id
        submitted_us = 1_000 * int(submission.entry_id.partition("-")[0])
        if mine and submitted_us > mine[0].token:
            submitted_us = 0  # an id that lies ahead of the clock does not say when
        if mine and mine[0].entry != submission.entry:
            spans[session].append(Span(submitted_us, mine[0].token))
        spans[session] += [Span(one.token, other.token) for one, other in pairwise(mine)]
        last_token = mine[-1].token if mine else 0  # that of a job that was never reserved
        if (job_id, last_token) not in ended:
            spans[session].append(Span(last_token or submitted_us, inf))
    return spans


class _Serving:
    """When nodes were surely serving, by the jobs that were given to them and that they started at once.

    To see that a job was started at once, the two clocks are laid upon each other: nobody can start a job before it is
    given to him, so the run with the least between the two shows how far they are apart.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._given_ms: dict[str, list[list[int]]] | None = None

    def surely(self, node: str, at_ms: int) -> bool:
        """Whether one boot of a node served without a break around a moment, see SERVED_MS."""
        if self._given_ms is None:
            self._given_ms = self._look()
        return any(_covers(given_ms, at_ms) for given_ms in self._given_ms.get(node, ()))

    def _look(self) -> dict[str, list[list[int]]]:
        """node -> for each boot, when jobs were given to it that it started at once; ascending."""
        apart_ms = min((run.started_us // 1_000 - run.inbox_ms for run in self._runs), default=0)
        boots: dict[tuple[str, str], list[int]] = defaultdict(list)
        for run in self._runs:
            if run.started_us // 1_000 - run.inbox_ms - apart_ms <= PROMPT_MS:
                boots[run.node, run.boot].append(run.inbox_ms)
        nodes: dict[str, list[list[int]]] = defaultdict(list)
        for (node, _), given_ms in boots.items():
            nodes[node].append(sorted(given_ms))
        return nodes


def _covers(given_ms: Sequence[int], at_ms: int) -> bool:
    """Whether no STEADY_MS passed without a job, from SERVED_MS before a moment until one after it."""
    position = bisect_left(given_ms, at_ms)
    after = next((each for each in given_ms[position:] if each > at_ms), None)
    if after is None or position == 0 or after - given_ms[position - 1] > STEADY_MS:
        return False
    while position > 0 and given_ms[position - 1] > at_ms - SERVED_MS:
        position -= 1
        if position == 0 or given_ms[position] - given_ms[position - 1] > STEADY_MS:
            return False
    return True
