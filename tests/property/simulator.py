"""A cell, a driver, and operations that happen to them.

A `Simulation` plays a list of operations; those that follow a `run` happen between the driver's calls, as other
dispatchers, nodes and producers would have it. What must hold is checked while it plays (cell.py, checks.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Final, Literal, NamedTuple

from scheduler.runtime import placement
from tests.property.cell import ENOUGH, PARTITIONS, Cell, FleetPlan, LimitPlan, MemoryPlan
from tests.property.checks import check_settled, first_of_sessions
from tests.property.driver import GRACE_MS, Driver
from tests.property.placing import ROUNDS_MAX

Kind = Literal[
    "submit", "finish", "steal", "give_back", "resize", "reboot", "publish", "limit", "cancel", "flag", "usurp",
    "return", "claim", "foreign", "sweep", "tick", "run", "prefetch", "miss",
]  # fmt: skip
KINDS: Final[tuple[Kind, ...]] = Kind.__args__  # type: ignore[attr-defined]


class Operation(NamedTuple):
    """What happens next, and three small numbers that say how."""

    kind: Kind
    x: int = 0
    y: int = 0
    z: int = 0


class Simulation:
    """One cell, one driver, and operations that happen to them."""

    def __init__(self, plan: FleetPlan, seed: int = 0, memory: MemoryPlan = ENOUGH) -> None:
        self.cell = Cell(plan)
        self._pending: list[Operation] = []
        self.driver = Driver(self.cell, self.between, Random(seed), memory)

    def play(self, operations: Sequence[Operation]) -> None:
        """Play them; those that follow a `run` or a `miss` happen within it, as many as its third number says."""
        rest = list(operations)
        while rest:
            operation = rest.pop(0)
            if operation.kind in ("run", "miss"):
                within = 2 * operation.z
                self._pending, rest = rest[:within], rest[within:]
                self.run(operation.x, operation.y, gap=operation.kind == "miss")
                rest = self._pending + rest
                self._pending = []
            else:
                self.apply(operation)

    def run(self, events: int, entries: int, gap: bool = False) -> None:
        """One step of the dispatcher, and what must hold after it."""
        self.driver.run_once(events, entries, gap)
        check_settled(self.driver)

    def settle(self) -> None:
        """Let everything be read and told; then nobody is skipped unless many wait."""
        self._pending = []
        rounds = 0
        while rounds < 3 or self.driver.is_due or self.driver.homeless:
            self.run(1_000, 1_000)
            rounds += 1
            assert rounds < ROUNDS_MAX, "what was skipped is read again without end"
        memory, waiting = self.driver.memory, len(self.driver.waiting)
        assert not self.driver.skipped or waiting > min(memory.share // 2, memory.total - 1 - memory.total // 16), (
            "jobs are skipped although there is memory"
        )
        waiting_ids = {waiter.job.entry_id for waiter in self.driver.waiting}
        for partition, epoch in self.driver.epochs.items():
            for job in self.cell.intake[partition].values() if self.cell.epochs[partition] == epoch else ():
                late = job.deadline_at_ms is not None and job.deadline_at_ms <= self.cell.now_ms
                assert not late or job.entry_id in waiting_ids, f"{job.job_id} is skipped beyond its deadline"

    def drain(self) -> None:
        """Let everything be published and end, again and again: then only those wait whom no node can serve."""
        self.cell.publish()
        self.settle()
        rounds = 0
        while held := [host for host in self.cell.hosts.values() if host.held]:
            rounds += 1
            assert rounds < ROUNDS_MAX, "the fleet is never empty"
            self.cell.release(held)
            self.run(1_000, 1_000)
            if not any(host.held for host in held):
                self.settle()
        index = self.driver.index
        for waiter in first_of_sessions(self.driver).values():
            wanted = placement.classify(waiter.job, self.cell.bindings.get(waiter.job.session_id), index)
            for host in self.cell.hosts.values():
                is_there = host.slots and index.boots.get(host.name) == f"{host.boot}-x"
                assert not (is_there and index.serves(wanted, host.name)), f"{waiter.job.job_id} starves"

    def between(self, timers: bool = False) -> None:
        """Something else happens now. timers: what the driver does when it is due may happen too."""
        while self._pending and self._pending[0].kind in ("run", "miss"):
            self._pending.pop(0)
        if self._pending and (timers or self._pending[0].kind not in ("sweep", "claim")):
            self.apply(self._pending.pop(0))

    def apply(self, operation: Operation) -> None:
        """Let one thing happen."""
        kind, x, y, z = operation
        cell, driver = self.cell, self.driver
        hosts = list(cell.hosts.values())
        host = hosts[x % len(hosts)]
        partition = x % PARTITIONS
        match kind:
            case "submit":
                cell.submit(x % 6, y % 3, z == 1, int(z == 2), 2 if z in (3, 4) else None)
            case "finish":
                cell.release([host])
            case "give_back":
                cell.release([host, hosts[y % len(hosts)], hosts[z % len(hosts)]])
            case "steal":
                cell.steal(host, y)
            case "resize":
                cell.capacity(host, y % 4, host.boot)
            case "reboot":
                cell.capacity(host, y % 4, host.boot + 1)
                host.pool = z % 2 if z < 2 else host.pool
            case "publish":
                cell.publish()
            case "limit":
                cell.limit(x % 2, LimitPlan(y % 3, z % 4))
            case "cancel" | "flag":
                entries = list(cell.intake[partition].items())
                if entries:
                    entry, job = entries[y % len(entries)]
                    if kind == "flag":
                        cell.flagged.add(job.job_id)
                        cell.ending.add(job.job_id)
                    else:
                        del cell.intake[partition][entry]
                        cell.ended.add(job.job_id)
            case "usurp" | "return":
                if cell.ours[partition] == (kind == "usurp"):
                    cell.ours[partition] = kind == "return"
                    cell.epochs[partition] += 1
            case "foreign":
                cell.foreign_dispatch(partition)
            case "claim":
                driver.claim()
            case "sweep":
                driver.sweep()
            case "tick":
                cell.now_ms += 1 + x % GRACE_MS
            case "prefetch":
                if driver.ahead is None:
                    driver.ahead = driver.read(x, y)
