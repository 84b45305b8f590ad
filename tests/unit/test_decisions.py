"""Why a job is where it is: what the script writes, read again, and in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scheduler.session.decisions import WORDS, Decision, in_words, parse

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "decision", "words"),
    [
        ("stayed", Decision("stayed"), "its session is bound to that node"),
        (
            "full n1 8/8",
            Decision("full", "n1", 8, 8),
            "n1, where its session was bound, had no room (8 of 8 slots in use)",
        ),
        ("gone n1", Decision("gone", "n1"), "n1, where its session was bound, is gone"),
        (
            "new preferred n7 gone",
            Decision("new", note="n7 gone"),
            "its session was not bound to a node; node n7, which it asked for, is gone",
        ),
        (
            "avoid n1 3/8 preferred n7 unfit",
            Decision("avoid", "n1", 3, 8, "n7 unfit"),
            "an earlier attempt at it failed on n1 (3 of 8 slots in use); node n7, which it asked for, cannot serve it",
        ),
    ],
)
def test_a_decision_is_read_again(text: str, decision: Decision, words: str) -> None:
    """Its parts, and a sentence."""
    assert (parse(text), in_words(text)) == (decision, words)


@pytest.mark.parametrize("text", ["", "noise", "full n1 x/8", "full n1 8", "full n1 8/8 more"])
def test_what_is_none_of_ours_is_shown_as_it_is(text: str) -> None:
    """A later version may know more words."""
    assert (parse(text), in_words(text)) == (None, text)


def test_every_word_is_on_the_page_of_the_protocol() -> None:
    """And there are no others."""
    section = PAGE.partition("### Decisions")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)[^`]*` \|", section, re.MULTILINE)
    assert sorted(rows) == sorted(WORDS)
