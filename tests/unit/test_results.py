"""What a handler returned is read as it was, in the form that the docs name, or is refused with the reason."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import re
import uuid
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.errors import Unencodable
from scheduler.node.handlers import Job, attempt
from scheduler.node.retry import Ending
from scheduler.protocol.results import JSON, TEXT, decode_result, encode_result
from scheduler.threads import Threads

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "RESULTS.md"


class Colour(enum.Enum):
    """Of a text."""

    RED = "red"


class Size(enum.IntEnum):
    """Of a number."""

    LARGE = 3


class Record(msgspec.Struct):
    """As nodes that use msgspec return."""

    name: str
    score: float = 0.5


@dataclasses.dataclass
class Data:
    """As nodes that use nothing return."""

    name: str
    inner: Any = None


class Point(NamedTuple):
    """A tuple with names."""

    x: int
    y: int


class Model:
    """As pydantic has them: in Python's types, not in those of JSON."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def model_dump(self) -> dict[str, Any]:
        """What it holds."""
        return {"value": self.value, "at": datetime.date(2026, 1, 2)}


class Word(str):
    """A text of a library's own class."""


class Score(float):
    """A number of a library's own class, as numpy has them."""


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def endless() -> list[Any]:
    """A list that contains itself."""
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Data("a", Record("b")), {"name": "a", "inner": {"name": "b", "score": 0.5}}),
        ([Model(decimal.Decimal("1.10"))], [{"value": "1.10", "at": "2026-01-02"}]),
        (Model(Model(None)), {"value": {"value": None, "at": "2026-01-02"}, "at": "2026-01-02"}),
        (Point(1, 2), [1, 2]),
        ({Colour.RED: Size.LARGE}, {"red": 3}),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "2026-01-02T00:00:00Z"),
        (datetime.timedelta(seconds=90), "PT90S"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ({7}, [7]),
        (frozenset({"a"}), ["a"]),
        ({"a": b"\x00"}, {"a": "AA=="}),
        ({1: "a", 2.5: "b"}, {"1": "a", "2.5": "b"}),
        (2**64, 2**64),
        ([Word("a"), Score(0.5)], ["a", 0.5]),
        ({"a": None, "null": "null"}, {"a": None, "null": "null"}),
        (msgspec.Raw(b'{"a": [1, 2]}'), {"a": [1, 2]}),
    ],
)
def test_what_has_a_form_in_json_is_kept(value: object, expected: object) -> None:
    """Also where it lies in something else."""
    assert decode_result(*encode_result(value)) == expected


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "nan: JSON has finite numbers only"),
        ({"p": [0.5, float("inf")]}, "['p'][1] is inf: JSON"),
        (Data("a", (float("-inf"),)), "['inner'][0] is -inf"),
        ([Model(Score("nan"))], "[0]['value'] is nan"),
        ({1: "a", "1": "b"}, "two keys of a dict are both '1' in JSON"),
        ([{"a": {uuid.UUID(int=1): 1, str(uuid.UUID(int=1)): 2}}], "two keys of a dict"),
        ({"a": {True: 1}}, "JSON has no key of type bool: True"),
        ({(1, 2): 1}, "JSON has no key of type tuple: (1, 2)"),
        (object(), "no form for an object of type object"),
        ({"a": [Exception("x")]}, "no form for an object of type Exception"),
        (Threads, "no form for an object of type type"),
        (iter([1]), "list_iterator"),
        (endless(), "nested too deep, or contains itself"),
        (nested(100_000), "nested too deep, or contains itself"),
        ("half \ud800", r"half a character, '\ud800'"),
        ({"a": "half \udcff"}, r"half a character, '\udcff'"),
        pytest.param(10**5_000, "limit", id="a huge int"),
        (msgspec.Raw(b"{"), "DecodeError"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(value: object, told: str) -> None:
    """The reason names what it is, and where where that can be said."""
    with pytest.raises(Unencodable) as refused:
        encode_result(value)
    assert told in str(refused.value)


def test_a_model_that_cannot_dump_itself_is_refused() -> None:
    """It would not do so another time either."""

    class Broken:
        def model_dump(self) -> object:
            raise LookupError("no such field")

    class Endless:
        def model_dump(self) -> object:
            return Endless()

    with pytest.raises(Unencodable, match="LookupError: no such field"):
        encode_result([Broken()])
    with pytest.raises(Unencodable, match="nested too deep"):
        encode_result(Endless())
    with pytest.raises(Unencodable, match="of type type"):
        encode_result(Broken)


def page_examples() -> list[tuple[str, str]]:
    """(an expression, its result) of each "`x` becomes `y`" of the page, and the expressions that it refuses."""
    kept, refused = PAGE.read_text(encoding="utf-8").split("| refused | why |")
    examples = re.findall(r"`([^`]+)` becomes `([^`]+)`", kept)
    examples += [("2**64", "2**64"), ("(1, 2)", "[1, 2]"), ("{1}", "[1]"), ("frozenset({1})", "[1]")]
    assert all(f"`{expression}`" in kept for expression, _ in examples)
    return [*examples, *[(each, "") for each in re.findall(r'`(\{.*?\}|"[^`]+")`', refused)]]


@pytest.mark.parametrize(("expression", "expected"), page_examples())
def test_the_examples_of_the_page_are_so(expression: str, expected: str) -> None:
    """Those that are kept, and those that are refused."""
    value = eval(expression)
    if expected:
        assert decode_result(*encode_result(value)) == eval(expected)
    else:
        with pytest.raises(Unencodable):
            encode_result(value)


async def test_a_result_that_cannot_be_kept_ends_its_job_after_one_attempt() -> None:
    """Another attempt would return the same; the producer is told why."""
    fields = {b"job": b'{"session_id":"s1"}', b"job_id": b"j1", b"reservation": b"7 1-a 5000 3/1-1 1 1 1 4000"}
    threads = Threads(1, "test")
    job = Job("n1", "1-1", fields)
    try:
        ending = await attempt(lambda job: {"p": float("nan")}, job, threads, DEFAULTS, Random(1))
    finally:
        threads.shutdown()
    detail = "the result cannot be kept: ['p'] is nan: JSON has finite numbers only"
    assert ending == Ending("finish", "failed", 0, "unencodable", detail, TEXT, detail.encode())


def test_text_and_bytes_are_not_looked_into() -> None:
    """They are stored as they are: only what becomes JSON is searched."""
    assert encode_result("null") == (TEXT, b"null")
    assert encode_result([None]) == (JSON, b"[null]")
