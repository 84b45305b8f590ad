"""Once a second over all that waits: deadlines, classes that nobody can serve, and room that no event told of.

The last is a safety net. Whenever it leads to a placement, an event was lost, so its hits are counted and are 0 in
tests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from scheduler.calls import RejectItem
from scheduler.config import Settings
from scheduler.runtime import intake
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Class, Job
from scheduler.runtime.reader import Reader
from scheduler.runtime.waiting import Waiter, Waiting
from scheduler.store.reads import Reads

logger = logging.getLogger("scheduler.dispatcher")


class Sweep:
    """The looks at one dispatcher's waiting jobs."""

    def __init__(self, waiting: Waiting, settings: Settings) -> None:
        self._waiting = waiting
        self._settings = settings
        self._no_node_since_ms: dict[Class, float] = {}

    def overdue(self, server_ms: int) -> list[RejectItem]:
        """Take those out of the waiting whose deadline has passed, by the server's time."""
        return self._leave(self._waiting.overdue(server_ms), expired)

    def unservable(self, index: Index, now_ms: float) -> list[RejectItem]:
        """Take those out of the waiting that no node served for the time of grace; now_ms: monotonic."""
        waiters: dict[Class, list[Waiter]] = {}
        for waiter in self._waiting:
            waiters.setdefault(waiter.wanted, []).append(waiter)
        unservable = [wanted for wanted in waiters if not index.eligible(wanted)]
        self._no_node_since_ms = {wanted: self._no_node_since_ms.get(wanted, now_ms) for wanted in unservable}
        refused: list[RejectItem] = []
        for wanted, since_ms in self._no_node_since_ms.items():
            if now_ms - since_ms >= self._settings.no_node_grace_ms:
                # The last go first: then none of them competes for a moment before it goes too.
                refused += self._leave(reversed(waiters[wanted]), no_node)
        return refused[::-1]

    async def look(self, index: Index, reads: Reads, reader: Reader) -> None:
        """Wake the classes that wait although an eligible node is open and no event on its way says so."""
        settled = [wanted for wanted in self._waiting.settled_classes() if index.eligible(wanted)]
        names = list(dict.fromkeys(node.id for wanted in settled for node in index.eligible(wanted)))
        if not names:
            return
        are_open = dict(zip(names, await reads.are_open(names), strict=True))
        if not any(are_open.values()):
            return
        told = await reader.peek_freed()
        for wanted in settled:
            untold = [node.id for node in index.eligible(wanted) if are_open[node.id] and node.id not in told]
            if untold:
                logger.debug("the sweep found room for %s on %s", wanted, untold)
                self._waiting.wake_class(wanted, untold, swept=True)

    def _leave(self, waiters: Iterable[Waiter], refuse: Callable[[Job], RejectItem]) -> list[RejectItem]:
        refused = []
        for waiter in waiters:
            refused.append(refuse(waiter.job))
            self._waiting.leave(waiter)
        return refused


def expired(job: Job) -> RejectItem:
    """The refusal of a job whose deadline has passed."""
    return intake.refuse_job(job, "expired", f"its deadline passed at {job.deadline_at_ms} (server time, ms)")


def no_node(job: Job) -> RejectItem:
    """The refusal of a job that no node can serve; it says what was wanted."""
    languages = f"{job.src_lang}:{job.tgt_lang}" if job.src_lang else "a job without languages"
    features = f", features {', '.join(job.features)}" if job.features else ""
    return intake.refuse_job(job, "no_compatible_node", f"no node serves {languages}{features}")
