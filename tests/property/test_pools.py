"""Configurations of any kind: what is read, what is refused, and where nodes are."""

from __future__ import annotations

import contextlib
import itertools
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.config import DEFAULTS
from scheduler.errors import InvalidInput
from scheduler.management import fleet, pools
from scheduler.management.commands import decide
from scheduler.management.pools import DEFAULT_POOL, Documents, PoolDocument
from scheduler.protocol import messages
from scheduler.protocol.documents import NodeBeat
from scheduler.protocol.snapshot import STRATEGIES, Match
from tests.unit.arrange import EN_DE, EN_ZH, picture

letters = st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="{}")
ids = st.text(letters, min_size=1, max_size=8)
texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20)
languages = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=3)
numbers = st.integers(2_000, 10**12)


def different(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """A few values, each once."""
    return st.lists(values, max_size=4, unique=True).map(tuple)


matches = st.builds(
    Match,
    labels=st.dictionaries(texts, texts, max_size=3),
    pairs=different(st.tuples(languages, languages)),
    features=different(ids),
    tenants=different(ids),
)
said: dict[str, st.SearchStrategy[Any]] = {
    "description": texts,
    "strategy": st.sampled_from(list(STRATEGIES)),
    "pressure": st.sampled_from(["stay", "return"]),
    "fallback": different(ids),
    "tenants": different(ids),
    "candidates": st.integers(1, 16),
    "session_concurrency": st.integers(0, 9),
    "tenant_concurrency": st.integers(0, 9),
    **dict.fromkeys(
        ["start_ms", "lease_ms", "run_ms_max", "attempts_max", "crashes_max", "backoff_ms", "backoff_ms_max"], numbers
    ),
    "match": matches,
}
documents = st.fixed_dictionaries({}, optional=said).map(lambda fields: PoolDocument(**fields))
configurations = st.dictionaries(ids, documents, min_size=1, max_size=4)

# What a file or a command may say instead: known keys and others, with values of any type.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | ids,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
rules = st.dictionaries(st.sampled_from(Match.__struct_fields__) | st.text(max_size=9), anything, max_size=4)
tables = st.dictionaries(
    st.sampled_from([field for field in PoolDocument.__struct_fields__ if field != "match"]) | st.text(max_size=9),
    anything | st.lists(ids) | st.integers(0, 9_000),
    max_size=5,
)
wild = st.builds(lambda table, rule: table | ({"match": rule} if rule else {}), tables, rules)
files = st.dictionaries(
    st.sampled_from(["pools", "pools", "pool"]), st.dictionaries(st.text(max_size=9) | ids, wild | anything, max_size=4)
)


@settings(deadline=None)
@given(configurations)
def test_what_is_shown_is_read_as_the_same(configured: Documents) -> None:
    """As a file, with and without what was not said, and as it is stored."""
    completed = {name: pools.complete(name, document, DEFAULTS) for name, document in configured.items()}
    assert pools.parse_file(tomllib.loads(pools.to_toml(configured))) == configured
    assert pools.parse_file(tomllib.loads(pools.to_toml(configured, completed))) == configured
    stored = {pools.stored_field(name): pools.encode(document) for name, document in configured.items()}
    assert pools.read(stored) == (configured, [])


@settings(deadline=None)
@given(files, configurations, st.lists(ids, max_size=2))
def test_a_file_is_good_or_is_refused_with_a_reason(file: dict[str, Any], stored: Documents, live: list[str]) -> None:
    """Nothing else is ever raised, and what is good can be shown."""
    with contextlib.suppress(InvalidInput):
        parsed = pools.parse_file(file)
        assert pools.parse_file(tomllib.loads(pools.to_toml(parsed))) == parsed
        assert set(pools.applied(stored, parsed, live, DEFAULTS)) == {*stored, *parsed}


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30) | st.text(max_size=30).map(str.encode), max_size=3), configurations)
def test_every_command_is_answered(entries: list[bytes], stored: Documents) -> None:
    """Whatever it is; what cannot be read changes nothing."""
    asked = [messages.Command(f"{number}-0", {b"command": entry}) for number, entry in enumerate(entries)]
    decided = decide(stored, asked, {}, DEFAULTS)
    assert [command for command, _ in decided.answers] == [each.id for each in asked]
    assert (decided.documents, decided.changes) == (stored, {})


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.sampled_from("abcd"), unique=True, max_size=2).map(tuple)))
def test_a_set_without_a_cycle_is_accepted_and_one_with_a_cycle_is_not(falls: dict[str, tuple[str, ...]]) -> None:
    """A cycle is a pool from which one comes back to it."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        ahead = list(falls.get(name, ()))
        while ahead:
            if (each := ahead.pop()) not in seen:
                seen.add(each)
                ahead += falls.get(each, ())
        return seen

    configured = {name: PoolDocument(fallback=fallback) for name, fallback in falls.items()}
    refused = ""
    try:
        pools.applied({}, configured, "abcd", DEFAULTS)
    except InvalidInput as error:
        refused = str(error)
    assert bool(refused) == any(name in reached(name) for name in falls)
    if refused:
        names = refused.split("no cycle: ")[1].split(" -> ")
        assert names[0] == names[-1]
        assert all(later in falls[name] for name, later in itertools.pairwise(names))


# ---- where nodes are -----------------------------------------------------------------------------------------------

few = st.sampled_from(["eu", "us"])
node_rules = st.builds(
    Match,
    labels=st.dictionaries(st.sampled_from(["zone", "rack"]), few, max_size=2),
    pairs=st.sampled_from([(), (EN_ZH,), (EN_ZH, EN_DE), (("auto", "de"),)]),
    features=st.sampled_from([(), ("asr",)]),
)
ruled = st.dictionaries(
    st.sampled_from(["a", "b", "c", DEFAULT_POOL]), node_rules.map(lambda match: PoolDocument(match=match))
)
beats = st.builds(
    lambda number, labels, pairs, features, pool: NodeBeat(f"n{number}", "1-x", 2, pairs, features, labels, pool),
    st.integers(0, 4),
    st.dictionaries(st.sampled_from(["zone", "rack"]), few, max_size=2),
    st.sampled_from([(), (EN_ZH,), (EN_ZH, EN_DE)]),
    st.sampled_from([(), ("asr",)]),
    st.sampled_from(["", "", "a", "z"]),
)
fleets = st.lists(beats, max_size=6).map(lambda heard: fleet.fold(fleet.Fleet(), [(beat, 1) for beat in heard])[0])


@settings(deadline=None)
@given(fleets, ruled, ruled)
def test_where_a_node_is_depends_on_the_rules_in_force_alone(
    known_fleet: fleet.Fleet, before: Documents, after: Documents
) -> None:
    """Not on those before, not on whether it joined before or after them, and not on a take-over in between."""
    joined_later, _ = fleet.fold(
        fleet.configure(fleet.Fleet(), after), [(known.beat, known.heard_ms) for known in known_fleet.nodes.values()]
    )
    moved = fleet.configure(fleet.configure(known_fleet, before), after)
    assert (moved.nodes, moved.pools) == (joined_later.nodes, joined_later.pools)
    stored = picture(fleet.configure(known_fleet, before), 5, DEFAULTS)
    written = {name: fleet.capacity_of(known) for name, known in known_fleet.nodes.items()}
    taken_over = fleet.configure(fleet.recover(stored, written, 1), after)
    assert picture(taken_over, 6, DEFAULTS) == picture(moved, 6, DEFAULTS)
    for known in moved.nodes.values():
        assert known.pool in ({known.beat.pool} if known.beat.pool else {DEFAULT_POOL, *after})
