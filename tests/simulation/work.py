"""What the handlers of a simulated node do: well-behaved ones, and the others. The payload of a job says which."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from scheduler.errors import Reject, Retry
from scheduler.node.handlers import Handler, Job
from scheduler.threads import Threads
from tests.simulation.world import Process


class Work:
    """Handlers of one process.

    work S: takes so long.
    fail N S: the first N attempts fail.
    reject: no attempt will help.
    exit: calls sys.exit().
    hang: does not end until it is stopped.
    deaf S: does not heed that either, for so long.
    block S: keeps the event loop busy.
    retry MS: asks for another attempt.
    big BYTES: returns as much.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    async def run(self, job: Job) -> Any:
        """The async handler."""
        what, *values = job.payload.decode().split()
        match what:
            case "hang":
                await asyncio.get_running_loop().create_future()
            case "deaf":
                await _deaf(self._process, float(values[0]))
            case "block":
                self._process.suspend(float(values[0]))
                await asyncio.sleep(0)
            case "fail" | "work":
                await asyncio.sleep(float(values[-1]))
            case _:
                await asyncio.sleep(0.01)
        return _end(job)

    def run_plainly(self, job: Job) -> Any:
        """The handler of a node that runs it in threads, once the thread has worked for `seconds_of`."""
        return _end(job)


async def _deaf(process: Process, for_s: float) -> None:
    until_s = process.time() + for_s
    while (rest_s := until_s - process.time()) > 0:
        try:
            await asyncio.sleep(rest_s)
        except asyncio.CancelledError:
            continue


def seconds_of(job: Job) -> float:
    """For how long a plain handler works; whatever else happens, a thread ends some day."""
    what, *values = job.payload.decode().split()
    return {"hang": 25.0, "deaf": 6.0, "block": 2.0}.get(what, float(values[-1]) if what in ("work", "fail") else 0.01)


def _end(job: Job) -> Any:
    what, *values = job.payload.decode().split()
    match what:
        case "fail":
            if job.attempt <= int(values[0]):
                raise ValueError(f"attempt {job.attempt} of {values[0]} that fail")
        case "reject":
            raise Reject("this can never work")
        case "exit":
            raise SystemExit(3)
        case "retry":
            if job.attempt == 1:
                raise Retry("not yet", delay_ms=int(values[0]))
        case "big":
            return b"x" * int(values[0])
    return job.job_id


class SimulatedThreads(Threads):
    """Threads on virtual time: each works for as long as `seconds_of` says, also when nobody waits for it any more."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._behind = {}
        self._tells: dict[tuple[str, int], list[Callable[[], None]]] = {}

    async def run(self, handler: Handler, job: Any) -> Any:
        """Call a plain handler after its time. Raises: asyncio.CancelledError when stopped; it goes on all the same."""
        thread = self._process.create_task(self._work(handler, job))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            if not thread.done():
                self._behind[job.key] = thread
                thread.add_done_callback(lambda _: self._ended(job))
            raise

    async def _work(self, handler: Handler, job: Job) -> Any:
        await asyncio.sleep(seconds_of(job))
        try:
            return handler(job)
        except SystemExit as error:
            raise RuntimeError("the handler raised SystemExit") from error

    def _ended(self, job: Job) -> None:
        thread = self._behind.pop(job.key)
        if not thread.cancelled():
            thread.exception()
        for tell in self._tells.pop(job.key, []):
            tell()

    def when_ended(self, job: Any, tell: Callable[[], None]) -> None:
        """As of real threads."""
        if job.key in self._behind:
            self._tells.setdefault(job.key, []).append(tell)
        else:
            tell()

    def used_ms(self) -> list[tuple[Any, float]]:
        """Nothing: on virtual time nobody has a processor."""
        return []

    def shutdown(self) -> None:
        """Whatever runs ends by itself."""
