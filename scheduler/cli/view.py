"""How `demo` and `replay` look: a live picture, a progress bar, and the summary in plain words.

Shows only what was read from the store, the roles or the nodes' own records. A refresh costs the same however many jobs
there are.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

import click
import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from scheduler.audit.audit import Report
from scheduler.cli.rehearsal import Result, SimulatedNode, Stage
from scheduler.console import terminal
from scheduler.console.common import print_json_line
from scheduler.errors import SchedulerError

REFRESH_MS: Final = 250
ROWS_BESIDE: Final = 11
"""Rows of the live picture without those of nodes and decisions, and one that stays free."""
DECISIONS_SHOWN_MAX: Final = 15
BAR_WIDTH_MAX: Final = 40
PROGRESS_WIDTH: Final = 30  # leaves room on the line, where a terminal prints ^C
FIGURES_A_ROW: Final = 4
FIGURE_WIDTH: Final = 17

WHY_STYLES: Final = {"new": "cyan", "bound": "green", "spilled": "yellow"}
WHY_WORDS: Final = {
    "new": "new session: the least loaded node",
    "bound": "bound: the node of its last job",
    "spilled": "spilled: its node was full",
}


class Reading(msgspec.Struct, frozen=True):
    """What the server says: slots used of each node, in the order of the fleet, and entries in the intake."""

    used: tuple[int, ...] = ()
    intake: int = 0


async def read(stage: Stage) -> Reading:
    """Ask the server; one round trip for the nodes and one for each partition."""
    reads = stage.store.reads
    used = await reads.used([node.node_id for node in stage.plan.fleet])
    partitions = range(stage.plan.settings.partitions)
    return Reading(tuple(used), sum([await reads.length(reads.keys.jobs(partition)) for partition in partitions]))


# ---- live ----


class LivePicture:
    """Watches a rehearsal on a terminal. headline: what is rehearsed, in a few words."""

    def __init__(self, console: Console, headline: str) -> None:
        self._console = console
        self._headline = headline

    async def __call__(self, stage: Stage) -> None:
        """Draw until cancelled."""
        reading = Reading()
        redirect = sys.stderr.isatty()  # log lines go above the picture then
        with Live(console=self._console, auto_refresh=False, transient=True, redirect_stderr=redirect) as live:
            while True:
                try:
                    reading = await read(stage)
                except SchedulerError as error:
                    logging.getLogger("scheduler.view").warning("the picture is old: %s", error)
                live.update(self.draw(stage, reading), refresh=True)
                await asyncio.sleep(REFRESH_MS / 1000)

    def draw(self, stage: Stage, reading: Reading) -> RenderableType:
        """One picture."""
        width, height = self._console.size
        ascii_only = self._console.options.ascii_only
        decisions = max(1, min(DECISIONS_SHOWN_MAX, height - ROWS_BESIDE - len(stage.plan.fleet)))
        seconds = time.monotonic() - stage.started_s
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(Text(self._headline, style="bold"), f"{seconds:.1f} s")
        return Group(
            head,
            Text(stage.server, style="dim"),
            Text(),
            _nodes(stage.plan.fleet, reading, min(BAR_WIDTH_MAX, width // 3), ascii_only=ascii_only),
            Text(),
            _figures(stage, reading),
            Text(),
            _decisions(stage, decisions),
        )


def _cells(slots: int, capacity: int, width: int) -> int:
    """Length of a bar: as many whole characters for each slot as fit, or a share of the width."""
    return slots * (width // capacity) if capacity <= width else round(width * slots / capacity)


def _nodes(fleet: Sequence[SimulatedNode], reading: Reading, bar_width: int, *, ascii_only: bool) -> Table:
    full, free = "#." if ascii_only else "█░"
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("node", "pool", "slots in use", "", "languages"):
        table.add_column(title, no_wrap=True)
    for node, used in zip(fleet, reading.used, strict=False):
        style = "green" if used < node.capacity else "yellow"
        bar = Text.assemble((full * _cells(used, node.capacity, bar_width), style))
        bar.append(free * (_cells(node.capacity, node.capacity, bar_width) - len(bar)), style="dim")
        pairs = ", ".join(f"{source}-{target}" for source, target in node.pairs)
        table.add_row(node.node_id, node.pool, bar, f"{used}/{node.capacity}", pairs)
    return table


def _figures(stage: Stage, reading: Reading) -> Table:
    records, states = stage.records, stage.records.states
    p50, p99 = (_milliseconds(records.dispatch_percentile(percent)) for percent in (50, 99))
    table = Table.grid(padding=(0, 2))
    for _ in range(FIGURES_A_ROW):
        table.add_column(min_width=FIGURE_WIDTH)
    table.add_row(
        _figure("submitted", f"{len(records.submissions):,}/{len(stage.plan.arrivals):,}"),
        _figure("in intake", f"{reading.intake:,}"),
        _figure("waiting now", f"{len(stage.dispatcher.state.waiting):,}"),
        _figure("waited", f"{stage.dispatcher.state.waiting.arrivals:,}"),
    )
    table.add_row(
        _figure("placed", f"{stage.dispatcher.report.placed:,}"),
        _figure("completed", f"{states['completed']:,}"),
        _figure("failed", f"{states['failed']:,}"),
        _figure("dead", f"{states['dead']:,}"),
    )
    table.add_row(
        _figure("dispatch p50", p50),
        _figure("p99", p99),
        _figure("affinity", _percent(records.affinity_rate)),
        _figure("spilled", f"{records.whys['spilled']:,}"),
    )
    return table


def _figure(name: str, value: str) -> Text:
    return Text.assemble((name, "dim"), " ", (value, "bold"))


def _decisions(stage: Stage, rows: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("last decisions", "", "why", "after"):
        table.add_column(title, no_wrap=True, justify="right" if title == "after" else "left")
    for decision in list(stage.records.decisions)[: -rows - 1 : -1]:
        why = Text(WHY_WORDS[decision.why], style=WHY_STYLES[decision.why])
        table.add_row(decision.session_id, f"-> {decision.node}", why, f"{decision.dispatch_ms} ms")
    return table


# ---- progress ----


class ProgressBars:
    """Watches a rehearsal by two bars: what was submitted and what has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console

    async def __call__(self, stage: Stage) -> None:
        """Draw until cancelled."""
        columns = (
            TextColumn("{task.description:9}"),
            BarColumn(PROGRESS_WIDTH),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        progress = Progress(
            *columns,
            TextColumn("{task.fields[note]}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
        )
        jobs = len(stage.plan.arrivals)
        submitted = progress.add_task("submitted", total=jobs, note="")
        ended = progress.add_task("ended", total=jobs, note="")
        with progress:
            while True:
                records = stage.records
                running = sum((await read(stage)).used)
                progress.update(
                    submitted, completed=len(records.submissions), note=f"{len(stage.dispatcher.state.waiting)} waiting"
                )
                progress.update(ended, completed=len(records.ended), note=f"{running} running")
                progress.refresh()
                await asyncio.sleep(REFRESH_MS / 1000)


# ---- the end ----


def conclude(console: Console, result: Result, headline: str, inputs: Mapping[str, object], *, as_json: bool) -> None:
    """Print what came of it, and end the command with 1 if a guarantee was broken.

    Args: headline, what was rehearsed, for people; inputs, the same for `--json`, after the figures.
    """
    for line in result.report.examples():
        terminal.write_line(line, err=True)
    if as_json:
        print_json_line(result.document() | dict(inputs))
    else:
        console.print(Text(terminal.fit(headline)), summary(result), sep="\n")
    if not result.report.ok:
        click.get_current_context().exit(1)


def summary(result: Result) -> RenderableType:
    """The checker's figures, what each of them means, and the verdict."""
    report = result.report
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it says")
    for name, value, meaning, broken in _rows(result):
        table.add_row(name, Text(value, style="bold red" if broken else "bold"), meaning)
    return Group(table, _verdict(report))


def _rows(result: Result) -> list[tuple[str, str, str, bool]]:
    """(figure, value, meaning, whether it breaks a guarantee)."""
    report = result.report
    dispatch = report.dispatch_ms
    rows: list[tuple[str, int | str, str, int]] = [
        ("submitted", report.submitted, "jobs that the server acknowledged", 0),
        ("completed", report.completed, "ended by their handler", 0),
        ("failed, dead", f"{report.failed}, {report.dead}", "ended without completing, with a reason", 0),
        ("cancelled", report.cancelled, "ended on request", 0),
        ("lost", report.lost, "acknowledged, but without any outcome", report.lost),
        ("duplicates", report.duplicates, "completed more than once", report.duplicates),
        ("over capacity", report.over_capacity, "starts on a node that had no slot left", report.over_capacity),
        ("out of order", report.order_violations, "passed an earlier job of their session", report.order_violations),
        (
            "moved",
            report.sessions.violations,
            "left their session's node for no true reason",
            report.sessions.violations,
        ),
        ("contradictions", report.contradictions, "records that cannot all be true", report.contradictions),
        ("affinity", _percent(report.affinity_rate), "stayed on the node of their session's last job", 0),
        ("dispatch p50", _milliseconds(dispatch.p50), "from the intake to the node's inbox, half of the jobs", 0),
        ("dispatch p99", _milliseconds(dispatch.p99), "the same, all but 1 % of the jobs", 0),
        ("waited", result.waited, "had to wait for room or behind an earlier job", 0),
        ("sweep hits", result.sweep_hits, "placed by the safety net, not by an event", 0),
        ("throughput", f"{report.jobs_per_s:,.0f}/s", f"over {result.seconds:.1f} s, as the load came", 0),
        ("late by", f"{result.lag_ms:,.0f} ms", "the latest submission after its time", 0),
    ]
    return [
        (name, f"{value:,}" if isinstance(value, int) else value, meaning, bool(broken))
        for name, value, meaning, broken in rows
        if name != "contradictions" or broken
    ]


def _verdict(report: Report) -> Text:
    if report.ok:
        return Text(
            f"PASS: each of {report.submitted:,} jobs has one outcome, no node was over its capacity, every session "
            "kept its order.",
            style="bold green",
        )
    broken = {
        "lost": report.lost,
        "run twice": report.duplicates,
        "over capacity": report.over_capacity,
        "out of order": report.order_violations,
        "moved for no reason": report.sessions.violations,
        "contradicting records": report.contradictions,
    }
    found = ", ".join(f"{count:,} {name}" for name, count in broken.items() if count)
    return Text(f"FAIL: {found}.", style="bold red")


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


def _milliseconds(value: int | None) -> str:
    return "-" if value is None else f"{value:,} ms"
