"""What is told of an exception: a short detail for records and producers, and a traceback for the log.

Any exception can be told, whatever a handler's libraries make of it: one whose words raise, a chain that leads back to
itself, a group within groups, a message of megabytes. Both texts are bounded and cut in their middle, so that the
error's type, the end of its message and its place in the code stay.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from scheduler.errors import Retry
from scheduler.texts import DETAIL_LENGTH_MAX, cut_middle, storable

TRACEBACK_LENGTH_MAX: Final = 16_000
ERRORS_MAX: Final = 100  # of a chain that are looked at: a traceback of more would take the event loop too long
FIRST_ERRORS: Final = 4  # of a chain that a detail tells, and
LAST_ERRORS: Final = 3  # those at its other end, where it began
PART_LENGTH_MIN: Final = 30  # of a message, however little room there is
NAME_LENGTH_MAX: Final = 80

_LIBRARIES: Final = (
    "<frozen ",
    f"{Path(__file__).resolve().parent}/",
    *{f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)
_INSTALLED: Final = ("/site-packages/", "/dist-packages/")  # of another environment


class Told(NamedTuple):
    """An error of a chain. relation: how it belongs to the one before, empty for the first."""

    relation: str
    error: BaseException


def describe(error: BaseException) -> str:
    """An error in a line of at most `DETAIL_LENGTH_MAX` characters: its type, message, notes and place, then what it is
    made of and what caused it. Of a `Retry` the words alone, and what it was raised from on purpose.
    """
    if isinstance(error, Retry):
        cause = error.__cause__
        return words_of(error) if cause is None else f"{words_of(error)}; caused by {describe(cause)}"
    try:
        chain = unfold(error)
        left_out = max(0, len(chain) - FIRST_ERRORS - LAST_ERRORS)
        shown = [*chain[:FIRST_ERRORS], *chain[FIRST_ERRORS + left_out :]]
        detail = _joined(shown, left_out, DETAIL_LENGTH_MAX)
        if len(detail) > DETAIL_LENGTH_MAX:
            detail = _joined(shown, left_out, DETAIL_LENGTH_MAX // len(shown) - 2 * len("; "))
        return cut_middle(detail, DETAIL_LENGTH_MAX)
    except BaseException:  # an attribute of it raises
        return type(error).__name__


def format_traceback(error: BaseException) -> str:
    """An error as Python prints it, from the handler's own code on; at most `TRACEBACK_LENGTH_MAX` characters."""
    try:
        if len(unfold(error)) < ERRORS_MAX:
            lines = traceback.format_exception(type(error), error, _from_the_handler_on(error.__traceback__))
            text = "".join(lines).rstrip()
        else:
            text = describe(error)
    except BaseException:  # traceback trips over odd attributes, of a SyntaxError for example
        text = describe(error)
    return storable(cut_middle(text, TRACEBACK_LENGTH_MAX))


def unfold(error: BaseException) -> list[Told]:
    """An error, the members of a group, and their causes, each once and at most `ERRORS_MAX`; as Python tells them:
    what `raise ... from None` hides is left out.
    """
    chain: list[Told] = []
    seen: set[int] = set()
    ahead = [Told("", error)]
    while ahead and len(chain) < ERRORS_MAX:
        each = ahead.pop()
        if id(each.error) in seen:
            continue
        seen.add(id(each.error))
        chain.append(each)
        if each.error.__cause__ is not None:
            ahead.append(Told("caused by ", each.error.__cause__))
        elif each.error.__context__ is not None and not each.error.__suppress_context__:
            ahead.append(Told("while handling ", each.error.__context__))
        if isinstance(each.error, BaseExceptionGroup):
            ahead += [Told("with ", member) for member in reversed(each.error.exceptions[:ERRORS_MAX])]
    return chain


def place_of(error: BaseException) -> str:
    """Where in the code it was raised, `file:line in function`; where that is a library's, also which line of the
    handler's own code called it. Empty when it was never raised.
    """
    steps = list(_steps(error.__traceback__))
    if not steps:
        return ""
    own = [step for step in steps if _is_the_handlers(step)]
    if not own or own[-1] is steps[-1]:
        return _step_in_words(steps[-1])
    return f"{_step_in_words(steps[-1])}, called at {_step_in_words(own[-1])}"


def _joined(shown: Sequence[Told], left_out: int, room: int) -> str:
    """Some errors of a chain, each in about `room` characters. left_out: how many are not told after the first ones."""
    parts = [_part(each, room) for each in shown]
    if left_out:
        parts.insert(FIRST_ERRORS, f"... {left_out} more ...")
    return "; ".join(parts)


def words_of(error: BaseException) -> str:
    """The message and the notes of an error."""
    notes = getattr(error, "__notes__", None)
    texts = [error, *notes] if isinstance(notes, list | tuple) else [error]
    message, *rest = map(_text_of, texts)
    return "; note: ".join([message, *rest])


def _part(told: Told, room: int) -> str:
    """One error of a detail: only its message gives way, for type and place are what one looks for."""
    name = f"{told.relation}{type(told.error).__name__[:NAME_LENGTH_MAX]}"
    place = place_of(told.error)
    place = f" ({place})" if place else ""
    words = cut_middle(words_of(told.error), max(PART_LENGTH_MIN, room - len(name) - len(place)))
    return f"{name}: {words}{place}" if words else f"{name}{place}"


def _text_of(value: object) -> str:
    """str(value), whatever that raises."""
    try:
        return storable("".join([str(value)]))  # a subclass of str becomes one
    except BaseException:
        return "(its text cannot be had)"


def _steps(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_the_handlers(step: TracebackType) -> bool:
    """Whether a step of a traceback is in nobody's library."""
    file = step.tb_frame.f_code.co_filename
    return not file.startswith(_LIBRARIES) and not any(each in file for each in _INSTALLED)


def _from_the_handler_on(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without what led to the handler; all of it when nothing in it is the handler's."""
    return next((step for step in _steps(trace) if _is_the_handlers(step)), trace)


def _step_in_words(step: TracebackType) -> str:
    code = step.tb_frame.f_code
    file, function = code.co_filename, code.co_qualname
    file = file if len(file) <= NAME_LENGTH_MAX else f"...{file[-NAME_LENGTH_MAX:]}"
    return storable(f"{file}:{step.tb_lineno} in {function[-NAME_LENGTH_MAX:]}")
