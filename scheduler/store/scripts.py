"""The Lua scripts as they lie in `lua/`: one file a transition, named like the method that runs it."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Final

import msgspec

CONTROL_SCRIPTS: Final = ("layout", "beat", "lead", "take", "publish", "restart", "command")
CELL_SCRIPTS: Final = (
    "boot", "claim", "capacity", "count", "leave", "submit", "reserve", "read", "renew", "release", "reject", "promote",
    "describe", "uncount", "last_ids", "rebuild", "unslotted", "parked", "reopen", "retype",
)  # fmt: skip
SCRIPT_NAMES: Final = CONTROL_SCRIPTS + CELL_SCRIPTS
_INCLUDE: Final = re.compile(r"^-- INCLUDE (\w+)\n", re.MULTILINE)


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
    scripts = {}
    for name in SCRIPT_NAMES:
        source = _INCLUDE.sub(_included, (script_directory() / f"{name}.lua").read_text(encoding="utf-8"))
        scripts[name] = Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
    return scripts


def _included(line: re.Match[str]) -> str:
    """The file that a line `-- INCLUDE <name>` asks for: what several scripts do alike."""
    return (script_directory() / "include" / f"{line[1]}.lua").read_text(encoding="utf-8")
