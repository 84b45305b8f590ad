"""Pure. Text from elsewhere, made fit to be read: nothing in it moves a cursor, hides, or begins a line of its own.

Ids, reasons, details and the words of servers come from whoever can write to the server. A control character in them
could clear a terminal, forge a line of a log, or turn a name around. What is shown or logged goes through here; what is
stored, and what a program gets, stays as it was.
"""

from __future__ import annotations

import unicodedata
from typing import Final

# Controls (C0, C1), formats (direction, zero width, tags), halves of characters, separators of lines and paragraphs.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# These two join and part the letters of Persian, Hindi and others, and the parts of emoji; they do nothing else.
_JOINERS: Final = frozenset("\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}")
HAS_LINES: Final = "has_lines"
"""An attribute of records of a log whose text has lines of its own, which their writer has made fit to be read."""

_NAMED: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def visible(text: str, encoding: str = "utf-8", *, kept: str = "") -> str:
    r"""A text on one line, with `\x1b`, `\n` or `\u202e` for each character that would act instead of being seen.

    Args: text; encoding, of what shows it: what that lacks is written in the same way; kept: characters that stay.
    """
    if not text.isprintable():
        hidden = {ord(each): _written(each) for each in set(text) - set(kept) if is_hidden(each)}
        text = text.translate(hidden)
    return text.encode(encoding, "backslashreplace").decode(encoding)


def visible_lines(text: str, encoding: str = "utf-8") -> str:
    """The same for a text of several lines, such as a traceback: its own ends of lines stay."""
    return visible(text, encoding, kept="\n")


def visible_json(document: str, encoding: str = "utf-8") -> str:
    """The same for JSON, which says the same afterwards: only within its texts are there such characters."""
    if document.isascii() and document.isprintable():
        return document
    others = {ord(each): _escaped(each) for each in set(document) - {"\n"} if not _shows(each, encoding)}
    return document.translate(others)


def is_hidden(character: str) -> bool:
    """Whether a character acts on what shows it, instead of being seen."""
    return unicodedata.category(character) in _HIDDEN and character not in _JOINERS


def _written(character: str) -> str:
    if ord(character) > 0x7F:
        return character.encode("ascii", "backslashreplace").decode()
    return _NAMED.get(character, f"\\x{ord(character):02x}")


def _shows(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return not is_hidden(character)


def _escaped(character: str) -> str:
    """As JSON writes it: in two halves above 16 bits."""
    data = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{data[start]:02x}{data[start + 1]:02x}" for start in range(0, len(data), 2))
