"""What a dispatcher asks the server in a step: to reserve, to reject, for bindings, and for nodes with room."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Final

from scheduler.protocol import messages
from scheduler.protocol.snapshot import Pool
from scheduler.runtime.index import Index
from scheduler.runtime.placement.attempt import Answer, PlacementAttempt
from scheduler.runtime.placement.candidates import Placement
from scheduler.runtime.waiting.limits import counted_by
from scheduler.session.bindings import NO_VARIANT, Binding, parse, prefix, source_to_bind
from scheduler.store.cell import Cell
from scheduler.store.connection import or_each_alone
from scheduler.store.cutting import cut
from scheduler.store.reads import Reads

BURIED_BYTES_MAX: Final = 32 * 2**20
"""Of entries in a call: the server reads each as a whole to cut it, which takes some 100 ms for these."""


class ServerCalls:
    """The calls of one dispatcher.

    Args:
        cell: whose scripts are called.
        reads: of the cell.
        layout: for the retentions.
        batch_max: entries of one call.

    reserve_calls: how many `reserve` calls were made.
    """

    def __init__(self, cell: Cell, reads: Reads, layout: messages.Layout, batch_max: int) -> None:
        self.reserve_calls = 0
        self._cell = cell
        self._reads = reads
        self._layout = layout
        self._batch_max = batch_max

    async def reserve(
        self, attempts: Sequence[PlacementAttempt], index: Index, kinds: Container[str], life: str
    ) -> list[Answer | None]:
        """Reserve for the attempts that have candidates; None answers one that has none.

        After an error inside the script the attempts are made one by one, each session in its order. A job ends only
        when the error is in what is stored under its own id; after any other error it is tried again later.

        Args:
            attempts: of one call.
            index: by which the candidates were chosen; the script compares the boots that the nodes had in it.
            kinds: of limits that reservations count for.
            life: the server process that the partitions were read from.
        """
        items = [
            reserve_item(attempt, attempt.placement, index.policy(attempt.job_class.pool), kinds)
            for attempt in attempts
            if attempt.placement is not None
        ]
        blocked: set[str] = set()

        async def reserve(batch: Sequence[messages.ReserveItem]) -> list[Answer]:
            if batch[0].session_id in blocked:
                return [messages.Refused("behind")]
            self.reserve_calls += 1
            answers = await self._cell.reserve(batch, index.boots, index.pools, index.version, life)
            if _holds_back(answers[0]):
                blocked.add(batch[0].session_id)
            return answers

        answered: list[Answer] = []
        if items:
            answered = await or_each_alone(
                items,
                reserve,
                lambda _: messages.Refused("broken"),
                lambda _: messages.Refused("failed"),
                lambda item: self._cell.keys.job(item.job_id),
            )
        answers = iter(answered)
        return [None if attempt.placement is None else next(answers) for attempt in attempts]

    def cut(self, items: Sequence[messages.RejectItem]) -> Iterator[Sequence[messages.RejectItem]]:
        """Jobs that are to be rejected, in parts for one call each."""
        return cut(items, lambda item: item.size_bytes, self._batch_max, BURIED_BYTES_MAX)

    async def reject(self, items: Sequence[messages.RejectItem], life: str) -> list[str]:
        """End these jobs. Returns: an answer to each.

        life: the server process that the partitions were read from.
        """
        return await or_each_alone(
            items,
            lambda batch: self._reject(batch, life),
            lambda _: "broken",
            own_key=lambda item: self._cell.keys.job(item.job_id),
        )

    async def _reject(self, batch: Sequence[messages.RejectItem], life: str) -> list[str]:
        return await self._cell.reject(batch, self._layout.retention_ms, self._layout.dead_retention_ms, life)

    async def bindings(self, sessions: Sequence[str]) -> list[Binding | None]:
        """What these sessions are bound to. Only the owner of their partitions changes that."""
        return [parse(stored) for stored in await self._reads.bindings(sessions)] if sessions else []

    async def have_room(self, nodes: Sequence[str]) -> dict[str, bool]:
        """Which of these nodes have room, in one question."""
        return dict(zip(nodes, await self._reads.are_open(nodes), strict=True)) if nodes else {}


def _holds_back(answer: Answer) -> bool:
    """Whether later jobs of the session wait: this one does, or an earlier call placed it, perhaps elsewhere."""
    if isinstance(answer, messages.Reserved):
        return answer.used < 0
    return answer.why in messages.HOLDS_BACK or answer.why in messages.DEALT_WITH


def reserve_item(
    attempt: PlacementAttempt, placement: Placement, policy: Pool, kinds: Container[str]
) -> messages.ReserveItem:
    """What `reserve` is asked for an attempt.

    Args:
        attempt: of the job.
        placement: its candidates.
        policy: of its pool.
        kinds: of limits that it counts for.
    """
    job, binding, pool = attempt.job, attempt.binding, attempt.job_class.pool
    document = job.document
    source, target = source_to_bind(binding, document.src_lang, document.tgt_lang), document.tgt_lang
    is_same = binding is not None and binding.pool == pool and binding.src_lang == source and binding.tgt_lang == target
    return messages.ReserveItem(  # in the order of its fields: to name them costs five times as much
        job.partition,
        job.epoch,
        job.entry_id,
        job.job_id,
        document.session_id,
        document.tenant_id,
        document.reply_to,
        pool,
        placement.groups,
        placement.bound,
        placement.preferred,
        placement.why,
        placement.note,
        prefix(pool, source, target),
        binding.node if binding is not None and is_same and attempt.is_fresh else "",
        NO_VARIANT,
        attempt.is_unread,
        placement.keeps,
        attempt.follows,
        attempt.together,
        counted_by(job, policy, kinds),
        job.body,
    )
