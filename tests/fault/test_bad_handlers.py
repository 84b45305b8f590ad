"""A node whose handlers do whatever other people's code does: only what is bad ends, and what is beside it goes on."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from scheduler import Producer
from scheduler.protocol.messages import Outcome
from tests.fault import bad_handlers
from tests.fault.bad_handlers import BAD, ONLY_ASYNC
from tests.integration.test_cli_processes import ROOT, up

pytestmark = pytest.mark.timeout(120)

BESIDE: Final = 4  # jobs that run all the time
WAIT_MS: Final = 40_000
DRAIN_MS: Final = 500
ONE_ATTEMPT: Final = {"SCHED_ATTEMPTS_MAX": "1"}
SHORT_LEASES: Final = {
    "SCHED_START_MS": "1000", "SCHED_LEASE_MS": "4000", "SCHED_MARGIN_MS": "100", "SCHED_SILENCE_MS": "2000",
}  # fmt: skip
GONE_S_MAX: Final = 4.0  # half a second to drain, two to leave, and what a busy machine needs


class NodeProcess:
    """A node process with a handler of bad_handlers.py. log: what it has written to stderr."""

    def __init__(self, directory: Path, form: str) -> None:
        arguments = f"node --id n1 --capacity 64 --drain-ms {DRAIN_MS} --handler bad_handlers:{form}"
        (directory / "bad_handlers.py").write_text(Path(bad_handlers.__file__).read_text())
        self._stderr = (directory / "node.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "scheduler", *arguments.split()],
            cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT)},
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


@pytest.fixture
def node(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeProcess]:
    """A node beside `scheduler up`, with the handler that the test names."""
    for name, value in (SHORT_LEASES if "keeps" in request.param else ONE_ATTEMPT).items():
        monkeypatch.setenv(name, value)
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


@pytest.mark.parametrize("node", ["plain", "in_the_loop"], indirect=True)
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
        assert re.search(r"bad_handlers.plain held Python's lock \(GIL\).* for job .*\block \(attempt", node.log)
    else:
        assert re.search(r"the event loop was blocked for \d+ ms; .*: bad_handlers.in_the_loop ran, for job", node.log)
        assert "a task or callback that a handler has left" in node.log
        assert "a handler stopped the event loop" in node.log
    bad = {name for name, (state, _) in expected.items() if state != "completed"}
    assert {name for name in bad if f"job {name} " not in node.log and f"job {name}:" not in node.log} == set()


@pytest.mark.parametrize("node", ["keeps_lock", "keeps_loop"], indirect=True)
async def test_a_run_that_keeps_the_lock_past_its_first_lease_completes(node: NodeProcess) -> None:
    """RULES 12: the server knew that it was started, so it had a whole lease."""
    async with Producer(os.environ["SCHED_REDIS_URL"]) as producer:
        job_id = await producer.submit("s1", payload="2")
        assert await producer.result(job_id, WAIT_MS) == "attempt 1"
    assert re.search(r"bad_handlers.keeps_\w+ .*for job " + job_id, node.log)


@pytest.mark.parametrize("node", ["keeps_lock", "keeps_loop"], indirect=True)
async def test_a_run_that_keeps_the_lock_past_its_lease_is_lost(node: NodeProcess, tmp_path: Path) -> None:
    """It is charged as that, and not as one that was never started."""
    url = os.environ["SCHED_REDIS_URL"]
    async with Producer(url) as producer:
        job_id = await producer.submit("s1", payload="7")
        counted: list[Any] = []
        with redis.Redis.from_url(url) as client:
            while counted[1:] in ([], [None, None], [b"0", b"0"]):
                counted = client.hmget(f"{{sched:0}}:job:{job_id}", "attempts", "crashes", "not_started")
                await asyncio.sleep(0.05)
        (tmp_path / "go").touch()
        assert await producer.result(job_id, WAIT_MS) == "attempt 2"
    assert counted == [b"0", b"1", b"0"]
