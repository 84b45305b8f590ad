"""What a handler is given and what it gives back: the contract of the node SDK.

- A handler takes one `Job`. It may be `async`, or a plain function: that one runs in a thread, so that leases are
  renewed meanwhile. An async handler must not block the event loop; a blocked loop is warned about.
- What it returns is the result: bytes as they are, str as UTF-8 text, None as nothing, everything else as JSON.
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
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any, Final

import msgspec

from scheduler import keys, model, words
from scheduler.config import Settings
from scheduler.errors import Reject, Retry
from scheduler.runtime import retry
from scheduler.runtime.retry import Ending

BYTES: Final = "application/octet-stream"
TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"

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

        self._document = msgspec.structs.replace(model.read_job(fields[b"job"]), job_id=text(b"job_id"))
        self.node = node
        self.inbox_id = inbox_id
        self.payload = fields.get(b"payload", b"")
        self.reservation = words.parse_reservation(text(b"reservation"))
        self.reply_to = text(b"reply_to")
        self.partition = keys.partition_of_entry(self.entry)
        self.policy = words.parse_policy(text(b"policy"))
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


def encode_result(value: object) -> tuple[str, bytes]:
    """(content type, bytes) of what a handler returned. Raises: TypeError for what JSON cannot hold."""
    if value is None:
        return "", b""
    if isinstance(value, bytes | bytearray | memoryview):
        return BYTES, bytes(value)
    if isinstance(value, str):
        return TEXT, value.encode()
    return JSON, msgspec.json.encode(value)


def decode_result(content_type: str, data: bytes) -> Any:
    """The reverse of encode_result."""
    if content_type == JSON:
        return msgspec.json.decode(data)
    if content_type == TEXT:
        return data.decode()
    return data if content_type else None


def is_async(handler: Handler) -> bool:
    """Whether calling the handler gives something to await; plain functions run in threads instead."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


class Threads:
    """Threads for plain functions."""

    def __init__(self, workers: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._behind: dict[tuple[str, int], Future[Any]] = {}

    def runs_on(self, job: Job) -> bool:
        """Whether the thread of an attempt that was stopped still runs."""
        return job.key in self._behind

    async def run(self, handler: Handler, job: Job) -> Any:
        """Call a plain function in a thread. Raises: asyncio.CancelledError when stopped; the thread may run on."""
        future = self._executor.submit(_call, handler, job)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.running():
                self._behind[job.key] = future
                future.add_done_callback(lambda _: self._behind.pop(job.key))
            raise

    def when_ended(self, job: Job, tell: Callable[[], None]) -> None:
        """Call `tell` once nothing of the job runs any more: now, or in its thread when that ends."""
        future = self._behind.get(job.key)
        if future is None:
            tell()
        else:
            future.add_done_callback(lambda _: tell())

    def shutdown(self) -> None:
        """Start nothing more; a thread that runs ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _call(handler: Handler, job: Job) -> Any:
    """Call a plain function. A StopIteration would never arrive through a future, a SystemExit would end the loop."""
    try:
        return handler(job)
    except (StopIteration, SystemExit) as error:
        raise RuntimeError(f"the handler raised {type(error).__name__}") from error


async def run(handler: Handler, job: Job, threads: Threads) -> Any:
    """Call the handler, in the event loop or in a thread, and await what it returns."""
    if is_async(handler):
        return await handler(job)
    value = await threads.run(handler, job)
    return await value if inspect.isawaitable(value) else value


async def attempt(handler: Handler, job: Job, threads: Threads, settings: Settings, random: Random) -> Ending:
    """Run one attempt and judge it. Raises: asyncio.CancelledError when the attempt was stopped."""
    try:
        content_type, result = encode_result(await run(handler, job, threads))
        if len(result) > settings.result_bytes_max:
            return retry.too_large(len(result), settings.result_bytes_max)
        return retry.completed(content_type, result)
    except Reject as error:
        return retry.rejected(str(error) or "rejected by the handler")
    except Retry as error:
        return failed(job, str(error), error.delay_ms, settings, random)
    except (Exception, SystemExit) as error:
        # A handler that calls sys.exit() has failed; the node has other jobs to run.
        return failed(job, describe(error), None, settings, random)


def describe(error: BaseException) -> str:
    """An error in a line, also one that cannot describe itself."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def failed(job: Job, detail: str, delay_ms: int | None, settings: Settings, random: Random) -> Ending:
    """A failed attempt: another one after `delay_ms`, None for the backoff of the job's pool."""
    backoff_ms = job.policy.backoff_ms or settings.backoff_ms
    backoff_ms_max = job.policy.backoff_ms_max or settings.backoff_ms_max
    return retry.failed(job.attempt, detail, delay_ms, backoff_ms, backoff_ms_max, random)
