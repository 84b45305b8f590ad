"""The numbers that the decision document promises, and what of the cited runs answers each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from benchmarks.cited import BY_NAME, Document, NoFigures, number

Answer = tuple[str, bool]


class Promise(msgspec.Struct, frozen=True):
    """One number. sections: of the document; cited: the run that answers it; answer: what that says, and whether the
    promise was kept.
    """

    sections: str
    what: str
    claimed: str
    cited: str
    answer: Callable[[Document], Answer]

    @property
    def command(self) -> str:
        """Which repeats it."""
        return BY_NAME[self.cited].command


def _claim(document: Document, part: str) -> float:
    for claim in document["claims"]:
        if part in claim["what"] and claim["measured"] is not None:
            return float(claim["measured"])
    raise NoFigures(
        f"no claim with {part!r} was measured: expected one of {[each['what'] for each in document['claims']]}"
    )


def _at_most(part: str, limit: float, unit: str) -> Callable[[Document], Answer]:
    def answer(document: Document) -> Answer:
        measured = _claim(document, part)
        return f"{number(measured)} {unit}".strip(), measured < limit

    return answer


def _less(part: str, percent: float) -> Callable[[Document], Answer]:
    """A ratio to the design before, as a change."""

    def answer(document: Document) -> Answer:
        change = 100 * (_claim(document, part) - 1)
        return f"{change:+,.0f} %", change <= -percent

    return answer


def _more(part: str, percent: float) -> Callable[[Document], Answer]:
    def answer(document: Document) -> Answer:
        change = 100 * (_claim(document, part) - 1)
        return f"{change:+,.0f} %", change >= percent

    return answer


def _errors(document: Document) -> Answer:
    found = [claim for claim in document["claims"] if claim["what"].startswith("errors")]
    return ", ".join(number(claim["measured"]) for claim in found), all(claim["ok"] for claim in found)


def _creation(document: Document) -> Answer:
    """The record and the assignment of a job, as the server counts its commands."""
    us = sum(each["us"] for each in document["profile"]["commands"] if each["command"] in ("hset", "xadd"))
    return f"{us:.1f} us", us < 10


def _cpu(document: Document) -> Answer:
    """CPU time a job of server and scheduler together, with 64 jobs in flight."""
    rows = document["in_flight"]["64"]
    ours, theirs = (
        sum(rows[name][part]["median"] for part in ("server_us", "scheduler_us")) for name in ("dispatch", "v2")
    )
    return f"{ours:,.0f} us by {theirs:,.0f} us: {100 * (ours / theirs - 1):+,.0f} %", ours < theirs


def _complexity(what: str) -> Callable[[Document], Answer]:
    def answer(document: Document) -> Answer:
        parts = document["by_v2"]
        words = ", ".join(f"{part} {100 * (ratio[what] - 1):+,.0f} %" for part, ratio in parts.items())
        return words, all(ratio[what] <= 0.75 for ratio in parts.values())

    return answer


PROMISES: Final[Sequence[Promise]] = (
    Promise("2.3.3, 3.1, 3.2", "reading the snapshot", "< 1 us", "snapshot", _at_most("reading the snapshot", 1, "us")),
    Promise("2.3.3", "replacing the snapshot", "< 10 us", "snapshot", _at_most("replacing the snapshot", 10, "us")),
    Promise(
        "3.1, 3.2, 5.1.2",
        "deciding pool and node, p99",
        "< 1 ms",
        "sessions",
        _at_most("binding decision", 1_000, "us"),
    ),
    Promise("3.1, 3.2", "creating a job: record and assignment", "< 10 us", "dispatch", _creation),
    Promise("3.1", "the whole way, with the network, p99.9", "< 50 ms", "latency", _at_most("p99.9", 50, "ms")),
    Promise("5.1.1", "until a change of a node is seen, p99", "< 1 ms", "snapshot", _at_most("a change of", 1, "ms")),
    Promise(
        "6.1.1, 7.3", "mean latency, 1 at a time", "-30 % to -50 %", "v2", _less("mean latency, dispatch by v2, 1 ", 30)
    ),
    Promise(
        "6.1.1, 7.3", "mean latency, 8 at once", "-30 % to -50 %", "v2", _less("mean latency, dispatch by v2, 8", 30)
    ),
    Promise("6.1.2, 7.3", "jobs a second, 64 at once", "+40 % to +60 %", "v2", _more("jobs/s, dispatch by v2, 64", 40)),
    Promise("7.3", "p99 of the latency, 64 at once", "-20 %", "v2", _less("p99, dispatch by v2, 64", 20)),
    Promise("7.3", "errors with 1, 8 and 64 at once", "not more", "v2", _errors),
    Promise(
        "5.1.2, 7.3", "waiting for a session, p99", "< 10 ms", "sessions", _at_most("wait for a session", 10, "ms")
    ),
    Promise("6.2.1", "complexity of the path, all functions", "-25 %", "complexity", _complexity("total")),
    Promise("6.2.1", "complexity of the path, a function", "-25 %", "complexity", _complexity("mean")),
    Promise("6.3.2", "CPU time a job, 64 at once", "less", "v2", _cpu),
)
