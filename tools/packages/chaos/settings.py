"""Leases of a chaos run, and what it takes that no job is given up for having been hit too often."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from scheduler.config import DEFAULTS, Settings

Leases = Literal["default", "half", "quick"]

ENOUGH: Final = 1_000
RESULTS_SPARE: Final = 1_000

_LEASES: Final[dict[Leases, Settings]] = {
    "default": DEFAULTS,
    "half": msgspec.structs.replace(
        DEFAULTS,
        heartbeat_ms=500,
        silence_ms=2_500,
        start_ms=2_500,
        lease_ms=7_500,
        margin_ms=500,
        partition_lease_ms=3_000,
        leader_lease_ms=3_000,
    ),
    "quick": msgspec.structs.replace(
        DEFAULTS,
        heartbeat_ms=200,
        silence_ms=1_000,
        start_ms=1_000,
        lease_ms=1_500,
        margin_ms=200,
        backoff_ms=10,
        publish_ms=50,
        partition_lease_ms=1_500,
        leader_lease_ms=1_500,
    ),
}


def settings_for(leases: Leases, jobs: int) -> Settings:
    """The settings of a run with so many jobs; quick ones are for tests."""
    return msgspec.structs.replace(
        _LEASES[leases],
        crashes_max=ENOUGH,
        not_started_max=ENOUGH,
        results_max=max(DEFAULTS.results_max, 2 * jobs + RESULTS_SPARE),
    )
