"""What holds for every script: its header, the keys it touches, and who may write what."""

from __future__ import annotations

import re
from typing import Any, Final

import pytest

from scheduler.protocol import keys
from scheduler.store.scripts import SCRIPT_NAMES, load_scripts, script_directory
from scheduler.store.store import Store
from tests.lua.scenario import RUNS

SOURCES: Final = {name: script.source for name, script in load_scripts().items()}
LABELS: Final = ("KEYS", "ARGV", "RETURNS", "INVARIANT")
# Commands that scripts use: those that read, and those that write; where the keys stand, if not as the first argument.
READS: Final = {
    "EXISTS", "GET", "HGET", "HGETALL", "HMGET", "XLEN", "XRANGE", "ZCARD", "ZRANGE", "ZSCORE", "TIME",
    "HEXISTS", "HKEYS", "HLEN", "PTTL", "XINFO", "XREVRANGE", "ZRANGEBYSCORE", "TYPE", "GETRANGE", "XPENDING",
}  # fmt: skip
WRITES: Final = {
    "DEL", "HDEL", "HSET", "PEXPIRE", "SADD", "SET", "SREM", "XACK", "XADD", "XDEL", "XGROUP", "XREADGROUP", "ZADD",
    "XTRIM", "ZREM", "ZREMRANGEBYSCORE", "XSETID", "UNLINK", "RENAME", "PERSIST", "XAUTOCLAIM",
}  # fmt: skip

READ_ONLY: Final = {"last_ids", "parked", "read", "unslotted"}

every_script = pytest.mark.parametrize("name", SCRIPT_NAMES)


def header(name: str) -> list[str]:
    """The comment lines at the top of a script, without the first line and without their dashes."""
    lines = SOURCES[name].splitlines()[1:]
    top = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    return [line.removeprefix("--").strip() for line in lines[:top]]


def code(name: str) -> str:
    """A script without its comments."""
    return "\n".join(line for line in SOURCES[name].splitlines() if not line.lstrip().startswith(("--", "#!")))


def answer_words(name: str) -> set[str]:
    """The answer words that a header names, from its RETURNS line to its INVARIANT line."""
    text = "\n".join(header(name))
    return set(re.findall(r'"(\w+)[^"]*"', text[text.index("RETURNS") : text.index("INVARIANT")]))


def calls(name: str) -> list[tuple[str, str]]:
    """(command, its next argument as written) of each call of the server in a script."""
    return re.findall(r"redis\.p?call\('([A-Z]+)'(?:, ([^,()]+(?:\([^()]*\))?))?", code(name))


# ---- the header --------------------------------------------------------------------------------------------


def test_one_file_for_each_script() -> None:
    """Every file is a script that a method runs, and the other way round."""
    assert sorted(path.stem for path in script_directory().glob("*.lua")) == sorted(SCRIPT_NAMES)


@every_script
def test_rule_34_only_what_is_new_is_refused_when_memory_is_full(name: str) -> None:
    """The first line lets every script run without memory, except those that no ending waits for."""
    first = SOURCES[name].splitlines()[0]

    if name in ("submit", "describe"):
        assert first == "#!lua"
    else:
        assert first == f"#!lua flags={'no-writes,' if name in READ_ONLY else ''}allow-oom"


@every_script
def test_header_has_name_keys_arguments_answers_and_invariant(name: str) -> None:
    """The second line says what the script does; the others follow in one order."""
    lines = header(name)
    found = [label for line in lines for label in LABELS if re.match(rf"{label}\b", line)]

    assert re.match(rf"{name}: .+\.$", lines[0])
    assert list(dict.fromkeys(found)) == list(LABELS)


@every_script
def test_header_names_every_answer_of_the_source(name: str) -> None:
    """A word that the source answers with stands in the header; the transition table is no answer."""
    answering = re.sub(r"local TRANSITIONS = \{\n.*?\n\}\n", "", code(name), flags=re.DOTALL)
    spots = re.findall(r"(?:return|\] =) \{([^,}]+)", answering)
    words = {word for spot in spots for word in re.findall(r"'(\w+)'", spot)}

    assert words <= answer_words(name)


def test_header_names_just_the_answers_of_reserve() -> None:
    """They are texts, given by its last functions; what those before return are parts of a record."""
    answering = code("reserve").partition("local function answer_of")[2]
    words = set(re.findall(r"(?:return|wait\(session,|placed =) '(\w+)", answering))

    assert words == answer_words("reserve")


@every_script
def test_header_numbers_its_keys_from_one(name: str) -> None:
    """The numbers of the declared keys have no gap: each is the one after, or begins a list."""
    numbers = [int(number) for number in re.findall(r"KEYS\[(\d+)", "\n".join(header(name)))]

    assert numbers == list(range(1, len(numbers) + 1))


# ---- keys --------------------------------------------------------------------------------------------------


@every_script
def test_no_key_is_built_in_lua(name: str) -> None:
    """The key of each command is a name or an index, never put together; no namespace stands in a source."""
    assert "{sched" not in code(name)
    for command, key in calls(name):
        assert command in READS | WRITES
        assert command == "TIME" or re.fullmatch(
            r"(job\.)?(\w+_)?key|KEYS\[.+\]|'(GROUP|CREATE|DESTROY|STREAM|GROUPS)'", key
        ), key


async def served(store: Store) -> list[tuple[str, list[str], list[list[str]]]]:
    """Run everything under MONITOR: (script, its keys, the commands that it issued) of each call."""
    names = {script.sha: script.name for script in load_scripts().values()}
    found: list[tuple[str, list[str], list[list[str]]]] = []
    async with store.connection.commands.monitor() as monitor:
        for run in RUNS.values():
            await store.connection.commands.flushall()
            await run(store)
        await store.connection.commands.echo("end")
        async for seen in monitor.listen():
            words = seen["command"].split(" ")
            if seen["client_type"] == "lua":
                found[-1][2].append(words)
            elif words[0] == "EVALSHA":
                found.append((names[words[1]], words[3 : 3 + int(words[2])], []))
            elif words[0] == "ECHO":
                break
    return found


def keys_of(words: list[str]) -> list[str]:
    """The keys of a command."""
    if words[0] == "TIME":
        return []
    if words[0] in ("DEL", "RENAME"):
        return words[1:]
    if words[0] == "XREADGROUP":
        return [words[words.index("STREAMS") + 1]]
    return [words[2] if words[0] in ("XGROUP", "XINFO") else words[1]]


async def test_scripts_touch_no_key_that_they_were_not_given(store: Store) -> None:
    """Each command of a script names keys of its own call, and each script is seen to issue some."""
    seen = await served(store)

    strays = [
        (name, words)
        for name, given, commands in seen
        for words in commands
        if words[0] not in READS | WRITES or not set(keys_of(words)) <= set(given)
    ]
    assert strays == []
    assert {name for name, _, commands in seen if any(words[0] != "TIME" for words in commands)} == set(SCRIPT_NAMES)


async def test_keys_of_a_call_share_one_slot(store: Store) -> None:
    """All keys of a call have the same hash tag, so that each script is atomic on a cluster too."""
    seen = await served(store)

    tags = [{key[: key.index("}") + 1] for key in given} for _, given, _ in seen]
    assert {len(found) for found in tags} == {1}


async def test_only_the_management_scripts_write_snapshot_version_and_capacity(store: Store) -> None:
    """Who was seen to write each key of the management domain."""
    seen = await served(store)
    control, cell = keys.ControlKeys(), keys.CellKeys()

    def writers(key: str) -> set[str]:
        return {
            name for name, _, commands in seen for words in commands if words[0] in WRITES and key in keys_of(words)
        }

    assert {key: writers(key) for key in (control.snapshot, control.version, control.config)} == {
        control.snapshot: {"publish"},
        control.version: {"publish"},
        control.config: {"publish"},
    }
    assert writers(cell.capacity) == {"capacity", "leave"}
    assert writers(cell.control_ids) == {"capacity"}
    assert writers(cell.leader_epoch) == {"capacity", "count"}
    assert writers(cell.counted) == {"count"}
    assert writers(cell.owners) == {"claim"}
    assert writers(control.leader) == {"lead"}


def test_only_the_management_scripts_can_write_snapshot_version_and_capacity() -> None:
    """The same from the sources: no other script has such a command at all."""
    writers = {
        key: {name for name in SCRIPT_NAMES for command, given in calls(name) if command in WRITES and given == key}
        for key in ("snapshot_key", "version_key", "config_key", "capacity_key")
    }

    assert writers == {
        "snapshot_key": {"publish"},
        "version_key": {"publish"},
        "config_key": {"publish"},
        "capacity_key": {"capacity", "leave"},
    }


# ---- answers -----------------------------------------------------------------------------------------------


def words_of(answer: list[Any]) -> set[str]:
    """What could be an answer word: the first of each text in an answer, and of each list in it."""
    firsts = [each[0] if isinstance(each, list) and each else each for each in answer]
    return {each.decode().partition(" ")[0] for each in firsts if isinstance(each, bytes)}


@every_script
async def test_every_answer_of_the_header_is_given(store: Store, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of the script gives every word that its header names, and no word beside them."""
    given: set[str] = set()
    call = store.connection.call_once

    async def record(client: Any, script: str, key_names: Any, arguments: Any, life: str = "") -> list[Any]:
        answer = await call(client, script, key_names, arguments, life)
        if script == name:
            given.update(words_of(answer))
        return answer

    monkeypatch.setattr(store.connection, "call_once", record)
    await RUNS[name](store)

    assert answer_words(name) <= given
    spelled = {word for word in given if re.fullmatch(r"[a-z_]{4,}", word)}
    assert spelled - answer_words(name) <= {"partitions", "cells", "protocol", "retention_ms", "dead_retention_ms"}
