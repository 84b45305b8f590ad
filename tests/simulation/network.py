"""The network between processes and the server: bytes take time, and what a fault names happens to them.

A fault waits for the first command of its kind that a process sends at its time or later, so it hits what it is meant
for also when the process sends a command more. Connections are redis-py's own, down to the bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Final, Literal

import msgspec
from redis.asyncio.connection import Connection as RedisConnection

from scheduler.store.fast_connection import HiredisMixin
from scheduler.store.scripts import load_scripts
from tests.simulation.server import Server
from tests.simulation.world import Process, World
from tests.transport import InProcessTransport

LATENCY_S: Final = (0.000_05, 0.000_5)
SCRIPTS: Final = {script.sha.encode(): script.name for script in load_scripts().values()}

Wire = Literal[
    "lost_before", "lost_after", "late", "late_reply", "delayed", "hang", "twice", "dies_before", "dies_after"
]  # fmt: skip
WIRES: Final[tuple[Wire, ...]] = ("lost_before", "lost_after", "late", "late_reply", "delayed", "hang", "twice")
"""What happens to a command.

lost_before: the connection is reset, and the server never saw it. lost_after: the server did it, then the connection is
reset. late: it arrives later, and so does all that comes after it. late_reply: the same of its answer. delayed: the
connection is reset at once, and the server does the command later. hang: neither an answer nor an end comes. twice: the
server does it, and once more, as when its sender repeats it after a lost answer; that is the answer that it gets.
"""
DEATHS: Final[tuple[Wire, ...]] = ("dies_before", "dies_after")
"""The process that sends it is killed, and the server never saw the command, or does it."""


class CommandFault(msgspec.Struct, frozen=True):
    """What happens to the first `call` (`*`: any) that a process sends at `at_s` or later. s: how late it is."""

    at_s: float
    call: str
    wire: Wire
    s: float = 0.0


def call_of(data: bytes) -> str:
    """What a command is called: its script's name, or its own in small letters; of several, the first."""
    _, _, name, rest = data.split(b"\r\n", 3)
    if name == b"EVALSHA":
        sha = rest.split(b"\r\n", 2)[1]
        return SCRIPTS.get(sha, "evalsha")
    return name.decode().lower()


class Wires:
    """What a process has to do with the network.

    faults: that wait for their command. cut_until_s: nothing goes out or comes in. troubled_until_s: until when
    something of it was late or lost; a process is not to blame for what it cannot know.
    """

    def __init__(self, process: Process, chance: Random) -> None:
        self.process = process
        self.chance = chance
        self.faults: list[CommandFault] = []
        self.cut_until_s = 0.0
        self.troubled_until_s = 0.0
        self.links: list[Link] = []
        self.sent = 0

    def trouble(self, for_s: float) -> None:
        """Something of it is late or lost for so long."""
        self.troubled_until_s = max(self.troubled_until_s, self.process.world.now_s + for_s)


class Network:
    """down_until_s: nobody can connect until then. struck: told of each fault that happens. kill: kills a process."""

    def __init__(self, world: World, server: Server) -> None:
        self.world = world
        self.server = server
        self.down_until_s = 0.0
        self.struck: Callable[[Process, CommandFault, str], None] = lambda process, fault, call: None
        self.kill: Callable[[Process], None] = lambda process: process.kill()
        self._wires: dict[Process, Wires] = {}

    def wires(self, process: Process) -> Wires:
        """Those of a process."""
        found = self._wires.get(process)
        if found is None:
            found = self._wires[process] = Wires(process, self.world.chance("net", process.name))
            process.on_death.append(lambda: self.reset(process))
        return found

    def reset(self, process: Process) -> None:
        """All connections of a process end."""
        for link in list(self.wires(process).links):
            link.reset("reset")

    def reset_all(self) -> None:
        """The server is gone for a moment: every connection ends."""
        for process in list(self._wires):
            self.reset(process)

    def cut(self, process: Process, for_s: float) -> None:
        """Nothing goes out or comes in; what is on its way arrives afterwards, if somebody still waits for it."""
        wires = self.wires(process)
        wires.cut_until_s = max(wires.cut_until_s, self.world.now_s + for_s)
        wires.trouble(for_s)

    def classes(self, process: Process) -> dict[Any, Any]:
        """The connections of a process, in the place of redis-py's."""
        network, wires = self, self.wires(process)

        class SimulatedConnection(HiredisMixin, RedisConnection):
            async def _connect(self) -> None:
                async with asyncio.timeout(self.socket_connect_timeout):
                    self._reader, self._writer = await network._open(wires)

        return {RedisConnection: SimulatedConnection}

    async def _open(self, wires: Wires) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        await asyncio.sleep(max(0.0, wires.cut_until_s - self.world.now_s) + 2 * wires.chance.uniform(*LATENCY_S))
        if self.world.now_s < self.down_until_s:
            raise ConnectionRefusedError("the server is down")
        loop = wires.process
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        link = Link(self, wires, protocol)
        protocol.connection_made(link)
        return reader, asyncio.StreamWriter(link, protocol, reader, loop)


class Link(InProcessTransport):
    """One connection, seen from its process."""

    def __init__(self, network: Network, wires: Wires, protocol: asyncio.StreamReaderProtocol) -> None:
        super().__init__()
        self._network = network
        self._world = network.world
        self._wires = wires
        self._protocol = protocol
        self._client = network.server.connect(self._replied)
        self._up_s = self._down_s = self._world.now_s
        self._closing = False
        self._mute = False
        self._lose_reply = False
        self._reply_late_s = 0.0
        wires.links.append(self)

    # ---- as a transport ----

    def write(self, data: Any) -> None:
        self.writelines([data])

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        if self._closing or not self._wires.process.is_alive:
            return
        data = b"".join(list_of_data)
        if not data:
            return
        self._wires.sent += 1
        fault = self._fault(data) if self._wires.faults else None
        if fault is None:
            self._send(data, 0.0)
        else:
            self._strike(data, fault)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._end()
            self._wires.process.call_soon(self._protocol.connection_lost, None)

    abort = close

    # ---- what happens to it ----

    def _fault(self, data: bytes) -> CommandFault | None:
        """The first that waits for this command, if its time has come."""
        call = call_of(data)
        for fault in self._wires.faults:
            if fault.at_s > self._world.now_s:
                return None
            if fault.call in ("*", call):
                self._wires.faults.remove(fault)
                self._network.struck(self._wires.process, fault, call)
                return fault
        return None

    def _strike(self, data: bytes, fault: CommandFault) -> None:
        self._wires.trouble(fault.s)
        match fault.wire:
            case "lost_before":
                self.reset("lost before")
            case "lost_after":
                self._lose_reply = True
                self._send(data, 0.0)
            case "late":
                self._send(data, fault.s)
            case "late_reply":
                self._reply_late_s = fault.s
                self._send(data, 0.0)
            case "delayed":
                server = self._network.server
                ghost = server.connect(lambda reply: None)
                self._world.call_at(self._world.now_s + fault.s, ghost.feed, data)
                self.reset("lost before")
            case "twice":
                self._client.doubles = True
                self._send(data, 0.0)
            case "dies_before" | "dies_after":
                if fault.wire == "dies_after":
                    self._send(data, 0.0)
                self._mute = True
                self._world.call_at(self._world.now_s, self._network.kill, self._wires.process)
            case "hang":
                self._mute = True
                self._wires.trouble(10.0)
                self._send(data, 0.0)

    def reset(self, why: str) -> None:
        """It ends without having been closed."""
        if not self._closing:
            self._end()
            self._wires.process.do(self._protocol.connection_lost, ConnectionResetError(why))

    def _end(self) -> None:
        self._closing = True
        self._wires.links.remove(self)
        server, client = self._network.server, self._client
        # What was sent before arrives before the end does.
        self._world.call_at(max(self._up_s, self._world.now_s), server.forget, client)

    # ---- bytes ----

    def _pass(self, before_s: float, late_s: float) -> float:
        """When bytes that are sent now arrive, behind what went before."""
        start_s = max(self._world.now_s + late_s, self._wires.cut_until_s)
        return max(start_s + self._wires.chance.uniform(*LATENCY_S), before_s)

    def _send(self, data: bytes, late_s: float) -> None:
        self._up_s = self._pass(self._up_s, late_s)
        self._world.call_at(self._up_s, self._arrive, data)

    def _arrive(self, data: bytes) -> None:
        if self._closing and self._wires.cut_until_s > self._world.now_s:
            return  # it would have been sent again after the cut, but nobody waits for it any more
        self._client.feed(data)

    def _replied(self, data: bytes) -> None:
        if self._closing or self._mute:
            return
        if self._lose_reply:
            self._lose_reply = False
            self.reset("lost after")
            return
        late_s, self._reply_late_s = self._reply_late_s, 0.0
        self._down_s = self._pass(self._down_s, late_s)
        self._world.call_at(self._down_s, self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        if not self._closing:
            self._wires.process.do(self._feed, data)

    def _feed(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)
