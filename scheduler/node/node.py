"""The node SDK: registers, reads its inbox, runs handlers under leases, reports outcomes, drains and leaves.

    async with Node(url, "n1", capacity=8, pairs=[("en", "zh")], features={"asr"}, handler=handle) as node:
        await node.stopped()

Rules: a node starts work only after its own `boot` message, ends the reservations that a lower boot of it left behind,
stops when it reads a higher one, and never runs a handler past its lease (attempts.py). The contract of handlers stands
in handlers.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from os import environ
from typing import Final

import msgspec

from scheduler import arguments, forks
from scheduler.config import Settings, check_settings, read_settings
from scheduler.errors import SchedulerError, ServerRefused
from scheduler.host import Host
from scheduler.lifetime import Lifetime
from scheduler.loop import Loop, end_tasks
from scheduler.node import guard, leases, retry
from scheduler.node.attempt_log import AttemptLog
from scheduler.node.attempts import GIVE_BACK_MS, WATCH_MS, Attempts, Observer
from scheduler.node.bodies import without_body
from scheduler.node.drain import DRAIN_MS_MAX, Drain
from scheduler.node.handlers import Handler, Job, check_handler
from scheduler.node.idle import Idle
from scheduler.node.inbox import Inbox, InboxEntry
from scheduler.node.phases import Event, Phase, Phases
from scheduler.node.registration import registration
from scheduler.node.reporting import Reporter
from scheduler.protocol.documents import boot_order, encode_beat
from scheduler.store.store import Store, open_store
from scheduler.store.telling import Call
from scheduler.url import ServerUrl, parse_url

logger = logging.getLogger("scheduler.node")

FIRST_WORD_MS: Final = 2_000  # for telling the server that this node leaves
RESULTS_SHARE: Final = 0.6  # of the time for last words, that results have before they are given up
LEAVE_AGAIN_MS: Final = 50
THREADS_MIN: Final = 32


class Node:
    """One node. Entering registers it and begins to serve; leaving drains it: running jobs end, then it leaves the
    fleet. It is entered once, and used in the event loop that entered it.

    Args: url of the server; node_id, one running process each; capacity, jobs at once; handler; pairs, (source,
    target) languages; features; labels; pool, empty for the default; version, of the node's software; settings, by
    default from the `SCHED_*` variables; observer; drain_ms_max, how long leaving may take in all: it waits for running
    jobs, and gives them back some time before (drain.py); host, of this process.
    Raises: InvalidInput; on entering ServerRefused. One that does not answer, or cannot do it now, is waited for.
    Attributes: refusal, why the server is of no use any more: it takes user and password no more.
    """

    def __init__(
        self,
        url: str | ServerUrl,
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
        host: Host | None = None,
    ) -> None:
        self._url = parse_url(url)
        self._settings = read_settings(environ) if settings is None else check_settings(settings)
        self._beat_document = registration(node_id, capacity, pairs, features, labels, pool, version)
        check_handler(handler)
        self.node_id = node_id
        self.boot = ""
        self._phases = Phases()
        self.refusal: ServerRefused | None = None
        self._handler = handler
        self._observer = Observer() if observer is None else arguments.instance("observer", observer, Observer)
        self._host = Host() if host is None else arguments.instance("host", host, Host)
        self._lifetime = Lifetime("Node", self._host.pid)
        self._clock = self._host.clock
        self._drain = Drain(arguments.milliseconds("drain_ms_max", drain_ms_max), self._clock)
        self._earlier: list[Job] = []
        self._held_before: dict[str, int] = {}
        self._margin_is_over = False
        self._told = asyncio.Event()  # the server has heard that this node drains, or need not hear it any more
        self._ended = asyncio.Event()
        self._joining: Call | None = None  # told while no manager takes this node in
        self._idle = Idle(self._beat_document)

    @property
    def phase(self) -> Phase:
        """Where this node stands: joining, serving, draining, left, replaced or stopped."""
        return self._phases.phase

    # ---- entering and leaving ----

    def __repr__(self) -> str:
        return f"Node({self.node_id!r}, {self._url})"

    async def __aenter__(self) -> Node:
        self._lifetime.enter()
        try:
            await self._enter()
        except BaseException:
            self._lifetime.not_entered()
            raise
        self._start_loops()
        return self

    async def _enter(self) -> None:
        forks.protect()
        guard.protect()
        self._store: Store = await open_store(self._url, self._settings, None, self._host.clock, self._host.connect)
        try:
            self._layout = await self._store.layout()
            self._inbox = Inbox(self._store, self.node_id, self._clock)
            since_ms, number, self._held_before = await self._store.cell.boot(self.node_id)
            self.boot = f"{number}-{self._host.token_hex(4)}"
            self._beat_document = msgspec.structs.replace(self._beat_document, boot=self.boot, since_ms=since_ms)
            workers = max(THREADS_MIN, 2 * self._beat_document.capacity)
            self._threads = self._host.threads(workers, f"scheduler-{self.node_id}")
            self._log = AttemptLog(self.node_id, self._clock)
            self._reporter = Reporter(
                self._store.cell, self._settings, self._layout, self.node_id, self.boot, self._log
            )
            self._attempts = Attempts(
                self._store.cell,
                self._settings,
                self._host,
                self.node_id,
                self._beat_document.capacity,
                self._handler,
                self._observer,
                self._threads,
                self._end,
                self._log,
                self._reporter.keys,
            )
            await self._beat()
            self._store.connection.refused = self._refused
            self._store.connection.has_started = True
            waits = f"no manager has taken in node {self.node_id} yet: it waits for the word `boot`"
            self._joining = self._store.connection.missing(waits, None)
        except BaseException:
            await self._store.close()
            raise

    def _start_loops(self) -> None:
        random = self._host.random
        self._beat_loop = Loop("beat", self._beat, self._settings.heartbeat_ms, random)
        self._renew_loop = Loop("renew", self._attempts.renew, WATCH_MS, random)
        self._release_loop = Loop("release", self._release, 1_000, random)
        watch_ms = max(1, min(WATCH_MS, self._settings.margin_ms // 2))
        # The others go on to the very end: a life that is over still renews what runs on, and reads of later boots.
        self._serving = [self._beat_loop, Loop("watch", self._attempts.watch, watch_ms, random)]
        inbox_loop = Loop("inbox", self._read_inbox, 0, random)
        self._loops = [*self._serving, inbox_loop, self._renew_loop, self._release_loop]
        self._tasks = [asyncio.create_task(loop.run()) for loop in self._loops]

    async def __aexit__(self, *_: object) -> None:
        if not self._lifetime.leave():
            return
        self._drain.begin()
        try:
            await self._finish()
            self._stop_serving()
            await self._end_handlers()
            await self._last_word()
            await self._leave_at_last()
        finally:
            await self._close()

    def _stop_serving(self) -> None:
        self._end_life("stop")
        self._attempts.stop_all("the node stopped")

    async def _last_word(self) -> None:
        left_ms = self._drain.report_ms
        try:
            async with asyncio.timeout(RESULTS_SHARE * left_ms / 1000):
                await self._reporter.report()
        except (SchedulerError, OSError, TimeoutError) as error:
            if self._reporter.give_back_results("the node stopped before its result was reported"):
                with contextlib.suppress(SchedulerError, OSError, TimeoutError):
                    async with asyncio.timeout((1 - RESULTS_SHARE) * left_ms / 1000):
                        await self._reporter.report()
            if len(self._reporter):
                logger.error("%s: %d outcomes were not reported: %s", self.node_id, len(self._reporter), error)

    async def _leave_at_last(self) -> None:
        """Leave after giving back what did not end in time: the server knows of nothing here any more.

        Unless it has given something meanwhile, which is given back too, or somebody holds what an earlier life had.
        """
        if self.phase != "stopped" or len(self._reporter):
            return
        with contextlib.suppress(SchedulerError, OSError, TimeoutError):
            async with asyncio.timeout(self._drain.report_ms / 1000):
                while (answer := await self._store.cell.leave(self.node_id, self.boot, "leaves")) == "busy":
                    await asyncio.sleep(LEAVE_AGAIN_MS / 1000)
                    await self._reporter.report()
                logger.info("%s: %s", self.node_id, self._phases.change("leave" if answer == "left" else "replace"))

    async def _close(self) -> None:
        """End whatever runs here, also after a failure, or when leaving was cancelled."""
        if not self._ended.is_set():
            self._stop_serving()
        for loop in self._loops:
            loop.stop()
        try:
            await end_tasks(self._tasks)
        finally:
            self._attempts.leave_behind()
            self._threads.shutdown()
            self._log.close()
            await self._store.close()

    async def _end_handlers(self) -> None:
        """Wait for handlers that were stopped, which in a life that was replaced have all of the time.

        What runs on all the same is given back, or by a life that was replaced left to the end of its lease.
        """
        await self._attempts.ended(round(self._drain.handlers_ms))
        if self.running:
            logger.warning("%s: handlers that do not stop: %d", self.node_id, self.running)
        if self.phase != "replaced":
            self._attempts.give_up_all()

    async def drain(self) -> None:
        """Take no more work, finish what runs, and leave; gives up some time before `drain_ms_max`."""
        if self._lifetime.state != "left":
            self._lifetime.check("drain")
            await self._finish()

    async def _finish(self) -> None:
        if not self._phases.can("drain"):
            return
        self._phases.change("drain")
        self._beat_document = msgspec.structs.replace(self._beat_document, draining=True)
        self._drain.begin()
        if self.running:
            seconds = self._drain.jobs_ms / 1000
            logger.info("%s: drains: jobs that run: %d; they have %.1f s to end", self.node_id, self.running, seconds)
        self._beat_loop.wake()
        try:
            async with asyncio.timeout(min(FIRST_WORD_MS, self._drain.jobs_ms) / 1000):
                await self._told.wait()
        except TimeoutError:
            logger.warning("%s: leaving without a word of the server", self.node_id)
            if not self._attempts.reserved:
                return
        try:
            async with asyncio.timeout(self._drain.jobs_ms / 1000):
                await self._ended.wait()
        except TimeoutError:
            logger.warning("%s: jobs that did not end in time and are given back: %d", self.node_id, self.running)

    async def stopped(self) -> None:
        """Wait until this node serves no more: it was drained and left, or a later boot replaced it.

        Raises: CredentialsRefused when the server takes its user and password no more.
        """
        if self._lifetime.state != "left":
            self._lifetime.check("stopped")
        await self._ended.wait()
        if self.refusal is not None:
            raise self.refusal

    @property
    def running(self) -> int:
        """Handlers that run now, with threads that were stopped and run on."""
        return len(self._attempts) if self.boot else 0

    # ---- heartbeat ----

    async def _beat(self) -> None:
        """Leave if nothing keeps this node, or else say that it is there.

        One step does both, so one comes after the other: placement hears at once, by the heartbeat, that a node wants
        to leave, and no heartbeat is under way when it does.
        """
        if self.phase == "draining" and await self._leave():
            return
        document = msgspec.structs.replace(self._beat_document, running=self.running)
        await self._store.control.beat(encode_beat(document))
        if self.phase == "serving":
            self._idle.look(self._attempts.reserved, self._clock.ms())
        if document.draining and not self._told.is_set():
            self._told.set()
            self._beat_loop.wake()  # which leaves, or sees to it that nothing new comes

    def _is_done(self) -> bool:
        """Whether nothing is left that only this node can end."""
        return not (self._attempts.reserved or self._earlier or len(self._reporter))

    async def _leave(self) -> bool:
        """Leave once nothing is held; the script knows. Returns: whether it did.

        Who wants to leave asks while something still runs, too: the script lets nothing new come then.
        """
        wants = self._beat_document.draining
        if not (self._told.is_set() if wants else self._is_done()):
            return False
        answer = await self._store.cell.leave(self.node_id, self.boot, "leaves" if wants else "drained")
        if answer == "busy":
            return False
        self._end_life("leave" if answer == "left" else "replace")
        return True

    def _refused(self, why: ServerRefused) -> None:
        """The server is of no use to this node any more. What runs here ends: it can neither be renewed nor told."""
        logger.error("%s: %s; the node stops", self.node_id, why)
        self.refusal = why
        self._end_life("stop")

    def _end_life(self, event: Event) -> None:
        """This node serves no more: it writes no more heartbeats, and `stopped` returns."""
        phase = self._phases.change(event)
        if not self._ended.is_set() and phase != "stopped":  # what that comes to is said at the end
            logger.info("%s: %s", self.node_id, phase)
        self._end_joining(is_there=False)
        self._inbox.late.clear()
        for loop in self._serving:
            loop.stop()
        self._told.set()
        self._ended.set()

    # ---- inbox ----

    async def _read_inbox(self) -> None:
        """What is new, and some of the bodies that did not come with it."""
        if await self._inbox.must_begin_again():
            self._attempts.forget_bodies()
            self._reporter.remember_reported()
            self._attempts.renew_soon()
            self._renew_loop.wake()
        for entry in await self._inbox.read():
            self._take(entry)
        if self._inbox.is_read_to_end and not self._inbox.late:
            self._reporter.forget_reported()
        for job, body in await self._inbox.read_late():
            if body is not None and not self._ended.is_set():
                self._take(body)
            self._attempts.forget(job)

    def _take(self, entry: InboxEntry) -> None:
        """One entry. Of a head an assignment of this life is renewed until its body comes."""
        try:
            if b"control" in entry.fields:
                self._obey(entry.fields)
            elif entry.head is None:
                self._assign(Job(self.node_id, entry.id, entry.fields), entry.made_after_ms)
            else:
                job = without_body(self.node_id, entry.head)
                if job.reservation.boot != self.boot or self._ended.is_set():
                    self._assign(job, entry.made_after_ms)  # to be ended, which needs no body
                elif not self._reporter.knows(job.key) and self._attempts.expect(job, entry.made_after_ms):
                    self._inbox.late.add(job, entry.head.size_bytes)
        except (KeyError, ValueError, SchedulerError) as error:
            line = "%s: inbox entry %s is ignored, for no script has written it: %s"
            logger.warning(line, self.node_id, entry.id, _described(error))

    def _obey(self, fields: dict[bytes, bytes]) -> None:
        control, boot = fields[b"control"].decode(), fields.get(b"boot", b"").decode()
        if boot_order(boot) > boot_order(self.boot):
            if self._phases.can("replace"):
                self._replaced(boot)
        elif boot != self.boot:
            return
        elif control == "boot":
            self._joined()
        elif control == "drained" and self._phases.can("drained"):
            self._phases.change("drained")
            logger.info("%s is drained", self.node_id)
            self._beat_loop.wake()  # which leaves, once nothing runs
        elif control == "resumed" and self._phases.can("resumed") and not self._beat_document.draining:
            self._phases.change("resumed")
            logger.info("%s is resumed", self.node_id)

    def _end_joining(self, *, is_there: bool) -> None:
        if self._joining is not None:
            self._store.connection.found(self._joining, is_there=is_there)
            self._joining = None

    def _joined(self) -> None:
        """The scheduler knows this boot, and an earlier life reads of it too."""
        self._end_joining(is_there=True)
        asyncio.get_running_loop().call_later(self._settings.margin_ms / 1000, self._end_margin)
        if self._phases.can("boot"):
            self._phases.change("boot")
            logger.info("%s serves as boot %s", self.node_id, self.boot)
            self._idle.worked(self._clock.ms())

    def _end_margin(self) -> None:
        """An earlier life has had its time to hand over."""
        self._margin_is_over = True
        self._release_loop.wake()

    def _replaced(self, boot: str) -> None:
        """A later life of this node has taken over, or one that is later still: what runs here ends now, and is renewed
        until it has.
        """
        logger.warning("%s: boot %s replaces %s, stopping", self.node_id, boot, self.boot)
        self._attempts.hand_over()
        self._renew_loop.wake()
        self._end_life("replace")

    def _assign(self, job: Job, made_after_ms: float) -> None:
        """Start what is ours, while this life lasts; entries of lower boots wait until our own boot is confirmed.

        An inbox that is read again has what runs, and what has ended and is not told yet.
        """
        boot = job.reservation.boot
        if self._reporter.knows(job.key) or any(job.key == each.key for each in self._earlier):
            return
        if boot == self.boot and self._ended.is_set():
            self._end(job, retry.given_back("the node stopped", GIVE_BACK_MS))
        elif boot == self.boot:
            self._idle.worked(self._clock.ms())
            if not self._attempts.start(job, made_after_ms):
                self._renew_loop.wake()
        elif boot_order(boot) < boot_order(self.boot):
            self._earlier.append(job)

    # ---- endings ----

    def _end(self, job: Job, ending: retry.Ending) -> None:
        self._reporter.add(job, ending)
        self._release_loop.wake()

    async def _end_earlier(self) -> None:
        """End the reservations that lower boots left behind, a margin after our own boot was confirmed.

        An earlier life that is alive reads of us too: it gives back what it ran as its handlers stop, and renews what
        does not stop at once. So what was not renewed since we began belongs to a life that is dead, or cut off. What
        was is left alone: its holder ends it, or else the reaper does when the lease lapses, as with any node.
        """
        while self._earlier:
            batch = self._earlier[: self._settings.batch_max]
            found = await self._store.reads.leases(self.node_id, [job.job_id for job in batch])
            del self._earlier[: len(batch)]
            for job, lease in zip(batch, found, strict=True):
                if lease.holder is None or lease.holder.token != job.token or lease.until_ms is None:
                    continue  # given back meanwhile
                if leases.is_left_behind(lease.started_ms, lease.until_ms, self._held_before.get(job.job_id)):
                    self._end(job, retry.Ending("reboot", reason="reboot", detail="the node was started again"))
                else:
                    logger.info("%s: an earlier life still runs job %s", self.node_id, job.job_id)

    async def _release(self) -> None:
        """Report what has ended, and have this node leave if that was all that kept it."""
        await self._reporter.report()
        if self._attempts.renews_soon:
            self._renew_loop.wake()  # what was given back has left room for those that have no slot
        if self._margin_is_over and not self._ended.is_set():
            await self._end_earlier()
        if self.phase == "draining" and self._is_done():
            self._beat_loop.wake()


def _described(error: Exception) -> str:
    """What is wrong with an entry, in words."""
    if isinstance(error, KeyError):
        return f"it has no field {error.args[0].decode()!r}"
    if isinstance(error, UnicodeDecodeError):
        return "a text in it is no UTF-8"
    return "a number in it is none" if "invalid literal" in str(error) else str(error)
