"""The Lua scripts as they lie in `lua/`: one file a transition, named like the method that runs it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Final

import msgspec

CONTROL_SCRIPTS: Final = ("layout", "beat", "lead", "take", "publish", "command")
CELL_SCRIPTS: Final = ("claim", "capacity", "leave", "submit", "reserve", "renew", "release", "reject", "promote")
SCRIPT_NAMES: Final = CONTROL_SCRIPTS + CELL_SCRIPTS


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
        source = (script_directory() / f"{name}.lua").read_text(encoding="utf-8")
        scripts[name] = Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
    return scripts
