"""What dispatchers tell of themselves in their heartbeats, read from the stream as anybody can read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Final

import msgspec

from benchmarks.history import Window
from scheduler.store.store import Store

FIELDS: Final = ("decision_us_p99", "session_wait_ms_p99")
COUNT_MAX: Final = 100_000


class _Document(msgspec.Struct):
    """A heartbeat as far as it is of interest; whoever does not tell a figure has None. A figure of 0 is left out, as
    every default is, so who tells the one of them that is never 0 tells them all.
    """

    kind: str = ""
    name: str = ""
    decision_us_p99: float | None = None
    session_wait_ms_p99: float | None = None


class Told(msgspec.Struct, frozen=True):
    """One figure in all heartbeats of a window: the worst, and the median; None when no heartbeat had it."""

    heartbeats: int
    worst: float | None
    median: float | None


async def told(store: Store, window: Window) -> dict[str, Told]:
    """Each figure of FIELDS, in the heartbeats that came within a window."""
    stream = store.control.keys.heartbeats
    client = store.connection.commands
    entries = await store.connection.patiently(
        lambda: client.xrange(stream, window.from_ms, window.until_ms, COUNT_MAX)
    )
    return figures(fields.get(b"node", b"") for _, fields in entries)


def figures(documents: Iterable[bytes]) -> dict[str, Told]:
    """The same from heartbeat documents; those of others than dispatchers are passed over."""
    values: dict[str, list[float]] = defaultdict(list)
    count = 0
    for data in documents:
        document = _decode(data)
        if document.kind != "dispatcher":
            continue
        count += 1
        if document.decision_us_p99 is not None:
            for field in FIELDS:
                values[field].append(getattr(document, field) or 0)
    return {
        field: Told(count, max(values[field]), median(values[field])) if values[field] else Told(count, None, None)
        for field in FIELDS
    }


def _decode(data: bytes) -> _Document:
    """JSON or msgpack, as the protocol has it; what is neither is nobody's heartbeat."""
    try:
        return msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return msgspec.msgpack.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Document()
