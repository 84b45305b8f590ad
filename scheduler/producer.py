"""The producer SDK: submits jobs and waits for what becomes of them.

    async with Producer(url) as producer:
        job_id = await producer.submit(session_id="s1", src_lang="en", tgt_lang="zh", payload=b"hello")
        print(await producer.result(job_id))

A producer needs no SDK: an XADD to the intake does, see docs/ARCHITECTURE.md. What the SDK adds is an id made before
the first try, so that a repeated submission is the same job, and an answer that says whether the job was accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from os import environ
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from scheduler import arguments
from scheduler.config import Settings, check_settings, read_settings
from scheduler.errors import (
    InvalidInput,
    JobFailed,
    NotAccepted,
    ServerRefused,
    ServerUnavailable,
    UnknownJob,
    WrongType,
)
from scheduler.host import Host
from scheduler.lifetime import Lifetime
from scheduler.loop import end_tasks
from scheduler.protocol import keys, messages
from scheduler.protocol.documents import JobDocument, decode_job, encode_job
from scheduler.protocol.messages import NotSubmitted, Outcome, Submitted
from scheduler.protocol.results import decode_result
from scheduler.store.connection import PATIENCE_MS
from scheduler.store.cutting import cut
from scheduler.store.reads import is_behind, parse_outcome
from scheduler.store.store import Store, open_store
from scheduler.url import ServerUrl, parse_url

logger = logging.getLogger("scheduler.producer")

LAYOUT_WAIT_MS: Final = 10_000
LOOK_AGAIN_MS: Final = 1_000  # a feed can be trimmed before it is read; the record is the truth
FEED_COUNT: Final = 500
UNKNOWN_MS: Final = 2_000
LOOK_MS_MAX: Final = 2_000  # of looking once: after that a server that does not answer is told
SEEN_MAX: Final = 20_000  # jobs that are remembered to have had a record


class Request(msgspec.Struct, frozen=True):
    """One job to submit: its document and its payload (bytes, never decoded; text is sent as UTF-8)."""

    document: JobDocument
    payload: bytes = b""


class Producer:
    """Submits jobs. It is entered once, and used in the event loop that entered it.

    Args: url of the server; settings, by default from the `SCHED_*` variables; patience_ms, for how long a call is
    repeated while the server does not answer, or cannot do it now; reply_to, a results stream of one's own for all jobs
    that name none; host, of this process.
    Raises: InvalidInput, also for a use before entering, after leaving, or elsewhere; on entering ServerUnavailable or
    ServerRefused.
    """

    def __init__(
        self,
        url: str | ServerUrl,
        *,
        settings: Settings | None = None,
        patience_ms: int | None = PATIENCE_MS,
        reply_to: str = "",
        host: Host | None = None,
    ) -> None:
        self._url = parse_url(url)
        self._settings = read_settings(environ) if settings is None else check_settings(settings)
        self._patience_ms = None if patience_ms is None else arguments.milliseconds("patience_ms", patience_ms)
        if arguments.text("reply_to", reply_to):
            keys.check_name("reply_to", reply_to)
        self._host = Host() if host is None else arguments.instance("host", host, Host)
        self._lifetime = Lifetime("Producer", self._host.pid)
        self._reply_to = reply_to
        self._awaited: dict[str, list[asyncio.Future[None]]] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._feed: asyncio.Task[None] | None = None
        self._listening: asyncio.Future[None]

    def __repr__(self) -> str:
        return f"Producer({self._url})"

    async def __aenter__(self) -> Producer:
        self._lifetime.enter()
        try:
            self._store: Store = await open_store(
                self._url, self._settings, self._patience_ms, self._host.clock, self._host.connect
            )
            try:
                self._layout = await self._store.layout(LAYOUT_WAIT_MS)
                await self._store.reads.last_ids([self._store.cell.keys.jobs(0)])  # shows that scripts may be called
                self._store.connection.has_started = True
            except BaseException:
                await self._store.close()
                raise
        except BaseException:
            self._lifetime.not_entered()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if not self._lifetime.leave():
            return
        try:
            if self._feed is not None:
                await end_tasks([self._feed])
        finally:
            await self._store.close()

    # ---- submitting ----

    async def submit(
        self,
        session_id: str,
        *,
        payload: bytes | str = b"",
        job_id: str = "",
        src_lang: str = "",
        tgt_lang: str = "",
        tenant_id: str = "",
        routing_key: str = "",
        features: Iterable[str] = (),
        preferred_node: str = "",
        priority: int = 0,
        deadline_ms: int | None = None,
        reply_to: str = "",
    ) -> str:
        """Submit one job and return its id.

        Args: session_id; payload, bytes (or text, sent as UTF-8) for the handler; job_id, yours or made here;
        src_lang and tgt_lang, both or none; tenant_id; routing_key; features that the node must have; preferred_node,
        taken when it is eligible and has room; priority among waiting jobs; deadline_ms, from now; reply_to, an own
        results stream.
        Raises: InvalidInput, NotAccepted; ServerUnavailable, of which ServerNotReady is one (memory is full, and the
        like); ServerRefused.
        """
        document = JobDocument(
            session_id=session_id,
            job_id=job_id,
            src_lang=src_lang,
            tgt_lang=tgt_lang,
            tenant_id=tenant_id,
            routing_key=routing_key,
            features=arguments.texts("features", features),
            preferred_node=preferred_node,
            priority=priority,
            deadline_ms=deadline_ms,
            reply_to=reply_to,
        )
        answer = (await self.submit_many([Request(document, arguments.payload("payload", payload))]))[0]
        if isinstance(answer, NotSubmitted):
            raise NotAccepted(answer.job_id, answer.why, answer.detail)
        return answer.job_id

    async def submit_many(self, requests: Sequence[Request]) -> list[Submitted | NotSubmitted]:
        """Submit jobs, many in one call; jobs of a session keep the order given.

        Returns: an answer for each. Raises: InvalidInput, before anything is sent; ServerUnavailable: some may have
        been accepted, and submitting the same job ids again does not run them twice.
        """
        if isinstance(requests, Request | str | bytes) or not isinstance(requests, Iterable):
            arguments.refuse("requests", requests, "a list of Request")
        checked = [self._checked(request) for request in requests]
        self._lifetime.check("submit")
        items = [self._item(*each) for each in checked]
        answers: list[Submitted | NotSubmitted] = []
        for part in cut(items, _size_bytes, self._settings.batch_max):
            answers += await self._store.cell.submit(part)
        for answer in answers:
            if isinstance(answer, Submitted) or answer.why == "duplicate":
                self._remember(answer.job_id)
        return answers

    def _checked(self, request: Request) -> tuple[JobDocument, bytes, bytes]:
        """(document, the same as it is sent, payload). Raises: InvalidInput."""
        arguments.instance("a request", request, Request)
        document = arguments.job_document("the document of a request", request.document)
        payload = arguments.payload("payload", request.payload)
        if not document.job_id:
            document = msgspec.structs.replace(document, job_id=self._host.token_hex(12))
        if not document.reply_to and self._reply_to:
            document = msgspec.structs.replace(document, reply_to=self._reply_to)
        data = encode_job(document)
        decode_job(data)
        for what, size, limit in (
            ("document", len(data), self._settings.document_bytes_max),
            ("payload", len(payload), self._settings.payload_bytes_max),
        ):
            if size > limit:
                raise InvalidInput(f"{what} of job {document.job_id}: {size} bytes: expected at most {limit}")
        return document, data, payload

    def _item(self, document: JobDocument, data: bytes, payload: bytes) -> messages.SubmitItem:
        return messages.SubmitItem(
            partition=self._store.partition_of(document.session_id, self._layout),
            job_id=document.job_id,
            session_id=document.session_id,
            tenant_id=document.tenant_id,
            reply_to=document.reply_to,
            nonce=self._host.token_hex(8),
            document=data,
            payload=payload,
        )

    # ---- results ----

    async def result(self, job_id: str, timeout_ms: int | None = None, *, unknown_ms: int | None = UNKNOWN_MS) -> Any:
        """What the handler of a job returned; waits until the job has ended.

        Args: as of `outcome`. Raises: JobFailed when it ended otherwise; as `outcome`.
        """
        outcome = await self._outcome("result", job_id, timeout_ms, unknown_ms)
        if outcome.state != "completed":
            raise JobFailed(job_id, outcome.state, outcome.reason, outcome.detail)
        return decode_result(outcome.content_type, outcome.result or b"")

    async def outcome(
        self, job_id: str, timeout_ms: int | None = None, *, unknown_ms: int | None = UNKNOWN_MS
    ) -> Outcome:
        """How a job ended, whatever it came to; waits until it has.

        Args: job_id; timeout_ms, None to wait for ever, 0 to look once; unknown_ms, for how long a record is waited
        for, which a job that was written by XADD has only once it is placed, None for ever. A job that was submitted
        here, or whose record was seen here, is not waited for when it has none.
        Raises: InvalidInput; UnknownJob; TimeoutError, naming the job; ServerUnavailable.
        """
        return await self._outcome("outcome", job_id, timeout_ms, unknown_ms)

    async def _outcome(self, call: str, job_id: str, timeout_ms: int | None, unknown_ms: int | None) -> Outcome:
        arguments.text("job_id", job_id)
        if timeout_ms is not None:
            arguments.milliseconds("timeout_ms", timeout_ms)
        if unknown_ms is not None:
            arguments.milliseconds("unknown_ms", unknown_ms)
        self._lifetime.check(call)
        try:
            if timeout_ms is not None and timeout_ms <= 0:
                return await self._look_once(job_id)
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
                return await self._ended(job_id, unknown_ms)
        except TimeoutError:
            raise TimeoutError(f"job {job_id} has not ended within {timeout_ms} ms") from None

    async def _look_once(self, job_id: str) -> Outcome:
        """How a job ended. Raises: UnknownJob; TimeoutError; ServerUnavailable, sooner than when it may wait."""
        try:
            async with asyncio.timeout(LOOK_MS_MAX / 1000):
                ended = await self._look(job_id)
        except TimeoutError:
            raise ServerUnavailable(f"{self._url} did not answer within {LOOK_MS_MAX} ms") from None
        if ended is None:
            raise TimeoutError
        return ended

    async def _look(self, job_id: str) -> Outcome | None:
        """How a job ended, None while it has not, or nothing was ever known of it. Raises: UnknownJob."""
        is_there, ended = await self._store.reads.look_up(job_id)
        if is_there:
            self._remember(job_id)
        elif job_id in self._seen:
            raise UnknownJob(job_id, was_known=True)
        return ended

    def _remember(self, job_id: str) -> None:
        """There was a record of this job. Of too many the oldest are forgotten: such a job is waited for again."""
        self._seen[job_id] = None
        self._seen.move_to_end(job_id)
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)

    async def _ended(self, job_id: str, unknown_ms: int | None) -> Outcome:
        missing_since_ms: float | None = None
        await self._listen()
        while True:
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._awaited.setdefault(job_id, []).append(news)
            try:
                ended = await self._look(job_id)
                if ended is not None:
                    return ended
                wait_ms: float = LOOK_AGAIN_MS
                if unknown_ms is not None and job_id not in self._seen:
                    now_ms = self._host.clock.ms()
                    missing_since_ms = now_ms if missing_since_ms is None else missing_since_ms
                    rest_ms = missing_since_ms + unknown_ms - now_ms
                    if rest_ms <= 0:
                        raise UnknownJob(job_id, was_known=False, unknown_ms=unknown_ms)
                    wait_ms = min(wait_ms, rest_ms)
                await asyncio.wait([news], timeout=wait_ms / 1000)
            finally:
                self._awaited[job_id].remove(news)
                if not self._awaited[job_id]:
                    del self._awaited[job_id]

    async def results(self, after: str = "$") -> AsyncGenerator[tuple[str, Outcome], None]:
        """Outcomes as they come: (stream id, outcome) each, of this producer's `reply_to` if it has one, else of all
        jobs.

        Args: after, a stream id to go on from, "0" from the oldest kept, "$" from now on. Raises: InvalidInput;
        ServerUnavailable once the producer was left.
        """
        arguments.cursor("after", after)
        self._lifetime.check("results")
        stream = self._store.cell.keys.replies(self._reply_to)
        cursor = await self._feed_end() if after == "$" else after
        life, compared_ms = self._store.connection.life, self._host.clock.ms()
        reads = self._store.new_reads()
        try:
            while True:
                try:
                    read = await reads.streams({stream: cursor}, count=FEED_COUNT)
                except RedisError:
                    await asyncio.sleep(LOOK_AGAIN_MS / 1000)
                    continue
                if not read and (
                    life != self._store.connection.life or self._host.clock.ms() - compared_ms >= LOOK_AGAIN_MS
                ):
                    life, compared_ms = self._store.connection.life, self._host.clock.ms()
                    cursor = await self._unless_behind(stream, cursor)
                for identifier, fields in read.get(stream, []):
                    cursor = identifier
                    outcome = parse_outcome(fields)
                    if outcome.result is None and outcome.content_type:
                        outcome = msgspec.structs.replace(outcome, result=await reads.result(outcome.job_id))
                    yield identifier, outcome
        finally:
            await reads.close()

    async def _unless_behind(self, stream: str, cursor: str) -> str:
        """The cursor, or the end of a feed that has not come as far: its server has lost writes, or it was deleted.
        What is missed by that is in the records.
        """
        last_id = (await self._store.reads.last_ids([stream]))[0]
        if not is_behind(last_id, cursor):
            return cursor
        logger.warning(
            "%s ends at %s, and was read up to %s: %s; it is read from there on",
            stream, last_id or "nothing", cursor, await self._store.reads.why_behind(cursor),
        )  # fmt: skip
        return last_id or "0"

    async def _feed_end(self) -> str:
        with contextlib.suppress(WrongType):  # it begins anew once it is deleted; the records tell all the same
            return await self._store.reads.last_id(self._store.cell.keys.replies(self._reply_to))
        return "0"

    async def _listen(self) -> None:
        """Follow the feed, from before the first look at a record: what ends after that look is heard."""
        if self._feed is None or self._feed.done():
            self._listening = asyncio.get_running_loop().create_future()
            self._feed = asyncio.create_task(self._follow(self._listening))
        await asyncio.shield(self._listening)

    async def _follow(self, listening: asyncio.Future[None]) -> None:
        try:
            cursor = await self._feed_end()
        except BaseException as error:
            listening.set_exception(error if isinstance(error, Exception) else ServerUnavailable("closed"))
            listening.exception()  # told whoever waits; nobody else has to ask
            raise
        listening.set_result(None)
        try:
            async with contextlib.aclosing(self.results(cursor)) as outcomes:
                async for _, outcome in outcomes:
                    for news in self._awaited.get(outcome.job_id, []):
                        if not news.done():
                            news.set_result(None)
        except (ServerUnavailable, ServerRefused) as error:  # whoever waits looks at the records, and is told there
            logger.debug("the feed is followed no more: %s", error)


def _size_bytes(item: messages.SubmitItem) -> int:
    return len(item.document) + len(item.payload)
