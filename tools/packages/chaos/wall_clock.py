"""A server whose time of day can be stepped while it runs: a small library is compiled and preloaded into it.

What it adds stands in a file that the library maps, so that a step is one write, and is seen by the next look at the
clock. Only what the server takes for the time of day is changed, as by somebody who sets the clock of its machine.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

from scheduler.errors import SchedulerError

COMPILER: Final = "gcc"
SOURCE: Final = Path(__file__).with_suffix(".c")
COMPILE_S_MAX: Final = 60
SEPARATORS: Final = " :"  # of the libraries in LD_PRELOAD


class WallClock:
    """The clock of one server. Args: directory, for the library and the file; made here.

    Attributes: ahead_ms, of the time of day of this machine.
    Raises: SchedulerError when it cannot be compiled, or not be preloaded.
    """

    def __init__(self, directory: Path) -> None:
        self.ahead_ms = 0
        if set(str(directory)) & set(SEPARATORS):
            raise SchedulerError(f"directory = {str(directory)!r}: expected no space and no colon, to preload from it")
        directory.mkdir(parents=True, exist_ok=True)
        self._library = directory / "wall_clock.so"
        self._file = directory / "ahead_ms"
        self._write()
        _compile(self._library)

    @property
    def variables(self) -> dict[str, str]:
        """What the server's environment needs."""
        return {"LD_PRELOAD": str(self._library), "WALL_CLOCK_FILE": str(self._file)}

    def step(self, by_ms: int) -> None:
        """Set the clock on, or back."""
        self.ahead_ms += by_ms
        self._write()

    def _write(self) -> None:
        with self._file.open("r+b" if self._file.exists() else "wb", buffering=0) as file:
            file.write(struct.pack("=q", self.ahead_ms))  # in place, for the file is mapped


def _compile(library: Path) -> None:
    if shutil.which(COMPILER) is None:
        raise SchedulerError(f"{COMPILER} is not on PATH: expected it, to build what moves the server's clock")
    command = [COMPILER, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S_MAX, check=False)
    if done.returncode != 0:
        raise SchedulerError(f"{SOURCE.name} cannot be compiled: {done.stderr.strip()}")
