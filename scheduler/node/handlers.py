"""What a handler is given and what it gives back: the contract of the node SDK.

- A handler takes one `Job`. It may be `async`, or a plain function: that one runs in a thread, so that leases are
  renewed meanwhile. An async handler must not block the event loop; a blocked loop is warned about.
- What it returns is the result: bytes as they are, str as UTF-8 text, None as nothing, everything else as JSON. What
  cannot be kept as it is (results.py) ends the job as `failed`, without another attempt.
- An exception is a failed attempt: another follows after a backoff, until the pool's attempts are used up (`dead`).
  `Retry(delay_ms=...)` chooses the delay; `Reject("why")` ends the job as `failed`, without another attempt.
- An async handler is cancelled (asyncio.CancelledError) when its reservation is lost, cancelled or may have ended. A
  thread cannot be cancelled: it should look at `job.stopped` now and then, and what it returns afterwards is thrown
  away. Until it ends, its slot is occupied.
- A job may run more than once: a node can die after the work and before its report. `job.token` rises with each
  reservation of a job, so that a store behind the handler can refuse a late writer.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import msgspec

from scheduler import forks
from scheduler.config import Settings
from scheduler.errors import InvalidInput, Reject, Retry, Unencodable
from scheduler.node import guard, retry
from scheduler.node.retry import Ending
from scheduler.node.tracebacks import describe, words_of
from scheduler.protocol import keys, record_fields
from scheduler.protocol.documents import read_job
from scheduler.protocol.results import encode_result
from scheduler.threads import Threads

Handler = Callable[["Job"], Any] | Callable[["Job"], Awaitable[Any]]


class Job:
    """One attempt at a job, as its handler sees it.

    Attributes: job_id, session_id, src_lang, tgt_lang, tenant_id, routing_key, features, preferred_node, priority,
    deadline_ms, reply_to of the document; payload;
    attempt (from 1, counting lost ones), life, token, node, submitted_ms (server time); decision, why it is on
    this node; policy, of its pool; `stopped`, set when the handler should end because its reservation has.
    """

    __slots__ = (
        "_document",
        "decision",
        "inbox_id",
        "node",
        "partition",
        "payload",
        "policy",
        "reply_to",
        "reservation",
        "stopped",
    )

    def __init__(self, node: str, inbox_id: str, fields: dict[bytes, bytes]) -> None:
        def text(name: bytes) -> str:
            return fields.get(name, b"").decode()

        self._document = msgspec.structs.replace(read_job(fields[b"job"]), job_id=text(b"job_id"))
        self.node = node
        self.inbox_id = inbox_id
        self.payload = fields.get(b"payload", b"")
        self.reservation = record_fields.parse_reservation(text(b"reservation"))
        self.reply_to = text(b"reply_to")
        self.partition = keys.partition_of_entry(self.entry)
        self.policy = record_fields.parse_policy(text(b"policy"))
        self.decision = text(b"decision")
        self.stopped = threading.Event()

    @property
    def key(self) -> tuple[str, int]:
        """Names an attempt. Two jobs can have one token: after the clock went back, each its own of before plus one."""
        return self.job_id, self.token

    @property
    def token(self) -> int:
        """Of the reservation; rises with each."""
        return self.reservation.token

    @property
    def attempt(self) -> int:
        """From 1; counts failed, lost and not started ones."""
        return self.reservation.attempt

    @property
    def life(self) -> int:
        """1, and one more each time that a dead job is brought back."""
        return self.reservation.life

    @property
    def submitted_ms(self) -> int:
        """Server time of the first submission."""
        return self.reservation.submitted_ms

    @property
    def entry(self) -> str:
        """The intake entry, `<partition>/<entry id>`."""
        return self.reservation.entry

    @property
    def job_id(self) -> str:
        """Unique in its cell."""
        return self._document.job_id

    @property
    def session_id(self) -> str:
        """The conversation that the job belongs to."""
        return self._document.session_id

    @property
    def src_lang(self) -> str:
        """Source language, empty without languages."""
        return self._document.src_lang

    @property
    def tgt_lang(self) -> str:
        """Target language, empty without languages."""
        return self._document.tgt_lang

    @property
    def tenant_id(self) -> str:
        """Whose job it is, empty when nobody said."""
        return self._document.tenant_id

    @property
    def routing_key(self) -> str:
        """What chooses the pool of a new session, empty when nobody said."""
        return self._document.routing_key

    @property
    def features(self) -> tuple[str, ...]:
        """What the node must offer."""
        return self._document.features

    @property
    def priority(self) -> int:
        """Higher goes first among waiting jobs of a class."""
        return self._document.priority

    @property
    def deadline_ms(self) -> int | None:
        """How long after `submitted_ms` the job is of use, None when nobody said."""
        return self._document.deadline_ms

    @property
    def preferred_node(self) -> str:
        """Where the producer wanted the job to run, empty when it did not say."""
        return self._document.preferred_node

    def __repr__(self) -> str:
        return f"Job({self.job_id!r}, session={self.session_id!r}, attempt={self.attempt}, token={self.token})"


def is_async(handler: Handler) -> bool:
    """Whether calling the handler gives something to await; plain functions run in threads instead."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def name_of(handler: object) -> str:
    """How people find it: `module.function`."""
    name = getattr(handler, "__qualname__", None)
    if name is None:
        handler = type(handler)
        name = handler.__qualname__
    return f"{getattr(handler, '__module__', '?')}.{name}"


def check_handler(handler: object, place: str = "") -> None:
    """Refuse what can never run a job; place: where it was named, if anywhere. Raises: InvalidInput."""
    at = place or f"handler: {getattr(handler, '__qualname__', type(handler).__name__)}"
    expected = "expected a function of one job"
    if not callable(handler):
        hint = ", so without a call" if inspect.iscoroutine(handler) else ""
        raise InvalidInput(f"{at} is a {type(handler).__name__}: {expected}{hint}")
    if inspect.isclass(handler):
        raise InvalidInput(f"{at} is a class: {expected}, or an object that can be called with one")
    for function in (handler, getattr(handler, "__call__", None)):  # noqa: B004
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidInput(f"{at} is a generator: {expected} that returns its result, without yield")
    try:
        signature = inspect.signature(
            handler, follow_wrapped=False
        )  # a decorator can add what the inner function takes
    except (ValueError, TypeError):
        return  # nobody knows of some that are written in C
    try:
        signature.bind(None)
    except TypeError:
        method = "; this one belongs to a class: name that of an object" if "self" in signature.parameters else ""
        raise InvalidInput(f"{at} takes {signature}: {expected}{method}") from None


async def run(handler: Handler, job: Job, threads: Threads) -> Any:
    """Call the handler, in the event loop or in a thread, and await what it returns."""
    if is_async(handler):
        return await handler(job)
    try:
        value = await threads.run(handler, job)
    except StopIteration as error:  # which a coroutine cannot raise
        raise RuntimeError("the handler raised StopIteration") from error
    return await value if inspect.isawaitable(value) else value


async def attempt(handler: Handler, job: Job, threads: Threads, settings: Settings, random: Random) -> Ending:
    """Run one attempt and judge it. Raises: asyncio.CancelledError when the attempt was stopped.

    Whatever else the handler raises ends here. A KeyboardInterrupt or SystemExit that left the task would end the event
    loop, and with it every job of this process.
    """
    process = forks.process_id()
    guard.enter_attempt()
    try:
        value = await run(handler, job, threads)
        forks.end_child(process)
        content_type, result = encode_result(value)
        if len(result) > settings.result_bytes_max:
            return retry.too_large(len(result), settings.result_bytes_max)
        return retry.completed(content_type, result)
    except Unencodable as error:
        return retry.unencodable(str(error))
    except Reject as error:
        ending = retry.rejected(words_of(error) or "rejected by the handler")
        return msgspec.structs.replace(ending, error=error)
    except Retry as error:
        return failed(job, error, error.delay_ms, settings, random)
    except asyncio.CancelledError as error:
        if _is_stopped():
            raise
        return failed(job, error, None, settings, random)
    except BaseException as error:
        forks.end_child(process, error)
        return failed(job, error, None, settings, random)


def _is_stopped() -> bool:
    """Whether somebody cancelled the attempt; else its handler raised the cancellation by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def failed(job: Job, error: BaseException | str, delay_ms: int | None, settings: Settings, random: Random) -> Ending:
    """A failed attempt: another one after `delay_ms`, None for the backoff of the pool. error: or in words, why."""
    backoff_ms = job.policy.backoff_ms or settings.backoff_ms
    backoff_ms_max = job.policy.backoff_ms_max or settings.backoff_ms_max
    detail = error if isinstance(error, str) else describe(error)
    ending = retry.failed(job.attempt, detail, delay_ms, backoff_ms, backoff_ms_max, random)
    return ending if isinstance(error, str) else msgspec.structs.replace(ending, error=error)
