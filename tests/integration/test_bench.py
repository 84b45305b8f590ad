"""`./tools/bench`, as a person runs it. Nothing here says how fast anything has to be."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from benchmarks import dispatch as dispatch_module
from benchmarks import relay as relay_module
from benchmarks import workload
from benchmarks.command import QUICK_JOBS, QUICK_ROUNDS, bench
from click.testing import CliRunner, Result

from scheduler.store.store import Store

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench"
FIGURES = {"jobs_per_s", "server_us", "client_us", "others_cores", "rounds"}
SMALL = ["--jobs", "200", "--rounds", "1", "--nodes", "10", "--sessions", "50"]
END_MAX_S = 50


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(bench, arguments)


def document(text: str) -> dict[str, Any]:
    """What stands on standard output, which is one line and nothing else."""
    (line,) = text.splitlines()
    decoded: dict[str, Any] = msgspec.json.decode(line)
    return decoded


def test_quick_dispatch_prints_one_json_object() -> None:
    """Both benchmarks are measured in pairs, and every job is placed exactly once."""
    command = [str(TOOL), "dispatch", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=END_MAX_S)
    assert done.returncode == 0, done.stderr
    found = document(done.stdout)
    assert set(found) == {"facts", "inputs", "relay", "dispatch", "ratio", "placed"}
    assert found["placed"] == QUICK_ROUNDS * QUICK_JOBS
    for name in ("relay", "dispatch"):
        assert set(found[name]) == FIGURES
        assert len(found[name]["rounds"]) == QUICK_ROUNDS
        assert 0 < found[name]["jobs_per_s"]["min"] <= found[name]["jobs_per_s"]["median"]
        assert found[name]["server_us"]["median"] > 0
        assert found[name]["client_us"]["median"] > 0
    assert found["ratio"]["of_medians"] > 0
    assert len(found["ratio"]["rounds"]) == QUICK_ROUNDS


@pytest.mark.parametrize(
    ("name", "figures", "claims"),
    [
        ("waits", {"jobs", "wait_ms", "beside_free_slot_ms", "no_free_slot_ms"}, 2),
        ("evenness", {"averaged", "instants"}, 2),
        ("sessions", {"dispatch_ms", "decisions", "heartbeats"}, 3),
    ],
)
def test_a_quick_load_is_lived_and_judged(name: str, figures: set[str], claims: int, url: str) -> None:
    """Every job of the load is placed once and ends; the exit code says whether all limits were kept."""
    result = run(name, "--quick", "--seconds", "1", "--hold-ms", "100", "--json", "--redis-url", url)
    found = document(result.stdout)
    load = {"use", "seconds", "submission_lag_ms", "cores"}
    assert set(found) == {"ok", "claims", "facts", "inputs"} | load | figures
    assert len(found["claims"]) == claims
    assert found["ok"] == all(claim["ok"] for claim in found["claims"])
    assert result.exit_code == int(not found["ok"])
    assert 0.3 < found["use"] <= 1.05
    with redis.Redis.from_url(url, protocol=2) as client:
        assert client.keys("*") == []


def test_a_quick_flood_stands_beside_the_other_pairs(url: str) -> None:
    """The node of the rare pair cannot take it all, and others go on."""
    arguments = ["--quick", "--seconds", "0.5", "--flood-jobs", "500", "--json", "--redis-url", url]
    result = run("flood", *arguments)
    found = document(result.stdout)
    assert set(found) == {"ok", "claims", "facts", "inputs", "rounds", "ratio", "stood"}
    assert result.exit_code == int(not found["ok"])
    (only,) = found["rounds"]
    assert found["ratio"] == only["ratio"] > 0
    assert 0 < found["stood"] < 500
    for times in ("quiet", "pushing", "standing", "flooded", "singles"):
        assert 0 < only[times]["p50"] <= only[times]["p99"] <= only[times]["max"]


def test_a_freed_slot_goes_to_the_next_who_waits(url: str) -> None:
    """One job is placed for each release; no key is left."""
    result = run("wait", "--quick", "--releases", "20", "--json", "--redis-url", url)
    found = document(result.stdout)
    assert set(found) == {"ok", "claims", "facts", "inputs", "ms"}
    assert result.exit_code == int(not found["ok"])
    assert 0 < found["ms"]["p50"] <= found["ms"]["p99"] <= found["ms"]["max"]
    with redis.Redis.from_url(url, protocol=2) as client:
        assert client.keys("*") == []


def test_quick_latency_measures_the_relay_and_a_dispatcher_at_each_rate(url: str) -> None:
    """Rates that were asked for, and a share of the most; no key is left, and notifications are as they were."""
    options = ["--quick", "--rate", "200", "--share", "50", "--seconds", "0.2", "--nodes", "10"]
    result = run("latency", *options, "--json", "--redis-url", url)
    found = document(result.stdout)
    assert set(found) == {"ok", "claims", "facts", "inputs", "most_per_s", "rows"}
    assert result.exit_code == int(not found["ok"])
    assert [(row["design"], row["share"]) for row in found["rows"]] == [
        ("relay", None), ("dispatch", None), ("relay", 50), ("dispatch", 50),
    ]  # fmt: skip
    for row in found["rows"]:
        assert 0 < row["latency"]["p50_ms"] <= row["latency"]["p99_ms"] <= row["latency"]["p999_ms"]
    with redis.Redis.from_url(url, protocol=2) as client:
        assert client.keys("*") == []
        assert client.config_get("notify-keyspace-events") == {"notify-keyspace-events": ""}


def test_the_jobs_of_a_dispatcher_that_ends_are_placed_by_another(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Told to stop, and killed; a short lease, so that the second does not take long."""
    monkeypatch.setenv("SCHED_HEARTBEAT_MS", "200")
    monkeypatch.setenv("SCHED_PARTITION_LEASE_MS", "1500")
    result = run("owner", "--quick", "--jobs", "64", "--json", "--redis-url", url)
    found = document(result.stdout)
    assert set(found) == {"ok", "claims", "facts", "inputs", "ends", "rounds"}
    assert result.exit_code == int(not found["ok"])
    assert [each["end"] for each in found["rounds"]] == ["stop", "kill"]
    for each in found["rounds"]:
        assert 0 < each["first_ms"] <= each["last_ms"] <= each["done_ms"]
    assert [claim["limit"] for claim in found["claims"]] == [1_000, 2_500]


def test_memory_is_told_of_each_kind(url: str) -> None:
    """In the server and in a dispatcher."""
    result = run("memory", "--count", "200", "--json", "--redis-url", url)
    found = document(result.stdout)
    assert result.exit_code == 0
    assert {each["where"] for each in found["bytes"]} == {"server", "dispatcher"}
    assert all(20 < each["bytes"] < 100_000 for each in found["bytes"])


def test_a_quick_lifecycle_has_an_outcome_for_every_job(url: str) -> None:
    """Beside the relay, and judged by their ratio; no key is left."""
    result = run("lifecycle", *SMALL, "--json", "--redis-url", url)
    found = document(result.stdout)
    assert set(found) == {"ok", "claims", "facts", "inputs", "relay", "lifecycle", "ratio", "rounds"}
    assert result.exit_code == int(not found["ok"])
    assert len(found["relay"]) == len(found["lifecycle"]) == 1
    assert found["ratio"] > 0
    with redis.Redis.from_url(url, protocol=2) as client:
        assert client.keys("*") == []


def test_quick_placement_measures_every_size() -> None:
    """Pure files alone, so no server is started."""
    result = run("placement", "--quick", "--jobs", "256", "--large", "1000", "--json")
    found = document(result.stdout)
    assert set(found) == {"ok", "claims", "facts", "inputs", "costs", "ratios"}
    assert result.exit_code == int(not found["ok"])
    assert [(cost["nodes"], len(cost["rounds"]), cost["placed"]) for cost in found["costs"]] == [
        (100, 3, 1.0),
        (1_000, 3, 1.0),
    ]
    assert min(cost["us"] for cost in found["costs"]) > 0


def test_a_quick_snapshot_follows_a_fleet_that_beats(url: str) -> None:
    """Every change is seen, by deltas alone; a steady fleet publishes nothing; no key is left."""
    result = run("snapshot", "--quick", "--seconds", "0.5", "--json", "--redis-url", url)
    found = document(result.stdout)
    assert set(found) == {"ok", "claims", "facts", "inputs", "live", "costs"}
    assert result.exit_code == int(not found["ok"])
    (live,) = found["live"]
    assert (live["nodes"], live["unseen"], live["loads"], live["steady"]["replaced"]) == (100, 0, 0, 0)
    assert 0 < live["visible_ms"]["p50"] <= live["visible_ms"]["p99"]
    assert live["changing"]["changes"] >= live["changing"]["replaced"] > 0
    assert [cost["nodes"] for cost in found["costs"]] == [100, 1_000]
    assert all(value > 0 for cost in found["costs"] for name, value in cost.items() if name != "second_ms")
    with redis.Redis.from_url(url, protocol=2) as client:
        assert client.keys("*") == []


@pytest.mark.parametrize("name", ["waits", "placement"])
def test_a_claim_is_told_in_80_columns(name: str, url: str) -> None:
    """Machine, inputs, figures, and a line that begins with PASS or FAIL for each limit."""
    small = {"waits": ["--seconds", "0.5", "--hold-ms", "50", "--redis-url", url], "placement": ["--jobs", "128"]}
    result = run(name, "--quick", *small[name])
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert result.exit_code == int(any(line.startswith("FAIL: ") for line in lines))
    assert any(line.startswith(("PASS: ", "FAIL: ")) for line in lines)


def test_the_relay_alone_leaves_a_typed_server_as_it_was(url: str) -> None:
    """On somebody else's server a namespace of its own is used, and nothing of it remains."""
    with redis.Redis.from_url(url, protocol=2) as client:
        client.set("{bench-other:0}:freed", "not ours")
        result = run("relay", *SMALL, "--json", "--redis-url", url)
        assert result.exit_code == 0
        assert set(document(result.stdout)) == {"facts", "inputs", "relay"}
        assert client.keys("*") == [b"{bench-other:0}:freed"]


def test_the_profile_tells_of_both_sides_in_80_columns(url: str) -> None:
    """Figures, facts, functions of the client and commands of the server fit a terminal."""
    result = run("dispatch", *SMALL, "--profile", "--redis-url", url)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    words = result.stdout.split()
    for word in ("relay", "dispatch", "ratio", "redis-py", "charged", "evalsha", "xread", "network", "xadd"):
        assert word in words


@pytest.mark.parametrize("name", ["relay", "dispatch"])
def test_a_job_too_many_ends_with_1(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that nobody carried away are found after the round, and the server is cleaned up all the same."""
    module = {"relay": relay_module, "dispatch": dispatch_module}[name]
    honest = workload.entries_in

    async def one_more(store: Store, streams: list[str]) -> int:
        return await honest(store, streams) + int(":jobs:" in streams[0])

    monkeypatch.setattr(module, "entries_in", one_more)
    result = run(name, *SMALL, "--json", "--redis-url", url)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "1 are left in the intake" in result.stderr
    with redis.Redis.from_url(url, protocol=2) as client:
        assert client.keys("*") == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["dispatch", "--batch", "129"], 2, "129 is not in the range 1<=x<=128"),
        (["relay", "--profile"], 2, "No such option"),
        (["dispatch", "--redis-url", "http://x"], 2, "--redis-url: its scheme is not known"),
        (["relay", "--redis-url", "redis://127.0.0.1:1"], 3, "127.0.0.1:1"),
    ],
)
def test_errors_are_said_in_a_line(arguments: list[str], code: int, words: str) -> None:
    """What was typed wrong ends with 2, a server that is not there with 3."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr.splitlines()[-1]
