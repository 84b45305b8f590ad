"""How figures are printed: plain text, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Final

import click
import msgspec

from benchmarks.run import Outcome, Plan
from benchmarks.summary import Figures, Profile, Ratio, figures, ratio

WIDTH: Final = 80
PACKAGE_US_MIN: Final = 0.1
_NAME_WIDTH: Final = 52


def conclude(plan: Plan, outcome: Outcome, *, as_json: bool) -> None:
    """Print what was measured."""
    found: dict[str, Figures] = {name: figures(rounds) for name, rounds in outcome.rounds.items()}
    share = ratio(outcome.rounds["dispatch"], outcome.rounds["relay"]) if "dispatch" in outcome.rounds else None
    if as_json:
        click.echo(msgspec.json.encode(_document(plan, outcome, found, share)))
        return
    lines = [*facts_lines(outcome.facts, plan.inputs()), "", *_table(found, share)]
    if outcome.profile is not None:
        lines += ["", *_profile_lines(outcome.profile)]
    click.echo("\n".join(lines))


def _document(plan: Plan, outcome: Outcome, found: Mapping[str, Figures], share: Ratio | None) -> dict[str, object]:
    """The object of `--json`."""
    document: dict[str, object] = {"facts": outcome.facts, "inputs": plan.inputs(), **found}
    if share is not None:
        document["ratio"] = share
        document["placed"] = sum(each.jobs for each in outcome.rounds["dispatch"])
    if outcome.profile is not None:
        document["profile"] = outcome.profile
    return document


def facts_lines(facts: Mapping[str, object], inputs: Mapping[str, object]) -> Iterator[str]:
    """Machine, versions and what was measured with."""
    yield from wrapped(f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}")
    libraries = [f"{name} {facts[name]}" for name in ("python", "redis-py", "hiredis", "uvloop")]
    yield from wrapped(", ".join([str(facts["server"]), *libraries]))
    settings = [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in inputs.items()]
    yield from wrapped(", ".join(settings))


def wrapped(text: str) -> list[str]:
    """The lines of a text."""
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _table(rows: Mapping[str, Figures], share: Ratio | None) -> Iterator[str]:
    """Figures side by side."""
    yield f"{'':10}{'jobs/s':>12}{'min':>10}{'max':>10}{'server us/job':>17}{'client us/job':>17}"
    for name, found in rows.items():
        speed = found.jobs_per_s
        yield (
            f"{name:10}{speed.median:12,.0f}{speed.min:10,.0f}{speed.max:10,.0f}"
            f"{found.server_us.median:17.1f}{found.client_us.median:17.1f}"
        )
    if share is not None:
        yield f"{'ratio':10}{share.of_medians:12.3f}{min(share.rounds):10.3f}{max(share.rounds):10.3f}"
        yield from wrapped(f"ratio of each round: {', '.join(f'{value:.3f}' for value in share.rounds)}")
    yield "jobs/s and us/job (CPU time) are medians of the rounds; ratio: of jobs/s"
    others = [found.others_cores for found in rows.values() if found.others_cores is not None]
    if others:
        shares = ", ".join(f"{each.median:.2f}" for each in others)
        yield f"cores that other processes kept busy: {shares}, at most {max(each.max for each in others):.2f}"


def _profile_lines(profile: Profile) -> Iterator[str]:
    """Where the time went."""
    yield f"profile of as many rounds more ({profile.jobs_per_s:,.0f} jobs/s), in microseconds a job"
    yield ""
    yield f"client: {profile.client_us:.1f} of CPU time, {profile.samples:,} samples"
    packages = [f"{name} {us:.1f}" for name, us in profile.packages.items() if us >= PACKAGE_US_MIN]
    yield from wrapped(f"by library: {', '.join(packages)}")
    yield f"{'function':53}{'charged':>9}{'alone':>9}{'in all':>9}"
    for cost in profile.functions:
        yield f"{_fitting(cost.function):53}{cost.charged_us:9.2f}{cost.own_us:9.2f}{cost.within_us:9.2f}"
    yield "charged: with the libraries that it calls; in all: with whatever it calls"
    yield ""
    yield f"server: {profile.server_us:.1f} of CPU time"
    yield f"{'command':20}{'calls/job':>12}{'us/job':>9}"
    for command in profile.commands:
        name = f"  {command.command}" if command.in_script else command.command
        yield f"{name:20}{command.calls:12.3f}{command.us:9.2f}"
    yield "indented: inside scripts, part of evalsha; network: what is no command."
    yield "Commands are timed by the clock: a busy machine makes them seem longer."


def _fitting(name: str) -> str:
    """The end of a name, which tells more than its beginning."""
    name = name.removeprefix("scheduler.")
    return name if len(name) <= _NAME_WIDTH else f"..{name[2 - _NAME_WIDTH :]}"
