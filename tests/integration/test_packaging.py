"""What an installation contains, from a wheel and from a source tree."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import scheduler
from scheduler.store.scripts import SCRIPT_NAMES

ROOT = Path(__file__).resolve().parents[2]
SHOW_SCRIPTS = """
from scheduler.store.scripts import load_scripts, script_directory
print(script_directory())
print(*load_scripts())
"""
SHOW_VERSION = """
from importlib.metadata import version
print(version("stream-scheduler"))
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None,
    reason="building a wheel needs pip and hatchling, which the extra `dev` installs",
)


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what a wheel of this source tree installs."""
    wheels = tmp_path_factory.mktemp("wheels")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    unpacked = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return unpacked


def output_of(code: str, import_directory: Path, current_directory: Path) -> list[str]:
    """The lines that `code` prints in a new python that looks in `import_directory` first.

    Not measured: the coverage of a copy would count as that of a second, hardly tested program.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(import_directory)},
        cwd=current_directory,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


def test_wheel_contents(unpacked_wheel: Path) -> None:
    """A wheel has the package, every script inside it, the type marker and the licence, and nothing else."""
    information = f"stream_scheduler-{scheduler.__version__}.dist-info"
    installed = unpacked_wheel / "scheduler"
    assert {path.name for path in unpacked_wheel.iterdir()} == {"scheduler", information}
    lua = installed / "lua"
    assert {path.relative_to(lua): path.read_bytes() for path in lua.rglob("*") if path.is_file()} == {
        path.relative_to(ROOT / "lua"): path.read_bytes() for path in (ROOT / "lua").rglob("*.lua")
    }
    assert (installed / "py.typed").is_file()
    assert (unpacked_wheel / information / "licenses" / "LICENSE").is_file()
    assert "scheduler = scheduler.cli:main" in (unpacked_wheel / information / "entry_points.txt").read_text()


def test_scripts_of_a_wheel(unpacked_wheel: Path, tmp_path: Path) -> None:
    """An installed package finds its scripts inside itself."""
    assert output_of(SHOW_SCRIPTS, unpacked_wheel, tmp_path) == [
        str(unpacked_wheel / "scheduler" / "lua"),
        " ".join(SCRIPT_NAMES),
    ]


def test_scripts_of_a_source_tree(tmp_path: Path) -> None:
    """A source tree, as an editable install uses it, finds the scripts beside the package."""
    assert output_of(SHOW_SCRIPTS, ROOT, tmp_path) == [str(ROOT / "lua"), " ".join(SCRIPT_NAMES)]


def test_version_of_a_wheel(unpacked_wheel: Path, tmp_path: Path) -> None:
    """The version is that of the package; it stands in one place."""
    assert output_of(SHOW_VERSION, unpacked_wheel, tmp_path) == [scheduler.__version__]
