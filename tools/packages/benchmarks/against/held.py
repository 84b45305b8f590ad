"""A benchmark of a commit in a process that is held after each round, and both commits in turns."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from benchmarks.against import gated
from benchmarks.against.measures import Benchmark, Document, Figures, Pair, check_same_work, figures_of
from benchmarks.against.sides import Side, environment
from benchmarks.measure import BenchmarkFailed

ROUND_S_MAX: Final = 300.0
"""A round that is not over by then has failed."""
STOP_S_MAX: Final = 15.0
_READ_BYTES: Final = 65_536
_LIMIT_NOT_KEPT: Final = 1  # of `lifecycle` and `latency`, whose own limits are not judged here


class Heat(msgspec.Struct, frozen=True):
    """Some pairs by two fresh processes; facts: of the machine and the libraries, as each side tells them."""

    pairs: list[Pair]
    old_facts: Document
    new_facts: Document


class Held:
    """One process, as a context that ends it. `run_round` once to warm up, once for each round, then `finish`."""

    def __init__(self, side: Side, benchmark: Benchmark, rounds: int) -> None:
        self._side = side
        self._benchmark = benchmark
        self._is_held = True
        self._unread = b""
        self._last_line = ""
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with the process
        self._process = subprocess.Popen(
            [side.python, "-P", Path(gated.__file__), *benchmark.arguments(rounds)],
            cwd=side.folder,
            env=environment(side),
            stdin=subprocess.PIPE,
            stdout=self._printed,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us
        )

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run_round(self) -> None:
        """Let it run until its next round is over. Raises: BenchmarkFailed."""
        while True:
            self._go_on()
            line = self._line()
            if line is None:
                raise self._failure("ended before all rounds were over")
            if re.match(self._benchmark.round_line, line):
                return

    def finish(self) -> Document:
        """Let it run until its end; what it printed. Raises: BenchmarkFailed."""
        self._go_on()
        while self._line() is not None:
            self._go_on()
        code = self._process.wait()
        self._printed.seek(0)
        try:
            document: Document = msgspec.json.decode(self._printed.read(), type=dict)
        except msgspec.DecodeError:
            raise self._failure("printed no JSON object") from None
        if code not in (0, _LIMIT_NOT_KEPT):
            raise self._failure(f"ended with {code}")
        return document

    def _go_on(self) -> None:
        assert self._process.stdin is not None
        if self._is_held:
            with contextlib.suppress(OSError):
                self._process.stdin.write(b"\n")
                self._process.stdin.flush()
        self._is_held = False

    def _line(self) -> str | None:
        """The next line of its progress, after which it is held; None when there are no more."""
        assert self._process.stderr is not None
        descriptor, until_s = self._process.stderr.fileno(), time.monotonic() + ROUND_S_MAX
        while b"\n" not in self._unread:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, until_s - time.monotonic()))
            if not readable:
                raise self._failure(f"said nothing for {ROUND_S_MAX:g} s")
            read = os.read(descriptor, _READ_BYTES)
            if not read:
                return None
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        self._last_line, self._is_held = line.decode(errors="replace"), True
        return self._last_line

    def _failure(self, what: str) -> BenchmarkFailed:
        said = f"; its last line: {self._last_line}" if self._last_line else ""
        return BenchmarkFailed(f"{self._side.name} side, {self._side.label}: `{self._benchmark.name}` {what}{said}")

    def _end(self) -> None:
        """End the process and what it started, by force when it does not end by itself."""
        for pipe in (self._process.stdin, self._process.stderr):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._printed.close()
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def run_heat(old: Side, new: Side, benchmark: Benchmark, rounds: int, number: int) -> Heat:
    """So many pairs by two processes, of which one runs at a time: old new, new old, old new, and so on.

    Args: number, of the heat: every other one begins with the new side, so that a drift of the machine favours neither.
    Raises: BenchmarkFailed.
    """
    with Held(old, benchmark, rounds) as one, Held(new, benchmark, rounds) as other:
        for turn in range(rounds + 1):  # the first warms up
            for process in _order(one, other, turn + number):
                process.run_round()
        old_document, new_document = one.finish(), other.finish()
    check_same_work(benchmark, old_document, new_document)
    before = _figures(old, benchmark, old_document, rounds)
    after = _figures(new, benchmark, new_document, rounds)
    pairs = [Pair(*each) for each in zip(before, after, strict=True)]
    return Heat(pairs, old_document.get("facts", {}), new_document.get("facts", {}))


def _order(one: Held, other: Held, turn: int) -> Iterator[Held]:
    yield from (one, other) if turn % 2 else (other, one)


def _figures(side: Side, benchmark: Benchmark, document: Document, rounds: int) -> list[Figures]:
    try:
        return figures_of(benchmark, document, rounds)
    except BenchmarkFailed as error:
        raise BenchmarkFailed(f"{side.name} side, {side.label}: `{benchmark.name} --json`: {error}") from None
