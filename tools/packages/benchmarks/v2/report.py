"""What was measured becomes what is shown: a table for each number of jobs in flight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from benchmarks.v2.figures import RowFigures, claims, figures
from benchmarks.v2.rows import ROWS_BY_NAME, V2
from benchmarks.v2.run import Outcome, Plan
from benchmarks.verdict import Shown

_NOTE: Final = (
    "A closed loop: who waits longer sends less. Times are from the XADD into the intake to the entry in the inbox, in "
    "ms; server, sched.: CPU time of the server and of the scheduler, us a job. Percentiles are of all rounds' jobs "
    "together, all else are medians of the rounds. no lock, cached, both: v2 without its locks, with remembered "
    "members of pools, and both."
)


def show(plan: Plan, outcome: Outcome) -> Shown:
    """What was measured, and what is claimed of it."""
    found = figures(outcome.rounds)
    by_load: dict[str, dict[str, RowFigures]] = {}
    for (in_flight, name), each in found.items():
        by_load.setdefault(str(in_flight), {})[name] = each
    return Shown(
        facts=outcome.facts,
        inputs=plan.inputs(),
        figures={"in_flight": by_load},
        lines=list(_lines(by_load)),
        claims=claims(outcome.rounds, found),
    )


def _lines(by_load: Mapping[str, Mapping[str, RowFigures]]) -> Iterator[str]:
    for in_flight, rows in by_load.items():
        yield from _table(in_flight, rows)
        yield ""
    yield _NOTE
    others = [each.others_cores for rows in by_load.values() for each in rows.values() if each.others_cores is not None]
    if others:
        busy = sorted(each.median for each in others)
        yield f"cores that other processes kept busy: {busy[0]:.2f} to {busy[-1]:.2f}"


def _table(in_flight: str, rows: Mapping[str, RowFigures]) -> Iterator[str]:
    yield (
        f"{f'{in_flight} in flight':13}{'jobs/s':>8}{'min':>8}{'max':>8}{'mean':>7}{'p50':>7}{'p99':>7}{'p99.9':>7}"
        f"{'server':>7}{'sched.':>7}"
    )
    for name, each in rows.items():
        latency = each.latency
        times = "".join(
            _short(value) for value in (each.mean_ms.median, latency.p50_ms, latency.p99_ms, latency.p999_ms)
        )
        yield (
            f"{ROWS_BY_NAME[name].label:13}{each.jobs_per_s.median:8,.0f}{each.jobs_per_s.min:8,.0f}"
            f"{each.jobs_per_s.max:8,.0f}{times}{each.server_us.median:7.0f}{each.scheduler_us.median:7.0f}"
        )
    yield from _gains(rows)
    yield from _errors(rows)


def _gains(rows: Mapping[str, RowFigures]) -> Iterator[str]:
    if V2.name not in rows or not rows[V2.name].jobs_per_s.median:
        return
    base = rows[V2.name].jobs_per_s.median
    gains = [
        f"{ROWS_BY_NAME[name].label} {each.jobs_per_s.median / base:.2f}"
        for name, each in rows.items()
        if name != V2.name
    ]
    yield f"jobs/s by those of v2: {'; '.join(gains)}"


def _errors(rows: Mapping[str, RowFigures]) -> Iterator[str]:
    wrong = {ROWS_BY_NAME[name].label: each.errors for name, each in rows.items() if each.errors.total}
    for label, errors in wrong.items():
        counts = ", ".join(f"{name} {count:,}" for name, count in msgspec.structs.asdict(errors).items() if count)
        yield f"errors of {label}: {counts}"
    if not wrong:
        yield "errors: none (lost, in two inboxes, in two slots, without a slot, over capacity)"


def _short(value_ms: float) -> str:
    digits = 2 if value_ms < 100 else 1 if value_ms < 1_000 else 0
    return f"{value_ms:7.{digits}f}"
