"""The server is restarted with its data, and was away for longer than every lease."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from chaos.outage import FIRST_MS_MAX, LONG, SHORT, Result, run, sessions_of
from chaos.settings import settings_for

from scheduler.config import DEFAULTS
from scheduler.protocol import keys
from scheduler.server.embedded import Engine, available_engines

AWAY_S = 2.0
UNHARMED = Result(
    killed=False,
    away_s=AWAY_S,
    deaths=0,
    expired=0,
    first_ms=FIRST_MS_MAX,
    slowest=0,
    stopped=LONG,
    late=SHORT,
    jobs=100,
    completed=100,
    lost=0,
    charged=0,
    slots_left=0,
    unexpected=(),
)


@pytest.mark.parametrize(
    ("engine", "kill"),
    [
        *(pytest.param(engine, False, id=engine) for engine in available_engines()),
        *(pytest.param(engine, True, id=f"{engine}-killed") for engine in list(available_engines())[:1]),
    ],
)
def test_a_restart_after_an_outage_longer_than_every_lease_costs_nothing(
    tmp_path: Path, engine: Engine, kill: bool
) -> None:
    """Nobody is declared dead, what had to stop runs again as a first attempt, and every partition goes on at once."""
    settings = settings_for("quick", 0)
    longest_ms = max(settings.lease_ms, settings.partition_lease_ms, settings.leader_lease_ms, settings.silence_ms)
    assert longest_ms < AWAY_S * 1000
    result = run(settings, AWAY_S, tmp_path, engine, kill=kill)
    expected = msgspec.structs.replace(
        UNHARMED,
        killed=kill,
        away_s=result.away_s,
        first_ms=result.first_ms,
        slowest=result.slowest,
        jobs=result.jobs,
        completed=result.jobs - result.lost,
        lost=result.lost if kill else 0,
    )
    assert (result, result.first_ms <= FIRST_MS_MAX, result.ok) == (expected, True, True)
    assert result.jobs > settings.partitions + LONG + SHORT


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        pytest.param({}, True, id="nobody is the worse for it"),
        pytest.param({"completed": 99}, False, id="a job failed"),
        pytest.param({"completed": 99, "lost": 1}, False, id="a job is lost in order"),
        pytest.param({"completed": 99, "lost": 1, "killed": True}, True, id="a job of the last moments is lost"),
        pytest.param({"completed": 98, "lost": 1, "killed": True}, False, id="and another one failed"),
        pytest.param({"first_ms": FIRST_MS_MAX + 0.1}, False, id="a partition is late"),
        pytest.param({"deaths": 1}, False, id="a node is declared dead"),
        pytest.param({"expired": 1}, False, id="a lease is taken away"),
        pytest.param({"charged": 1}, False, id="it costs an attempt"),
        pytest.param({"slots_left": 1}, False, id="a slot leaks"),
        pytest.param({"stopped": LONG - 1}, False, id="too short to stop anybody"),
        pytest.param({"unexpected": ("node1.1 ended",)}, False, id="a process ended"),
    ],
)
def test_only_what_a_kill_may_take_is_forgiven(change: dict[str, object], ok: bool) -> None:
    """Jobs that were acknowledged in the last moments may be gone after a kill, and nothing else may be."""
    assert msgspec.structs.replace(UNHARMED, **change).ok is ok


def test_every_partition_is_asked_at_the_return() -> None:
    """One session for each, in their order."""
    partitions = [keys.partition_of(session, DEFAULTS.partitions) for session in sessions_of(DEFAULTS)]
    assert partitions == list(range(DEFAULTS.partitions))
