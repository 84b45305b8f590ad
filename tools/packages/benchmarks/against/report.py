"""How a comparison is printed: a table of 80 columns, or one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from benchmarks.against.judgement import Decision, Row
from benchmarks.against.measures import Document
from benchmarks.against.run import Found, Plan
from benchmarks.against.sides import Code
from benchmarks.report import facts_lines, wrapped

LIBRARIES: Final = ("server", "python", "redis-py", "hiredis", "uvloop")
_DIGITS: Final = 4


def lines(old: Code, new: Code, plan: Plan, found: Found, decision: Decision) -> Iterator[str]:
    """For people."""
    if found.new_facts:
        yield from facts_lines(found.new_facts, inputs(plan))
    yield from _differences(found.old_facts, found.new_facts)
    yield ""
    yield from wrapped(f"old: {old.label}")
    yield from wrapped(f"new: {new.label}")
    yield ""
    yield from table(found.rows)
    yield ""
    yield from wrapped(f"{decision.verdict}, after {found.minutes:.1f} minutes")
    for reason in decision.reasons:
        yield from wrapped(reason)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each measure. A side without it has a dash."""
    yield f"{'':9} {'':13} {'old':>8} {'new':>8} {'ratio':>6} {'95 % interval':>14} {'heats':>5} verdict"
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio.median:.3f}"
        interval = "-" if row.ratio is None else f"{row.ratio.low:.3f} to {row.ratio.high:.3f}"
        yield (
            f"{row.benchmark:9} {row.measure.unit:13} {_figure(row.old):>8} {_figure(row.new):>8} {ratio:>6} "
            f"{interval:>14} {row.heats:5} {row.verdict or '-'}"
        )
    yield from wrapped("old, new: medians of all rounds; ratio: median of new / old of the heats")
    missing = [row for row in rows if row.verdict is None]
    for side, lacking in (
        ("old", [row for row in missing if row.old is None]),
        ("new", [row for row in missing if row.new is None]),
    ):
        if lacking:
            words = ", ".join(f"{row.benchmark} {row.measure.unit}" for row in lacking)
            yield from wrapped(f"not measured by the benchmarks of the {side} side: {words}")


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1_000 else f"{value:.2f}"


def _differences(old: Document, new: Document) -> Iterator[str]:
    """Libraries that are not the same on both sides: a difference may be theirs."""
    for name in LIBRARIES:
        if old.get(name) != new.get(name):
            yield f"{name} differs: {old.get(name, '-')} on the old side, {new.get(name, '-')} on the new one"


def inputs(plan: Plan) -> dict[str, int | str]:
    """What the figures depend on beside the machine."""
    jobs: dict[str, int | str] = {f"{each.name} jobs": each.jobs for each in plan.benchmarks}
    return jobs | {"nodes": plan.benchmarks[0].nodes, "pairs of a heat": plan.rounds, "minutes": f"{plan.minutes:g}"}


def document(old: Code, new: Code, plan: Plan, found: Found, decision: Decision) -> Mapping[str, object]:
    """The object of `--json`. heats: every round of both sides."""
    sides = {"old": (old, found.old_facts), "new": (new, found.new_facts)}
    return {
        "verdict": decision.verdict,
        "reasons": decision.reasons,
        "rows": [_row(row) for row in found.rows],
        "minutes": round(found.minutes, 2),
        **{
            name: {"label": code.label, "commit": code.commit, "changed": code.changed, "facts": facts}
            for name, (code, facts) in sides.items()
        },
        "inputs": inputs(plan),
        "heats": found.heats,
    }


def _row(row: Row) -> dict[str, object]:
    ratio = None if row.ratio is None else {n: round(v, _DIGITS) for n, v in msgspec.structs.asdict(row.ratio).items()}
    return {
        "benchmark": row.benchmark,
        "measure": row.measure.name,
        "old": row.old,
        "new": row.new,
        "ratio": ratio,
        "heats": row.heats,
        "verdict": row.verdict,
    }
