"""Where this process spends its CPU time: looks at the stack every few milliseconds of it.

Sampling and not tracing, which would make small functions look dear. What C code takes (the parser, the codecs, the
socket) counts as time of the function that called it.
"""

from __future__ import annotations

import signal
from collections import Counter
from types import FrameType, TracebackType
from typing import Final, NamedTuple

EVERY_S: Final = 0.001
"""Wished for; where the system's clock ticks at 250 Hz it becomes every 4 ms."""


class Function(NamedTuple):
    """A function by its module and its name in it."""

    module: str
    name: str

    @property
    def package(self) -> str:
        """The library that it belongs to."""
        return self.module.partition(".")[0]

    @property
    def is_ours(self) -> bool:
        """Whether it is part of what is measured. The command line and the benchmark lie under everything."""
        return self.package == "scheduler" and not self.module.startswith("scheduler.cli.")


EVENT_LOOP: Final = Function("asyncio", "(event loop)")
"""Stands for all that runs while no function of ours is on the stack."""


class Sampler:
    """Counts samples while it is entered, which may be again and again. In the main thread, one at a time.

    Attributes: samples, all; own, by the function that ran; charged, by the innermost function of ours on the stack,
    so that it carries the libraries that it uses; within, by each function of ours on the stack, once.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.own: Counter[Function] = Counter()
        self.charged: Counter[Function] = Counter()
        self.within: Counter[Function] = Counter()

    def __enter__(self) -> Sampler:
        self._handler = signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._handler)

    def _look(self, _: int, frame: FrameType | None) -> None:
        self.samples += 1
        stack = []
        while frame is not None:
            stack.append(Function(frame.f_globals.get("__name__", "?"), frame.f_code.co_qualname))
            frame = frame.f_back
        ours = [function for function in stack if function.is_ours] or [EVENT_LOOP]
        self.own.update(stack[:1])
        self.charged[ours[0]] += 1
        self.within.update(set(ours))
