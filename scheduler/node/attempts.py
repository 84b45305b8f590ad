"""A node's attempts under way: each runs a handler under a lease, is renewed with the others, and ends with a word.

Rules: no handler starts or goes on past its lease, as bounded by the node's own clock (leases.py). An assignment whose
lease is not surely in force is renewed first, and starts when the server says that it is still ours. An attempt lasts
until nothing of its handler runs any more: what should have stopped but runs on, a thread above all, keeps its slot
occupied, and its reservation is renewed for as long as the server allows. So is one whose body is still on its way, and
one whose ending the server has not heard yet: on a slow link both take longer than a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Collection
from typing import Final

import msgspec

from scheduler.config import Settings
from scheduler.host import Host
from scheduler.loop import forget_task
from scheduler.node import handlers, leases, retry
from scheduler.node.attempt_log import AttemptLog
from scheduler.node.handlers import Handler, Job
from scheduler.node.holds import Holds
from scheduler.node.retry import Ending
from scheduler.protocol import messages
from scheduler.store.cell import Cell
from scheduler.threads import Threads

logger = logging.getLogger("scheduler.node")

WATCH_MS: Final = 100
HELD_MARGIN_MS: Final = 200  # before its lease ends: so long, what held the process up may still be renewed
GIVE_BACK_MS: Final = 500  # or a job that cannot be run would come back at once


class Observer:
    """Hears of handlers that start and end; the default does nothing. Times: own monotonic clock, microseconds."""

    def started(self, job: Job, at_us: int) -> None:
        """A handler begins."""

    def ended(self, job: Job, at_us: int) -> None:
        """A handler has ended, for whatever reason."""


class Running(msgspec.Struct):
    """An attempt under way. Its task ends when it is stopped, a thread of it may run on."""

    job: Job
    lease: leases.Reservation
    task: asyncio.Task[Ending]
    stop: Ending | None = None  # what to report instead of what the handler returns
    lost: bool = False  # its reservation is gone: nothing is to be renewed or reported
    overrun: bool = False  # nothing is to be renewed
    held_ends_ms: float | None = None  # end of the lease for most of which what runs here held the process up


class Awaited(msgspec.Struct):
    """An assignment that has not started yet. job: without a body, unless is_here: it waits for a renewal alone then.
    lost: its reservation is gone.
    """

    job: Job
    lease: leases.Reservation
    is_here: bool = False
    lost: bool = False


class Attempts:
    """What a node runs.

    Args: cell; settings; host, of this process; node_id; capacity, slots; handler; observer; threads, for plain
    functions; report(job, ending), called at the end of each attempt whose reservation may still stand; log, of those
    that failed; unreported, keys of those that the server has not heard yet.
    """

    def __init__(
        self,
        cell: Cell,
        settings: Settings,
        host: Host,
        node_id: str,
        capacity: int,
        handler: Handler,
        observer: Observer,
        threads: Threads,
        report: Callable[[Job, Ending], None],
        log: AttemptLog,
        unreported: Collection[tuple[str, int]] = (),
    ) -> None:
        self.running: dict[tuple[str, int], Running] = {}
        self._awaited: dict[tuple[str, int], Awaited] = {}
        self._ended_leases: dict[tuple[str, int], leases.Reservation] = {}
        self._unreported = unreported
        self._cell = cell
        self._settings = settings
        self._node_id = node_id
        self._capacity = capacity
        self._handler = handler
        self._observer = observer
        self._threads = threads
        self._report = report
        self._log = log
        self._clock = host.clock
        self._random = host.random
        self._holds = Holds(handler, settings.start_ms, host.clock)
        self._renew_at_once = False
        self._watched_at_ms, self._watched_processor_ms = host.clock.ms(), host.clock.processor_ms()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self.running)

    @property
    def reserved(self) -> int:
        """How many hold their reservation, as far as is known here, with those that did not start yet."""
        held = sum(not running.lost for running in self.running.values())
        return held + sum(not awaited.lost for awaited in self._awaited.values())

    # ---- from start to end ----

    def expect(self, job: Job, made_after_ms: float) -> bool:
        """Renew an assignment until its body comes, which `start` is told, or `forget` if it is gone.

        made_after_ms: own time when it was not there yet. Returns: whether its body is needed.
        """
        if job.key in self.running:
            return False
        return not self._awaited.setdefault(job.key, Awaited(job, self._first_lease(job, made_after_ms))).is_here

    def forget(self, job: Job) -> None:
        """The body of an assignment does not come, if it did not come."""
        awaited = self._awaited.get(job.key)
        if awaited is not None and not awaited.is_here:
            del self._awaited[job.key]

    def forget_bodies(self) -> None:
        """The inbox is read again: what is awaited still is named there once more."""
        self._awaited = {key: awaited for key, awaited in self._awaited.items() if awaited.is_here}

    def start(self, job: Job, made_after_ms: float) -> bool:
        """Run the handler if the lease is surely in force.

        made_after_ms: own time when the assignment was not there yet. Returns: whether it is; else `renew` is due now.
        """
        awaited = self._awaited.get(job.key)
        if job.key in self.running or (awaited is not None and awaited.is_here):
            return True
        self._awaited.pop(job.key, None)
        if awaited is not None and awaited.lost:
            return True
        lease = self._first_lease(job, made_after_ms) if awaited is None else awaited.lease
        may_run = self._may_run(lease)
        if not may_run or self._holds.is_told_first(job):
            lease.is_started = may_run
            self._awaited[job.key] = Awaited(job, lease, is_here=True)
            return False
        self._begin(job, lease, is_told=awaited is None)
        return True

    def _first_lease(self, job: Job, made_after_ms: float) -> leases.Reservation:
        """The first lease of an assignment; over already when that may be too old."""
        length_ms = job.reservation.length_ms
        return leases.Reservation(job.job_id, job.token, made_after_ms + length_ms, job.policy.lease_ms, length_ms)

    def _begin(self, job: Job, lease: leases.Reservation, *, is_told: bool) -> None:
        """Run the handler; a job that finds no slot free is given back instead.

        is_told: the server knows that it is started, or learns so in time; else the next renewal tells it.
        """
        if len(self.running) >= self._capacity:
            # Attempts that should have ended but run on, or that a server which lost writes does not know of.
            self._renew_at_once = True
            detail = "attempts that the server does not count occupy all slots"
            self._end(job, lease, retry.given_back(detail, GIVE_BACK_MS))
            return
        self._renew_at_once = self._renew_at_once or not is_told
        lease.is_started = True
        task = asyncio.create_task(self._attempt(job, lease), name=f"job {job.job_id}")
        self.running[job.key] = Running(job, lease, task)
        self._idle.clear()
        task.add_done_callback(functools.partial(self._ended, job))

    def _end(self, job: Job, lease: leases.Reservation, ending: Ending) -> None:
        """Report, and renew until that has got through."""
        self._ended_leases[job.key] = lease
        self._report(job, ending)

    def _may_run(self, lease: leases.Reservation) -> bool:
        return leases.may_run(lease, self._clock.ms(), self._settings.margin_ms)

    async def _attempt(self, job: Job, lease: leases.Reservation) -> Ending:
        if not self._may_run(lease):
            return _too_late()  # the event loop was blocked, or the process paused, since the task was made
        self._holds.began(job)
        self._observe(self._observer.started, job)
        try:
            return await handlers.attempt(self._handler, job, self._threads, self._settings, self._random)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # of what judges; a KeyboardInterrupt here would end the event loop
            return self._broke(job, error)
        finally:
            self._threads.when_ended(job, functools.partial(self._observe, self._observer.ended, job))

    def _observe(self, tell: Callable[[Job, int], None], job: Job) -> None:
        """Tell the observer, whose errors are none of the handler's."""
        try:
            tell(job, self._clock.us())
        except BaseException:
            logger.exception("%s: the observer failed at job %s", self._node_id, job.job_id)

    def _ended(self, job: Job, task: asyncio.Task[Ending]) -> None:
        """The task has ended, and the attempt with it, unless a thread runs on."""
        if not self._threads.runs_on(job):
            self._settle(job, task)
            return
        if self.running[job.key].overrun:
            self._give_up(self.running[job.key])
        settle = functools.partial(self._settle, job, task)
        self._threads.when_ended(job, functools.partial(_call_in, asyncio.get_running_loop(), settle))

    def _settle(self, job: Job, task: asyncio.Task[Ending]) -> None:
        """Report what the handler came to, unless the reservation is gone."""
        running = self.running.pop(job.key)
        self._holds.ended(job)
        if not self.running:
            self._idle.set()
        if running.lost:
            return
        if task.cancelled():
            ending = running.stop or self._broke(job, "CancelledError: the handler was cancelled, but not by this node")
        elif (error := task.exception()) is not None:
            ending = self._broke(job, error)
        else:
            ending = task.result()
        self._log.ended(job, ending)
        self._end(job, running.lease, ending)

    def _give_up(self, running: Running) -> None:
        """Report an attempt that was stopped although its handler runs on; the slot stays occupied here."""
        if running.stop is not None and not running.lost:
            running.lost = True
            self._log.ended(running.job, running.stop)
            self._report(running.job, running.stop)

    def _broke(self, job: Job, error: BaseException | str) -> Ending:
        return handlers.failed(job, error, None, self._settings, self._random)

    # ---- what stops them ----

    def stop_all(self, detail: str) -> None:
        """Stop every handler; each job goes back when its handler has ended, and at once where none has started."""
        for running in list(self.running.values()):
            _stop(running, retry.given_back(detail))
        for awaited in list(self._awaited.values()):
            self._give_back(awaited, detail)

    def _give_back(self, awaited: Awaited, detail: str) -> None:
        if not awaited.lost:
            awaited.lost = True
            self._end(awaited.job, awaited.lease, retry.given_back(detail))
        if awaited.is_here:
            self._awaited.pop(awaited.job.key, None)

    def hand_over(self) -> None:
        """A later boot of this node is there: as `stop_all`, and what runs on is renewed in the next step of `renew`.

        So the later boot sees that somebody is alive here, and both together never run more than the node has slots.
        """
        self.stop_all("a later boot of the node took over")
        self._renew_at_once = True

    def renew_soon(self) -> None:
        """Renew all in the next step of `renew`, whatever is left of their leases."""
        self._renew_at_once = True

    @property
    def renews_soon(self) -> bool:
        """Whether all are to be renewed in the next step of `renew`."""
        return self._renew_at_once

    async def ended(self, timeout_ms: int) -> None:
        """Wait until no handler runs, nor a thread of one, at most `timeout_ms`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_ms / 1000):
                await self._idle.wait()

    def give_up_all(self) -> None:
        """Report what was stopped and runs on all the same: nobody will be here to wait for it."""
        for running in self.running.values():
            self._give_up(running)

    def leave_behind(self) -> None:
        """Wait no more for handlers that do not stop, nor let the end of the event loop wait for them."""
        for running in self.running.values():
            if not running.task.done():
                forget_task(running.task)

    async def renew(self) -> None:
        """Renew all in one call when a third of some lease has passed, or some wait for it to start; start these, and
        stop what is lost, cancelled or too long.
        """
        ended = self._ended_leases = {
            key: lease for key, lease in self._ended_leases.items() if key in self._unreported
        }
        held = [running.lease for running in self.running.values() if not (running.lost or running.overrun)]
        held += [lease for key, lease in ended.items() if key not in self.running]
        held += [awaited.lease for awaited in self._awaited.values() if not awaited.lost]
        wait = any(awaited.is_here for awaited in self._awaited.values())
        at_once, self._renew_at_once = self._renew_at_once or wait, False
        if not held or not (at_once or leases.renewal_due(held, self._clock.ms())):
            return
        started, waiting = [each for each in held if each.is_started], [each for each in held if not each.is_started]
        try:
            _, sent_ms, answers = await self._cell.renew(
                self._node_id,
                [(each.job_id, each.token) for each in started],
                [(each.job_id, each.token) for each in waiting],
            )
        except BaseException:
            self._begin_untold()
            raise
        for lease, answer in zip((*started, *waiting), answers, strict=True):
            if isinstance(answer, messages.Renewed):
                lease.ends_ms, lease.length_ms = sent_ms + lease.lease_ms, lease.lease_ms
            self._answered(lease, answer)

    def _begin_untold(self) -> None:
        """Start those of which the server was to be told first, and could not be: their leases are in force."""
        for awaited in list(self._awaited.values()):
            if awaited.is_here and awaited.lease.is_started and self._may_run(awaited.lease):
                del self._awaited[awaited.job.key]
                self._begin(awaited.job, awaited.lease, is_told=False)

    def _answered(self, lease: leases.Reservation, answer: messages.Renewed | messages.NotRenewed) -> None:
        """What a renewal means, wherever the reservation is by now."""
        if (awaited := self._awaited.get(lease.key)) is not None:
            self._made_sure(awaited, answer)
        elif (running := self.running.get(lease.key)) is not None:
            self._renewed(running, answer)
        elif isinstance(answer, messages.NotRenewed) and answer.why != "crowded":
            self._ended_leases.pop(lease.key, None)

    def _made_sure(self, awaited: Awaited, answer: messages.Renewed | messages.NotRenewed) -> None:
        """The server has said whether an assignment that did not start yet is ours."""
        job, lease = awaited.job, awaited.lease
        if isinstance(answer, messages.Renewed):
            if answer.cancelling:
                self._give_back(awaited, "cancelled")
            elif awaited.is_here and self._may_run(lease):  # else the answer took as long as the lease
                del self._awaited[job.key]
                self._begin(job, lease, is_told=lease.is_started)
        elif answer.why != "crowded":
            logger.warning("%s: the reservation of job %s is lost before it started", self._node_id, lease.job_id)
            awaited.lost = True
            if awaited.is_here:
                del self._awaited[job.key]

    def _renewed(self, running: Running, answer: messages.Renewed | messages.NotRenewed) -> None:
        lease = running.lease
        if isinstance(answer, messages.Renewed):
            if answer.cancelling:
                _stop(running, retry.given_back("cancelled"))
        elif answer.why == "overrun":
            running.overrun = True
            _stop(running, retry.overrun())
            if running.task.done():
                self._give_up(running)
        elif answer.why == "crowded":
            logger.info("%s: the slot of job %s was lost, and there is none for it yet", self._node_id, lease.job_id)
            self._renew_at_once = True  # until there is, or its lease ends
        else:
            logger.warning("%s: the reservation of job %s is lost", self._node_id, lease.job_id)
            running.lost = True
            _stop(running, None)

    async def watch(self) -> None:
        """Stop what may run past its lease, and warn when the event loop was blocked."""
        self._log.step()
        now_ms = self._clock.ms()
        late_ms = now_ms - self._watched_at_ms - WATCH_MS
        processor_ms = self._clock.processor_ms()
        has_computed = processor_ms - self._watched_processor_ms > late_ms / 2  # a process that was paused has not
        self._watched_at_ms, self._watched_processor_ms = now_ms, processor_ms
        if (told := self._holds.watch(late_ms, self._threads.used_ms())) is not None:
            logger.warning("%s: %s", self._node_id, told)
        reservations = [running.lease for running in self.running.values() if not running.job.stopped.is_set()]
        for lease in leases.to_stop(reservations, now_ms, self._settings.margin_ms):
            running = self.running[lease.key]
            if late_ms > lease.length_ms / 2 and has_computed:
                running.held_ends_ms = lease.ends_ms
            was_held = running.held_ends_ms == lease.ends_ms  # and nobody has renewed it since
            if was_held and lease.ends_ms - now_ms > HELD_MARGIN_MS:
                continue  # it can be renewed now, or has ended, and nobody could hear of that
            if was_held:  # given back, which costs nothing, it would do the same again without end
                logger.warning("%s: the reservation of job %s is lost with its lease", self._node_id, lease.job_id)
                running.lost = True
                _stop(running, None)
                continue
            logger.warning(
                "%s: the lease of job %s cannot be renewed in time, its handler stops", self._node_id, lease.job_id
            )
            _stop(running, retry.given_back("the lease could not be renewed in time"))


def _too_late() -> Ending:
    return retry.given_back("the assignment arrived too late", GIVE_BACK_MS)


def _stop(running: Running, ending: Ending | None) -> None:
    running.stop = running.stop or ending
    if not running.job.stopped.is_set():
        # Once: a second cancellation would end what the handler does to clean up.
        running.job.stopped.set()
        running.task.cancel()


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Let an event loop call, from a thread; one that is closed has nobody left to tell."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)
