"""What is measured with: the same jobs in the same intake for every benchmark and every round."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

import msgspec

from scheduler.audit.workloads import PAIRS
from scheduler.config import Settings
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.store.store import Store

SEED: Final = 1
FILL_BATCH: Final = 1_000


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A backlog and the fleet that it is for. jobs, nodes, sessions: counts; batch: jobs of one call or pipeline."""

    jobs: int
    batch: int
    nodes: int
    sessions: int
    payload_bytes: int

    def node_names(self) -> list[str]:
        """The nodes, whose inboxes the jobs end up in."""
        return [f"n{number}" for number in range(self.nodes)]

    def documents(self) -> Iterator[tuple[str, bytes]]:
        """(session id, encoded document) of each job; sessions are drawn evenly, and each keeps its language pair."""
        random = Random(SEED)
        for number in range(self.jobs):
            session = random.randrange(self.sessions)
            pair = PAIRS[session % len(PAIRS)]
            document = JobDocument(
                session_id=f"s{session}", job_id=f"j{number}", src_lang=pair.src_lang, tgt_lang=pair.tgt_lang
            )
            yield document.session_id, encode_job(document)

    def payload(self) -> bytes:
        """The payload of every job."""
        return Random(SEED).randbytes(self.payload_bytes)


async def fill(store: Store, settings: Settings, workload: Workload) -> None:
    """Write the backlog into the intake by plain XADDs, as a producer without the SDK does."""
    payload = workload.payload()
    streams = intake_streams(store, settings)
    client = store.connection.commands
    pipeline = client.pipeline(transaction=False)
    layout = await store.layout()
    for session_id, document in workload.documents():
        stream = streams[store.partition_of(session_id, layout)]
        pipeline.execute_command("XADD", stream, "*", "job", document, "payload", payload)
        if len(pipeline) >= FILL_BATCH:
            await pipeline.execute()
    await pipeline.execute()


def intake_streams(store: Store, settings: Settings) -> list[str]:
    """The intake stream of each partition."""
    return [store.reads.keys.jobs(partition) for partition in range(settings.partitions)]


def inboxes(store: Store, workload: Workload) -> list[str]:
    """The inbox of each node."""
    return [store.reads.keys.inbox(node) for node in workload.node_names()]


async def entries_in(store: Store, streams: list[str]) -> int:
    """Entries of these streams together."""
    return sum(await store.reads.lengths(streams))
