"""What is read of entries and records, whoever has written them."""

from __future__ import annotations

import pytest

from scheduler.store.reads import parse_outcome


@pytest.mark.parametrize("field", ["life", "token", "attempts", "submitted_ms", "ended_ms"])
@pytest.mark.parametrize("text", [b"9" * 5000, b"\xb2", b"-1", b"1.5", b""])
def test_a_number_of_an_outcome_that_is_none_stops_no_reader(field: str, text: bytes) -> None:
    """It counts as one that is not there."""
    assert parse_outcome({b"job_id": b"j1", field.encode(): text}) == parse_outcome({b"job_id": b"j1"})
