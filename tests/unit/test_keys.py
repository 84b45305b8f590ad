"""Names of keys, what may stand in them, and which partition a session has."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.errors import InvalidInput
from scheduler.protocol.keys import CellKeys, ControlKeys, cell_of, check_id, check_name, generated_job_id, partition_of


def test_the_keys_of_the_control_plane_share_a_tag() -> None:
    """Their names are a contract with every language."""
    assert vars(ControlKeys("ns")) == {
        "layout": "{ns}:layout",
        "heartbeats": "{ns}:heartbeats",
        "commands": "{ns}:commands",
        "answers": "{ns}:answers",
        "config": "{ns}:config",
        "snapshot": "{ns}:snapshot",
        "version": "{ns}:version",
        "deltas": "{ns}:deltas",
        "leader": "{ns}:leader",
        "dispatchers": "{ns}:dispatchers",
    }


def test_the_keys_of_a_cell_share_a_tag() -> None:
    """So that each script touches one slot of a Cluster."""
    cell = CellKeys("ns", 2)
    assert {name: value for name, value in vars(cell).items() if not name.startswith("_")} == {
        "cell": 2,
        "partitions": "{ns:2}:partitions",
        "owners": "{ns:2}:owners",
        "capacity": "{ns:2}:capacity",
        "last_boot": "{ns:2}:last_boot",
        "control_ids": "{ns:2}:control_ids",
        "leader_epoch": "{ns:2}:leader_epoch",
        "open": "{ns:2}:open",
        "counted": "{ns:2}:counted",
        "freed": "{ns:2}:freed",
        "results": "{ns:2}:results",
        "delayed": "{ns:2}:delayed",
        "parked": "{ns:2}:parked",
        "dead": "{ns:2}:dead",
    }
    assert [
        cell.jobs(3),
        cell.slots("n1"),
        cell.inbox("n1"),
        cell.left("n1"),
        cell.job("j1"),
        cell.result("j1"),
        cell.session("s1"),
        cell.held("tenant", "t1"),
        cell.replies("r1"),
        cell.replies(""),
    ] == [
        "{ns:2}:jobs:3",
        "{ns:2}:slots:n1",
        "{ns:2}:inbox:n1",
        "{ns:2}:left:n1",
        "{ns:2}:job:j1",
        "{ns:2}:result:j1",
        "{ns:2}:session:s1",
        "{ns:2}:held:tenant:t1",
        "{ns:2}:results:r1",
        "{ns:2}:results",
    ]


@pytest.mark.parametrize("namespace", ["", "a b", "{a}", "a" * 65])
def test_a_namespace_that_would_break_the_tag_is_refused(namespace: str) -> None:
    """In both planes."""
    with pytest.raises(InvalidInput, match="namespace = "):
        ControlKeys(namespace)
    with pytest.raises(InvalidInput, match="namespace = "):
        CellKeys(namespace)


@pytest.mark.parametrize(
    "value",
    ["", " ", "a b", "a\tb", "a\nb", "a\n", "\x00", "{", "}", "a{b}", "\x7f", "é", "日本", "a" * 129],
)
def test_an_id_is_visible_ascii_without_spaces_and_braces(value: str) -> None:
    """The refusal names the thing and what was expected, and does not repeat a long value."""
    with pytest.raises(InvalidInput, match=r"^session_id = .*: expected 1 to 128 visible ASCII characters") as refused:
        check_id("session_id", value)
    assert len(str(refused.value)) < 200


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="{}"), min_size=1, max_size=64))
def test_every_other_id_is_taken_as_it_is(value: str) -> None:
    """As an id and, up to 64 characters, as a name."""
    assert (check_id("job_id", value), check_name("node", value)) == (value, value)


def test_a_name_is_shorter_than_an_id() -> None:
    """Names of nodes, tenants, pools and reply streams have 64 characters at most."""
    assert check_id("job_id", "a" * 128) == "a" * 128
    with pytest.raises(InvalidInput, match="expected 1 to 64 visible"):
        check_name("node", "a" * 65)


def test_the_partition_of_a_session_is_the_same_in_every_language() -> None:
    """crc32 over UTF-8; with one cell its remainder."""
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert partition_of("123456789", 16) == 0xCBF43926 % 16
    assert {session: partition_of(session, 16) for session in ("s1", "call-42", "Zoë")} == {
        "s1": zlib.crc32(b"s1") % 16,
        "call-42": zlib.crc32(b"call-42") % 16,
        "Zoë": zlib.crc32(b"Zo\xc3\xab") % 16,
    }


@given(st.text(), st.sampled_from([(1, 1), (16, 1), (16, 4), (64, 16), (12, 3), (8, 8)]))
def test_a_session_lives_in_the_cell_of_its_checksum(session: str, layout: tuple[int, int]) -> None:
    """Whatever the number of partitions: more of them do not move it to another cell."""
    partitions, cells = layout
    partition = partition_of(session, partitions, cells)
    assert 0 <= partition < partitions
    assert cell_of(partition, cells) == zlib.crc32(session.encode()) % cells


def test_every_partition_of_every_cell_is_used() -> None:
    """Sessions spread over all of them, about evenly."""
    counts = [0] * 16
    for i in range(16_000):
        counts[partition_of(f"s{i}", 16, 4)] += 1
    assert min(counts) > 800
    assert max(counts) < 1_200


def test_a_generated_id_names_its_entry() -> None:
    """It is unique, and starts with what no document may use."""
    assert generated_job_id(0, 3, "17-0") == "~0-3-17-0"
