"""The one place that tells of a server which does not do what it is asked: soon, in the server's words, then rarely,
and when it is over.

Calls say when they begin, fail and end. One that fails for TOLD_MS, or gets no answer for so long, is told at WARNING,
and again every AGAIN_MS while it lasts; the end is told at INFO. That is once for all calls that meet the same error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis.exceptions import RedisError

from scheduler.clock import Clock
from scheduler.store.meanings import code_of, meaning_of, words_of
from scheduler.url import ServerUrl, parse_url

logger = logging.getLogger("scheduler.store")

T = TypeVar("T")

TOLD_MS: Final = 1_000
AGAIN_MS: Final = 30_000
LOOK_MS: Final = 250
IDLE_MS: Final = 1_000  # after so long without another call of it, what a reader met last is no news
SILENT: Final = "silent"
MISSING: Final = "missing"
_PHRASES: Final = {
    SILENT: ("does not answer", "answers again"),
    MISSING: ("is not ready", "is ready"),
}
"""code -> how it is told, and how its end; every other code is one that the server answers."""


class Call:
    """A call that is under way, or fails again and again.

    since_ms: when it began; for one that blocks, when its answer is due. code, words: of its last failure, empty before
    there is one. is_told: whether it is patient enough for that; otherwise its own error tells it soon. due_ms: of a
    reader that failed, when the answer to its next call is due. idle_ms: since when it has not called again.
    """

    __slots__ = ("code", "due_ms", "idle_ms", "is_told", "is_well", "since_ms", "words")

    def __init__(self, since_ms: float, is_told: bool) -> None:
        self.since_ms = since_ms
        self.is_told = is_told
        self.is_well = False
        self.code = self.words = ""
        self.due_ms = float("-inf")
        self.idle_ms = float("inf")

    def failed(self, error: BaseException) -> None:
        """It is to be tried again."""
        self.code, self.words = code_of(error), words_of(error)

    def lasts(self, now_ms: float, heard_ms: float) -> bool:
        """Whether what it meets is to be told. heard_ms: when something came that may be a part of its answer."""
        if not self.is_told or now_ms - self.since_ms < TOLD_MS:
            return False
        if not self.code:
            return now_ms - heard_ms >= TOLD_MS
        return now_ms >= self.due_ms and now_ms - self.idle_ms < IDLE_MS


class _Told:
    """What was told. is_over: some call that met it got through."""

    def __init__(self, since_ms: float, told_ms: float) -> None:
        self.since_ms = since_ms
        self.told_ms = told_ms
        self.is_over = False


class Telling:
    """Tells of one server. Args: url; clock, the process's own. Several connections of a process can share it."""

    def __init__(self, url: str | ServerUrl, clock: Clock) -> None:
        self.place = str(parse_url(url))
        self.clock = clock
        self._watches: set[Watch] = set()
        self._told: dict[str, _Told] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looked_ms = 0.0
        self._refused_ms = float("-inf")  # when the server last answered that it does not do something

    def watch(self, pieces: Callable[[], int] = lambda: 0) -> Watch:
        """The calls of one connection. pieces: of replies that have come in so far."""
        watch = Watch(self, pieces)
        self._watches.add(watch)
        return watch

    def close(self, watch: Watch) -> None:
        """Nobody waits for its calls any more."""
        self._watches.discard(watch)
        if self._timer is not None and not self._watches:
            self._timer.cancel()
            self._timer = None

    def arm(self) -> None:
        """Look at the calls soon, and for as long as there are some."""
        if self._timer is None:
            self._looked_ms = self.clock.ms()
            self._timer = asyncio.get_running_loop().call_later(LOOK_MS / 1000, self._look)

    def answered(self, call: Call, *, is_well: bool) -> None:
        """A call has ended, or got another answer than before: what it met may be over."""
        for code, told in self._told.items():
            told.is_over = told.is_over or code == SILENT or (is_well and code == call.code)
        self._tell_ends(self._lasting(self.clock.ms()))

    def refused(self, call: Call, *, is_news: bool) -> None:
        """The server has answered a call, if only that it does not do it."""
        self._refused_ms = self.clock.ms()
        if is_news or SILENT in self._told:
            self.answered(call, is_well=False)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is told at the moment."""
        return not self._told

    def _look(self) -> None:
        self._timer = None
        now_ms = self.clock.ms()
        for watch in self._watches:
            watch.look(now_ms)
        if now_ms - self._looked_ms < 4 * LOOK_MS:  # else it is we who did not listen: the answers may be here
            lasting = self._lasting(now_ms)
            for code, (since_ms, words) in lasting.items():
                self._tell(code, since_ms, words, now_ms)
            self._tell_ends(lasting)
        if any(watch.under_way for watch in self._watches):
            self.arm()

    def _lasting(self, now_ms: float) -> dict[str, tuple[float, str]]:
        """code -> (since when, words) of what calls meet for too long.

        One who refuses some calls is not silent, though others get no answer: a busy server keeps those that block.
        """
        lasting: dict[str, tuple[float, str]] = {}
        answers = now_ms - self._refused_ms < TOLD_MS
        for watch in self._watches:
            for call in watch.under_way:
                if call.lasts(now_ms, watch.heard_ms) and not (answers and call.code in ("", SILENT)):
                    code, words = call.code or SILENT, call.words or "no answer comes"
                    since_ms, first = lasting.get(code, (call.since_ms, words))
                    lasting[code] = min(since_ms, call.since_ms), first if call.since_ms >= since_ms else words
        return lasting

    def _tell(self, code: str, since_ms: float, words: str, now_ms: float) -> None:
        told = self._told.get(code)
        if told is None:
            self._told[code] = _Told(since_ms, now_ms)
        elif now_ms - told.told_ms < AGAIN_MS:
            return
        else:
            told.told_ms, since_ms = now_ms, told.since_ms
        what, _ = _PHRASES.get(code, ("refuses", ""))
        for_s = round((now_ms - since_ms) / 1000)
        logger.warning("the server at %s %s, for %d s now: %s; trying on", self.place, what, for_s, words)

    def _tell_ends(self, lasting: dict[str, tuple[float, str]]) -> None:
        now_ms = self.clock.ms()
        for code, told in list(self._told.items()):
            if code in lasting:
                continue
            if told.is_over:
                _, over = _PHRASES.get(code, ("", f"takes again what it refused ({code})"))
                logger.info("the server at %s %s, after %.1f s", self.place, over, (now_ms - told.since_ms) / 1000)
            elif now_ms - told.told_ms < AGAIN_MS:
                continue  # who met it has given up; perhaps it is met again
            del self._told[code]


class Watch:
    """The calls of one connection: those under way."""

    def __init__(self, telling: Telling, pieces: Callable[[], int]) -> None:
        self.under_way: set[Call] = set()
        self.heard_ms = float("-inf")
        self._heard = -1
        self._pieces = pieces
        self._telling = telling

    def begin(self, now_ms: float, is_told: bool) -> Call:
        """A call begins, or one that blocks has its answer due. `end` must follow."""
        call = Call(now_ms, is_told)
        self.under_way.add(call)
        self._telling.arm()
        return call

    def look(self, now_ms: float) -> None:
        """Note whether something has come since the last look."""
        pieces = self._pieces()
        if pieces != self._heard:
            self._heard, self.heard_ms = pieces, now_ms

    def failed(self, call: Call, error: BaseException, is_told: bool) -> None:
        """It is to be tried again, patiently or not."""
        before = call.code
        call.failed(error)
        call.is_told = is_told
        if call.code != SILENT:
            self._telling.refused(call, is_news=call.code != before)

    def end(self, call: Call) -> None:
        """It has its answer, or is given up."""
        self.under_way.discard(call)
        if call.is_well and not self._telling.is_quiet:
            self._telling.answered(call, is_well=True)

    def close(self) -> None:
        """Nobody waits for any of them."""
        self.under_way.clear()
        self._telling.close(self)


class Series:
    """Calls of one reader, which come again and again: one that fails lasts until one gets through.

    Args: watch; clock, the process's own; judge, gives what is behind an error, or raises what the call ends with when
    another one is of no use.
    """

    def __init__(self, watch: Watch, clock: Clock, judge: Callable[[Exception], Awaitable[Exception]]) -> None:
        self._watch = watch
        self._clock = clock
        self._judge = judge
        self._failing: Call | None = None

    async def run(self, answer: Awaitable[T], block_ms: float) -> T:
        """One call, whose answer is due in `block_ms` at the latest. Raises: as the call does."""
        now_ms = self._clock.ms()
        call = self._failing or self._watch.begin(now_ms + block_ms, is_told=True)
        call.due_ms, call.idle_ms = now_ms + block_ms + TOLD_MS, float("inf")
        try:
            value = await answer
        except (RedisError, OSError) as error:
            await self._failed(call, error)
            raise
        except BaseException:
            if call is not self._failing:
                self._watch.end(call)
            raise
        for each in {call, self._failing or call}:
            each.is_well = True
            self._watch.end(each)
        self._failing = None
        return value

    def close(self) -> None:
        """No call follows."""
        if self._failing is not None:
            self._watch.end(self._failing)
            self._failing = None

    async def _failed(self, call: Call, error: Exception) -> None:
        if self._failing not in (None, call):
            self._watch.end(call)
        else:
            self._failing = call
            call.idle_ms = self._clock.ms()
            call.due_ms = float("-inf")
            call.since_ms = min(call.since_ms, call.idle_ms)
        try:
            error = await self._judge(error)
        except BaseException:
            self.close()
            raise
        if meaning_of(error) == "call":  # the server is in order; whoever called tells of it
            (self._failing or call).is_well = True
            self.close()
            return
        self._watch.failed(self._failing or call, error, is_told=True)
