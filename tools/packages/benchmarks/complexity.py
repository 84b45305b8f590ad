"""The command `complexity`: how complex the path of a request is, in v2.0 and here, as lizard counts it.

Cyclomatic complexity (McCabe 1976) of every function and method of whole files, in Python and in Lua: one, and one more
for each branch. What both sides share is counted on neither: documents, keys, connections, the store. The document that
replaces v2.0 expects 25 % less (sections 6.2.1 and the executive summary).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from benchmarks.report import wrapped

ROOT: Final = Path(__file__).resolve().parents[3]
EXPECTED_MAX: Final = 0.75
LENGTH: Final = re.compile(r"#(?=[a-z_])")
"""Lua's operator for a length, which lizard takes for the beginning of a comment."""
DECIDING: Final = (
    "scheduler/runtime/intake.py",
    "scheduler/runtime/index.py",
    "scheduler/runtime/waiting/limits.py",
    "scheduler/runtime/placement/candidates.py",
    "scheduler/runtime/placement/sampler.py",
    "scheduler/runtime/placement/strategies.py",
    "scheduler/runtime/placement/attempt.py",
    "scheduler/session/bindings.py",
    "lua/reserve.lua",
)
"""From an entry in hand to a slot taken: what v2.0 does too, with sessions, strategies, limits, epochs and repeats."""
_BESIDE: Final = tuple(
    name
    for path in sorted((ROOT / "scheduler" / "runtime").rglob("*.py"))
    if (name := path.relative_to(ROOT).as_posix()) not in DECIDING
)
PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "v2": (
        "tools/packages/benchmarks/v2/baseline.py",
        "tools/packages/benchmarks/v2/registry.py",
        "tools/packages/benchmarks/v2/try_reserve.lua",
    ),
    "deciding": DECIDING,
    "dispatch": (*DECIDING, *_BESIDE),
}
_NOTE: Final = (
    "v2: all that v2.0 has, from an entry in hand to the hand-over. deciding: the same of ours. dispatch: that, and "
    "all else in runtime/ but the endings of jobs: reading ahead, waiting for room, refusing, following the snapshot "
    "and sharing partitions, none of which v2.0 has. Code outside of functions is not counted by "
    "the tool: try_reserve.lua has no function."
)


class Complexity(msgspec.Struct, frozen=True):
    """Of some files. lines: without blank ones and comments; total: of all functions; worst: the most complex one."""

    files: int
    functions: int
    lines: int
    total: int
    worst: int
    worst_name: str

    @property
    def mean(self) -> float:
        """Of a function."""
        return self.total / max(1, self.functions)


def measure(names: tuple[str, ...]) -> Complexity:
    """The complexity of some files of this project."""
    import lizard  # of the extra `bench`, which other commands do without

    def analyze(name: str) -> Any:
        source = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".lua"):
            source = LENGTH.sub("len ", source)
        return lizard.analyze_file.analyze_source_code(name, source)

    analyzed = [analyze(name) for name in names]
    functions = [(each.cyclomatic_complexity, each.name) for file in analyzed for each in file.function_list]
    worst, worst_name = max(functions)
    return Complexity(
        files=len(analyzed),
        functions=len(functions),
        lines=sum(file.nloc for file in analyzed),
        total=sum(value for value, _ in functions),
        worst=worst,
        worst_name=worst_name,
    )


@click.command(name="complexity")
@click.option("--json", "as_json", is_flag=True, help="One JSON object alone on standard output.")
def complexity(as_json: bool) -> None:
    """How complex the path of a request is, in v2.0 and here.

    Cyclomatic complexity by lizard. Says what is counted, and judges by no exit code.
    """
    found = {part: measure(names) for part, names in PARTS.items()}
    ratios = {
        part: {"total": round(each.total / found["v2"].total, 3), "mean": round(each.mean / found["v2"].mean, 3)}
        for part, each in found.items()
        if part != "v2"
    }
    if as_json:
        parts = {part: msgspec.structs.asdict(each) | {"mean": round(each.mean, 3)} for part, each in found.items()}
        click.echo(msgspec.json.encode({"parts": parts, "by_v2": ratios, "counted": PARTS}))
        return
    click.echo("\n".join(_lines(found, ratios)))


def _lines(found: Mapping[str, Complexity], ratios: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    yield f"{'':10}{'files':>7}{'lines':>7}{'functions':>11}{'complexity':>12}{'a function':>12}{'worst':>7}"
    for part, each in found.items():
        yield (
            f"{part:10}{each.files:7}{each.lines:7,}{each.functions:11}{each.total:12,}{each.mean:12.2f}{each.worst:7}"
            f" {each.worst_name[:13]}"
        )
    yield ""
    for part, ratio in ratios.items():
        for what, value in ratio.items():
            verdict = "PASS" if value <= EXPECTED_MAX else "FAIL"
            meant = "of all functions" if what == "total" else "of a function"
            yield f"{verdict}: {part} by v2, {meant}: {value:.2f}, at most {EXPECTED_MAX:g}"
    yield ""
    yield from wrapped(_NOTE)
