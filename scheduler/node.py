"""The node SDK: registers, reads its inbox, runs handlers under leases, reports outcomes, drains and leaves.

    async with Node(url, "n1", capacity=8, pairs=[("en", "zh")], features={"asr"}, handler=handle) as node:
        await node.stopped()

Rules: a node starts work only after its own `boot` message, ends the reservations of its lower boots, stops when it
reads a higher one, and never runs a handler past its lease as bounded by its own clock (leases.py). The contract of
handlers stands in handlers.py.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from random import Random
from typing import Final, Literal

import msgspec
from redis.exceptions import RedisError

from scheduler import calls, handlers, keys, leases, model
from scheduler.config import Settings, check_settings, read_settings
from scheduler.errors import InvalidInput, SchedulerError
from scheduler.handlers import Handler, Job, Threads
from scheduler.loop import Loop, end_tasks
from scheduler.reporting import Reporter
from scheduler.runtime import retry
from scheduler.store.store import Store, open_store

logger = logging.getLogger("scheduler.node")

WATCH_MS: Final = 100
BLOCKED_LOOP_MS: Final = 500
DRAIN_MS_MAX: Final = 30_000
GIVE_BACK_MS: Final = 500  # or a job that cannot be run would come back at once
FIRST_WORD_MS: Final = 2_000  # for telling the server that this node leaves
LAST_WORD_MS: Final = 5_000  # for reporting the last outcomes while leaving
THREADS_MIN: Final = 32
INBOX_COUNT: Final = 128

Phase = Literal["joining", "serving", "draining", "left", "replaced", "stopped"]


class Observer:
    """Hears of handlers that start and end; the default does nothing. Times: own monotonic clock, microseconds."""

    def started(self, job: Job, at_us: int) -> None:
        """A handler begins."""

    def ended(self, job: Job, at_us: int) -> None:
        """A handler has ended, for whatever reason."""


class _Running(msgspec.Struct):
    """An attempt under way."""

    job: Job
    lease: leases.Reservation
    task: asyncio.Task[retry.Ending]
    stop: retry.Ending | None = None  # what to report instead of what the handler returns
    lost: bool = False  # nothing is to be reported


class Node:
    """One node. Entering registers it and begins to serve; leaving drains it: running jobs end, then it leaves the
    fleet.

    Args: url of the server; node_id, one running process each; capacity, jobs at once; handler; pairs, (source,
    target) languages; features; labels; pool, empty for the default; version, of the node's software; settings, by
    default from the `SCHED_*` variables; observer; drain_ms_max, how long leaving waits for running jobs before it
    gives them back.
    Raises: InvalidInput; on entering ServerUnavailable or ServerRefused.
    """

    def __init__(
        self,
        url: str,
        node_id: str,
        *,
        capacity: int,
        handler: Handler,
        pairs: Iterable[tuple[str, str]] = (),
        features: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        pool: str = "",
        version: str = "",
        settings: Settings | None = None,
        observer: Observer | None = None,
        drain_ms_max: int = DRAIN_MS_MAX,
    ) -> None:
        settings = read_settings(os.environ) if settings is None else settings
        check_settings(settings)
        if capacity < 1:
            raise InvalidInput(f"capacity = {capacity!r}: expected a number of slots above 0")
        self.node_id = keys.check_name("node", node_id)
        self.boot = ""
        self.phase: Phase = "joining"
        self._url = url
        self._handler = handler
        self._settings = settings
        self._observer = observer or Observer()
        self._drain_ms_max = drain_ms_max
        self._beat_document = model.NodeBeat(
            node=node_id,
            boot="0-unset",
            capacity=capacity,
            pairs=tuple(sorted((source, target) for source, target in pairs)),
            features=tuple(sorted(features)),
            labels=dict(labels or {}),
            pool=pool,
            version=version,
        )
        model.decode_beat(model.encode_beat(self._beat_document))
        self._random = Random()
        self._clock = leases.ServerClock()
        self._running: dict[int, _Running] = {}
        self._earlier: list[Job] = []
        self._cursor = "0"
        self._ended = asyncio.Event()

    # ---- life ----

    async def __aenter__(self) -> Node:
        self._store: Store = await open_store(self._url, self._settings, patience_ms=None)
        try:
            self._layout = await self._store.layout()
            self.boot = f"{await self._store.control.time_us()}-{secrets.token_hex(4)}"
            self._beat_document = msgspec.structs.replace(self._beat_document, boot=self.boot)
            workers = max(THREADS_MIN, 2 * self._beat_document.capacity)
            self._threads = Threads(workers, f"scheduler-{self.node_id}")
            self._reporter = Reporter(
                self._store.cell, self._settings, self._layout, self.node_id, self.boot, self._clock, _monotonic_ms
            )
            await self._beat()
        except BaseException:
            await self._store.close()
            raise
        self._watched_at = time.monotonic()
        self._loops = [
            Loop("beat", self._beat, self._settings.heartbeat_ms),
            Loop("inbox", self._read_inbox, 0),
            Loop("renew", self._renew, WATCH_MS),
            Loop("watch", self._watch, max(1, min(WATCH_MS, self._settings.margin_ms // 2))),
        ]
        self._release_loop = Loop("release", self._release, 1_000)
        self._tasks = [asyncio.create_task(loop.run()) for loop in (*self._loops, self._release_loop)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain()
        self._end_life(self.phase if self.phase in ("left", "replaced") else "stopped")
        for running in list(self._running.values()):
            self._stop(running, retry.given_back("the node stopped"))
        if self._running:
            await asyncio.wait([each.task for each in self._running.values()], timeout=LAST_WORD_MS / 1000)
        try:
            async with asyncio.timeout(LAST_WORD_MS / 1000):
                await self._release()
        except (SchedulerError, OSError, TimeoutError) as error:
            if len(self._reporter):
                logger.error("%s: %d outcomes were not reported: %r", self.node_id, len(self._reporter), error)
        for loop in (*self._loops, self._release_loop):
            loop.stop()
        await end_tasks(self._tasks)
        self._threads.shutdown()
        await self._store.close()

    async def drain(self) -> None:
        """Take no more work, finish what runs, and leave; gives up after `drain_ms_max`."""
        if self.phase in ("left", "replaced"):
            return
        self.phase = "draining"
        self._beat_document = msgspec.structs.replace(self._beat_document, draining=True)
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(min(FIRST_WORD_MS, self._drain_ms_max) / 1000):
                await self._beat()
        except TimeoutError:
            logger.warning("%s: the server does not answer, leaving without its word", self.node_id)
            if not self._running:
                return
        rest_s = self._drain_ms_max / 1000 - (time.monotonic() - started_s)
        try:
            async with asyncio.timeout(max(0.0, rest_s)):
                await self._ended.wait()
        except TimeoutError:
            logger.warning("%s: not drained within %d ms, %d jobs run", self.node_id, self._drain_ms_max, self.running)

    async def stopped(self) -> None:
        """Wait until this node serves no more: it was drained and left, or a later boot replaced it."""
        await self._ended.wait()

    @property
    def running(self) -> int:
        """Handlers that run now."""
        return len(self._running)

    # ---- heartbeat ----

    async def _beat(self) -> None:
        document = msgspec.structs.replace(self._beat_document, running=len(self._running))
        sent_ms = _monotonic_ms()
        answer = await self._store.control.beat(model.encode_beat(document))
        self._clock.heard(answer.now_ms, sent_ms)
        if self.phase == "draining":
            await self._leave()

    async def _leave(self) -> None:
        """Leave once the capacity is 0 and the slots are empty; the script knows."""
        if self._running or len(self._reporter):
            return
        answer = await self._store.cell.leave(self.node_id, self.boot)
        if answer != "busy":
            self._end_life("left" if answer == "left" else "replaced")

    def _end_life(self, phase: Phase) -> None:
        """This node serves no more: it reads and beats no more, and whoever waits for that is told."""
        if not self._ended.is_set():
            logger.info("%s: %s", self.node_id, phase)
        self.phase = phase
        for loop in self._loops:
            loop.stop()
        self._ended.set()

    # ---- inbox ----

    async def _read_inbox(self) -> None:
        inbox = self._store.cell.keys.inbox(self.node_id)
        try:
            read = await self._store.reads.streams({inbox: self._cursor}, count=INBOX_COUNT)
        except RedisError as error:
            raise SchedulerError(f"reading the inbox failed: {error}") from error
        for identifier, fields in read.get(inbox, []):
            self._cursor = identifier
            try:
                if b"control" in fields:
                    self._obey(fields)
                else:
                    self._assign(Job(self.node_id, identifier, fields), fields)
            except (KeyError, ValueError, SchedulerError) as error:
                logger.error("%s: inbox entry %s is ignored: %r", self.node_id, identifier, error)

    def _obey(self, fields: dict[bytes, bytes]) -> None:
        control, boot = fields[b"control"].decode(), fields.get(b"boot", b"").decode()
        if model.boot_order(boot) > model.boot_order(self.boot):
            self._replaced(boot)
        elif boot != self.boot:
            return
        elif control == "boot" and self.phase == "joining":
            self.phase = "serving"
            logger.info("%s serves as boot %s", self.node_id, self.boot)
            self._end_earlier()
        elif control == "drained" and self.phase in ("serving", "draining"):
            self.phase = "draining"
            logger.info("%s is drained", self.node_id)
            self._release_loop.wake()  # which leaves, once nothing runs
        elif control == "resumed" and self.phase == "draining" and not self._beat_document.draining:
            self.phase = "serving"
            logger.info("%s is resumed", self.node_id)

    def _replaced(self, boot: str) -> None:
        """A later life of this node has taken over: what runs here ends now."""
        logger.warning("%s: boot %s replaces %s, stopping", self.node_id, boot, self.boot)
        for running in list(self._running.values()):
            running.lost = True
            self._stop(running, None)
        self._end_life("replaced")

    def _assign(self, job: Job, fields: dict[bytes, bytes]) -> None:
        """Start what is ours; entries of lower boots are ended once our own boot is confirmed."""
        boot = fields.get(b"boot", b"").decode()
        if boot == self.boot:
            self._start(job, fields)
        elif model.boot_order(boot) < model.boot_order(self.boot):
            self._earlier.append(job)
            if self.phase != "joining":
                self._end_earlier()

    def _end_earlier(self) -> None:
        """End the reservations of lower boots: nobody runs them any more."""
        for job in self._earlier:
            self._end(job, retry.Ending("reboot", reason="reboot", detail="the node was started again"))
        self._earlier = []

    # ---- attempts ----

    def _start(self, job: Job, fields: dict[bytes, bytes]) -> None:
        lease_until_ms, lease_ms = int(fields[b"lease_until_ms"]), int(fields[b"lease_ms"])
        if job.token in self._running:
            return
        length_ms = max(1, lease_until_ms - int(job.inbox_id.partition("-")[0]))
        lease = leases.Reservation(job.job_id, job.token, lease_until_ms, lease_ms, length_ms)
        if not leases.may_run(lease, self._clock.latest_ms(_monotonic_ms()), self._settings.margin_ms):
            self._end(job, retry.given_back("the assignment arrived too late", GIVE_BACK_MS))
            return
        if self._is_occupied():
            self._end(job, retry.given_back("an attempt that lost its lease still occupies the slot", GIVE_BACK_MS))
            return
        task = asyncio.create_task(self._attempt(job), name=f"job {job.job_id}")
        self._running[job.token] = _Running(job, lease, task)
        task.add_done_callback(functools.partial(self._attempt_ended, job))

    def _is_occupied(self) -> bool:
        """Whether attempts that should have ended, but run on, leave no room: threads, handlers that will not stop."""
        left_behind = self._threads.left_behind
        stuck = left_behind + sum(running.job.stopped.is_set() for running in self._running.values())
        return stuck > 0 and len(self._running) + left_behind >= self._beat_document.capacity

    async def _attempt(self, job: Job) -> retry.Ending:
        self._observer.started(job, _monotonic_us())
        try:
            return await handlers.attempt(self._handler, job, self._threads, self._settings, self._random)
        finally:
            self._threads.when_ended(job, lambda: self._observer.ended(job, _monotonic_us()))

    def _attempt_ended(self, job: Job, task: asyncio.Task[retry.Ending]) -> None:
        """Report what the handler came to, unless the reservation is gone."""
        running = self._running.pop(job.token)
        if running.lost:
            return
        if task.cancelled():
            ending = running.stop or self._broke(job, "CancelledError: the handler was cancelled, but not by this node")
        elif (error := task.exception()) is not None:
            ending = self._broke(job, handlers.describe(error))
        else:
            ending = task.result()
        self._end(job, ending)

    def _broke(self, job: Job, detail: str) -> retry.Ending:
        settings = self._settings
        return retry.failed(job.attempt, detail, None, settings.backoff_ms, settings.backoff_ms_max, self._random)

    def _stop(self, running: _Running, ending: retry.Ending | None) -> None:
        running.stop = running.stop or ending
        running.job.stopped.set()
        running.task.cancel()

    def _end(self, job: Job, ending: retry.Ending) -> None:
        self._reporter.add(job, ending)
        self._release_loop.wake()

    # ---- leases ----

    async def _renew(self) -> None:
        """Renew all in one call when a third of some lease has passed."""
        reservations = [running.lease for running in self._running.values()]
        if not leases.renewal_due(reservations, self._clock.latest_ms(_monotonic_ms())):
            return
        sent_ms = _monotonic_ms()
        now_ms, answers = await self._store.cell.renew(
            self.node_id, [(each.job_id, each.token) for each in reservations]
        )
        self._clock.heard(now_ms, sent_ms)
        for lease, answer in zip(reservations, answers, strict=True):
            running = self._running.get(lease.token)
            if running is None:
                continue
            if isinstance(answer, calls.Renewed):
                lease.lease_until_ms, lease.length_ms = answer.lease_until_ms, lease.lease_ms
                if answer.cancelling:
                    self._stop(running, retry.given_back("cancelled"))
            elif answer.why == "overrun":
                self._stop(running, retry.overrun())
            else:
                logger.warning("%s: the reservation of job %s is lost", self.node_id, lease.job_id)
                running.lost = True
                self._stop(running, None)

    async def _watch(self) -> None:
        """Stop what may run past its lease, and warn when the event loop was blocked."""
        now = time.monotonic()
        late_ms = (now - self._watched_at) * 1000 - WATCH_MS
        self._watched_at = now
        if late_ms > BLOCKED_LOOP_MS:
            logger.warning(
                "%s: the event loop was blocked for %d ms; a handler that computes must not be async",
                self.node_id,
                late_ms,
            )
        reservations = [running.lease for running in self._running.values()]
        for lease in leases.to_stop(reservations, self._clock.latest_ms(_monotonic_ms()), self._settings.margin_ms):
            running = self._running[lease.token]
            if running.stop is None:
                logger.warning(
                    "%s: the lease of job %s cannot be renewed in time, its handler stops", self.node_id, lease.job_id
                )
                self._stop(running, retry.given_back("the lease could not be renewed in time"))

    async def _release(self) -> None:
        """Report what has ended, and leave if that was all that kept this node."""
        await self._reporter.report()
        if self.phase == "draining":
            await self._leave()


def _monotonic_ms() -> float:
    return time.monotonic() * 1000


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
