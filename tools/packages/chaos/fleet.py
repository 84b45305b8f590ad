"""The processes of a chaos run: each role has seats, and somebody always takes the place of whoever is gone."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from chaos.acts import ROLES, Act, Kind, Role, Seat, State
from chaos.processes import Process
from scheduler.config import Settings
from scheduler.loop import end_tasks

logger = logging.getLogger("scheduler.chaos")

DRAIN_MS: Final = 3_000
STOP_MS_MAX: Final = 15_000
READY_MS_MAX: Final = 30_000
GOODBYE_MS: Final = 1_000
"""How long a role that was replaced goes on beside its successor, with what it remembers, before it is told to stop."""

Fate = Literal["serves", "killed", "replaced", "stopped", "orphaned"]
"""What is meant to become of a process: how it has to end, see _MEANT.

replaced: a node that woke beside a later process of its name ends by itself; orphaned: but that one is lost with the
name, so that it may serve again.
"""
_MEANT: Final[dict[Fate, tuple[int, ...]]] = {
    "serves": (),
    "killed": (-signal.SIGKILL,),
    "replaced": (1,),
    "stopped": (0,),
    "orphaned": (0, 1),
}


class Counts(msgspec.Struct, frozen=True):
    """How many processes of each role."""

    manager: int = 2
    dispatcher: int = 3
    reaper: int = 2
    node: int = 8


class NodeShape(msgspec.Struct, frozen=True):
    """What every node offers. pairs: (source, target) languages."""

    capacity: int
    pairs: tuple[tuple[str, str], ...]


class Life(msgspec.Struct):
    """One process in its seat. name: of the process; node: its id in the fleet, else empty; record: its own file."""

    name: str
    node: str
    seat: str
    role: Role
    process: Process
    record: Path | None
    fate: Fate = "serves"

    @property
    def state(self) -> State:
        """What it can be hit by."""
        if self.fate == "stopped":
            return "absent"
        if self.process.paused_us is not None:
            return "paused"
        return "running" if self.process.is_ready else "starting"


class Fleet:
    """All processes. `start` first, `close` at the end whatever happened.

    Attributes: lives, every process that ever was, oldest first; unexpected, a line for each that ended as it should
    not; acts, how often each (role, kind) was done.
    """

    def __init__(self, url: str, settings: Settings, directory: Path, counts: Counts, shape: NodeShape) -> None:
        self.lives: list[Life] = []
        self.unexpected: list[str] = []
        self.acts: Counter[tuple[Role, Kind]] = Counter()
        self._url = url
        self._settings = settings
        self._directory = directory
        self._counts = counts
        self._shape = shape
        self._seats: dict[str, Life] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._started_s = time.monotonic()

    @property
    def nodes(self) -> list[str]:
        """The ids of all nodes that ever were."""
        return list(dict.fromkeys(life.node for life in self.lives if life.node))

    @property
    def seats(self) -> dict[str, Seat]:
        """Every seat, by name."""
        return {name: Seat(life.role, life.state) for name, life in self._seats.items()}

    # ---- life ----

    async def start(self) -> None:
        """Start every process and wait until each is ready."""
        for role in ROLES:
            for number in range(1, getattr(self._counts, role) + 1):
                await self._fill(f"{role}{number}", role)
        await self.ready()
        self._started_s = time.monotonic()

    async def ready(self) -> None:
        """Wait until every seat has a process that is ready. Raises: TimeoutError; SchedulerError when one ends."""
        async with asyncio.timeout(READY_MS_MAX / 1000):
            await asyncio.gather(*(life.process.ready() for life in self._seats.values()))

    async def _fill(self, seat: str, role: Role, *, renamed: bool = False) -> Life:
        """Start a process in a seat. renamed: a node goes by a name that no node has had."""
        name = f"{seat}.{1 + sum(life.seat == seat for life in self.lives)}"
        known = self._seats[seat].node if seat in self._seats else name
        node = "" if role != "node" else name if renamed else known
        record = self._directory / f"{name}.jsonl" if node else None
        arguments = [role, *(self._node_arguments(node, record) if record else ())]
        process = await Process.start(self._url, arguments, self._settings, self._directory / f"{name}.log")
        life = Life(name, node, seat, role, process, record)
        self.lives.append(life)
        self._seats[seat] = life
        self._watchers.append(asyncio.create_task(self._watch(life)))
        return life

    def _node_arguments(self, node_id: str, record: Path) -> Sequence[str]:
        pairs = [part for source, target in self._shape.pairs for part in ("--pair", f"{source}:{target}")]
        capacity, drain_ms = str(self._shape.capacity), str(DRAIN_MS)
        return ["--id", node_id, "--capacity", capacity, *pairs, "--record", str(record), "--drain-ms", drain_ms]

    async def _watch(self, life: Life) -> None:
        """Note an end that nobody meant, and let somebody take the place."""
        code = await life.process.exit_code()
        if code not in _MEANT[life.fate]:
            last = " | ".join(life.process.last_words)
            self.unexpected.append(f"{life.name} ({life.fate}) ended with {code}: {last}")
            self._tell(f"{life.name} ended by itself with {code}")
        if life.fate == "serves" and self._seats[life.seat] is life:
            await self._fill(life.seat, life.role)

    async def close(self) -> None:
        """Kill whatever lives."""
        try:
            await end_tasks(self._watchers)
        finally:
            await asyncio.gather(*(life.process.close() for life in self.lives))

    # ---- unrest ----

    async def perform(self, act: Act) -> None:
        """Do it, and what follows from it: a pause ends two leases later."""
        life = self._seats[act.seat]
        self.acts[life.role, act.kind] += 1
        if act.kind in ("kill", "lose"):
            self._kill(life)
            successor = await self._fill(life.seat, life.role, renamed=act.kind == "lose")
            self._tell(f"{life.name} is killed, {successor.name} takes its place{_named(successor)}")
        elif act.kind in ("stop", "leave"):
            await self._say_goodbye(life, 2 * self._lease_ms(life.role) if act.kind == "leave" else 0)
        else:
            await self._put_to_sleep(life, act, 2 * self._lease_ms(life.role))

    async def _say_goodbye(self, life: Life, empty_ms: int) -> None:
        """Tell one to end in order; a new process takes its place, at once or later."""
        life.fate = "stopped"
        life.process.send(signal.SIGTERM)
        if empty_ms:
            self._tell(f"{life.name} is told to stop, its place stays empty for {empty_ms} ms")
            await asyncio.sleep(empty_ms / 1000)
        successor = await self._fill(life.seat, life.role)
        self._tell(f"{life.name} was told to stop, {successor.name} takes its place")

    async def _put_to_sleep(self, life: Life, act: Act, pause_ms: int) -> None:
        """Pause one; a new process may take its place meanwhile."""
        await life.process.pause()
        if act.kind == "pause":
            self._tell(f"{life.name} is paused for {pause_ms} ms{_named(life)}")
            await asyncio.sleep(pause_ms / 1000)
            if life.fate == "serves":
                self._tell(f"{life.name} wakes")
                life.process.wake()
            return
        successor = await self._fill(life.seat, life.role)
        self._tell(f"{life.name} is paused for {pause_ms} ms, {successor.name} takes its place{_named(successor)}")
        await asyncio.sleep(pause_ms / 1000)
        if act.wakes:
            await self._wake_replaced(life)
        else:
            self._tell(f"{life.name} is killed as it lies")
            self._kill(life)

    async def _wake_replaced(self, life: Life) -> None:
        """Let one go on that has a successor. A node finds that out by itself; the others are told to stop."""
        self._tell(f"{life.name} wakes beside its successor")
        life.fate = "replaced" if life.role == "node" else "stopped"
        life.process.wake()
        if life.role != "node":
            await asyncio.sleep(GOODBYE_MS / 1000)
            life.process.send(signal.SIGTERM)

    def _kill(self, life: Life) -> None:
        life.fate = "killed"
        life.process.send(signal.SIGKILL)

    def _lease_ms(self, role: Role) -> int:
        """How long what a role holds outlives its silence."""
        settings = self._settings
        leases_ms = {"manager": settings.leader_lease_ms, "dispatcher": settings.partition_lease_ms}
        return leases_ms.get(role, settings.lease_ms)

    def _tell(self, what: str) -> None:
        logger.info("%6.1f s  %s", time.monotonic() - self._started_s, what)

    # ---- what hits everybody ----

    async def kill_all(self, role: Role) -> None:
        """Kill every process of a role at once, and let others take the places."""
        lives = [life for life in self._seats.values() if life.role == role]
        for life in lives:
            self._kill(life)
        for life in lives:
            self.acts[role, "kill"] += 1
            successor = await self._fill(life.seat, role)
            self._tell(f"{life.name} is killed, {successor.name} takes its place")

    def node_in(self, seat: str) -> str:
        """The id of the node in a seat."""
        return self._seats[seat].node

    async def pause_one(self, seat: str, pause_ms: int) -> None:
        """Let one stand still for so long."""
        process = self._seats[seat].process
        await process.pause()
        await asyncio.sleep(pause_ms / 1000)
        process.wake()

    async def pause_all(self) -> None:
        """Let everybody stand still, until `wake_all`."""
        await asyncio.gather(*(life.process.pause() for life in self._seats.values()))
        self._tell("all are paused")

    def wake_all(self) -> None:
        """Let everybody go on."""
        for life in self._seats.values():
            life.process.wake()
        self._tell("all wake")

    async def restart_all(self) -> None:
        """Tell all to stop at once, and start all again when all have ended."""
        lives = list(self._seats.values())
        for life in lives:
            # A node that gave jobs back at its end finds no leader that lets it leave: it says so, with 1.
            life.fate = "orphaned" if life.role == "node" else "stopped"
            life.process.send(signal.SIGTERM)
        self._tell("all are told to stop")
        await self._end(lives)
        for life in lives:
            await self._fill(life.seat, life.role)
        self._tell("all are started again")
        await self.ready()

    # ---- the end ----

    async def stop(self) -> None:
        """Wait for those that were replaced, then stop all in order: dispatchers, nodes, reapers, managers."""
        serving = {life.node for life in self._seats.values()}
        for life in self.lives:
            if life.fate == "replaced" and life.node not in serving:
                life.fate = "orphaned"
                life.process.send(signal.SIGTERM)
        await self._end([life for life in self.lives if life.fate in ("replaced", "stopped", "orphaned")])
        roles: tuple[Role, ...] = ("dispatcher", "node", "reaper", "manager")
        for role in roles:
            lives = [life for life in self._seats.values() if life.role == role]
            for life in lives:
                life.fate = "stopped"
                life.process.send(signal.SIGTERM)
            await self._end(lives)
        await asyncio.gather(*self._watchers)

    async def _end(self, lives: Sequence[Life]) -> None:
        """Wait for the end of these; whoever does not end is killed, which `_watch` notes."""
        try:
            async with asyncio.timeout(STOP_MS_MAX / 1000):
                await asyncio.gather(*(life.process.exit_code() for life in lives))
        except TimeoutError:
            for life in lives:
                life.process.send(signal.SIGKILL)


def _named(life: Life) -> str:
    return f" as node {life.node}" if life.node else ""
