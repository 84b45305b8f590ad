"""The own clock runs on while the machine sleeps, where the system has such a clock."""

from __future__ import annotations

import sys
import time

import pytest

from scheduler.clock import SYSTEM_CLOCK, ServerTime


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no clock of that name")
def test_it_is_the_clock_that_counts_the_sleep_of_the_machine() -> None:
    """A lease that ended in its sleep has ended for the machine that wakes."""
    before_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    now_ms, now_us = SYSTEM_CLOCK.ms(), SYSTEM_CLOCK.us()
    after_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before_s * 1_000 <= now_ms <= after_s * 1_000
    assert before_s * 1_000_000 - 1 <= now_us <= after_s * 1_000_000


@pytest.mark.parametrize(
    ("answers", "step_ms"),
    [
        pytest.param([(1_000, 0, 1), (2_000, 1_000, 1_001)], 0, id="both clocks went on"),
        pytest.param([(1_000, 0, 1), (2_000, 900, 4_000)], 0, id="an answer that took long"),
        pytest.param([(1_000, 0, 3_000), (2_000, 3_000, 3_001), (3_000, 4_000, 4_001)], 0, id="after one that did"),
        pytest.param([(1_000, 0, 1), (2_010, 1_000, 1_001)], 0, id="a clock that is set right"),
        pytest.param([(1_000, 0, 1), (12_000, 1_000, 1_001)], 9_878, id="on by 10 s"),
        pytest.param([(1_000, 0, 1), (-8_000, 1_000, 1_001)], -9_877, id="back by 10 s"),
        pytest.param([(1_000, 0, 1), (-8_000, 1_000, 3_001)], -9_677, id="back by 10 s, heard after a while"),
        pytest.param([(1_000, 0, 1), (12_000, 1_000, 1_001), (13_000, 2_000, 2_001)], 0, id="once"),
    ],
)
def test_a_step_is_what_no_delay_explains(answers: list[tuple[int, float, float]], step_ms: float) -> None:
    """By the last of the answers, each (now_ms of the server, sent, arrived)."""
    server_time = ServerTime()
    *_, found = [server_time.told(*answer) for answer in answers]
    assert found == pytest.approx(step_ms, abs=3)
