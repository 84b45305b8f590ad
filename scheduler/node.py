"""The node SDK: registers, reads its inbox, runs handlers under leases, reports outcomes, drains and leaves.

    async with Node(url, "n1", capacity=8, pairs=[("en", "zh")], features={"asr"}, handler=handle) as node:
        await node.stopped()

Rules: a node starts work only after its own `boot` message, ends the reservations of its lower boots, stops when it
reads a higher one, and never runs a handler past its lease (attempts.py). The contract of handlers stands in
handlers.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import msgspec
from redis.exceptions import RedisError

from scheduler import keys, leases, model
from scheduler.attempts import WATCH_MS, Attempts, Observer
from scheduler.config import Settings, check_settings, read_settings
from scheduler.errors import InvalidInput, SchedulerError
from scheduler.handlers import Handler, Job, Threads
from scheduler.loop import Loop, end_tasks
from scheduler.reporting import Reporter
from scheduler.runtime import retry
from scheduler.store.store import Store, open_store

logger = logging.getLogger("scheduler.node")

DRAIN_MS_MAX: Final = 30_000
FIRST_WORD_MS: Final = 2_000  # for telling the server that this node leaves
LAST_WORD_MS: Final = 5_000  # for reporting the last outcomes while leaving
THREADS_MIN: Final = 32
INBOX_COUNT: Final = 128

Phase = Literal["joining", "serving", "draining", "left", "replaced", "stopped"]


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
        self._clock = leases.ServerClock()
        self._earlier: list[Job] = []
        self._cursor = "0"
        self._hand_over: asyncio.TimerHandle | None = None
        self._handed_over = False
        self._ended = asyncio.Event()

    # ---- life ----

    async def __aenter__(self) -> Node:
        self._store: Store = await open_store(self._url, self._settings, patience_ms=None)
        try:
            self._store.connection.heard = self._clock.heard
            self._layout = await self._store.layout()
            self.boot = f"{await self._store.control.time_us()}-{secrets.token_hex(4)}"
            self._beat_document = msgspec.structs.replace(self._beat_document, boot=self.boot)
            workers = max(THREADS_MIN, 2 * self._beat_document.capacity)
            self._threads = Threads(workers, f"scheduler-{self.node_id}")
            self._reporter = Reporter(self._store.cell, self._settings, self._layout, self.node_id, self.boot)
            self._attempts = Attempts(
                self._store.cell,
                self._settings,
                self.node_id,
                self._beat_document.capacity,
                self._handler,
                self._observer,
                self._clock,
                self._threads,
                self._end,
            )
            await self._beat()
        except BaseException:
            await self._store.close()
            raise
        self._loops = [
            Loop("beat", self._beat, self._settings.heartbeat_ms),
            Loop("inbox", self._read_inbox, 0),
            Loop("renew", self._attempts.renew, WATCH_MS),
            Loop("watch", self._attempts.watch, max(1, min(WATCH_MS, self._settings.margin_ms // 2))),
        ]
        self._release_loop = Loop("release", self._release, 1_000)
        self._tasks = [asyncio.create_task(loop.run()) for loop in (*self._loops, self._release_loop)]
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.drain()
            self._stop_serving()
            await self._attempts.ended(LAST_WORD_MS)
            await self._last_word()
        finally:
            await self._close()

    def _stop_serving(self) -> None:
        self._end_life(self.phase if self.phase in ("left", "replaced") else "stopped")
        self._attempts.stop_all("the node stopped")

    async def _last_word(self) -> None:
        try:
            async with asyncio.timeout(LAST_WORD_MS / 1000):
                await self._release()
        except (SchedulerError, OSError, TimeoutError) as error:
            if len(self._reporter):
                logger.error("%s: %d outcomes were not reported: %r", self.node_id, len(self._reporter), error)

    async def _close(self) -> None:
        """End whatever runs here, also after a failure, or when leaving was cancelled."""
        if not self._ended.is_set():
            self._stop_serving()
        self._release_loop.stop()
        try:
            await end_tasks(self._tasks)
        finally:
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
            if not self.running:
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
        return len(self._attempts)

    # ---- heartbeat ----

    async def _beat(self) -> None:
        document = msgspec.structs.replace(self._beat_document, running=self.running)
        await self._store.control.beat(model.encode_beat(document))
        if self.phase == "draining":
            await self._leave()

    async def _leave(self) -> None:
        """Leave once the capacity is 0 and the slots are empty; the script knows."""
        if self.running or self._earlier or len(self._reporter):
            return
        answer = await self._store.cell.leave(self.node_id, self.boot)
        if answer != "busy":
            self._end_life("left" if answer == "left" else "replaced")

    def _end_life(self, phase: Phase) -> None:
        """This node serves no more: it reads and beats no more, and whoever waits for that is told."""
        if not self._ended.is_set():
            logger.info("%s: %s", self.node_id, phase)
        self.phase = phase
        if self._hand_over is not None:
            self._hand_over.cancel()
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
            loop, margin_s = asyncio.get_running_loop(), self._settings.margin_ms / 1000
            self._hand_over = loop.call_later(margin_s, self._end_earlier)
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
        self._attempts.hand_over()
        self._end_life("replaced")

    def _assign(self, job: Job, fields: dict[bytes, bytes]) -> None:
        """Start what is ours; entries of lower boots are ended once our own boot is confirmed."""
        boot = fields.get(b"boot", b"").decode()
        if boot == self.boot:
            self._attempts.start(job, int(fields[b"lease_until_ms"]), int(fields[b"lease_ms"]))
        elif model.boot_order(boot) < model.boot_order(self.boot):
            self._earlier.append(job)
            if self._handed_over:
                self._end_earlier()

    # ---- endings ----

    def _end(self, job: Job, ending: retry.Ending) -> None:
        self._reporter.add(job, ending)
        self._release_loop.wake()

    def _end_earlier(self) -> None:
        """End the reservations of lower boots, a margin after our own boot was confirmed: nobody runs them any more.

        An earlier life that is alive reads of us too, and gives back what it ran as its handlers stop, for which a
        handler has the margin of its lease. What is left then belonged to a life that is dead, or cut off.
        """
        self._handed_over = True
        for job in self._earlier:
            self._end(job, retry.Ending("reboot", reason="reboot", detail="the node was started again"))
        self._earlier = []

    async def _release(self) -> None:
        """Report what has ended, and leave if that was all that kept this node."""
        await self._reporter.report()
        if self.phase == "draining":
            await self._leave()
