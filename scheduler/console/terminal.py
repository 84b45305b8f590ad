"""What the terminal, pipe or file at the other end can show: the one place that decides it, and that writes there.

- Characters: what would act instead of being seen, and what the encoding lacks, is written as `\\x1b` or `\\u4f60`; in
  JSON as `\\u4f60`, which means the same. Nothing that is printed raises for want of a character.
- Width: that of COLUMNS, else of the terminal. A pipe or a file has none, so nothing is cut for it.
- Styles: on a terminal, unless NO_COLOR is set or TERM is `dumb`; elsewhere only with FORCE_COLOR.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from scheduler.visible import visible, visible_json, visible_lines

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_UNKNOWN: Final = 80  # of a terminal that does not know its own
WIDTH_OF_A_PIPE: Final = 10_000  # for what has to be told a width
_END: Final = "\x1b[0m"
_STYLES: Final = {"bold": "\x1b[1m", "dim": "\x1b[2m"}


def prepare() -> None:
    """Let stdout and stderr take every character, from now on, and let a line go as soon as it is whole.

    What handlers print goes there too: a letter that the terminal lacks must not fail their jobs.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def write_line(text: str, *, err: bool = False) -> None:
    """Write text at once, with the ends of lines in it. Whoever puts in words of others makes them visible first.

    Raises: OSError, ValueError when the stream does not take it: streams.py says what becomes of that.
    """
    _write(visible_lines(text, encoding_of(_stream(err))), err)


def write_json(document: str) -> None:
    """Write a JSON document to stdout."""
    _write(visible_json(document, encoding_of(sys.stdout)), err=False)


def write_fit(text: str) -> None:
    """Write to stdout what was made of `fit` and `styled`."""
    _write(text, err=False)


def _write(text: str, err: bool) -> None:
    click.echo(text, err=err, color=True)  # whether there are styles was decided before


def _stream(err: bool) -> TextIO:
    return sys.stderr if err else sys.stdout


def encoding_of(stream: TextIO | None) -> str:
    """How a stream writes characters; ASCII when it does not say."""
    return getattr(stream, "encoding", None) or "ascii"


def width() -> int | None:
    """Columns that a line of stdout may have; None for as many as it takes."""
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named):
        return int(named)
    if not _is_terminal():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or WIDTH_UNKNOWN
    except OSError:
        return WIDTH_UNKNOWN


def ellipsis() -> str:
    """What stands for what was cut."""
    return visible("\N{HORIZONTAL ELLIPSIS}", encoding_of(sys.stdout)).replace("\\u2026", "...").replace("\\x85", "...")


def fit(text: str) -> str:
    """A text of others on one line of stdout."""
    return visible(text, encoding_of(sys.stdout))


def for_stderr(text: str, *, has_lines: bool) -> str:
    """A text of others for stderr: on one line, unless it has lines."""
    return (visible_lines if has_lines else visible)(text, encoding_of(sys.stderr))


def styled(text: str, style: str) -> str:
    """A text that is already fit for stdout: `bold` or `dim` there, if that has styles."""
    return f"{_STYLES[style]}{text}{_END}" if text and has_styles() else text


def has_styles() -> bool:
    """Whether stdout gets escape sequences."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or _is_terminal()


def new_console() -> Console:
    """A console of rich by the same rules, for pictures and what has styles within."""
    from rich.console import Console  # most commands do without

    plain: Any = {} if has_styles() else {"color_system": None, "no_color": True}
    return Console(width=None if _is_terminal() else width() or WIDTH_OF_A_PIPE, highlight=False, **plain)


def is_screen(console: Console) -> bool:
    """Whether somebody looks on at something that can be drawn on again."""
    return console.is_terminal and not console.is_dumb_terminal and _is_terminal()


def _is_terminal() -> bool:
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False
