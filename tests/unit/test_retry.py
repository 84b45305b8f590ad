"""What becomes of a job when its handler has ended."""

from __future__ import annotations

from random import Random

import pytest

from scheduler.node.retry import Ending, completed, failed, given_back, overrun, rejected


def delays(attempt: int, backoff_ms: int = 1_000, backoff_ms_max: int = 60_000) -> list[int]:
    """Delays before the attempt after this one, drawn often."""
    return [failed(attempt, "why", None, backoff_ms, backoff_ms_max, Random(seed)).delay_ms for seed in range(300)]


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        pytest.param(
            completed("text/plain", b"hello"),
            Ending("finish", "completed", content_type="text/plain", result=b"hello"),
            id="completed",
        ),
        pytest.param(
            rejected("no such voice"),
            Ending("finish", "failed", 0, "rejected", "no such voice", "text/plain; charset=utf-8", b"no such voice"),
            id="rejected: the reason is the result",
        ),
        pytest.param(
            failed(1, "why", 250, 1_000, 60_000, Random(1)),
            Ending("retry", "completed", 250, "handler_failed", "why"),
            id="the delay that the handler chose",
        ),
        pytest.param(
            failed(1, "why", 0, 1_000, 60_000, Random(1)),
            Ending("retry", "completed", 0, "handler_failed", "why"),
            id="at once, if it says so",
        ),
        pytest.param(
            failed(1, "why", -5, 1_000, 60_000, Random(1)),
            Ending("retry", "completed", 0, "handler_failed", "why"),
            id="no delay is below zero",
        ),
        pytest.param(
            failed(1, "why", 10**15, 1_000, 60_000, Random(1)),
            Ending("retry", "completed", 10**12, "handler_failed", "why"),
            id="nor longer than the server takes",
        ),
        pytest.param(
            overrun(),
            Ending("retry", "completed", 0, "overrun", "the handler ran for longer than its pool allows"),
            id="overrun",
        ),
        pytest.param(given_back("why"), Ending("give_back", "completed", 0, "given_back", "why"), id="given back"),
    ],
)
def test_endings(ending: Ending, expected: Ending) -> None:
    """Each of them as `release` is told."""
    assert ending == expected


@pytest.mark.parametrize(
    ("attempt", "base_ms"), [(1, 1_000), (2, 2_000), (3, 4_000), (6, 32_000), (7, 60_000), (10_000, 60_000)]
)
def test_the_delay_doubles_up_to_its_limit_give_or_take_a_fifth(attempt: int, base_ms: int) -> None:
    """Jobs that failed together do not come back together."""
    drawn = delays(attempt)
    assert 0.8 * base_ms <= min(drawn) < 0.85 * base_ms
    assert 1.15 * base_ms < max(drawn) <= 1.2 * base_ms


def test_half_characters_of_a_detail_are_spelled_out() -> None:
    """File names have them, and no server takes them."""
    assert failed(1, "no file \udcff", None, 1, 1, Random(1)).detail == "no file \\udcff"
    assert rejected("no file \udcff").result == b"no file \\udcff"


def test_a_long_detail_is_cut_in_its_middle() -> None:
    """It is for a person, and is stored; how it begins and ends tells most."""
    long = "begins" + "x" * 10_000 + "ends"
    for detail in (failed(1, long, None, 1, 1, Random(1)).detail, rejected(long).detail):
        assert (len(detail), detail[:6], detail[-4:]) == (1_000, "begins", "ends")
    assert rejected("\udcff" * 1_000).detail.startswith("\\udcff")
    assert len(rejected("\udcff" * 1_000).detail) == 1_000
