"""A node's endings on their way to the server: collected while a call is under way, reported together in the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from scheduler import calls
from scheduler.config import Settings
from scheduler.handlers import Job
from scheduler.runtime.retry import Ending
from scheduler.store.cell import Cell
from scheduler.store.connection import or_each_alone

logger = logging.getLogger("scheduler.node")


class Reporter:
    """Endings that are not reported yet.

    Args: cell; settings; layout, as stored; node_id and boot, of the reporting node.
    """

    def __init__(
        self,
        cell: Cell,
        settings: Settings,
        layout: calls.Layout,
        node_id: str,
        boot: str,
    ) -> None:
        self._cell = cell
        self._settings = settings
        self._layout = layout
        self._node_id = node_id
        self._boot = boot
        self._endings: list[calls.ReleaseItem] = []
        self._reporting = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._endings)

    def add(self, job: Job, ending: Ending) -> None:
        """What became of an attempt; it stays here until the server has heard it."""
        self._endings.append(
            calls.ReleaseItem(
                job_id=job.job_id,
                node=self._node_id,
                partition=job.partition,
                session_id=job.session_id,
                tenant_id=job.tenant_id,
                reply_to=job.reply_to,
                token=job.token,
                verdict=ending.verdict,
                state=ending.state,
                boot=self._boot,
                delay_ms=ending.delay_ms,
                reason=ending.reason,
                detail=ending.detail,
                content_type=ending.content_type,
                result=ending.result,
            )
        )

    async def report(self) -> None:
        """Report every ending so far, in as few calls as possible; what cannot be reported is kept.

        One caller at a time: two that took the same batch would both strike it off, and what came after it too.
        """
        async with self._reporting:
            await self._report()

    async def _report(self) -> None:
        while self._endings:
            batch = self._endings[: self._settings.batch_max]
            answers = await or_each_alone(batch, self._release, lambda _: calls.NotReleased("broken"))
            del self._endings[: len(batch)]
            kept = []
            for item, answer in zip(batch, answers, strict=True):
                if isinstance(answer, calls.NotReleased):
                    # An earlier life may have ended its own reservations meanwhile, as it should.
                    level = logging.DEBUG if item.verdict == "reboot" else logging.WARNING
                    if answer.why == "invalid":  # now and ever: the job goes on when its lease ends
                        level = logging.ERROR
                    why = f"{answer.why}: {answer.detail}" if answer.detail else answer.why
                    logger.log(level, "%s: the %s of job %s is %s", item.node, item.verdict, item.job_id, why)
                    if answer.why == "busy" and item.verdict != "reboot":
                        kept.append(item)
            if kept:
                self._endings += kept
                return

    async def _release(self, batch: Sequence[calls.ReleaseItem]) -> list[calls.Released | calls.NotReleased]:
        layout = self._layout
        return (await self._cell.release(batch, layout.retention_ms, layout.dead_retention_ms))[1]
