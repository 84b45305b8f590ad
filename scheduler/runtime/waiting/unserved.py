"""Logs classes that no node serves, before their jobs are dead, and logs when a node serves them again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from scheduler.runtime.intake import JobClass

logger = logging.getLogger("scheduler.dispatcher")

LOG_AFTER_MS: Final = 1_000  # a node that is restarted is back sooner
LOGGED_MAX: Final = 1_000  # classes; more than these are not logged


class Unserved:
    """The classes that were logged.

    grace_ms: how long their jobs wait for a node.
    """

    def __init__(self, grace_ms: int) -> None:
        self._grace_ms = grace_ms
        self._logged: set[JobClass] = set()

    def look(
        self,
        since_ms: Mapping[JobClass, float],
        count: Callable[[JobClass], int],
        is_served: Callable[[JobClass], bool],
        now_ms: float,
    ) -> None:
        """Log what is new.

        Args:
            since_ms: by class with waiting jobs, since when no node serves it.
            count: how many jobs of a class wait.
            is_served: whether a node serves a class now.
            now_ms: monotonic.
        """
        for job_class, began_ms in since_ms.items():
            if job_class in self._logged or len(self._logged) >= LOGGED_MAX:
                continue
            if now_ms - began_ms >= min(LOG_AFTER_MS, self._grace_ms / 2):
                self._logged.add(job_class)
                logger.warning(
                    "no node serves %s: jobs that wait for one: %d; each is dead when none has come for %g s",
                    in_words(job_class), count(job_class), self._grace_ms / 1000,
                )  # fmt: skip
        for job_class in self._logged - since_ms.keys():
            self._logged.discard(job_class)
            if is_served(job_class):
                logger.info("a node serves %s now", in_words(job_class))


def in_words(job_class: JobClass) -> str:
    """What a job needs, for people."""
    languages = f"{job_class.src_lang}:{job_class.tgt_lang}" if job_class.src_lang else "jobs without languages"
    features = f" with {', '.join(job_class.features)}" if job_class.features else ""
    tenant = f", of tenant {job_class.tenant}" if job_class.tenant else ""
    pool = f" in pool {job_class.pool}" if job_class.pool else ""
    return f"{languages}{features}{pool}{tenant}"
