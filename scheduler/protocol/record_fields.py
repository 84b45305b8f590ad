"""Pure. Decides; never performs. Fields of assignments and records that hold several words, because a field costs the
server more than a word: by which policy a job runs, its reservation, and who holds it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

_POLICIES_MAX: Final = 128  # that are remembered as read
_NUMBER: Final = re.compile("[0-9]{1,18}")
_ENTRY_ID: Final = re.compile("[0-9]{1,19}-[0-9]{1,19}")


class Policy(NamedTuple):
    """What a job in a node's hands lives by: of its pool, as it was when the job was placed by a snapshot.

    Written by `reserve` as one text, the words in this order with spaces between.
    """

    pool: str = ""
    lease_ms: int = 0
    attempts_max: int = 0
    crashes_max: int = 0
    run_ms_max: int = 0
    backoff_ms: int = 0
    backoff_ms_max: int = 0
    snapshot_version: int = 0


@functools.lru_cache(maxsize=_POLICIES_MAX)
def parse_policy(text: str) -> Policy:
    """A policy from its text, which many jobs share; words of a later version are ignored. Raises: ValueError."""
    pool, *numbers = text.split(" ")
    return Policy(pool, *map(int, numbers[: len(Policy._fields) - 1]))


def policy_of(text: str | None) -> Policy:
    """The policy of a record. One that no script has written says nothing, and keeps no other from being read."""
    try:
        return parse_policy(text or "")
    except ValueError:
        return Policy()


def number_of(text: str | None) -> int | None:
    """A number of a record, None when there is none or no script has written it."""
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def entry_id_of(text: str | None) -> str | None:
    """The id of an entry as a record has it, None when there is none or no script has written it."""
    return text if text is not None and _ENTRY_ID.fullmatch(text) else None


class Reservation(NamedTuple):
    """What an assignment says of its reservation. boot: of the node; lease_until_ms: server time, the end of the first
    lease; entry: the intake entry; attempt: from 1; submitted_ms: server time of the first submission; length_ms: of
    the first lease.
    """

    token: int
    boot: str
    lease_until_ms: int
    entry: str
    attempt: int
    life: int
    submitted_ms: int
    length_ms: int


def parse_reservation(text: str) -> Reservation:
    """A reservation from its text; words of a later version are ignored. Raises: ValueError."""
    words = text.split(" ")
    if len(words) < len(Reservation._fields):
        raise ValueError(f"reservation = {text[:200]!r}: expected {len(Reservation._fields)} words")
    token, boot, lease_until_ms, entry, *numbers = words[: len(Reservation._fields)]
    return Reservation(int(token), boot, int(lease_until_ms), entry, *map(int, numbers))


def first_lease_ms(assignment: str | None) -> int:
    """How long the first lease of a record's `assignment` is, 0 when it does not say."""
    words = (assignment or "").split(" ")
    return (number_of(words[2]) or 0) if len(words) > 2 else 0


class Holder(NamedTuple):
    """Who holds a job, or was the last to hold it, as its record says."""

    node: str
    token: int


def parse_holder(text: str | None) -> Holder | None:
    """A holder from its text, None when there is none or it is no text of a script."""
    words = (text or "").split(" ")
    token = number_of(words[-1])
    return Holder(words[0], token) if len(words) == 2 and token is not None else None


def split_words(record: Mapping[str, str]) -> dict[str, str]:
    """A record and beside its fields their words: node and token, boot and inbox_id, last_token and last_verdict."""
    fields = dict(record)
    holder = parse_holder(record.get("holder"))
    if holder is not None:
        fields |= zip(holder._fields, map(str, holder), strict=True)
    boot, *rest = record.get("assignment", "").split(" ")
    if rest:
        fields |= {"boot": boot, "inbox_id": rest[0]}
    token, _, verdict = record.get("last_ending", "").partition(" ")
    return fields | {"last_token": token, "last_verdict": verdict} if verdict else fields
