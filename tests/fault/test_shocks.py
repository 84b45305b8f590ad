"""The short form of what hits everybody at once: the server's clock is stepped, all stand still, all start again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from chaos.settings import settings_for
from chaos.shocked import BURST, LONG, run
from chaos.shocks import Shock, settings_of
from chaos.wall_clock import COMPILER

from scheduler.config import DEFAULTS
from scheduler.server.embedded import Engine, available_engines

pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None,
    reason=f"needs {COMPILER}, to build what moves the server's clock: it is not on PATH",
)

HOUR_MS = 3_600_000
LEAST = LONG + BURST + DEFAULTS.partitions  # and some of the steady load
BACK_AND_ON = [
    Shock(step_ms=-HOUR_MS, dies="manager", when="before"),
    Shock(step_ms=HOUR_MS, dies="dispatcher", when="at"),
]
ON_AND_BACK = [Shock(step_ms=10_000, dies="node", when="after"), Shock(step_ms=-10_000, dies="reaper", when="at")]
STANDING_STILL = [Shock("pause", pause_ms=3_000)]
ENGINES = list(available_engines())


@pytest.mark.parametrize(
    ("engine", "shocks"),
    [
        *(pytest.param(engine, BACK_AND_ON, id=f"{engine}-back-and-on") for engine in ENGINES[:1]),
        *(pytest.param(engine, ON_AND_BACK, id=f"{engine}-on-and-back") for engine in ENGINES[-1:]),
        *(pytest.param(engine, STANDING_STILL, id=f"{engine}-standing-still") for engine in ENGINES[:1]),
    ],
)
def test_nobody_is_the_worse_for_what_hits_all_at_once(tmp_path: Path, engine: Engine, shocks: list[Shock]) -> None:
    """No job is lost or charged, no handler starts without a lease, no node is over capacity, and all goes on."""
    settings = settings_of(settings_for("quick", 0))
    longest_ms = max(settings.lease_ms, settings.partition_lease_ms, settings.leader_lease_ms, settings.silence_ms)
    assert all(shock.pause_ms > longest_ms for shock in shocks if "pause" in shock.kind)
    results, unexpected = run(shocks, settings, tmp_path, engine)
    assert unexpected == []
    assert [result.examples for result in results] == [()] * len(shocks)
    assert all(result.ok for result in results), results
    assert all(result.submitted > LEAST for result in results)
