"""What a chaos run draws, and how it reads the records of processes that were paused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random

import msgspec
import pytest
from chaos.acts import KINDS, ROLES, Act, Role, Seat, State, draw
from chaos.command import repeat, rounds_for
from chaos.evidence import RAN_ON_US_MAX, longest_gap_ms, longest_partition_gap_ms, without_pauses
from chaos.processes import variables
from chaos.settings import settings_for

from scheduler.audit.audit import Capacity, Evidence, Run, Submission, audit
from scheduler.audit.workloads import Arrival
from scheduler.config import DEFAULTS, read_settings

PAUSE = (2_000_000, 9_000_000)


def run_of(token: int, started_us: int, ended_us: int | None, boot: str = "1-a", inbox_ms: int = 0) -> Run:
    """A run on n1, from the entry of `submission_of(token)`."""
    entry = f"0/{token}-0"
    return Run(f"j{token}", f"s{token}", "n1", boot, token, entry, inbox_ms, started_us, ended_us)


def submission_of(token: int, partition: int = 0) -> Submission:
    """Job j<token>, submitted at that millisecond."""
    return Submission(f"j{token}", f"s{token}", partition, f"{token}-0")


def seats_of(role: Role, state: State = "running", count: int = 5) -> dict[str, Seat]:
    """So many seats of a role."""
    return {f"{role}{number}": Seat(role, state) for number in range(count)}


def drawn(seats: Mapping[str, Seat], only: Collection[Role] = ROLES) -> list[Act]:
    """What is done under many seeds."""
    return [act for seed in range(300) if (act := draw(Random(seed), seats, only)) is not None]


def test_the_same_seed_draws_the_same_acts() -> None:
    """Whom it hits and how depends on nothing but the seed and the seats."""
    seats = seats_of("node") | seats_of("dispatcher")
    acts = drawn(seats)
    assert acts == drawn(seats)
    assert {act.seat for act in acts} == set(seats)
    assert {act.kind for act in acts} == set(KINDS)
    assert {act.wakes for act in acts} == {True, False}


@pytest.mark.parametrize("state", ["starting", "paused"])
def test_one_that_does_not_run_can_only_be_killed(state: State) -> None:
    """A pause upon a pause would end with the first of them."""
    assert {act.kind for act in drawn(seats_of("dispatcher", state))} == {"kill"}


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_acts_of_its_own(role: Role) -> None:
    """Only nodes are lost, for others are known by no name; dispatchers come and go besides."""
    kinds = {act.kind for act in drawn(seats_of(role))}
    assert kinds == {"kill", "pause", "replace"} | {"node": {"lose"}, "dispatcher": {"stop", "leave"}}.get(role, set())


def test_few_are_hit_as_often_as_many() -> None:
    """Two managers among eight nodes have every other act."""
    hit = [act.seat for act in drawn(seats_of("manager", count=2) | seats_of("node", count=8))]
    assert 120 <= sum(seat.startswith("manager") for seat in hit) <= 180


def test_only_the_chosen_roles_are_hit() -> None:
    """The others stay as they are."""
    seats = {name: seat for role in ROLES for name, seat in seats_of(role).items()}
    assert {seats[act.seat].role for act in drawn(seats, ["dispatcher", "reaper"])} == {"dispatcher", "reaper"}


def test_nobody_is_hit_in_an_empty_seat() -> None:
    """Who has left is not there."""
    seats = seats_of("dispatcher", "absent") | {"late": Seat("dispatcher", "running")}
    assert {act.seat for act in drawn(seats)} == {"late"}
    assert drawn(seats_of("dispatcher", "absent")) == []


def test_a_run_through_a_pause_ends_with_the_pause() -> None:
    """A stopped process runs nothing; how long it went on afterwards is told."""
    runs = [run_of(1, 1_000_000, 9_000_300), run_of(2, 1_000_000, 1_500_000), run_of(3, 9_500_000, 9_600_000)]
    cut, ran_on_us = without_pauses(runs, [PAUSE])
    assert [run.ended_us for run in cut] == [PAUSE[0], 1_500_000, 9_600_000]
    assert ran_on_us == 300


@pytest.mark.parametrize("ended_us", [None, PAUSE[1] + RAN_ON_US_MAX + 1])
def test_a_run_that_goes_on_long_after_a_pause_stays_as_it_is(ended_us: int | None) -> None:
    """What should have ended and did not is for the checker to find."""
    runs = [run_of(1, 1_000_000, ended_us)]
    assert without_pauses(runs, [PAUSE])[0] == runs


def test_a_node_that_goes_on_beside_its_successor_is_over_its_capacity() -> None:
    """Cutting runs at pauses does not hide two boots that run at once."""
    capacities = [Capacity("n1", "1-a", 0, 1), Capacity("n1", "2-b", 5_000_000, 1)]
    for ended_us, expected in ((PAUSE[1] + 300, 0), (PAUSE[1] + RAN_ON_US_MAX + 1, 1)):
        cut, _ = without_pauses([run_of(1, 1_000_000, ended_us)], [PAUSE])
        later = run_of(2, 6_000_000, 6_500_000, boot="2-b")
        assert audit(Evidence([], [*cut, later], [], capacities, 0, 0)).over_capacity == expected


def test_the_longest_gap_counts_only_while_a_job_is_there() -> None:
    """Between 10 and 500 nothing was there to dispatch; from 500 to 620 something was."""
    submissions = [submission_of(5), submission_of(500), submission_of(600)]
    runs = [run_of(5, 0, 1, inbox_ms=10), run_of(500, 0, 1, inbox_ms=620), run_of(600, 0, 1, inbox_ms=630)]
    assert longest_gap_ms(submissions, runs) == 120
    assert longest_gap_ms([], []) == 0


def test_the_longest_gap_of_a_partition_is_not_hidden_by_another_one() -> None:
    """What waits in one partition waits although another one goes on."""
    submissions = [submission_of(5), *(submission_of(number, 1) for number in range(100, 200, 10))]
    runs = [run_of(5, 0, 1, inbox_ms=205)]
    for number in range(100, 200, 10):
        run = run_of(number, 0, 1, inbox_ms=number + 1)
        runs.append(msgspec.structs.replace(run, entry=f"1/{number}-0"))
    assert longest_partition_gap_ms(submissions, runs) == 200


def test_a_process_is_given_the_settings_by_its_environment() -> None:
    """What differs from the defaults, and nothing else."""
    settings = settings_for("quick", 10)
    assert read_settings(variables(settings)) == settings
    assert variables(DEFAULTS) == {}


def test_a_load_is_repeated_until_the_time_is_over() -> None:
    """Each round begins where the one before has ended."""
    once = [Arrival(0, "s1", 1, "en", "zh", ""), Arrival(800, "s1", 1, "en", "zh", "")]
    assert [rounds_for(once, seconds) for seconds in (0, 1, 1.1, 2.5)] == [1, 1, 2, 3]
    assert [arrival.at_ms for arrival in repeat(once, 2)] == [0, 800, 1_000, 1_800]
