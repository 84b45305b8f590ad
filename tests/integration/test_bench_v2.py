"""`./tools/bench v2` and `complexity`, as a person runs them, and the baseline itself on a real server.

Nothing here says how fast anything has to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from benchmarks.command import bench
from benchmarks.measure import BenchmarkFailed
from benchmarks.v2.baseline import Baseline, Request
from benchmarks.v2.child import child
from benchmarks.v2.rows import CACHED, OURS, ROWS, UNLOCKED, UNLOCKED_CACHED, V2, Row
from click.testing import CliRunner, Result

from scheduler.config import DEFAULTS
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.protocol.snapshot import Node, Snapshot
from scheduler.store.store import Store

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench"
END_MAX_S = 55
OF_V2 = [row for row in ROWS if not row.is_ours]
FIGURES = {
    "jobs_per_s", "mean_ms", "p99_ms", "latency", "server_us", "scheduler_us", "load_us", "others_cores", "errors",
}  # fmt: skip


def run(*arguments: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(bench, arguments)


def document(text: str) -> dict[str, Any]:
    """What stands on standard output, which is one line and nothing else."""
    (line,) = text.splitlines()
    decoded: dict[str, Any] = msgspec.json.decode(line)
    return decoded


# ---- the commands ---------------------------------------------------------------------------------------------------


def test_quick_v2_measures_every_design_at_every_load_without_errors() -> None:
    """One JSON object; the exit code says whether all claims were reached."""
    done = subprocess.run([str(TOOL), "v2", "--quick", "--json"], capture_output=True, text=True, timeout=END_MAX_S)
    found = document(done.stdout)
    assert set(found) == {"ok", "claims", "in_flight", "facts", "inputs"}
    assert done.returncode == int(not found["ok"])
    assert found["ok"] == all(claim["ok"] for claim in found["claims"])
    assert len(found["claims"]) == 7
    assert set(found["in_flight"]) == {"1", "8", "64"}
    for rows in found["in_flight"].values():
        assert list(rows) == [row.name for row in ROWS]
        for figures in rows.values():
            assert set(figures) == FIGURES
            assert set(figures["errors"].values()) == {0}
            latency = figures["latency"]
            assert 0 < latency["p50_ms"] <= latency["p99_ms"] <= latency["p999_ms"]
            assert figures["jobs_per_s"]["median"] > 0


def test_a_typed_server_is_left_as_it_was(url: str) -> None:
    """The table fits a terminal; namespace and notifications are gone afterwards."""
    with redis.Redis.from_url(url, protocol=2) as client:
        client.config_set("notify-keyspace-events", "Ex")
        try:
            result = run("v2", "--quick", "--in-flight", "3", "--nodes", "5", "--redis-url", url)
            assert client.config_get("notify-keyspace-events") == {"notify-keyspace-events": "xE"}
        finally:
            client.config_set("notify-keyspace-events", "")
        assert client.keys("*") == []
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    for words in (
        "3 in flight",
        "v2, no lock",
        "dispatch",
        "errors: none",
        "A closed loop",
        "PASS: errors of dispatch, 3 in flight",
    ):
        assert words in result.stdout


def test_complexity_prints_both_and_their_ratio() -> None:
    """In words and as one JSON object, whatever it is."""
    result, as_json = run("complexity"), run("complexity", "--json")
    assert (result.exit_code, as_json.exit_code) == (0, 0)
    assert max(map(len, result.stdout.splitlines())) <= 80
    found = document(as_json.stdout)
    assert set(found) == {"parts", "by_v2", "counted"}
    for part in ("deciding", "dispatch"):
        total, base = found["parts"][part]["total"], found["parts"]["v2"]["total"]
        assert found["by_v2"][part]["total"] == round(total / base, 3)
        assert f"{part} by v2, of all functions: {round(total / base, 3):.2f}" in result.stdout


# ---- the process that designs run in --------------------------------------------------------------------------------


async def test_a_design_that_cannot_work_is_told() -> None:
    """The command would wait for jobs that nobody dispatches."""
    async with child("redis://127.0.0.1:1", DEFAULTS) as process:
        with pytest.raises(BenchmarkFailed, match="start nobody"):
            await process.start(Row("nobody", "nobody"))


@pytest.mark.parametrize("row", [V2, OURS])
async def test_designs_are_started_and_stopped_again_and_again(row: Row, url: str, store: Store) -> None:
    """In one process, which tells what CPU time it has used."""
    await store.control.write_layout()
    async with child(url, DEFAULTS) as process:
        for _ in range(2):
            await process.start(row)
            assert await process.cpu_ns() > 0
            await process.stop()


# ---- the baseline ---------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def baseline(
    store: Store, row: Row, *, nodes: int = 2, slots: int = 3, ms: int = 60_000
) -> AsyncIterator[Baseline]:
    """A baseline for a fleet that serves en:zh."""
    members = [Node(f"n{number}", "1-a", slots, "p", (("en", "zh"),)) for number in range(nodes)]
    opened = Baseline(store, Snapshot(1, tuple(members)), row, ms)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


async def requests(store: Store, count: int, first: int = 0) -> list[Request]:
    """So many jobs in the intake."""
    stream, found = store.reads.keys.jobs(0), []
    for number in range(first, first + count):
        fields = {b"job": encode_job(JobDocument(f"s{number}", f"j{number}", "en", "zh")), b"payload": b"hello"}
        entry_id = await store.connection.commands.xadd(stream, fields)
        found.append(Request(stream, entry_id.decode(), fields))
    return found


async def handed_over(store: Store, node: str) -> list[str]:
    """The jobs in the inbox of a node, sorted."""
    entries = await store.connection.commands.xrange(store.reads.keys.inbox(node))
    return sorted(fields[b"job_id"].decode() for _, fields in entries)


async def calls_of(store: Store, command: str) -> int:
    """How often the server has run a command."""
    stats = await store.connection.commands.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.mark.parametrize("row", OF_V2)
async def test_v2_never_reserves_more_than_there_is(row: Row, store: Store) -> None:
    """Twenty requests at once, six slots, and two schedulers that know nothing of each other: six are placed, once."""
    jobs = await requests(store, 20)
    async with baseline(store, row) as one, baseline(store, row) as other:
        work = [(one if number % 2 else other).dispatch(job) for number, job in enumerate(jobs)]
        placed = await asyncio.gather(*work)
    assert sorted(filter(None, placed)) == ["n0"] * 3 + ["n1"] * 3
    assert await store.reads.used(["n0", "n1"]) == [3, 3]
    for name in ("n0", "n1"):
        expected = sorted(f"j{number}" for number, node in enumerate(placed) if node == name)
        assert await handed_over(store, name) == expected
        assert sorted(job_id for job_id, _ in await store.reads.reservations(name)) == expected


@pytest.mark.parametrize("row", OF_V2)
async def test_v2_moves_a_job_from_the_intake_into_an_inbox(row: Row, store: Store) -> None:
    """With record, document and payload, and nothing is left in the intake."""
    (job,) = await requests(store, 1)
    async with baseline(store, row, nodes=1) as scheduler:
        assert await scheduler.dispatch(job) == "n0"
    ((_, fields),) = await store.connection.commands.xrange(store.reads.keys.inbox("n0"))
    assert (fields[b"job"], fields[b"payload"]) == (job.fields[b"job"], b"hello")
    record = await store.reads.record("j0")
    assert (record["state"], record["node"], record["session"]) == ("reserved", "n0", "s0")
    assert await store.reads.lengths([job.stream]) == [0]


async def test_a_reservation_of_v2_ends_by_itself(store: Store) -> None:
    """Without a sign of the node the slot is free again after its time."""
    first, second = await requests(store, 2)
    async with baseline(store, V2, nodes=1, slots=1, ms=1) as one, baseline(store, V2, nodes=1, slots=1) as other:
        assert await one.dispatch(first) == "n0"
        ((_, until_ms),) = await store.reads.reservations("n0")
        while await store.control.time_us() < (until_ms + 1) * 1_000:
            pass
        assert await other.dispatch(second) == "n0"
    assert [job_id for job_id, _ in await store.reads.reservations("n0")] == ["j1"]


@pytest.mark.parametrize(("row", "expected"), [(V2, True), (CACHED, True), (UNLOCKED, False), (UNLOCKED_CACHED, False)])
async def test_the_lock_keeps_requests_apart(
    row: Row, expected: bool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it a node is chosen only when the job before has been handed over; without it others choose meanwhile."""
    told: list[str] = []
    jobs = await requests(store, 8)
    async with baseline(store, row) as scheduler:
        choose = scheduler.registry.choose

        def choosing(members: Any, job: JobDocument) -> Any:
            told.append("chosen")
            return choose(members, job)

        monkeypatch.setattr(scheduler.registry, "choose", choosing)

        async def dispatch(job: Request) -> None:
            await scheduler.dispatch(job)
            told.append("handed over")

        await asyncio.gather(*map(dispatch, jobs[:6]))
    assert (told == ["chosen", "handed over"] * 6) is expected


@pytest.mark.parametrize(("row", "expected"), [(V2, 6), (UNLOCKED, 6), (CACHED, 1)])
async def test_members_are_read_for_each_job_or_remembered(row: Row, expected: int, store: Store) -> None:
    """From Redis."""
    jobs = await requests(store, 6)
    before = await calls_of(store, "smembers")
    async with baseline(store, row) as scheduler:
        for job in jobs:
            assert await scheduler.dispatch(job) is not None
    assert await calls_of(store, "smembers") - before == expected
