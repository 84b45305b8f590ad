"""The command `tables`: writes the figures of cited runs into the documents, between two marks each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.cited import CITED, FIGURES, ROOT, Document, NoFigures
from benchmarks.promises import PROMISES

BEGIN: Final = "<!-- figures: written by ./tools/bench tables -->"
END: Final = "<!-- end of figures -->"
BENCHMARKS: Final = ROOT / "docs" / "BENCHMARKS.md"
PROMISES_PAGE: Final = ROOT / "docs" / "PROMISES.md"


def benchmarks_table(documents: Mapping[str, Document]) -> Iterator[str]:
    """What each command showed, a line for each claim."""
    yield "| command | what | measured | limit | kept |"
    yield "|---|---|---|---|---|"
    for cited in CITED:
        if cited.name not in documents:
            continue
        command = f"`{cited.command}`"
        for row in cited.rows(documents[cited.name]):
            yield f"| {command} | {row.what} | {row.measured} | {row.limit} | {row.verdict} |"
            command = ""
    yield ""
    yield from _machines(documents)


def promises_table(documents: Mapping[str, Document]) -> Iterator[str]:
    """What was promised, and what came of it."""
    yield "| sections | what | claimed | measured | reached | command |"
    yield "|---|---|---|---|---|---|"
    for promise in PROMISES:
        if promise.cited in documents:
            measured, kept = promise.answer(documents[promise.cited])
            reached = "yes" if kept else "**no**"
        else:
            measured, reached = "not measured", ""
        words = (promise.sections, promise.what, promise.claimed, measured, reached, f"`{promise.command}`")
        yield f"| {' | '.join(words)} |"


def _machines(documents: Mapping[str, Document]) -> Iterator[str]:
    """On what all of that ran; one line where all ran on the same."""
    seen: dict[str, list[str]] = {}
    for name, document in documents.items():
        facts: Mapping[str, Any] = document.get("facts", {})
        words = [f"{facts['cpu']}, {facts['cores']} cores"] if "cpu" in facts else []
        words += [str(facts[name]) for name in ("system", "server") if name in facts]
        words += [f"{name} {facts[name]}" for name in ("python", "redis-py", "hiredis") if name in facts]
        if words:
            seen.setdefault(", ".join(words), []).append(name)
    for machine, names in seen.items():
        yield f"{machine}: {', '.join(f'`{name}`' for name in names)}."


def written(page: str, lines: Sequence[str]) -> str:
    """A page with these lines between its marks. Raises: NoFigures when it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoFigures(f"the page has no lines {BEGIN!r} and {END!r}, in this order")
    return "\n".join([before + begin, *lines, end + after])


def pages(directory: Path = FIGURES) -> dict[Path, str]:
    """Both pages as they should be. Raises: NoFigures."""
    documents = {each.name: each.load(directory) for each in CITED if (directory / f"{each.name}.json").exists()}
    tables = {BENCHMARKS: benchmarks_table(documents), PROMISES_PAGE: promises_table(documents)}
    return {path: written(path.read_text(encoding="utf-8"), list(lines)) for path, lines in tables.items()}


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; end with 1 when a page is not what it should be.")
def tables(check: bool) -> None:
    """Write the tables of docs/ from docs/figures/.

    Those of docs/BENCHMARKS.md and docs/PROMISES.md.

    There lies what commands printed with --json: `./tools/bench waits --json > docs/figures/waits.json`.
    """
    stale = [path for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        click.echo(f"{path.relative_to(ROOT)}: {'not what docs/figures/ says' if check else 'written'}")
    if check and stale:
        click.get_current_context().exit(1)
    if not check:
        for path, text in pages().items():
            path.write_text(text, encoding="utf-8")
