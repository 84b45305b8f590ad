"""What operators ask of the leader, what becomes of it, and how both are written."""

from __future__ import annotations

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.errors import InvalidInput
from scheduler.management.commands import (
    COMMAND_BYTES_MAX,
    Accepted,
    Answer,
    ApplyPools,
    Decided,
    Refused,
    RemovePool,
    Wanted,
    decide,
    decode_answer,
    decode_command,
    encode_answer,
    encode_command,
)
from scheduler.management.pools import NAMES_MAX, Documents, PoolDocument
from scheduler.protocol import messages
from scheduler.protocol.snapshot import Match

GOLD = PoolDocument(strategy="spread", match=Match(pairs=(("en", "zh"),)))
SILENT = PoolDocument()


def decided(documents: Documents, *asked: Wanted | bytes, named: dict[str, int] | None = None) -> Decided:
    """What becomes of commands; their ids are 1-0, 2-0 and so on."""
    commands = [
        messages.Command(f"{number}-0", {b"command": each if isinstance(each, bytes) else encode_command(each)})
        for number, each in enumerate(asked, 1)
    ]
    return decide(documents, commands, named or {}, DEFAULTS)


# ---- deciding ------------------------------------------------------------------------------------------------------


def test_pools_are_applied() -> None:
    """All of them, and what is there besides stays."""
    assert decided({"a": SILENT}, ApplyPools({"gold": GOLD, "b": SILENT})) == Decided(
        {"a": SILENT, "gold": GOLD, "b": SILENT},
        {"gold": GOLD, "b": SILENT},
        [("1-0", Accepted(("gold", "b")))],
    )


def test_a_pool_is_removed() -> None:
    """Nodes that name it are counted in the answer."""
    assert decided({"a": SILENT, "gold": GOLD}, RemovePool("gold"), named={"gold": 3}) == Decided(
        {"a": SILENT}, {"gold": None}, [("1-0", Accepted(("gold",), named_by=3))]
    )


@pytest.mark.parametrize("wanted", [ApplyPools({"gold": GOLD}), RemovePool("a")])
def test_a_command_that_is_read_twice_comes_to_the_same(wanted: Wanted) -> None:
    """Whoever asked is told the same by either answer."""
    once = decided({"a": SILENT}, wanted)
    twice = decided(once.documents, wanted)
    assert (twice.documents, twice.changes, twice.answers) == (once.documents, once.changes, once.answers)


def test_commands_are_done_in_their_order() -> None:
    """Each sees what those before it did; of several changes of a pool the last one is stored."""
    result = decided(
        {},
        ApplyPools({"gold": GOLD}),
        ApplyPools({"b": PoolDocument(fallback=("gold",))}),
        RemovePool("gold"),
        RemovePool("b"),
        RemovePool("gold"),
        ApplyPools({"b": SILENT}),
    )
    assert result.documents == {"b": SILENT}
    assert result.changes == {"gold": None, "b": SILENT}
    assert [type(answer) for _, answer in result.answers] == [
        Accepted, Accepted, Refused, Accepted, Accepted, Accepted,
    ]  # fmt: skip


def test_one_bad_pool_leaves_all_as_they_are() -> None:
    """A command is done as a whole or not at all, and harms no other one."""
    bad = ApplyPools({"gold": GOLD, "b": PoolDocument(fallback=("b",))})
    result = decided({"a": SILENT}, bad, b"{", ApplyPools({"c": SILENT}))
    assert result.documents == {"a": SILENT, "c": SILENT}
    assert result.changes == {"c": SILENT}
    assert [answer for _, answer in result.answers][0::2] == [
        Refused("pools.b.fallback = ['b']: expected no cycle: b -> b"),
        Accepted(("c",)),
    ]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "command is no valid JSON document: "),
        (b"{", "command is no valid JSON document: "),
        (b'"\xff"', "command is no valid JSON document: "),
        (b"[" * 100_000, "command is no valid JSON document: "),
        (b"[]", "command = []: expected a JSON object"),
        (b"{}", "kind = None: expected apply_pools or remove_pool"),
        (b'{"kind":3}', "kind = 3: expected apply_pools or remove_pool"),
        (b'{"kind":"remove"}', "kind = 'remove': expected apply_pools or remove_pool; the nearest is remove_pool"),
        (
            b'{"kind":"remove_pool"}',
            "command = ['kind']: expected the fields kind and pool, and no others",
        ),
        (
            b'{"kind":"remove_pool","pool":"a","force":true}',
            "command = ['force', 'kind', 'pool']: expected the fields kind and pool, and no others",
        ),
        (b'{"kind":"remove_pool","pool":7}', "pool = 7: expected the name of a pool"),
        (b'{"kind":"remove_pool","pool":""}', "pool = '': expected 1 to 64 visible ASCII characters"),
        (b'{"kind":"apply_pools","pools":{}}', "pools = {}: expected at least one table"),
        (b'{"kind":"apply_pools","pools":[]}', "pools = []: expected a table [pools]"),
        (b'{"kind":"apply_pools","pools":{"a":{"colour":1}}}', "pools.a.colour: expected a known key"),
        (
            b'{"kind":"apply_pools","pools":{"a":{"lease_ms":1' + b"0" * 400 + b"}}}",
            "pools.a.lease_ms = '1000",
        ),
        (
            b" " * (COMMAND_BYTES_MAX + 1),
            f"command: {COMMAND_BYTES_MAX + 1} bytes: expected at most {COMMAND_BYTES_MAX}",
        ),
    ],
)
def test_a_malformed_command_is_refused(document: bytes, why: str) -> None:
    """With a reason that a person understands, and nothing is changed."""
    ((_, answer),) = decided({"a": SILENT}, document).answers
    assert isinstance(answer, Refused)
    assert answer.why.startswith(why)
    assert decided({"a": SILENT}, document)[:2] == ({"a": SILENT}, {})


def test_an_entry_without_a_command_is_refused() -> None:
    """And told which fields it has."""
    with pytest.raises(InvalidInput, match=r"no field `command` \(it has: do, what\): expected a JSON object"):
        decode_command({b"what": b"", b"do": b""})


# ---- codecs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [ApplyPools({"gold": GOLD, "a": SILENT}), RemovePool("gold")])
def test_a_command_survives(wanted: Wanted) -> None:
    """As its sender meant it."""
    assert decode_command({b"command": encode_command(wanted)}) == wanted


def test_commands_have_the_form_of_the_protocol() -> None:
    """What was not said of a pool is not in it."""
    assert encode_command(ApplyPools({"gold": PoolDocument(candidates=2)})) == (
        b'{"kind":"apply_pools","pools":{"gold":{"candidates":2}}}'
    )
    assert encode_command(RemovePool("gold")) == b'{"kind":"remove_pool","pool":"gold"}'


def test_a_command_that_is_too_large_is_not_sent() -> None:
    """The leader would refuse it."""
    large = PoolDocument(tenants=tuple(f"{number:064}" for number in range(NAMES_MAX)))
    with pytest.raises(InvalidInput, match="apply fewer pools at once"):
        encode_command(ApplyPools({f"p{number}": large for number in range(20)}))


@pytest.mark.parametrize("answer", [Accepted(("gold", "a"), 3, 17), Refused("no")])
def test_an_answer_survives(answer: Answer) -> None:
    """With the version in which it is in force."""
    assert decode_answer(encode_answer(answer, 17)) == answer


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"accepted":true}', msgspec.msgpack.encode({"refused": "x"})])
def test_an_answer_that_is_none(data: bytes) -> None:
    """Of a manager that speaks another protocol."""
    with pytest.raises(InvalidInput, match="answer"):
        decode_answer(data)
