"""What a node logs of attempts that failed: who, why, where, and what led to it."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.errors import Reject, Retry
from scheduler.node import retry
from scheduler.node.attempt_log import AttemptLog
from scheduler.node.handlers import Job, attempt
from scheduler.protocol.messages import ReleaseItem
from scheduler.repeats import TOLD_MAX, WINDOW_MS
from scheduler.threads import Threads
from tests.clock import HandClock

JOB = Job(
    "n1", "1-1", {b"job": b'{"session_id":"s1"}', b"job_id": b"j1", b"reservation": b"7 1-a 5000 3/1-1 2 1 1 4000"}
)
WHO = "n1: attempt 2 of job j1 of session s1"


async def logged(error: BaseException, caplog: pytest.LogCaptureFixture) -> str:
    """The one line, and what follows it, of an attempt whose handler raises this."""

    async def raises(job: Job) -> None:
        raise error

    ending = await attempt(raises, JOB, Threads(1, "test"), DEFAULTS, Random(1))
    AttemptLog("n1", HandClock()).ended(JOB, ending)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("scheduler.node", "WARNING")
    return record.getMessage()


async def test_a_failed_attempt_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """First the line that is stored, too, then what Python prints: causes, members of groups, notes."""
    cause = ConnectionError("gpu7 refused")
    cause.add_note("on port 99")
    error = ExceptionGroup("unhandled errors in a TaskGroup", [ValueError("bad audio header")])
    error.__cause__ = cause
    text = await logged(error, caplog)
    first, *rest = text.splitlines()
    assert first.startswith(
        f"{WHO} failed: ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception) ({__file__}:"
    )
    assert "; with ValueError: bad audio header" in first
    assert rest[:2] == ["  ConnectionError: gpu7 refused", "  on port 99"]
    assert any(line.endswith("in raises") for line in rest)
    assert any("ValueError: bad audio header" in line for line in rest)


async def test_no_line_of_an_error_looks_like_a_record_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a message has for lines of its own."""
    first, *rest = (await logged(ValueError("bad\r\n2026-01-01 WARNING all is well"), caplog)).splitlines()
    assert first.startswith(WHO + " failed: ValueError: bad\\r\\n2026-01-01 WARNING all is well (")
    assert [line for line in rest if line and not line.startswith("  ")] == []


async def test_what_was_raised_to_say_something_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Its traceback would say no more."""
    assert await logged(Reject("no such voice"), caplog) == f"{WHO} ended it as failed, rejected: no such voice"
    caplog.clear()
    assert await logged(Retry("the model is loading", 500), caplog) == f"{WHO} failed: the model is loading"
    caplog.clear()
    error = Reject("no such voice")
    error.__cause__ = KeyError("voice-7")
    assert "KeyError: 'voice-7'\n" in await logged(error, caplog)


def test_endings_without_an_error_are_logged_and_good_ones_are_not(caplog: pytest.LogCaptureFixture) -> None:
    """A job that the node gives back is none that failed."""
    log = AttemptLog("n1", HandClock())
    for ending in (retry.completed("", b""), retry.given_back("the node stopped"), retry.overrun()):
        log.ended(JOB, ending)
    log.ended(JOB, retry.unencodable("nan: JSON has finite numbers only"))
    assert [record.getMessage() for record in caplog.records] == [
        f"{WHO} failed: the handler ran for longer than its pool allows",
        f"{WHO} ended it as failed, unencodable: the result cannot be kept: nan: JSON has finite numbers only",
    ]


async def test_thousands_of_the_same_become_a_count(caplog: pytest.LogCaptureFixture) -> None:
    """Of one type from one place, whatever they say; another one is told."""
    clock = HandClock()
    log = AttemptLog("n1", clock)

    def raises(job: Job) -> None:
        raise ValueError(job.attempt)

    ending = await attempt(raises, JOB, Threads(1, "test"), DEFAULTS, Random(1))
    for _ in range(1_000):
        log.ended(JOB, ending)
    log.ended(JOB, msgspec.structs.replace(ending, error=KeyError("other")))
    assert len(caplog.records) == TOLD_MAX + 1
    caplog.clear()
    clock.go(WINDOW_MS)
    log.step()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"n1: attempts failed, ValueError ({__file__}:{raises.__code__.co_firstlineno + 1} in "
        f"{raises.__qualname__}): {1_000 - TOLD_MAX} times more within 30 s"
    )


def test_a_job_that_died_is_told_with_why(caplog: pytest.LogCaptureFixture) -> None:
    """Where it ends, by the node that ended it."""
    item = ReleaseItem(
        job_id="j1", node="n1", partition=3, session_id="s1", tenant_id="", reply_to="", token=7, verdict="retry",
        detail="ValueError: bad audio",
    )  # fmt: skip
    AttemptLog("n1", HandClock()).died(item)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "WARNING",
        "n1: job j1 of session s1 is dead; its last attempt: ValueError: bad audio",
    )
