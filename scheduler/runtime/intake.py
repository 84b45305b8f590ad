"""Decodes an intake entry: it becomes a job, or a refusal with a reason for people.

Pure: no server, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from scheduler.config import Settings
from scheduler.errors import InvalidInput
from scheduler.protocol import keys, messages
from scheduler.protocol.documents import JobDocument, decode_job

_DETAIL_LENGTH_MAX: Final = 500
BODY_BYTES_MAX: Final = 2_048
"""A body of at most this size is sent with its reservation: the server then need not read it from the intake."""
_DIGITS_MAX: Final = 16  # of a time in milliseconds
_WITHOUT_OTHERS: Final = frozenset({b"job", b"payload"})  # what a plain XADD of a producer has
_NAMES_BYTES: Final = sum(map(len, _WITHOUT_OTHERS))
_IDS: Final = re.compile(rb'"(job_id|session_id)"\s*:\s*"([!-z|~]{1,128})"')  # as JSON has them
_DEADLINE_MS_MAX: Final = 10**12  # longer than any process runs; documents can have numbers too large for a clock


class JobClass(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What a job needs. Waiting is by class.

    src_lang, tgt_lang: its language pair, empty for a job without languages.
    features: that it needs, sorted.
    pool: the session's preferred pool, empty when no pool could serve it.
    tenant: of the job, if some pool is for certain tenants alone and this is one of them; else empty.
    """

    src_lang: str
    tgt_lang: str
    features: tuple[str, ...]
    pool: str
    tenant: str = ""


class Job(msgspec.Struct, frozen=True, gc=False):
    """A job of a dispatcher. It holds the document that the client sent; its fields can be read here.

    features: of the document, sorted, each once.
    routing_key: of the document, or what it defaults to.
    avoid: the node on which an earlier attempt failed.
    deadline_at_ms: by the dispatcher's own clock, or None; as decoded, by the server's.
    body: a small one that was just read; a large one is in the intake only.
    """

    partition: int
    epoch: int
    entry_id: str
    job_id: str
    document: JobDocument
    features: tuple[str, ...]
    routing_key: str
    deadline_at_ms: int | None
    avoid: str
    body: messages.Body | None = None

    @property
    def session_id(self) -> str:
        """The conversation that the job belongs to."""
        return self.document.session_id

    @property
    def tenant_id(self) -> str:
        """Whose job it is."""
        return self.document.tenant_id

    @property
    def reply_to(self) -> str:
        """The results stream of its producer."""
        return self.document.reply_to

    @property
    def src_lang(self) -> str:
        """Source language."""
        return self.document.src_lang

    @property
    def tgt_lang(self) -> str:
        """Target language."""
        return self.document.tgt_lang

    @property
    def priority(self) -> int:
        """Higher goes first among waiting jobs of a class."""
        return self.document.priority

    @property
    def preferred_node(self) -> str:
        """Where the producer wants the job to run."""
        return self.document.preferred_node

    @property
    def key(self) -> tuple[int, str]:
        """Its partition and entry id."""
        return self.partition, self.entry_id

    def without_body(self) -> Job:
        """The same job, to be kept for a while."""
        return self if self.body is None else msgspec.structs.replace(self, body=None)


def decode(entry: messages.Entry, cell: int, settings: Settings) -> Job | messages.RejectItem:
    """Decode an entry.

    The field `job_id` of an entry that a script wrote overrides that of the document; without both an id is generated.
    """
    fields = entry.fields
    body, payload = fields.get(b"job"), fields.get(b"payload", b"")
    document_bytes, payload_bytes = len(body) if body is not None else 0, len(payload)
    other_bytes = _NAMES_BYTES if fields.keys() == _WITHOUT_OTHERS else _other_bytes(fields)
    if (
        payload_bytes > settings.payload_bytes_max
        or document_bytes > settings.document_bytes_max
        or other_bytes > settings.other_bytes_max
    ):
        return _refuse_large(entry, (document_bytes, payload_bytes, other_bytes), cell, settings)
    if body is None:
        names = ", ".join(sorted(name.decode(errors="replace") for name in entry.fields))[:100]
        return refuse(
            entry, cell, "invalid", f"the entry has no field `job` (it has: {names}): expected a JSON or msgpack object"
        )
    try:
        document = decode_job(body)
        job_id = _job_id(entry, document, cell)
    except InvalidInput as error:
        return refuse(entry, cell, "invalid", str(error))
    return Job(  # in the order of its fields: to name them costs five times as much
        entry.partition,
        entry.epoch,
        entry.id,
        job_id,
        document,
        tuple(sorted(set(document.features))) if document.features else (),
        document.routing_key or document.tenant_id or document.session_id,
        None if document.deadline_ms is None else _submitted_ms(entry) + document.deadline_ms,
        entry.fields[b"avoid"].decode(errors="replace") if b"avoid" in entry.fields else "",
        (body, payload) if len(body) + len(payload) <= BODY_BYTES_MAX else None,
    )


def by_own_clock(job: Job, entry: messages.Entry, server_ms: int, own_ms: float) -> Job:
    """The job with its deadline by the clock of its owner: it then ends in time even if the server's clock is set.

    An entry of the future counts as submitted now.

    Args:
        job: as decoded from the entry.
        entry: that was read.
        server_ms: the server's time after the entry was read.
        own_ms: our own time at that moment.
    """
    if job.deadline_at_ms is None:
        return job
    left_ms = min(job.deadline_at_ms - max(server_ms, _submitted_ms(entry)), _DEADLINE_MS_MAX)
    return msgspec.structs.replace(job, deadline_at_ms=int(own_ms + left_ms))


def refuse_head(entry: messages.Entry, head: messages.Head, cell: int, settings: Settings) -> messages.RejectItem:
    """A refusal of an entry of which only the head was read, because a part of it is too large."""
    return _refuse_large(entry, (head.document_bytes, head.payload_bytes, head.other_bytes), cell, settings)


def _refuse_large(
    entry: messages.Entry, sizes: tuple[int, int, int], cell: int, settings: Settings
) -> messages.RejectItem:
    """It ends as the job that its document names. If the document itself is too large, the detail has the ids in it.

    sizes: bytes of the document, of the payload, and of all other fields.
    """
    detail = _too_large(*sizes, settings) or f"an entry of {sum(sizes)} bytes cannot be read"
    document = entry.fields.get(b"job", b"")
    if len(document) > settings.document_bytes_max:
        matches = _IDS.finditer(document[: settings.document_bytes_max])
        ids = {match[1].decode(): match[2].decode() for match in matches}
        listed = ", ".join(f"{name} = {value!r}" for name, value in ids.items())
        detail += f"; it says {listed}" if listed else ""
    refusal = refuse(entry, cell, "too_large", detail, sum(sizes))
    if len(document) > settings.document_bytes_max or not document:
        return refusal
    try:
        submitted = decode_job(document)
        job_id = _job_id(entry, submitted, cell)
    except InvalidInput:
        return refusal
    return msgspec.structs.replace(
        refusal,
        job_id=job_id,
        session_id=submitted.session_id,
        tenant_id=submitted.tenant_id,
        reply_to=submitted.reply_to,
    )


def refuse(entry: messages.Entry, cell: int, reason: str, detail: str, size_bytes: int = 0) -> messages.RejectItem:
    """A refusal of an entry whose document cannot be used: it ends under a generated id."""
    return messages.RejectItem(
        partition=entry.partition,
        epoch=entry.epoch,
        entry_id=entry.id,
        job_id=_script_job_id(entry) or keys.generated_job_id(cell, entry.partition, entry.id),
        session_id="",
        tenant_id="",
        reply_to="",
        reason=reason,
        detail=detail[:_DETAIL_LENGTH_MAX],
        size_bytes=size_bytes,
    )


def refuse_job(job: Job, reason: str, detail: str, job_id: str | None = None) -> messages.RejectItem:
    """A refusal of a decoded job. job_id: another id to end under, when the job's own is taken."""
    return messages.RejectItem(
        partition=job.partition,
        epoch=job.epoch,
        entry_id=job.entry_id,
        job_id=job_id or job.job_id,
        session_id=job.session_id,
        tenant_id=job.tenant_id,
        reply_to=job.reply_to,
        reason=reason,
        detail=detail[:_DETAIL_LENGTH_MAX],
    )


def expired(job: Job) -> messages.RejectItem:
    """The rejection of a job whose deadline has passed."""
    return refuse_job(job, "expired", "its deadline passed while it waited")


def _other_bytes(fields: Mapping[bytes, bytes]) -> int:
    """The bytes of all names, and of all values except those that have limits of their own."""
    return sum(map(len, fields)) + sum(len(value) for name, value in fields.items() if name not in _WITHOUT_OTHERS)


def _too_large(document_bytes: int, payload_bytes: int, other_bytes: int, settings: Settings) -> str:
    """The part that is above its limit, in words; empty when none is."""
    for what, size_bytes, limit in (
        ("payload", payload_bytes, settings.payload_bytes_max),
        ("job document", document_bytes, settings.document_bytes_max),
        ("other fields", other_bytes, settings.other_bytes_max),
    ):
        if size_bytes > limit:
            return f"{what} of {size_bytes} bytes: expected at most {limit}"
    return ""


def _script_job_id(entry: messages.Entry) -> str:
    """The id that a script wrote beside the document, empty when there is none or it is not valid."""
    given = entry.fields.get(b"job_id", b"").decode(errors="replace")
    try:
        return keys.check_id("job_id", given) if given else ""
    except InvalidInput:
        return ""


def _job_id(entry: messages.Entry, document: JobDocument, cell: int) -> str:
    if b"job_id" in entry.fields:
        return keys.check_id("field job_id", entry.fields[b"job_id"].decode(errors="replace"))
    return document.job_id or keys.generated_job_id(cell, entry.partition, entry.id)


def _submitted_ms(entry: messages.Entry) -> int:
    """When the job was submitted, in ms: the time of the entry's id, or the earlier one that a script wrote into it."""
    entry_ms = int(entry.id.partition("-")[0])
    carried = entry.fields.get(b"submitted_ms", b"")
    return min(entry_ms, int(carried)) if carried.isdigit() and len(carried) <= _DIGITS_MAX else entry_ms
