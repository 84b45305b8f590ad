"""Keys in which somebody has stored another type than scripts do: named when a call fails by them, and made anew.

Whatever such a key held is gone already, so that it is as good as deleted: a manager, dispatcher or reaper deletes it,
and all that makes a deleted key anew does the rest. Records and results are left alone, for nobody could write them
again. Nothing here costs anything while all is in order: types are asked for only after a call has failed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from scheduler.errors import WrongType

logger = logging.getLogger("scheduler.store")

TYPES: Final = {
    "layout": "hash", "heartbeats": "stream", "commands": "stream", "answers": "stream", "config": "hash",
    "snapshot": "string", "version": "string", "deltas": "stream", "leader": "hash", "dispatchers": "zset",
    "owners": "hash", "capacity": "hash", "control_ids": "hash", "leader_epoch": "string", "last_boot": "string",
    "open": "set", "counted": "string", "freed": "stream", "results": "stream", "delayed": "zset", "parked": "stream",
    "dead": "stream", "jobs": "stream", "slots": "zset", "inbox": "stream", "left": "string", "job": "hash",
    "result": "string", "session": "string", "held": "zset", "rebuilt": "stream",
}  # fmt: skip
"""What belongs into the keys of each kind."""
KEPT: Final = ("job", "result")
"""Kinds that nothing makes anew."""
TRIES_MAX: Final = 6  # of one call, which may find one key after the other
WAIT_MS: Final = 250  # between two of them for those who leave it to roles to delete a key: these look once a second


class NamingClient(Redis):
    """A client whose refused commands can be told by their error, as `command`."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As in redis-py."""
        try:
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            error.command = args  # type: ignore[attr-defined]
            raise


def kind_of(key: str) -> str:
    """The kind of one of our keys, empty for anything else."""
    tag, _, name = key.partition("}:")
    kind = name.partition(":")[0]
    return kind if tag.startswith("{") and kind in TYPES else ""


def keys_of(words: Iterable[object]) -> list[str]:
    """Those words that are keys of ours, of a command or of several."""
    found: dict[str, None] = {}
    for word in words:
        if isinstance(word, list | tuple):
            found |= dict.fromkeys(keys_of(word))
        elif isinstance(word, str) and kind_of(word):
            found[word] = None
    return list(found)


async def find_wrong(client: Any, keys: Sequence[str]) -> dict[str, str]:
    """key -> the type that is stored there, of those in which another one belongs."""
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.type(key)
    found = [each.decode() for each in await pipeline.execute()]
    return {key: stored for key, stored in zip(keys, found, strict=True) if stored not in ("none", TYPES[kind_of(key)])}


def by_tag(keys: Iterable[str]) -> Iterator[list[str]]:
    """The keys by their hash tags, for a script takes those of one."""
    tags: dict[str, list[str]] = {}
    for key in keys:
        tags.setdefault(key.partition("}")[0], []).append(key)
    yield from tags.values()


def tell_deleted(key: str, stored: str, text: str) -> None:
    """What was deleted, for people. stored: the type that was there; text: the first of it, if it was a string."""
    shown = f"{stored} {text!r}" if text else stored
    logger.warning(
        "%s held a %s, where a %s belongs: somebody else wrote it; it is deleted, and made anew",
        key, shown, TYPES[kind_of(key)],
    )  # fmt: skip


def wrong_type(wrong: dict[str, str]) -> WrongType:
    """The error that names these keys."""
    said = [f"{key} holds a {stored}, where a {TYPES[kind_of(key)]} belongs" for key, stored in wrong.items()]
    kept = any(kind_of(key) in KEPT for key in wrong)
    advice = "delete it" if kept else "delete it, or let a running manager, dispatcher or reaper do so"
    return WrongType(f"{'; '.join(said)}: somebody else wrote it; {advice}", tuple(wrong))
