"""The list of seeds that failed, with the schedule that shows why, in a text that people read and edit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from tests.simulation.plan import SCENARIOS, Plan, draw, parse_event

SEEDS: Final = Path(__file__).with_name("seeds.txt")
Status = Literal["open", "mended"]


class Seed(msgspec.Struct, frozen=True):
    """One that failed. status: `open` while it fails still; invariant: what did not hold; why: in a sentence."""

    plan: Plan
    status: Status
    invariant: str
    why: str = ""

    @property
    def name(self) -> str:
        """For people and tests."""
        return f"{self.plan.scenario}-{self.plan.seed}-{self.invariant}"


def parse_seeds(text: str) -> list[Seed]:
    """Blocks with an empty line between: a sentence behind `#`, `seed N SCENARIO STATUS INVARIANT`, `jobs N N ...` (all
    of them without that line), then the faults. Raises: ValueError, naming the block.
    """
    found = []
    for block in text.split("\n\n"):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        words = [line for line in lines if not line.startswith("#")]
        if words:
            why = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
            found.append(_parse(words, why))
    return found


def _parse(lines: list[str], why: str) -> Seed:
    head = lines[0].split()
    if len(head) != 5 or head[0] != "seed" or head[2] not in SCENARIOS or head[3] not in ("open", "mended"):
        raise ValueError(f"{lines[0]!r}: expected `seed NUMBER SCENARIO open|mended INVARIANT`")
    plan = draw(int(head[1]), SCENARIOS[head[2]])
    rest = lines[1:]
    if rest and rest[0].startswith("jobs"):
        kept = {int(number) for number in rest.pop(0).split()[1:]}
        plan = msgspec.structs.replace(plan, jobs=tuple(job for job in plan.jobs if job.number in kept))
    plan = msgspec.structs.replace(plan, events=tuple(parse_event(line) for line in rest))
    return Seed(plan, head[3], head[4], why)  # type: ignore[arg-type]


def show_seed(seed: Seed) -> str:
    """The reverse of a block of parse_seeds."""
    plan = seed.plan
    every = draw(plan.seed, SCENARIOS[plan.scenario])
    lines = [f"# {seed.why}"] if seed.why else []
    lines.append(f"seed {plan.seed} {plan.scenario} {seed.status} {seed.invariant}")
    if plan.jobs != every.jobs:
        lines.append("jobs " + " ".join(str(job.number) for job in plan.jobs))
    return "\n".join([*lines, *map(str, plan.events)])


def read_seeds(path: Path = SEEDS) -> list[Seed]:
    """The list of the project."""
    return parse_seeds(path.read_text(encoding="utf-8"))


def show_seeds(seeds: Iterable[Seed]) -> str:
    """The reverse of parse_seeds."""
    return "\n\n".join(map(show_seed, seeds)) + "\n"
