"""The command `against`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, get_args

import click
import msgspec

from benchmarks.against import report, sides
from benchmarks.against.held import Heat, run_heat
from benchmarks.against.judgement import decide
from benchmarks.against.measures import Benchmark, Name, benchmarks
from benchmarks.against.run import Found, Plan, measure
from benchmarks.options import Real
from scheduler.console.failures import as_failure

PROJECT: Final = Path(__file__).resolve().parents[4]
MINUTES: Final = 30.0
PAIRS: Final = 4
"""Of a heat. Half of them begin with the new side. With more, starting the processes would take less of the time, and
there would be fewer heats, which are the values of the interval."""
QUICK_HEATS: Final = 6
"""The fewest that have an interval."""
SLOWER: Final = 1
UNDECIDED: Final = 4


@click.command()
@click.argument("commit", metavar="COMMIT")
@click.option("--new", metavar="COMMIT", help="Measure this commit.  [default: the files as they are now]")
@click.option(
    "--minutes",
    type=Real(0.1, 600),
    default=MINUTES,
    show_default=True,
    help="The longest time, beside making environments.",
)
@click.option("--only", type=click.Choice(get_args(Name)), multiple=True, help="Some benchmarks.  [default: all]")
@click.option("--quick", is_flag=True, help="A few small rounds: whether it works, not what is slower.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object alone on standard output.")
def against(commit: str, new: str | None, minutes: float, only: tuple[Name, ...], quick: bool, as_json: bool) -> None:
    """Whether the working code is slower than COMMIT.

    Both run `dispatch`, `lifecycle` and `latency` with their own code and environment, in turns, round by round, until
    the intervals are narrow enough. Prints new / old of throughput, CPU time a job, p50 and p99, each with the 95 %
    interval of its median. Changes that are not committed are part of the working code; --new HEAD leaves them out.

    Exit codes: 0 no slower or faster, 1 slower or failure, 2 usage, 4 undecided, 130 Ctrl-C.

    \b
    Examples:
      ./tools/bench against HEAD                what I have changed since then
      ./tools/bench against HEAD~3 --new HEAD   two commits
    """  # fmt: skip
    chosen = tuple(each for each in benchmarks(quick=quick) if not only or each.name in only)
    plan = Plan(
        benchmarks=chosen,
        minutes=minutes,
        rounds=1 if quick else PAIRS,
        heats_max=QUICK_HEATS if quick else None,
    )
    try:
        old_code = sides.commit(PROJECT, commit)
        new_code = sides.working_code(PROJECT) if new is None else sides.commit(PROJECT, new)
        found = _measured(old_code, new_code, plan)
    except OSError as error:
        raise as_failure(error) from error
    _conclude(old_code, new_code, plan, found, as_json=as_json)


def _measured(old: sides.Code, new: sides.Code, plan: Plan) -> Found:
    with sides.cache() as directory:
        sides.remove_others(directory, {old.key, new.key})
        old_side = sides.prepared(directory, PROJECT, "old", old)
        new_side = sides.prepared(directory, PROJECT, "new", new)
        _tell(f"old: {old.label}\nnew: {new.label}\nup to {plan.minutes:g} minutes")
        if old.key == new.key:
            _tell("both sides are the same code: what differs is noise")

        def heat(benchmark: Benchmark, number: int) -> Heat:
            return run_heat(old_side, new_side, benchmark, plan.rounds, number)

        return measure(plan, heat, _tell, time.monotonic)


def _conclude(old: sides.Code, new: sides.Code, plan: Plan, found: Found, *, as_json: bool) -> None:
    """Print it, and end the command with the code of the verdict."""
    decision = decide(found.rows)
    if as_json:
        click.echo(msgspec.json.encode(report.document(old, new, plan, found, decision)))
    else:
        click.echo("\n".join(report.lines(old, new, plan, found, decision)))
    code = {"slower": SLOWER, "undecided": UNDECIDED}.get(decision.verdict, 0)
    if code:
        click.get_current_context().exit(code)


def _tell(line: str) -> None:
    click.echo(line, err=True)
