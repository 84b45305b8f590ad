"""A node whose handlers do whatever other people's code does: only what is bad ends, and what is beside it goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from scheduler import Producer
from scheduler.calls import Outcome
from tests.fault import bad_handlers
from tests.fault.bad_handlers import BAD, ONLY_ASYNC
from tests.integration.test_cli_processes import ROOT, up

pytestmark = pytest.mark.timeout(120)

BESIDE: Final = 4  # jobs that run all the time
WAIT_MS: Final = 40_000
DRAIN_MS: Final = 500
GONE_S_MAX: Final = 4.0  # half a second to drain, two to leave, and what a busy machine needs


class NodeProcess:
    """A node process with a handler of bad_handlers.py. log: what it has written to stderr."""

    def __init__(self, directory: Path, form: str) -> None:
        arguments = f"node --id n1 --capacity 64 --drain-ms {DRAIN_MS} --handler bad_handlers:{form}"
        (directory / "bad_handlers.py").write_text(Path(bad_handlers.__file__).read_text())
        self._stderr = (directory / "node.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "scheduler", *arguments.split()],
            cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT), "SCHED_ATTEMPTS_MAX": "1"},
            stdout=subprocess.PIPE, stderr=self._stderr, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.log

    @property
    def log(self) -> str:
        """So far."""
        return Path(self._stderr.name).read_text()

    def close(self) -> None:
        """End it, however."""
        self.process.kill()
        self.process.communicate()
        self._stderr.close()


@pytest.fixture(params=["plain", "in_the_loop"])
def node(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeProcess]:
    """A node beside `scheduler up`, once for each form of handler."""
    monkeypatch.setenv("SCHED_ATTEMPTS_MAX", "1")
    with up(tmp_path) as (_, url):
        monkeypatch.setenv("SCHED_REDIS_URL", url)
        node = NodeProcess(tmp_path, request.param)
        try:
            yield node
        finally:
            node.close()


def test_thirty_things_are_bad() -> None:
    """At least, in both forms."""
    assert len(BAD) >= 30


async def test_only_what_is_bad_ends(node: NodeProcess, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Jobs that ran beside all of it complete at their first attempt, and so does one that comes after it, on the same
    boot; a handler that hangs does not keep the node when it is told to leave.
    """
    is_plain = "plain" in request.node.name
    cases = BAD if is_plain else BAD | ONLY_ASYNC
    async with Producer(os.environ["SCHED_REDIS_URL"]) as producer:

        async def submit(name: str, payload: str = "") -> str:
            return await producer.submit(name, job_id=name, payload=payload or name)

        async def ended(name: str) -> Outcome:
            return await producer.outcome(name, WAIT_MS)

        beside = [await submit(f"beside-{number}", "good") for number in range(BESIDE)]
        for name in cases:
            await submit(name)
        ends = {name: await ended(name) for name in cases}
        assert node.process.poll() is None
        beside.append(await submit("after", "good"))
        (tmp_path / "go").touch()
        for name in beside:
            outcome = await ended(name)
            assert (outcome.state, outcome.attempts, await producer.result(name)) == ("completed", 0, "fine")
        await submit("hang")
        await submit("again", "good")  # which runs when that one does
        assert (await ended("again")).state == "completed"
        expected = {name: end for name, (_, end) in cases.items()}
        got = {
            name: (each.state, await producer.result(name) if each.state == "completed" else each.reason)
            for name, each in ends.items()
        }
    assert got == expected
    began_s = time.monotonic()
    node.process.send_signal(signal.SIGTERM)
    node.process.wait(30)
    assert time.monotonic() - began_s < GONE_S_MAX
    assert node.log.count(" serves as boot ") == 1
    if is_plain:
        assert re.search(r"bad_handlers.plain held Python's lock \(GIL\) for \d+ ms, for job lock ", node.log)
    else:
        assert re.search(r"the event loop was blocked for \d+ ms; .*: bad_handlers.in_the_loop ran, for job", node.log)
        assert "a task or callback that a handler has left" in node.log
        assert "a handler stopped the event loop" in node.log
    assert "Traceback" not in node.log
