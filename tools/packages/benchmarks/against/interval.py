"""Intervals of a median, whatever the distribution of the values is.

Each value lies below the median with probability 1/2, therefore the number of values below it is binomial, and the
k-th smallest and the k-th largest value enclose the median with a probability that depends on n and k alone (David and
Nagaraja, Order Statistics, 3rd edition, 2003, section 7.1; tables in Le Boudec, Performance Evaluation of Computer and
Communication Systems, 2010, appendix A). k is the largest that leaves at most 2.5 % outside on each side. Only certain
probabilities exist, so the 95 % interval covers the median in 95 % of all cases or a little more often.

Figures of benchmarks have outliers of several times the median and no known distribution, which is why no interval by
mean and standard deviation is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

LIKELY: Final = 40
"""One in so many medians lies below an interval at most, and as many above it: 2.5 % each, the 95 % interval."""
SURE: Final = 400
"""The same for 0.25 %, the 99.5 % interval: ten of them together are all right in 95 % of all cases (Bonferroni)."""


class Interval(msgspec.Struct, frozen=True):
    """A median of ratios, and what encloses it."""

    low: float
    median: float
    high: float

    @property
    def width(self) -> float:
        """From end to end."""
        return self.high - self.low


def rank_of_end(count: int, outside_one_in: int = LIKELY) -> int:
    """Which of `count` sorted values is the low end, counted from 1, and which the high end, counted from the end.

    Returns: 0 where even the smallest and the largest value do not enclose the median so often.
    """
    rank, ways = 0, 1
    while ways * outside_one_in <= 2**count:
        rank += 1
        ways += math.comb(count, rank)
    return rank


def interval_of_ratios(ratios: Sequence[float], outside_one_in: int = LIKELY) -> Interval | None:
    """The interval of the median of ratios, which are above 0; None when there are too few: fewer than 6, to be
    sure fewer than 9.

    An even number of them has the geometric mean of the middle two as its median: with old and new exchanged, each
    figure becomes its reciprocal.
    """
    rank = rank_of_end(len(ratios), outside_one_in)
    if rank == 0:
        return None
    ordered = sorted(ratios)
    return Interval(ordered[rank - 1], median_of_ratios(ordered), ordered[-rank])


def median_of_ratios(ratios: Sequence[float]) -> float:
    """The median, of one ratio or more."""
    ordered = sorted(ratios)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else math.sqrt(low * high)
