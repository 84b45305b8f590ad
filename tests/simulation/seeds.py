"""The list of seeds that failed, with the schedule that shows why, in a text that people read and edit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from tests.simulation.checker import INVARIANTS
from tests.simulation.fleet import MEMORY, POOLS
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
        return f"{self.plan.scenario}-{self.plan.seed}-{self.invariant}-{len(self.plan.jobs)}-jobs"


def parse_seeds(text: str) -> list[Seed]:
    """Blocks with an empty line between. In a block: a sentence behind `#`; `seed N SCENARIO STATUS INVARIANT`; `fleet
    POOLS MEMORY`, else what the seed draws; `jobs N N ...`, else all of them, with `of N` where another number is drawn
    than the scenario says; then the faults.

    Raises: ValueError, naming the block, what is wrong and what was expected.
    """
    found = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        words = [line for line in lines if not line.startswith("#")]
        if words:
            why = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
            try:
                found.append(_parse(words, why))
            except ValueError as error:
                raise ValueError(f"the block {words[0]!r}: {error}") from None
    return found


def _parse(lines: list[str], why: str) -> Seed:
    head, *rest = lines
    match head.split():
        case ["seed", number, scenario, ("open" | "mended") as status, invariant] if number.isdigit():
            _check("scenario", scenario, SCENARIOS)
            _check("invariant", invariant, INVARIANTS)
        case _:
            raise ValueError("expected `seed NUMBER SCENARIO open|mended INVARIANT`")
    seed, fleet, kept, drawn = int(number), {}, None, None
    while rest and rest[0].split()[0] in ("fleet", "jobs"):
        line = rest.pop(0)
        match line.split():
            case ["fleet", pools, memory]:
                _check("pools", pools, POOLS)
                _check("memory", memory, MEMORY)
                fleet = {"pools": pools, "memory": memory}
            case ["jobs", *numbers, "of", count] if _are_numbers(*numbers, count):
                kept, drawn = set(map(int, numbers)), int(count)
            case ["jobs", *numbers] if _are_numbers(*numbers):
                kept = set(map(int, numbers))
            case _:
                raise ValueError(f"{line!r}: expected `fleet POOLS MEMORY`, or `jobs NUMBER NUMBER ... [of NUMBER]`")
    plan = draw(seed, SCENARIOS[scenario], drawn)
    if kept is not None:
        if missing := kept - {job.number for job in plan.jobs}:
            raise ValueError(f"there is no job {min(missing)}: expected numbers below {plan.drawn}")
        plan = msgspec.structs.replace(plan, jobs=tuple(job for job in plan.jobs if job.number in kept))
    plan = msgspec.structs.replace(plan, events=tuple(map(parse_event, rest)), **fleet)
    return Seed(plan, status, invariant, why)


def _are_numbers(*words: str) -> bool:
    return all(map(str.isdigit, words))


def _check(what: str, word: str, known: Iterable[str]) -> None:
    if word not in known:
        raise ValueError(f"{what} = {word!r}: expected one of {', '.join(sorted(known))}")


def show_seed(seed: Seed) -> str:
    """The reverse of a block of parse_seeds."""
    plan = seed.plan
    every = draw(plan.seed, SCENARIOS[plan.scenario])
    lines = [f"# {seed.why}"] if seed.why else []
    lines.append(f"seed {plan.seed} {plan.scenario} {seed.status} {seed.invariant}")
    lines.append(f"fleet {plan.pools} {plan.memory}")
    if plan.jobs != every.jobs:
        of = f" of {plan.drawn}" if plan.drawn != every.drawn else ""
        lines.append("jobs " + " ".join(str(job.number) for job in plan.jobs) + of)
    return "\n".join([*lines, *map(str, plan.events)])


def read_seeds(path: Path = SEEDS) -> list[Seed]:
    """The list of the project. Raises: ValueError, as parse_seeds does."""
    try:
        return parse_seeds(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def show_seeds(seeds: Iterable[Seed]) -> str:
    """The reverse of parse_seeds."""
    return "\n\n".join(map(show_seed, seeds)) + "\n"
