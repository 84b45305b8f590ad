"""A synchronous stand-in for one cell: the server as the scripts leave it. Every method is one atomic step.

Intake, slots, `open`, `freed`, held sets, owners. What must hold of every placing is checked as it happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from scheduler.calls import Refused as NotPlaced
from scheduler.calls import Reserved
from scheduler.model import Node, Pool, Snapshot, Strategy
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job
from scheduler.runtime.limits import SESSION, has_room, limits_of
from scheduler.runtime.tries import Try
from scheduler.session.bindings import Binding

PARTITIONS: Final = 2
PAIRS: Final = (("en", "zh"), ("en", "de"))
POOLS: Final = ("a", "b")
TENANTS: Final = ("t0", "t0", "t1", "t0", "t1", "")  # of each session, across the partitions
CANDIDATES_MAX: Final = 2
FEATURE: Final = "gpu"


class HostPlan(NamedTuple):
    """A node: slots; pool, index; pairs, a bit each; whether it has the feature."""

    slots: int
    pool: int
    pairs: int
    feature: bool


class LimitPlan(NamedTuple):
    """How many jobs of a session, and of a tenant, may run at once; 0: any number."""

    session: int = 0
    tenant: int = 0


class FleetPlan(NamedTuple):
    """A fleet: its nodes, the pools' strategies and limits, and whether the first pool falls back to the second."""

    hosts: tuple[HostPlan, ...]
    strategies: tuple[Strategy, Strategy] = ("affinity", "affinity")
    fallback: bool = True
    limits: tuple[LimitPlan, LimitPlan] = (LimitPlan(), LimitPlan())


class MemoryPlan(NamedTuple):
    """How many may wait for the same, and in all; bits: in which sessions with skipped jobs are remembered."""

    share: int = 100
    total: int = 100
    bits: int = 64


ENOUGH: Final = MemoryPlan()


class Host:
    """A node in the server: what it may hold, and what it holds (ours and others')."""

    def __init__(self, name: str, plan: HostPlan) -> None:
        self.name = name
        self.slots = plan.slots
        self.boot = 1
        self.pool = plan.pool
        self.pairs = tuple(pair for bit, pair in enumerate(PAIRS) if plan.pairs >> bit & 1)
        self.features = (FEATURE,) if plan.feature else ()
        self.held: list[str] = []

    @property
    def has_room(self) -> bool:
        return len(self.held) < self.slots


class Event(NamedTuple):
    """An entry of `freed`."""

    nodes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


class Cell:
    """The server."""

    def __init__(self, plan: FleetPlan) -> None:
        self.hosts = {f"n{i}": Host(f"n{i}", host) for i, host in enumerate(plan.hosts)}
        self.open = {name for name, host in self.hosts.items() if host.has_room}
        self.events: list[Event] = []
        self.intake: dict[int, dict[int, Job]] = {partition: {} for partition in range(PARTITIONS)}
        self.flagged: set[str] = set()
        self.ending: set[str] = set()  # refused by the driver, or flagged: their order is of no matter any more
        self.bindings: dict[str, Binding] = {}
        self.held: dict[str, set[str]] = {}
        self.epochs = dict.fromkeys(range(PARTITIONS), 1)
        self.ours = dict.fromkeys(range(PARTITIONS), True)
        self.placed: set[str] = set()
        self.ended: set[str] = set()
        self.now_ms = 0
        self.last_entry = 0
        self.pools = tuple(
            Pool(
                name,
                plan.strategies[i],
                (POOLS[1],) if plan.fallback and i == 0 else (),
                candidates=CANDIDATES_MAX,
                session_concurrency=plan.limits[i].session,
                tenant_concurrency=plan.limits[i].tenant,
            )
            for i, name in enumerate(POOLS)
        )
        self.snapshot = Snapshot(0)
        self.publish()

    def publish(self) -> None:
        nodes = [
            Node(host.name, f"{host.boot}-x", host.slots, POOLS[host.pool], host.pairs, host.features)
            for host in self.hosts.values()
            if host.slots
        ]
        self.snapshot = Snapshot(self.snapshot.version + 1, tuple(nodes), self.pools)

    def limit(self, pool: int, limits: LimitPlan) -> None:
        """Another policy, from the next snapshot on."""
        changed = msgspec.structs.replace(
            self.pools[pool], session_concurrency=limits.session, tenant_concurrency=limits.tenant
        )
        self.pools = (*self.pools[:pool], changed, *self.pools[pool + 1 :])

    def submit(self, session: int, pair: int, feature: bool, priority: int, deadline_ms: int | None) -> None:
        self.last_entry += 1
        source, target = PAIRS[pair] if pair < len(PAIRS) else ("", "")
        partition = session % PARTITIONS
        self.intake[partition][self.last_entry] = Job(
            partition=partition,
            epoch=0,
            entry_id=str(self.last_entry),
            job_id=f"j{self.last_entry}",
            session_id=f"s{session}",
            tenant_id=TENANTS[session],
            reply_to="",
            src_lang=source,
            tgt_lang=target,
            features=(FEATURE,) if feature else (),
            routing_key=f"s{session}",
            priority=priority,
            deadline_at_ms=None if deadline_ms is None else self.now_ms + deadline_ms,
            avoid="",
        )

    def capacity(self, host: Host, slots: int, boot: int) -> None:
        """capacity.lua: any change that leaves room is told."""
        if (slots, boot) == (host.slots, host.boot):
            return
        host.slots, host.boot = slots, boot
        if host.has_room:
            self.open.add(host.name)
            self.events.append(Event((host.name,)))
        else:
            self.open.discard(host.name)

    def release(self, hosts: Sequence[Host]) -> None:
        """release.lua: the oldest job of each host ends; told is what was full, and every limit."""
        freed: list[str] = []
        limits: dict[str, None] = {}
        for host in hosts:
            if host.held:
                job_id = host.held.pop(0)
                for limit, held in self.held.items():
                    if job_id in held:
                        held.remove(job_id)
                        limits[limit] = None
                if host.has_room and host.name not in self.open:
                    self.open.add(host.name)
                    freed.append(host.name)
        if freed or limits:
            self.events.append(Event(tuple(freed), tuple(limits)))

    def take(self, host: Host, job_id: str, limits: Sequence[str] = ()) -> None:
        assert host.has_room, f"{host.name} is over capacity"
        assert job_id not in self.placed, f"{job_id} is placed twice"
        assert job_id not in self.ended, f"{job_id} is placed after its end"
        self.placed.add(job_id)
        host.held.append(job_id)
        for limit in limits:
            self.held.setdefault(limit, set()).add(job_id)
        if len(host.held) == host.slots:
            self.open.discard(host.name)

    def used(self, limit: str) -> int:
        """How much of a limit is held."""
        return len(self.held.get(limit, ()))

    def reserve(self, sent: Sequence[Try], index: Index) -> list[Reserved | NotPlaced]:
        """reserve.lua, with the order of sessions checked at each placing. index: boots and policies of the caller."""
        blocked: set[str] = set()
        return [self._reserve(each, index, blocked) for each in sent]

    def _reserve(self, each: Try, index: Index, blocked: set[str]) -> Reserved | NotPlaced:
        job, found = each.job, each.placement
        assert found is not None
        if not self.ours[job.partition] or self.epochs[job.partition] != job.epoch:
            blocked.add(job.session_id)
            return NotPlaced("fenced")
        intake = self.intake[job.partition]
        if int(job.entry_id) not in intake:
            return NotPlaced("gone")
        if job.job_id in self.flagged:
            return NotPlaced("cancelling")
        if job.session_id in blocked:
            return NotPlaced("behind")
        limits = limits_of(job, each.wanted, index.pools)
        for limit in limits:
            if not has_room(limit, self.used(limit), index.pools[each.wanted.pool]):
                blocked.add(job.session_id)
                return NotPlaced("limited", limit)
        groups = [[self.hosts[name] for name in names] for names in found.groups]
        fit = [
            [host for host in each if host.has_room and index.boots[host.name] == f"{host.boot}-x"] for each in groups
        ]
        if not any(fit):
            blocked.add(job.session_id)
            return NotPlaced("full")
        host = min(next(filter(None, fit)), key=lambda host: (len(host.held) + 1) / host.slots)
        for entry, other in intake.items():
            earlier = entry < int(job.entry_id) and other.session_id == job.session_id
            assert not earlier or other.job_id in self.ending, (
                f"{job.job_id} is placed before {other.job_id} of its session"
            )
        del intake[int(job.entry_id)]
        self.take(host, job.job_id, limits)
        self._check_limits(limits, index.pools[each.wanted.pool])
        self.bindings[job.session_id] = Binding(each.wanted.pool, job.src_lang, job.tgt_lang, host.name)
        return Reserved(host.name, 1, len(host.held), filled=not host.has_room)

    def _check_limits(self, limits: Sequence[str], policy: Pool) -> None:
        for limit in limits:
            count = policy.session_concurrency if limit.startswith(SESSION) else policy.tenant_concurrency
            assert self.used(limit) <= count, f"{limit} is over its limit"

    def foreign_dispatch(self, partition: int) -> None:
        """Another owner places the first entry of a partition that it holds."""
        if self.ours[partition] or not self.intake[partition]:
            return
        entry, job = next(iter(self.intake[partition].items()))
        for host in self.hosts.values():
            if host.has_room:
                del self.intake[partition][entry]
                self.take(host, job.job_id, self._foreign_limits(job.tenant_id))
                return

    def steal(self, host: Host, tenant: int) -> None:
        """Another owner places a job of a session that is not ours, perhaps of a tenant that is."""
        if host.has_room:
            self.last_entry += 1
            self.take(host, f"f{self.last_entry}", self._foreign_limits(f"t{tenant}" if tenant < 2 else ""))

    def _foreign_limits(self, tenant: str) -> tuple[str, ...]:
        return (f"tenant:{tenant}",) if tenant else ()

    def reject(self, job: Job) -> bool:
        """reject.lua. Returns: False when the caller is not the owner."""
        if not self.ours[job.partition] or self.epochs[job.partition] != job.epoch:
            return False
        if self.intake[job.partition].pop(int(job.entry_id), None) is not None:
            self.ended.add(job.job_id)
        return True
