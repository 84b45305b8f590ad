"""Tells of a node that gets nothing to do which words a job must have to come to it: mostly one of them is another."""

from __future__ import annotations

import logging
from typing import Final

from scheduler.protocol.documents import NodeBeat

logger = logging.getLogger("scheduler.node")

IDLE_TOLD_MS: Final = 30_000
IDLE_AGAIN_MS: Final = 600_000


class Idle:
    """One node's idle time. beat: its registration."""

    def __init__(self, beat: NodeBeat) -> None:
        self._beat = beat
        self._since_ms = 0.0
        self._told_ms: float | None = None

    def worked(self, now_ms: float) -> None:
        """It serves from now on, or has got a job."""
        self._since_ms = now_ms
        self._told_ms = None

    def look(self, running: int, now_ms: float) -> None:
        """Tell, if nothing has come for long."""
        if running:
            self.worked(now_ms)
        elif now_ms - self._since_ms >= IDLE_TOLD_MS and (
            self._told_ms is None or now_ms - self._told_ms >= IDLE_AGAIN_MS
        ):
            self._told_ms = now_ms
            for_s = (now_ms - self._since_ms) / 1000
            logger.info("%s is idle for %d s: it waits for jobs with %s", self._beat.node, for_s, in_words(self._beat))


def in_words(beat: NodeBeat) -> str:
    """What a job must have for a node to be given it."""
    pairs = ", ".join(f"{source}:{target}" for source, target in beat.pairs)
    languages = f"the languages {pairs}, or none" if pairs else "no languages, for it was started without --pair"
    features = f"no other features than {', '.join(beat.features)}" if beat.features else "no features"
    pool = f"the pool {beat.pool}" if beat.pool else "the pool that the rules put it in"
    return f"{languages}; {features}; in {pool}"
