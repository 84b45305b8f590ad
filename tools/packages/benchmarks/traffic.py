"""Pure. Decides; never performs. What live sessions submit, and when: arrivals at random (Poisson), of a given rate."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final

import msgspec

from scheduler.audit.workloads import PAIRS, LanguagePair

JOBS_A_SESSION: Final = 10
"""In the mean; a session may be as short as one job."""
HOLD_SPREAD: Final = 0.5
"""A slot is held for at least so much less, at most so much more than the mean, each time as likely as any other."""


class Planned(msgspec.Struct, frozen=True, gc=False):
    """One job to be submitted, at_s after the start; hold_ms: for how long it will hold its slot."""

    at_s: float
    job_id: str
    session_id: str
    src_lang: str
    tgt_lang: str
    hold_ms: int

    @property
    def pair(self) -> str:
        """`source:target`."""
        return f"{self.src_lang}:{self.tgt_lang}"


class _Session(msgspec.Struct):
    """A session that is under way; left: jobs to come."""

    session_id: str
    pair: LanguagePair
    left: int


class Traffic:
    """The jobs of many sessions at once, one after the other.

    Args: random; name, with which every id begins; jobs_per_s, the mean; hold_ms, the mean; sessions, how many are
    under way at a time, and when one has ended another begins; pairs, with weights; jobs_max, None for no end.
    """

    def __init__(
        self,
        random: Random,
        name: str,
        jobs_per_s: float,
        hold_ms: float,
        sessions: int,
        pairs: Sequence[LanguagePair] = PAIRS,
        jobs_max: int | None = None,
    ) -> None:
        self._random = random
        self._name = name
        self._jobs_per_s = jobs_per_s
        self._hold_ms = hold_ms
        self._pairs = pairs
        self._weights = [pair.weight for pair in pairs]
        self._begun = 0
        self._made = 0
        self._jobs_max = jobs_max
        self._sessions = [self._begin() for _ in range(sessions)]
        self.next_s = self._gap_s()

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come."""
        return self._jobs_max is not None and self._made >= self._jobs_max

    def until(self, at_s: float) -> list[Planned]:
        """The jobs that are due by then and were not taken before."""
        due: list[Planned] = []
        while self.next_s <= at_s and not self.is_over:
            due.append(self._plan(self.next_s))
            self.next_s += self._gap_s()
        return due

    def _gap_s(self) -> float:
        return self._random.expovariate(self._jobs_per_s)

    def _begin(self) -> _Session:
        self._begun += 1
        jobs = 1 + int(self._random.expovariate(1 / (JOBS_A_SESSION - 0.5)))
        return _Session(f"{self._name}s{self._begun}", self._random.choices(self._pairs, self._weights)[0], jobs)

    def _plan(self, at_s: float) -> Planned:
        place = self._random.randrange(len(self._sessions))
        session = self._sessions[place]
        session.left -= 1
        if session.left == 0:
            self._sessions[place] = self._begin()
        self._made += 1
        hold_ms = round(self._hold_ms * self._random.uniform(1 - HOLD_SPREAD, 1 + HOLD_SPREAD))
        pair = session.pair
        return Planned(at_s, f"{self._name}j{self._made}", session.session_id, pair.src_lang, pair.tgt_lang, hold_ms)
