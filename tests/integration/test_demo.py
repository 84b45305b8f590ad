"""`scheduler demo`, as a person runs it: a server of its own, a whole fleet, a load, and the checker's word."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from click.testing import CliRunner, Result

from scheduler.audit import audit
from scheduler.audit.workloads import SpeechShape
from scheduler.cli import demo as demo_module
from scheduler.cli import rehearsal
from scheduler.cli.demo import demo

ROOT = Path(__file__).resolve().parents[2]
KEYS = [
    "submitted", "completed", "failed", "dead", "cancelled", "lost", "duplicates", "over_capacity", "affinity_rate",
    "order_violations", "dispatch_ms", "jobs_per_s",
]  # fmt: skip
CLEAN = {"failed": 0, "dead": 0, "cancelled": 0, "lost": 0, "duplicates": 0, "over_capacity": 0, "order_violations": 0}
SMALL = ["--jobs", "60", "--sessions", "20", "--json"]
END_MAX_S = 30
LINE_UP = "\x1b[1A\x1b[2K"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that start at once and hardly pause, so that a small load is over within a second or two."""
    monkeypatch.setattr(demo_module, "SHAPE", SpeechShape(start_spread_ms=200.0, turn_segments=50.0, pause_ms=50.0))


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(demo, arguments, catch_exceptions=False)


def document(result: Result) -> dict[str, Any]:
    """What stands on standard output, which is one line and nothing else."""
    (line,) = result.stdout.splitlines()
    decoded: dict[str, Any] = msgspec.json.decode(line)
    return decoded


@pytest.mark.usefixtures("quick")
def test_json_says_that_every_guarantee_held() -> None:
    """All jobs of the load complete once, within capacity and in order; no job needed the safety net."""
    result = run("--jobs", "300", "--json")
    found = document(result)
    assert result.exit_code == 0
    assert list(found)[: len(KEYS)] == KEYS
    assert found == found | CLEAN | {"submitted": 300, "completed": 300, "sweep_hits": 0}
    assert 0 <= found["affinity_rate"] <= 1
    assert 0 <= found["dispatch_ms"]["p50"] <= found["dispatch_ms"]["p99"]
    assert found["jobs_per_s"] > 0


@pytest.mark.usefixtures("quick")
def test_without_a_terminal_the_summary_says_it_in_words() -> None:
    """No picture is drawn into a file; figures, meanings and the verdict are."""
    result = run("--jobs", "60", "--sessions", "20")
    assert result.exit_code == 0
    assert "acknowledged, but without any outcome" in result.stdout
    assert "PASS: each of 60 jobs has one outcome" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.usefixtures("quick")
def test_on_a_terminal_the_picture_fits_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes, figures and the last decisions are drawn on 80 x 24, and the summary takes their place."""
    monkeypatch.setattr(demo_module, "is_screen", lambda _: True)
    screen = {"FORCE_COLOR": "1", "COLUMNS": "80", "LINES": "24"}
    result = CliRunner(env=screen).invoke(demo, ["--jobs", "60", "--sessions", "20"], catch_exceptions=False)
    picture, _, summary = result.stdout.rpartition("last decisions")
    assert result.exit_code == 0
    for words in ("slots in use", "waiting now", "affinity", "en-zh, zh-en"):
        assert words in picture
    assert "bound" in summary
    assert "PASS" in summary
    rows_redrawn = max(len(ups) // len(LINE_UP) for ups in re.findall(f"(?:{re.escape(LINE_UP)})+", result.stdout))
    assert 15 <= rows_redrawn < 24


@pytest.mark.usefixtures("quick")
def test_a_node_over_its_capacity_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that runs more handlers than its own records allow is found, counted and shown."""
    honest = audit.audit

    def halved(evidence: audit.Evidence) -> audit.Report:
        capacities = [msgspec.structs.replace(each, slots=each.slots // 2) for each in evidence.capacities]
        return honest(msgspec.structs.replace(evidence, capacities=capacities))

    monkeypatch.setattr(audit, "audit", halved)
    result = run(*SMALL)
    found = document(result)
    assert result.exit_code == 1
    assert found["over_capacity"] > 0
    assert found["completed"] == 60
    assert "over capacity: node n" in result.stderr


@pytest.mark.usefixtures("quick")
def test_a_lost_job_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that no outcome was recorded for counts as lost and is named."""
    honest = audit.audit

    def forgetful(evidence: audit.Evidence) -> audit.Report:
        outcomes = [outcome for outcome in evidence.outcomes if outcome.job_id != "j000007"]
        return honest(msgspec.structs.replace(evidence, outcomes=outcomes))

    monkeypatch.setattr(audit, "audit", forgetful)
    result = run("--jobs", "60", "--sessions", "20")
    assert result.exit_code == 1
    assert "FAIL: 1 lost" in result.stdout
    assert "lost: job j000007" in result.stderr


@pytest.mark.usefixtures("quick")
def test_a_feed_that_tells_nothing_is_made_up_for_by_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes that the feed did not tell of are read from the job records before a job is called lost."""

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(rehearsal, "follow", nothing)
    monkeypatch.setattr(rehearsal, "STALL_MS", 1_000)
    result = run(*SMALL)
    found = document(result)
    assert result.exit_code == 0
    assert (found["completed"], found["lost"]) == (60, 0)


@pytest.mark.usefixtures("quick")
def test_a_typed_server_is_left_as_it_was(url: str) -> None:
    """On somebody else's server the demo uses a namespace of its own, and nothing of it remains."""
    with redis.Redis.from_url(url, protocol=2) as client:
        client.set("{demo-other:0}:freed", "not ours")
        result = run(*SMALL, "--redis-url", url)
        assert result.exit_code == 0
        assert document(result)["completed"] == 60
        assert client.keys("*") == [b"{demo-other:0}:freed"]


@pytest.mark.parametrize(
    ("number", "again_after_s"),
    [
        (signal.SIGTERM, None),
        (signal.SIGTERM, 0.1),
        (signal.SIGTERM, 0.3),
        (signal.SIGINT, None),
        (signal.SIGHUP, None),
    ],
)
def test_a_signal_stops_everything_in_order(url: str, number: signal.Signals, again_after_s: float | None) -> None:
    """A demo that is told to end says so, gives everything back, prints no result and ends as the signal says; a second
    one within a second, also on the way out, is the same one.
    """
    arguments = ["demo", "--json", "--log-level", "info", "--redis-url", url]
    with subprocess.Popen(
        [sys.executable, "-c", "from scheduler.cli import main; main()", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert any("n6 serves" in line for line in process.stderr)
        process.send_signal(number)
        if again_after_s is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(again_after_s)
            process.send_signal(number)
        printed, logged = process.communicate(timeout=END_MAX_S)
    assert (process.returncode, printed) == (128 + number, "")
    assert re.search(r"^stopped: \d+ of 2,000 jobs had ended, so there is no verdict$", logged, re.MULTILINE)
    assert "Task was destroyed" not in logged
    assert "Traceback" not in logged
    with redis.Redis.from_url(url, protocol=2) as client:
        assert client.keys("*") == []
