"""One script call for several tries: what is asked, an answer to each, and sessions that turn out to be bound.

Sessions that are not known are taken for new ones, because most of them are, and the script says which are not: these
are placed once more, where they are bound. That spares a read of bindings before each call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from scheduler.protocol import messages
from scheduler.runtime.dispatch_state import Knowledge
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job
from scheduler.runtime.placement.attempt import Try, reserve_item
from scheduler.runtime.report import Report
from scheduler.store.cell import Cell
from scheduler.store.connection import or_each_alone

Answer = messages.Reserved | messages.Refused


class Call(msgspec.Struct):
    """What is tried, of which partitions; answers, when the call is under way beside something else.

    index: the snapshot by which candidates were chosen. mark: what had been told of limits when it was sent. again: its
    jobs had been scanned past, and there is memory for them now.
    """

    tries: list[Try]
    partitions: frozenset[int]
    sent_ms: float
    index: Index
    mark: int
    again: bool
    answers: asyncio.Task[list[Answer | None]] | None = None


class Caller:
    """Makes calls.

    Args: cell; report, in which calls are counted; known, for its bindings, what counts for limits, and the server
    process that partitions are read from; tries_as_bound, jobs whose sessions are bound -> their tries once that was
    read, and the snapshot by which candidates were chosen.
    """

    def __init__(
        self,
        cell: Cell,
        report: Report,
        known: Knowledge,
        tries_as_bound: Callable[[Sequence[Job]], Awaitable[tuple[list[Try], Index]]],
    ) -> None:
        self._cell = cell
        self._report = report
        self._known = known
        self._tries_as_bound = tries_as_bound

    async def answers(self, call: Call) -> list[Answer | None]:
        """The answer to each try of a call, None for one that was held back. Tries of bound sessions are replaced."""
        answers = await self._ask(call.tries, call.index)
        bound = set()
        for each, answer in zip(call.tries, answers, strict=True):
            if not each.unread or isinstance(answer, messages.Reserved):
                continue
            if answer is None or answer.why == "bound":  # whoever waits does so in the class that his session prefers
                bound.add(each.job.session_id)
            elif answer.why in ("full", "limited"):
                self._known.bindings.learn(each.job.session_id, None)
        if bound:
            await self._place_bound(call, answers, bound)
        return answers

    async def _place_bound(self, call: Call, answers: list[Answer | None], bound: set[str]) -> None:
        """Try those jobs of a call again that have no slot yet and whose sessions are bound, or may be, and note what
        came of it.
        """
        numbers = {
            each.job.key: number
            for number, each in enumerate(call.tries)
            if each.job.session_id in bound and not isinstance(answers[number], messages.Reserved)
        }
        tries, index = await self._tries_as_bound([call.tries[number].job for number in numbers.values()])
        for each, answer in zip(tries, await self._ask(tries, index), strict=True):
            number = numbers[each.job.key]
            call.tries[number], answers[number] = each, answer

    async def _ask(self, tries: Sequence[Try], index: Index) -> list[Answer | None]:
        """Reserve for those that have candidates; after an error inside the script for each alone, still in the order
        of each session.

        index: by which the candidates were chosen, so that the script compares the boots that they were chosen as.
        """
        items = []
        kinds = self._known.kinds(index)
        for each in tries:
            if each.placement is not None:
                items.append(reserve_item(each, each.placement, index.policy(each.job_class.pool), kinds))
        blocked: set[str] = set()

        async def reserve(batch: Sequence[messages.ReserveItem]) -> list[Answer]:
            if batch[0].session_id in blocked:
                return [messages.Refused("behind")]
            self._report.calls += 1
            answers = await self._cell.reserve(
                batch, index.boots, index.pools, index.version, self._known.partitions.life
            )
            if isinstance(answers[0], messages.Refused) and answers[0].why in messages.HOLDS_BACK:
                blocked.add(batch[0].session_id)
            return answers

        answers = iter(await self._each_alone(items, reserve) if items else [])
        return [None if each.placement is None else next(answers) for each in tries]

    async def _each_alone(
        self,
        items: Sequence[messages.ReserveItem],
        reserve: Callable[[Sequence[messages.ReserveItem]], Awaitable[list[Answer]]],
    ) -> list[Answer]:
        """A job ends only for what is under its own id; one that fails otherwise is tried again later."""
        return await or_each_alone(
            items,
            reserve,
            lambda _: messages.Refused("broken"),
            lambda _: messages.Refused("failed"),
            lambda item: self._cell.keys.job(item.job_id),
        )
