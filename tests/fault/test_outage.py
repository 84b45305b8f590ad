"""The server is restarted with its data, and was away for longer than every lease."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.outage import FIRST_MS_MAX, LONG, SHORT, Result, run
from chaos.settings import settings_for
from scheduler.store.server import Engine, available_engines

AWAY_S = 3.0


@pytest.mark.parametrize("engine", available_engines())
def test_a_restart_after_an_outage_longer_than_every_lease_costs_nothing(tmp_path: Path, engine: Engine) -> None:
    """Nobody is declared dead, what had to stop runs again as a first attempt, and everything goes on at once."""
    settings = settings_for("quick", 0)
    longest_ms = max(settings.lease_ms, settings.partition_lease_ms, settings.leader_lease_ms, settings.silence_ms)
    assert longest_ms < AWAY_S * 1000
    result = run(settings, AWAY_S, tmp_path, engine)
    jobs = 1 + LONG + SHORT
    expected = Result(
        away_s=result.away_s,
        deaths=0,
        expired=0,
        first_ms=result.first_ms,
        stopped=LONG,
        late=SHORT,
        jobs=jobs,
        completed=jobs,
        charged=0,
        slots_left=0,
        unexpected=(),
    )
    assert (result, result.first_ms <= FIRST_MS_MAX, result.ok) == (expected, True, True)
