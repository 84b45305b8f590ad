"""An intake entry becomes a job, or a refusal with a reason that a person understands."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.config import DEFAULTS
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.messages import Entry, Head, RejectItem
from scheduler.runtime.intake import BODY_BYTES_MAX, Job, by_own_clock, decode, refuse_head, refuse_job
from tests.unit.arrange import a_job

CELL = 2
SMALL = msgspec.structs.replace(DEFAULTS, payload_bytes_max=10, document_bytes_max=100)
FULL: dict[str, Any] = {
    "session_id": "s1",
    "job_id": "j1",
    "src_lang": "en",
    "tgt_lang": "zh",
    "tenant_id": "t1",
    "routing_key": "r1",
    "features": ["gpu", "asr", "gpu"],
    "priority": 7,
    "deadline_ms": 500,
    "reply_to": "back",
}


def entry(document: dict[str, Any] | bytes | None, **fields: bytes) -> Entry:
    """An entry of partition 3, written at 1000 ms."""
    body = document if isinstance(document, bytes) or document is None else msgspec.json.encode(document)
    named = {name.encode(): value for name, value in fields.items()}
    return Entry(3, 9, "1000-5", ({} if body is None else {b"job": body}) | named)


def refusal(
    reason: str,
    detail: str,
    job_id: str = "~2-3-1000-5",
    size_bytes: int = 0,
    session_id: str = "",
    tenant_id: str = "",
    reply_to: str = "",
) -> RejectItem:
    """A refusal of that entry."""
    return RejectItem(3, 9, "1000-5", job_id, session_id, tenant_id, reply_to, reason, detail, size_bytes)


def test_a_full_document() -> None:
    """Features are sorted and each counts once, so that equal needs make one class; the deadline is an instant."""
    assert decode(entry(FULL, payload=b"audio"), CELL, DEFAULTS) == Job(
        partition=3,
        epoch=9,
        entry_id="1000-5",
        job_id="j1",
        document=msgspec.convert(FULL, JobDocument),
        features=("asr", "gpu"),
        routing_key="r1",
        deadline_at_ms=1_500,
        avoid="",
        body=(msgspec.json.encode(FULL), b"audio"),
    )


def test_the_smallest_document() -> None:
    """The id is made of the entry, and the session is the routing key."""
    assert decode(entry({"session_id": "s1"}), CELL, DEFAULTS) == Job(
        3, 9, "1000-5", "~2-3-1000-5", JobDocument("s1"), (), "s1", None, "", (b'{"session_id":"s1"}', b"")
    )


@pytest.mark.parametrize(
    ("document", "fields", "expected"),
    [
        pytest.param({}, {}, {"job_id": "~2-3-1000-5", "routing_key": "s1"}, id="nothing more"),
        pytest.param({"tenant_id": "t1"}, {}, {"routing_key": "t1"}, id="a tenant's sessions go together"),
        pytest.param(
            {"tenant_id": "t1", "routing_key": "r1"}, {}, {"routing_key": "r1"}, id="unless it says where they go"
        ),
        pytest.param({"job_id": "j1"}, {"job_id": b"j2"}, {"job_id": "j2"}, id="a script's word on the id counts"),
        pytest.param({}, {"job_id": b"~0-1-7-0"}, {"job_id": "~0-1-7-0"}, id="a generated id comes back with a retry"),
        pytest.param({}, {"avoid": b"n1"}, {"avoid": "n1"}, id="the node that it failed on"),
        pytest.param(
            {"deadline_ms": 500},
            {"submitted_ms": b"400"},
            {"deadline_at_ms": 900},
            id="a retry keeps the deadline of its first submission",
        ),
        pytest.param(
            {"deadline_ms": 500},
            {"submitted_ms": b"5000"},
            {"deadline_at_ms": 1_500},
            id="nobody submits in the future",
        ),
        pytest.param(
            {"deadline_ms": 500}, {"submitted_ms": b"soon"}, {"deadline_at_ms": 1_500}, id="or at no time at all"
        ),
        pytest.param(
            {"deadline_ms": 500},
            {"submitted_ms": b"9" * 5_000},
            {"deadline_at_ms": 1_500},
            id="or at one of more digits than can be read",
        ),
    ],
)
def test_what_the_fields_beside_the_document_mean(
    document: dict[str, Any], fields: dict[str, bytes], expected: dict[str, Any]
) -> None:
    """Scripts write them when they send a job back."""
    job = decode(entry({"session_id": "s1"} | document, **fields), CELL, DEFAULTS)
    assert isinstance(job, Job)
    assert {name: getattr(job, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            entry({"session_id": "s1"}, payload=b"x" * 11),
            refusal("too_large", "payload of 11 bytes: expected at most 10", size_bytes=40, session_id="s1"),
            id="payload",
        ),
        pytest.param(
            entry({"session_id": "s1", "job_id": "mine", "tenant_id": "t", "reply_to": "r"}, payload=b"x" * 11),
            refusal(
                "too_large",
                "payload of 11 bytes: expected at most 10",
                "mine",
                size_bytes=87,
                session_id="s1",
                tenant_id="t",
                reply_to="r",
            ),
            id="payload, as the job that its document names",
        ),
        pytest.param(
            entry({"session_id": "s1", "job_id": "~mine"}, payload=b"x" * 11),
            refusal("too_large", "payload of 11 bytes: expected at most 10", size_bytes=57),
            id="payload, of a job whose document is none",
        ),
        pytest.param(
            entry(b'{"session_id": "s1", "job_id" : "mine", "x": "' + b"y" * 100),
            refusal(
                "too_large",
                "job document of 146 bytes: expected at most 100; it says session_id = 's1', job_id = 'mine'",
                size_bytes=149,
            ),
            id="document that is not decoded, with what can be read of it",
        ),
        pytest.param(
            entry(b"{" + b" " * 100),
            refusal("too_large", "job document of 101 bytes: expected at most 100", size_bytes=104),
            id="document, before it is decoded",
        ),
        pytest.param(
            entry({"session_id": "s1"}, what=b"x" * 16_378),
            refusal(
                "too_large", "other fields of 16385 bytes: expected at most 16384", size_bytes=16_404, session_id="s1"
            ),
            id="all else, with the names",
        ),
        pytest.param(
            entry(None, jobs=b"", payload=b""),
            refusal(
                "invalid",
                "the entry has no field `job` (it has: jobs, payload): expected a JSON or msgpack object",
            ),
            id="no document",
        ),
        pytest.param(
            entry({"session_id": ""}),
            refusal("invalid", "session_id = '': expected 1 to 128 visible ASCII characters without spaces and braces"),
            id="a bad field",
        ),
        pytest.param(
            entry({"session_id": ""}, job_id=b"j1"),
            refusal(
                "invalid",
                "session_id = '': expected 1 to 128 visible ASCII characters without spaces and braces",
                job_id="j1",
            ),
            id="a script's word on the id counts here too",
        ),
        pytest.param(
            entry({"session_id": "s1"}, job_id=b"a b"),
            refusal(
                "invalid",
                "field job_id = 'a b': expected 1 to 128 visible ASCII characters without spaces and braces",
            ),
            id="an id that cannot stand in a key",
        ),
    ],
)
def test_refusals(given: Entry, expected: RejectItem) -> None:
    """The reason in one word, and what was expected; without a trusted document it ends under an id of its own."""
    assert decode(given, CELL, SMALL) == expected


def test_an_entry_at_its_limits_is_taken() -> None:
    """Limits are the largest that is allowed."""
    body = b'{"session_id":"s1"}'.ljust(100)
    assert isinstance(decode(entry(body, payload=b"x" * 10, what=b"x" * 16_370), CELL, SMALL), Job)


def test_an_entry_that_is_known_by_its_head_is_refused_as_if_it_had_been_read() -> None:
    """Under the id that a script gave it, with what is above its limit."""
    head = Head("1000-5", {b"job_id": b"j1"}, 20, 11, 99)
    assert refuse_head(entry(None, job_id=b"j1"), head, CELL, SMALL) == refusal(
        "too_large", "payload of 11 bytes: expected at most 10", "j1", size_bytes=130
    )


@pytest.mark.parametrize("above", [0, 1])
def test_a_small_body_is_kept_with_its_job(above: int) -> None:
    """Document and payload together count; what is larger is read by the script."""
    document = b'{"session_id":"s1"}'
    payload = b"x" * (BODY_BYTES_MAX - len(document) + above)
    job = decode(entry(document, payload=payload), CELL, DEFAULTS)
    assert isinstance(job, Job)
    assert job.body == (None if above else (document, payload))


def test_a_refused_job_keeps_its_names() -> None:
    """Its producer gets the answer; a long detail is cut."""
    job = a_job("j1", "s1")
    assert refuse_job(job, "expired", "x" * 900) == RejectItem(0, 1, "j1-0", "j1", "s1", "", "", "expired", "x" * 500)
    assert refuse_job(job, "job_id_taken", "why", "~0-0-1").job_id == "~0-0-1"


@given(
    st.dictionaries(
        st.sampled_from([b"job", b"payload", b"job_id", b"avoid", b"submitted_ms"]) | st.binary(max_size=4),
        st.binary(max_size=30),
    )
)
def test_any_entry_becomes_a_job_or_a_refusal(fields: dict[bytes, bytes]) -> None:
    """Never an exception: the next entry goes on."""
    assert isinstance(decode(Entry(3, 9, "1000-5", fields), CELL, SMALL), Job | RejectItem)


@pytest.mark.parametrize(
    ("server_ms", "expected_ms"),
    [
        pytest.param(1_000, 77_500, id="it was submitted just now"),
        pytest.param(1_200, 77_300, id="or a while ago"),
        pytest.param(9_000, 69_500, id="or too long ago"),
        pytest.param(400, 77_500, id="or in the future, which was now"),
    ],
)
def test_a_deadline_by_the_own_clock(server_ms: int, expected_ms: int) -> None:
    """The entry is of 1,000 and has 500 ms; 77,000 by the own clock is now."""
    read = entry({"session_id": "s1", "deadline_ms": 500})
    job = decode(read, CELL, DEFAULTS)
    assert isinstance(job, Job)
    assert by_own_clock(job, read, server_ms, 77_000.0).deadline_at_ms == expected_ms


def test_without_a_deadline_there_is_none() -> None:
    """Nothing is asked, and nothing changes."""
    read = entry({"session_id": "s1"})
    job = decode(read, CELL, DEFAULTS)
    assert isinstance(job, Job)
    assert by_own_clock(job, read, 1_000, 77_000.0) is job


def test_a_deadline_of_any_number_is_far_away() -> None:
    """A number that no clock can be added to harms nobody."""
    read = entry({"session_id": "s1", "deadline_ms": 10**400})
    job = decode(read, CELL, DEFAULTS)
    assert isinstance(job, Job)
    assert by_own_clock(job, read, 1_000, 77_000.0).deadline_at_ms == 77_000 + 10**12
