"""Producers of a run: one with the SDK, one that knows the protocol alone and writes entries, good and bad."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import msgspec
from redis.exceptions import RedisError

from scheduler.errors import NotAccepted, SchedulerError, UnknownJob
from scheduler.producer import Producer, Request
from scheduler.protocol import keys
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.protocol.messages import Outcome
from scheduler.store.connection import Connection
from tests.simulation.checker import Checker
from tests.simulation.fleet import SETTINGS, URL, Fleet, supervised
from tests.simulation.plan import PRODUCER, JobPlan
from tests.simulation.world import ORIGIN_S, Process, World

OUTCOME_MS_MAX: Final = 600_000
LOOK_AGAIN_S: Final = 1.0
BROKEN: Final = frozenset({"no_job", "no_json", "no_session", "too_large", "bad_pair", "bad_id"})
"""Ways of which the entry is no job: it ends as dead, under an id that is made for it."""


def document_of(job: JobPlan) -> JobDocument:
    """What a producer writes of a job."""
    source, target = job.pair.split(":")
    return JobDocument(
        session_id=job.session,
        job_id=job.job_id,
        src_lang=source,
        tgt_lang=target,
        tenant_id=job.tenant,
        features=job.features,
        priority=job.priority,
        deadline_ms=job.deadline_ms,
        preferred_node=job.preferred,
    )


def fields_of(job: JobPlan) -> dict[str, bytes]:
    """The entry of a job that is written without the SDK; broken in the way that its plan says."""
    document = encode_job(document_of(job))
    payload = job.does.encode()
    match job.way:
        case "no_job":
            return {"payload": payload}
        case "no_json":
            return {"job": b"{" + document, "payload": payload}
        case "no_session":
            return {"job": b'{"job_id":"x"}', "payload": payload}
        case "too_large":
            return {"job": document, "payload": bytes(SETTINGS.payload_bytes_max + 1)}
        case "bad_pair":
            return {"job": document.replace(b'"src_lang":"en"', b'"src_lang":"e n"'), "payload": payload}
        case "bad_id":
            return {"job": document, "job_id": b"a b", "payload": payload}
    return {"job": document, "payload": payload}


class Producers:
    """What is submitted, and what became of it as the producers were told.

    unheard: jobs that were acknowledged and of which the SDK has not told the outcome yet.
    """

    def __init__(self, world: World, fleet: Fleet, checker: Checker) -> None:
        self._world = world
        self._fleet = fleet
        self._checker = checker
        self._history = fleet.history
        self.unheard: set[str] = set()
        self.under_way = 0
        self.process: Process | None = None

    def begin(self, jobs: tuple[JobPlan, ...]) -> Process:
        """Start the process that submits all of these."""
        self.process = process = Process(self._world, PRODUCER)
        self._fleet.run(process, self._main(process, jobs))
        return process

    async def _main(self, process: Process, jobs: tuple[JobPlan, ...]) -> None:
        self.under_way += len(jobs)
        host = self._fleet.host(process)
        raw = host.connect(URL, None, host.clock)
        raw.has_started = True

        async def enter() -> Producer:
            return await Producer(URL, settings=SETTINGS, patience_ms=None, host=host).__aenter__()

        async with contextlib.AsyncExitStack() as stack:
            producer = await supervised(enter)
            stack.push_async_exit(producer.__aexit__)
            tasks = [asyncio.create_task(self._job(producer, raw, job)) for job in jobs]
            await asyncio.gather(*tasks)
        await raw.close()

    async def _job(self, producer: Producer, raw: Connection, job: JobPlan) -> None:
        try:
            await asyncio.sleep(max(0.0, ORIGIN_S + job.at_s - self._world.now_s))
            await self._send(producer, raw, job)
            if job.again_s:
                await asyncio.sleep(job.again_s)
                await self._send(producer, raw, job)
        finally:
            self.under_way -= 1
        if job.job_id in self.unheard:
            async with asyncio.timeout(OUTCOME_MS_MAX / 1000):
                outcome = await self._outcome(producer, job.job_id)
            self._history.add("outcome", job.job_id, outcome.state, outcome.reason)
            self.unheard.discard(job.job_id)

    async def _outcome(self, producer: Producer, job_id: str) -> Outcome:
        """How a job ended. A record that was lost comes again, where an entry that was written by XADD is left."""
        while True:
            try:
                return await producer.outcome(job_id, unknown_ms=None)
            except UnknownJob:
                await asyncio.sleep(LOOK_AGAIN_S)

    async def _send(self, producer: Producer, raw: Connection, job: JobPlan) -> None:
        if job.way in ("submit", "twice"):
            await self._submit(producer, job)
        if job.way != "submit":
            await self._xadd(raw, job)
        if job.way == "twice_raw":
            await self._submit(producer, job)

    async def _submit(self, producer: Producer, job: JobPlan) -> None:
        try:
            (answer,) = await producer.submit_many([Request(document_of(job), job.does.encode())])
        except (SchedulerError, NotAccepted) as error:
            self._history.add("refused", job.job_id, type(error).__name__)
            return
        self._history.add("submitted", answer)
        if msgspec.structs.asdict(answer).get("why") not in ("busy", "refused", "job_id_taken"):
            self._acknowledge(job, job.job_id, getattr(answer, "entry", ""))

    async def _xadd(self, raw: Connection, job: JobPlan) -> None:
        """As the protocol page says: repeated until it is answered, with an id of one's own."""
        partition = keys.partition_of(job.session, SETTINGS.partitions)
        if job.way == "other_partition":
            partition = (partition + 1) % SETTINGS.partitions
            self._checker.strays.add(job.session)
        stream = keys.CellKeys(SETTINGS.namespace).jobs(partition)
        try:
            entry = await raw.patiently(lambda: raw.commands.xadd(stream, fields_of(job)))
        except (SchedulerError, RedisError) as error:
            self._history.add("refused", job.job_id, type(error).__name__)
            return
        self._history.add("added", job.job_id, entry.decode())
        is_named = job.way not in BROKEN or job.way == "too_large"
        job_id = job.job_id if is_named else keys.generated_job_id(0, partition, entry.decode())
        self._acknowledge(job, job_id, f"{partition}/{entry.decode()}")

    def _acknowledge(self, job: JobPlan, job_id: str, entry: str) -> None:
        self._checker.acknowledged.setdefault(job_id, entry)
        if job.way in BROKEN:
            self._checker.broken.add(job_id)
            return
        self.unheard.add(job_id)
        if job.deadline_ms is not None:
            self._checker.due_s.setdefault(entry, self._world.now_s + job.deadline_ms / 1000)
