"""One run: a plan becomes a fleet, a load and its faults, and then a verdict."""

from __future__ import annotations

import functools
import gc
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from scheduler.management.pools import PoolDocument
from tests.simulation.checker import Checker
from tests.simulation.deleted import delete
from tests.simulation.fleet import LIMITS, MEMORY, POOLS, SETTINGS, Fleet, Log
from tests.simulation.history import History
from tests.simulation.network import DEATHS, WIRES, CommandFault, Network
from tests.simulation.plan import LOAD_FROM_S, SEATS, Event, Plan
from tests.simulation.producers import Producers
from tests.simulation.rest import LATE_S_MAX, RestChecker
from tests.simulation.server import Server
from tests.simulation.world import ORIGIN_S, Process, Spinning, World

STOP_S_MAX: Final = 60.0  # then an operator kills
DONE_S_MAX: Final = 150.0  # after the last fault; a job that hangs takes more than a minute
REST_S: Final = 40.0
SLOW_S: Final = 0.02
MAX_ID: Final = "18446744073709551615-18446744073709551615"
HOUR_MS: Final = 3_600_000


class Result(msgspec.Struct, frozen=True):
    """What came of a run. states: of jobs -> how many; exempt: jobs that a fault of the data took with it; faults: of
    any kind, that struck; digest: of its history.
    """

    seed: int
    scenario: str
    violations: tuple[tuple[str, str], ...]
    digest: str
    virtual_s: float
    real_s: float
    states: dict[str, int]
    exempt: int
    faults: int
    commands: int

    @property
    def invariants(self) -> tuple[str, ...]:
        """What does not hold, each word once, the first first."""
        return tuple(dict.fromkeys(invariant for invariant, _ in self.violations))


class Run:
    """A world with everything in it."""

    def __init__(self, plan: Plan, keeps_lines: bool = False) -> None:
        self.plan = plan
        self.world = World(plan.seed)
        self.server = Server(self.world)
        self.network = Network(self.world, self.server)
        self.history = History(self.world)
        self.history.keeps_lines = keeps_lines
        self.checker = Checker(self.world, self.server, self.history)
        self.fleet = Fleet(self.world, self.network, self.history, plan.pools, MEMORY[plan.memory])
        self.producers = Producers(self.world, self.fleet, self.checker)
        late_s_max = LATE_S_MAX[plan.memory]
        self.rest = RestChecker(self.world, self.server, self.network, self.fleet, self.checker, late_s_max)
        self.struck: Counter[str] = Counter()
        self.network.struck = self._struck
        self.checker.is_excused = self._is_excused
        self._until, self._until_s = "", math.inf
        self._busy = 0

    # ---- from start to end ----

    def play(self, until: str = "", until_s: float = math.inf) -> None:
        """All of it. until: end when this invariant is broken; until_s: end at this time at the latest, unjudged."""
        self._until, self._until_s = until, until_s
        try:
            self._begin()
            self._run(lambda: False, self.plan.ends_s)
            self._run(lambda: self._busy == 0, 2 * STOP_S_MAX)
            self._heal()
            self._run(self._is_done, DONE_S_MAX)
            self._rest()
            if not self._is_over():
                self._check_end()
        except Spinning as error:
            self.checker.blame("spins", str(error))
        for seat in self.fleet.seats.values():
            for process in seat.processes:
                for failure in process.failures:
                    self.checker.blame("crash", failure)

    def result(self, real_s: float) -> Result:
        """What came of it."""
        return Result(
            seed=self.plan.seed,
            scenario=self.plan.scenario,
            violations=tuple((each.invariant, each.detail) for each in self.checker.violations),
            digest=self.history.digest(),
            virtual_s=self.world.elapsed_s,
            real_s=real_s,
            states=dict(Counter(record["state"] for record in self.checker.records.values())),
            exempt=len(self.checker.exempt),
            faults=self.struck.total(),
            commands=self.server.commands,
        )

    def _check_end(self) -> None:
        self.checker.check_end()
        untold = self.producers.unheard & self.checker.ended - self.checker.exempt
        if untold:
            self.checker.blame("unheard", f"the producer was not told of {sorted(untold)}")

    def _run(self, until: Callable[[], bool], limit_s: float) -> bool:
        """Let time pass until something is true, at most for so long. Returns whether it is."""
        self.world.run(lambda: self._is_over() or until(), min(self.world.now_s + limit_s, self._until_s))
        return until()

    def _is_over(self) -> bool:
        return self.world.now_s >= self._until_s or any(
            each.invariant == self._until for each in self.checker.violations
        )

    def _rest(self) -> None:
        """Until nothing is held any more; the last lease of a node that died may have to end first."""
        until_s = self.world.now_s + REST_S
        while self.world.now_s < until_s and not self._is_over() and not self.checker.is_clean():
            self._run(lambda: False, 1.0)

    def _is_done(self) -> bool:
        waits = self.producers.under_way > 0 or self.producers.unheard - self.checker.exempt
        return not waits and self.checker.is_done()

    def _begin(self) -> None:
        for number, name in enumerate(SEATS):
            self.world.call_at(ORIGIN_S + 0.05 * number, self.fleet.start, name)
        if self.plan.pools != "none":
            self._configure(POOLS[self.plan.pools], 0.2)
            self.checker.judges_sessions = self.plan.pools != "limits"
        self.world.call_at(ORIGIN_S + LOAD_FROM_S - 1.5, self.producers.begin, self.plan.jobs)
        self.world.call_at(ORIGIN_S + LOAD_FROM_S, self.rest.begin)
        for event in self.plan.events:
            if event.what == "lose":
                self.world.call_at(ORIGIN_S + event.at_s - event.s, self.server.keep)
            self.world.call_at(ORIGIN_S + event.at_s, self._happen, event)

    def _configure(self, documents: dict[str, PoolDocument], at_s: float) -> None:
        self.world.call_at(ORIGIN_S + at_s, self.fleet.configure, documents)

    def _heal(self) -> None:
        """Whoever is not there comes back, and nothing else goes wrong."""
        for name, seat in self.fleet.seats.items():
            if seat.process is None:
                self.fleet.start(name)
            for process in seat.processes:
                self.network.wires(process).faults.clear()

    def _is_excused(self, process: Process) -> bool:
        """Whether it is an earlier life that was stopped, or cut off, until less than a margin ago."""
        newest = next(seat.process for seat in self.fleet.seats.values() if process in seat.processes)
        quiet_s = self.world.now_s - SETTINGS.margin_ms / 1000
        troubled_s = max(process.suspended_until_s, self.network.wires(process).troubled_until_s)
        return process is not newest and max(troubled_s, self.rest.troubled_until_s) > quiet_s

    # ---- faults ----

    def _struck(self, process: Process, fault: CommandFault, call: str) -> None:
        self.struck[fault.wire] += 1
        self.history.add("struck", process.name, fault.wire, call)
        if fault.wire in DEATHS:
            seat = next(name for name, seat in self.fleet.seats.items() if process in seat.processes)
            self._later(fault.s, functools.partial(self._fill, seat))

    def _happen(self, event: Event) -> None:
        self.history.add("event", str(event))
        if event.what in (*WIRES, *DEATHS):
            self._on_wires(event)
        elif event.who == "server":
            self.struck[f"server {event.what}"] += 1
            if event.what == "delete":
                delete(event.call, self.server, self.checker, self.rest)
            else:
                getattr(self, f"_server_{event.what}")(event.s)
        elif event.who == "stream":
            self.struck[event.what] += 1
            self._add_absurd(event)
        elif event.who == "operator":
            self.struck[event.what] += 1
            self.fleet.configure(LIMITS[event.what])
        elif event.who == "all":
            self.struck[event.what] += 1
            self._roll(list(SEATS))
        else:
            self._on_seat(event)

    def _on_wires(self, event: Event) -> None:
        process = self._process(event.who)
        if process is not None:
            fault = CommandFault(ORIGIN_S + event.at_s, event.call, event.what, event.s)  # type: ignore[arg-type]
            self.network.wires(process).faults.append(fault)

    def _process(self, who: str) -> Process | None:
        if who in self.fleet.seats:
            return self.fleet.seats[who].process
        return self.producers.process

    def _on_seat(self, event: Event) -> None:
        process = self._process(event.who)
        if process is None:
            return
        self.struck[event.what] += 1
        match event.what:
            case "reset":
                self.network.reset(process)
            case "cut":
                self.network.cut(process, event.s)
            case "pause":
                process.suspend(event.s)
            case "sleep":
                process.suspend(event.s, clock_stops=True)
            case "kill":
                self.fleet.kill(event.who)
                self._later(event.s, functools.partial(self._fill, event.who))
            case "stop":
                self._replace(event.who, event.s, lambda: None)
            case "twin":
                self.fleet.start(event.who)

    def _later(self, in_s: float, call: Callable[[], object]) -> None:
        self._busy += 1

        def done() -> None:
            self._busy -= 1
            call()

        self.world.call_at(self.world.now_s + in_s, done)

    def _fill(self, name: str) -> None:
        if self.fleet.seats[name].process is None:
            self.fleet.start(name)

    def _replace(self, name: str, in_s: float, then: Callable[[], object]) -> None:
        """Stop whoever sits there, and start another one when it has gone."""
        old = self.fleet.seats[name].process
        self.fleet.stop(name)
        stopped_s = self.world.now_s

        def look() -> None:
            if old is not None and old.is_alive:
                if self.world.now_s - stopped_s > STOP_S_MAX:
                    old.kill()
                self._later(0.1, look)
            else:
                self._fill(name)
                then()

        self._later(in_s, look)

    def _roll(self, names: list[str]) -> None:
        """Each is replaced, one after the other."""
        if names:
            self._replace(names[0], 0.2, lambda: self._later(0.5, lambda: self._roll(names[1:])))

    # ---- what happens to the server ----

    def _server_pause(self, s: float) -> None:
        self.server.pause(s)
        self.rest.trouble(s)

    def _server_slow(self, s: float) -> None:
        self.server.slow_s = SLOW_S
        self.rest.trouble(s)
        self._later(s, lambda: setattr(self.server, "slow_s", 0.0))

    def _server_scripts(self, s: float) -> None:
        self.server.scripts.clear()

    def _server_readonly(self, s: float) -> None:
        self.server.is_replica = True
        self.rest.trouble(s)
        self._later(s, lambda: setattr(self.server, "is_replica", False))

    def _server_full(self, s: float) -> None:
        self.server.is_full = True
        self._later(s, lambda: setattr(self.server, "is_full", False))

    def _server_loading(self, s: float) -> None:
        self.server.is_loading = True
        self.rest.trouble(s)
        self._later(s, lambda: setattr(self.server, "is_loading", False))

    def _server_restart(self, s: float) -> None:
        self._restart(s, lambda: self.server.restart())

    def _server_lose(self, s: float) -> None:
        self._restart(0.5, lambda: self.server.restart(kept=True))

    def _server_empty(self, s: float) -> None:
        self._restart(s, lambda: self.server.restart(empty=True))

    def _restart(self, down_s: float, restart: Callable[[], None]) -> None:
        before = self.checker.before_loss()
        self.server.pause(down_s)
        self.rest.trouble(down_s + 1.0)
        self.network.down_until_s = self.world.now_s + down_s
        self.network.reset_all()
        restart()
        self.checker.after_loss(before)

    def _server_flush(self, s: float) -> None:
        before = self.checker.before_loss()
        self.server.flush()
        self.rest.trouble(1.0)
        self.checker.after_loss(before)

    def _server_clock(self, s: float) -> None:
        self.server.shift_s += s
        self.rest.trouble(1.0)
        self.checker.after_jump(s)

    def _add_absurd(self, event: Event) -> None:
        """Somebody writes an entry with an id that no clock gives."""
        now_ms = int(self.server.wall_s() * 1000)
        identifier = MAX_ID if event.what == "maxid" else f"{now_ms + HOUR_MS}-0"
        stream = f"{{{SETTINGS.namespace}:0}}:{event.call}"
        if event.call in ("heartbeats", "commands", "deltas"):
            stream = f"{{{SETTINGS.namespace}}}:{event.call}"
        try:
            self.server.ask("XADD", stream, identifier, "absurd", "1")
        except RuntimeError:
            return  # it takes no such entry any more


def run(plan: Plan, *, logs: bool = False, until: str = "", until_s: float = math.inf) -> tuple[Result, Run]:
    """Play a plan, to its end, or until an invariant is broken, or for so many virtual seconds.

    Args: logs, whether the lines of the history are kept, with what the roles log.
    Returns: what came of it, and the world as it was at the end.
    """
    started_s = time.perf_counter()
    collects = gc.isenabled()
    gc.disable()
    played = Run(plan, logs)
    log = Log(played.world, played.history, played.checker.blame)
    with log.listening(logging.INFO if logs else logging.ERROR):
        try:
            played.play(until, ORIGIN_S + until_s)
            return played.result(time.perf_counter() - started_s), played
        finally:
            played.world.close()
            if collects:
                gc.enable()
