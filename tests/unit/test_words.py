"""Fields that hold several words: what scripts write is read, what others wrote does no harm."""

from __future__ import annotations

import pytest

from scheduler.protocol.record_fields import (
    Holder,
    Policy,
    Reservation,
    entry_id_of,
    number_of,
    parse_holder,
    parse_policy,
    parse_reservation,
    policy_of,
    split_words,
)

ENDLESS = "9" * 5_000
POLICY = Policy("gpu/eu", 15_000, 3, 5, 3_600_000, 1_000, 60_000, 7)
RESERVATION = Reservation(7, "1000-a", 5_000, "3/1000-5", 2, 1, 900, 4_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("9" * 18, 10**18 - 1), ("9" * 19, None), (ENDLESS, None), ("7 ", None), ("-7", None), ("", None),
     (None, None)],
)  # fmt: skip
def test_a_number_of_a_record(text: str | None, expected: int | None) -> None:
    """Of at most so many digits as every reader takes."""
    assert number_of(text) == expected


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("5-0", True), ("1735689600000-12", True), (f"{'9' * 20}-1", False), ("5", False), ("5-0 ", False),
     (f"{ENDLESS}-1", False), ("", False), (None, False)],
)  # fmt: skip
def test_the_id_of_an_entry(text: str | None, is_one: bool) -> None:
    """Two numbers; one that the server would refuse is none."""
    assert entry_id_of(text) == (text if is_one else None)


@pytest.mark.parametrize("later", ["", " 8 more"])
def test_a_policy_is_read_whatever_a_later_version_adds(later: str) -> None:
    """An older reader survives a newer writer."""
    assert parse_policy("gpu/eu 15000 3 5 3600000 1000 60000 7" + later) == POLICY


def test_a_policy_of_an_earlier_version_has_the_words_that_it_has() -> None:
    """The others are 0."""
    assert policy_of("gpu/eu 15000") == Policy("gpu/eu", 15_000)


@pytest.mark.parametrize("text", [None, "gpu/eu soon", f"gpu/eu {ENDLESS}"])
def test_a_policy_that_no_script_has_written_says_nothing(text: str | None) -> None:
    """The next record can be read."""
    assert policy_of(text) == Policy()


@pytest.mark.parametrize("later", ["", " more words"])
def test_a_reservation_is_read_whatever_a_later_version_adds(later: str) -> None:
    """An older node runs what a newer dispatcher placed."""
    assert parse_reservation("7 1000-a 5000 3/1000-5 2 1 900 4000" + later) == RESERVATION


@pytest.mark.parametrize("text", ["", "7 1000-a 5000 3/1000-5 2 1", "x 1000-a 5000 3/1000-5 2 1 900 4000"])
def test_a_reservation_that_cannot_be_read_is_an_error(text: str) -> None:
    """Its node gives the entry no handler."""
    with pytest.raises(ValueError, match=r"reservation|invalid literal"):
        parse_reservation(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("n1 7", Holder("n1", 7)), ("7", None), ("n1 7 7", None), ("n1 seven", None), (f"n1 {ENDLESS}", None), ("", None),
     (None, None)],
)  # fmt: skip
def test_a_holder(text: str | None, expected: Holder | None) -> None:
    """A node and a token, or none."""
    assert parse_holder(text) == expected


def test_the_words_of_a_record_stand_beside_its_fields() -> None:
    """Those that it has."""
    record = {"state": "queued", "holder": "n1 7", "assignment": "1000-a 5-0", "last_ending": "7 retry"}
    words = {
        "node": "n1",
        "token": "7",
        "boot": "1000-a",
        "inbox_id": "5-0",
        "last_token": "7",
        "last_verdict": "retry",
    }
    assert split_words(record) == record | words
    assert split_words({"state": "queued", "holder": "junk"}) == {"state": "queued", "holder": "junk"}
