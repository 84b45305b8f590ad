"""Heartbeats that say nothing new are not decoded again, and nobody is taken for another one."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.errors import InvalidInput
from scheduler.management import heartbeats as hearing_module
from scheduler.management.heartbeats import BOOT_MAX, HeartbeatDecoder, NotGiven, without_running
from scheduler.protocol.documents import DispatcherBeat, decode_beat, encode_beat
from tests.unit.arrange import a_beat

HEARD_MS = 5


def test_a_node_that_says_the_same_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs on it; the very same object is the answer."""
    hearing = HeartbeatDecoder()
    first = hearing.beat(encode_beat(a_beat(running=2)), HEARD_MS)
    monkeypatch.setattr(hearing_module, "decode_beat", None)
    again = [hearing.beat(encode_beat(a_beat(running=running)), HEARD_MS) for running in (0, 2, 17)]
    assert first == a_beat(running=2)
    assert [beat is first for beat in again] == [True] * 3


def test_what_a_node_says_anew_is_decoded() -> None:
    """And what it said before is forgotten."""
    hearing = HeartbeatDecoder()
    said = [a_beat(), a_beat(capacity=9), a_beat(draining=True), a_beat()]
    heard = [hearing.beat(encode_beat(beat), HEARD_MS) for beat in said]
    assert heard == said
    assert heard[0] is not heard[3]
    assert len(hearing._beats) == 1


def test_who_is_no_node_is_no_news() -> None:
    """Dispatchers and reapers beat into the same stream."""
    assert HeartbeatDecoder().beat(encode_beat(DispatcherBeat("d1", "b")), HEARD_MS) is None


@pytest.mark.parametrize("document", [b"", b"{", b"{}", b'{"kind":"node"}', b'{,"running":1}'])
def test_a_broken_heartbeat_is_refused_each_time(document: bytes) -> None:
    """It is not remembered for anything."""
    hearing = HeartbeatDecoder()
    for _ in range(2):
        with pytest.raises(InvalidInput):
            hearing.beat(document, HEARD_MS)


def test_a_boot_that_no_script_gave_is_refused() -> None:
    """It could never be replaced. One of the future is none: the clock went back."""
    hearing = HeartbeatDecoder()
    with pytest.raises(InvalidInput, match=r"expected a number that the script boot gave, below"):
        hearing.beat(encode_beat(a_beat(boot=f"{BOOT_MAX}-x")), HEARD_MS)
    assert hearing.beat(encode_beat(a_beat(boot=f"{BOOT_MAX - 1}-x")), HEARD_MS) is not None


def test_a_boot_that_no_clock_gives_is_heard_once_somebody_has_given_it() -> None:
    """Until then it is not remembered; from then on it is what the node said last."""
    hearing, beat = HeartbeatDecoder(), a_beat(boot="5001-x", running=3)
    hearing.boot_max = 5000
    for _ in range(2):
        with pytest.raises(NotGiven) as doubt:
            hearing.beat(encode_beat(beat), HEARD_MS)
    hearing.believe(encode_beat(beat), doubt.value.beat)
    assert hearing.beat(encode_beat(beat), HEARD_MS) is doubt.value.beat
    assert hearing.beat(encode_beat(a_beat(boot="5000-x")), HEARD_MS) is not None


def test_more_nodes_than_can_be_remembered_are_heard_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are decoded again."""
    monkeypatch.setattr(hearing_module, "NODES_MAX", 2)
    hearing = HeartbeatDecoder()
    for _ in range(2):
        for name in ("n1", "n2", "n3"):
            assert hearing.beat(encode_beat(a_beat(name)), HEARD_MS) == a_beat(name)
        assert len(hearing._beats) <= 2


@pytest.mark.parametrize(
    ("document", "left"),
    [
        (b'{"a":1,"running":3}', b'{"a":1}'),
        (b'{"a":1,"running":0}', b'{"a":1}'),
        (b'{"a":1}', b'{"a":1}'),
        (b'{"a":1,"running":03}', None),
        (b'{"a":1,"running":-3}', None),
        (b'{"a":1,"running":3.5}', None),
        (b'{"a":1,"running":1234567890}', None),
        (b'{"a":1,"running":3 }', None),
        (b'{"a":{"b":1,"running":3}}', None),
        (b'{"a":1,"running":3,"b":2}', None),
        (b'{"running":3}', None),
        (b' {"a":1,"running":3}', None),
        (b'\x81\xa1a\xad,"running":3}', None),
    ],
)
def test_only_the_last_field_of_the_whole_is_cut_off(document: bytes, left: bytes | None) -> None:
    """Anything else stays as it is."""
    assert without_running(document) == (document if left is None else left)


values: st.SearchStrategy[Any] = st.recursive(
    st.integers(0, 20) | st.sampled_from(["", "x", ',"running":3}', '"', "\\"]),
    lambda inner: st.dictionaries(st.sampled_from(["running", "a", ',"running":3}']), inner, max_size=3),
    max_leaves=6,
)
labels = st.dictionaries(st.sampled_from(["running", "zone"]), st.sampled_from(["3", ',"running":3}', "x"]))


@settings(deadline=None)
@given(
    labels=labels | values,
    running=st.none() | st.integers(0, 3) | st.just("3"),
    extra=values,
    is_extra_last=st.booleans(),
    packed=st.booleans(),
)
def test_documents_that_are_alike_decode_alike(
    labels: object, running: object, extra: object, is_extra_last: bool, packed: bool
) -> None:
    """What is left of a document is valid when the document is, and says all of it but `running`."""
    document: dict[str, object] = {"kind": "node", "node": "n1", "boot": "1-a", "capacity": 1, "labels": labels}
    parts = {"extra": extra}, ({} if running is None else {"running": running})
    for part in parts[::-1] if is_extra_last else parts:
        document |= part
    data = msgspec.msgpack.encode(document) if packed else json.dumps(document, separators=(",", ":")).encode()
    assert decoded(without_running(data)) == decoded(data)


def decoded(data: bytes) -> object:
    """What a document says but for `running`; None when it is not valid."""
    try:
        return msgspec.structs.replace(decode_beat(data), running=0)
    except InvalidInput:
        return None
