"""Who may import whom. The rules are those of the architecture; they are read from the source, nothing is run."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

PACKAGE: Final = Path(__file__).resolve().parents[2] / "scheduler"
BASE: Final = {
    "scheduler.config",
    "scheduler.errors",
    "scheduler.protocol.deltas",
    "scheduler.protocol.documents",
    "scheduler.protocol.keys",
    "scheduler.protocol.lifecycle",
    "scheduler.protocol.messages",
    "scheduler.protocol.record_fields",
    "scheduler.protocol.results",
    "scheduler.protocol.snapshot",
    "scheduler.texts",
    "scheduler.url",
    "scheduler.visible",
}
PURE: Final = {
    "scheduler.audit.affinity",
    "scheduler.audit.audit",
    "scheduler.audit.evidence",
    "scheduler.audit.workloads",
    "scheduler.management.arrivals",
    "scheduler.management.checks",
    "scheduler.management.commands",
    "scheduler.management.fleet",
    "scheduler.management.heartbeats",
    "scheduler.management.configuration_memory",
    "scheduler.management.pools",
    "scheduler.management.publication",
    "scheduler.management.server_copy",
    "scheduler.node.leases",
    "scheduler.node.phases",
    "scheduler.node.retry",
    "scheduler.protocol.deltas",
    "scheduler.protocol.documents",
    "scheduler.protocol.lifecycle",
    "scheduler.protocol.record_fields",
    "scheduler.protocol.snapshot",
    "scheduler.runtime.index",
    "scheduler.runtime.intake",
    "scheduler.runtime.snapshot_changes",
    "scheduler.runtime.placement.attempt",
    "scheduler.runtime.placement.candidates",
    "scheduler.runtime.placement.sampler",
    "scheduler.runtime.placement.strategies",
    "scheduler.runtime.waiting.limits",
    "scheduler.runtime.waiting.overflow",
    "scheduler.runtime.waiting.queues",
    "scheduler.runtime.waiting.undecided",
    "scheduler.runtime.waiting.waiting_jobs",
    "scheduler.session.bindings",
    "scheduler.session.decisions",
    "scheduler.session.ring",
    "scheduler.store.pace",
    "scheduler.texts",
    "scheduler.timings",
    "scheduler.visible",
}
# Libraries that perform, wait, read a clock or hold what is shared.
IMPURE: Final = {
    "asyncio", "concurrent", "contextvars", "datetime", "logging", "multiprocessing", "os", "redis", "secrets",
    "select", "signal", "socket", "subprocess", "sys", "threading", "time", "urllib", "uuid",
}  # fmt: skip
# What a role, a node or a producer takes from its machine is handed to it: only these look for themselves. The commands
# and the server that they start belong to the machine.
CLOCK: Final = "scheduler.clock"
LOOK_AT_THE_MACHINE: Final = {CLOCK, "scheduler.host", "scheduler.forks"}
BELONG_TO_THE_MACHINE: Final = (
    "scheduler.audit.records",
    "scheduler.audit.submission",
    "scheduler.cli",
    "scheduler.console",
    "scheduler.server.location",
    "scheduler.server.private",
    "scheduler.server.embedded",
)
TERMINAL_OUTPUT: Final = {"click", "rich"}
# The only thing of redis that shells may know are its exceptions, and only these shells.
SHELLS_THAT_CATCH_REDIS_ERRORS: Final = {
    "scheduler.console.common",
    "scheduler.node.inbox",
    "scheduler.producer",
    "scheduler.runtime.reader",
    "scheduler.runtime.snapshots",
}


class Import(NamedTuple):
    """One name that a module imports: `from scheduler.node import retry` is scheduler.node.retry."""

    importer: str
    imported: str


def module_name(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES: Final = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES: Final = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imports_of(name: str) -> list[Import]:
    """Everything that a module imports, wherever in its source."""
    found = []
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            assert node.module
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [each if each in SOURCES or node.module in ("random", "os") else node.module for each in whole]
    return [Import(name, each) for each in found]


IMPORTS: Final = [each for name in SOURCES for each in imports_of(name)]


def within(name: str, package: str) -> bool:
    """Whether a module is a package or lies in it."""
    return name == package or name.startswith(package + ".")


def ours(name: str) -> bool:
    """Whether a module is one of this package."""
    return within(name, "scheduler")


def top(name: str) -> str:
    """The library that a module belongs to."""
    return name.partition(".")[0]


def test_the_source_was_found() -> None:
    """The rules below would hold for nothing at all."""
    assert set(SOURCES) >= BASE | PURE | SHELLS_THAT_CATCH_REDIS_ERRORS


def test_the_base_knows_only_itself() -> None:
    """Model, keys, errors and config import nothing of ours beyond each other."""
    assert [
        each for each in IMPORTS if each.importer in BASE and ours(each.imported) and each.imported not in BASE
    ] == []


def test_pure_files_are_those_that_say_so() -> None:
    """A line of its docstring that begins with the word is a file's promise."""
    said = {
        name
        for name, tree in TREES.items()
        if any(line.startswith("Pure") for line in (ast.get_docstring(tree) or "").splitlines())
    }
    assert said == PURE


def test_pure_files_import_nothing_that_performs() -> None:
    """No server, no event loop, no thread, no clock; of ours only the base and other pure files."""
    assert [
        each
        for each in IMPORTS
        if each.importer in PURE | BASE
        and each.imported != "urllib.parse"  # which fetches nothing
        and (top(each.imported) in IMPURE or (ours(each.imported) and each.imported not in PURE | BASE))
    ] == []


def test_pure_files_draw_only_from_a_generator_that_they_are_given() -> None:
    """The functions of the module `random` share a hidden generator; the class is what a caller hands in."""
    for name in PURE:
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.Import):
                assert "random" not in [alias.name for alias in node.names], name
            if isinstance(node, ast.ImportFrom) and node.module == "random":
                assert [alias.name for alias in node.names] == ["Random"], name


def test_management_and_runtime_meet_only_through_the_snapshot() -> None:
    """Neither imports the other."""
    domains = ("scheduler.management", "scheduler.runtime")
    assert [
        each
        for each in IMPORTS
        for mine, other in (domains, domains[::-1])
        if within(each.importer, mine) and within(each.imported, other)
    ] == []


def test_sessions_know_neither_domain() -> None:
    """What a session is bound to does not depend on who places or manages."""
    assert [
        each
        for each in IMPORTS
        if within(each.importer, "scheduler.session")
        and ours(each.imported)
        and each.imported not in BASE
        and not within(each.imported, "scheduler.session")
    ] == []


def test_only_the_store_knows_redis() -> None:
    """A few shells catch its exceptions, and nothing more."""
    outside = [
        each for each in IMPORTS if top(each.imported) == "redis" and not within(each.importer, "scheduler.store")
    ]
    assert {each.imported for each in outside} <= {"redis.exceptions"}
    assert {each.importer for each in outside} <= SHELLS_THAT_CATCH_REDIS_ERRORS


def test_the_store_knows_no_role() -> None:
    """It imports the base and itself."""
    assert [
        each
        for each in IMPORTS
        if within(each.importer, "scheduler.store")
        and ours(each.imported)
        and each.imported not in BASE
        and each.imported != CLOCK
        and not within(each.imported, "scheduler.store")
    ] == []


def test_clock_and_chance_are_handed_in() -> None:
    """Nobody else reads a clock, draws without a generator that was given, makes ids or asks for the process."""
    lookers = {
        each.importer
        for each in IMPORTS
        if top(each.imported) in {"time", "datetime", "secrets", "random", "os", "socket", "uuid"}
        and each.imported not in ("random.Random", "os.environ")
        and not any(within(each.importer, name) for name in BELONG_TO_THE_MACHINE)
    }
    unseeded = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Random" and not node.args
    }
    assert (lookers, unseeded) == (LOOK_AT_THE_MACHINE, set())


def test_nobody_imports_the_command_line() -> None:
    """Except itself, and `python -m scheduler`; the tools do not either."""
    assert [
        each
        for each in IMPORTS
        if within(each.imported, "scheduler.cli")
        and not within(each.importer, "scheduler.cli")
        and each.importer != "scheduler.__main__"
    ] == []
    tools = sorted((PACKAGE.parent / "tools" / "packages").rglob("*.py"))
    assert tools
    assert [
        path.name for path in tools if re.search(r"^\s*(from|import) scheduler\.cli\b", path.read_text(), re.M)
    ] == []


def test_only_the_command_line_writes_to_the_terminal() -> None:
    """click and rich stay there and in what commands and tools share."""
    assert [
        each
        for each in IMPORTS
        if top(each.imported) in TERMINAL_OUTPUT
        and not within(each.importer, "scheduler.cli")
        and not within(each.importer, "scheduler.console")
    ] == []


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_no_module_imports_itself_in_a_circle(name: str) -> None:
    """A module can be read before all that import it."""
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        for each in imports_of(ahead.pop()):
            assert each.imported != name, f"{each.importer} imports {name} again"
            if ours(each.imported) and each.imported in SOURCES and each.imported not in seen:
                seen.add(each.imported)
                ahead.append(each.imported)
