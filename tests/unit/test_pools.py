"""Pools as they are configured: what is read, what is refused, alone and as one set, and what is written."""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.errors import InvalidConfig, InvalidInput
from scheduler.management.pools import (
    DEFAULT_POOL,
    NAMES_MAX,
    POOLS_MAX,
    PoolDocument,
    applied,
    complete,
    decode,
    encode,
    parse,
    parse_file,
    read,
    removed,
    to_table,
    to_toml,
)
from scheduler.protocol.snapshot import Match, Pool
from tests.unit.arrange import EN_ZH

EVERYTHING = """
[pools.gold]
description = "für \\"acme\\""
strategy = "spread"
pressure = "return"
fallback = ["silver", "default"]
tenants = ["acme"]
candidates = 8
session_concurrency = 1
tenant_concurrency = 20
start_ms = 4000
lease_ms = 9000
run_ms_max = 60000
attempts_max = 2
crashes_max = 4
backoff_ms = 50
backoff_ms_max = 500

[pools.gold.match]
labels = { zone = "eu", "rack.row" = "a b" }
pairs = ["en:zh", "auto:de"]
features = ["asr"]
tenants = ["acme", "other"]

[pools.silver]
"""
GOLD = PoolDocument(
    description='für "acme"',
    strategy="spread",
    pressure="return",
    fallback=("silver", "default"),
    tenants=("acme",),
    candidates=8,
    session_concurrency=1,
    tenant_concurrency=20,
    start_ms=4_000,
    lease_ms=9_000,
    run_ms_max=60_000,
    attempts_max=2,
    crashes_max=4,
    backoff_ms=50,
    backoff_ms_max=500,
    match=Match(
        labels={"zone": "eu", "rack.row": "a b"},
        pairs=(EN_ZH, ("auto", "de")),
        features=("asr",),
        tenants=("acme", "other"),
    ),
)


def refusal(text: str, stored: dict[str, PoolDocument] | None = None, live: tuple[str, ...] = ()) -> str:
    """How a file is refused."""
    with pytest.raises(InvalidInput) as refused:
        applied(stored or {}, parse_file(tomllib.loads(text)), live, DEFAULTS)
    return str(refused.value)


# ---- reading and writing -------------------------------------------------------------------------------------------


def test_a_file_says_everything_of_a_pool_or_nothing() -> None:
    """Every field can be said, and none has to be."""
    assert parse_file(tomllib.loads(EVERYTHING)) == {"gold": GOLD, "silver": PoolDocument()}
    assert set(to_table(GOLD)) == set(PoolDocument.__struct_fields__)


def test_a_document_has_the_fields_of_a_pool() -> None:
    """So that whatever placement reads can be configured."""
    assert {"id", *PoolDocument.__struct_fields__} == set(Pool.__struct_fields__)


def test_what_was_not_said_is_not_stored() -> None:
    """The settings of a later leader apply to it."""
    assert encode(PoolDocument(lease_ms=9_000, match=Match(pairs=(EN_ZH,)))) == (
        b'{"lease_ms":9000,"match":{"pairs":["en:zh"]}}'
    )


@pytest.mark.parametrize("document", [GOLD, PoolDocument(), PoolDocument(fallback=(), match=Match())])
def test_a_stored_pool_is_read_as_it_was(document: PoolDocument) -> None:
    """Also what was said to be empty."""
    assert decode("gold", encode(document)) == document


def test_a_stored_pool_of_a_later_version_is_read() -> None:
    """Keys that only it knows are passed over; a file must not have them."""
    assert decode("gold", b'{"strategy":"spread","colour":"red"}') == PoolDocument(strategy="spread")


def test_a_stored_field_that_cannot_be_used_is_told() -> None:
    """The others are read all the same; what is no pool is somebody else's."""
    documents, complaints = read(
        {
            "drain:n1": b"{",
            "pool:a b": b"{}",
            "pool:bytes": b"\xff",
            "pool:good": b"{}",
            "pool:list": b"[]",
            "pool:old": b'{"strategy":"random"}',
            "pool:text": b"{",
        }
    )
    assert documents == {"good": PoolDocument()}
    assert [complaint.split(" is ignored: ")[0] for complaint in complaints] == [
        f"the stored configuration of pool {name!r}" for name in ("a b", "bytes", "list", "old", "text")
    ]


def test_a_file_that_is_shown_can_be_applied_again() -> None:
    """What was not said stands there as comments, and stays unsaid."""
    said = {"gold": GOLD, "silver/eu": PoolDocument(candidates=2, match=Match())}
    shown = to_toml(said, {name: complete(name, document, DEFAULTS) for name, document in said.items()})
    assert parse_file(tomllib.loads(shown)) == said
    assert '\n[pools."silver/eu"]\ncandidates = 2\n# not said, so as in the settings:\n# description = ""\n' in shown
    assert parse_file(tomllib.loads(to_toml(said))) == said
    uncommented = shown.replace("# not said, so as in the settings:\n", "").replace("# ", "")
    assert set(to_table(parse_file(tomllib.loads(uncommented))["silver/eu"])) == set(PoolDocument.__struct_fields__)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "pools = {}: expected at least one table [pools.<name>]", id="nothing"),
        pytest.param("pools = 3", "pools = 3: expected a table [pools]", id="no table"),
        pytest.param("[pool.a]", "pool: expected a known key; the nearest is pools", id="top"),
        pytest.param("pools.a = 3", "pools.a = 3: expected a table [pools.a]", id="no table of a pool"),
        pytest.param(
            "[pools.a]\nleas_ms = 4", "pools.a.leas_ms: expected a known key; the nearest is lease_ms", id="key"
        ),
        pytest.param(
            "[pools.a.match]\nlabel = 4",
            "pools.a.match.label: expected a known key; the nearest is labels",
            id="key of a rule",
        ),
        pytest.param("[pools.a]\n'a\\nb' = 4", r"pools.a.'a\\nb': expected a known key; the nearest is", id="no word"),
        pytest.param(
            "[pools.'a b']",
            "pool = 'a b': expected 1 to 64 visible ASCII characters without spaces and braces",
            id="name",
        ),
        pytest.param(
            "[pools.a]\nstrategy = 'sprad'",
            "pools.a.strategy = 'sprad': expected affinity, spread or least_loaded",
            id="strategy",
        ),
        pytest.param("[pools.a]\npressure = []", "pools.a.pressure = []: expected stay or return", id="pressure"),
        pytest.param(
            "[pools.a]\ncandidates = 17", "pools.a.candidates = 17: expected a whole number from 1 to 16", id="17"
        ),
        pytest.param("[pools.a]\ncandidates = 0", "pools.a.candidates = 0: expected a whole number from 1", id="0"),
        pytest.param("[pools.a]\ncandidates = true", "pools.a.candidates = True: expected a whole number", id="bool"),
        pytest.param("[pools.a]\nlease_ms = '9'", "pools.a.lease_ms = '9': expected a whole number", id="text"),
        pytest.param("[pools.a]\nlease_ms = 9.0", "pools.a.lease_ms = 9.0: expected a whole number", id="fraction"),
        pytest.param("[pools.a]\nlease_ms = -1", "pools.a.lease_ms = -1: expected a whole number from 1", id="below"),
        pytest.param(
            f"[pools.a]\nlease_ms = 0x{'f' * 9_000}",
            "pools.a.lease_ms = 'something too large to be shown': expected a whole number",
            id="a number without end",
        ),
        pytest.param(
            "[pools.a]\nsession_concurrency = -1",
            "pools.a.session_concurrency = -1: expected a whole number from 0",
            id="no limit below 0",
        ),
        pytest.param("[pools.a]\nfallback = 'b'", "pools.a.fallback = 'b': expected a list of texts", id="no list"),
        pytest.param("[pools.a]\ntenants = [1]", "pools.a.tenants = [1]: expected a list of texts", id="a number"),
        pytest.param(
            "[pools.a]\ntenants = ['x', 'x']", "pools.a.tenants = ['x', 'x']: expected each of them once", id="twice"
        ),
        pytest.param(
            "[pools.a]\ntenants = ['x y']", "pools.a.tenants = 'x y': expected 1 to 64 visible ASCII", id="tenant"
        ),
        pytest.param(
            "[pools.a.match]\npairs = ['en']", "pools.a.match.pairs = 'en': expected source:target", id="pair"
        ),
        pytest.param(
            "[pools.a.match]\npairs = ['en:zh:de']", "pools.a.match.pairs = 'en:zh:de': expected source:target", id="3"
        ),
        pytest.param(
            "[pools.a.match]\npairs = ['en:']", "pools.a.match.pairs = 'en:': tgt_lang = '': expected", id="half"
        ),
        pytest.param("[pools.a.match]\nfeatures = ['{']", "pools.a.match.features = '{': expected", id="feature"),
        pytest.param(
            "[pools.a.match]\nlabels = { zone = 1 }", "pools.a.match.labels.zone = 1: expected text", id="label"
        ),
        pytest.param("[pools.a.match]\nlabels = ['eu']", "pools.a.match.labels = ['eu']: expected a table", id="list"),
        pytest.param("[pools]\na = { match = 5 }", "pools.a.match = 5: expected a table", id="no rule"),
        pytest.param(
            '[pools.a]\ndescription = "a\\nb"',
            r"pools.a.description = 'a\nb': expected text in one line of at most 500 characters",
            id="two lines",
        ),
        pytest.param(
            '[pools.a]\ndescription = "a\\u001b[2J"', "pools.a.description = 'a\\x1b[2J': expected text", id="control"
        ),
        pytest.param(
            "[pools.a]\nlease_ms = 1999",
            "pools.a.lease_ms = 1999: expected at least 2000, twice margin_ms (1000)",
            id="a lease that is shorter than two margins",
        ),
        pytest.param(
            "[pools.a]\nstart_ms = 1", "pools.a.start_ms = 1: expected at least 2000, twice margin_ms", id="start"
        ),
        pytest.param(
            "[pools.gold]\n[pools.a]\nfallback = ['gald']",
            "pools.a.fallback = 'gald': expected a pool that is configured or that a node names; the nearest is gold",
            id="unknown fallback",
        ),
        pytest.param(
            "[pools.a]\nfallback = ['a']",
            "pools.a.fallback = ['a']: expected no cycle: a -> a",
            id="falls back to itself",
        ),
        pytest.param(
            "[pools.c]\nfallback = ['default', 'a']\n[pools.a]\nfallback = ['b']\n[pools.b]\nfallback = ['c']",
            "pools.a.fallback = ['b']: expected no cycle: a -> b -> c -> a",
            id="cycle",
        ),
        pytest.param(
            "[pools.a]\nfallback = ['default']\n[pools.default]\nfallback = ['a']",
            "pools.a.fallback = ['default']: expected no cycle: a -> default -> a",
            id="cycle with the default pool",
        ),
        pytest.param(
            "[pools.a]\ntenants = ['x']\n[pools.b]\ntenants = ['y', 'x']",
            "pools.b.tenants = 'x': expected a tenant that no other pool claims; pool a does",
            id="claimed twice",
        ),
        pytest.param(
            "[pools.a]\ntenants = ['x']\n[pools.a.match]\ntenants = ['y']",
            "pools.a.tenants = 'x': expected one of match.tenants, who alone may use this pool",
            id="prefers what it may not use",
        ),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(text: str, problem: str) -> None:
    """The key, the value, what was expected and, of a word that is unknown, the nearest known one."""
    assert refusal(text).startswith(problem)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"tenants": [f"t{number}" for number in range(NAMES_MAX + 1)]}, "'1001 of them': expected at most 1000"),
        ({"match": {"labels": {f"l{n}": "" for n in range(NAMES_MAX + 1)}}}, "'1001 of them': expected at most 1000"),
        ({"fallback": [f"p{number}" for number in range(17)]}, "'17 of them': expected at most 16"),
        ({"description": "a" * 501}, "aaa...': expected text in one line of at most 500 characters"),
        ({"description": "\ud800"}, "expected text in one line"),
        ({"k" * 9_000: 1}, "expected a known key"),
    ],
)
def test_everything_has_a_bound(said: dict[str, Any], problem: str) -> None:
    """And no refusal is longer than a few lines."""
    with pytest.raises(InvalidInput) as refused:
        parse("a", said)
    assert problem in str(refused.value)
    assert len(str(refused.value)) < 400


def test_there_are_not_too_many_pools() -> None:
    """In a file, and in all."""
    many = {f"p{number}": PoolDocument() for number in range(POOLS_MAX)}
    assert len(applied(many, {"p0": PoolDocument(candidates=1)}, [], DEFAULTS)) == POOLS_MAX
    with pytest.raises(InvalidConfig, match="at most 1000 pools in all"):
        applied(many, {"one more": PoolDocument()}, [], DEFAULTS)
    with pytest.raises(InvalidConfig, match="at most 1000"):
        parse_file({"pools": {f"p{number}": {} for number in range(POOLS_MAX + 1)}})


# ---- one set -------------------------------------------------------------------------------------------------------


def test_pools_that_the_file_does_not_name_stay() -> None:
    """The named ones are replaced as a whole."""
    stored = {"a": PoolDocument(candidates=2, lease_ms=9_000), "b": PoolDocument()}
    assert applied(stored, {"a": PoolDocument(candidates=3), "c": PoolDocument()}, [], DEFAULTS) == {
        "a": PoolDocument(candidates=3), "b": PoolDocument(), "c": PoolDocument(),
    }  # fmt: skip


def test_a_file_is_checked_against_what_is_stored() -> None:
    """A cycle, and a tenant that is claimed twice, can come of two files; the later one is to blame."""
    stored = {"a": PoolDocument(fallback=("b",), tenants=("x",)), "b": PoolDocument()}
    assert "pools.b.fallback = ['a']: expected no cycle: b -> a -> b" in refusal("[pools.b]\nfallback = ['a']", stored)
    stored = {"b": PoolDocument(tenants=("x",))}
    assert "pools.a.tenants = 'x': expected a tenant that no other pool claims; pool b does" in refusal(
        "[pools.a]\ntenants = ['x']", stored
    )


def test_pools_that_nodes_name_and_the_default_one_can_be_fallen_back_to() -> None:
    """Nobody has to configure them."""
    said = {"a": PoolDocument(fallback=("fast", DEFAULT_POOL))}
    assert applied({}, said, ["fast"], DEFAULTS) == said
    with pytest.raises(InvalidConfig, match="nearest is default"):
        applied({}, said, [], DEFAULTS)


def test_what_is_in_force_is_not_held_against_a_change() -> None:
    """The nodes of a fallback pool may be gone for a moment, and another leader may have longer margins."""
    stored = {"a": PoolDocument(fallback=("fast",), lease_ms=2_000)}
    settings = msgspec.structs.replace(DEFAULTS, margin_ms=1_500)
    assert set(applied(stored, {"b": PoolDocument()}, [], settings)) == {"a", "b"}
    assert applied(stored, {"a": PoolDocument(fallback=("fast",))}, [], settings)


def test_a_pool_that_another_one_falls_back_to_is_not_removed() -> None:
    """The others are named; the default pool is there all the same, so it can be."""
    stored = {
        "a": PoolDocument(fallback=("c", DEFAULT_POOL)),
        "b": PoolDocument(fallback=("c",)),
        "c": PoolDocument(),
        DEFAULT_POOL: PoolDocument(candidates=2),
    }
    with pytest.raises(InvalidInput, match="pool 'c' cannot be removed: a, b would fall back to nothing"):
        removed(stored, "c")
    assert set(removed(stored, "a")) == {"b", "c", DEFAULT_POOL}
    assert set(removed(stored, DEFAULT_POOL)) == {"a", "b", "c"}
    assert removed(stored, "unknown") == stored
