"""Documents, heartbeats and snapshots: what is understood, what is refused and why, and that nothing is lost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.errors import InvalidInput
from scheduler.protocol.documents import (
    Beat,
    DispatcherBeat,
    JobDocument,
    NodeBeat,
    ReaperBeat,
    boot_order,
    check_boot,
    decode_beat,
    decode_job,
    encode_beat,
    encode_job,
)
from scheduler.protocol.snapshot import Node, Pool, Snapshot, decode_snapshot, encode_snapshot

JOB: dict[str, Any] = {"session_id": "s1", "src_lang": "en", "tgt_lang": "zh"}
BEAT: dict[str, Any] = {"kind": "node", "node": "n1", "boot": "1735689600000000-a1", "capacity": 4}

words = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="{}:~"), min_size=1, max_size=35
)
pairs = st.tuples(words, words)
features = st.lists(words, max_size=5).map(tuple)
jobs = st.builds(
    lambda pair, job: msgspec.structs.replace(job, src_lang=pair[0], tgt_lang=pair[1]),
    st.just(("", "")) | pairs,
    st.builds(
        JobDocument,
        session_id=words,
        job_id=st.just("") | words,
        tenant_id=st.just("") | words,
        routing_key=st.just("") | words,
        features=features,
        priority=st.integers(-(2**31), 2**31),
        deadline_ms=st.none() | st.integers(1, 2**40),
        reply_to=st.just("") | words,
    ),
)
node_beats = st.builds(
    NodeBeat,
    node=words,
    boot=st.integers(0, 10**16 - 1).map(lambda number: f"{number}-x"),
    capacity=st.integers(0, 1_000),
    pairs=st.lists(pairs, max_size=3).map(tuple),
    features=features,
    labels=st.dictionaries(words, st.text(max_size=5), max_size=2),
    pool=st.just("") | words,
    version=st.text(max_size=5),
    draining=st.booleans(),
    healthy=st.booleans(),
    running=st.integers(0, 1_000),
)
nodes = st.builds(
    Node,
    words,
    words,
    st.integers(1, 100),
    words,
    st.lists(pairs, max_size=2).map(tuple),
    features,
    st.dictionaries(words, words, max_size=2),
    words,
    st.booleans(),
)
pools = st.builds(Pool, words, st.sampled_from(["affinity", "spread", "least_loaded"]), st.lists(words).map(tuple))


# ---- jobs --------------------------------------------------------------------------------------------------


@given(jobs)
def test_a_job_document_survives_json_and_msgpack(job: JobDocument) -> None:
    """Both are told apart by the first byte."""
    assert (decode_job(encode_job(job)), decode_job(msgspec.msgpack.encode(job))) == (job, job)


def test_a_person_can_type_a_job() -> None:
    """JSON with white space before it, a single field, and fields of a later version."""
    assert decode_job(b' \r\n\t{ "session_id" : "s1", "from_the_future": [1, 2] }') == JobDocument("s1")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"session_id": ""}, "session_id = ''", id="no session"),
        pytest.param({"session_id": "a b"}, "session_id = 'a b'", id="a space in a session"),
        pytest.param(
            {"session_id": 5}, "Expected `str`, got `int` - at `$.session_id`", id="a session of a wrong type"
        ),
        pytest.param({"job_id": "~1"}, "job_id = '~1': expected not to start with ~", id="a generated id"),
        pytest.param({"job_id": "{x}"}, "job_id = '{x}'", id="braces"),
        pytest.param(
            {"tgt_lang": ""},
            "src_lang = 'en', tgt_lang = '': expected both languages, or none of them",
            id="one language only",
        ),
        pytest.param({"src_lang": ""}, "src_lang = '', tgt_lang = 'zh': expected both", id="the other language only"),
        pytest.param({"src_lang": "e:n"}, "src_lang = 'e:n'", id="a colon in a language"),
        pytest.param({"src_lang": "e" * 36}, "expected 1 to 35 visible", id="a language that is too long"),
        pytest.param({"tenant_id": "a b"}, "tenant_id = 'a b'", id="tenant"),
        pytest.param({"reply_to": "x" * 65}, "reply_to = ", id="reply stream"),
        pytest.param({"routing_key": "a b"}, "routing_key = 'a b'", id="routing key"),
        pytest.param({"features": ["a b"]}, "feature = 'a b'", id="feature"),
        pytest.param({"features": ["x"] * 33}, "features: 33 of them: expected at most 32", id="too many features"),
        pytest.param(
            {"features": "gpu"}, "Expected `array`, got `str` - at `$.features`", id="features of a wrong type"
        ),
        pytest.param({"priority": 1.5}, "Expected `int`, got `float` - at `$.priority`", id="half a priority"),
        pytest.param({"deadline_ms": 0}, "deadline_ms = 0: expected milliseconds above 0", id="a deadline of nothing"),
        pytest.param({"deadline_ms": -5}, "deadline_ms = -5", id="a deadline before now"),
    ],
)
def test_a_bad_job_is_refused_with_its_field(changed: dict[str, Any], message: str) -> None:
    """In JSON and in msgpack alike."""
    document = JOB | changed
    for encoded in (msgspec.json.encode(document), msgspec.msgpack.encode(document)):
        with pytest.raises(InvalidInput) as refused:
            decode_job(encoded)
        assert message in str(refused.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "job is empty: expected a JSON or msgpack object", id="nothing"),
        pytest.param(b"{", "job is no valid JSON document", id="half a document"),
        pytest.param(b"{}", "job (JSON): Object missing required field `session_id`", id="an empty document"),
        pytest.param(b'{"session_id": "\xff"}', "job is no valid JSON document", id="no UTF-8"),
        pytest.param(b"hello", "job (msgpack): Expected `object`, got `int`", id="a word"),
        pytest.param(b"\xc1\x00", "job is no valid msgpack document", id="noise"),
        pytest.param(b"[1]", "job (msgpack): Expected `object`, got `int`", id="a list"),
    ],
)
def test_what_is_no_document_is_refused(data: bytes, message: str) -> None:
    """The message says which kind of document it was taken for."""
    with pytest.raises(InvalidInput) as refused:
        decode_job(data)
    assert message in str(refused.value)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"{" + data))
def test_noise_raises_nothing_else(data: bytes) -> None:
    """Bad input harms nobody: it is a job or it is refused."""
    for decode in (decode_job, decode_beat, decode_snapshot):
        try:
            decode(data)
        except InvalidInput:
            continue


# ---- heartbeats --------------------------------------------------------------------------------------------


@given(
    node_beats
    | st.builds(DispatcherBeat, words, words, st.dictionaries(words, st.integers(0, 9)), st.integers(0, 2**50))
    | st.builds(ReaperBeat, words, words, st.dictionaries(words, st.integers(0, 9)))
)
def test_a_heartbeat_survives_json_and_msgpack(beat: Beat) -> None:
    """Each kind of it."""
    assert (decode_beat(encode_beat(beat)), decode_beat(msgspec.msgpack.encode(beat))) == (beat, beat)


def test_a_heartbeat_without_a_kind_is_a_nodes_only_if_it_says_so() -> None:
    """The kind is part of the contract."""
    with pytest.raises(InvalidInput, match="kind"):
        decode_beat(msgspec.json.encode({name: value for name, value in BEAT.items() if name != "kind"}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        pytest.param({"kind": "cat"}, "Invalid value 'cat' - at `$.kind`", id="no such kind"),
        pytest.param({"node": ""}, "node = ''", id="no name"),
        pytest.param({"boot": "soon-x"}, "boot = 'soon-x': expected <server time in us>-<random>", id="no number"),
        pytest.param({"boot": "17"}, "boot = '17'", id="no random part"),
        pytest.param(
            {"capacity": -1}, "capacity = -1: expected a number of slots from 0 to 1000000", id="negative capacity"
        ),
        pytest.param(
            {"capacity": 1_000_001},
            "capacity = 1000001: expected a number of slots from 0 to 1000000",
            id="more slots than a node can have",
        ),
        pytest.param({"pairs": [["en"]]}, "$.pairs[0]", id="half a pair"),
        pytest.param({"pairs": [["en", "z:h"]]}, "tgt_lang = 'z:h'", id="a colon in a language"),
        pytest.param({"features": ["a b"]}, "feature = 'a b'", id="feature"),
        pytest.param({"pool": "a b"}, "pool = 'a b'", id="pool"),
    ],
)
def test_a_bad_heartbeat_is_refused_with_its_field(changed: dict[str, Any], message: str) -> None:
    """So that it can be counted and logged."""
    with pytest.raises(InvalidInput) as refused:
        decode_beat(msgspec.json.encode(BEAT | changed))
    assert message in str(refused.value)


@pytest.mark.parametrize("boot", ["", "-x", "1-", "x-1", "1.5-x", "-1-x", "²-x", "1-a b", "12345678901234567-x"])
def test_a_boot_that_is_not_ordered_is_refused(boot: str) -> None:
    """Its number must be one that Lua compares exactly."""
    with pytest.raises(InvalidInput, match="boot = "):
        check_boot(boot)


def test_boots_are_ordered_by_their_number() -> None:
    """Not as text, and not by what follows."""
    assert boot_order("999-z") < boot_order("1000-a") == boot_order("1000-b")


# ---- snapshots ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.builds(Snapshot, st.integers(0, 2**53), st.lists(nodes, max_size=3).map(tuple), st.lists(pools).map(tuple)))
def test_a_snapshot_survives(snapshot: Snapshot) -> None:
    """With everything that placement reads."""
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


def test_a_snapshot_of_a_later_version_is_read() -> None:
    """Unknown fields are passed over, at every level."""
    stored = {
        "version": 7,
        "nodes": [{"id": "n1", "boot": "1-a", "slots": 2, "pool": "p", "zone": "eu"}],
        "pools": [{"id": "p", "colour": "red"}],
        "epoch": 3,
    }
    assert decode_snapshot(msgspec.msgpack.encode(stored)) == Snapshot(7, (Node("n1", "1-a", 2, "p"),), (Pool("p"),))
