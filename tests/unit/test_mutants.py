"""The list of mutation tests: it fits the sources and names tests that exist; and how it is read and divided."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest
from click.testing import CliRunner
from lupa import lua51
from mutants.command import mutants as command
from mutants.listed import ROOT, InvalidList, Mutant, chosen, read_list
from mutants.run import Memory, key_of

LISTED: Final = read_list()
ONE: Final = Mutant(
    "lua/leave.lua", "local used =", "local used = 1 +", "A node leaves.", ("tests/lua/test_leave.py::test_x",)
)
ENTRY: Final = """
[[mutants]]
file = "lua/leave.lua"
text = '{text}'
replacement = '{replacement}'
why = "A node leaves."
noticed_by = [{noticed_by}]
"""


def functions(path: Path) -> Iterator[str]:
    """The tests of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name


def entry(text: str = "local used =", replacement: str = "local used = 1 +", noticed_by: str = "'seed 1'") -> str:
    """A list of one entry."""
    return ENTRY.format(text=text, replacement=replacement, noticed_by=noticed_by)


# ---- what is listed ----------------------------------------------------------------------------------------


def test_there_are_enough_changes_and_each_is_listed_once() -> None:
    """Of scripts and of pure files."""
    assert len(LISTED) >= 80
    assert len({(mutant.file, mutant.text, mutant.replacement) for mutant in LISTED}) == len(LISTED)
    assert {mutant.file.partition("/")[0] for mutant in LISTED} == {"lua", "scheduler"}


def test_every_change_says_why_it_would_be_wrong() -> None:
    """In a sentence."""
    assert [mutant.why for mutant in LISTED if not (mutant.why[:1].isupper() and mutant.why.endswith("."))] == []


def test_tests_that_are_named_exist() -> None:
    """A test that was renamed would notice nothing."""
    named = {test for mutant in LISTED for test in mutant.tests}
    there = {file: set(functions(ROOT / file)) for file in {test.partition("::")[0] for test in named}}
    missing = [
        test
        for test in sorted(named)
        if test.partition("::")[2].partition("[")[0] not in there[test.partition("::")[0]]
    ]
    assert missing == []


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in LISTED}))
def test_every_change_is_still_a_program(file: str) -> None:
    """One that cannot be read is noticed by any test."""
    source = (ROOT / file).read_text(encoding="utf-8")
    load = lua51.LuaRuntime().eval("function(source) local f, problem = loadstring(source) return problem end")
    for mutant in [mutant for mutant in LISTED if mutant.file == file]:
        changed = mutant.apply(source)
        if file.endswith(".lua"):
            assert load(changed.partition("\n")[2]) is None, mutant.text
        else:
            ast.parse(changed)


# ---- how it is read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(
            entry("no such text"), "text = 'no such text': expected once in the file, found 0 times", id="gone"
        ),
        pytest.param(entry("redis.call"), "text = 'redis.call': expected once in the file, found 9 times", id="often"),
        pytest.param(entry(replacement="local used ="), "expected another replacement", id="no change"),
        pytest.param(entry(noticed_by=""), "expected a test or a seed in noticed_by", id="noticed by no test"),
        pytest.param(entry() + "line = 7", "unknown field `line`", id="an unknown field"),
        pytest.param(entry().replace("leave.lua", "left.lua"), "lua/left.lua: No such file", id="no such file"),
        pytest.param("[[mutants", "Expected ']]'", id="no TOML"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    """With the file, the text, and what was expected."""
    path = tmp_path / "mutants.toml"
    path.write_text(text)
    with pytest.raises(InvalidList) as error:
        read_list(path)
    assert problem in str(error.value)


def test_the_place_of_a_change_is_its_first_line_that_is_another() -> None:
    """Lines before it tell it from others that are alike."""
    source = (ROOT / "lua/leave.lua").read_text(encoding="utf-8")
    number = source[: source.index("redis.call('DEL'")].count("\n")
    text = "redis.call('HDEL', capacity_key, node)\nredis.call('SREM', open_key, node)\n"
    mutant = msgspec.structs.replace(ONE, text=text, replacement=text.splitlines()[0] + "\n")
    assert mutant.place() == f"lua/leave.lua:{number}"


def test_parts_divide_what_was_chosen() -> None:
    """Each change is in one of them."""
    some = chosen(LISTED, ["lua/reserve", "lua/release"])
    parts = [chosen(LISTED, ["lua/reserve", "lua/release"], (number, 3)) for number in (1, 2, 3)]
    assert {mutant.file for mutant in some} == {"lua/reserve.lua", "lua/release.lua"}
    assert sorted(len(part) for part in parts) == sorted(len(some[start::3]) for start in range(3))
    assert {id(mutant) for part in parts for mutant in part} == {id(mutant) for mutant in some}


@pytest.mark.parametrize(
    "pattern", ["lua/leave.lua:4", "if is_held or", "A node that is gone", "test_leave.py::test_rule_21"]
)
def test_a_pattern_is_a_piece_of_anything(pattern: str) -> None:
    """Place, text, reason and test."""
    found = chosen(LISTED, [pattern])
    assert found != []
    assert {mutant.file for mutant in found} == {"lua/leave.lua"}


# ---- what is remembered ------------------------------------------------------------------------------------


def test_a_result_holds_while_change_file_and_tests_are_the_same(tmp_path: Path) -> None:
    """Another one is tried again."""
    for name, content in (("lua/leave.lua", "local used ="), ("tests/lua/test_leave.py", "def test_x(): ...")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(content)
    key = key_of(ONE, tmp_path)
    assert key == key_of(msgspec.structs.replace(ONE, why="Another reason."), tmp_path)
    keys = {
        key,
        key_of(ONE, tmp_path, changed=False),
        key_of(msgspec.structs.replace(ONE, replacement="used > 2"), tmp_path),
        key_of(msgspec.structs.replace(ONE, noticed_by=(*ONE.noticed_by, "seed 1")), tmp_path),
    }
    for name in ("lua/leave.lua", "tests/lua/test_leave.py"):
        (tmp_path / name).write_text("another text")
        keys.add(key_of(ONE, tmp_path))
    assert len(keys) == 6


def test_results_outlive_the_run_that_found_them(tmp_path: Path) -> None:
    """Also one that was killed while it wrote a line; until they are forgotten."""
    path = tmp_path / "cache" / "results.jsonl"
    Memory(path).add("one", "survived")
    Memory(path).add("one", "noticed")
    with path.open("a") as file:
        file.write('["two", "surv')
    assert [Memory(path).find(key) for key in ("one", "two")] == ["noticed", None]
    assert Memory(path, fresh=True).find("one") is None
    assert not path.exists()


# ---- the command -------------------------------------------------------------------------------------------


def test_what_would_be_changed_is_listed() -> None:
    """With the reason, and what notices it."""
    source = (ROOT / "lua/leave.lua").read_text(encoding="utf-8")
    number = source[: source.index("redis.call('DEL'")].count("\n")
    done = CliRunner().invoke(command, ["--list", "A node that is gone"])
    assert (done.exit_code, done.output.splitlines()) == (
        0,
        [
            f"lua/leave.lua:{number}",
            "  - redis.call('HDEL', capacity_key, node)",
            "  - redis.call('SREM', open_key, node)",
            "  + redis.call('HDEL', capacity_key, node)",
            "  A node that is gone is asked for room.",
            "  noticed by tests/lua/test_leave.py::test_rule_21_node_that_left_is_not_open",
        ],
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["no such change"], "no change matches no such change"),
        (["--part", "3/2"], "'3/2': expected a part such as 1/4"),
        (["--part", "two"], "'two': expected a part such as 1/4"),
    ],
)
def test_wrong_usage(arguments: list[str], problem: str) -> None:
    """It ends with 2."""
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert problem in done.output
