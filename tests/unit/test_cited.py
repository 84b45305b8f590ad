"""Runs that the documents cite: their tables say what the commands printed, and nothing is cited that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import pictures
from benchmarks.cited import BY_NAME, CITED, FIGURES, NoFigures, Row, number, of_claim
from benchmarks.command import bench
from benchmarks.promises import PROMISES
from benchmarks.tables import BEGIN, END, pages, written
from click.testing import CliRunner

CLAIM: dict[str, Any] = {
    "what": "p50", "measured": 2.5, "limit": 2, "unit": "ms", "is_least": False, "rounds": [2.25, 3.0], "ok": False,
}  # fmt: skip


def test_the_pages_say_what_the_runs_say() -> None:
    """Whoever commits another run writes the tables, too."""
    assert CliRunner().invoke(bench, ["tables", "--check"]).output == ""


def test_every_cited_run_is_there_and_says_on_which_machine() -> None:
    """A promise without a figure would look like one that nobody asked about."""
    assert [each.name for each in CITED if not (FIGURES / f"{each.name}.json").exists()] == []
    assert all(promise.cited in BY_NAME for promise in PROMISES)
    for each in CITED:
        assert list(each.rows(each.load()))


@pytest.mark.parametrize("name", list(pictures.PICTURES))
def test_every_picture_is_there_in_both_forms(name: str) -> None:
    """A vector for print, and a raster for whatever shows no vectors."""
    assert (FIGURES / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert (FIGURES / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_claim_is_a_row() -> None:
    """With the spread of its rounds, and in words whether the limit was kept."""
    row = of_claim(CLAIM)
    assert row == Row("p50", "2.5 ms (rounds 2.25 to 3)", "at most 2 ms", False)
    assert row.verdict == "**no**"
    assert of_claim(CLAIM | {"measured": None, "unit": ""}).measured == "missing (rounds 2.25 to 3)"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.0123"), (3.14159, "3.14"), (99.96, "100"), (12_345.6, "12,346")]
)
def test_numbers_have_as_many_digits_as_say_something(value: float, text: str) -> None:
    """Three, or all before the point."""
    assert number(value) == text


def test_lines_are_written_between_the_marks() -> None:
    """What stands around them stays, and writing twice changes nothing."""
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = written(page, ["new"])
    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    assert written(once, ["new"]) == once


def test_a_page_without_marks_is_refused() -> None:
    """Nothing is guessed about where the table belongs."""
    with pytest.raises(NoFigures, match="has no lines"):
        written("nothing here", [])


def test_a_run_that_is_none_is_refused(tmp_path: Path) -> None:
    """The error names the file and the command that makes it."""
    with pytest.raises(NoFigures, match=r"waits.json: No such file or directory: expected what `./tools/bench waits"):
        BY_NAME["waits"].load(tmp_path)
    (tmp_path / "waits.json").write_text("no document")
    with pytest.raises(NoFigures, match=r"waits.json: .+: expected what `./tools/bench waits --json` printed"):
        BY_NAME["waits"].load(tmp_path)


def test_promises_without_their_run_are_told_so(tmp_path: Path) -> None:
    """An empty directory is not a promise kept."""
    texts = pages(tmp_path).values()
    assert any("not measured" in text for text in texts)
