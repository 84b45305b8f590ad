"""Pure. Decides; never performs. Texts from elsewhere that are stored: bounded, and such as every server takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

DETAIL_LENGTH_MAX: Final = 1_000


def cut_middle(text: str, length_max: int) -> str:
    """A text of at most so many characters: its beginning, how long it was, and its end."""
    if len(text) <= length_max:
        return text
    mark = f" ...({len(text)} characters)... "
    room = max(0, length_max - len(mark))
    return f"{text[: room // 2]}{mark}{text[len(text) - (room - room // 2) :]}"[:length_max]


def storable(text: str) -> str:
    """A text without half characters, which names of files have and no server and no terminal takes."""
    return text.encode(errors="backslashreplace").decode()


def choice(words: Iterable[str]) -> str:
    """Words as a choice: `a, b or c`."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
