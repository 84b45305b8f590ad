"""The checker of bindings: silent on an honest history, however wild; each lie is found and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.audit.affinity import SERVED_MS, STEADY_MS, Sessions
from scheduler.audit.audit import Capacity, Evidence, Outcome, Report, Run, Submission, audit
from scheduler.config import DEFAULTS

NODES = ("n0", "n1", "n2", "n3")
SLOTS = 2
SESSIONS = 5
JOBS = 60
STEP_MS = 10
START_MS = 1_000_000
END_MS = START_MS + STEP_MS * JOBS + 100
APART_MS = 77_000
"""What the nodes' clock shows when the server's shows 0."""


def evidence_of(submissions: list[Submission], runs: list[Run], session_ttl_ms: int = 1_800_000) -> Evidence:
    """Runs that completed with their last token, on nodes that told their slots."""
    last = {run.job_id: run.token for run in sorted(runs, key=lambda run: run.token)}
    outcomes = [Outcome(job_id, 1, "completed", token) for job_id, token in last.items()]
    capacities = [Capacity(run.node, run.boot, 0, 1_000) for run in runs]
    return Evidence(submissions, runs, outcomes, capacities, 0.0, 1.0, session_ttl_ms)


def submission_of(job_id: str, session_id: str, at_ms: int) -> Submission:
    """A job submitted at that millisecond."""
    return Submission(job_id, session_id, 0, f"{at_ms}-0")


def run_of(submission: Submission, node: str, at_ms: int, decision: str, *, boot: str = "1-a", entry: str = "") -> Run:
    """A run that was reserved at that millisecond and started a millisecond later."""
    started_us = 1_000 * (at_ms + APART_MS + 1)
    return Run(
        job_id=submission.job_id,
        session_id=submission.session_id,
        node=node,
        boot=boot,
        token=1_000 * at_ms,
        entry=entry or submission.entry,
        inbox_ms=at_ms,
        started_us=started_us,
        ended_us=started_us + 500,
        pair="en:zh",
        decision=decision,
    )


class Honest:
    """A scheduler that keeps its word, and its history.

    Each step submits a job and reserves it at once. Jobs hold their slots for a while; nodes are away at times, and
    then take nothing and leave nobody without a reason. Some reservations are lost: no node has a record of them, and
    the job runs later, from another entry.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.submissions: list[Submission] = []
        self.runs: list[Run] = []
        self._bound: dict[str, str] = {}
        self._holds: dict[str, list[int]] = {node: [] for node in NODES}
        self._away: dict[str, int] = {}
        self._lost: list[tuple[int, Submission, str]] = []
        for number in range(JOBS):
            self._step(number)
        self._run_lost(END_MS)

    def _step(self, number: int) -> None:
        at_ms, random = START_MS + STEP_MS * number, self.random
        self._pass_time(at_ms)
        self._run_lost(at_ms)
        submission = submission_of(f"j{number}", f"s{random.randrange(SESSIONS)}", at_ms)
        self.submissions.append(submission)
        node, decision = self._choose(submission.session_id, at_ms)
        self._take(submission.session_id, node, at_ms)
        if random.random() < 0.1:
            self._lost.append((at_ms + random.randrange(100), submission, node))
        else:
            self.runs.append(run_of(submission, node, at_ms, decision))

    def _pass_time(self, at_ms: int) -> None:
        for node, holds in self._holds.items():
            self._holds[node] = [until_ms for until_ms in holds if until_ms > at_ms]
        if self.random.random() < 0.2:
            self._away[self.random.choice(NODES[1:])] = at_ms + self.random.randrange(80)

    def _serves(self, node: str, at_ms: int) -> bool:
        return self._away.get(node, 0) <= at_ms

    def _has_room(self, node: str, at_ms: int) -> bool:
        return self._serves(node, at_ms) and len(self._holds[node]) < SLOTS

    def _choose(self, session_id: str, at_ms: int, avoid: str = "") -> tuple[str, str]:
        bound = self._bound.get(session_id)
        others = [node for node in NODES if self._has_room(node, at_ms) and node not in (bound, avoid)]
        if bound is None:
            return self.random.choice(others or NODES), "new"
        if self._has_room(bound, at_ms) or not others:
            return bound, "stayed"
        used = len(self._holds[bound])
        why = "full" if self._serves(bound, at_ms) else self.random.choice(["gone", "closed", "suspect"])
        counts = {"gone": "", "closed": f" {used}/0"}.get(why, f" {used}/{SLOTS}")
        return self.random.choice(others), f"{why} {bound}{counts}"

    def _take(self, session_id: str, node: str, at_ms: int) -> None:
        self._bound[session_id] = node
        self._holds[node].append(at_ms + self.random.randrange(5, 60))

    def _run_lost(self, at_ms: int) -> None:
        for number, due in enumerate([each for each in self._lost if each[0] <= at_ms]):
            self._lost.remove(due)
            self._run_again(due[1], due[2], at_ms - 1 - number)

    def _run_again(self, submission: Submission, avoid: str, at_ms: int) -> None:
        """Away from the node where it was lost, which moves its session or does not."""
        node = self.random.choice([node for node in NODES if node != avoid])
        if self.random.random() < 0.5:
            self._bound[submission.session_id] = node
        entry = f"0/{at_ms - 1}-7"
        self.runs.append(run_of(submission, node, at_ms, f"avoid {avoid} 0/{SLOTS}", entry=entry))

    def report(self) -> Report:
        """What the audit makes of it."""
        return audit(evidence_of(self.submissions, self.runs))

    def followers(self) -> int:
        """Jobs that first ran from their first entry, after another run of their session."""
        entries = {submission.entry for submission in self.submissions}
        seen: set[str] = set()
        count = 0
        for run in sorted(self.runs, key=lambda run: run.token):
            count += run.session_id in seen and run.entry in entries
            seen.add(run.session_id)
        return count


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 10_000))
def test_an_honest_history_has_no_violation_and_every_follower_is_counted_once(seed: int) -> None:
    """Whatever nodes do, and whatever leaves no record."""
    history = Honest(seed)
    report = history.report()
    assert report.examples() == ()
    assert report.ok
    assert report.sessions.judged + report.sessions.unjudged == history.followers()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_the_records_does_not_matter(seed: int) -> None:
    """Files are read in any order."""
    history = Honest(seed)
    found = history.report().sessions
    history.random.shuffle(history.runs)
    history.random.shuffle(history.submissions)
    assert history.report().sessions == found


def forget(run: Run, bound: str) -> Run:
    """The session is taken for a new one."""
    return msgspec.structs.replace(run, decision="new")


def move_in_silence(run: Run, bound: str) -> Run:
    """It runs elsewhere and is said to have stayed."""
    return msgspec.structs.replace(run, node="n9", decision="stayed")


def leave_room(run: Run, bound: str) -> Run:
    """It leaves a node that had a slot left."""
    return msgspec.structs.replace(run, node="n9", decision=f"full {bound} {SLOTS - 1}/{SLOTS}")


def close_with_room(run: Run, bound: str) -> Run:
    """It leaves a node that takes no work, it says, and yet has slots."""
    return msgspec.structs.replace(run, node="n9", decision=f"closed {bound} {SLOTS - 1}/{SLOTS}")


def leave_untold(run: Run, bound: str) -> Run:
    """It leaves a full node, without the counts."""
    return msgspec.structs.replace(run, node="n9", decision=f"full {bound}")


def blame_another(run: Run, bound: str) -> Run:
    """The node that was full is not the one that it was on."""
    return msgspec.structs.replace(run, node="n9", decision=f"full n8 {SLOTS}/{SLOTS}")


def say_nothing(run: Run, bound: str) -> Run:
    """The one run without a decision."""
    return msgspec.structs.replace(run, node="n9", decision="")


def make_up_a_word(run: Run, bound: str) -> Run:
    """A reason that there is none."""
    return msgspec.structs.replace(run, node="n9", decision=f"moody {bound}")


def avoid_at_first(run: Run, bound: str) -> Run:
    """The first attempt avoids a node for an earlier one."""
    return msgspec.structs.replace(run, node="n9", decision=f"avoid {bound} 0/{SLOTS}")


def change_the_pair(run: Run, bound: str) -> Run:
    """Languages that did not change."""
    return msgspec.structs.replace(run, node="n9", decision="pair")


LIES: list[tuple[Callable[[Run, str], Run], str]] = [
    (forget, "ran before"),
    (move_in_silence, "the session was on n0"),
    (leave_room, "there was room"),
    (close_with_room, "there was room"),
    (leave_untold, "no slots were told"),
    (blame_another, "the session was on n0"),
    (say_nothing, "'' is no reason"),
    (make_up_a_word, "'moody n0' is no reason"),
    (avoid_at_first, "no attempt had failed"),
    (change_the_pair, "it was en:zh before, too"),
]


@pytest.mark.parametrize(("lie", "words"), LIES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), choice=st.integers(0, 1_000))
def test_each_lie_is_one_violation(lie: Callable[[Run, str], Run], words: str, seed: int, choice: int) -> None:
    """Anywhere in an honest history, at the end of a session that stayed on n0; nothing else is the worse for it."""
    history = Honest(seed)
    session, at_ms = f"s{choice % SESSIONS}", END_MS
    for number, run in enumerate(("new", "stayed", "stayed")):
        submission = submission_of(f"last{number}", session + "x", at_ms + number)
        history.submissions.append(submission)
        history.runs.append(run_of(submission, "n0", at_ms + number, run))
    honest = history.report().sessions
    history.runs[-1] = lie(history.runs[-1], "n0")
    report = history.report()
    assert not report.ok
    assert report.sessions == msgspec.structs.replace(honest, stayed=honest.stayed - 1, violations=1)
    (line,) = report.examples()
    assert words in line
    assert line.startswith(f"session: session {session}x: job last2")


def test_every_reason_is_counted_under_its_word() -> None:
    """Those that name the node and those that name none."""
    decisions = [
        "new", "stayed", "full n0 2/2", "closed n1 1/0", "gone n2", "suspect n3 1/2", "unfit", "pool", "strategy",
        "preferred",
    ]  # fmt: skip
    nodes = ["n0", "n0", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8"]
    submissions = [submission_of(f"j{number}", "s", START_MS + number) for number in range(len(nodes))]
    runs = [
        run_of(submission, node, START_MS + number, decision)
        for number, (submission, node, decision) in enumerate(zip(submissions, nodes, decisions, strict=True))
    ]
    spilled = Counter(decision.partition(" ")[0] for decision in decisions[2:])
    assert audit(evidence_of(submissions, runs)).sessions == Sessions(stayed=1, spilled=dict(spilled))


def two_jobs(decision: str, node: str, *, pairs: tuple[str, str] = ("en:zh", "en:zh"), apart_ms: int = 5) -> Evidence:
    """A session whose first job ran on n0, and the second as given."""
    submissions = [submission_of("j0", "s", START_MS), submission_of("j1", "s", START_MS + apart_ms)]
    runs = [
        run_of(submissions[0], "n0", START_MS, "new"),
        run_of(submissions[1], node, START_MS + apart_ms, decision),
    ]
    runs = [msgspec.structs.replace(run, pair=pair) for run, pair in zip(runs, pairs, strict=True)]
    return evidence_of(submissions, runs)


def test_another_pair_may_be_served_elsewhere() -> None:
    """It resets the binding."""
    assert audit(two_jobs("pair", "n1", pairs=("en:zh", "zh:en"))).sessions == Sessions(spilled={"pair": 1})


def test_a_binding_that_has_ended_leaves_a_new_session() -> None:
    """What is stored for so long unused is forgotten; before, it is not."""
    late = two_jobs("new", "n1", apart_ms=DEFAULTS.session_ttl_ms)
    assert audit(late).sessions == Sessions()
    assert audit(two_jobs("new", "n1", apart_ms=DEFAULTS.session_ttl_ms // 2 - 1)).sessions.violations == 1


def test_on_the_same_node_it_has_stayed_whatever_the_reason() -> None:
    """A strategy may come back to it."""
    assert audit(two_jobs("strategy", "n0")).sessions == Sessions(stayed=1)


def test_without_any_decision_nothing_is_judged() -> None:
    """Of a scheduler that does not say why, nothing can be said."""
    evidence = two_jobs("stayed", "n1")
    silent = [msgspec.structs.replace(run, decision="") for run in evidence.runs]
    report = audit(msgspec.structs.replace(evidence, runs=silent))
    assert (report.ok, report.sessions) == (True, Sessions(unjudged=1))


def test_a_job_without_any_run_leaves_its_session_in_doubt() -> None:
    """It may have been reserved on another node, and lost there; what came before it is not in doubt."""
    evidence = two_jobs("stayed", "n1")
    lost = submission_of("lost", "s", START_MS + 3)
    doubtful = msgspec.structs.replace(evidence, submissions=[*evidence.submissions, lost])
    assert audit(doubtful).sessions == Sessions(unjudged=1)
    later = msgspec.structs.replace(
        doubtful, submissions=[*evidence.submissions, submission_of("x", "s", START_MS + 9)]
    )
    assert audit(later).sessions == Sessions(violations=1)


def test_a_job_that_was_never_reserved_leaves_no_doubt() -> None:
    """Its outcome has no token."""
    evidence = two_jobs("stayed", "n1")
    refused = submission_of("refused", "s", START_MS + 3)
    outcomes = [*evidence.outcomes, Outcome("refused", 1, "dead", 0)]
    whole = msgspec.structs.replace(evidence, submissions=[*evidence.submissions, refused], outcomes=outcomes)
    assert audit(whole).sessions == Sessions(violations=1)


def with_others_on_n0(evidence: Evidence, given_ms: list[int], boot: str = "1-a", late_ms: int = 0) -> Evidence:
    """Other sessions' jobs, which n0 was given at these milliseconds, relative to the second job."""
    at_ms = evidence.runs[1].inbox_ms
    submissions = [submission_of(f"o{number}", f"o{number}", at_ms + ms) for number, ms in enumerate(given_ms)]
    others = [
        run_of(submission, "n0", at_ms + ms, "new", boot=boot)
        for submission, ms in zip(submissions, given_ms, strict=True)
    ]
    others = [
        msgspec.structs.replace(run, started_us=run.started_us + 1_000 * late_ms, ended_us=None) for run in others
    ]
    return evidence_of([*evidence.submissions, *submissions], [*evidence.runs, *others])


STEADY = list(range(-SERVED_MS - STEADY_MS, 2 * STEADY_MS, STEADY_MS - 1))


@pytest.mark.parametrize("decision", ["gone n0", "closed n0 0/0", "suspect n0 1/2"])
def test_a_node_that_served_all_the_time_was_not_away(decision: str) -> None:
    """It was given jobs before and after, without a break, and started each at once."""
    evidence = with_others_on_n0(two_jobs(decision, "n1"), STEADY)
    report = audit(evidence)
    assert report.sessions.violations == 1
    assert "n0 served before and after" in report.examples()[0]


@pytest.mark.parametrize(
    ("given_ms", "boot", "late_ms"),
    [
        ([ms for ms in STEADY if not -2_000 < ms < -1_000], "1-a", 0),
        ([ms for ms in STEADY if ms < 0], "1-a", 0),
        ([ms for ms in STEADY if ms > 0], "1-a", 0),
        ([ms for ms in STEADY if ms > -SERVED_MS + STEADY_MS], "1-a", 0),
        (STEADY, "1-a", 400),
    ],
    ids=["a break", "nothing after", "nothing before", "only just there", "started late"],
)
def test_a_node_that_may_have_been_away_is_believed_to_have_been(given_ms: list[int], boot: str, late_ms: int) -> None:
    """Only what cannot have been otherwise is held against a decision."""
    evidence = with_others_on_n0(two_jobs("gone n0", "n1"), given_ms, boot, late_ms)
    assert audit(evidence).sessions == Sessions(spilled={"gone": 1})


def test_two_boots_of_a_node_do_not_make_one_that_served_all_the_time() -> None:
    """The later one may have been away at first."""
    evidence = with_others_on_n0(two_jobs("gone n0", "n1"), [ms for ms in STEADY if ms < 0])
    after = [msgspec.structs.replace(run, boot="2-b") for run in with_others_on_n0(evidence, [1, 2]).runs[-2:]]
    after = [msgspec.structs.replace(run, job_id=f"late{run.token}") for run in after]
    evidence = msgspec.structs.replace(evidence, runs=[*evidence.runs, *after])
    assert audit(evidence).sessions.spilled == {"gone": 1}


def test_a_retried_job_stands_where_its_last_token_puts_it() -> None:
    """In token order the nodes are n1, n0, n0: one of two jobs stayed."""
    placed = [("j0", 1, "n1"), ("j1", 2, "n1"), ("j2", 3, "n0"), ("j0", 4, "n0")]
    runs = [Run(job_id, "s0", node, "1-a", token, "0/1-0", 0, 0, 0) for job_id, token, node in placed]
    assert audit(Evidence([], runs, [], [], 0.0, 1.0)).affinity_rate == 1 / 2
