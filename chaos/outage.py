"""The server is away for longer than every lease, and comes back with its data: nobody may be the worse for it.

Two kinds of jobs run when it goes: some end while it is away, and their nodes report them late; the others have to stop
when their leases may end, are given back, and run again, as first attempts.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from chaos.acts import Role
from chaos.fleet import Counts, Fleet, NodeShape
from chaos.run import POLL_MS
from scheduler.calls import CapacityItem, Submitted
from scheduler.cli.process import run_async
from scheduler.cli.records import read_file
from scheduler.config import Settings
from scheduler.errors import SchedulerError
from scheduler.model import JobDocument
from scheduler.producer import Producer, Request
from scheduler.store.server import EmbeddedServer, Engine, start_embedded
from scheduler.store.store import Store, open_store

COUNTS: Final = Counts(manager=2, dispatcher=2, reaper=2, node=4)
SHAPE: Final = NodeShape(capacity=4, pairs=(("en", "zh"),))
LONG: Final = 4
SHORT: Final = 4
FIRST_MS_MAX: Final = 2_000
"""How soon after its return a job that is submitted then has to be completed."""
PATIENCE_MS: Final = 30_000


class Result(msgspec.Struct, frozen=True):
    """What came of it.

    away_s: how long the server was gone; deaths: nodes that a manager called dead, by its log and by the cell;
    expired: reservations that a reaper ended; first_ms: from the server's return to the end of a job submitted then;
    stopped: handlers that had to stop; late: jobs that ended while the server was away; completed of `jobs`; charged:
    jobs that an attempt, a crash or a start was counted for; unexpected: processes that ended as they should not.
    """

    away_s: float
    deaths: int
    expired: int
    first_ms: float
    stopped: int
    late: int
    jobs: int
    completed: int
    charged: int
    slots_left: int
    unexpected: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nobody was the worse for it."""
        harm = self.deaths + self.expired + self.charged + self.slots_left + len(self.unexpected)
        shown = (self.stopped, self.late) == (LONG, SHORT)
        return harm == 0 and shown and self.completed == self.jobs and self.first_ms <= FIRST_MS_MAX


def long_ms(settings: Settings) -> int:
    """Work that outlasts a lease, renewed just before the server goes."""
    return settings.lease_ms + settings.start_ms


def short_ms(settings: Settings) -> int:
    """Work that ends while the server is away, and before its lease."""
    return settings.start_ms


def run(settings: Settings, away_s: float, directory: Path, engine: Engine | None = None) -> Result:
    """Let the server of a whole scheduler be away.

    Args: settings; away_s, more than every lease, or it shows nothing; directory, for data, logs and records; engine,
    None for the preferred one. Blocks; belongs into the main thread, with which server and processes end.
    Raises: ServerUnavailable; SchedulerError when the fleet does not come up.
    """
    with start_embedded(directory, engine=engine, persistent=True) as server:
        return run_async(_run(server, settings, away_s, directory))


async def _run(server: EmbeddedServer, settings: Settings, away_s: float, directory: Path) -> Result:
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(await open_store(server.url, settings, PATIENCE_MS))
        fleet = Fleet(server.url, settings, directory, COUNTS, SHAPE)
        stack.push_async_callback(fleet.close)
        await fleet.start()
        producer = await stack.enter_async_context(Producer(server.url, settings=settings))
        before = await _until_ready(store, fleet)
        long_ids = await _submit(producer, "long", LONG, long_ms(settings))
        short_ids = await _submit(producer, "short", SHORT, short_ms(settings))
        await _until_started(store, [*long_ids, *short_ids])
        gone_s = time.monotonic()
        server.stop()
        await asyncio.sleep(away_s)
        server.start()
        returned_s = time.monotonic()
        first_ids = await _submit(producer, "first", 1, 1)
        first = await producer.outcome(first_ids[0], PATIENCE_MS)
        first_ms = (time.monotonic() - returned_s) * 1000
        patience_ms = PATIENCE_MS + long_ms(settings)
        others = [await producer.outcome(job_id, patience_ms) for job_id in (*long_ids, *short_ids)]
        after = await store.reads.capacities()
        slots_left = sum(await store.reads.used(fleet.nodes))
        await fleet.stop()
    runs = [run for life in fleet.lives if life.record is not None for run in read_file(life.record)[1]]
    longs = [run for run in runs if run.job_id in long_ids]
    return Result(
        away_s=round(returned_s - gone_s, 1),
        deaths=_count(fleet, "manager", " is dead: ") + sum(after.get(node) != before[node] for node in before),
        expired=_count(fleet, "reaper", "its lease on"),
        first_ms=round(first_ms, 1),
        stopped=len(longs) - LONG,
        late=sum(_ended_between(each.ended_us, gone_s, returned_s) for each in runs if each.job_id in short_ids),
        jobs=1 + LONG + SHORT,
        completed=sum(outcome.state == "completed" for outcome in (first, *others)),
        charged=sum(run.attempt != 1 for run in runs) + sum(outcome.attempts != 0 for outcome in (first, *others)),
        slots_left=slots_left,
        unexpected=tuple(fleet.unexpected),
    )


async def _submit(producer: Producer, name: str, count: int, work_ms: int) -> list[str]:
    payload = msgspec.json.encode({"work_ms": work_ms})
    documents = [JobDocument(f"{name}{n}", f"{name}{n}", src_lang="en", tgt_lang="zh") for n in range(count)]
    answers = await producer.submit_many([Request(document, payload) for document in documents])
    return [answer.job_id for answer in answers if isinstance(answer, Submitted)]


async def _until_ready(store: Store, fleet: Fleet) -> dict[str, CapacityItem]:
    """Wait until every node may be placed on; what the cell says of them. Raises: SchedulerError."""
    deadline_s = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline_s:
        capacities = await store.reads.capacities()
        seen = {node.id for node in (await store.control.read_snapshot()).nodes}
        if seen.issuperset(fleet.nodes):
            return capacities
        await asyncio.sleep(POLL_MS / 1000)
    raise SchedulerError(f"the nodes were not ready within {PATIENCE_MS} ms")


async def _until_started(store: Store, job_ids: Sequence[str]) -> None:
    """Wait until the leases of these jobs are the full ones. Raises: SchedulerError."""
    deadline_s = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline_s:
        if all(started_ms for (started_ms,) in await store.reads.records(job_ids, ("started_ms",))):
            return
        await asyncio.sleep(POLL_MS / 1000)
    raise SchedulerError(f"the jobs were not started within {PATIENCE_MS} ms")


def _ended_between(ended_us: int | None, from_s: float, until_s: float) -> bool:
    return ended_us is not None and from_s <= ended_us / 1_000_000 <= until_s


def _count(fleet: Fleet, role: Role, words: str) -> int:
    """How often the processes of a role have logged something."""
    logs = [life.process.log for life in fleet.lives if life.role == role]
    return sum(log.read_text(errors="replace").count(words) for log in logs if log is not None)
