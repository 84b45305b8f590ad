"""Runs that the documents cite: the JSON object of each lies in docs/figures/, as the command printed it.

    ./tools/bench waits --json > docs/figures/waits.json

`./tools/bench tables` writes the tables of docs/BENCHMARKS.md and docs/PROMISES.md from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from scheduler.errors import SchedulerError

ROOT: Final = Path(__file__).resolve().parents[3]
FIGURES: Final = ROOT / "docs" / "figures"
CHAOS: Final = "./tools/chaos --only dispatcher --dispatchers 4"

RELAY_SHARE_MIN: Final = 0.6
SERVER_BY_RELAY_MAX: Final = 3.5

Document = Mapping[str, Any]


class NoFigures(SchedulerError):
    """A run that is cited is not there, or is none."""


class Row(msgspec.Struct, frozen=True):
    """A line of a table. limit: empty where there is none; kept: None then."""

    what: str
    measured: str
    limit: str = ""
    kept: bool | None = None

    @property
    def verdict(self) -> str:
        """In a word."""
        return "" if self.kept is None else "yes" if self.kept else "**no**"


class Cited(msgspec.Struct, frozen=True):
    """A run. name: of its file; command, that repeats it; rows, what its document says."""

    name: str
    command: str
    rows: Callable[[Document], Iterator[Row]]

    def load(self, directory: Path = FIGURES) -> Document:
        """What was printed. Raises: NoFigures."""
        path = directory / f"{self.name}.json"
        try:
            document: Document = msgspec.json.decode(path.read_bytes())
        except OSError as error:
            raise NoFigures(f"{path}: {error.strerror}: expected what `{self.command} --json` printed") from None
        except msgspec.DecodeError as error:
            raise NoFigures(f"{path}: {error}: expected what `{self.command} --json` printed") from None
        return document


def claims(document: Document) -> Iterator[Row]:
    """What a command claims, each with its limit."""
    for claim in document["claims"]:
        yield of_claim(claim)


def of_claim(claim: Mapping[str, Any]) -> Row:
    """One of them."""
    unit, bound = claim["unit"], "at least" if claim["is_least"] else "at most"
    rounds = claim["rounds"]
    spread = f" (rounds {number(min(rounds))} to {number(max(rounds))})" if rounds else ""
    measured = "missing" if claim["measured"] is None else number(claim["measured"])
    return Row(
        claim["what"], f"{_with(measured, unit)}{spread}", f"{bound} {_with(number(claim['limit']), unit)}", claim["ok"]
    )


def number(value: float) -> str:
    """With so many digits as say something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _with(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text


def dispatch(document: Document) -> Iterator[Row]:
    """A dispatcher beside the relay, by jobs a second and by CPU time of the server."""
    ours, relay, rounds = document["dispatch"], document["relay"], document["ratio"]["rounds"]
    speed = document["ratio"]["of_medians"]
    yield Row(
        "jobs a second, dispatcher by relay",
        f"{ours['jobs_per_s']['median']:,.0f} by {relay['jobs_per_s']['median']:,.0f}: {speed:.2f} "
        f"(rounds {min(rounds):.2f} to {max(rounds):.2f})",
        f"at least {RELAY_SHARE_MIN:g}",
        speed >= RELAY_SHARE_MIN,
    )
    server = ours["server_us"]["median"] / relay["server_us"]["median"]
    yield Row(
        "CPU time of the server a job, dispatcher by relay",
        f"{ours['server_us']['median']:.1f} us by {relay['server_us']['median']:.1f} us: {server:.1f}",
        f"at most {SERVER_BY_RELAY_MAX:g}",
        server <= SERVER_BY_RELAY_MAX,
    )
    client = ours["client_us"]["median"] / relay["client_us"]["median"]
    yield Row(
        "CPU time of the client a job, dispatcher by relay",
        f"{ours['client_us']['median']:.1f} us by {relay['client_us']['median']:.1f} us: {client:.1f}",
    )


def chaos(document: Document) -> Iterator[Row]:
    """Sessions that stayed, and every guarantee."""
    sessions = document["sessions"]
    spilled = ", ".join(f"{count:,} {cause}" for cause, count in sessions["spilled"].items() if count) or "none"
    yield Row(
        "sessions that left a node which was healthy and had room",
        f"{sessions['violations']:,} of {document['submitted']:,} jobs; {sessions['stayed']:,} stayed; spilled: "
        f"{spilled}",
        "none",
        sessions["violations"] == 0,
    )
    broken = {name: document[name] for name in ("lost", "duplicates", "over_capacity", "order_violations")}
    words = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in broken.items())
    yield Row("jobs lost, completed twice, over capacity, out of order", words, "none", bool(document["ok"]))


def complexity(document: Document) -> Iterator[Row]:
    """Of the code of a request, beside the design that this one replaces."""
    for part, ratio in document["by_v2"].items():
        for what, value in ratio.items():
            meant = "all functions" if what == "total" else "a function"
            yield Row(f"cyclomatic complexity of {meant}, {part} by v2", f"{value:.2f}", "at most 0.75", value <= 0.75)


def memory(document: Document) -> Iterator[Row]:
    """Bytes of one of each."""
    for each in document["bytes"]:
        yield Row(f"{each['what']}, in the {each['where']}", f"{each['bytes']:,.0f} bytes")


CITED: Final[Sequence[Cited]] = (
    Cited("chaos-speech", f"{CHAOS} --speech", chaos),
    Cited("chaos-trace", f"{CHAOS} FILE", chaos),
    Cited("waits", "./tools/bench waits", claims),
    Cited("wait", "./tools/bench wait", claims),
    Cited("evenness", "./tools/bench evenness", claims),
    Cited("sessions", "./tools/bench sessions", claims),
    Cited("flood", "./tools/bench flood", claims),
    Cited("placement", "./tools/bench placement", claims),
    Cited("snapshot", "./tools/bench snapshot", claims),
    Cited("v2", "./tools/bench v2", claims),
    Cited("dispatch", "./tools/bench dispatch --profile --rounds 31", dispatch),
    Cited("lifecycle", "./tools/bench lifecycle", claims),
    Cited("latency", "./tools/bench latency", claims),
    Cited("owner", "./tools/bench owner", claims),
    Cited("memory", "./tools/bench memory", memory),
    Cited("complexity", "./tools/bench complexity", complexity),
)
BY_NAME: Final = {each.name: each for each in CITED}
