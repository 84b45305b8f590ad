"""`python -m statements [COMMIT]`: the counts of the working tree, beside those of a commit."""

from __future__ import annotations

import ast
import io
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

PROJECT: Final = Path(__file__).resolve().parents[3]
PARTS: Final = {"scheduler": "product", "lua": "product", "tests": "tests"}
TOOLS: Final = {"tools", "benchmarks", "chaos", "mutants"}  # the last three were folders of the project itself


def part_of(path: str) -> str:
    """What a file belongs to, empty for none."""
    top = path.partition("/")[0]
    return "tools" if top in TOOLS else PARTS.get(top, "")


def statements(path: str, text: str) -> int:
    """Of a Python file its statements without docstrings; of a script its lines without comments and blank ones."""
    if path.endswith(".lua"):
        return sum(bool(line.strip()) and not line.strip().startswith("--") for line in text.splitlines())
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    texts = [node for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    return len(nodes) - len(texts)


def count(files: Iterable[tuple[str, str]]) -> Counter[str]:
    """Statements by part."""
    counts: Counter[str] = Counter()
    for path, text in files:
        if path.endswith((".py", ".lua")) and (part := part_of(path)):
            counts[part] += statements(path, text)
    return counts


def of_working_tree() -> Iterator[tuple[str, str]]:
    """The files that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    for path in listed.splitlines():
        if path.endswith((".py", ".lua")) and (PROJECT / path).is_file():
            yield path, (PROJECT / path).read_text(encoding="utf-8")


def of_commit(commit: str) -> Iterator[tuple[str, str]]:
    """The files of a commit. Raises: UsageError when there is no such commit."""
    done = subprocess.run(["git", "archive", "--format=tar", commit], cwd=PROJECT, capture_output=True)
    if done.returncode:
        raise click.UsageError(f"commit = {commit!r}: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith((".py", ".lua")):
                file = archive.extractfile(member)
                assert file is not None
                yield member.name, file.read().decode()


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="Example: ./tools/statements HEAD~10")
@click.argument("commit", default="HEAD")
def main(commit: str) -> None:
    """Count the statements of product (Python and Lua), tests and tools, now and at COMMIT (by default the last one).

    Docstrings, comments and blank lines do not count. Of a Lua script its lines count.
    """
    before, now = count(of_commit(commit)), count(of_working_tree())
    click.echo(f"{'':8}{commit[:12]:>12}{'now':>10}{'change':>10}")
    for part in ("product", "tests", "tools"):
        click.echo(f"{part:8}{before[part]:12,}{now[part]:10,}{now[part] - before[part]:+10,}")


if __name__ == "__main__":
    main(prog_name="./tools/statements")
