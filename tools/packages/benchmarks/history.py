"""Pure. Decides; never performs. What is written down of a simulated load, by the server's clock alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from scheduler.audit.audit import percentile


class Submitted(msgspec.Struct, frozen=True, gc=False):
    """A job in the intake. pair: what it needs; entry_ms, of the intake entry's id; at_us, a moment before it."""

    session_id: str
    pair: str
    entry_ms: int
    at_us: int


class Placed(msgspec.Struct, frozen=True, gc=False):
    """A job in an inbox. inbox_ms, of the inbox entry's id; token, the microsecond of its reservation."""

    node: str
    inbox_ms: int
    token: int
    decision: str


class Window(msgspec.Struct, frozen=True):
    """The part of a load that counts, server time."""

    from_ms: int
    until_ms: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.until_ms - self.from_ms) / 1_000


class Hold(msgspec.Struct, frozen=True, gc=False):
    """A slot in use, from the millisecond of the inbox entry until that of the release; None: still in use."""

    node: str
    from_ms: int
    until_ms: int | None

    def within_ms(self, window: Window) -> int:
        """How much of it lies in a window."""
        until_ms = window.until_ms if self.until_ms is None else min(self.until_ms, window.until_ms)
        return max(0, until_ms - max(self.from_ms, window.from_ms))


class Wait(msgspec.Struct, frozen=True, gc=False):
    """A job from its intake entry to its inbox entry; dispatch_us: the same in microseconds."""

    job_id: str
    pair: str
    from_ms: int
    until_ms: int
    dispatch_us: int


def waits(submitted: Mapping[str, Submitted], placed: Mapping[str, Placed], window: Window) -> list[Wait]:
    """The waits of all jobs that were submitted within a window and placed, in the order of their submission."""
    return [
        Wait(job_id, job.pair, job.entry_ms, placed[job_id].inbox_ms, placed[job_id].token - job.at_us)
        for job_id, job in submitted.items()
        if job_id in placed and window.from_ms <= job.entry_ms < window.until_ms
    ]


class Percentiles(msgspec.Struct, frozen=True):
    """Nearest-rank percentiles; None without values."""

    p50: float | None
    p99: float | None
    p999: float | None
    max: float | None


def percentiles(values: Iterable[int], per: int = 1) -> Percentiles:
    """Of whole numbers, each divided by `per` afterwards."""
    ordered = sorted(values)
    found = [percentile(ordered, percent) for percent in (50, 99, 99.9, 100)]
    return Percentiles(*(None if value is None else round(value / per, 3) for value in found))


def decisions(placed: Iterable[Placed]) -> dict[str, int]:
    """How often each first word of a decision was written; `none` where there is no decision."""
    counts: dict[str, int] = {}
    for each in placed:
        word = each.decision.partition(" ")[0] or "none"
        counts[word] = counts.get(word, 0) + 1
    return dict(sorted(counts.items()))


def mean_use(holds: Sequence[Hold], slots: int, window: Window) -> float:
    """The share of all slots that was in use, averaged over a window."""
    used_ms = sum(hold.within_ms(window) for hold in holds)
    return used_ms / (slots * max(1, window.until_ms - window.from_ms))
