"""The fleet of a run: a seat for each role and node, and who sits in it now.

Everything is the product's own, started as its commands start it; only the host is another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar

import msgspec
from redis.exceptions import RedisError

from scheduler.config import DEFAULTS, Settings
from scheduler.errors import SchedulerError, ServerRefused
from scheduler.host import Host
from scheduler.management.commands import ApplyPools, encode_command
from scheduler.management.pools import PoolDocument
from scheduler.node.attempts import Observer
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.protocol.snapshot import Match
from scheduler.roles import start_dispatcher, start_manager, start_reaper
from scheduler.store.connection import Connection
from scheduler.store.store import open_store
from tests.simulation.history import History
from tests.simulation.network import Network
from tests.simulation.plan import NODES, ROLES
from tests.simulation.work import SimulatedThreads, Work
from tests.simulation.world import Process, ProcessClock, World

T = TypeVar("T")

URL: Final = "redis://server:6379/0"
SETTINGS: Final[Settings] = msgspec.structs.replace(DEFAULTS, partitions=8, run_ms_max=20_000, no_node_grace_ms=60_000)
TIGHT: Final = msgspec.structs.replace(
    SETTINGS, batch_max=3, read_ahead_max=8, waiting_class_max=3, waiting_max=8, sessions_max=6, candidates_max=2
)
"""Little memory for those who wait, small calls, and fewer bindings in memory than there are sessions."""
MEMORY: Final = {"roomy": SETTINGS, "tight": TIGHT}
CAPACITY: Final = 3
EN_ZH: Final = (("en", "zh"),)
BOTH: Final = (("en", "zh"), ("en", "de"))
PAIRS: Final = {"n0": EN_ZH, "n1": EN_ZH, "n2": BOTH, "n3": BOTH}
FEATURES: Final = {"n2": ("asr",), "n3": ("asr",)}
POOL_OF: Final = {
    "none": {},
    "gold": {"n0": "gold", "n2": "gold"},
    "limits": {"n0": "gold"},
    "rivals": {"n0": "gold", "n2": "gold", "n3": "closed"},
}
PLAIN: Final = "n3"  # this node runs its handlers in threads
GRACE_S: Final = 60.0
SUPERVISED_S: Final = 0.5
POOLS: Final[dict[str, dict[str, PoolDocument]]] = {
    "none": {},
    "gold": {
        "gold": PoolDocument(fallback=("default",), tenants=("acme",), strategy="least_loaded"),
        "default": PoolDocument(strategy="spread"),
    },
    "limits": {
        "gold": PoolDocument(fallback=("default",), tenants=("acme",), session_concurrency=1, pressure="return"),
        "default": PoolDocument(tenant_concurrency=2, session_concurrency=2),
    },
    "rivals": {
        "gold": PoolDocument(tenants=("acme",)),
        "closed": PoolDocument(match=Match(tenants=("globex",))),
        "default": PoolDocument(),
    },
}
"""By name, what is said of pools. The rivals have no fallback: the pool of a job alone says where it can run."""
_GOLD: Final = PoolDocument(fallback=("default",), tenants=("acme",))
LIMITS: Final[dict[str, dict[str, PoolDocument]]] = {
    "limit": {"default": PoolDocument(session_concurrency=1), "gold": PoolDocument(session_concurrency=1)},
    "limit_one": {"default": PoolDocument(), "gold": msgspec.structs.replace(_GOLD, session_concurrency=1)},
    "limit_tenants": {"default": PoolDocument(tenant_concurrency=2), "gold": _GOLD},
    "limit_none": {"default": PoolDocument(), "gold": _GOLD},
}
"""What an operator sets in mid run, by the name of the fault."""


def can_run(node: str, src_lang: str, tgt_lang: str, features: Iterable[str]) -> bool:
    """Whether a node of the fleet is made for such jobs."""
    return (src_lang, tgt_lang) in PAIRS[node] and set(features) <= set(FEATURES.get(node, ()))


class Seat:
    """A place in the fleet. processes: those that run in it, the newest last; two while one replaces another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.processes: list[Process] = []
        self.lives = 0
        self.stops: dict[Process, asyncio.Event] = {}
        self.should_run = True

    @property
    def process(self) -> Process | None:
        """The newest that is alive."""
        return next((each for each in reversed(self.processes) if each.is_alive), None)

    @property
    def is_leaving(self) -> bool:
        """Whether the newest was told to stop, which the server need not know yet."""
        stop = self.stops.get(self.process) if self.process is not None else None
        return stop is not None and stop.is_set()


class _Witness(Observer):
    """Writes down which handlers a node runs."""

    def __init__(self, history: History, process: Process) -> None:
        self._history = history
        self._process = process

    def started(self, job: Job, at_us: int) -> None:
        self._history.started(self._process, job)

    def ended(self, job: Job, at_us: int) -> None:
        self._history.ended(self._process, job)


class Fleet:
    """All seats. pools: which of POOLS are configured; settings: of all roles and nodes."""

    def __init__(self, world: World, network: Network, history: History, pools: str, settings: Settings) -> None:
        self.settings = settings
        self.world = world
        self.network = network
        self.history = history
        self.pools = pools
        self.seats = {name: Seat(name) for name in (*ROLES, *NODES)}

    # ---- processes ----

    def host(self, process: Process) -> Host:
        """What a process takes from its machine, which is this world."""
        ids = self.world.chance("ids", process.name)
        return Host(
            name=process.name,
            clock=ProcessClock(process),
            random=self.world.chance("draws", process.name),
            token_hex=lambda size: f"{ids.getrandbits(8 * size):0{2 * size}x}",
            threads=lambda workers, name: SimulatedThreads(process),
            connect=functools.partial(Connection, classes=self.network.classes(process)),
        )

    def start(self, name: str) -> Process:
        """Start a process in a seat, beside the one that is there, if one is."""
        seat = self.seats[name]
        seat.lives += 1
        process = Process(self.world, f"{name}.{seat.lives}")
        seat.processes.append(process)
        process.on_death.append(functools.partial(self.history.died, process))
        stopping = seat.stops[process] = asyncio.Event()
        main = self._node(name, process, stopping) if name in NODES else self._role(name, process, stopping)
        self.run(process, main)
        return process

    def run(self, process: Process, main: Coroutine[Any, Any, None]) -> None:
        """Let a process run; it is gone when its main function has ended."""

        async def alone() -> None:
            try:
                await main
            except Exception as error:
                process.failures.append(f"{self.world.now_s:.3f} {process.name} ended: {error!r}")
            process.call_soon(process.kill)

        process.start(alone())

    async def _role(self, name: str, process: Process, stopping: asyncio.Event) -> None:
        start: Callable[..., Awaitable[tuple[Any, Any]]] = {
            "manager": start_manager,
            "dispatcher": start_dispatcher,
            "reaper": start_reaper,
        }[name.rstrip("0123456789")]
        role, _ = await supervised(lambda: start(URL, self.settings, self.host(process)))
        await stopping.wait()
        await role.stop()

    async def _node(self, name: str, process: Process, stopping: asyncio.Event) -> None:
        work, host = Work(process), self.host(process)

        async def enter() -> Node:
            return await Node(
                URL,
                name,
                capacity=CAPACITY,
                handler=work.run_plainly if name == PLAIN else work.run,
                pairs=PAIRS[name],
                features=FEATURES.get(name, ()),
                pool=POOL_OF[self.pools].get(name, ""),
                settings=self.settings,
                observer=_Witness(self.history, process),
                host=host,
            ).__aenter__()

        async with contextlib.AsyncExitStack() as stack:
            node = await supervised(enter)
            stack.push_async_exit(node.__aexit__)
            over = [asyncio.create_task(node.stopped()), asyncio.create_task(stopping.wait())]
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            for each in over:
                each.cancel()

    def stop(self, name: str) -> None:
        """As SIGTERM."""
        seat = self.seats[name]
        process = seat.process
        if process is not None:
            process.do(seat.stops[process].set)

    def kill(self, name: str) -> None:
        """As SIGKILL."""
        process = self.seats[name].process
        if process is not None:
            self.history.add("kill", process.name)
            process.kill()

    # ---- pools ----

    def configure(self, documents: dict[str, PoolDocument], then: Callable[[], None] = lambda: None) -> None:
        """As an operator does it, with a command that the leader answers; `then` is called after that."""
        process = Process(self.world, f"operator.{self.world.now_s:.3f}")

        async def apply() -> None:
            async with await supervised(
                lambda: open_store(URL, SETTINGS, None, ProcessClock(process), self.host(process).connect)
            ) as store:
                store.connection.has_started = True
                answer = None
                while answer is None:
                    answer = await store.control.send_command(encode_command(ApplyPools(documents)), 5_000)
                self.history.add("configured", answer)
                then()

        self.run(process, apply())


async def supervised(begin: Callable[[], Awaitable[T]]) -> T:
    """As a supervisor does: what a server refuses that takes no writes for a while is begun again."""
    while True:
        try:
            return await begin()
        except ServerRefused:
            await asyncio.sleep(SUPERVISED_S)


class Log(logging.Handler):
    """Hears what the roles log. It is no part of the digest.

    Args: world; history, which gets a line of each record; blame, called with each unexpected error.
    """

    def __init__(self, world: World, history: History, blame: Callable[[str, str], None]) -> None:
        super().__init__()
        self._world = world
        self._history = history
        self._blame = blame

    def emit(self, record: logging.LogRecord) -> None:
        """One record, with the process that wrote it."""
        name = self._world.process.name if self._world.process is not None else "-"
        self._history.tell(f"{name} {record.levelname} {record.name}: {record.getMessage()}")
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, (SchedulerError, OSError, RedisError)):
            self._blame("crash", f"{name}: {record.getMessage()}: {error!r}")

    @contextlib.contextmanager
    def listening(self, level: int) -> Iterator[None]:
        """Receive records of this level and above, in the place of other handlers."""
        logger = logging.getLogger("scheduler")
        before, propagated = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(level)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(before)
            logger.propagate = propagated


def quiet() -> None:
    """What dead processes log while they are thrown away is of no interest. It holds for the whole process."""
    logging.getLogger("scheduler").setLevel(logging.CRITICAL + 1)
