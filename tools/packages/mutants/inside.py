"""A plugin of pytest, for runs in a copy of the project: what they test has to be that copy.

An editable installation leads to the folder that it was installed from. Without this check a change in the copy could
go unnoticed, because the tests never saw it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

ELSEWHERE: Final = 90
"""How pytest ends when the scheduler, or its scripts, are not those of the current directory: no failure of a test."""


def pytest_collection_finish() -> None:
    """Look where package and scripts come from, once all is imported."""
    import scheduler
    from scheduler.store.scripts import script_directory

    copy = Path.cwd().resolve()
    package, scripts = Path(scheduler.__file__).resolve().parent, script_directory().resolve()
    if (package, scripts) != (copy / "scheduler", copy / "lua"):
        pytest.exit(f"the tests would run {package} with {scripts}: expected those in {copy}", returncode=ELSEWHERE)
