"""Who keeps the machine's cores busy while a load runs: the server, the dispatchers, this process, and all others."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.measure import busy_us, server_counters
from scheduler.store.store import Store

_US: Final = 1_000_000
_USER, _SYSTEM = 11, 12  # fields of /proc/<pid>/stat behind the name of the process: CPU time in ticks


class Cores(msgspec.Struct, frozen=True):
    """Cores kept busy on average; None where the system does not tell. bench: this process, producer and nodes."""

    server: float
    dispatchers: float | None
    bench: float
    others: float | None

    def words(self) -> str:
        """In a line."""
        named = {"server": self.server, "dispatchers": self.dispatchers, "bench": self.bench, "others": self.others}
        return ", ".join(f"{name} {'-' if value is None else f'{value:.2f}'}" for name, value in named.items())


class CoreWatch:
    """Looks at the beginning, `begin`, and at the end, `cores`."""

    def __init__(self, store: Store, dispatcher_pids: Sequence[int]) -> None:
        self._store = store
        self._pids = dispatcher_pids
        self._before: tuple[float, float, float | None, float, float | None] = (0, 0, None, 0, None)

    async def begin(self) -> None:
        """From here on."""
        self._before = await self._look()

    async def cores(self) -> Cores:
        """Until here."""
        before, after = self._before, await self._look()
        seconds = after[0] - before[0]
        server, dispatchers, bench, machine = (
            None if until is None or since is None else (until - since) / _US / seconds
            for since, until in zip(before[1:], after[1:], strict=True)
        )
        others = None
        if machine is not None and dispatchers is not None:
            others = round(max(0.0, machine - (server or 0) - dispatchers - (bench or 0)), 2)
        return Cores(
            round(server or 0, 2), None if dispatchers is None else round(dispatchers, 2), round(bench or 0, 2), others
        )

    async def _look(self) -> tuple[float, float, float | None, float, float | None]:
        """When, then CPU microseconds so far: of the server, the dispatchers, this process, the machine."""
        server_us = (await server_counters(self._store)).cpu_us
        each_us = [process_us(pid) for pid in self._pids]
        dispatchers_us = None if None in each_us else sum(us or 0.0 for us in each_us)
        return time.monotonic(), server_us, dispatchers_us, time.process_time_ns() / 1_000, busy_us()


def process_us(pid: int) -> float | None:
    """CPU time of a process, where Linux tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    except OSError:
        return None
    return (int(fields[_USER]) + int(fields[_SYSTEM])) * _US / os.sysconf("SC_CLK_TCK")
