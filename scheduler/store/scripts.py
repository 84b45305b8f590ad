"""The Lua scripts as they lie in `lua/`: one file a transition, named like the method that runs it.

A line `-- INCLUDE <name>` of a script stands for the file `include/<name>.lua`, which several scripts share. In
`include/transitions.lua` a line stands for the rows of the transition table that the script performs.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from scheduler.protocol.lifecycle import TRANSITIONS, Transition

CONTROL_SCRIPTS: Final = ("layout", "beat", "lead", "take", "publish", "restart", "command")
CELL_SCRIPTS: Final = (
    "boot", "claim", "capacity", "count", "leave", "submit", "reserve", "read", "renew", "release", "reject", "promote",
    "describe", "uncount", "last_ids", "rebuild", "unslotted", "parked", "reopen", "retype",
)  # fmt: skip
SCRIPT_NAMES: Final = CONTROL_SCRIPTS + CELL_SCRIPTS
_INCLUDE: Final = re.compile(r"^-- INCLUDE (\w+)\n", re.MULTILINE)
_TRANSITIONS: Final = "-- TRANSITIONS\n"


class Script(msgspec.Struct, frozen=True):
    """A script's name, source and SHA-1 (hexadecimal), by which the server knows it."""

    name: str
    source: str
    sha: str


def script_directory() -> Path:
    """Where the .lua files lie: inside an installed package, or beside it in a source tree."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "lua"
    return installed if installed.is_dir() else package.parent / "lua"


@functools.cache
def load_scripts() -> dict[str, Script]:
    """Every script by name. Raises: OSError when a file is missing."""
    return {name: compose(name) for name in SCRIPT_NAMES}


def compose(name: str, transitions: Iterable[Transition] = TRANSITIONS) -> Script:
    """One script with all that it includes, and with its rows of the table. Raises: OSError when a file is missing."""
    source = _INCLUDE.sub(_included, (script_directory() / f"{name}.lua").read_text(encoding="utf-8"))
    source = source.replace(_TRANSITIONS, _table(row for row in transitions if row.script == name))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _table(rows: Iterable[Transition]) -> str:
    """Rows of the transition table as a table of Lua: state -> event -> next state."""
    events: dict[str, list[str]] = {}
    for row in rows:
        state = "false" if row.state == "none" else f"'{row.state}'"
        events.setdefault(state, []).append(f"{row.event} = '{row.next_state}'")
    lines = [f"  [{state}] = {{{', '.join(pairs)}}},\n" for state, pairs in events.items()]
    return f"local TRANSITIONS = {{\n{''.join(lines)}}}\n"


def _included(line: re.Match[str]) -> str:
    """The file that a line `-- INCLUDE <name>` asks for: what several scripts do alike."""
    return (script_directory() / "include" / f"{line[1]}.lua").read_text(encoding="utf-8")
