"""Pure. Decides; never performs. What hits everybody at once, what came of it, and how soon everything has to go on.

The server's clock is stepped, while somebody dies or nobody; all are paused; or all are stopped and started again.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from chaos.acts import Role
from scheduler.config import Settings

STEPS_MS: Final = (-3_600_000, 3_600_000, -10_000, 10_000, -1_000)
"""In an order that never leads far from the true time."""
RETENTION_MS: Final = 3 * 3_600_000
SPARE_MS: Final = 5_000
"""How much longer than a lease anything may take."""

Kind = Literal["step", "pause", "pause with the server", "pause of a node", "restart"]
When = Literal["before", "at", "after"]
WHENS: Final[tuple[When, ...]] = ("before", "at", "after")
VICTIMS: Final[tuple[Role, ...]] = ("manager", "dispatcher", "reaper", "node")


class Shock(msgspec.Struct, frozen=True):
    """One shock.

    step_ms: of the clock, also just before all are stopped and started; pause_ms: how long whoever is paused stands
    still; dies: all of a role at once, or one node for ever, and when: beside the step.
    """

    kind: Kind = "step"
    step_ms: int = 0
    pause_ms: int = 0
    dies: Role | None = None
    when: When = "at"

    def __str__(self) -> str:
        parts = [f"clock {self.step_ms / 1000:+g} s"] if self.step_ms else []
        what = ", ".join(parts if self.kind == "step" else [*parts, self.kind])
        if self.pause_ms:
            what += f" {self.pause_ms / 1000:g} s"
        return what if self.dies is None else f"{what}, {self.dies} dies {self.when}"


class Result(msgspec.Struct, frozen=True):
    """What came of one shock.

    charged: jobs for which an attempt, a crash or a start was counted, but those of a node that died or was paused
    alone; past_lease: handlers that started without a lease, or beside another run of their job; broken: other
    guarantees that did not hold; left: slots that are held at the end; again_ms: from the shock until the jobs that
    were there, and one in each partition, had ended, and limit_ms, how long that may take; managed_ms: until a command
    was answered, and managed_ms_max; examples: a few lines.
    """

    engine: str
    shock: str
    submitted: int
    lost: int
    over_capacity: int
    past_lease: int
    charged: int
    broken: int
    left: int
    again_ms: int
    limit_ms: int
    managed_ms: int
    managed_ms_max: int
    examples: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nobody was the worse for it."""
        harm = self.lost + self.over_capacity + self.past_lease + self.charged + self.broken + self.left
        return harm == 0 and self.again_ms <= self.limit_ms and self.managed_ms <= self.managed_ms_max


def matrix(pause_ms: int) -> list[list[Shock]]:
    """All shocks, in series that one fleet meets."""
    series = [[Shock(step_ms=step_ms) for step_ms in STEPS_MS]]
    series += [
        [Shock(step_ms=step_ms, dies=role, when=when) for step_ms in STEPS_MS] for role in VICTIMS for when in WHENS
    ]
    hour_ms = max(STEPS_MS)
    restarts = [Shock("restart", step_ms=step_ms) for step_ms in (0, -hour_ms, hour_ms)]
    kinds: tuple[Kind, ...] = ("pause", "pause with the server", "pause of a node")
    return [*series, [*restarts, *(Shock(kind, pause_ms=pause_ms) for kind in kinds)]]


def settings_of(settings: Settings) -> Settings:
    """Records and bindings outlast each step."""
    return msgspec.structs.replace(settings, retention_ms=RETENTION_MS, session_ttl_ms=RETENTION_MS)


def limit_ms_of(shock: Shock, settings: Settings) -> int:
    """How long jobs may take to go on: as long as whoever died holds what he had."""
    if shock.dies == "dispatcher" or shock.kind in ("pause", "pause with the server"):
        return settings.partition_lease_ms + SPARE_MS
    if shock.dies == "node" or shock.kind == "pause of a node":
        return max(settings.lease_ms, settings.silence_ms + settings.start_ms) + SPARE_MS
    return SPARE_MS


def managed_ms_max_of(shock: Shock, settings: Settings) -> int:
    """The same for commands."""
    waits = shock.dies == "manager" or shock.kind in ("pause", "pause with the server")
    return SPARE_MS + (settings.leader_lease_ms if waits else 0)
