"""Submits jobs from lines of JSON as they come, and waits for their outcomes: what `scheduler jobs submit` does."""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from scheduler.config import Settings
from scheduler.console import streams, terminal
from scheduler.console.common import duration, shown
from scheduler.errors import InvalidInput, NotAccepted, SchedulerError
from scheduler.loop import end_tasks
from scheduler.producer import Producer, Request
from scheduler.protocol.documents import JobDocument, decode_job
from scheduler.protocol.lifecycle import TERMINAL
from scheduler.protocol.messages import NotSubmitted, Outcome, Submitted
from scheduler.protocol.results import BYTES, decode_result
from scheduler.runtime.index import Index
from scheduler.store.store import Store

READ_BYTES: Final = 65_536
ESCAPED_BYTES_MAX: Final = 6  # of one byte in JSON, written as an escape
SWEEP_MS: Final = 1_000
SWEEP_JOBS_MAX: Final = 512
EXPLAIN_MS: Final = 2_000
NAME_LENGTH_SHOWN_MAX: Final = 40
UNKNOWN_FIELDS_MAX: Final = 100  # names that are told, each once


# ---- reading --------------------------------------------------------------------------------------------------------


class Line(msgspec.Struct, frozen=True):
    """One line of the input. number: from 1; data without its end."""

    number: int
    data: bytes


class _Body(msgspec.Struct):
    """What a line may have beside the job document; msgspec decodes base64 for bytes."""

    payload: str = ""
    payload_base64: bytes = b""


_FIELDS: Final = sorted((*JobDocument.__struct_fields__, *_Body.__struct_fields__))
_NAMES: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def read_lines(source: BinaryIO, line_bytes_max: int) -> AsyncIterator[list[Line]]:
    """The lines that are there, again and again, until the input ends; empty ones are left out.

    Args: source, with a file descriptor; line_bytes_max: of a longer line only one byte more is kept.
    """
    number, rest = 0, b""
    descriptor = source.fileno()
    while True:
        await _readable(descriptor)
        try:
            chunk = os.read(descriptor, READ_BYTES)
        except OSError as error:
            raise streams.unread(source, error) from error
        complete = (rest + chunk).split(b"\n")
        rest = b"" if not chunk else complete.pop()[: line_bytes_max + 1]
        lines = [Line(number + index, data) for index, data in enumerate(complete, 1)]
        number += len(lines)
        if lines := [line for line in lines if line.data.strip()]:
            yield lines
        if not chunk:
            return


async def _readable(descriptor: int) -> None:
    """Wait until a read would not block. A regular file never blocks, and cannot be waited for."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        return
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def parse_line(data: bytes, line_bytes_max: int) -> Request:
    """A job document with an optional `payload` (text) or `payload_base64` (bytes). Raises: InvalidInput."""
    if len(data) > line_bytes_max:
        raise InvalidInput(f"it is longer than {line_bytes_max} bytes: no document and payload need so much")
    if not data.lstrip().startswith(b"{"):
        raise InvalidInput(f"'{shown(data.decode(errors='replace'), 40)}': expected a JSON object")
    try:
        document = decode_job(data)
        body = msgspec.json.decode(data, type=_Body)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"job (JSON): {error}") from None
    except InvalidInput as error:
        misspelt = [name for name in unknown_fields(data) if _nearest_field(name)]
        raise InvalidInput("; ".join([str(error), *map(no_field, misspelt)])) from None
    if body.payload and body.payload_base64:
        raise InvalidInput("payload and payload_base64: expected one of them")
    return Request(document, body.payload_base64 or body.payload.encode())


def unknown_fields(data: bytes) -> list[str]:
    """The names in a line that are no fields of it; their values may be anything. None when it is no JSON object."""
    try:
        names = _NAMES.decode(data).keys()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [name for name in names if name not in _FIELDS]


def no_field(name: str) -> str:
    """That a name is no field, in words."""
    near = _nearest_field(name)
    expected = f"the nearest is {near}" if near else f"expected one of {', '.join(_FIELDS)}"
    return f"'{shown(name, NAME_LENGTH_SHOWN_MAX)}' is no field: {expected}"


def _nearest_field(name: str) -> str:
    """Which field is meant, empty when none is like it."""
    return next(iter(difflib.get_close_matches(name[:NAME_LENGTH_SHOWN_MAX], _FIELDS, n=1)), "")


# ---- submitting -----------------------------------------------------------------------------------------------------


class Submitter:
    """Submits lines in their order. refused counts those that were not accepted; each is explained on stderr.

    A field that there is not is told there too, at its first line and at the end with the number of its lines: the job
    is submitted without it, as it would be by any other producer.

    Args: producer; settings; accepted, called with each batch: the documents by the ids of the jobs.
    """

    def __init__(
        self,
        producer: Producer,
        settings: Settings,
        accepted: Callable[[Mapping[str, JobDocument]], Coroutine[Any, Any, None]],
    ) -> None:
        self.refused = 0
        self._unknown_fields: dict[str, int] = {}
        self._producer = producer
        self._batch_max = settings.batch_max
        self._line_bytes_max = ESCAPED_BYTES_MAX * (settings.document_bytes_max + settings.payload_bytes_max)
        self._accepted = accepted

    async def run(self, source: BinaryIO) -> None:
        """Submit everything, a batch as soon as it is there."""
        async for lines in read_lines(source, self._line_bytes_max):
            for start in range(0, len(lines), self._batch_max):
                await self._submit(lines[start : start + self._batch_max])
        for name, count in self._unknown_fields.items():
            if count > 1:
                terminal.write_line(f"{no_field(name)}; it was passed over in {count} lines", err=True)

    def _tell_unknown_fields(self, line: Line) -> None:
        for name in unknown_fields(line.data):
            if name not in self._unknown_fields and len(self._unknown_fields) < UNKNOWN_FIELDS_MAX:
                self._unknown_fields[name] = 0
                terminal.write_line(f"line {line.number}: {no_field(name)}; it is passed over", err=True)
            if name in self._unknown_fields:
                self._unknown_fields[name] += 1

    async def _submit(self, lines: Sequence[Line]) -> None:
        requests: dict[int, Request] = {}
        problems: dict[int, SchedulerError] = {}
        for line in lines:
            try:
                requests[line.number] = parse_line(line.data, self._line_bytes_max)
            except InvalidInput as error:
                problems[line.number] = error
            else:
                self._tell_unknown_fields(line)
        accepted = {}
        for number, answer in zip(requests, await self._answers(list(requests.values())), strict=True):
            if isinstance(answer, Submitted):
                accepted[answer.job_id] = requests[number].document
            else:
                problems[number] = answer
        for number, problem in sorted(problems.items()):
            terminal.write_line(f"line {number}: {shown(str(problem))}", err=True)
        self.refused += len(problems)
        if accepted:
            await self._accepted(accepted)

    async def _answers(self, requests: Sequence[Request]) -> Sequence[Submitted | SchedulerError]:
        """What became of each request: accepted, or why not."""
        try:
            return [_answer(answer) for answer in await self._producer.submit_many(requests)]
        except InvalidInput as error:  # nothing was sent, and only one by one shows which it is
            if len(requests) == 1:
                return [error]
            return [answer for request in requests for answer in await self._answers([request])]


def _answer(answer: Submitted | NotSubmitted) -> Submitted | NotAccepted:
    return answer if isinstance(answer, Submitted) else NotAccepted(answer.job_id, answer.why, answer.detail)


# ---- waiting --------------------------------------------------------------------------------------------------------


class Needs(NamedTuple):
    """What a node must serve to be given a job, and whose job it is."""

    src_lang: str
    tgt_lang: str
    features: tuple[str, ...]
    tenant: str

    def unmet(self) -> str:
        """That no node does, in words."""
        offered = ", ".join(self.features)
        if not self.src_lang:
            return f"no node offers {offered}" if offered else "no node is there"
        return f"no node serves {self.src_lang}:{self.tgt_lang}" + (f" with {offered}" if offered else "")


class Awaited:
    """Jobs whose outcomes are awaited: the feed tells most of them, the records the rest, for they are the truth.

    Args: producer, whose feed is followed; store; tell, called with each outcome, once a job.
    """

    def __init__(self, producer: Producer, store: Store, tell: Callable[[Outcome], None]) -> None:
        self.open: dict[str, Needs] = {}
        self._producer = producer
        self._store = store
        self._reads = store.reads
        self._tell = tell
        self._none_open = asyncio.Event()

    async def add(self, jobs: Mapping[str, JobDocument]) -> None:
        """Wait for these too; some may have ended already."""
        self._none_open.clear()
        for job_id, each in jobs.items():
            self.open[job_id] = Needs(each.src_lang, each.tgt_lang, tuple(sorted(set(each.features))), each.tenant_id)
        await self._look_up(jobs)

    async def all_ended(self) -> None:
        """Wait until no job is open."""
        if self.open:
            await self._none_open.wait()

    async def follow(self) -> None:
        """Follow the feed, for ever."""
        async for _, outcome in self._producer.results():
            self._ended(outcome)

    async def sweep(self) -> None:
        """Look at the records now and then, for ever: a feed can be trimmed before it is read."""
        ahead: list[str] = []
        while True:
            await asyncio.sleep(SWEEP_MS / 1000)
            ahead = ahead or list(self.open)
            await self._look_up(ahead[:SWEEP_JOBS_MAX])
            ahead = ahead[SWEEP_JOBS_MAX:]

    async def explain(self) -> None:
        """Say on stderr, once for each kind of job, that no node serves it, for ever: else nothing would be heard."""
        looked_at: set[Needs] = set()
        while True:
            await asyncio.sleep(EXPLAIN_MS / 1000)
            kinds = set(self.open.values()) - looked_at
            if not kinds:
                continue
            try:
                index = Index(await self._store.control.read_snapshot())
            except InvalidInput:  # the leader writes it again
                continue
            looked_at |= kinds
            limit = duration(self._store.settings.no_node_grace_ms)
            for needs in sorted(kinds):
                if not index.members(needs.src_lang, needs.tgt_lang, needs.features, index.scope_of(needs.tenant)):
                    count = sum(each == needs for each in self.open.values())
                    text = f"{needs.unmet()}; jobs that wait for one, {limit} at most: {count}"
                    terminal.write_line(text, err=True)

    async def _look_up(self, job_ids: Iterable[str]) -> None:
        looked_at = list(job_ids)
        if not looked_at:
            return
        states = await self._reads.records(looked_at, ("state",))
        for job_id, (state,) in zip(looked_at, states, strict=True):
            if state is None:
                gone = "its retention has ended, or the server has lost its record"
                self._ended(Outcome(job_id, "", life=0, state="unknown", reason="no_record", detail=gone))
            elif state in TERMINAL and job_id in self.open:
                outcome = await self._reads.outcome(job_id)
                if outcome is not None:
                    self._ended(outcome)

    def _ended(self, outcome: Outcome) -> None:
        if outcome.job_id in self.open:
            del self.open[outcome.job_id]
            self._tell(outcome)
        if not self.open:
            self._none_open.set()


async def beside(work: Coroutine[Any, Any, None], companions: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do `work` while the companions run; they are cancelled at its end, and a failure of one of them ends it."""
    worker = asyncio.ensure_future(work)
    tasks = [asyncio.ensure_future(companion) for companion in companions]
    try:
        await asyncio.wait({worker, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, worker):
            if task.done():
                task.result()
    finally:
        await end_tasks([worker, *tasks])


def result_fields(content_type: str, data: bytes | None) -> dict[str, object]:
    """A result for JSON: `result`, or `result_base64` for bytes and for what is not what it says it is."""
    if data is None or not content_type:
        return {"result": None}
    if content_type != BYTES:
        try:
            return {"result": decode_result(content_type, data)}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    return {"result_base64": data}


def outcome_fields(outcome: Outcome) -> dict[str, object]:
    """An outcome as `--wait` prints it.

    dispatch_ms: from the submission to the reservation that ended, whose token is the server's time in microseconds.
    """
    dispatched = outcome.token > 0 and outcome.submitted_ms > 0
    ended = outcome.ended_ms > 0 and outcome.submitted_ms > 0
    return {
        "job_id": outcome.job_id,
        "state": outcome.state,
        "reason": outcome.reason,
        "detail": outcome.detail,
        "node": outcome.node,
        "attempts": outcome.attempts,
        "dispatch_ms": max(0, outcome.token // 1000 - outcome.submitted_ms) if dispatched else None,
        "total_ms": outcome.ended_ms - outcome.submitted_ms if ended else None,
    } | result_fields(outcome.content_type, outcome.result)
