"""A loop is one thing, its step another: a `Loop` repeats one `run_once`, with jitter, stop and error handling."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Collection
from random import Random
from typing import Any, Final

from scheduler.errors import CredentialsRefused, Fenced, SchedulerError, ServerUnavailable

logger = logging.getLogger("scheduler")

TOLD_AGAIN_MS: Final = 30_000  # after so long an error that lasts is logged again
_JITTER: Final = 0.1
_PAUSE_AFTER_ERROR_MS: Final = 200
_CANCEL_AGAIN_MS: Final = 100
_DIGITS: Final = re.compile(r"\d+")


async def end_tasks(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end. A cancellation can be lost inside a library, so it is repeated."""
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_CANCEL_AGAIN_MS / 1000)


def forget_task(task: asyncio.Task[Any]) -> None:
    """Leave a task that does not heed its cancellation behind: the end of the event loop does not wait for it.

    `asyncio.run` waits for every task that is registered, however long.
    """
    asyncio._unregister_task(task)
    task._log_destroy_pending = False  # type: ignore[attr-defined]


class Timers:
    """When each of a few things is due next, by the clock of the event loop; all are due at the start."""

    def __init__(self, *names: str) -> None:
        self._due_s = dict.fromkeys(names, 0.0)

    def is_due(self, name: str, every_ms: float) -> bool:
        """Whether a thing is due; if so it is due again in `every_ms`."""
        now_s = _now_s()
        if now_s < self._due_s[name]:
            return False
        self._due_s[name] = now_s + every_ms / 1000
        return True

    def next_ms(self) -> float:
        """For how long nothing is due."""
        return (min(self._due_s.values()) - _now_s()) * 1000


def _ignore() -> None:
    """Of a step that succeeded, for those who do not ask."""


def _now_s() -> float:
    return asyncio.get_running_loop().time()


class Loop:
    """Runs `step` every `every_ms`, or without a pause when it is 0 (a step that blocks by itself).

    random: for the jitter of the pauses.

    An error of one step is logged and the next step goes on: state must be right after any step. The same error again
    is logged at debug level only until TOLD_AGAIN_MS have passed, also when steps between succeed; what the store tells
    by itself, a server that does not do what it is asked, is always; so is `refusal`, which ends whoever runs this, and
    is told by him. `succeeded` is called after each step without an error. `wake()` ends the pause early. `stop()` lets
    the running step finish.
    """

    def __init__(self, name: str, step: Callable[[], Awaitable[object]], every_ms: int, random: Random) -> None:
        self.name = name
        self._step = step
        self._every_ms = every_ms
        self._random = random
        self._wake = asyncio.Event()
        self._stopping = False
        self._told_s: dict[str, float] = {}  # an error -> when it was logged last
        self._is_told = False  # an error was logged, and no step has succeeded since
        self.succeeded: Callable[[], None] = _ignore
        self.refusal: SchedulerError | None = None

    def wake(self) -> None:
        """Begin the next step now."""
        self._wake.set()

    def stop(self) -> None:
        """End after the running step."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Step until `stop()`."""
        while not self._stopping:
            pause_ms: float = self._every_ms * self._random.uniform(1 - _JITTER, 1 + _JITTER)
            try:
                await self._step()
            except Fenced as error:
                logger.warning("%s: %s", self.name, error)
            except (ServerUnavailable, CredentialsRefused) as error:
                logger.debug("%s: %s", self.name, error)
                pause_ms = max(pause_ms, _PAUSE_AFTER_ERROR_MS)
            except (SchedulerError, OSError) as error:
                if error is self.refusal:
                    logger.debug("%s: %s", self.name, error)
                else:
                    self._complain(str(error), error, traceback=False)
                pause_ms = max(pause_ms, _PAUSE_AFTER_ERROR_MS)
            except Exception as error:
                self._complain("a step failed", error, traceback=True)
                pause_ms = max(pause_ms, _PAUSE_AFTER_ERROR_MS)
            else:
                if self._is_told:
                    logger.info("%s: goes on", self.name)
                self._is_told = False
                self.succeeded()
            await self._pause(pause_ms)

    def _complain(self, what: str, error: Exception, traceback: bool) -> None:
        """Log a failure once and then now and then, not at every step for as long as it lasts. Numbers make it no other
        one.
        """
        key, now_s = _DIGITS.sub("0", f"{type(error).__name__}: {error}"), _now_s()
        level = logging.DEBUG
        if now_s - self._told_s.get(key, float("-inf")) >= TOLD_AGAIN_MS / 1000:
            level, self._is_told = logging.ERROR, True
            recent = {each: s for each, s in self._told_s.items() if now_s - s < TOLD_AGAIN_MS / 1000}
            self._told_s = recent | {key: now_s}
        logger.log(level, "%s: %s", self.name, what, exc_info=error if traceback else None)

    async def _pause(self, pause_ms: float) -> None:
        if pause_ms <= 0 or self._stopping:
            return
        try:
            async with asyncio.timeout(pause_ms / 1000):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
