"""How a chaos run ends on the screen: the figures, what each of them means, and the verdict."""

from __future__ import annotations

import click
import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from chaos.acts import KINDS
from chaos.run import Result
from scheduler.session.decisions import WORDS


def conclude(result: Result, headline: str, inputs: dict[str, object], *, as_json: bool) -> None:
    """Print what came of it, and end the command with 1 if a guarantee was broken.

    Args: headline, what was run, for people; inputs, the same for `--json`, after the figures.
    """
    for line in (*result.report.examples(), *result.unexpected):
        click.echo(line, err=True)
    if as_json:
        click.echo(msgspec.json.encode(result.document() | inputs))
    else:
        Console().print(Text(headline), summary(result), sep="\n")
    if not result.ok:
        click.get_current_context().exit(1)


def summary(result: Result) -> RenderableType:
    """All figures and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it says")
    for name, value, meaning, broken in _rows(result):
        table.add_row(name, Text(f"{value:,}", style="bold red" if broken else "bold"), meaning)
    return Group(_acts(result), table, _verdict(result))


def _acts(result: Result) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", padding=(0, 1))
    table.add_column("hit")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    for role, counts in result.acts.items():
        table.add_row(role, *(str(counts.get(kind, 0)) for kind in KINDS))
    return table


def _rows(result: Result) -> list[tuple[str, float, str, float]]:
    """(figure, value, meaning, what is more than 0 when it breaks a guarantee)."""
    report, left, sessions = result.report, result.left, result.report.sessions
    silent = 0 if sessions.judged else sessions.unjudged
    unfinished = report.failed + report.dead + report.cancelled
    return [
        ("submitted", report.submitted, "jobs that the server acknowledged", 0),
        ("completed", report.completed, "ended by their handler", 0),
        ("not completed", unfinished, "given up, which these settings leave no reason for", unfinished),
        ("lost", report.lost, "acknowledged, but without any outcome", report.lost),
        ("completed twice", report.duplicates, "completed more than once in a life", report.duplicates),
        ("over capacity", report.over_capacity, "starts on a node that had no slot left", report.over_capacity),
        ("out of order", report.order_violations, "passed an earlier job of their session", report.order_violations),
        ("stayed", sessions.stayed, "ran on the node of their session's job before", 0),
        *(
            (f"spilled: {cause}", count, WORDS[cause].format(node="the node"), 0)
            for cause, count in sessions.spilled.items()
        ),
        ("not judged", sessions.unjudged, "nobody knows where the session was bound", 0),
        ("moved", sessions.violations, "left their session's node for no true reason", sessions.violations),
        ("moved by policy", result.unmeant, "left it for a reason that this run has not", result.unmeant),
        ("without a reason", silent, "no node recorded why a job is where it is", silent),
        ("contradictions", report.contradictions, "records that cannot all be true", report.contradictions),
        ("slots left", left.slots, "reservations at the end", left.slots),
        (
            "entries left",
            left.intake + left.delayed,
            "jobs in intake and delayed at the end",
            left.intake + left.delayed,
        ),
        ("wrong exits", len(result.unexpected), "processes that ended as they should not", len(result.unexpected)),
        ("runs", result.runs, "handlers started; more than jobs where attempts were lost", 0),
        ("longest gap", result.gap_ms, "ms in which no job was dispatched although one was there", 0),
        ("in a partition", result.partition_gap_ms, "the same in the partition that was hit hardest", 0),
        ("ran on", result.ran_on_ms, "ms, the longest that a handler went on after its process woke", 0),
        ("took", result.seconds, "s from the first submission to the last outcome", 0),
    ]


def _verdict(result: Result) -> Text:
    if result.ok:
        return Text(
            f"PASS: each of {result.report.submitted:,} jobs completed once, no node was over its capacity, every "
            "session kept its order, and its node while that was healthy and had room, nothing is left.",
            style="bold green",
        )
    found = ", ".join(f"{broken:,} {name}" for name, _, _, broken in _rows(result) if broken)
    return Text(f"FAIL: {found}.", style="bold red")
