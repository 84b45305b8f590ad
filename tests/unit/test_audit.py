"""The checker of a run: silent on clean records; each planted violation raises its own counter alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.audit.audit import (
    EXAMPLES_MAX,
    Capacity,
    Evidence,
    Outcome,
    Percentiles,
    Report,
    Run,
    Sessions,
    Submission,
    audit,
    percentile,
)
from scheduler.errors import InvalidInput

JOBS = 300
SESSIONS = 20
NODES = 4
SLOTS = 2
STEP_US = 1_000
RUN_US = NODES * SLOTS * STEP_US  # a node's next job but one starts at the microsecond that this one ends
RETRY_EACH = 10
VIOLATIONS = ("lost", "duplicates", "over_capacity", "order_violations", "contradictions")


def seed_evidence() -> Evidence:
    """A clean record: nodes always full, a session always on its node, each tenth job placed twice."""
    submissions, runs, outcomes = [], [], []
    for index in range(JOBS):
        session = index % SESSIONS
        submission = Submission(f"j{index}", f"s{session}", session % 2, f"{950 + index}-0")
        run = Run(
            job_id=submission.job_id,
            session_id=submission.session_id,
            node=f"n{session % NODES}",
            boot="1-a",
            token=100 * (index + 1),
            entry=submission.entry,
            inbox_ms=950 + index + 3,
            started_us=index * STEP_US,
            ended_us=index * STEP_US + RUN_US,
            decision="new" if index < SESSIONS else "stayed",
        )
        token = run.token
        if index % RETRY_EACH == 0:
            middle_us = run.started_us + RUN_US // 2
            runs.append(msgspec.structs.replace(run, ended_us=middle_us))
            token += 50
            entry = f"{submission.partition}/{950 + index + 4}-1"
            run = msgspec.structs.replace(
                run, token=token, entry=entry, inbox_ms=run.inbox_ms + 90, started_us=middle_us, attempt=2
            )
        submissions.append(submission)
        runs.append(run)
        outcomes.append(Outcome(submission.job_id, 1, "completed", token))
    capacities = [Capacity(f"n{node}", "1-a", 0, SLOTS) for node in range(NODES)]
    return Evidence(submissions, runs, outcomes, capacities, first_submission_s=10.0, last_ended_s=13.0)


CLEAN = seed_evidence()
CLEAN_REPORT = Report(
    submitted=JOBS,
    completed=JOBS,
    failed=0,
    dead=0,
    cancelled=0,
    lost=0,
    duplicates=0,
    over_capacity=0,
    affinity_rate=1.0,
    order_violations=0,
    dispatch_ms=Percentiles(p50=3, p99=3),
    jobs_per_s=JOBS / 3.0,
    # In two sessions of twenty each job is placed twice: whoever follows such a one is not judged.
    sessions=Sessions(stayed=252, unjudged=28),
)


def changed(evidence: Evidence, job_id: str, **fields: object) -> Evidence:
    """The same record, with other fields in the last run of a job."""
    runs = list(evidence.runs)
    last = max(index for index, run in enumerate(runs) if run.job_id == job_id)
    runs[last] = msgspec.structs.replace(runs[last], **fields)
    return msgspec.structs.replace(evidence, runs=runs)


def last_run(evidence: Evidence, job_id: str) -> Run:
    """The last run of a job in the list."""
    return [run for run in evidence.runs if run.job_id == job_id][-1]


def shuffled(evidence: Evidence, random: Random) -> Evidence:
    """The same record, each list in another order."""
    return msgspec.structs.replace(
        evidence,
        submissions=random.sample(list(evidence.submissions), len(evidence.submissions)),
        runs=random.sample(list(evidence.runs), len(evidence.runs)),
        outcomes=random.sample(list(evidence.outcomes), len(evidence.outcomes)),
        capacities=random.sample(list(evidence.capacities), len(evidence.capacities)),
    )


def plant_lost(evidence: Evidence, index: int) -> Evidence:
    """A job without an outcome."""
    kept = [outcome for outcome in evidence.outcomes if outcome.job_id != f"j{index}"]
    return msgspec.structs.replace(evidence, outcomes=kept)


def plant_duplicate(evidence: Evidence, index: int) -> Evidence:
    """A second completion of the same life, with another token."""
    again = Outcome(f"j{index}", 1, "completed", 1)
    return msgspec.structs.replace(evidence, outcomes=[*evidence.outcomes, again])


def plant_over_capacity(evidence: Evidence, index: int) -> Evidence:
    """A run that ends a microsecond after the one that took its slot started."""
    ended_us = last_run(evidence, f"j{index}").ended_us
    assert ended_us is not None
    return changed(evidence, f"j{index}", ended_us=ended_us + 1)


def plant_order(evidence: Evidence, index: int) -> Evidence:
    """Two neighbours of a session that were placed the wrong way round."""
    index += index % RETRY_EACH == 0  # neighbours are placed once or twice alike; here once
    earlier, later = f"j{index}", f"j{index + SESSIONS}"
    first, second = last_run(evidence, earlier), last_run(evidence, later)
    evidence = changed(evidence, earlier, token=second.token, decision=second.decision)
    return changed(evidence, later, token=first.token, decision=first.decision)


def plant_token_run_again(evidence: Evidence, index: int) -> Evidence:
    """A second run with the same token, when its node had room again."""
    idle_us = 2 * JOBS * STEP_US
    again = msgspec.structs.replace(last_run(evidence, f"j{index}"), started_us=idle_us, ended_us=idle_us + 1)
    return msgspec.structs.replace(evidence, runs=[*evidence.runs, again])


def plant_run_backwards(evidence: Evidence, index: int) -> Evidence:
    """A run that ends before it starts."""
    return changed(evidence, f"j{index}", ended_us=last_run(evidence, f"j{index}").started_us - 1)


def plant_two_states(evidence: Evidence, index: int) -> Evidence:
    """A life that was completed and is dead."""
    also = Outcome(f"j{index}", 1, "dead", 1)
    return msgspec.structs.replace(evidence, outcomes=[*evidence.outcomes, also])


PLANTS: list[tuple[Callable[[Evidence, int], Evidence], str]] = [
    (plant_lost, "lost"),
    (plant_duplicate, "duplicates"),
    (plant_over_capacity, "over_capacity"),
    (plant_order, "order_violations"),
    (plant_token_run_again, "contradictions"),
    (plant_run_backwards, "contradictions"),
    (plant_two_states, "contradictions"),
]
# With a session's next job and a node's next job but one still to come.
PLANTABLE = st.integers(0, JOBS - 2 * SESSIONS)


def counters(report: Report) -> dict[str, int]:
    """The violation counters that are not zero."""
    return {name: getattr(report, name) for name in VIOLATIONS if getattr(report, name)}


def test_a_clean_record_gives_zeros() -> None:
    """Nodes full to the last slot, and retries, are no violation."""
    assert audit(CLEAN) == CLEAN_REPORT


def test_a_report_without_violations_has_exactly_the_documented_keys() -> None:
    """Consumers of --json can rely on the keys."""
    names = "completed failed dead cancelled lost duplicates over_capacity order_violations"
    rates = {"submitted", "affinity_rate", "dispatch_ms", "jobs_per_s", "sessions"}
    assert set(CLEAN_REPORT.document()) == rates | set(names.split())
    assert CLEAN_REPORT.document()["dispatch_ms"] == {"p50": 3, "p99": 3}


def test_an_empty_record_gives_zeros_and_no_rates() -> None:
    """Without jobs there is nothing to divide by."""
    report = audit(Evidence([], [], [], [], first_submission_s=0.0, last_ended_s=0.0))
    assert report.ok
    assert (report.affinity_rate, report.dispatch_ms, report.jobs_per_s) == (None, Percentiles(None, None), 0.0)


@pytest.mark.parametrize(("make", "counter"), PLANTS)
@settings(deadline=None, max_examples=15)
@given(index=PLANTABLE, shuffle=st.integers(0, 99))
def test_each_planted_violation_raises_its_own_counter_alone(
    make: Callable[[Evidence, int], Evidence], counter: str, index: int, shuffle: int
) -> None:
    """One violation anywhere in a clean record is counted once, shown, and makes the report not ok."""
    report = audit(shuffled(make(CLEAN, index), Random(shuffle)))
    assert counters(report) == {counter: 1}
    assert not report.ok
    assert len(report.examples()) == 1
    assert report.document()["violations"] == msgspec.to_builtins(report.examples())


@settings(deadline=None, max_examples=30)
@given(index=PLANTABLE, shuffle=st.integers(0, 99))
def test_the_order_of_the_lists_does_not_matter(index: int, shuffle: int) -> None:
    """A record with one violation of each kind gives the same report, examples included, in any order."""
    broken = CLEAN
    for step, (make, _) in enumerate(PLANTS):
        broken = make(broken, (index + 31 * step) % (JOBS - 2 * SESSIONS))
    assert audit(shuffled(broken, Random(shuffle))) == audit(broken)


def test_examples_are_bounded_and_counts_are_not() -> None:
    """A run that went wrong everywhere stays readable."""
    report = audit(msgspec.structs.replace(CLEAN, outcomes=[]))
    assert (report.lost, report.completed, report.jobs_per_s) == (JOBS, 0, 0.0)
    assert len(report.examples()) == EXAMPLES_MAX


def test_examples_name_what_went_wrong() -> None:
    """A reader finds job, entry, node and numbers."""
    report = audit(plant_order(plant_lost(CLEAN, 4), 1))
    assert report.examples() == (
        "lost: job j4 (entry 0/954-0) has no outcome",
        "order: session s1: job j21 (entry 1/971-0, token 200) passed job j1 (entry 1/951-0, token 2200)",
    )


def test_an_outcome_read_twice_is_no_duplicate() -> None:
    """The feed may be read again."""
    assert audit(msgspec.structs.replace(CLEAN, outcomes=[*CLEAN.outcomes, *CLEAN.outcomes])) == CLEAN_REPORT


def test_a_completion_in_each_of_two_lives_is_no_duplicate() -> None:
    """A job that was requeued may complete again; the last life tells its state."""
    again = [msgspec.structs.replace(outcome, life=2, token=1) for outcome in CLEAN.outcomes]
    assert audit(msgspec.structs.replace(CLEAN, outcomes=[*again, *CLEAN.outcomes])) == CLEAN_REPORT
    dead = [msgspec.structs.replace(outcome, state="dead") for outcome in CLEAN.outcomes]
    assert audit(msgspec.structs.replace(CLEAN, outcomes=[*again, *dead])) == CLEAN_REPORT


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99))
def test_each_acknowledged_job_is_counted_in_one_state(seed: int) -> None:
    """completed + failed + dead + cancelled + lost = submitted."""
    states = Random(seed).choices(["completed", "failed", "dead", "cancelled", None], k=JOBS)
    outcomes = [
        msgspec.structs.replace(outcome, state=state)
        for outcome, state in zip(CLEAN.outcomes, states, strict=True)
        if state is not None
    ]
    report = audit(msgspec.structs.replace(CLEAN, outcomes=outcomes))
    counts = (report.completed, report.failed, report.dead, report.cancelled, report.lost)
    assert counts == tuple(states.count(state) for state in ("completed", "failed", "dead", "cancelled", None))
    assert report.jobs_per_s == len(outcomes) / 3.0


def test_a_job_acknowledged_twice_is_submitted_once_and_timed_from_its_first_entry() -> None:
    """Submitting again with the same id is allowed, and 9-0 comes before 10-0."""
    submissions = [Submission("j0", "s0", 0, "10-0"), Submission("j0", "s0", 0, "9-0")]
    run = Run("j0", "s0", "n0", "1-a", 5, "0/9-0", 30, 0, 1)
    outcomes = [Outcome("j0", 1, "completed", 5)]
    report = audit(Evidence(submissions, [run], outcomes, [Capacity("n0", "1-a", 0, 1)], 0.0, 1.0))
    assert (report.submitted, report.ok, report.dispatch_ms) == (1, True, Percentiles(21, 21))


def test_entry_ids_are_compared_as_numbers() -> None:
    """In the clean record ids grow from three digits to four, and sequences may too."""
    submissions = [Submission(f"j{index}", "s0", 0, f"7-{index}") for index in (2, 10)]
    runs = [Run(f"j{index}", "s0", "n0", "1-a", index, f"0/7-{index}", 7, index, index) for index in (2, 10)]
    assert audit(Evidence(submissions, runs, [], [], 0.0, 1.0)).order_violations == 0


def test_an_entry_id_that_is_none_is_refused() -> None:
    """A broken record is an error that shows the value, not a wrong count."""
    with pytest.raises(InvalidInput, match="entry_id = 'now': expected a stream id"):
        audit(msgspec.structs.replace(CLEAN, submissions=[Submission("j0", "s0", 0, "now")]))


def test_a_retry_that_comes_after_its_successor_is_in_order() -> None:
    """A retry is a new arrival: only runs from first entries are compared."""
    report = audit(changed(CLEAN, "j0", token=100 * (SESSIONS + 1) + 50))
    assert report.ok


def test_a_job_that_first_ran_from_a_later_entry_is_skipped_in_the_order() -> None:
    """Its first reservation ended before a handler started; its neighbours are compared with each other."""
    assert audit(changed(CLEAN, "j1", entry="1/5000-0", token=100_000)).ok
    assert audit(plant_order(changed(CLEAN, "j21", entry="1/5000-0", token=100_000), 41)).order_violations == 1


def test_one_session_in_two_partitions_has_no_order_between_them() -> None:
    """Order is kept within a partition only."""
    submissions = [Submission("j0", "s0", 0, "5-0"), Submission("j1", "s0", 1, "6-0")]
    runs = [
        Run("j0", "s0", "n0", "1-a", 9, "0/5-0", 9, 0, 0),
        Run("j1", "s0", "n0", "1-a", 8, "1/6-0", 8, 0, 0),
    ]
    assert audit(Evidence(submissions, runs, [], [], 0.0, 1.0)).order_violations == 0


def test_dispatch_counts_to_the_first_run_and_not_to_a_retry() -> None:
    """The clean record's retries came 90 ms later and leave the percentiles alone."""
    later = changed(changed(CLEAN, "j1", inbox_ms=1_051), "j10", inbox_ms=9_999)
    later = changed(changed(later, "j2", inbox_ms=1_052), "j3", inbox_ms=1_053)
    later = changed(later, "j4", inbox_ms=1_054)
    assert audit(later).dispatch_ms == Percentiles(p50=3, p99=100)


def test_affinity_is_judged_by_the_last_run_of_each_job_in_token_order() -> None:
    """A moved job costs two pairs, the one to it and the one from it; the last of its session costs one."""
    pairs = JOBS - SESSIONS
    assert audit(changed(CLEAN, "j40", node="n9")).affinity_rate == (pairs - 2) / pairs
    assert audit(changed(CLEAN, f"j{JOBS - 1}", node="n9")).affinity_rate == (pairs - 1) / pairs


def test_equal_tokens_of_different_jobs_are_not_the_same_token() -> None:
    """Tokens are a job's own: two jobs with an equal one contradict nothing."""
    runs = [Run(f"j{job}", f"s{job}", "n0", "1-a", 5, f"0/{job}-0", 0, 0, 0) for job in (0, 1)]
    assert audit(Evidence([], runs, [], [], 0.0, 1.0)).contradictions == 0
    assert audit(Evidence([], [*runs, *runs], [], [], 0.0, 1.0)).contradictions == 2


def test_a_node_without_a_capacity_record_has_no_slots() -> None:
    """A missing record fails the check instead of passing it."""
    without = [capacity for capacity in CLEAN.capacities if capacity.node != "n0"]
    report = audit(msgspec.structs.replace(CLEAN, capacities=without))
    assert counters(report) == {"over_capacity": len([run for run in CLEAN.runs if run.node == "n0"])}


def seed_node(spans: Sequence[tuple[str, int, int | None]], capacities: list[Capacity]) -> Evidence:
    """Runs (boot, started_us, ended_us) on node n0, and nothing else."""
    runs = [
        Run(f"j{index}", f"s{index}", "n0", boot, index + 1, f"0/{index}-0", 0, started_us, ended_us)
        for index, (boot, started_us, ended_us) in enumerate(spans)
    ]
    return Evidence([], runs, [], capacities, 0.0, 1.0)


def test_all_boots_of_a_node_share_its_capacity() -> None:
    """A paused process that runs on beside its successor takes the node over."""
    capacities = [Capacity("n0", "1-a", 0, 1), Capacity("n0", "2-b", 10, 1)]
    assert audit(seed_node([("1-a", 5, 20), ("2-b", 15, 30)], capacities)).over_capacity == 1


def test_a_run_without_an_end_lasts_until_the_next_boot_of_its_node() -> None:
    """A killed process cannot say when its handlers ended; its successor shows that they have."""
    capacities = [Capacity("n0", "1-a", 0, 1), Capacity("n0", "2-b", 10, 1)]
    assert audit(seed_node([("1-a", 5, None), ("2-b", 10, 30)], capacities)).over_capacity == 0
    assert audit(seed_node([("1-a", 5, None), ("1-a", 9, None)], capacities)).over_capacity == 1
    assert audit(seed_node([("2-b", 15, None), ("2-b", 900, 901)], capacities)).over_capacity == 1


def test_capacity_counts_from_the_instant_that_the_node_recorded() -> None:
    """A lower capacity is no violation of those that run, a start above it is one."""
    capacities = [Capacity("n0", "1-a", 0, 2), Capacity("n0", "1-a", 10, 1)]
    assert audit(seed_node([("1-a", 1, 20), ("1-a", 2, 20)], capacities)).over_capacity == 0
    assert audit(seed_node([("1-a", 1, 20), ("1-a", 10, 20)], capacities)).over_capacity == 1


@settings(deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=12),
    steps=st.lists(st.integers(0, 4), min_size=1, max_size=4),
)
def test_over_capacity_agrees_with_looking_at_every_instant(spans: list[tuple[int, int]], steps: list[int]) -> None:
    """At each microsecond, the starts above the capacity in force then; capacity changes every 4 us."""
    capacities = [Capacity("n0", "1-a", 4 * index, slots) for index, slots in enumerate(steps)]
    runs = [("1-a", start, start + length) for start, length in spans]
    expected = 0
    for at_us in range(20):
        slots = steps[min(at_us // 4, len(steps) - 1)]
        starting = sum(start == at_us and length > 0 for start, length in spans)
        running = sum(start <= at_us < start + length for start, length in spans)
        expected += min(starting, max(0, running - slots))
    assert audit(seed_node(runs, capacities)).over_capacity == expected


@settings(deadline=None)
@given(values=st.lists(st.integers(), min_size=1, max_size=300), percent=st.integers(1, 100))
def test_percentile_is_the_smallest_value_that_covers_the_share(values: list[int], percent: int) -> None:
    """Nearest rank: at least percent % of the values are not above it, fewer not above any smaller value."""
    found = percentile(sorted(values), percent)
    assert found in values
    assert 100 * sum(value <= found for value in values) >= percent * len(values)
    assert 100 * sum(value < found for value in values) < percent * len(values)
