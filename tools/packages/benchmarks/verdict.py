"""How a command ends that shows a claim: the machine, the inputs, the figures, and whether each limit was kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import click
import msgspec

from benchmarks.report import facts_lines, wrapped


class Claim(msgspec.Struct, frozen=True):
    """What was measured, and what it may be at most, or must be at least; measured: None when nobody told it, which
    keeps no limit. rounds: the same of each round, where there are rounds to compare.
    """

    what: str
    measured: float | None
    limit: float
    unit: str = ""
    is_least: bool = False
    rounds: tuple[float, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the limit was kept."""
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.is_least else self.measured <= self.limit

    def line(self) -> str:
        """In a few words."""
        measured = "missing" if self.measured is None else f"{self.measured:,g}"
        unit = f" {self.unit}" if self.unit else ""
        spread = f" (rounds {min(self.rounds):,g} to {max(self.rounds):,g})" if self.rounds else ""
        bound = "at least" if self.is_least else "at most"
        return f"{'PASS' if self.ok else 'FAIL'}: {self.what}: {measured}{unit}{spread}, {bound} {self.limit:,g}{unit}"


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What a command has to show. figures: for `--json`; lines: the same for people; claims, one or more."""

    facts: Mapping[str, str | int]
    inputs: Mapping[str, object]
    figures: Mapping[str, object]
    lines: Sequence[str]
    claims: Sequence[Claim]

    @property
    def ok(self) -> bool:
        """Whether every limit was kept."""
        return all(claim.ok for claim in self.claims)

    def document(self) -> dict[str, object]:
        """The object of `--json`."""
        claims = [msgspec.structs.asdict(claim) | {"ok": claim.ok} for claim in self.claims]
        return {"ok": self.ok, "claims": claims, **self.figures, "facts": self.facts, "inputs": self.inputs}


def conclude(shown: Shown, *, as_json: bool) -> None:
    """Print it, and end the command with 1 when a limit was not kept."""
    if as_json:
        click.echo(msgspec.json.encode(shown.document()))
    else:
        claims = _all_wrapped(claim.line() for claim in shown.claims)
        click.echo("\n".join([*facts_lines(shown.facts, shown.inputs), "", *_all_wrapped(shown.lines), "", *claims]))
    if not shown.ok:
        click.get_current_context().exit(1)


def _all_wrapped(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in wrapped(line) or [""]]
