"""Pure. Decides; never performs. What operators ask of the leader, and what becomes of it.

A command is an entry of the stream of commands with a field `command`, a JSON object whose `kind` says what is asked.
Doing it twice comes to the same: a new leader, or a lost reply, may read it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from scheduler.config import Settings
from scheduler.errors import InvalidInput
from scheduler.management import pools
from scheduler.management.checks import nearest, refuse
from scheduler.management.pools import Documents, PoolDocument
from scheduler.protocol import messages
from scheduler.protocol.keys import check_name

FIELD: Final = b"command"
COMMAND_BYTES_MAX: Final = 1_048_576
REFUSAL_LENGTH_MAX: Final = 1_000


class ApplyPools(msgspec.Struct, frozen=True):
    """Configure these pools, all of them or none; others stay."""

    pools: Mapping[str, PoolDocument]


class RemovePool(msgspec.Struct, frozen=True):
    """Forget what was configured of a pool."""

    pool: str


Wanted = ApplyPools | RemovePool
_FIELDS_OF_KIND: Final[Mapping[str, frozenset[str]]] = {
    "apply_pools": frozenset({"kind", "pools"}),
    "remove_pool": frozenset({"kind", "pool"}),
}


class Accepted(msgspec.Struct, frozen=True):
    """It was done. pools: configured, or removed; named_by: live nodes that name a removed pool, which so goes on with
    the default policy; version: of the snapshot from which on it is in force.
    """

    pools: tuple[str, ...]
    named_by: int = 0
    version: int = 0


class Refused(msgspec.Struct, frozen=True):
    """It was not done, and nothing was changed."""

    why: str


Answer = Accepted | Refused


class Decided(NamedTuple):
    """What becomes of some commands. documents: the configuration after them; changes: what to store of it, None for
    what to delete; answers: one a command, in their order.
    """

    documents: Documents
    changes: dict[str, PoolDocument | None]
    answers: list[tuple[str, Answer]]


# ---- deciding -------------------------------------------------------------------------------------------------------


def decide(
    documents: Documents, asked: Sequence[messages.Command], named: Mapping[str, int], settings: Settings
) -> Decided:
    """Do what is asked, one after the other; a command that cannot be done changes nothing for the others.

    Args: documents, what is configured; asked, in the order of their stream; named, pools that live nodes name, and
    how many do; settings of the leader.
    """
    changes: dict[str, PoolDocument | None] = {}
    answers: list[tuple[str, Answer]] = []
    for command in asked:
        try:
            wanted = decode_command(command.fields)
            if isinstance(wanted, ApplyPools):
                documents = pools.applied(documents, wanted.pools, named, settings)
                changes |= wanted.pools
                answer: Answer = Accepted(tuple(wanted.pools))
            else:
                documents = pools.removed(documents, wanted.pool)
                changes[wanted.pool] = None
                answer = Accepted((wanted.pool,), named.get(wanted.pool, 0))
        except InvalidInput as error:
            answer = Refused(str(error)[:REFUSAL_LENGTH_MAX])
        answers.append((command.id, answer))
    return Decided(documents, changes, answers)


# ---- codecs ---------------------------------------------------------------------------------------------------------


def decode_command(fields: Mapping[bytes, bytes]) -> Wanted:
    """A command from the fields of its entry. Raises: InvalidInput."""
    data = fields.get(FIELD)
    if data is None:
        names = ", ".join(sorted(name.decode(errors="replace") for name in fields))[:100]
        raise InvalidInput(f"the entry has no field `command` (it has: {names}): expected a JSON object")
    if len(data) > COMMAND_BYTES_MAX:
        raise InvalidInput(f"command: {len(data)} bytes: expected at most {COMMAND_BYTES_MAX}")
    said = _object("command", data)
    kind = said.get("kind")
    if not isinstance(kind, str) or kind not in _FIELDS_OF_KIND:
        near = f"; the nearest is {nearest(kind, _FIELDS_OF_KIND)}" if isinstance(kind, str) else ""
        refuse("kind", kind, f"{' or '.join(_FIELDS_OF_KIND)}{near}")
    if set(said) != _FIELDS_OF_KIND[kind]:
        refuse("command", sorted(said), f"the fields {' and '.join(sorted(_FIELDS_OF_KIND[kind]))}, and no others")
    if kind == "apply_pools":
        return ApplyPools(pools.parse_pools(said["pools"]))
    if not isinstance(said["pool"], str):
        refuse("pool", said["pool"], "the name of a pool")
    return RemovePool(check_name("pool", said["pool"]))


def encode_command(wanted: Wanted) -> bytes:
    """The document of a command. Raises: InvalidInput when it is too large."""
    if isinstance(wanted, ApplyPools):
        tables = {name: pools.to_table(document) for name, document in wanted.pools.items()}
        data = msgspec.json.encode({"kind": "apply_pools", "pools": tables})
    else:
        data = msgspec.json.encode({"kind": "remove_pool", "pool": wanted.pool})
    if len(data) > COMMAND_BYTES_MAX:
        raise InvalidInput(
            f"command: {len(data)} bytes: expected at most {COMMAND_BYTES_MAX}; apply fewer pools at once"
        )
    return data


def encode_answer(answer: Answer, version: int) -> bytes:
    """The document of an answer. version: of the snapshot that it is published with."""
    if isinstance(answer, Refused):
        return msgspec.json.encode({"refused": answer.why})
    return msgspec.json.encode({"accepted": msgspec.structs.replace(answer, version=version)})


def decode_answer(data: bytes) -> Answer:
    """The reverse of encode_answer. Raises: InvalidInput."""
    said = _object("answer", data)
    if "refused" in said:
        return Refused(str(said["refused"]))
    try:
        return msgspec.convert(said.get("accepted"), Accepted)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"answer is not understood: {error}") from None


def _object(what: str, data: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{what} is no valid JSON document: {error}") from None
    if not isinstance(said, dict):
        refuse(what, said, "a JSON object")
    return said
