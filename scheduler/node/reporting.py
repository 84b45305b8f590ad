"""A node's endings on their way to the server: collected while a call is under way, reported together in the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from scheduler.config import Settings
from scheduler.errors import ServerUnavailable
from scheduler.node.attempt_log import AttemptLog
from scheduler.node.handlers import Job
from scheduler.node.retry import Ending
from scheduler.protocol import messages
from scheduler.store.cell import Cell
from scheduler.store.connection import or_each_alone
from scheduler.store.cutting import cut

logger = logging.getLogger("scheduler.node")

SMALL_BYTES: Final = 65_536  # of a result that is reported as soon as anything is


class Reporter:
    """Endings that are not reported yet.

    Args: cell; settings; layout, as stored; node_id and boot, of the reporting node; log, of jobs that die.
    keys: of the attempts that they end.
    """

    def __init__(
        self,
        cell: Cell,
        settings: Settings,
        layout: messages.Layout,
        node_id: str,
        boot: str,
        log: AttemptLog,
    ) -> None:
        self._cell = cell
        self._settings = settings
        self._layout = layout
        self._node_id = node_id
        self._boot = boot
        self._log = log
        self.keys: set[tuple[str, int]] = set()
        self._endings: list[messages.ReleaseItem] = []
        self._reported: set[tuple[str, int]] | None = None
        self._reporting = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._endings)

    def knows(self, key: tuple[str, int]) -> bool:
        """Whether this reservation has ended here, though the inbox that is read may not show it yet."""
        return key in self.keys or key in (self._reported or ())

    def remember_reported(self) -> None:
        """An inbox is read again from its start: what is reported meanwhile may have been in it when it was read."""
        self._reported = set()

    def forget_reported(self) -> None:
        """The inbox has been read again."""
        self._reported = None

    def add(self, job: Job, ending: Ending) -> None:
        """What became of an attempt; it stays here until the server has heard it."""
        self.keys.add(job.key)
        self._endings.append(
            messages.ReleaseItem(
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

    def give_back_results(self, detail: str) -> bool:
        """Give jobs back whose large results cannot be reported: that is soon said. Returns: whether there are some."""
        large = [item for item in self._endings if len(item.result) > SMALL_BYTES]
        self._endings = [item for item in self._endings if len(item.result) <= SMALL_BYTES]
        for item in large:
            given_back = {"verdict": "give_back", "reason": "given_back", "detail": detail, "state": "completed"}
            self._endings.append(msgspec.structs.replace(item, content_type="", result=b"", delay_ms=0, **given_back))
        return bool(large)

    async def report(self) -> None:
        """Report every ending so far, in as few calls as possible; what cannot be reported is kept.

        One caller at a time: two that took the same batch would both strike it off, and what came after it too.
        """
        async with self._reporting:
            await self._report()

    async def _report(self) -> None:
        while self._endings:
            batch = next(cut(self._endings, _size_bytes, self._settings.batch_max))
            answers = await or_each_alone(batch, self._release, lambda _: messages.NotReleased("broken"))
            told = set(map(_key, batch))  # others were added meanwhile, and perhaps put into another order
            self._endings = [item for item in self._endings if _key(item) not in told]
            if self._reported is not None:
                self._reported |= told
            kept, failed = [], []
            for item, answer in zip(batch, answers, strict=True):
                if isinstance(answer, messages.Released):
                    if answer.state == "dead":
                        self._log.died(item)
                    if item.verdict == "retry" and item.detail:
                        failed.append(item)
                else:
                    # An earlier life may have ended its own reservations meanwhile, as it should.
                    level = logging.DEBUG if item.verdict == "reboot" else logging.WARNING
                    if answer.why == "invalid":  # now and ever: the job goes on when its lease ends
                        level = logging.ERROR
                    why = f"{answer.why}: {answer.detail}" if answer.detail else answer.why
                    logger.log(level, "%s: the %s of job %s is %s", item.node, item.verdict, item.job_id, why)
                    if answer.why == "busy" and item.verdict != "reboot":
                        kept.append(item)
            self._endings += kept
            self.keys -= told
            self.keys.update(map(_key, kept))
            if failed:
                await self._describe(failed)
            if kept:
                return

    async def _describe(self, failed: Sequence[messages.ReleaseItem]) -> None:
        """Keep why they failed beside their records, where that can be done: the log has it too."""
        try:
            await self._cell.describe(failed, self._layout.retention_ms)
        except ServerUnavailable as error:
            self._log.not_kept(str(error))

    async def _release(self, batch: Sequence[messages.ReleaseItem]) -> list[messages.Released | messages.NotReleased]:
        layout = self._layout
        return (await self._cell.release(batch, layout.retention_ms, layout.dead_retention_ms))[1]


def _key(item: messages.ReleaseItem) -> tuple[str, int]:
    return item.job_id, item.token


def _size_bytes(item: messages.ReleaseItem) -> int:
    return len(item.result)
