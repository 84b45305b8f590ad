"""The server is away for longer than every lease, and comes back with its data: nobody may be the worse for it.

Three kinds of jobs meet it: some end while it is away, and their nodes report them late; some have to stop when their
leases may end, are given back, and run again, as first attempts; and some are submitted in its last moments. When it is
back, a job is submitted to each partition. A server that is killed may have lost what it had not written to its file
yet, which the last moments are for: only jobs of those may be gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from chaos.acts import Role
from chaos.fleet import Counts, Fleet, NodeShape
from chaos.run import POLL_MS
from scheduler.audit.audit import Run
from scheduler.audit.records import read_file
from scheduler.config import Settings
from scheduler.console.process import run_async
from scheduler.errors import SchedulerError
from scheduler.producer import Producer, Request
from scheduler.protocol import keys
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.messages import CapacityItem, Outcome, Submitted
from scheduler.server.embedded import EmbeddedServer, Engine, start_embedded
from scheduler.store.store import Store, open_store

COUNTS: Final = Counts(manager=2, dispatcher=2, reaper=2, node=4)
SHAPE: Final = NodeShape(capacity=4, pairs=(("en", "zh"),))
LONG: Final = 4
SHORT: Final = 4
LAST_MS: Final = 200
"""For how long jobs are submitted one after the other until the server goes."""
FIRST_MS_MAX: Final = 2_000
"""How soon after its return the jobs that are submitted then have to be completed."""
PATIENCE_MS: Final = 30_000

_EXPIRED: Final = re.compile(r"job (\S+): its lease on")
_DEAD: Final = re.compile(r"node (\S+) is dead: ")


class Result(msgspec.Struct, frozen=True):
    """What came of it.

    killed: the server did not go in an orderly way; away_s: how long it was gone; deaths: nodes that a manager called
    dead, by its log and by the cell; expired: reservations that a reaper ended; first_ms: from the server's return to
    the end of the slowest of the jobs that were submitted then, one to each partition, and slowest, its partition;
    stopped: handlers that had to stop; late: jobs that ended while the server was away; completed of `jobs`, which were
    all acknowledged; lost: those of them that are gone without a trace; charged: jobs that an attempt, a crash or a
    start was counted for; unexpected: processes that ended as they should not.

    Jobs of its last moments are not counted in expired and charged when it was killed: what became of them can be lost.
    """

    killed: bool
    away_s: float
    deaths: int
    expired: int
    first_ms: float
    slowest: int
    stopped: int
    late: int
    jobs: int
    completed: int
    lost: int
    charged: int
    slots_left: int
    unexpected: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nobody was the worse for it."""
        harm = self.deaths + self.expired + self.charged + self.slots_left + len(self.unexpected)
        shown = (self.stopped, self.late) == (LONG, SHORT)
        may_be_lost = self.lost if self.killed else 0
        return harm == 0 and shown and self.completed == self.jobs - may_be_lost and self.first_ms <= FIRST_MS_MAX


class _Outage(msgspec.Struct):
    """What was seen of it. Times: own monotonic clock, seconds; last: job ids; lost of them; outcomes of the others."""

    gone_s: float
    returned_s: float
    first_ms: float
    slowest: int
    last: Collection[str]
    lost: Collection[str]
    outcomes: list[Outcome]


def long_ms(settings: Settings) -> int:
    """Work that outlasts a lease, renewed just before the server goes."""
    return LAST_MS + settings.lease_ms + settings.start_ms


def short_ms(settings: Settings) -> int:
    """Work that ends while the server is away, and before its lease."""
    return LAST_MS + settings.start_ms


def run(
    settings: Settings, away_s: float, directory: Path, engine: Engine | None = None, *, kill: bool = False
) -> Result:
    """Let the server of a whole scheduler be away.

    Args: settings; away_s, more than every lease, or it shows nothing; directory, for data, logs and records; engine,
    None for the preferred one; kill, do not let it end in an orderly way. Blocks; belongs into the main thread, with
    which server and processes end.
    Raises: ServerUnavailable; SchedulerError when the fleet does not come up.
    """
    with start_embedded(directory, engine=engine, persistent=True) as server:
        return run_async(_run(server, settings, away_s, directory, kill))


async def _run(server: EmbeddedServer, settings: Settings, away_s: float, directory: Path, kill: bool) -> Result:
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(await open_store(server.url, settings, PATIENCE_MS))
        fleet = Fleet(server.url, settings, directory, COUNTS, SHAPE)
        stack.push_async_callback(fleet.close)
        await fleet.start()
        producer = await stack.enter_async_context(Producer(server.url, settings=settings, patience_ms=None))
        before = await _until_ready(store, fleet)
        seen = await _outage(server, store, producer, settings, away_s, kill)
        after = await store.reads.capacities()
        slots_left = sum(await store.reads.used(fleet.nodes))
        await fleet.stop()
    runs = [run for life in fleet.lives if life.record is not None for run in read_file(life.record)[1]]
    changed = sum(after.get(node) != before[node] for node in before)
    return _result(fleet, runs, seen, changed, slots_left, kill)


def _result(fleet: Fleet, runs: Sequence[Run], seen: _Outage, changed: int, slots_left: int, kill: bool) -> Result:
    """Args: changed, nodes whose capacity is not what it was; slots_left, in use at the end."""
    excused = seen.last if kill else ()
    late = [_ended_between(run, seen.gone_s, seen.returned_s) for run in runs if run.job_id.startswith("short")]
    attempts = [(run.job_id, run.attempt - 1) for run in runs] + [
        (each.job_id, each.attempts) for each in seen.outcomes
    ]
    return Result(
        killed=kill,
        away_s=round(seen.returned_s - seen.gone_s, 1),
        deaths=changed + len(_logged(fleet, "manager", _DEAD)),
        expired=sum(job_id not in excused for job_id in _logged(fleet, "reaper", _EXPIRED)),
        first_ms=round(seen.first_ms, 1),
        slowest=seen.slowest,
        stopped=sum(run.job_id.startswith("long") for run in runs) - LONG,
        late=sum(late),
        jobs=len(seen.outcomes) + len(seen.lost),
        completed=sum(outcome.state == "completed" for outcome in seen.outcomes),
        lost=len(seen.lost),
        charged=sum(count != 0 and job_id not in excused for job_id, count in attempts),
        slots_left=slots_left,
        unexpected=tuple(fleet.unexpected),
    )


# ---- the outage ----


async def _outage(
    server: EmbeddedServer, store: Store, producer: Producer, settings: Settings, away_s: float, kill: bool
) -> _Outage:
    long_ids = await _submit(producer, _names("long", LONG), long_ms(settings))
    short_ids = await _submit(producer, _names("short", SHORT), short_ms(settings))
    await _until("the jobs are started", lambda: _are_started(store, [*long_ids, *short_ids]))
    await _until("everything is written to its file", lambda: _is_written(store))
    goes = asyncio.Event()
    submitting = asyncio.create_task(_submit_until(producer, goes))
    await asyncio.sleep(LAST_MS / 1000)
    goes.set()
    gone_s = time.monotonic()
    if kill:
        server.kill()
    else:
        server.stop()
    await asyncio.sleep(away_s)
    server.start()
    returned_s = time.monotonic()
    first_ids = await _submit(producer, sessions_of(settings), 1)
    firsts = await asyncio.gather(*(_timed_outcome(producer, job_id, returned_s) for job_id in first_ids))
    first_ms, slowest = max((took_ms, partition) for partition, (_, took_ms) in enumerate(firsts))
    patience_ms = PATIENCE_MS + long_ms(settings)
    others = [await producer.outcome(job_id, patience_ms) for job_id in (*long_ids, *short_ids)]
    last_ids = await submitting
    lasts = await _outcomes_or_lost(store, last_ids)
    outcomes = [*(outcome for outcome, _ in firsts), *others, *(each for each in lasts.values() if each is not None)]
    lost = [job_id for job_id, outcome in lasts.items() if outcome is None]
    return _Outage(gone_s, returned_s, first_ms, slowest, frozenset(last_ids), lost, outcomes)


def sessions_of(settings: Settings) -> list[str]:
    """A session of each partition, in their order."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < settings.partitions:
        name = f"first{number}"
        found.setdefault(keys.partition_of(name, settings.partitions, settings.cells), name)
        number += 1
    return [found[partition] for partition in sorted(found)]


def _names(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


async def _submit(producer: Producer, names: Sequence[str], work_ms: int) -> list[str]:
    """Submit a job for each name, in a session of its own. Returns the ids of those that were accepted."""
    payload = msgspec.json.encode({"work_ms": work_ms})
    documents = [JobDocument(name, name, src_lang="en", tgt_lang="zh") for name in names]
    answers = await producer.submit_many([Request(document, payload) for document in documents])
    return [answer.job_id for answer in answers if isinstance(answer, Submitted)]


async def _submit_until(producer: Producer, goes: asyncio.Event) -> list[str]:
    """Submit one job after the other; with the last one on its way the server goes, and it is sent until it is back."""
    job_ids: list[str] = []
    while not goes.is_set():
        job_ids += await _submit(producer, [f"last{len(job_ids)}"], 1)
    return job_ids


async def _timed_outcome(producer: Producer, job_id: str, since_s: float) -> tuple[Outcome, float]:
    """The outcome, and after how many milliseconds it was known."""
    outcome = await producer.outcome(job_id, PATIENCE_MS)
    return outcome, (time.monotonic() - since_s) * 1000


async def _outcomes_or_lost(store: Store, job_ids: Sequence[str]) -> Mapping[str, Outcome | None]:
    """Wait until each of the jobs has ended, or there is nothing of it. Raises: SchedulerError."""
    found: dict[str, Outcome | None] = {}

    async def are_known() -> bool:
        for job_id in job_ids:
            outcome = found.get(job_id) or await store.reads.outcome(job_id)
            if outcome is None and await store.reads.record(job_id):
                return False
            found[job_id] = outcome
        return True

    await _until("the last jobs have ended", are_known)
    return found


# ---- what is waited for, and what is read at the end ----


async def _until(what: str, holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something. Raises: SchedulerError when it took too long."""
    deadline_s = time.monotonic() + PATIENCE_MS / 1000
    while not await holds():
        if time.monotonic() > deadline_s:
            raise SchedulerError(f"{what}: not within {PATIENCE_MS} ms")
        await asyncio.sleep(POLL_MS / 1000)


async def _until_ready(store: Store, fleet: Fleet) -> dict[str, CapacityItem]:
    """Wait until every node may be placed on; what the cell says of them. Raises: SchedulerError."""

    async def are_known() -> bool:
        return {node.id for node in (await store.control.read_snapshot()).nodes}.issuperset(fleet.nodes)

    await _until("the nodes are ready", are_known)
    return await store.reads.capacities()


async def _are_started(store: Store, job_ids: Sequence[str]) -> bool:
    """Whether the leases of these jobs are the full ones."""
    return all(started_ms for (started_ms,) in await store.reads.records(job_ids, ("started_ms",)))


async def _is_written(store: Store) -> bool:
    """Whether all of which the server has told is in its file: a kill takes nothing away from a file."""
    info = await store.connection.patiently(lambda: store.connection.commands.info("persistence"))
    return int(info["aof_buffer_length"]) == 0


def _ended_between(run: Run, from_s: float, until_s: float) -> bool:
    return run.ended_us is not None and from_s <= run.ended_us / 1_000_000 <= until_s


def _logged(fleet: Fleet, role: Role, words: re.Pattern[str]) -> list[str]:
    """Of whom the processes of a role have logged something, each time."""
    logs = [life.process.log for life in fleet.lives if life.role == role]
    return [name for log in logs if log is not None for name in words.findall(log.read_text(errors="replace"))]
