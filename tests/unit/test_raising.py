"""Whatever a handler raises ends its attempt, and nothing else: the event loop and its other tasks go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any, Final

import pytest

from scheduler.config import DEFAULTS
from scheduler.errors import Reject, Retry
from scheduler.node.handlers import Job, attempt
from scheduler.threads import Threads
from tests.unit.test_handlers import a_job


class Unspeakable(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class Rejected(Reject):
    """One that cannot be shown either."""

    def __str__(self) -> str:
        raise ValueError


class Later(Retry):
    """The same."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Base(BaseException):
    """Not an Exception."""


ERRORS: Final[list[BaseException]] = [
    KeyboardInterrupt(),
    SystemExit(),
    SystemExit(3),
    GeneratorExit(),
    StopIteration(),
    StopAsyncIteration(),
    asyncio.CancelledError(),
    TimeoutError(),
    RecursionError(),
    MemoryError(),
    Base("why"),
    BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()]),
    Unspeakable(),
]


def forms(error: BaseException) -> list[Any]:
    """Handlers that raise it: a coroutine, a plain function, one whose result is awaited."""

    async def in_the_loop(job: Job) -> None:
        raise error

    def in_a_thread(job: Job) -> None:
        raise error

    def awaited(job: Job) -> Any:
        return in_the_loop(job)

    return [in_the_loop, in_a_thread, awaited]


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    """Threads for plain functions."""
    threads = Threads(2, "test")
    yield threads
    threads.shutdown()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("form", [0, 1, 2], ids=["async", "thread", "awaited"])
async def test_whatever_is_raised_is_a_failed_attempt(error: BaseException, form: int, threads: Threads) -> None:
    """Each with its type in the detail, in a task of its own as on a node."""
    task = asyncio.create_task(attempt(forms(error)[form], a_job(), threads, DEFAULTS, Random(1)))
    ending = await task
    assert (ending.verdict, ending.reason) == ("retry", "handler_failed")
    assert type(error).__name__ in ending.detail


@pytest.mark.parametrize("error", [Rejected("x"), Later("y")], ids=["reject", "retry"])
@pytest.mark.parametrize("form", [0, 1, 2], ids=["async", "thread", "awaited"])
async def test_words_that_cannot_be_read_leave_the_verdict(error: BaseException, form: int, threads: Threads) -> None:
    """`Reject` rejects and `Retry` retries, whatever a subclass of them does."""
    ending = await asyncio.create_task(attempt(forms(error)[form], a_job(), threads, DEFAULTS, Random(1)))
    expected = ("finish", "rejected") if isinstance(error, Reject) else ("retry", "handler_failed")
    assert ((ending.verdict, ending.reason), ending.detail) == (expected, "(its text cannot be had)")


async def test_an_attempt_that_was_stopped_raises_its_cancellation(threads: Threads) -> None:
    """Also when the handler makes another error of it: the node decides what becomes of the job."""
    entered = asyncio.Event()

    async def waits(job: Job) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise asyncio.CancelledError("mine")

    task = asyncio.create_task(attempt(waits, a_job(), threads, DEFAULTS, Random(1)))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_deep_recursion_and_a_result_that_breaks_are_failed_attempts(threads: Threads) -> None:
    """What is encoded runs code of the handler's, too."""

    def deep(job: Job) -> Any:
        return deep(job)

    class Odd(dict[str, str]):
        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise KeyboardInterrupt

    for handler in (deep, lambda job: Odd()):
        ending = await asyncio.create_task(attempt(handler, a_job(), threads, DEFAULTS, Random(1)))
        assert (ending.verdict, ending.reason) == ("retry", "handler_failed")
