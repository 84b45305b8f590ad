"""Files and directories that only their user may read. Blocking code."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
UMASK: Final = 0o777 - DIRECTORY_MODE


def make_private_directory(path: Path) -> None:
    """Make a directory, and what is missing above it, or take from others what they may do in one that is there.

    One that belongs to another user stays as it is. Raises: OSError.
    """
    for above in reversed(path.parents):
        if not above.exists():
            above.mkdir(DIRECTORY_MODE, exist_ok=True)
    path.mkdir(DIRECTORY_MODE, exist_ok=True)
    with contextlib.suppress(PermissionError):
        path.chmod(DIRECTORY_MODE)


def open_private(path: str, flags: int) -> int:
    """An opener for `open`: the file is private from its begin, also when an older one is there. Raises: OSError."""
    descriptor = os.open(path, flags, FILE_MODE)
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, FILE_MODE)
    return descriptor


def write_private(path: Path, text: str) -> None:
    """Write a private file. Raises: OSError."""
    with open(path, "w", encoding="utf-8", opener=open_private) as file:
        file.write(text)
