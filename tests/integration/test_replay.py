"""`scheduler replay`: a slice of the recorded trace and live speech, each against a fleet of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from scheduler.cli import replay as replay_module
from scheduler.cli.replay import replay

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("SCHED_TEST_DATA") or ROOT.parent / "shared" / "data")
TRACE = DATA / "conversations.jsonl"
CLEAN = {"failed": 0, "dead": 0, "cancelled": 0, "lost": 0, "duplicates": 0, "over_capacity": 0, "order_violations": 0}


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(replay, arguments, catch_exceptions=False)


def document(result: Result) -> dict[str, Any]:
    """What stands on standard output, which is one line and nothing else."""
    (line,) = result.stdout.splitlines()
    decoded: dict[str, Any] = msgspec.json.decode(line)
    return decoded


def test_live_speech_is_served() -> None:
    """Every segment of the seeded speech completes once; the report says which seed and pairs were used."""
    result = run("--speech", "--jobs", "300", "--speed", "4", "--seed", "3", "--pairs", "en:zh=2,fr:en", "--json")
    found = document(result)
    assert result.exit_code == 0
    expected = CLEAN | {"submitted": 300, "completed": 300, "sweep_hits": 0, "seed": 3}
    assert found == found | expected | {"pairs": {"en:zh": 2.0, "fr:en": 1.0}, "speed": 4.0, "slots": 64}


@pytest.mark.skipif(not TRACE.exists(), reason=f"no recorded trace at {TRACE}; SCHED_TEST_DATA names its folder")
def test_a_slice_of_the_trace_ends_with_one_outcome_each() -> None:
    """A fleet smaller than the load makes jobs wait, and still each has one outcome, within capacity and in order."""
    result = run(str(TRACE), "--limit", "400", "--speed", "200", "--nodes", "4", "--capacity", "3", "--json")
    found = document(result)
    assert result.exit_code == 0
    assert found == found | CLEAN | {"submitted": 400, "completed": 400, "sweep_hits": 0, "slots": 12}
    assert 0 < found["waited"] <= 400


def test_a_small_trace_keeps_its_sessions(tmp_path: Path) -> None:
    """Requests of the file become jobs of their sessions, with work from their output tokens."""
    trace = tmp_path / "trace.jsonl"
    requests = [
        {"at_ms": 10 * number, "session_id": f"c{number % 5}", "input_tokens": 1, "output_tokens": number % 7}
        for number in range(100)
    ]
    trace.write_bytes(b"\n".join(msgspec.json.encode(request) for request in requests))
    result = run(str(trace), "--speed", "2", "--ms-per-token", "10", "--nodes", "2", "--capacity", "16")
    assert result.exit_code == 0
    assert "100 jobs, 5 sessions at speed 2" in result.stdout
    assert "pairs en:zh=5" in result.stdout
    assert "PASS" in result.stdout


def test_on_a_terminal_bars_show_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was submitted and what has ended is drawn while it runs."""
    monkeypatch.setattr(replay_module, "is_screen", lambda _: True)
    arguments = ["--speech", "--jobs", "40", "--speed", "10", "--nodes", "1"]
    result = CliRunner(env={"FORCE_COLOR": "1", "COLUMNS": "80"}).invoke(replay, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for words in ("submitted", "ended", "/40", "PASS"):
        assert words in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "expected either FILE or --speech"),
        (("trace.jsonl", "--speech"), "expected either FILE or --speech"),
        (("trace.jsonl", "--jobs", "5"), "--jobs goes with --speech"),
        (("--speech", "--pairs", "en-zh"), "'en-zh': expected source:target=weight"),
        (("--speech", "--speed", "0"), "--speed"),
    ],
)
def test_wrong_usage_is_explained(arguments: tuple[str, ...], words: str) -> None:
    """What cannot be meant ends with 2, before anything is started."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
