"""The measured part of a round: time, CPU time of both sides, and what the server says of each command."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from scheduler.errors import SchedulerError
from scheduler.store.store import Store

STALL_S: Final = 10.0
"""A round in which nothing moves for so long has failed."""
_US: Final = 1_000_000
_PROC_STAT: Final = Path("/proc/stat")
_IDLE_COLUMNS: Final = (3, 4)  # of the counters of /proc/stat: idle, and waiting for disks
_COLUMNS: Final = 8  # those after count the same time again
_COMMAND: Final = "cmdstat_"


class BenchmarkFailed(SchedulerError):
    """A round did not do the work that it is measured for."""


class CommandUse(msgspec.Struct, frozen=True):
    """How often the server ran a command, and for how long in all; that of EVALSHA contains those of its scripts."""

    calls: int
    us: int


class ServerCounters(msgspec.Struct, frozen=True):
    """What the server has used since its start."""

    cpu_us: float
    commands: Mapping[str, CommandUse]


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One measured part. CPU times in microseconds, of all jobs together; commands, by name in lower case.

    others_cpu_us: of all other processes of this machine, None where it is not told.
    """

    jobs: int
    seconds: float
    server_cpu_us: float
    client_cpu_us: float
    others_cpu_us: float | None
    commands: Mapping[str, CommandUse]

    @property
    def jobs_per_s(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds

    @property
    def server_us(self) -> float:
        """CPU microseconds of the server a job."""
        return self.server_cpu_us / self.jobs

    @property
    def others_cores(self) -> float | None:
        """How many cores other processes kept busy. On a machine with few, they slow down what is measured."""
        return None if self.others_cpu_us is None else self.others_cpu_us / _US / self.seconds

    @property
    def client_us(self) -> float:
        """CPU microseconds of this process a job."""
        return self.client_cpu_us / self.jobs


class Stopwatch:
    """Runs from `start` to `stop`, in this process alone; the server is asked before and after.

    Args: before, of the server, as close to the start as may be.
    """

    def __init__(self, before: ServerCounters) -> None:
        self._before = before
        self._from_s = self._from_cpu_ns = 0.0
        self._seconds = self._cpu_us = 0.0
        self._from_busy_us: float | None = None
        self._busy_us: float | None = None

    def start(self) -> None:
        """Begin; garbage of the preparations is none of the measured part's work."""
        gc.collect()
        self._from_busy_us = busy_us()
        self._from_cpu_ns = time.process_time_ns()
        self._from_s = time.perf_counter()

    def stop(self) -> None:
        """End."""
        self._seconds = time.perf_counter() - self._from_s
        self._cpu_us = (time.process_time_ns() - self._from_cpu_ns) / 1_000
        until_us = busy_us()
        if self._from_busy_us is not None and until_us is not None:
            self._busy_us = until_us - self._from_busy_us

    def round(self, jobs: int, after: ServerCounters) -> Round:
        """What was measured between start and stop, which took so many jobs."""
        none = CommandUse(0, 0)
        used = {
            name: CommandUse(use.calls - self._before.commands.get(name, none).calls, use.us - before.us)
            for name, use in after.commands.items()
            if use.calls > (before := self._before.commands.get(name, none)).calls
        }
        server_us = after.cpu_us - self._before.cpu_us
        return Round(
            jobs=jobs,
            seconds=self._seconds,
            server_cpu_us=server_us,
            client_cpu_us=self._cpu_us,
            others_cpu_us=None if self._busy_us is None else max(0.0, self._busy_us - self._cpu_us - server_us),
            commands=used,
        )


async def server_counters(store: Store) -> ServerCounters:
    """Ask the server what it has used so far."""
    client = store.connection.commands
    commands = await client.info("commandstats")
    cpu = await client.info("cpu")
    return ServerCounters(
        cpu_us=(cpu["used_cpu_user"] + cpu["used_cpu_sys"]) * _US,
        commands={name.removeprefix(_COMMAND): CommandUse(use["calls"], use["usec"]) for name, use in commands.items()},
    )


async def facts(store: Store) -> dict[str, str | int]:
    """The machine and the versions that figures depend on."""
    info = await store.connection.commands.info("server")
    name = str(info.get("server_name", "redis"))
    return machine(f"{name} {info.get(f'{name}_version', info.get('redis_version', '?'))}")


def machine(server: str = "no server") -> dict[str, str | int]:
    """The same, with a server or without one, and the day."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.release()}",
        "server": server,
        "python": platform.python_version(),
        "redis-py": metadata.version("redis"),
        "hiredis": _version("hiredis"),
        "uvloop": _version("uvloop") if "uvloop" in sys.modules else "no",
    }


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Let no garbage be collected: to look at all records of a load would take longer than what is measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def busy_us() -> float | None:
    """CPU time that all processes of this machine have used, where Linux tells."""
    try:
        first_line = _PROC_STAT.read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return None
    ticks = [int(word) for word in first_line.split()[1 : 1 + _COLUMNS]]
    busy = sum(count for column, count in enumerate(ticks) if column not in _IDLE_COLUMNS)
    return busy * _US / os.sysconf("SC_CLK_TCK")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "no"


def _cpu_name() -> str:
    """What the processor calls itself, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
