"""What is told of an exception: short enough to be stored, and never without type, place and the end of its message."""

from __future__ import annotations

import json
import linecache
import re
from collections.abc import Callable
from typing import Any

import pytest

from scheduler.errors import Retry
from scheduler.node.tracebacks import ERRORS_MAX, TRACEBACK_LENGTH_MAX, describe, format_traceback, place_of, unfold
from scheduler.texts import DETAIL_LENGTH_MAX, cut_middle

HANDLER = """
def first(job):
    second(job)

def second(job):
    raise ValueError("bad audio")

class Worker:
    def call(self, job):
        import json
        return json.loads("{")

def chained(job):
    try:
        second(job)
    except ValueError as error:
        raise RuntimeError("call failed") from error

def while_handling(job):
    try:
        second(job)
    except ValueError:
        return {}["missing"]

def from_none(job):
    try:
        second(job)
    except ValueError:
        raise RuntimeError("call failed") from None

def syntax(job):
    exec("1 +")
"""


@pytest.fixture(scope="module")
def handler() -> dict[str, Any]:
    """A module of a user's, as it is seen in tracebacks."""
    linecache.cache["/app/h.py"] = (len(HANDLER), None, HANDLER.splitlines(keepends=True), "/app/h.py")
    names: dict[str, Any] = {}
    exec(compile(HANDLER, "/app/h.py", "exec"), names)
    return names


def raised(call: Callable[[Any], object]) -> BaseException:
    """What it raises."""
    try:
        call(None)
    except BaseException as error:
        return error
    raise AssertionError("nothing")


# ---- the detail ------------------------------------------------------------------------------------------------------


def test_a_detail_has_type_message_and_place(handler: dict[str, Any]) -> None:
    """The line that raised, and the function that it is in."""
    assert describe(raised(handler["first"])) == "ValueError: bad audio (/app/h.py:6 in second)"


def test_a_place_in_a_library_names_the_line_that_called_it(handler: dict[str, Any]) -> None:
    """The library's line says what is wrong, the handler's where to look."""
    error = raised(handler["Worker"]().call)
    place = f"{json.decoder.__file__}:{error.__traceback__.tb_next.tb_next.tb_next.tb_lineno} in JSONDecoder.decode"  # type: ignore[union-attr]
    assert place_of(error).startswith(place.rpartition(":")[0])
    assert place_of(error).endswith(", called at /app/h.py:11 in Worker.call")


def test_causes_are_told(handler: dict[str, Any]) -> None:
    """Those that were named, and what was being handled; not what `from None` hides."""
    assert describe(raised(handler["chained"])) == (
        "RuntimeError: call failed (/app/h.py:17 in chained); caused by ValueError: bad audio (/app/h.py:6 in second)"
    )
    assert describe(raised(handler["while_handling"])) == (
        "KeyError: 'missing' (/app/h.py:23 in while_handling); "
        "while handling ValueError: bad audio (/app/h.py:6 in second)"
    )
    assert describe(raised(handler["from_none"])) == "RuntimeError: call failed (/app/h.py:29 in from_none)"


def test_groups_are_unfolded() -> None:
    """Groups within groups too, each member with its own cause."""
    cause = OSError("refused")
    member = ValueError("bad audio header")
    member.__cause__ = cause
    inner = ExceptionGroup("inner", [TypeError("two"), KeyError("three")])
    assert describe(ExceptionGroup("outer", [member, inner])) == (
        "ExceptionGroup: outer (2 sub-exceptions); with ValueError: bad audio header; caused by OSError: refused; "
        "with ExceptionGroup: inner (2 sub-exceptions); with TypeError: two; with KeyError: 'three'"
    )


def test_notes_are_told() -> None:
    """What was added on the way up."""
    error = ValueError("bad")
    error.add_note("in chunk 7")
    error.add_note("of call-7")
    assert describe(error) == "ValueError: bad; note: in chunk 7; note: of call-7"


def test_a_chain_that_leads_back_to_itself_ends() -> None:
    """Each error is told once."""
    first, second = ValueError("one"), KeyError("two")
    first.__cause__, second.__cause__ = second, first
    assert describe(first) == "ValueError: one; caused by KeyError: 'two'"
    first.__cause__ = first
    assert describe(first) == "ValueError: one"


def test_a_long_chain_keeps_both_ends() -> None:
    """The error that was seen, and where it all began."""
    error: Exception = OSError("gpu7 refused")
    for number in range(20):
        outer = RuntimeError(f"layer {number}")
        outer.__cause__ = error
        error = outer
    detail = describe(error)
    assert detail.startswith("RuntimeError: layer 19; caused by RuntimeError: layer 18; ")
    assert "; ... 14 more ...; " in detail
    assert detail.endswith("; caused by OSError: gpu7 refused")


def test_a_message_gives_way_only_where_there_is_no_room() -> None:
    """One long message among short ones is told whole, if all of them fit."""
    long = "x" * 600
    assert describe(ExceptionGroup(long, [ValueError("a"), ValueError("b")])) == (
        f"ExceptionGroup: {long} (2 sub-exceptions); with ValueError: a; with ValueError: b"
    )


@pytest.mark.parametrize("length", [900, 10_000, 3_000_000])
def test_a_long_message_is_cut_in_its_middle(length: int, handler: dict[str, Any]) -> None:
    """Type, first and last words, and the place stay; so do those of the cause."""

    def fails(_: object) -> None:
        try:
            handler["second"](None)
        except ValueError as error:
            raise RuntimeError("begins " + "x" * length + "\nends here") from error

    detail = describe(raised(fails))
    assert len(detail) <= DETAIL_LENGTH_MAX
    assert detail.startswith("RuntimeError: begins xxx")
    assert re.search(r"x\nends here \(\S+test_tracebacks.py:\d+ in \S*fails\); ", detail)
    assert detail.endswith("; caused by ValueError: bad audio (/app/h.py:6 in second)")


class Mute(Exception):
    """Says nothing, and not for lack of trying."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class Odd(Exception):
    """No text at all."""

    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


class Broken(Exception):
    """Cannot even be asked."""

    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise SystemExit


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Mute(), "Mute: (its text cannot be had)"),
        (Odd(), "Odd: (its text cannot be had)"),
        (Broken("x"), "Broken"),
        (TimeoutError(), "TimeoutError"),
        (ValueError("no file \udcff"), "ValueError: no file \\udcff"),
        (Retry("busy"), "busy"),
        (
            BaseExceptionGroup("g", [KeyboardInterrupt()]),
            "BaseExceptionGroup: g (1 sub-exception); with KeyboardInterrupt",
        ),
        (type("E" * 500, (Exception,), {})("x"), "E" * 80 + ": x"),
    ],
)
def test_what_cannot_describe_itself_is_told_all_the_same(error: BaseException, expected: str) -> None:
    """By what can be known of it."""
    assert describe(error) == expected
    assert format_traceback(error)


def test_a_retry_tells_what_it_was_raised_from() -> None:
    """Its own place is of no interest: it was raised on purpose."""
    error = Retry("the model is loading")
    error.__cause__ = ConnectionError("gpu7 refused")
    assert describe(error) == "the model is loading; caused by ConnectionError: gpu7 refused"


# ---- the traceback ---------------------------------------------------------------------------------------------------


def test_a_traceback_begins_with_the_handlers_own_code(handler: dict[str, Any]) -> None:
    """What leads there is the same for every handler."""
    import asyncio

    async def main() -> None:
        await asyncio.to_thread(handler["first"], None)

    error = raised(lambda _: asyncio.run(main()))
    error.__traceback__ = error.__traceback__.tb_next  # type: ignore[union-attr]  # this test's own step
    text = format_traceback(error)
    assert 'File "/app/h.py", line 3, in first\n    second(job)\n' in text
    assert text.endswith('line 6, in second\n    raise ValueError("bad audio")\nValueError: bad audio')


def test_a_long_traceback_keeps_its_end(handler: dict[str, Any]) -> None:
    """Type and last words of what was raised are there."""

    def fails(_: object) -> None:
        raise ValueError("x" * 1_000_000 + " the end")

    text = format_traceback(raised(fails))
    assert len(text) == TRACEBACK_LENGTH_MAX
    assert text.startswith("Traceback (most recent call last):\n")
    assert text.endswith("x the end")


def test_a_chain_without_end_is_told_without_lines() -> None:
    """Thousands of tracebacks would hold up the event loop."""
    error: Exception = OSError("gpu7 refused")
    for _ in range(5_000):
        outer = RuntimeError("again")
        outer.__cause__ = error
        error = outer
    assert len(unfold(error)) == ERRORS_MAX
    assert format_traceback(error) == describe(error)


def test_a_syntax_error_with_odd_attributes_is_told(handler: dict[str, Any]) -> None:
    """traceback trips over some of them."""
    assert "SyntaxError: invalid syntax" in format_traceback(raised(handler["syntax"]))
    odd = SyntaxError("odd", ("f", "a", "b", "c"))  # type: ignore[arg-type]
    assert "odd" in format_traceback(odd)


# ---- cutting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "limit"), [(10, 10), (11, 10), (1_000, 100), (1_000, 5), (0, 0)])
def test_cutting(length: int, limit: int) -> None:
    """No longer than it may be, and whole if it may."""
    text = "a" * length
    cut = cut_middle(text, limit)
    assert len(cut) <= limit
    assert (cut == text) == (length <= limit)
    if limit == 100:
        assert cut.startswith("a" * 30)
        assert cut.endswith("a" * 30)
        assert "...(1000 characters)..." in cut
