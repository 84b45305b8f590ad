"""Tables: a line a row. A terminal's width cuts long texts first, and then leaves out columns from the right; what the
table keeps, a name and a state, is always there and whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from rich.cells import cell_len, chop_cells, set_cell_size

from scheduler.console import terminal
from scheduler.console.common import duration

Side = Literal["left", "right"]
Column = str | tuple[str, Side]
"""A header; with a side when its cells are never cut."""

GAP: Final = "  "
ID_LENGTH_MAX: Final = 128


class Table(NamedTuple):
    """Columns, which of them always stay, and rows as texts that are fit for the terminal."""

    columns: tuple[Column, ...]
    kept: frozenset[str]
    rows: list[tuple[str, ...]]
    has_header: bool


def new_table(*columns: Column, keep: Sequence[str], has_header: bool = True) -> Table:
    """An empty table. keep: headers of the columns that are never cut or left out."""
    return Table(columns, frozenset(keep), [], has_header)


def add_row(table: Table, *cells: object) -> None:
    """Add a line to a table."""
    table.rows.append(tuple(terminal.fit(str(cell)) for cell in cells))


def print_parts(*parts: Table | str) -> None:
    """Print tables and texts, with an empty line between two of them."""
    texts = ["\n".join(_lines(part)) if isinstance(part, Table) else terminal.fit(part) for part in parts]
    terminal.write_fit("\n\n".join(texts))


def print_pairs(pairs: Sequence[Sequence[str]]) -> None:
    """Print names with what there is to say of them, and a mark behind it if there is one. A terminal's width folds
    texts between their words; an id stays whole, so that it can be copied.
    """
    rows = [[terminal.fit(cell) for cell in pair] for pair in pairs]
    width_max = terminal.width()
    names = max(len(row[0]) for row in rows)
    marks = max((len(GAP) + len(row[2]) for row in rows if row[2:] and row[2]), default=0)
    room = None if width_max is None else max(1, width_max - names - len(GAP) - marks)
    folded = [[text] if room is None else _folded(text, room) for _, text, *_ in rows]
    texts = max(min(cell_len(line), room or cell_len(line)) for lines in folded for line in lines)
    for (name, _, *mark), lines in zip(rows, folded, strict=True):
        for number, line in enumerate(lines):
            head = terminal.styled(f"{name:{names}}", "dim") if number == 0 else " " * names
            is_marked = number == 0 and any(mark)
            tail = _filled(line, texts) + GAP + terminal.styled(mark[0], "dim") if is_marked else line
            terminal.write_fit(head + GAP + tail)


def _folded(text: str, width: int) -> list[str]:
    """A text in lines of a width; only what is no word of a length that ids have is broken within."""
    lines = [""]
    for word in text.split(" "):
        parts = chop_cells(word, width) if len(word) > ID_LENGTH_MAX else [word]
        for number, part in enumerate(parts):
            longer = f"{lines[-1]} {part}" if number == 0 and lines != [""] else part
            if number == 0 and (lines == [""] or cell_len(longer) <= width):
                lines[-1] = longer
            else:
                lines.append(part)
    return lines


def age(milliseconds: int | None) -> str:
    """A length of time, empty for None."""
    return "" if milliseconds is None else duration(milliseconds)


def some(words: Sequence[str], width_max: int) -> str:
    """As many of the words as fit, and how many more there are: `en:zh en:de +3`. A pipe gets all."""
    if terminal.width() is None:
        return " ".join(words)
    for count in range(len(words), 0, -1):
        text = " ".join(words[:count]) + (f" +{len(words) - count}" if count < len(words) else "")
        if len(text) <= width_max:
            return text
    return f"{words[0]} +{len(words) - 1}" if len(words) > 1 else " ".join(words)


# ---- layout ----


def _lines(table: Table) -> list[str]:
    headers = [_header(column) for column in table.columns]
    rows = [headers, *table.rows] if table.has_header else table.rows
    widths = [max(cell_len(row[index]) for row in rows) for index in range(len(headers))]
    shown = _laid_out(table, headers, widths, terminal.width())
    lines = []
    for number, row in enumerate(rows):
        cells = [_cell(row[index], width, _side(table.columns[index])) for index, width in shown.items()]
        line = GAP.join(cells).rstrip()
        lines.append(terminal.styled(line, "bold") if table.has_header and number == 0 else line)
    return lines


def _laid_out(table: Table, headers: Sequence[str], widths: Sequence[int], width_max: int | None) -> dict[int, int]:
    """The columns that are shown, and their widths."""
    shown = dict(enumerate(widths))
    if width_max is None:
        return shown
    while True:
        excess = sum(shown.values()) + len(GAP) * (len(shown) - 1) - width_max
        cut = _cut(table, headers, shown, excess)
        if cut is not None:
            return cut
        spare = [index for index in shown if headers[index] not in table.kept]
        if not spare:
            return shown
        del shown[spare[-1]]


def _cut(table: Table, headers: Sequence[str], shown: dict[int, int], excess: int) -> dict[int, int] | None:
    """Make the widest texts narrower until there is no excess; None when their headers would not stay whole."""
    cut = dict(shown)
    texts = [index for index in cut if isinstance(table.columns[index], str) and headers[index] not in table.kept]
    while excess > 0:
        wide = [index for index in texts if cut[index] > len(headers[index])]
        if not wide:
            return None
        cut[max(wide, key=lambda index: cut[index])] -= 1
        excess -= 1
    return cut


def _cell(text: str, width: int, side: Side) -> str:
    if cell_len(text) > width:
        dots = terminal.ellipsis()
        text = set_cell_size(text, max(0, width - len(dots))) + dots
    missing = " " * (width - cell_len(text))
    return missing + text if side == "right" else text + missing


def _filled(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _header(column: Column) -> str:
    return column if isinstance(column, str) else column[0]


def _side(column: Column) -> Side:
    return "left" if isinstance(column, str) else column[1]
