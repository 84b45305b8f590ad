"""`tools/simulate`: runs seeds on all cores, tells of the first that fails, and finds the shortest schedule of one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click

from tests.simulation.checker import INVARIANTS
from tests.simulation.fleet import quiet
from tests.simulation.plan import SCENARIOS, Plan, Scenario, draw
from tests.simulation.run import Result, run
from tests.simulation.seeds import Seed, read_seeds, show_seed
from tests.simulation.shrink import shrink

_CACHES: Final = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is to be ignored, says its standard
CACHE: Final = (_CACHES if _CACHES.is_absolute() else Path.home() / ".cache") / "stream-scheduler" / "simulate"
KEPT_S: Final = 30 * 86_400  # older results are deleted
NAMED_MAX: Final = 8
SHOWN_MAX: Final = 3
LATER_S: Final = 10.0  # a shorter schedule may fail so much later than the whole one
FAILED: Final = 1
WHY: Final = "What happens, in a sentence."
BY_SIGNAL: Final = 128
TOLD_EVERY: Final = 50


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seed", type=click.IntRange(min=0), help="Run one seed.")
@click.option("--seeds", type=click.IntRange(min=1), help="Run so many, from --from on, on all cores.")
@click.option("--from", "first", type=click.IntRange(min=0), help="The first of --seeds.  [default: 0]")
@click.option(
    "--scenario", type=click.Choice(sorted(SCENARIOS)), metavar="NAME", help="What may happen.  [default: mixed]"
)
@click.option("--jobs", type=click.IntRange(min=1), help="Jobs of a run.  [default: those of the scenario]")
@click.option("--known", is_flag=True, help="Run the seeds of tests/simulation/seeds.txt instead.")
@click.option("--shrink", "shrinks", is_flag=True, help="Print the shortest schedule that still fails.")
@click.option(
    "--invariant",
    type=click.Choice(sorted(INVARIANTS)),
    metavar="WORD",
    help="With --shrink: which.  [default: the first]",
)
@click.option("--keep-going", is_flag=True, help="Do not end at the first violation; tell one seed of each kind.")
@click.option("--fresh", is_flag=True, help="Run again what an earlier call of the same series has run.")
@click.option("--log", "logs", is_flag=True, help="With --seed: print what happens, and what the roles log.")
def simulate(
    seed: int | None,
    seeds: int | None,
    first: int | None,
    scenario: str | None,
    jobs: int | None,
    known: bool,
    shrinks: bool,
    invariant: str | None,
    keep_going: bool,
    fresh: bool,
    logs: bool,
) -> None:
    """Run the whole scheduler in one process, on virtual time, with faults.

    A seed says what is submitted and what goes wrong, and gives the same run
    each time. docs/SIMULATION.md names the scenarios and the words of what is
    checked. Exit codes: 0 no violation, 1 a violation, 2 usage, 130 Ctrl-C.

    \b
    Examples:
      ./tools/simulate --seed 12
      ./tools/simulate --seeds 500
      ./tools/simulate --seed 12 --scenario clock --shrink
      ./tools/simulate --seeds 200 --scenario worst --keep-going
    """
    if sum((seed is not None, seeds is not None, known)) != 1:
        raise click.UsageError("expected one of --seed, --seeds and --known")
    drawn = {"--scenario": scenario is not None, "--jobs": jobs is not None, "--shrink": shrinks}
    _refuse(drawn, known, "--seed or --seeds")
    _refuse({"--from": first is not None, "--keep-going": keep_going, "--fresh": fresh}, seeds is None, "--seeds")
    _refuse({"--log": logs}, seed is None, "--seed")
    _refuse({"--invariant": invariant is not None}, seed is None or not shrinks, "--seed and --shrink")
    quiet()
    _on_signals(_end_at_once)
    if known:
        sys.exit(run_known())
    drawn_as = SCENARIOS[scenario or "mixed"]
    if seed is not None:
        sys.exit(run_one(draw(seed, drawn_as, jobs), shrinks, invariant, logs))
    assert seeds is not None
    start = first or 0
    sys.exit(run_series(drawn_as, range(start, start + seeds), jobs, keep_going, shrinks, fresh))


def _on_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, handler)


def _end_at_once(number: int, frame: object) -> NoReturn:
    """While a run is under way in this process, whose handlers would take an exception for their own."""
    click.echo("interrupted", err=True)
    sys.stdout.flush()
    os._exit(BY_SIGNAL + number)


def _end_in_order(number: int, frame: object) -> NoReturn:
    """Once: a second Ctrl-C would come in the middle of that."""
    _on_signals(lambda *_: None)
    click.echo("interrupted; the same command goes on from here", err=True)
    sys.exit(BY_SIGNAL + number)


def _refuse(given: Mapping[str, bool], is_useless: bool, wanted: str) -> None:
    """Options that would do nothing."""
    for option, is_given in given.items():
        if is_given and is_useless:
            raise click.UsageError(f"{option} goes with {wanted}")


# ---- one seed --------------------------------------------------------------------------------------------------------


def run_one(plan: Plan, shrinks: bool, invariant: str | None, logs: bool) -> int:
    """Run one plan, and print what came of it."""
    result, played = run(plan, logs=logs)
    if logs:
        click.echo("\n".join(played.history.lines))
    click.echo(line_of(result))
    for word, detail in result.violations:
        click.echo(f"  {word}: {detail}")
    chosen = invariant or next(iter(result.invariants), "")
    if shrinks and chosen in result.invariants:
        click.echo(show_seed(shortest(plan, chosen)))
    elif shrinks:
        click.echo(f"nothing to shrink: the seed has no violation{f' of {invariant}' if invariant else ''}")
    return FAILED if result.violations else 0


def shortest(plan: Plan, invariant: str) -> Seed:
    """The shortest schedule that breaks the same invariant."""

    failed_s = run(plan, until=invariant)[0].virtual_s

    def fails(shorter: Plan) -> bool:
        return invariant in run(shorter, until=invariant, until_s=failed_s + LATER_S)[0].invariants

    shortest_plan = shrink(plan, failed_s, fails, lambda line: click.echo(f"  {line} left", err=True))
    return Seed(shortest_plan, "open", invariant, WHY)


def line_of(result: Result) -> str:
    """A run in a line."""
    words = {"none": "without a record"}
    states = " ".join(f"{count} {words.get(name, name)}" for name, count in sorted(result.states.items()))
    exempt = f" ({result.exempt} of them exempt)" if result.exempt else ""
    count = len(result.violations)
    verdict = f"{count} violation{'s' * (count != 1)}" if count else "ok"
    return (
        f"seed {result.seed} {result.scenario}: {verdict}, jobs: {states}{exempt}, {result.faults} faults in "
        f"{result.commands} commands, {result.virtual_s:.0f} virtual s in {result.real_s:.1f} s, digest {result.digest}"
    )


# ---- many ------------------------------------------------------------------------------------------------------------


def _run_seed(seed: int, scenario: str, jobs: int | None) -> Result:
    try:
        return run(draw(seed, SCENARIOS[scenario], jobs))[0]
    except Exception as error:
        raise RuntimeError(f"the simulation itself failed in seed {seed} of {scenario}") from error


def run_series(scenario: Scenario, seeds: range, jobs: int | None, keep_going: bool, shrinks: bool, fresh: bool) -> int:
    """Run seeds on all cores. What is done is remembered, so that the same call goes on where it was ended."""
    done = Done(scenario.name, jobs, fresh)
    left = [seed for seed in seeds if seed not in done]
    if len(left) < len(seeds):
        click.echo(f"{len(seeds) - len(left)} of {len(seeds)} seeds were run before (--fresh runs them again)")
    failed: dict[str, list[Result]] = {}
    began_s = time.monotonic()
    _on_signals(_end_in_order)
    for number, result in enumerate(_results(left, scenario.name, jobs), 1):
        if not result.violations:
            done.add(result.seed)
        elif _is_news(result, failed):
            _tell(result)
            if not keep_going:
                break
        if sys.stderr.isatty():
            click.echo(f"{number} of {len(left)} seeds\r", err=True, nl=False)
        elif number % TOLD_EVERY == 0:
            click.echo(f"{number} of {len(left)} seeds", err=True)
    _on_signals(_end_at_once)
    count = sum(seed in done for seed in seeds)
    found = "; ".join(f"{word} in {_numbers(results)}" for word, results in sorted(failed.items()))
    took_s = time.monotonic() - began_s
    click.echo(f"{count} of {len(seeds)} seeds without a violation in {took_s:.0f} s: {found or '0 violations'}")
    for invariant, results in failed.items() if shrinks else ():
        click.echo("\n" + show_seed(shortest(draw(results[0].seed, scenario, jobs), invariant)))
    return FAILED if failed else 0


def _is_news(result: Result, failed: dict[str, list[Result]]) -> bool:
    """Note a seed that failed under each word. Returns: whether one of them is a new one."""
    words = len(failed)
    for invariant in result.invariants:
        failed.setdefault(invariant, []).append(result)
    return len(failed) > words


def _numbers(results: list[Result]) -> str:
    seeds = sorted(result.seed for result in results)
    shown = ", ".join(map(str, seeds[:NAMED_MAX]))
    return f"seed {shown}" + (f" and {len(seeds) - NAMED_MAX} more" if len(seeds) > NAMED_MAX else "")


def _results(seeds: list[int], scenario: str, jobs: int | None) -> Iterator[Result]:
    """Results as they come. A few seeds are handed out at a time, so that little runs on after the last."""
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=context, initializer=_begin_worker) as pool:
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
            for worker in multiprocessing.active_children():
                worker.terminate()


def _begin_worker() -> None:
    """A worker ends when the command tells it to, or is gone; Ctrl-C in a terminal is the command's business."""
    quiet()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tell(result: Result) -> None:
    click.echo(line_of(result))
    for invariant, detail in result.violations[:SHOWN_MAX]:
        click.echo(f"  {invariant}: {detail}")


class Done:
    """The seeds of a series that have no violation, each written down at once: a file for each series of each version
    of the code. Args: scenario; jobs; fresh, whether to forget them.
    """

    def __init__(self, scenario: str, jobs: int | None, fresh: bool) -> None:
        self._path = CACHE / f"{_version()}-{scenario}-{jobs or 'all'}"
        self._seeds: set[int] = set()
        try:
            CACHE.mkdir(parents=True, exist_ok=True)
            for path in CACHE.iterdir():
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink(missing_ok=True)
            if fresh:
                self._path.unlink(missing_ok=True)
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            self._seeds = {int(line) for line in lines if line.isdigit()}
        except OSError as error:
            click.echo(f"what is done cannot be remembered: {error}", err=True)

    def __contains__(self, seed: int) -> bool:
        return seed in self._seeds

    def add(self, seed: int) -> None:
        """One more."""
        self._seeds.add(seed)
        with contextlib.suppress(OSError), self._path.open("a") as file:
            file.write(f"{seed}\n")


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
    try:
        seeds = read_seeds()
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    for seed in seeds:
        result, _ = run(seed.plan)
        fails = seed.invariant in result.invariants
        is_right = fails if seed.status == "open" else not result.violations
        wrong += not is_right
        word = "fails" if fails else "holds" if not result.violations else "fails otherwise"
        click.echo(f"{'' if is_right else 'WRONG '}{seed.name} ({seed.status}): {word}")
    return FAILED if wrong else 0


if __name__ == "__main__":
    simulate(prog_name="./tools/simulate")
