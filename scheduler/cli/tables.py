"""Tables of 80 columns, as the listings print them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from scheduler.cli.common import duration

Column = str | tuple[str, JustifyMethod]
"""A header; with a side when its cells are never cut."""


def new_table(*columns: Column) -> Table:
    """A table of one line a row, whose texts are cut where it would be too wide."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        if isinstance(column, tuple):
            table.add_column(column[0], justify=column[1], no_wrap=True)
        else:
            table.add_column(column, min_width=len(column))  # one that may wrap is narrowed first; its cells never wrap
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a line to a table."""
    table.add_row(*(Text(str(cell), no_wrap=True, overflow="ellipsis") for cell in cells))


def print_parts(*parts: Table | Text) -> None:
    """Print tables and texts, with an empty line between two of them."""
    console = Console(highlight=False)
    for number, part in enumerate(parts):
        if number:
            console.print()
        console.print(part)


def age(milliseconds: int | None) -> str:
    """A length of time, empty for None."""
    return "" if milliseconds is None else duration(milliseconds)


def some(words: Sequence[str], width_max: int) -> str:
    """As many of the words as fit, and how many more there are: `en:zh en:de +3`."""
    for count in range(len(words), 0, -1):
        text = " ".join(words[:count]) + (f" +{len(words) - count}" if count < len(words) else "")
        if len(text) <= width_max:
            return text
    return f"{words[0]} +{len(words) - 1}" if len(words) > 1 else " ".join(words)
