"""A server that does not do what it is asked is told of once, rarely again, and at its end; by virtual time."""

from __future__ import annotations

import asyncio
import logging

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from scheduler.clock import Clock
from scheduler.store.telling import AGAIN_MS, LOOK_MS, TOLD_MS, Series, Telling, Watch

REFUSED = RedisConnectionError("Connection refused")
FULL = OutOfMemoryError("command not allowed when used memory > 'maxmemory'.", status_code="OOM")


class Now(Clock):
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.at_ms = 0.0

    def ms(self) -> float:
        """Its time."""
        return self.at_ms


class Teller:
    """Telling, whose looks come as its clock goes on."""

    def __init__(self) -> None:
        self.clock = Now()
        self.telling = Telling("redis://me:secret@host:1/0", self.clock)
        self.pieces = 0
        self.watch: Watch = self.telling.watch(lambda: self.pieces)

    def go_on(self, ms: float) -> None:
        """Time passes, with the looks that are due in it."""
        until_ms = self.clock.at_ms + ms
        while self.clock.at_ms < until_ms:
            self.clock.at_ms = min(until_ms, self.clock.at_ms + LOOK_MS)
            self.telling._look()


@pytest.fixture
async def teller(caplog: pytest.LogCaptureFixture) -> Teller:
    """At the time 0."""
    caplog.set_level(logging.INFO, "scheduler.store")
    return Teller()


@pytest.fixture(autouse=True)
def no_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are made by hand."""
    monkeypatch.setattr(Telling, "arm", lambda self: setattr(self, "_looked_ms", self.clock.ms()))


async def test_what_fails_for_a_second_is_told_again_and_at_its_end(
    teller: Teller, caplog: pytest.LogCaptureFixture
) -> None:
    """Within two seconds, in the server's words, without what may be a password; then every 30 s."""
    call = teller.watch.begin(0, is_told=True)
    teller.watch.failed(call, FULL, is_told=True)
    teller.go_on(TOLD_MS - 1)
    assert caplog.messages == []
    teller.go_on(2 * LOOK_MS)
    place = "the server at redis://host:1/0"
    words = "OOM command not allowed when used memory > 'maxmemory' (its memory is full); trying on"
    assert caplog.messages == [f"{place} refuses, for 1 s now: {words}"]
    teller.go_on(AGAIN_MS)
    assert caplog.messages[1:] == [f"{place} refuses, for 31 s now: {words}"]
    call.is_well = True
    teller.watch.end(call)
    assert caplog.messages[2:] == [f"{place} takes again what it refused (OOM), after 31.5 s"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]


async def test_many_calls_that_meet_the_same_are_told_once(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Also when connections of one process share the telling; the end is that of the last one."""
    watches = [teller.watch, teller.telling.watch()]
    calls = [(watch, watch.begin(0, is_told=True)) for watch in watches for _ in range(3)]
    for watch, call in calls:
        watch.failed(call, REFUSED, is_told=True)
    teller.go_on(5_000)
    for watch, call in calls:
        assert len(caplog.messages) == 1
        call.is_well = True
        watch.end(call)
    assert len(caplog.messages) == 2
    assert "answers again, after 5.0 s" in caplog.messages[-1]


async def test_an_answer_that_does_not_come_is_told(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Before any time-out, unless something still comes, as over a slow link."""
    teller.watch.begin(0, is_told=True)
    for _ in range(20):
        teller.pieces += 1
        teller.go_on(LOOK_MS)
    assert caplog.messages == []
    teller.go_on(TOLD_MS + LOOK_MS)
    assert [message.partition(", ")[0] for message in caplog.messages] == [
        "the server at redis://host:1/0 does not answer"
    ]


async def test_one_who_refuses_is_not_silent(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """A busy server refuses new calls, and keeps those that block without an answer; until it falls silent itself."""
    waiting, new = (teller.watch.begin(0, is_told=True) for _ in range(2))
    for _ in range(12):
        teller.watch.failed(new, FULL, is_told=True)
        teller.go_on(TOLD_MS / 2)
    teller.watch.failed(waiting, REFUSED, is_told=True)
    for _ in range(4):
        teller.watch.failed(new, FULL, is_told=True)
        teller.go_on(TOLD_MS / 2)
    assert [message.split()[4] for message in caplog.messages] == ["refuses,"]
    teller.go_on(2 * TOLD_MS)
    assert "does not answer" in caplog.messages[-1]
    teller.watch.failed(new, FULL, is_told=True)
    assert "answers again" in caplog.messages[-1]


async def test_another_word_of_the_server_ends_its_silence(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """A server that was started again, and loads: "does not answer" is said only of what does not answer."""
    call = teller.watch.begin(0, is_told=True)
    teller.watch.failed(call, REFUSED, is_told=True)
    teller.go_on(2_000)
    teller.watch.failed(call, FULL, is_told=True)
    teller.go_on(2_000)
    kinds = [message.removeprefix("the server at redis://host:1/0 ").partition(",")[0] for message in caplog.messages]
    assert kinds == ["does not answer", "answers again", "refuses"]


async def test_who_has_little_patience_tells_by_its_error(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is anything told of a pause of our own, in which nobody listened."""
    teller.watch.failed(teller.watch.begin(0, is_told=False), REFUSED, is_told=False)
    call = teller.watch.begin(0, is_told=True)
    teller.clock.at_ms = 60_000
    teller.telling._look()
    teller.watch.end(call)
    teller.go_on(2_000)
    assert caplog.messages == []


async def test_a_reader_that_fails_again_and_again_is_one_story(
    teller: Teller, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it has read; a read that blocks is given its time first."""

    async def fail() -> None:
        raise REFUSED

    async def judge(error: Exception) -> Exception:
        return error

    series = Series(teller.watch, teller.clock, judge)
    for _ in range(10):
        with pytest.raises(RedisConnectionError):
            await series.run(fail(), 1_000)
        teller.go_on(500)
    assert len(caplog.messages) == 1
    await series.run(asyncio.sleep(0), 1_000)
    assert "answers again, after 5.0 s" in caplog.messages[1]
    assert not teller.watch.under_way


async def test_who_gives_up_tells_no_end(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing got through; whoever meets the same soon goes on with the story."""
    for _ in range(3):
        call = teller.watch.begin(teller.clock.ms(), is_told=True)
        teller.watch.failed(call, FULL, is_told=True)
        teller.go_on(5_000)
        teller.watch.end(call)
    assert len(caplog.messages) == 1


async def test_what_others_get_through_does_not_end_a_refusal(teller: Teller, caplog: pytest.LogCaptureFixture) -> None:
    """Reads go on when memory is full; that proves nothing of submissions."""
    refused = teller.watch.begin(0, is_told=True)
    teller.watch.failed(refused, FULL, is_told=True)
    teller.go_on(2_000)
    teller.watch.end(refused)
    other = teller.watch.begin(2_000, is_told=True)
    other.is_well = True
    teller.watch.end(other)
    assert len(caplog.messages) == 1
