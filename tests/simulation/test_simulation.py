"""The whole scheduler on virtual time: seeds that failed once, and fresh ones; a seed is the same run each time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.simulation.fleet import quiet
from tests.simulation.plan import SCENARIOS, draw
from tests.simulation.run import run
from tests.simulation.seeds import Seed, read_seeds
from tests.simulation.world import sweep_up

ROOT: Final = Path(__file__).resolve().parents[2]
FRESH: Final = 4
FRESH_JOBS: Final = 30  # a quarter of what `tools/simulate` runs, for there are many
KNOWN: Final = read_seeds()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    quiet()
    yield
    sweep_up()


def base_of_fresh_seeds() -> int:
    """Other seeds in each run of the suite; a failure names the one that it was. xdist's workers agree on them."""
    return int.from_bytes(os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid())).encode()[:4]) * 1_000


@pytest.mark.parametrize("number", range(FRESH))
def test_fresh_seed(number: int) -> None:
    """No guarantee is broken by what goes wrong day by day."""
    seed = base_of_fresh_seeds() + number
    result, _ = run(draw(seed, SCENARIOS["mixed"], FRESH_JOBS))
    assert not result.violations, f"./tools/simulate --seed {seed} --jobs {FRESH_JOBS}: {result.violations}"


@pytest.mark.parametrize("seed", [each for each in KNOWN if each.status == "mended"], ids=lambda each: each.name)
def test_mended_seed(seed: Seed) -> None:
    """What failed once holds now."""
    assert run(seed.plan)[0].violations == ()


@pytest.mark.parametrize("seed", [each for each in KNOWN if each.status == "open"], ids=lambda each: each.name)
def test_open_seed(seed: Seed) -> None:
    """It still fails. Once it does not, it is mended, and the list must say so."""
    assert seed.invariant in run(seed.plan, until=seed.invariant)[0].invariants


def test_a_seed_is_the_same_run_in_every_process() -> None:
    """Whatever the hashes of texts are, which differ from process to process."""
    command = [sys.executable, "-m", "tests.simulation.command", "--seed", "2", "--jobs", "25"]
    digests = set()
    for hashes in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hashes}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout.rpartition("digest ")[2])
    assert len(digests) == 1
