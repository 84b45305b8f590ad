"""The own clock runs on while the machine sleeps, where the system has such a clock."""

from __future__ import annotations

import sys
import time

import pytest

from scheduler.clock import SYSTEM_CLOCK


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no clock of that name")
def test_it_is_the_clock_that_counts_the_sleep_of_the_machine() -> None:
    """A lease that ended in its sleep has ended for the machine that wakes."""
    before_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    now_ms, now_us = SYSTEM_CLOCK.ms(), SYSTEM_CLOCK.us()
    after_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before_s * 1_000 <= now_ms <= after_s * 1_000
    assert before_s * 1_000_000 - 1 <= now_us <= after_s * 1_000_000
