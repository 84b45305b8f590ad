"""Threads of our own, for plain handlers.

- They are daemon threads: a handler that hangs does not keep the process from ending.
- A call is given to a thread that waits, or a thread is started with it. A thread that cannot be started was given
  nothing: its call never runs. (`ThreadPoolExecutor.submit` puts the call into its queue first, where a thread finds it
  later.)
- What a function returns or raises travels as a value. No exception ends a thread, or means anything to asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from scheduler import forks
from scheduler.clock import ThreadClock

logger = logging.getLogger("scheduler")

USED_MAX: Final = 1_024  # jobs that have ended, and whose use of a processor nobody asked for


class Keyed(Protocol):
    """What a function is called with. key: names the call."""

    @property
    def key(self) -> tuple[str, int]:
        """Unique among calls under way."""


class _Call:
    """One call of a function: it waits, runs in a thread and ends; or it is withdrawn before it runs.

    Args: function; job, its argument; context, to run it in; tell(value, error), called with what came out.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        job: Keyed,
        context: contextvars.Context,
        tell: Callable[[Any, BaseException | None], None],
    ) -> None:
        self.job = job
        self._function = function
        self._context = context
        self._tell = tell
        self._lock = threading.Lock()
        self._state = "waiting"
        self._ended: list[Callable[[], None]] = []
        self._value: Any = None
        self._error: BaseException | None = None

    def withdraw(self) -> bool:
        """Never run it. Returns: whether that came in time; else it runs, or has ended."""
        self._enter("withdrawn", "waiting")
        return self._state == "withdrawn"

    def run(self) -> None:
        """Call the function, unless the call was withdrawn. In a process that it forked this does not return."""
        if not self._enter("running", "waiting"):
            return
        process = forks.process_id()
        try:
            self._value = self._context.run(self._function, self.job)
        except BaseException as error:
            self._error = error
        forks.end_child(process, self._error)
        self._enter("ended", "running")

    def _enter(self, state: str, before: str) -> bool:
        with self._lock:
            if self._state != before:
                return False
            self._state = state
            return True

    def tell(self) -> None:
        """Tell everybody that it has ended, and what came out."""
        with self._lock:
            ended, self._ended = self._ended, []
        value, error = self._value, self._error
        self._value = self._error = None  # the traceback of an error leads back here
        for each in ended:
            _quietly(each)
        _quietly(partial(self._tell, value, error))

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Call `tell` when the function has ended, in its thread; at once if it has."""
        with self._lock:
            if self._state != "ended":
                self._ended.append(tell)
                return
        tell()


def _quietly(tell: Callable[[], None]) -> None:
    """An error of who is told must not end the thread."""
    try:
        tell()
    except BaseException:
        logger.exception("after a handler in a thread")


class Threads:
    """Threads that call plain functions, `workers` at most; further calls wait for one of them. name: begins theirs."""

    def __init__(self, workers: int, name: str) -> None:
        self._workers = workers
        self._name = name
        self._lock = threading.Lock()
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._started = 0
        self._idle = 0  # threads that wait, without those whose call is in the queue; below 0 if more calls wait
        self._is_closed = False
        self._behind: dict[tuple[str, int], Any] = {}
        self._under_way: dict[_Call, tuple[ThreadClock, float]] = {}  # and what its clock said when last asked
        self._used_ms: deque[tuple[Any, float]] = deque(maxlen=USED_MAX)  # by those that have ended since

    def runs_on(self, job: Keyed) -> bool:
        """Whether the thread of an attempt that was stopped still runs."""
        return job.key in self._behind

    async def run(self, function: Callable[[Any], Any], job: Keyed) -> Any:
        """Call a plain function in a thread, in a copy of the context of the caller.

        Raises: what the function raises; RuntimeError when no thread could be started, and the function never runs;
        asyncio.CancelledError when stopped, the thread may run on.
        """
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        call = _Call(function, job, contextvars.copy_context(), partial(_deliver, loop, outcome))
        self._give(call)
        try:
            value, error = await outcome
        except asyncio.CancelledError:
            if not call.withdraw():
                self._behind[job.key] = call
                call.when_ended(lambda: self._behind.pop(job.key, None))
            raise
        if error is not None:
            raise error
        return value

    def when_ended(self, job: Keyed, tell: Callable[[], None]) -> None:
        """Call `tell` once nothing of the job runs any more: now, or in its thread when that ends."""
        call = self._behind.get(job.key)
        if call is None:
            tell()
        else:
            call.when_ended(tell)

    def used_ms(self) -> list[tuple[Any, float]]:
        """The jobs that threads worked at since this was last asked, and for how long each had a processor."""
        with self._lock:  # so no thread can end while its clock is read
            used = list(self._used_ms)
            self._used_ms.clear()
            for call, (clock, before_ms) in self._under_way.items():
                now_ms = clock.used_ms()
                self._under_way[call] = (clock, now_ms)
                used.append((call.job, now_ms - before_ms))
        return used

    def shutdown(self) -> None:
        """Start nothing more; a thread that runs ends by itself, or with the process."""
        with self._lock:
            self._is_closed = True
        with contextlib.suppress(Empty):
            while True:
                if (call := self._calls.get_nowait()) is not None:
                    call.withdraw()
        for _ in range(self._started):
            self._calls.put(None)

    def _give(self, call: _Call) -> None:
        """Give a call to a thread. Raises: RuntimeError when there is none; the call has been given to nobody then."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError("no thread runs anything here any more")
            if self._idle <= 0 and self._started < self._workers:
                name = f"{self._name}_{self._started}"
                threading.Thread(target=self._serve, args=(call,), name=name, daemon=True).start()
                self._started += 1
            else:
                self._idle -= 1
                self._calls.put(call)

    def _serve(self, call: _Call | None) -> None:
        """What a thread does: its first call, then one after the other."""
        clock, used_ms = ThreadClock(), 0.0
        while call is not None:
            with self._lock:
                self._under_way[call] = (clock, used_ms)
            call.run()
            with self._lock:
                _, before_ms = self._under_way.pop(call)
                used_ms = clock.used_ms()
                self._used_ms.append((call.job, used_ms - before_ms))
                self._idle += 1  # before anybody hears of the end, who may have the next call
            call.tell()
            del call  # or what came out would be kept until the next one
            call = self._calls.get()


def _deliver(
    loop: asyncio.AbstractEventLoop,
    outcome: asyncio.Future[tuple[Any, BaseException | None]],
    value: Any,
    error: BaseException | None,
) -> None:
    """Hand over, from a thread, what came out. An event loop that is closed has nobody left to tell."""

    def arrive() -> None:
        if not outcome.done():
            outcome.set_result((value, error))

    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(arrive)
