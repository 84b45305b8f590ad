"""The reviewed list, `tests/mutants.toml`: changes that would be mistakes, and what notices each of them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).resolve().parents[3]
LIST: Final = ROOT / "tests" / "mutants.toml"
SEED: Final = "seed "


class InvalidList(Exception):
    """The list cannot be used as it is; the message names each entry at fault."""


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change of the scheduler.

    file: counted from the project's folder.
    text: what is replaced; it stands in the file exactly once, with a line before or after it where that is needed.
    why: what would go wrong, in one sentence.
    noticed_by: tests as pytest names them (`tests/unit/test_x.py::test_y[z]`), or runs of the simulation (`seed 7`,
    `seed 7 scenario`); one of them has to fail.
    """

    file: str
    text: str
    replacement: str
    why: str
    noticed_by: tuple[str, ...]

    @property
    def tests(self) -> tuple[str, ...]:
        """The tests among those that notice it."""
        return tuple(each for each in self.noticed_by if not each.startswith(SEED))

    @property
    def seeds(self) -> tuple[str, ...]:
        """The runs of the simulation among them."""
        return tuple(each for each in self.noticed_by if each.startswith(SEED))

    def place(self) -> str:
        """File and line of the change."""
        source = (ROOT / self.file).read_text(encoding="utf-8")
        line = source[: source.index(self.text)].count("\n") + 1
        return f"{self.file}:{line + len(_common_lines(self.text, self.replacement))}"

    def apply(self, source: str) -> str:
        """The source with the change. Raises: InvalidList when the text is not there exactly once."""
        count = source.count(self.text)
        if count != 1:
            raise InvalidList(f"{self.file}: text = {self.text!r}: expected once in the file, found {count} times")
        return source.replace(self.text, self.replacement)


class _Listed(msgspec.Struct, forbid_unknown_fields=True):
    mutants: list[Mutant]


def _common_lines(one: str, other: str) -> list[str]:
    """The lines that two texts begin with alike, which are there to tell a place from others."""
    common: list[str] = []
    for mine, theirs in zip(one.splitlines(), other.splitlines(), strict=False):
        if mine != theirs:
            break
        common.append(mine)
    return common[: len(one.splitlines()) - 1]


def read_list(path: Path = LIST) -> list[Mutant]:
    """Every entry, checked against the files. Raises: InvalidList, naming all entries that are at fault."""
    try:
        mutants = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _Listed).mutants
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidList(f"{path}: {error}") from error
    problems = [problem for mutant in mutants for problem in _problems(mutant)]
    if problems:
        raise InvalidList("\n".join(problems))
    return mutants


def _problems(mutant: Mutant) -> Iterable[str]:
    try:
        mutant.apply((ROOT / mutant.file).read_text(encoding="utf-8"))
    except OSError as error:
        yield f"{mutant.file}: {error.strerror}"
    except InvalidList as error:
        yield str(error)
    if mutant.text == mutant.replacement:
        yield f"{mutant.file}: text = {mutant.text!r}: expected another replacement"
    if not mutant.noticed_by:
        yield f"{mutant.file}: text = {mutant.text!r}: expected a test or a seed in noticed_by"


def chosen(mutants: Sequence[Mutant], patterns: Sequence[str], part: tuple[int, int] = (1, 1)) -> list[Mutant]:
    """Those that match one of the patterns, or all without any; of them a part, such as (2, 4).

    A pattern is a piece of the place, the text, the reason or a test.
    """
    found = [mutant for mutant in mutants if not patterns or any(_matches(mutant, each) for each in patterns)]
    number, parts = part
    return found[number - 1 :: parts]


def _matches(mutant: Mutant, pattern: str) -> bool:
    return any(pattern in each for each in (mutant.place(), mutant.text, mutant.why, *mutant.noticed_by))
