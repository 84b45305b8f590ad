"""Pure. Decides; never performs. What becomes of a job when its handler has ended, and how long a retry waits.

`release.lua` checks each verdict and turns a retry whose budget is used up into `dead`.
"""

from __future__ import annotations

from random import Random
from typing import Final, Literal

import msgspec

from scheduler.protocol.lifecycle import Verdict
from scheduler.texts import DETAIL_LENGTH_MAX, cut_middle, storable

_JITTER: Final = 0.2
_DELAY_MS_MAX: Final = 1_000_000_000_000  # that `release` takes


class Ending(msgspec.Struct, frozen=True):
    """A verdict and what goes with it; see calls.ReleaseItem. reason: one word, detail: for a person; error: what the
    handler raised, for the log.
    """

    verdict: Verdict
    state: Literal["completed", "failed"] = "completed"
    delay_ms: int = 0
    reason: str = ""
    detail: str = ""
    content_type: str = ""
    result: bytes = b""
    error: BaseException | None = None


def clean(text: str) -> str:
    """A text that every server and terminal takes: bounded, and without half characters (file names have them)."""
    return cut_middle(storable(text), DETAIL_LENGTH_MAX)


def completed(content_type: str, result: bytes) -> Ending:
    """The handler returned."""
    return Ending("finish", "completed", content_type=content_type, result=result)


def rejected(detail: str, reason: str = "rejected") -> Ending:
    """The handler said that another attempt is of no use: failed, and the detail is the result."""
    text = clean(detail)
    return Ending(
        "finish",
        "failed",
        reason=reason,
        detail=text,
        content_type="text/plain; charset=utf-8",
        result=text.encode(),
    )


def failed(
    attempt: int, detail: str, delay_ms: int | None, backoff_ms: int, backoff_ms_max: int, random: Random
) -> Ending:
    """The handler raised: another attempt after a delay that doubles.

    Args: attempt, counted from 1; detail; delay_ms, asked for by the handler, None for the backoff; backoff_ms, of
    the first retry; backoff_ms_max; random, for jitter of 20 %.
    """
    if delay_ms is None:
        exponential_ms = min(backoff_ms * 2 ** min(attempt - 1, 30), backoff_ms_max)
        delay_ms = round(exponential_ms * random.uniform(1 - _JITTER, 1 + _JITTER))
    return Ending("retry", delay_ms=min(max(0, delay_ms), _DELAY_MS_MAX), reason="handler_failed", detail=clean(detail))


def too_large(size_bytes: int, bytes_max: int) -> Ending:
    """The handler returned more than a result may be: failed, because it would do so again."""
    return rejected(f"a result of {size_bytes} bytes: expected at most {bytes_max}", reason="too_large")


def unencodable(detail: str) -> Ending:
    """The handler returned what cannot be stored as it is: failed, because it would do so again."""
    return rejected(f"the result cannot be kept: {detail}", reason="unencodable")


def overrun() -> Ending:
    """The handler ran for longer than its pool allows."""
    return Ending("retry", reason="overrun", detail="the handler ran for longer than its pool allows")


def given_back(detail: str, delay_ms: int = 0) -> Ending:
    """The node cannot run the job, through no fault of it. delay_ms: before it is placed again, perhaps here."""
    return Ending("give_back", delay_ms=delay_ms, reason="given_back", detail=detail)
