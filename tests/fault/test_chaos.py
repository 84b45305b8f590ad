"""The short form of the chaos run: every process may be hit at any time, and every guarantee holds."""

from __future__ import annotations

from pathlib import Path

from chaos.command import quick_plan
from chaos.run import Left, run

SEED = 1


def test_whoever_is_hit_nothing_is_lost_run_twice_or_held(tmp_path: Path) -> None:
    """With somebody hit each second, every job completes once, in order and within capacity, and no slot is held."""
    plan = quick_plan(SEED)
    result = run(plan, tmp_path)
    report = result.report
    assert result.unexpected == ()
    assert report.examples() == ()
    broken = (report.lost, report.duplicates, report.over_capacity, report.order_violations, report.contradictions)
    assert broken == (0, 0, 0, 0, 0)
    assert (report.submitted, report.completed) == (len(plan.arrivals), len(plan.arrivals))
    assert result.left == Left(slots=0, intake=0, delayed=0)
    assert sum(sum(kinds.values()) for kinds in result.acts.values()) >= 10
    assert result.ok


def test_sessions_stay_while_dispatchers_come_and_go(tmp_path: Path) -> None:
    """Four of them are started, stopped and killed; no session leaves a node that is healthy and has room."""
    plan = quick_plan(SEED, only=("dispatcher",), dispatchers=4)
    result = run(plan, tmp_path)
    assert result.unexpected == ()
    assert result.report.examples() == ()
    assert (result.report.completed, result.left) == (len(plan.arrivals), Left(slots=0, intake=0, delayed=0))
    assert set(result.acts) == {"dispatcher"}
    sessions = len({arrival.session_id for arrival in plan.arrivals})
    assert (result.report.sessions.judged, result.report.sessions.unjudged) == (len(plan.arrivals) - sessions, 0)
    assert result.ok
