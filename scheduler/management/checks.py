"""Pure. Decides; never performs. Values of tables that people wrote, checked one by one: a refusal names the key, the
value, what was expected and, for a word that is unknown, the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NoReturn, TypeVar

from scheduler.config import NUMBER_MAX
from scheduler.errors import InvalidConfig, UnknownKey
from scheduler.texts import choice

T = TypeVar("T")
Check = Callable[[str, object], object]
"""(key, value) -> the value in its type. Raises InvalidInput."""

SHOWN_LENGTH_MAX: Final = 120
_KEY_LENGTH_MAX: Final = 64


def refuse(key: str, value: object, expected: str) -> NoReturn:
    """Raises: InvalidConfig, with as much of the value as a line can show."""
    try:
        shown = value if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # a number of too many digits, tables in tables without end
        shown = value = "something too large to be shown"
    if len(shown) > SHOWN_LENGTH_MAX:
        value = shown[:SHOWN_LENGTH_MAX] + "..."
    raise InvalidConfig(key, value, expected)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most like another one."""
    return difflib.get_close_matches(word[:_KEY_LENGTH_MAX], sorted(known), n=1, cutoff=0.0)[0]


def known_key(table_key: str, key: str, known: Iterable[str]) -> str:
    """Return a key of a table if it is known. Raises: UnknownKey."""
    if key not in known:
        shown = (
            key if key.isidentifier() and key.isascii() and len(key) <= _KEY_LENGTH_MAX else repr(key[:_KEY_LENGTH_MAX])
        )
        whole = f"{table_key}.{shown}" if table_key else shown
        raise UnknownKey(whole, f"a known key; the nearest is {nearest(key, known)}")
    return key


def table(key: str, value: object, size_max: int | None = None) -> Mapping[str, object]:
    """A table. Raises: InvalidConfig."""
    if not isinstance(value, dict):
        refuse(key, value, f"a table [{key}]")
    if size_max is not None and len(value) > size_max:
        refuse(key, f"{len(value)} of them", f"at most {size_max}")
    return value


def text(key: str, value: object, length_max: int) -> str:
    """A line of text. Raises: InvalidConfig."""
    if not (isinstance(value, str) and len(value) <= length_max and all(map(_is_plain, value))):
        refuse(key, value, f"text in one line of at most {length_max} characters")
    return value


def _is_plain(letter: str) -> bool:
    """No control character, which a terminal might obey, and no half of a pair, which no encoding can write."""
    return letter >= " " and not "\x7f" <= letter <= "\x9f" and not "\ud800" <= letter <= "\udfff"


def one_of(key: str, value: object, words: Collection[str]) -> str:
    """One of a few words. Raises: InvalidConfig."""
    if not (isinstance(value, str) and value in words):
        refuse(key, value, choice(words))
    return value


def number(key: str, value: object, least: int, most: int = NUMBER_MAX) -> int:
    """A whole number. Raises: InvalidConfig."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        refuse(key, value, f"a whole number from {least} to {most}")
    return value


def texts(key: str, value: object, size_max: int, check: Callable[[str, str], T]) -> tuple[T, ...]:
    """A list of different texts, each by its check. Raises: InvalidInput."""
    if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        refuse(key, value, "a list of texts")
    if len(value) > size_max:
        refuse(key, f"{len(value)} of them", f"at most {size_max}")
    if len(set(value)) < len(value):
        refuse(key, value, "each of them once")
    return tuple(check(key, each) for each in value)
