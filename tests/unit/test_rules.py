"""What docs/RULES.md says of files and tests is so, and every rule in force has a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
TEXT: Final = (ROOT / "docs" / "RULES.md").read_text(encoding="utf-8")
TESTED: Final = (*range(1, 26), *range(27, 35), *range(38, 43))
LATER: Final = (26, 35, 36, 37)


class Rule(NamedTuple):
    """A section: its number, its title, and what stands below."""

    number: int
    title: str
    text: str

    def quoted(self, pattern: str) -> list[str]:
        """What stands in backquotes and looks so."""
        return re.findall(rf"`({pattern})`", self.text)


def rules() -> list[Rule]:
    """Every rule of the document, in its order."""
    sections = re.split(r"^### ", re.sub(r"^## .*$", "", TEXT, flags=re.MULTILINE), flags=re.MULTILINE)[1:]
    found = []
    for section in sections:
        heading, _, text = section.partition("\n")
        number, _, title = heading.partition(". ")
        found.append(Rule(int(number), title, text))
    return found


def functions() -> set[str]:
    """The name of every test function, found without importing."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


RULES: Final = {rule.number: rule for rule in rules()}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: str(rule.number))


def test_every_number_is_there_once_and_in_order() -> None:
    """Code and tests refer to the rules by number."""
    assert [rule.number for rule in rules()] == list(range(1, 43))


def test_tests_that_are_named_exist() -> None:
    """Whoever looks for the test of a rule finds it."""
    assert sorted(set(re.findall(r"`(test_\w+)`", TEXT)) - functions()) == []


def test_no_name_of_a_test_stands_outside_of_backquotes() -> None:
    """Or it would not be looked for."""
    assert re.findall(r"(?<![`\w])test_\w+|test_\w+(?![`\w])", TEXT) == []


@pytest.mark.parametrize("number", TESTED)
def test_every_rule_in_force_has_a_test(number: int) -> None:
    """A rule that nothing shows is a wish."""
    assert RULES[number].quoted(r"test_\w+") != []


def test_what_is_not_in_force_says_so() -> None:
    """In the title, and nowhere else does a title say it."""
    assert tuple(number for number, rule in RULES.items() if rule.title.endswith(" (later)")) == LATER


@every_rule
def test_every_rule_says_where_it_lives(rule: Rule) -> None:
    """In files of the project."""
    paths = rule.quoted(r"(?:lua|scheduler)/[\w/.]*")
    assert paths != []
    assert [path for path in paths if not (ROOT / path).exists()] == []


@every_rule
def test_every_rule_is_told_in_few_sentences(rule: Rule) -> None:
    """One paragraph for people, then where, then the tests."""
    paragraph, places, *rest = [part for part in rule.text.split("\n\n") if part.strip()]
    assert rest == []
    assert 1 <= len(re.findall(r"\.(?=\s|$)", paragraph)) <= 3
    lines = re.findall(r"^- (\w+): ", places, re.MULTILINE)
    assert lines in (["Where", "Tests"], ["Where"])


def test_rules_that_tests_and_scripts_mention_exist() -> None:
    """By their number, in names and in docstrings."""
    mentioned: set[int] = set()
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "lua").glob("*.lua")]:
        text = path.read_text(encoding="utf-8")
        mentioned |= {int(number) for number in re.findall(r"def test_rule_(\d+)_", text)}
        for numbers in re.findall(r"\bRULES (\d+(?:(?:, | and )\d+)*)", text):
            mentioned |= {int(number) for number in re.findall(r"\d+", numbers)}
    assert mentioned - set(RULES) == set()
    assert len(mentioned) > 20
