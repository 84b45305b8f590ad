"""What is said of a fleet that met what hits everybody at once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from chaos.grants import Grants, overlaps, starts_past_lease, without_steps
from chaos.shocks import SPARE_MS, Result, Shock, limit_ms_of, managed_ms_max_of, matrix
from chaos.wall_clock import WallClock

from scheduler.audit.audit import Run
from scheduler.config import DEFAULTS
from scheduler.errors import SchedulerError

START_MS = 5_000
LEASE_MS = 15_000
SEEN_US = 1_000_000
HOUR_US = 3_600_000_000

UNHARMED = Result(
    engine="redis",
    shock="clock +1 s",
    submitted=100,
    lost=0,
    over_capacity=0,
    past_lease=0,
    charged=0,
    broken=0,
    left=0,
    again_ms=100,
    limit_ms=5_000,
    managed_ms=100,
    managed_ms_max=5_000,
)


def run_of(started_us: int, ended_us: int | None = None, token: int = 1, node: str = "n1", job_id: str = "j1") -> Run:
    """A run of a job."""
    return Run(job_id, "s1", node, "1-a", token, "0/1-0", 0, started_us, ended_us)


def seen() -> Grants:
    """A lease of j1 on n1 that was there when it was looked for the second time."""
    grants = Grants()
    grants.look(0, 10_000, {})
    grants.look(SEEN_US - 10_000, SEEN_US, {("n1", "j1"): 77})
    return grants


@pytest.mark.parametrize(
    ("started_us", "is_late"),
    [
        pytest.param(SEEN_US + 1, False, id="at once"),
        pytest.param(5_000, False, id="before it could be seen"),
        pytest.param(SEEN_US + START_MS * 1_000, False, id="in the last moment"),
        pytest.param(SEEN_US + START_MS * 1_000 + 1, True, id="after its end"),
    ],
)
def test_a_first_lease_ends_its_length_after_it_was_seen(started_us: int, is_late: bool) -> None:
    """Nobody says when it was given, but not later than that."""
    assert bool(starts_past_lease([run_of(started_us)], seen(), START_MS, LEASE_MS)) is is_late


def test_a_renewed_lease_is_longer() -> None:
    """Its end as stored tells it from the first one."""
    grants = seen()
    grants.look(SEEN_US, SEEN_US + 10_000, {("n1", "j1"): 99})
    started_us = SEEN_US + 10_000 + LEASE_MS * 1_000
    assert starts_past_lease([run_of(started_us)], grants, START_MS, LEASE_MS) == []
    assert len(starts_past_lease([run_of(started_us + 1)], grants, START_MS, LEASE_MS)) == 1


def test_a_lease_that_is_gone_is_none() -> None:
    """It ends when a look does not find it any more; another one of the same job counts anew."""
    grants = seen()
    gone_us = SEEN_US + 20_000
    grants.look(SEEN_US + 10_000, gone_us, {})
    assert starts_past_lease([run_of(gone_us)], grants, START_MS, LEASE_MS) == []
    late = starts_past_lease([run_of(gone_us + 50_000)], grants, START_MS, LEASE_MS)
    assert late == ["job j1 started on n1 50 ms after the end of its lease"]
    grants.look(gone_us + 10_000, gone_us + 20_000, {("n1", "j1"): 120})
    assert starts_past_lease([run_of(gone_us + 50_000)], grants, START_MS, LEASE_MS) == []


def test_who_never_had_a_lease_is_seen_if_somebody_looked() -> None:
    """A run between two looks is not judged."""
    looked, unlooked = run_of(0, 2 * SEEN_US, node="n2"), run_of(SEEN_US + 1, SEEN_US + 2, node="n2")
    assert starts_past_lease([looked], seen(), START_MS, LEASE_MS) == ["job j1 started on n2 without a lease"]
    assert starts_past_lease([unlooked, run_of(1, None, node="n2")], seen(), START_MS, LEASE_MS) == []


def test_two_runs_of_a_job_at_once() -> None:
    """One that ended before the other one started is another matter, and so is one that nobody saw end."""
    first = run_of(0, 10)
    assert overlaps([run_of(9, 20, node="n2"), first]) == ["job j1 started on n2 while it ran on n1"]
    assert overlaps([first, run_of(10, 20), run_of(5, 20, job_id="j2")]) == []
    assert overlaps([run_of(0, None), run_of(5, 20)]) == []


@pytest.mark.parametrize("step_us", [-HOUR_US, -1_000_000, 1_000_000, HOUR_US])
def test_tokens_without_the_steps_of_their_clock(step_us: int) -> None:
    """Each is the time of its reservation by the clock of the start, before the step and after it."""
    ahead_us, stepped_us = 50 * HOUR_US, 20_000_000
    before_us, after_us = stepped_us - 1_000, stepped_us + 1_000
    runs = [
        run_of(before_us + 5_000, token=before_us + ahead_us),
        run_of(after_us + 5_000, token=after_us + ahead_us + step_us),
    ]
    ahead = {ahead_us, ahead_us + step_us}
    assert [run.token for run in without_steps(runs, ahead, {"j1": "0/1-0"}, START_MS)] == [before_us, after_us]


def test_a_token_that_the_clock_did_not_give_is_that_of_the_start() -> None:
    """After the clock went back a later reservation has the token of the one before, and one more."""
    ahead = {50 * HOUR_US, 49 * HOUR_US}
    late, later = run_of(START_MS * 1_000, token=50 * HOUR_US), run_of(START_MS * 1_000 + 1, token=50 * HOUR_US)
    for entry, tokens in (("0/7-0", [START_MS * 1_000 - 1, START_MS * 1_000]), ("0/1-0", [0, START_MS * 1_000])):
        straight = without_steps([late, later], ahead, {"j1": entry}, START_MS)
        assert [run.token for run in straight] == tokens
    assert without_steps([later], {50 * HOUR_US}, {}, START_MS)[0].token == 0


@pytest.mark.parametrize(
    "change",
    [
        {"lost": 1},
        {"over_capacity": 1},
        {"past_lease": 1},
        {"charged": 1},
        {"broken": 1},
        {"left": 1},
        {"again_ms": 5_001},
        {"managed_ms": 5_001},
    ],
)
def test_nobody_may_be_the_worse_for_it(change: dict[str, int]) -> None:
    """Each figure counts."""
    assert UNHARMED.ok
    assert not msgspec.structs.replace(UNHARMED, **change).ok


def test_the_matrix() -> None:
    """Each step alone, and with each role before, at and after it; and what needs no clock."""
    names = [str(shock) for series in matrix(20_000) for shock in series]
    assert len(names) == len(set(names)) == 5 * (1 + 4 * 3) + 6
    wanted = {
        "clock -3600 s",
        "clock +10 s, dispatcher dies after",
        "pause with the server 20 s",
        "clock -3600 s, restart",
    }
    assert wanted <= set(names)
    assert all(abs(sum(shock.step_ms for shock in series)) <= 3_600_000 for series in matrix(1))


def test_how_long_it_may_take() -> None:
    """As long as whoever died holds what he had, and a little more."""
    step = Shock(step_ms=1_000)
    assert limit_ms_of(step, DEFAULTS) == managed_ms_max_of(step, DEFAULTS) == SPARE_MS
    assert managed_ms_max_of(Shock(dies="manager"), DEFAULTS) == SPARE_MS + DEFAULTS.leader_lease_ms
    assert limit_ms_of(Shock(dies="dispatcher"), DEFAULTS) == SPARE_MS + DEFAULTS.partition_lease_ms
    assert limit_ms_of(Shock(dies="node"), DEFAULTS) == SPARE_MS + DEFAULTS.lease_ms
    assert limit_ms_of(Shock("pause of a node", pause_ms=1), DEFAULTS) == SPARE_MS + DEFAULTS.lease_ms


def test_without_a_compiler_it_is_said_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the rest could be started."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match="gcc is not on PATH"):
        WallClock(tmp_path / "clock")


def test_what_cannot_be_preloaded_is_said(tmp_path: Path) -> None:
    """The server would start without it."""
    with pytest.raises(SchedulerError, match="expected no space"):
        WallClock(tmp_path / "a clock")
