"""Text from elsewhere, as it is shown and logged."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import JobFailed, NotAccepted, Reject, ServerUnavailable
from scheduler.store.log_lines import keep_visible
from scheduler.visible import is_hidden, visible, visible_json, visible_lines

ENCODINGS = ("ascii", "latin-1", "cp1252", "utf-8", "koi8-r", "gb2312")
ANY = st.text(st.characters(exclude_categories=[]))  # halves of characters too
EVIL = "\x1b[2J\r\n\t\x00\x7f\x9b31m\u202e\u2028\u200b\ufeff"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain, 你好 and e\u0301", "plain, 你好 and e\u0301"),
        ("\x1b[2J\x9b31m\x07\x00\x7f", r"\x1b[2J\x9b31m\x07\x00\x7f"),
        ("two\nlines\r\n\t", r"two\nlines\r\n\t"),
        ("\u202eevil\u2066\u200b\u2028\ufeff", r"\u202eevil\u2066\u200b\u2028\ufeff"),
        ("\ud800\U000e0041", r"\ud800\U000e0041"),
        ("می\u200cروم", "می\u200cروم"),
        ("\N{IDEOGRAPHIC SPACE}", "\N{IDEOGRAPHIC SPACE}"),
    ],
)
def test_what_would_act_is_written_out(text: str, seen: str) -> None:
    """Letters of every language stay."""
    assert visible(text) == seen


def test_what_an_encoding_lacks_is_written_out() -> None:
    """In the same way."""
    assert [visible("é你\n", encoding) for encoding in ("ascii", "latin-1", "utf-8")] == [
        r"\xe9\u4f60\n",
        r"é\u4f60\n",
        r"é你\n",
    ]


@given(ANY, st.sampled_from(ENCODINGS))
def test_every_text_can_be_shown(text: str, encoding: str) -> None:
    """On one line, in every encoding, and nothing happens when it is done again."""
    seen = visible(text, encoding)
    assert seen.encode(encoding).decode(encoding) == seen
    assert not any(map(is_hidden, seen))
    assert visible(seen, encoding) == seen
    assert visible_lines(text, encoding).split("\n") == [visible(line, encoding) for line in text.split("\n")]


@given(st.dictionaries(st.text(), st.text()), st.sampled_from(ENCODINGS), st.sampled_from([None, 2]))
def test_every_document_says_the_same_afterwards(value: dict[str, str], encoding: str, indent: int | None) -> None:
    """A program reads from it what was meant, whatever the encoding."""
    seen = visible_json(json.dumps(value, ensure_ascii=False, indent=indent), encoding)
    assert json.loads(seen.encode(encoding).decode(encoding)) == value
    assert not any(is_hidden(each) for each in seen if each != "\n")


def test_errors_can_be_shown() -> None:
    """Those that say what a server or a handler said; what a handler says is stored as it is."""
    for error in (JobFailed("j", "dead", "why", EVIL), NotAccepted("j", "invalid", EVIL), ServerUnavailable(EVIL)):
        assert not any(is_hidden(each) for each in str(error) if each != "\n")
    assert str(Reject(EVIL)) == EVIL


def test_our_records_can_be_shown_wherever_they_go(caplog: pytest.LogCaptureFixture) -> None:
    """Also in a program that logs in a way of its own; other records are left alone."""
    logger = logging.getLogger("scheduler.node")
    keep_visible()
    try:
        raise ValueError(EVIL)
    except ValueError:
        logger.exception("job %s of %d", EVIL, 7)
    logging.getLogger("theirs").warning("%s", "\x1b[1m")
    ours, theirs = caplog.records
    text = logging.Formatter().format(ours)
    assert not any(is_hidden(each) for each in text if each != "\n")
    assert text.splitlines()[0] == f"job {visible(EVIL)} of 7"
    assert f"ValueError: {visible_lines(EVIL)}" in text
    assert theirs.getMessage() == "\x1b[1m"


def test_a_record_with_wrong_arguments_passes() -> None:
    """Its handler says what is wrong with it; the caller goes on."""
    keep_visible()
    logger = logging.getLogger("scheduler.node")
    assert logger.filter(logger.makeRecord("scheduler.node", logging.INFO, "f", 1, "%d", ("no number",), None))
