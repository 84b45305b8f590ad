"""How a handler's value becomes the bytes that are stored, and the reverse: what is read is what was returned.

JSON has fewer types than Python. A value is stored in the form that the table in docs/RESULTS.md names. What JSON
cannot hold is refused, and so is what it would change without a word: NaN becomes null, and of two keys with one text
the first is lost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from types import NoneType
from typing import Any, Final

import msgspec

from scheduler.errors import Unencodable

BYTES: Final = "application/octet-stream"
TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"

_BASES: Final = (str, int, float)  # whose subclasses are stored as these
_ONLY_AS_VALUES: Final = (bool, NoneType, tuple)  # of which JSON has a form, so that only a key can come here


def encode_result(value: object) -> tuple[str, bytes]:
    """(content type, bytes) of what a handler returned. Raises: Unencodable for what would not be read as it was."""
    if value is None:
        return "", b""
    try:
        if isinstance(value, bytes | bytearray | memoryview):
            return BYTES, bytes(value)
        if isinstance(value, str):
            return TEXT, value.encode()
        return JSON, _encode_json(value)
    except (Unencodable, MemoryError):
        raise
    except RecursionError:
        raise Unencodable("it is nested too deep, or contains itself") from None
    except UnicodeEncodeError as error:
        raise Unencodable(f"its text has half a character, {error.object[error.start]!a}") from None
    except Exception as error:
        raise Unencodable(f"{type(error).__name__}: {error}") from error


def decode_result(content_type: str, data: bytes) -> Any:
    """The reverse of encode_result."""
    if content_type == JSON:
        return msgspec.json.decode(data)
    if content_type == TEXT:
        return data.decode()
    return data if content_type else None


def _encode_json(value: object) -> bytes:
    """JSON of a value. What it would change leaves traces in it; only where there is one the value is searched."""
    data = msgspec.json.encode(value, enc_hook=_simpler)
    if b"null" in data:
        _refuse_not_finite(msgspec.to_builtins(value, enc_hook=_simpler))
    if msgspec.json.encode(msgspec.json.decode(data)) != data:
        json.loads(data, object_pairs_hook=_refuse_twins)
    return data


def _simpler(value: Any) -> Any:
    """A form that JSON has of an object that it has none of: that of its base, or what its model dumps."""
    if isinstance(value, _ONLY_AS_VALUES):
        raise Unencodable(f"JSON has no key of type {type(value).__name__}: {value!r}")
    for base in _BASES:
        if isinstance(value, base):
            return base(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump()
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    raise Unencodable(f"JSON has no form for an object of type {name}")


def _refuse_not_finite(value: Any) -> None:
    """Refuse a number that JSON does not have, and say where it is. No recursion: the value may be deep."""
    level = [value]
    while level:
        if any(_is_not_finite(each) for each in level):
            raise Unencodable(f"{_path_to_not_finite(value)}: JSON has finite numbers only")
        level = [inner for each in level for inner in _parts(each)]


def _path_to_not_finite(value: Any) -> str:
    level = [("", value)]
    while level:
        for path, each in level:
            if _is_not_finite(each):
                return f"{path} is {each}" if path else str(each)
        level = [
            (f"{path}[{key!r}]", inner)
            for path, each in level
            for key, inner in (each.items() if type(each) is dict else enumerate(_parts(each)))
        ]
    return "a number is not finite"


def _is_not_finite(value: Any) -> bool:
    return type(value) is float and not math.isfinite(value)


def _parts(value: Any) -> Iterable[Any]:
    if type(value) is dict:
        return value.values()
    return value if type(value) in (list, tuple) else ()


def _refuse_twins(pairs: list[tuple[str, Any]]) -> None:
    """The keys of an object, all of them."""
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise Unencodable(f"two keys of a dict are both {key!r} in JSON")
        seen.add(key)
