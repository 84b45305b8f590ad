"""Arguments of the SDK, checked where they are given: a wrong one is refused in words, before anything is sent.

Each check returns the value, in the type that the caller goes on with. A refusal names the argument, shows the value
and says what was expected.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from scheduler.config import NUMBER_MAX
from scheduler.errors import InvalidInput
from scheduler.protocol.documents import JobDocument

T = TypeVar("T")

SHOWN_LENGTH_MAX: Final = 80
_CURSOR: Final = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")
_CURSOR_PART_MAX: Final = 2**64 - 1  # that a server counts to
_TEXT_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(JobDocument) if field.type is str)
_texts_of: Final = operator.attrgetter(*_TEXT_FIELDS)


def refuse(what: str, value: object, expected: str) -> NoReturn:
    """Raises: InvalidInput, with as much of the value as a line can show."""
    try:
        shown = repr(value)
    except Exception:  # a number of too many digits, or whatever somebody's own class does
        shown = f"a {type(value).__name__}"
    if len(shown) > SHOWN_LENGTH_MAX:
        shown = shown[:SHOWN_LENGTH_MAX] + "..."
    raise InvalidInput(f"{what} = {shown}: expected {expected}")


def instance(what: str, value: object, kind: type[T]) -> T:
    """A value of a class. Raises: InvalidInput."""
    if not isinstance(value, kind):
        refuse(what, value, f"a {kind.__name__}")
    return value


def text(what: str, value: object) -> str:
    """A text that can be sent. Raises: InvalidInput."""
    if not isinstance(value, str):
        refuse(what, value, "text")
    if not value.isascii():
        _encoded(what, value)
    return value


def cursor(what: str, value: object) -> str:
    """A place in a stream. Raises: InvalidInput."""
    if text(what, value) != "$":
        found = _CURSOR.fullmatch(str(value))
        if found is None or any(int(each) > _CURSOR_PART_MAX for each in found.groups(default="0")):
            refuse(what, value, 'the id of an entry, such as 1700000000000-0, or "0" or "$"')
    return str(value)


def texts(what: str, values: object) -> tuple[str, ...]:
    """Several texts: a list, tuple, set or whatever gives them one by one, but no single text. Raises: InvalidInput."""
    if isinstance(values, str | bytes | bytearray | memoryview | Mapping) or not isinstance(values, Iterable):
        refuse(what, values, f'a list of texts, such as ["{values}"]' if _is_word(values) else "a list of texts")
    return tuple(text(what, each) for each in values)


def pairs(what: str, values: object) -> tuple[tuple[str, str], ...]:
    """Pairs of languages. Raises: InvalidInput."""
    expected = 'a list of pairs, such as [("en", "zh")]'
    if isinstance(values, str | bytes | bytearray | memoryview | Mapping) or not isinstance(values, Iterable):
        refuse(what, values, expected)
    found = list(values)
    for each in found:
        if not (isinstance(each, tuple | list) and len(each) == 2):
            refuse(what, found, expected)
    return tuple((text(what, source), text(what, target)) for source, target in found)


def labels(what: str, values: object) -> dict[str, str]:
    """Texts by their names. Raises: InvalidInput."""
    if not isinstance(values, Mapping):
        refuse(what, values, 'texts by name, such as {"zone": "eu-1"}')
    return {text(what, name): text(f"{what}[{name!r}]", value) for name, value in values.items()}


def payload(what: str, value: object) -> bytes:
    """Bytes as they are, text as UTF-8. Raises: InvalidInput."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _encoded(what, value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    refuse(what, value, "bytes or text; json.dumps makes text of other values")


def whole(what: str, value: object, least: int, most: int = NUMBER_MAX) -> int:
    """A whole number. Raises: InvalidInput."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        refuse(what, value, f"a whole number from {least} to {most}")
    return value


def milliseconds(what: str, value: object) -> Any:
    """A length of time, also a part of a millisecond. Raises: InvalidInput."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= NUMBER_MAX:
        refuse(what, value, f"milliseconds from 0 to {NUMBER_MAX}")
    return value


def job_document(what: str, value: object) -> JobDocument:
    """A job document whose values are of their types; JSON would make others of some. Raises: InvalidInput."""
    document = instance(what, value, JobDocument)
    values = _texts_of(document)
    try:
        are_plain = "".join(values).isascii()  # one look at all of them: a batch has a thousand
    except TypeError:
        are_plain = False
    if not are_plain:
        for name, each in zip(_TEXT_FIELDS, values, strict=True):
            text(name, each)
    if document.features != ():
        texts("features", document.features)
    whole("priority", document.priority, -NUMBER_MAX)
    if document.deadline_ms is not None:
        whole("deadline_ms", document.deadline_ms, 1)
    return document


def _encoded(what: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        refuse(what, value, "text that UTF-8 can write, without halves of surrogate pairs")


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= SHOWN_LENGTH_MAX and '"' not in value
