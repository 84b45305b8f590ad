"""What the tests of release.lua share: a reservation that may end in every way, and endings of it."""

from __future__ import annotations

from typing import Any

from scheduler.protocol import messages
from scheduler.protocol.lifecycle import Verdict
from scheduler.store.store import Store
from tests.seeds import (
    BOOT,
    JOB,
    LATER_BOOT,
    NODE,
    PARTITION,
    release,
    release_item,
    seed_lapsed,
    seed_poison,
    seed_record,
    seed_reserved,
)

STALE, UNKNOWN = messages.NotReleased("stale"), messages.NotReleased("unknown")
BUSY, MOVED = messages.NotReleased("busy"), messages.NotReleased("moved")
GOING_BACK: tuple[Verdict, ...] = ("retry", "expire", "reboot", "give_back")
VERDICTS: tuple[Verdict, ...] = (*GOING_BACK, "finish", "dead")


def ending(token: int, verdict: Verdict, **rest: Any) -> messages.ReleaseItem:
    """An ending; a reboot is told by a later boot."""
    return release_item(token, verdict, boot=LATER_BOOT if verdict == "reboot" else BOOT, **rest)


async def seed(store: Store, prepared: str = "", **fields: Any) -> int:
    """A started reservation whose lease has lapsed, so that every verdict is allowed; returns the token."""
    token = await seed_reserved(store, started=True, **fields)
    await seed_lapsed(store)
    if prepared == "cancelled":
        await seed_record(store, cancel=1)
    elif prepared == "poisoned":
        await seed_poison(store, store.cell.keys.jobs(PARTITION))
    elif prepared == "used_up":
        await seed_record(store, attempts=2, crashes=4)
    elif prepared == "body_lost":
        inbox_id = (await store.reads.record(JOB))["inbox_id"]
        await store.connection.commands.xdel(store.cell.keys.inbox(NODE), inbox_id)
    return token


async def only(store: Store, *items: messages.ReleaseItem) -> messages.Released | messages.NotReleased:
    """The answer of a call with one ending."""
    (answer,) = await release(store, *items)
    return answer


def text(fields: dict[bytes, bytes]) -> dict[str, str]:
    """Fields of a stream entry as text."""
    return {name.decode(): value.decode() for name, value in fields.items()}
