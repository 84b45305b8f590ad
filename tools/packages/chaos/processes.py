"""A role of a scheduler in a process of its own, which can be killed, paused and woken. Its log is kept in a file."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from scheduler.config import DEFAULTS, Settings
from scheduler.errors import SchedulerError

PAUSE_MS_MAX: Final = 1_000
POLL_MS: Final = 2
LAST_LINES: Final = 3
_PR_SET_PDEATHSIG: Final = 1


def environment(settings: Settings) -> dict[str, str]:
    """Our own environment, but with these settings and no others."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SCHED_")}
    return ours | variables(settings) | {"PYTHONUNBUFFERED": "1"}


def variables(settings: Settings) -> dict[str, str]:
    """The `SCHED_*` variables that make these settings from the defaults."""
    names = [field.name for field in msgspec.structs.fields(Settings)]
    return {
        f"SCHED_{name.upper()}": str(getattr(settings, name))
        for name in names
        if getattr(settings, name) != getattr(DEFAULTS, name)
    }


class Process:
    """One process. `Process.start` starts it.

    Attributes: log, the file with what it wrote to stderr, None when that is our own; pauses, (from, until) of each
    time that it was paused, microseconds of the shared monotonic clock, in which it ran nothing at all; paused_us, the
    beginning of the pause that lasts.
    """

    def __init__(self, child: asyncio.subprocess.Process, log: Path | None) -> None:
        self.log = log
        self.pauses: list[tuple[int, int]] = []
        self.paused_us: int | None = None
        self.is_ready = False
        self._child = child
        self._heard = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, url: str, arguments: Sequence[str], settings: Settings, log: Path | None = None) -> Process:
        """Start `scheduler <arguments>` on a server; it is killed when this thread ends."""
        with contextlib.nullcontext() if log is None else log.open("wb") as stderr:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "scheduler", *arguments,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                env=environment(settings) | {"SCHED_REDIS_URL": url},  # not where `ps` shows the password
                start_new_session=True,  # Ctrl-C is for us
                preexec_fn=_die_with_parent(),
            )  # fmt: skip
        return cls(child, log)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def last_words(self) -> list[str]:
        """The end of its log."""
        return [] if self.log is None else self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]

    async def _listen(self) -> None:
        assert self._child.stdout is not None
        while line := await self._child.stdout.readline():
            self.is_ready = self.is_ready or line == b"ready\n"

    async def ready(self) -> None:
        """Wait until it says that it is ready. Raises: SchedulerError when it ends before."""
        while not self.is_ready:
            if self._heard.done():
                raise SchedulerError(f"a process ended before it was ready: {self.last_words}")
            await asyncio.sleep(POLL_MS / 1000)

    async def exit_code(self) -> int:
        """Wait for its end; negative: the number of the signal that killed it."""
        return await self._child.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended hears nothing."""
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)

    async def pause(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        self.send(signal.SIGSTOP)
        deadline_s = time.monotonic() + PAUSE_MS_MAX / 1000
        while self._child.returncode is None and time.monotonic() < deadline_s:
            if os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG) is not None:  # noqa: ASYNC222 - it does not wait
                break
            await asyncio.sleep(POLL_MS / 1000)
        self.paused_us = time.monotonic_ns() // 1_000

    def wake(self) -> None:
        """SIGCONT after `pause`."""
        if self.paused_us is not None:
            self.pauses.append((self.paused_us, time.monotonic_ns() // 1_000))
            self.paused_us = None
        self.send(signal.SIGCONT)

    async def close(self) -> None:
        """Kill it if it lives, and forget it."""
        self.send(signal.SIGKILL)
        await self.exit_code()
        await self._heard


def _die_with_parent() -> Callable[[], None] | None:
    """What the child runs before it becomes a role; what can fail is looked up before the fork."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask_for_signal() -> None:  # pragma: no cover - runs between fork and exec
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask_for_signal
