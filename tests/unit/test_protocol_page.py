"""docs/PROTOCOL.md names everything that a client in another language meets: scripts, keys, fields, words, numbers.

What the golden files show of the server must be on the page too, so that a new field cannot be forgotten there.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import zlib
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from scheduler.config import CANDIDATES_MAX, DEFAULTS, NUMBER_MAX
from scheduler.management import pools
from scheduler.management.commands import COMMAND_BYTES_MAX, Accepted
from scheduler.management.pools import PoolDocument
from scheduler.protocol import keys, messages
from scheduler.protocol.documents import (
    _FEATURES_MAX,
    _LANGUAGE_LENGTH_MAX,
    CAPACITY_MAX,
    DispatcherBeat,
    JobDocument,
    NodeBeat,
    ReaperBeat,
)
from scheduler.protocol.keys import CellKeys, ControlKeys
from scheduler.protocol.lifecycle import TRANSITIONS, Verdict
from scheduler.protocol.snapshot import Delta, Match, Node, Pool, Reason, Snapshot
from scheduler.store import meanings
from scheduler.store.control import COMMANDS_MAX
from scheduler.store.scripts import SCRIPT_NAMES, load_scripts

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = "\n".join(
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("PROTOCOL.md", "PROTOCOL_MANAGEMENT.md")
)
GOLDEN: Final = ROOT / "tests" / "golden"


def section(title: str) -> str:
    """What stands below a heading, down to the next one of the same level or a higher one."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,4}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {title!r}"
    return found[2]


def chapter(title: str) -> str:
    """A section of the second level with all that is below it."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no chapter {title!r}"
    return found[1]


def quoted(text: str) -> set[str]:
    """What stands in backquotes."""
    return set(re.findall(r"`([^`\n]+)`", text))


def header(name: str) -> dict[str, str]:
    """The parts of a script's header by their label: KEYS, ARGV, RETURNS, INVARIANT."""
    lines = load_scripts()[name].source.splitlines()[2:]
    comment = "\n".join(line[2:] for line in lines[: next(i for i, line in enumerate(lines) if line[:2] != "--")])
    keys_part, _, rest = comment.partition("ARGV")
    arguments, _, rest = rest.partition("RETURNS")
    answers, _, _ = rest.partition("INVARIANT")
    return {"KEYS": keys_part, "ARGV": arguments, "RETURNS": answers}


def golden(name: str) -> Any:
    """A golden file."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def field_names(value: Any) -> set[str]:
    """The fields of entries or records that are kept by name."""
    return {field for each in value.values() for field in each}


# ---- scripts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_each_script_has_a_section_with_its_keys_and_answers(name: str) -> None:
    """Every key pattern and every answer word of the header stands in the script's own section."""
    text, told = section(f"`{name}`"), header(name)

    patterns = set(re.findall(r"\{(?:cell|sched)\}:[\w:<>]+", told["KEYS"]))
    words = set(re.findall(r'"(\w[^"]*)"', told["RETURNS"]))
    assert patterns - quoted(text) == set()
    assert {word for word in words if f'"{word}"' not in text} == set()
    assert patterns or name == "layout"


@pytest.mark.parametrize("name", sorted(set(SCRIPT_NAMES) - {"reserve", "last_ids"}))
def test_each_argument_of_a_header_is_in_its_section(name: str) -> None:
    """By its name; the page leaves those of `reserve` to its header, and `last_ids` has none."""
    text = re.sub(r"\(.*?\)", "", header(name)["ARGV"].replace("\n", " "))
    pieces = {piece.strip() for piece in re.split(r"ARGV\[[^]]*\]|[,:;|]|  +|\[\d.]+\]", text)}
    names = {piece for piece in pieces if re.fullmatch(r"[a-z][a-z_]+", piece)}

    assert names
    assert {each for each in names if not re.search(rf"\b{each}\b", section(f"`{name}`"))} == set()


def test_no_section_tells_of_a_script_that_is_gone() -> None:
    """The headings that are names of scripts are those of all scripts."""
    assert set(re.findall(r"^###+ `(\w+)`$", PAGE, re.MULTILINE)) == set(SCRIPT_NAMES)


def test_the_values_that_a_client_passes_are_the_defaults() -> None:
    """Those of the settings."""
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|$", section("Scripts"), re.MULTILINE)

    assert rows
    assert {name: int(value) for name, value in rows} == {name: getattr(DEFAULTS, name) for name, _ in rows}


# ---- keys, fields, words ---------------------------------------------------------------------------------------------


def patterns() -> set[str]:
    """Every key of keys.py, with its parts as placeholders."""
    cell = CellKeys(cell="<cell>")  # type: ignore[arg-type]
    built = {value for plane in (ControlKeys(), cell) for name, value in vars(plane).items() if name[0] != "_"}
    for name, method in inspect.getmembers(cell, inspect.ismethod):
        if not name.startswith("_"):
            built.add(method(*(f"<{parameter}>" for parameter in inspect.signature(method).parameters)))
    return {key for key in built if key.startswith("{")}


def test_every_key_is_on_the_page() -> None:
    """One row each in the table of keys."""
    rows = re.findall(r"^\| `(\{sched[^`]+)` \|", section("Keys"), re.MULTILINE)

    assert sorted(rows) == sorted(patterns())


@pytest.mark.parametrize(
    ("struct", "title"),
    [
        (JobDocument, "Jobs"),
        (NodeBeat, "Heartbeats"),
        (DispatcherBeat, "Heartbeats"),
        (ReaperBeat, "Heartbeats"),
        (Snapshot, "Snapshot"),
        (Delta, "Snapshot"),
        (Node, "Snapshot"),
        (Pool, "Snapshot"),
        (Match, "Snapshot"),
        (Match, "Pools"),
        (PoolDocument, "Pools"),
        (Accepted, "Commands"),
        (messages.Layout, "First: the layout"),
    ],
)
def test_every_field_of_a_document_is_on_the_page(struct: type[msgspec.Struct], title: str) -> None:
    """In the section of that document."""
    assert {field.name for field in msgspec.structs.fields(struct)} - quoted(section(title)) == set()


def test_every_field_that_the_server_showed_is_on_the_page() -> None:
    """Fields of entries and records, in the section that tells of them."""
    words, inbox = {"boot", "drained", "resumed"}, golden("inbox")
    assignments = {name: fields for name, fields in inbox.items() if name not in words}
    assert field_names(golden("intake")) <= quoted(section("Intake"))
    assert field_names(assignments) <= quoted(section("Assignments"))
    assert field_names({name: inbox[name] for name in words}) | words <= quoted(section("Control messages"))
    assert field_names(golden("outcomes")) <= quoted(section("Outcomes"))
    assert field_names(golden("bodies")) <= quoted(section("Dead and parked"))
    assert field_names(golden("records")) <= quoted(section("Records"))
    others = field_names(dict(enumerate(golden("heartbeats") + golden("others")["freed"])))
    assert others <= quoted(section("Others"))
    assert set(golden("others")["leader"]) <= quoted(section("Keys"))
    commands = golden("commands")
    assert field_names(dict(enumerate(commands["commands"] + commands["answers"]))) <= quoted(section("Others"))
    asked = [json.loads(entry["command"]) for entry in commands["commands"]]
    answered = [json.loads(entry["answer"].replace("<us>", "0")) for entry in commands["answers"]]
    assert field_names(dict(enumerate(asked + answered))) <= quoted(section("Commands"))
    assert {command["kind"] for command in asked} <= quoted(section("Commands"))


def test_every_state_and_verdict_is_on_the_page() -> None:
    """States in the records, verdicts in the section of release."""
    assert {row.state for row in TRANSITIONS} - {"none"} <= quoted(section("Records"))
    assert set(Verdict.__args__) <= quoted(section("`release`"))  # type: ignore[attr-defined]
    assert set(Reason.__args__) <= quoted(section("Keys"))  # type: ignore[attr-defined]


def test_every_reason_of_a_refusal_is_on_the_page() -> None:
    """What the scripts themselves give, and what dispatchers say in `refuse` and `refuse_job`."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "scheduler" / "runtime").rglob("*.py"))]
    given = {word for text in texts for word in reasons_of(text)}

    assert {"invalid", "too_large", "expired", "no_compatible_node", "job_id_taken"} <= given
    assert given - quoted(section("Outcomes")) == set()
    assert {"attempts_exhausted", "body_lost"} <= quoted(section("Outcomes"))


def reasons_of(source: str) -> set[str]:
    """The words that stand as the reason of a refusal."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            place = {"refuse": 2, "refuse_job": 1}.get(name)
            if place is not None and len(node.args) > place and isinstance(node.args[place], ast.Constant):
                found.add(str(node.args[place].value))  # type: ignore[attr-defined]
    return found


def test_every_temporary_error_is_on_the_page() -> None:
    """Those that the SDK waits out."""
    codes = {row.begins.partition(" ")[0] for row in meanings.TABLE if row.meaning in ("later", "unfit", "denied")}
    assert codes - {"ERR"} <= quoted(section("Errors and repeats"))


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    """Sizes, lengths and times that a client has to keep."""
    documents = chapter("Documents") + chapter("Documents of the scheduler")
    node, ids = chapter("A node"), chapter("Ids, partitions, time")
    assert f"at most {DEFAULTS.document_bytes_max:,} bytes" in documents
    assert f"any {DEFAULTS.payload_bytes_max:,} bytes at most" in documents
    assert f"{_FEATURES_MAX} at most" in documents
    assert f"0 to {CAPACITY_MAX:,}" in documents
    assert f"1 to {CANDIDATES_MAX} |" in documents
    assert f"list of pools, {pools.FALLBACK_MAX} at most" in documents
    assert f"{pools.DESCRIPTION_LENGTH_MAX} characters at most" in documents
    assert f"numbers go up to {NUMBER_MAX:,}, lists" in documents
    assert f"have {pools.NAMES_MAX} entries at most" in documents
    assert f"[pool](#pools), {pools.POOLS_MAX} at most" in documents
    assert f"at most {COMMAND_BYTES_MAX:,} bytes; fields" in documents
    assert f"those without an answer, {COMMANDS_MAX} at most |" in chapter("Keys")
    assert f"| 1 to {keys.ID_LENGTH_MAX} |" in ids
    assert f"| 1 to {keys.NAME_LENGTH_MAX} |" in ids
    assert f"| 1 to {_LANGUAGE_LENGTH_MAX} |" in ids
    assert f"`margin_ms` is {DEFAULTS.margin_ms} unless" in node
    assert f"silent for {DEFAULTS.silence_ms // 1000} s" in node
    assert f"(`lease_ms`, {DEFAULTS.lease_ms // 1000} s)" in node
    assert f"short ({DEFAULTS.start_ms // 1000} s)" in node
    assert f"up to {DEFAULTS.batch_max} together" in node
    assert f"`delay_ms`: {DEFAULTS.backoff_ms}, doubled with each `attempt`, up to {DEFAULTS.backoff_ms_max:,}" in node
    assert f"last {DEFAULTS.results_max:,} outcomes" in chapter("A producer")
    assert f"above {DEFAULTS.result_inline_bytes_max} bytes" in chapter("A producer")
    assert f"Protocol: **{keys.PROTOCOL}**." in PAGE


# ---- vectors and links -----------------------------------------------------------------------------------------------


def test_the_vectors_of_the_partition_are_right() -> None:
    """Checksums by zlib, partitions by the code and by the formula of the page."""
    text = section("Ids, partitions, time")
    layouts = [(int(p), int(c)) for p, c in re.findall(r"P (\d+), C (\d+)", text)]
    rows = re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{8})` \|((?: \d+ \|)+)$", text, re.MULTILINE)

    assert len(layouts) == 3
    assert len(rows) >= 5
    for session, checksum, partitions in rows:
        keys.check_id("session_id", session)
        crc32 = zlib.crc32(session.encode())
        given = [int(partition) for partition in re.findall(r"\d+", partitions)]
        assert checksum == f"{crc32:08x}"
        assert given == [keys.partition_of(session, p, c) for p, c in layouts]
        assert given == [crc32 % c + c * (crc32 // c % (p // c)) for p, c in layouts]


def test_every_link_of_the_page_leads_somewhere() -> None:
    """To a heading of the page, or to a file."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            path, _, anchor = target.partition("#")
            assert (ROOT / "docs" / path).exists(), target
            assert not anchor or not path.startswith("PROTOCOL") or anchor in anchors, target
