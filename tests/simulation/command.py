"""`tools/simulate`: runs seeds on all cores, tells of the first that fails, and finds the shortest schedule of one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Final

import click
import msgspec

from tests.simulation.fleet import quiet
from tests.simulation.plan import SCENARIOS, Plan, draw
from tests.simulation.run import Result, run
from tests.simulation.seeds import Seed, read_seeds, show_seed
from tests.simulation.shrink import shrink

STATE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stream-scheduler" / "simulate.json"
SHOWN_MAX: Final = 3
FAILED: Final = 1


class Progress(msgspec.Struct):
    """What a series has done, so that it can go on later. version: of the code; done: seeds without a violation."""

    version: str
    scenario: str
    done: set[int] = set()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=int, help="Run one seed.")
@click.option("--seeds", type=click.IntRange(min=1), help="Run so many, from --from on, on all cores.")
@click.option("--from", "first", type=int, default=0, show_default=True, help="The first of --seeds.")
@click.option(
    "--scenario", type=click.Choice(sorted(SCENARIOS)), default="mixed", show_default=True, help="What may happen."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Jobs of a run.  [default: those of the scenario]")
@click.option("--known", is_flag=True, help="Run the seeds of tests/simulation/seeds.txt instead.")
@click.option("--shrink", "shrinks", is_flag=True, help="Print the shortest schedule that still fails.")
@click.option("--keep-going", is_flag=True, help="Do not end at the first violation; tell one seed of each kind.")
@click.option("--fresh", is_flag=True, help="Run again what an earlier call of the same series has run.")
@click.option("--log", "logs", is_flag=True, help="With --seed: print what happens, and what the roles log.")
def simulate(
    seed: int | None,
    seeds: int | None,
    first: int,
    scenario: str,
    jobs: int | None,
    known: bool,
    shrinks: bool,
    keep_going: bool,
    fresh: bool,
    logs: bool,
) -> None:
    """Run the whole scheduler in one process, on virtual time, with faults.

    A seed says what is submitted and what goes wrong, and gives the same run
    each time. Exit codes: 0 no violation, 1 a violation, 2 usage.

    \b
    Examples:
      ./tools/simulate --seed 12
      ./tools/simulate --seeds 500
      ./tools/simulate --seed 12 --scenario clock --shrink
      ./tools/simulate --seeds 200 --scenario worst --keep-going
    """
    if sum((seed is not None, seeds is not None, known)) != 1:
        raise click.UsageError("expected one of --seed, --seeds and --known")
    quiet()
    if known:
        sys.exit(run_known())
    if seed is not None:
        sys.exit(run_one(draw(seed, SCENARIOS[scenario], jobs), shrinks, logs))
    assert seeds is not None
    sys.exit(run_series(scenario, range(first, first + seeds), jobs, keep_going, shrinks, fresh))


# ---- one seed --------------------------------------------------------------------------------------------------------


def run_one(plan: Plan, shrinks: bool, logs: bool) -> int:
    """Run one plan, and print what came of it."""
    result, played = run(plan, keeps_lines=logs)
    if logs:
        click.echo("\n".join(played.history.lines))
    click.echo(line_of(result))
    for invariant, detail in result.violations:
        click.echo(f"  {invariant}: {detail}")
    if result.violations and shrinks:
        click.echo(show_seed(shortest(plan, result.invariants[0])))
    return FAILED if result.violations else 0


def shortest(plan: Plan, invariant: str) -> Seed:
    """The shortest schedule that breaks the same invariant."""

    def fails(shorter: Plan) -> bool:
        return invariant in run(shorter, until=invariant)[0].invariants

    failed_s = run(plan, until=invariant)[0].virtual_s
    return Seed(shrink(plan, failed_s, fails, lambda line: click.echo(f"  {line} left", err=True)), "open", invariant)


def line_of(result: Result) -> str:
    """A run in a line."""
    states = " ".join(f"{count} {name}" for name, count in sorted(result.counts.items()) if name in _STATES)
    faults = sum(count for name, count in result.counts.items() if name not in _STATES and name not in _COUNTS)
    verdict = f"{len(result.violations)} violations" if result.violations else "ok"
    return (
        f"seed {result.seed} {result.scenario}: {verdict}, {states}, {faults} faults in {result.counts['commands']} "
        f"commands, {result.virtual_s:.0f} virtual s in {result.real_s:.1f} s, digest {result.digest}"
    )


_STATES: Final = ("completed", "failed", "dead", "cancelled", "queued", "reserved", "delayed", "none")
_COUNTS: Final = ("commands", "exempt")


# ---- many ------------------------------------------------------------------------------------------------------------


def _run_seed(seed: int, scenario: str, jobs: int | None) -> Result:
    quiet()
    try:
        return run(draw(seed, SCENARIOS[scenario], jobs))[0]
    except Exception as error:
        raise RuntimeError(f"the simulation itself failed in seed {seed} of {scenario}") from error


def run_series(scenario: str, seeds: range, jobs: int | None, keep_going: bool, shrinks: bool, fresh: bool) -> int:
    """Run seeds on all cores. What is done is remembered, so that the same call goes on where it was ended."""
    with _progress(scenario, jobs, fresh) as progress:
        left = [seed for seed in seeds if seed not in progress.done]
        if len(left) < len(seeds):
            click.echo(f"{len(seeds) - len(left)} of {len(seeds)} seeds were run before (--fresh runs them again)")
        failed: dict[str, Result] = {}
        began_s = time.monotonic()
        for number, result in enumerate(_results(left, scenario, jobs), 1):
            if not result.violations:
                progress.done.add(result.seed)
            elif result.invariants[0] not in failed:
                failed[result.invariants[0]] = result
                _tell(result)
                if not keep_going:
                    break
            if sys.stderr.isatty():
                click.echo(f"\r{number} of {len(left)} seeds", err=True, nl=False)
    count = len(progress.done & set(seeds))
    verdict = f"violations of {', '.join(failed)}" if failed else "0 violations"
    click.echo(f"{count} of {len(seeds)} seeds without a violation in {time.monotonic() - began_s:.0f} s: {verdict}")
    for invariant, result in failed.items() if shrinks else ():
        click.echo("\n" + show_seed(shortest(draw(result.seed, SCENARIOS[scenario], jobs), invariant)))
    return FAILED if failed else 0


def _results(seeds: list[int], scenario: str, jobs: int | None) -> Iterator[Result]:
    """Results as they come. A few seeds are handed out at a time, so that little runs on after the last."""
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=context) as pool:
        rest = iter(seeds)
        running: set[Future[Result]] = set()
        try:
            while True:
                while len(running) < 2 * cores and (seed := next(rest, None)) is not None:
                    running.add(pool.submit(_run_seed, seed, scenario, jobs))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _tell(result: Result) -> None:
    click.echo(line_of(result))
    for invariant, detail in result.violations[:SHOWN_MAX]:
        click.echo(f"  {invariant}: {detail}")


@contextlib.contextmanager
def _progress(scenario: str, jobs: int | None, fresh: bool) -> Iterator[Progress]:
    """What was done before with the same code, written down again at the end, however that comes."""
    version = f"{_version()} {jobs}"
    progress = Progress(version, scenario)
    with contextlib.suppress(OSError, msgspec.DecodeError):
        stored = msgspec.json.decode(STATE.read_bytes(), type=Progress)
        if (stored.version, stored.scenario) == (version, scenario) and not fresh:
            progress = stored
    try:
        yield progress
    finally:
        STATE.parent.mkdir(parents=True, exist_ok=True)
        STATE.write_bytes(msgspec.json.encode(progress))


def _version() -> str:
    """Of everything that a run depends on: another one makes another run of the same seed."""
    import hashlib

    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for folder, pattern in (("scheduler", "*.py"), ("lua", "*.lua"), ("tests/simulation", "*.py")):
        for path in sorted((root / folder).rglob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# ---- the list --------------------------------------------------------------------------------------------------------


def run_known() -> int:
    """Run the list: what was mended must hold, what is open must still fail."""
    wrong = 0
    for seed in read_seeds():
        result, _ = run(seed.plan)
        fails = seed.invariant in result.invariants
        is_right = fails if seed.status == "open" else not result.violations
        wrong += not is_right
        word = "fails" if fails else "holds" if not result.violations else "fails otherwise"
        click.echo(f"{'' if is_right else 'WRONG '}{seed.name} ({seed.status}): {word}")
    return FAILED if wrong else 0


if __name__ == "__main__":
    simulate(prog_name="./tools/simulate")
