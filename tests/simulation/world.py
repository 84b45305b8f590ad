"""Virtual time, and processes that share nothing but it: each has an event loop of its own, and all take turns.

Time moves only when no process has anything to do. So a minute of a fleet takes seconds, and the same callbacks run in
the same order each time. A process that is killed never takes another turn, not even to clean up; one that is suspended
finds everything that came meanwhile when it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import heapq
import sys
import warnings
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, Unpack

from scheduler.clock import Clock

ORIGIN_S: Final = 1_000.0  # small, for timers are floats
TICK_S: Final = 0.000_001
TURNS_A_SECOND_MAX: Final = 300_000  # callbacks: with more, somebody spins; a fleet under load has some 5,000

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Context = contextvars.Context

CLEANUPS_MAX: Final = 20  # awaits in the way out of a coroutine


class Spinning(Exception):
    """Callbacks run without end, and no time passes."""


if TYPE_CHECKING:
    # What is not implemented here is not used: nobody opens sockets, starts processes or handles signals.
    class _Loop(asyncio.BaseEventLoop):
        pass
else:
    _Loop = asyncio.AbstractEventLoop


class World:
    """What passes for the machine room.

    seed: of all chance in it. now_s: virtual time.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.now_s = ORIGIN_S
        self.process: Process | None = None  # whose turn it is
        self._ready: deque[tuple[Process | None, asyncio.Handle]] = deque()
        self._timers: list[tuple[float, int, Process | None, asyncio.Handle]] = []
        self._number = 0
        self._turns = 0
        self._graveyard: list[asyncio.Task[Any]] = []
        self._dropped_ones: list[AsyncGenerator[Any, Any]] = []
        self._is_closed = False
        self._processes: list[Process] = []
        self._generators: dict[int, tuple[Process, weakref.ref[AsyncGenerator[Any, Any]]]] = {}

    def chance(self, *name: object) -> Random:
        """A stream of chance that nobody else draws from."""
        return Random("/".join(map(str, (self.seed, *name))))

    @property
    def elapsed_s(self) -> float:
        """Since the run began, as schedules count."""
        return self.now_s - ORIGIN_S

    # ---- what is to be done ----

    def soon(self, process: Process | None, handle: asyncio.Handle) -> None:
        """In this instant, after what is waiting already."""
        self._ready.append((process, handle))

    def at(self, when_s: float, process: Process | None, handle: asyncio.Handle) -> None:
        """At a time of this world; what is late is done now."""
        self._number += 1
        heapq.heappush(self._timers, (max(when_s, self.now_s), self._number, process, handle))

    def call_at(self, when_s: float, call: Callable[..., object], *arguments: object) -> asyncio.Handle:
        """As `at`, for what belongs to no process: the network, the server, faults."""
        handle = asyncio.Handle(call, arguments, _NO_LOOP, contextvars.Context())
        self.at(when_s, None, handle)
        return handle

    def add(self, process: Process) -> None:
        """A process that has begun."""
        self._processes.append(process)

    # ---- time ----

    def run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Let time pass until something is true, at most until `limit_s`. Returns whether it is."""
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._begun, self._dropped)
        try:
            while not until():
                if not self._ready and not self._advance(limit_s):
                    return until()
                self._turn()
            return True
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def _begun(self, generator: AsyncGenerator[Any, Any]) -> None:
        """An asynchronous generator has begun; whose it is, is remembered until it ends."""
        if self.process is not None:
            self._generators[id(generator)] = self.process, weakref.ref(generator)

    def _dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Nobody goes on with it: its process ends it, as every event loop does."""
        process, _ = self._generators.pop(id(generator), (None, None))
        if process is not None and process.is_alive:
            process.do(process.create_task, generator.aclose())
        elif not self._is_closed:
            self._dropped_ones.append(generator)  # kept, for nothing of a dead process may run

    def _advance(self, limit_s: float) -> bool:
        """Go to the next timer. Returns whether there is one before the limit."""
        while self._timers and self._timers[0][3].cancelled():
            heapq.heappop(self._timers)
        if not self._timers or self._timers[0][0] > limit_s:
            self.now_s = limit_s
            return False
        if int(self._timers[0][0]) > int(self.now_s):
            self._turns = 0
        self.now_s = self._timers[0][0]
        while self._timers and self._timers[0][0] <= self.now_s:
            _, _, process, handle = heapq.heappop(self._timers)
            self._ready.append((process, handle))
        return True

    def _turn(self) -> None:
        """What is ready now; what comes of it has its turn afterwards."""
        ready = self._ready
        for _ in range(len(ready)):
            process, handle = ready.popleft()
            if handle.cancelled():
                continue
            self._turns += 1
            if process is None:
                handle._run()
            else:
                process.turn(handle)
        if self._turns > TURNS_A_SECOND_MAX:
            raise Spinning(f"{self._turns} callbacks within a second at {self.now_s:.3f} s, the last of {process}")

    def bury(self, tasks: list[asyncio.Task[Any]]) -> None:
        """Tasks of a process that was killed: nothing of them may run again, so nobody may collect them meanwhile."""
        self._graveyard += tasks

    def close(self) -> None:
        """End all that is left, without a word."""
        with warnings.catch_warnings(), _unheard():
            warnings.simplefilter("ignore")
            for process in self._processes:
                process.kill()
            self._is_closed = True
            for task in self._graveyard:
                _end(task)
            for _, reference in self._generators.values():
                generator = reference()
                if generator is not None:
                    with contextlib.suppress(BaseException):
                        generator.aclose().send(None)
                del generator
            self._graveyard.clear()
            self._dropped_ones.clear()
            self._ready.clear()
            self._timers.clear()
            gc.collect()


def sweep_up() -> None:
    """Throw away what runs that nobody knows any more have left, without a word; else some later test would hear it."""
    with warnings.catch_warnings(), _unheard():
        warnings.simplefilter("ignore")
        gc.collect()


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Nobody is told of what goes wrong while things are collected."""
    before, sys.unraisablehook = sys.unraisablehook, lambda what: None
    try:
        yield
    finally:
        sys.unraisablehook = before


def _end(task: asyncio.Task[Any]) -> None:
    """End a task that nobody runs any more. What it does to clean up needs a loop, and fails."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine = task.get_coro()
    for _ in range(CLEANUPS_MAX):
        try:
            coroutine.close()
            return
        except BaseException:
            continue


class Process(_Loop):
    """A process, which is its event loop. Everything of it shares its fate.

    begun_s: when it was started; drift_s: by how much the clock of its event loop is behind that of the world; it stood
    still while the machine slept.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.is_alive = True
        self.begun_s = world.now_s
        self.drift_s = 0.0
        self.suspended_until_s = 0.0
        self.failures: list[str] = []
        self.on_death: list[Callable[[], None]] = []
        self._held: list[asyncio.Handle] = []
        world.add(self)

    def __repr__(self) -> str:
        return self.name

    @property
    def is_suspended(self) -> bool:
        """Whether it takes no turn for the moment."""
        return self.world.now_s < self.suspended_until_s

    def turn(self, handle: asyncio.Handle) -> None:
        """Run one callback, unless the process is dead or suspended."""
        if not self.is_alive:
            return
        if self.world.now_s < self.suspended_until_s:
            self._held.append(handle)
            return
        if self.drift_s and isinstance(handle, asyncio.TimerHandle) and handle.when() > self.time() + 1e-9:
            self._arm(handle)  # its clock has stood still since the timer was set
            return
        self.world.process = self
        asyncio._set_running_loop(self)
        try:
            handle._run()
        except (SystemExit, KeyboardInterrupt) as error:
            self.failures.append(f"{self.world.now_s:.3f} {self.name}: ended by {error!r}")
            self.kill()
        finally:
            asyncio._set_running_loop(None)
            self.world.process = None

    # ---- its fate ----

    def start(self, main: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Begin to run."""
        asyncio._set_running_loop(self)
        try:
            return self.create_task(main)
        finally:
            asyncio._set_running_loop(None)

    def kill(self) -> None:
        """As SIGKILL: it takes no turn any more."""
        if self.is_alive:
            self.is_alive = False
            self._held.clear()
            self.world.bury(list(asyncio.all_tasks(self)))
            for call in self.on_death:
                call()

    def suspend(self, for_s: float, *, clock_stops: bool = False) -> None:
        """As SIGSTOP, or with `clock_stops` as a machine that sleeps: the clock of its event loop stands still."""
        if self.is_suspended or not self.is_alive:
            return
        self.suspended_until_s = self.world.now_s + for_s
        if clock_stops:
            self.drift_s += for_s
        self.world.call_at(self.suspended_until_s, self._resume)

    def _resume(self) -> None:
        held, self._held = self._held, []
        for handle in held:
            self.world.soon(self, handle)

    def do(self, call: Callable[..., object], *arguments: object) -> None:
        """What comes from outside, such as bytes of the network, when the process has its turn."""
        self.world.soon(self, asyncio.Handle(call, arguments, self, contextvars.Context()))

    # ---- the event loop ----

    def time(self) -> float:
        return self.world.now_s - self.drift_s

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.world.soon(self, handle)
        return handle

    call_soon_threadsafe = call_soon  # there are no threads here

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        # A clock that stands still while callbacks run would never reach what is nearer than its digits tell.
        when = self.time() + (max(delay, TICK_S) if delay > 0 else delay)
        return self.call_at(when, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._arm(timer)
        return timer

    def _arm(self, timer: asyncio.TimerHandle) -> None:
        self.world.at(timer.when() + self.drift_s, self, timer)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        return asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return not self.is_alive

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{self.world.now_s:.3f} {self.name}: {context.get('message')}: {error!r}")


class _NoLoop(_Loop):
    """Of callbacks that belong to no process: what they raise is an error of the simulation."""

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise RuntimeError(context.get("message")) from context.get("exception")


_NO_LOOP: Final = _NoLoop()


class ProcessClock(Clock):
    """The own clock of a simulated process, which runs on while its machine sleeps."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def ms(self) -> float:
        return self._process.world.now_s * 1000

    def us(self) -> int:
        return round(self._process.world.now_s * 1_000_000)

    def processor_ms(self) -> float:
        return 0.0
