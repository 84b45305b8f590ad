"""The command."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from mutants.listed import InvalidList, Mutant, chosen, read_list
from mutants.run import Memory, NoCheckout, Outcome, Runner, copy_project, key_of

LIMIT_S: Final = 60
_BY_SIGNAL: Final = 128

Found = list[tuple[Mutant, Outcome]]


def _part(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, int]:
    """`2/4`: the second of four parts."""
    found = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", value)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{value!r}: expected a part such as 1/4")
    return int(found[1]), int(found[2])


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: ./tools/mutants lua/reserve 'a slot'",
)
@click.argument("patterns", metavar="[PATTERN]...", nargs=-1)
@click.option("--part", callback=_part, default="1/1", metavar="I/N", help="The I-th of N parts, for several machines.")
@click.option("--list", "only_list", is_flag=True, help="Print what would be changed, and run nothing.")
@click.option("--fresh", is_flag=True, help="Forget all results of earlier runs.")
@click.option("--workers", type=click.IntRange(min=1), help="Changes tried at a time.  [default: one per core]")
@click.option(
    "--limit-s",
    type=click.IntRange(min=1),
    default=LIMIT_S,
    show_default=True,
    help="How long the tests of one change may take.",
)
def mutants(
    patterns: tuple[str, ...], part: tuple[int, int], only_list: bool, fresh: bool, workers: int | None, limit_s: int
) -> None:
    """Change one line of the scheduler at a time, in a copy, and see whether the tests that are named for it fail.

    The changes, and what notices each (tests, or seeds of the simulation), are in tests/mutants.toml, which says how to
    add one. A PATTERN is a piece of a file and line, of the changed text, of the reason, or of a test's name; without
    one, all changes are tried. What was tried before is not tried again until the changed file or the test is another
    one; it is kept in .mutants_cache.

    Ends with 0 if every change was noticed, with 1 if one survived or its tests do not pass without it.
    """
    try:
        listed = chosen(read_list(), patterns, part)
    except InvalidList as error:
        raise click.UsageError(str(error)) from error
    if not listed:
        raise click.UsageError(f"no change matches {' '.join(patterns) or 'this part'}; ./tools/mutants --list")
    if only_list:
        for mutant in listed:
            click.echo("\n".join((mutant.place(), *_shown(mutant))))
        return
    memory = Memory(fresh=fresh)
    known = [(mutant, Outcome(word)) for mutant in listed if (word := memory.find(key_of(mutant))) is not None]
    before = {mutant for mutant, _ in known}
    ahead = [mutant for mutant in listed if mutant not in before]
    if known:
        click.echo(f"{len(known)} of {len(listed)} were tried before; --fresh tries them again")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        found = asyncio.run(_try_all(ahead, memory, min(workers or os.cpu_count() or 1, len(ahead)), limit_s))
    except NoCheckout as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from here", err=True)
        raise click.exceptions.Exit(_BY_SIGNAL + signal.SIGINT) from None
    if not _conclude(known + found):
        raise click.exceptions.Exit(1)


async def _try_all(ahead: Sequence[Mutant], memory: Memory, workers: int, limit_s: float) -> Found:
    """A line each, as soon as it is known."""
    found: Found = []

    def tell(mutant: Mutant, outcome: Outcome) -> None:
        found.append((mutant, outcome))
        word = outcome.word if outcome.is_noticed else outcome.word.upper()
        line = f"{word:9} {outcome.seconds:4.1f} s  {mutant.place()}  {mutant.why}"
        width = shutil.get_terminal_size().columns
        if not sys.stdout.isatty():
            click.echo(f"{line}  ({', '.join(mutant.noticed_by)})")
        else:
            click.echo(line if len(line) <= width else line[: width - 3] + "...")

    with tempfile.TemporaryDirectory(prefix="scheduler-mutants-") as folder:
        copies = [Path(folder) / str(number) for number in range(workers)]
        for copy in copies:
            copy_project(copy)
        await Runner(copies, memory, limit_s).run(ahead, tell)
    return found


def _conclude(found: Found) -> bool:
    """What was not noticed, and how many were. Returns: whether all were."""
    for mutant, outcome in found:
        if not outcome.is_noticed:
            click.echo("\n".join(("", f"{outcome.word.upper()} {mutant.place()}", *_shown(mutant), outcome.detail)))
    counts = Counter("noticed" if outcome.is_noticed else outcome.word for _, outcome in found)
    broken = f", {counts['broken']} broken" if counts["broken"] else ""
    click.echo(f"mutants: {counts['noticed']} noticed, {counts['survived']} survived{broken}")
    return counts["noticed"] == len(found)


def _shown(mutant: Mutant) -> list[str]:
    """A change, its reason, and what notices it."""
    removed = [f"  - {line.strip()}" for line in mutant.text.splitlines()]
    added = [f"  + {line.strip()}" for line in mutant.replacement.splitlines()]
    return [*removed, *added, f"  {mutant.why}", *(f"  noticed by {each}" for each in mutant.noticed_by)]


def main() -> None:
    """What was typed."""
    mutants(prog_name="./tools/mutants")
