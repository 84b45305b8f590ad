"""A step is repeated: what errors, wakes and a stop do to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

import pytest

from scheduler import loop as loops
from scheduler.errors import Fenced, SchedulerError, ServerUnavailable
from scheduler.loop import Loop, Timers, end_tasks

FOR_EVER_MS = 10**9


class Steps:
    """A step that does what is planned for it, one after the other, and stops its loop after the last."""

    def __init__(self, *plan: BaseException | None) -> None:
        self.plan = list(plan)
        self.done = 0
        self.loop: Loop

    async def run_once(self) -> None:
        outcome = self.plan[self.done]
        self.done += 1
        if self.done == len(self.plan):
            self.loop.stop()
        if outcome is not None:
            raise outcome


async def played(*plan: BaseException | None, every_ms: int = 0) -> Steps:
    """Steps that went as planned."""
    steps = Steps(*plan)
    steps.loop = Loop("steps", steps.run_once, every_ms, Random())
    await steps.loop.run()
    return steps


@pytest.fixture
def no_pause_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error does not hold up the test."""
    monkeypatch.setattr(loops, "_PAUSE_AFTER_ERROR_MS", 1)


@pytest.mark.usefixtures("no_pause_after_errors")
async def test_an_error_of_one_step_does_not_end_the_loop() -> None:
    """Whatever it is."""
    steps = await played(SchedulerError("one"), OSError("two"), ValueError("three"), Fenced("four"), None)
    assert steps.done == 5


@pytest.mark.usefixtures("no_pause_after_errors")
async def test_an_error_that_lasts_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """It is worth a line again when it becomes another; one that comes and goes fills no log either."""
    down, other = ServerUnavailable("no server"), ServerUnavailable("another reason")
    caplog.set_level(logging.INFO, "scheduler")
    await played(down, down, down, other, None, down, None)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "steps: no server"),
        ("ERROR", "steps: another reason"),
        ("INFO", "steps: goes on"),
    ]


@pytest.mark.usefixtures("no_pause_after_errors")
async def test_an_error_that_lasts_is_logged_again_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks later sees it too."""
    monkeypatch.setattr(loops, "TOLD_AGAIN_MS", 0)
    caplog.set_level(logging.INFO, "scheduler")
    await played(ServerUnavailable("no server"), ServerUnavailable("no server"), None)
    assert [record.getMessage() for record in caplog.records] == [
        "steps: no server",
        "steps: no server",
        "steps: goes on",
    ]


@pytest.mark.usefixtures("no_pause_after_errors")
async def test_numbers_make_no_error_another(caplog: pytest.LogCaptureFixture) -> None:
    """Each try has its own, such as a time."""
    await played(SchedulerError("waited 5 ms"), SchedulerError("waited 71 ms"), None)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["steps: waited 5 ms"]


@pytest.mark.usefixtures("no_pause_after_errors")
async def test_only_what_nobody_expected_has_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """A server that is away is no defect of the program; to be fenced is a warning."""
    caplog.set_level(logging.INFO, "scheduler")
    await played(ServerUnavailable("no server"), ValueError("a defect"), Fenced("a newer leader"), None)
    assert [(record.levelname, record.exc_info is not None) for record in caplog.records] == [
        ("ERROR", False),
        ("ERROR", True),
        ("WARNING", False),
        ("INFO", False),
    ]


async def test_cancelling_ends_it() -> None:
    """A cancellation is no error of a step."""
    with pytest.raises(asyncio.CancelledError):
        await played(asyncio.CancelledError(), None)


async def started(every_ms: int, on_step: Callable[[int], None]) -> tuple[Loop, asyncio.Task[None]]:
    """A loop that tells the number of each step."""
    done = 0

    async def step() -> None:
        nonlocal done
        done += 1
        on_step(done)

    loop = Loop("waiting", step, every_ms, Random())
    return loop, asyncio.create_task(loop.run())


async def test_a_wake_ends_the_pause() -> None:
    """The next step begins at once, and only one."""
    steps: asyncio.Queue[int] = asyncio.Queue()
    loop, task = await started(FOR_EVER_MS, steps.put_nowait)
    assert await steps.get() == 1
    loop.wake()
    assert await steps.get() == 2
    loop.stop()
    await task
    assert steps.empty()


async def test_a_wake_during_a_step_is_not_lost() -> None:
    """What woke it may have come after the step looked."""
    loop: Loop
    steps: asyncio.Queue[int] = asyncio.Queue()

    def on_step(number: int) -> None:
        if number == 1:
            loop.wake()
        steps.put_nowait(number)

    loop, task = await started(FOR_EVER_MS, on_step)
    assert [await steps.get(), await steps.get()] == [1, 2]
    loop.stop()
    await task


async def test_a_stop_lets_the_running_step_finish() -> None:
    """Nothing is left half done."""
    entered, leave = asyncio.Event(), asyncio.Event()
    finished = []

    async def step() -> None:
        entered.set()
        await leave.wait()
        finished.append(True)

    loop = Loop("slow", step, 0, Random())
    task = asyncio.create_task(loop.run())
    await entered.wait()
    loop.stop()
    leave.set()
    await task
    assert finished == [True]


async def test_a_stop_before_the_start_runs_nothing() -> None:
    """It can be asked for at any time."""
    steps = Steps(None)
    loop = Loop("steps", steps.run_once, 0, Random())
    loop.stop()
    await loop.run()
    assert steps.done == 0


async def test_a_cancellation_that_was_swallowed_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may lose one; the task ends all the same."""
    monkeypatch.setattr(loops, "_CANCEL_AGAIN_MS", 1)
    running = asyncio.Event()
    swallowed = []

    async def stubborn() -> None:
        for_ever = asyncio.Event()
        running.set()
        try:
            await for_ever.wait()
        except asyncio.CancelledError:
            swallowed.append(True)
        await for_ever.wait()

    async def done() -> None:
        return None

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(done())]
    await running.wait()
    await end_tasks(tasks)
    assert (swallowed, [task.done() for task in tasks]) == ([True], [True, True])
    await end_tasks([])


class HandLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock goes only when it is told to."""

    now_s = 100.0

    def time(self) -> float:
        return self.now_s


def test_timers_tell_what_is_due_and_for_how_long_nothing_is() -> None:
    """Each has its own period, counted from when it was last due by the clock of the event loop."""
    with asyncio.Runner(loop_factory=HandLoop) as runner:
        runner.run(check_timers())


async def check_timers() -> None:
    """On a loop of its own."""
    clock = asyncio.get_running_loop()
    assert isinstance(clock, HandLoop)
    timers = Timers("fast", "slow")
    periods = {"fast": 1_000, "slow": 3_000}

    def due(now_s: float) -> list[str]:
        clock.now_s = now_s
        return [name for name, every_ms in periods.items() if timers.is_due(name, every_ms)]

    assert [due(now_s) for now_s in (100.0, 100.0, 100.5, 101.25, 102.0, 103.0)] == [
        ["fast", "slow"],
        [],
        [],
        ["fast"],
        [],
        ["fast", "slow"],
    ]
    assert timers.next_ms() == 1_000
