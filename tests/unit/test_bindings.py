"""What a session is bound to: its stored form, and the bounded memory of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.session.bindings import HIT_SCORE_MAX, Binding, Bindings, parse, prefix

ZH = Binding("a", "en", "zh", "n1")
TTL_MS = 1_000

words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="{}:"), min_size=1)
pairs = st.just(("", "")) | st.tuples(words, words)


@given(words, pairs, words, words)
def test_what_reserve_stores_is_read_again(pool: str, pair: tuple[str, str], node: str, variant: str) -> None:
    """The script appends node and variant to the part that the dispatcher gives it."""
    stored = f"{prefix(pool, *pair)} {node} {variant}".encode()
    assert parse(stored) == Binding(pool, *pair, node, variant)


@pytest.mark.parametrize(
    "stored", [None, b"", b"a en:zh n1", b"a en:zh n1 - more", b"a enzh n1 -", b"a en:zh:x n1 -", b"\xff\xfe"]
)
def test_what_is_none_of_ours_is_no_binding(stored: bytes | None) -> None:
    """A session without a binding is placed afresh; a strange value harms nobody."""
    assert parse(stored) is None


@pytest.mark.parametrize(
    ("pair", "fits"),
    [
        (("en", "zh"), True),
        (("auto", "zh"), True),
        (("en", "de"), False),
        (("auto", "de"), False),
        (("zh", "en"), False),
        (("", ""), False),
    ],
)
def test_another_pair_does_not_fit(pair: tuple[str, str], fits: bool) -> None:
    """A session that changes its languages is bound anew."""
    assert ZH.fits(*pair) is fits


def test_a_session_of_any_source_fits_each_one() -> None:
    """Its first jobs did not say which; another target is another pair all the same."""
    unknown = Binding("a", "auto", "zh", "n1")
    assert [unknown.fits(*pair) for pair in (("en", "zh"), ("auto", "zh"), ("en", "de"))] == [True, True, False]


def test_whether_sessions_are_likely_bound_is_what_most_of_the_last_ones_were() -> None:
    """Those of long ago are outweighed; of a balance nothing is expected."""
    known = Bindings(10, TTL_MS)
    seen = []
    for is_stored, times in ((True, 1), (False, 1), (True, 9 * HIT_SCORE_MAX), (False, HIT_SCORE_MAX - 1), (False, 1)):
        for _ in range(times):
            known.record_lookup(is_stored)
        seen.append(known.should_prefetch)
    assert seen == [True, False, True, True, False]


def test_what_was_written_is_fresh_for_half_of_its_life() -> None:
    """Then it is written again, so that the stored one never ends under a live session."""
    known = Bindings(10, TTL_MS)
    known.wrote("s1", ZH, 100.0)
    assert [known.get("s1", now_ms) for now_ms in (100.0, 599.0, 600.0)] == [(ZH, True), (ZH, True), (ZH, False)]


def test_what_was_read_is_believed_and_written_again() -> None:
    """Nobody knows how old it is."""
    known = Bindings(10, TTL_MS)
    known.learn("s1", ZH)
    assert known.get("s1", 0.0) == (ZH, False)


def test_that_there_is_no_binding_is_remembered_too() -> None:
    """So that a new session is asked for once."""
    known = Bindings(10, TTL_MS)
    known.learn("s1", None)
    assert ("s1" in known, known.get("s1", 0.0), "s2" in known, known.get("s2", 0.0)) == (
        True,
        (None, False),
        False,
        (None, False),
    )


def test_the_longest_unused_session_is_forgotten_first() -> None:
    """Reading counts as use; the memory never grows above its bound."""
    known = Bindings(3, TTL_MS)
    for session in ("s1", "s2", "s3"):
        known.learn(session, ZH)
    known.get("s1", 0.0)
    known.wrote("s4", ZH, 0.0)
    assert (sorted(known.sessions()), len(known)) == (["s1", "s3", "s4"], 3)


def test_sessions_of_a_lost_partition_are_forgotten() -> None:
    """Unknown ones are passed over."""
    known = Bindings(10, TTL_MS)
    for session in ("s1", "s2", "s3"):
        known.learn(session, ZH)
    known.forget(["s1", "s3", "s9"])
    assert known.sessions() == ["s2"]
    known.clear()
    assert known.sessions() == []
