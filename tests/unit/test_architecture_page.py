"""What docs/ARCHITECTURE.md says is so: its tables are those of the code, and what it names exists."""

from __future__ import annotations

import re

from scheduler.protocol.keys import CellKeys, ControlKeys
from scheduler.protocol.lifecycle import TRANSITIONS
from scheduler.store.scripts import SCRIPT_NAMES
from tests.integration.test_readme import ARCHITECTURE, ROOT, quoted, table


def test_the_tree_has_every_package() -> None:
    """Each folder of the package stands in the tree, and each name in it exists."""
    tree = ARCHITECTURE.partition("## Where things are")[2].partition("```text\n")[2].partition("```")[0]
    told, above = set(), ""
    for line in tree.splitlines():
        indent, words = len(line) - len(line.lstrip()), re.split(r" {2,}", line.strip())
        if words[0].endswith("/"):
            above = {0: "", 2: above.split("/")[0] + "/", 4: "/".join(above.split("/")[:2]) + "/"}[indent] + words[0]
            told.add(above.strip("/"))
        else:
            assert all((ROOT / "scheduler" / f"{name}.py").is_file() for name in words[0].split(", ")), line
    there = {
        path.parent.relative_to(ROOT).as_posix()
        for place in ("lua", "scheduler")
        for path in (ROOT / place).rglob("*.*")
        if path.suffix in (".py", ".lua")
    }
    assert told == there | {"tests", "tools", "docs"}


def test_files_that_are_mentioned_exist() -> None:
    """A path in backquotes is one of the project, of the package, or the name of a script."""
    mentioned = {name for name in quoted(ARCHITECTURE) if re.fullmatch(r"[\w/]+(\.py|\.lua|/)", name)}
    assert "runtime/waiting/waiting_jobs.py" in mentioned
    places = (ROOT, ROOT / "scheduler", ROOT / "lua")
    assert [name for name in sorted(mentioned) if not any((place / name).exists() for place in places)] == []


def test_transitions() -> None:
    """The table of states is the transition table; what is not written yet is marked."""
    told = []
    for states, events, script, following, body in table(ARCHITECTURE, "| from | event | script | to | body |"):
        name, _, mark = script.partition(" ")
        assert (mark == "(later)") == (name not in (*SCRIPT_NAMES, "XADD", "retention")), script
        for state in states.split(", "):
            told.append((state, events, name, state if following == "same" else following, body))
    assert sorted(told) == sorted(tuple(row) for row in TRANSITIONS)


def test_keys() -> None:
    """The table of keys has every key, under its name, and the scripts that it names exist."""
    cell = CellKeys()
    wanted = {*vars(ControlKeys()).values(), *(key for name, key in vars(cell).items() if name not in ("cell", "_tag"))}
    wanted |= {
        cell.jobs("<partition>"),  # type: ignore[arg-type]
        cell.slots("<node>"),
        cell.inbox("<node>"),
        cell.left("<node>"),
        cell.job("<job_id>"),
        cell.result("<job_id>"),
        cell.detail("<job_id>"),
        cell.session("<session_id>"),
        cell.held("<kind>", "<name>"),
        cell.rebuilt("<stream>"),
        cell.renamed("<stream>"),
        cell.replies("<reply_to>"),
    }
    rows = table(ARCHITECTURE, "| key | type | what | written by |")
    assert sorted(name for row in rows for name in quoted(row[0])) == sorted(wanted)
    assert {name for row in rows for name in quoted(row[3])} <= set(SCRIPT_NAMES)
