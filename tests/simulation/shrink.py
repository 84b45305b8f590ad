"""The shortest schedule that still fails: without the faults, and then without the jobs, that it does not need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from tests.simulation.plan import Plan

T = TypeVar("T")
SIMPLE: Final = {"pools": "none", "memory": "roomy"}
"""The fleet about which there is nothing to say."""


def shrink(
    plan: Plan, failed_s: float, fails: Callable[[Plan], bool], tell: Callable[[str], None] = lambda line: None
) -> Plan:
    """A plan with as few faults and jobs as are needed for `fails`, and the simplest fleet.

    Args: plan; failed_s, when it fails; fails, whether another one does; tell, told of each step.
    """
    replace = msgspec.structs.replace
    earlier = replace(
        plan,
        events=tuple(event for event in plan.events if event.at_s <= failed_s),
        jobs=tuple(job for job in plan.jobs if job.at_s <= failed_s),
    )
    plan = earlier if fails(earlier) else plan
    for field, simple in SIMPLE.items():
        simpler = replace(plan, **{field: simple})
        plan = simpler if simpler != plan and fails(simpler) else plan

    def without(field: str) -> Callable[[Sequence[object]], bool]:
        return lambda items: fails(replace(plan, **{field: tuple(items)}))  # of the plan as it is then

    def counts(field: str) -> Callable[[int], None]:
        return lambda count: tell(f"{count} {field}")

    for field in ("events", "jobs", "events"):
        kept = minimal(list(getattr(plan, field)), without(field), counts(field))
        plan = replace(plan, **{field: tuple(kept)})
    return plan


def minimal(items: list[T], fails: Callable[[Sequence[T]], bool], tell: Callable[[int], None]) -> list[T]:
    """A part of the items that still fails and would not with any one of them less.

    Delta debugging: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, 2002.
    """
    size = len(items)
    while size >= 1:
        position, is_shorter = 0, False
        while position < len(items):
            rest = items[:position] + items[position + size :]
            if fails(rest):
                items, is_shorter = rest, True
                tell(len(items))
            else:
                position += size
        if size == 1 and not is_shorter:
            break
        size = size if size == 1 else (size + 1) // 2 if size > 2 else 1
    return items
