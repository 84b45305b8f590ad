"""A producer without the package: submits by XADD or by `submit`, and finds results by job id or in a feed.

Written from docs/PROTOCOL.md alone; a start for other languages.
"""

from __future__ import annotations

import json
import secrets
import time
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tests.raw.server import Argument, Server

BACKLOG_MAX: Final = 100_000
BATCH_MAX: Final = 128
LOOK_AGAIN_S: Final = 1.0
READ_BLOCK_MS: Final = 200
ENDED: Final = ("completed", "failed", "dead", "cancelled")

Document = dict[str, object]


class Outcome(NamedTuple):
    """How a job ended. value: the result, decoded by its content type."""

    state: str
    reason: str
    value: Any


class Producer:
    """One producer.

    Args: url; reply_to, a feed of its own, empty for the common one. Raises: Refused.
    """

    def __init__(self, url: str, reply_to: str = "") -> None:
        self.server = Server(url)
        self.reply_to = reply_to
        self._feed = self.server.results_key(reply_to)
        # Before the first job, so that no outcome is missed.
        newest = self.server.patiently(lambda: self.server.client.xrevrange(self._feed, count=1))
        self._cursor: str = newest[0][0].decode() if newest else "0"

    def close(self) -> None:
        """Close the connections."""
        self.server.close()

    # ---- submitting ----

    def partition_of(self, session_id: str) -> int:
        """The intake stream of a session."""
        partitions, cells = int(self.server.layout["partitions"]), int(self.server.layout["cells"])
        crc32 = zlib.crc32(session_id.encode())
        return crc32 % cells + cells * (crc32 // cells % (partitions // cells))

    def add(self, document: Document, payload: bytes) -> str:
        """Add one job by plain XADD. Returns: the entry's id."""
        document = self._complete(document)
        jobs = self.server.key(f"jobs:{self.partition_of(str(document['session_id']))}")
        fields = {"job": json.dumps(document), "payload": payload}
        entry_id: bytes = self.server.patiently(lambda: self.server.client.xadd(jobs, fields))
        return entry_id.decode()

    def submit(self, jobs: Sequence[tuple[Document, bytes]]) -> list[str]:
        """Submit (document, payload) each. Returns: an answer word for each."""
        nonces = [secrets.token_hex(8) for _ in jobs]
        return self.submit_with(list(zip(jobs, nonces, strict=True)))

    def submit_with(self, items: Sequence[tuple[tuple[Document, bytes], str]]) -> list[str]:
        """The same, with the nonce of each: the same one again is the same submission."""
        words: list[str] = []
        for start in range(0, len(items), BATCH_MAX):
            _, answers = self.server.call_each("submit", items[start : start + BATCH_MAX], self._build)
            words += ["broken" if answer is None else answer[0].decode() for answer in answers]
        return words

    def _build(self, items: Sequence[tuple[tuple[Document, bytes], str]]) -> tuple[list[str], list[Argument]]:
        documents = [self._complete(document) for (document, _), _ in items]
        partitions = sorted({self.partition_of(str(document["session_id"])) for document in documents})
        keys = [self.server.key(f"jobs:{partition}") for partition in partitions]
        arguments: list[Argument] = [len(partitions), BACKLOG_MAX, *partitions]
        for document, ((_, payload), nonce) in zip(documents, items, strict=True):
            session, job_id = str(document["session_id"]), str(document["job_id"])
            keys.append(self.server.key(f"job:{job_id}"))
            arguments += [partitions.index(self.partition_of(session)) + 1, job_id, session]
            arguments += [str(document.get("tenant_id", "")), str(document.get("reply_to", "")), nonce]
            arguments += [json.dumps(document), payload]
        return [*keys, self.server.key("partitions")], arguments

    def _complete(self, document: Document) -> Document:
        return {"reply_to": self.reply_to} | document if self.reply_to else document

    # ---- results ----

    def outcome(self, job_id: str) -> Outcome | None:
        """How a job ended, by its record; None while it has not, or when nothing is known of it."""
        names = ("state", "reason", "content_type")
        fields = self.server.patiently(lambda: self.server.client.hmget(self.server.key(f"job:{job_id}"), names))
        state, reason, content_type = ((value or b"").decode() for value in fields)
        if state not in ENDED:
            return None
        result = self.server.patiently(lambda: self.server.client.get(self.server.key(f"result:{job_id}")))
        return Outcome(state, reason, decode(content_type, result or b""))

    def feed(self) -> list[dict[str, bytes]]:
        """The outcomes that the feed tells next; waits a moment for them."""
        entries = self.server.read(self._feed, self._cursor, READ_BLOCK_MS)
        if entries:
            self._cursor = entries[-1][0]
        return [fields for _, fields in entries]

    def wait(self, job_ids: Sequence[str], timeout_s: float = 30) -> dict[str, Outcome]:
        """How these jobs ended: the feed says when to look, the records are the truth. Raises: TimeoutError."""
        until, look_again = time.monotonic() + timeout_s, 0.0
        missing, found = set(job_ids), {}
        told = set(missing)
        while missing:
            if time.monotonic() >= look_again:
                told, look_again = set(missing), time.monotonic() + LOOK_AGAIN_S
            for job_id in told & missing:
                outcome = self.outcome(job_id)
                if outcome is not None:
                    found[job_id] = outcome
            missing -= found.keys()
            if missing and time.monotonic() > until:
                raise TimeoutError(f"{len(missing)} jobs have not ended")
            told = {fields["job_id"].decode() for fields in self.feed()} if missing else set()
        return found


def decode(content_type: str, result: bytes) -> Any:
    """What a handler returned."""
    if content_type == "application/json":
        return json.loads(result)
    if content_type == "text/plain; charset=utf-8":
        return result.decode()
    return result if content_type else None
