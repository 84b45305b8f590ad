"""A synchronous stand-in for one cell and for the dispatcher that drives `Waiting` in it.

`Cell` is the server as the scripts leave it: intake, slots, `open`, `freed`, owners. `Driver` has the steps and the
names of runtime/dispatcher.py and placer.py, without connections and clocks. A `Simulation` plays a list of operations;
those that follow a `run` happen between the driver's calls, as other dispatchers, nodes and producers would have it.
What must hold is checked while it plays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Final, Literal, NamedTuple

import msgspec

from scheduler.calls import Refused as NotPlaced
from scheduler.calls import Reserved
from scheduler.model import Node, Pool, Snapshot, Strategy
from scheduler.runtime import placement
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Class, Job
from scheduler.runtime.tries import Try, chunks
from scheduler.runtime.waiting import Waiter, Waiting
from scheduler.session.bindings import Binding, Bindings

PARTITIONS: Final = 2
PAIRS: Final = (("en", "zh"), ("en", "de"))
POOLS: Final = ("a", "b")
FEATURE: Final = "gpu"
BATCH_MAX: Final = 3
CANDIDATES_MAX: Final = 2
SESSIONS_MAX: Final = 4
GRACE_MS: Final = 3
ROUNDS_MAX: Final = 500

Kind = Literal[
    "submit", "finish", "steal", "give_back", "resize", "reboot", "publish", "cancel", "flag", "usurp", "return",
    "claim", "foreign", "sweep", "tick", "run", "prefetch", "miss",
]  # fmt: skip
KINDS: Final[tuple[Kind, ...]] = Kind.__args__  # type: ignore[attr-defined]


class Operation(NamedTuple):
    """What happens next, and three small numbers that say how."""

    kind: Kind
    x: int = 0
    y: int = 0
    z: int = 0


class HostPlan(NamedTuple):
    """A node: slots; pool, index; pairs, a bit each; whether it has the feature."""

    slots: int
    pool: int
    pairs: int
    feature: bool


class FleetPlan(NamedTuple):
    """A fleet: its nodes, the pools' strategies, and whether the first pool falls back to the second."""

    hosts: tuple[HostPlan, ...]
    strategies: tuple[Strategy, Strategy] = ("affinity", "affinity")
    fallback: bool = True


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


class Batch(NamedTuple):
    """What a read brought. events: how many of `freed` were handed over with it and before."""

    entries: tuple[Job, ...] = ()
    freed: tuple[str, ...] = ()
    gap: bool = False
    events: int = 0


class Cell:
    """The server. Every method is one atomic step."""

    def __init__(self, plan: FleetPlan) -> None:
        self.hosts = {f"n{i}": Host(f"n{i}", host) for i, host in enumerate(plan.hosts)}
        self.open = {name for name, host in self.hosts.items() if host.has_room}
        self.events: list[tuple[str, ...]] = []
        self.intake: dict[int, dict[int, Job]] = {partition: {} for partition in range(PARTITIONS)}
        self.flagged: set[str] = set()
        self.ending: set[str] = set()  # refused by the driver, or flagged: their order is of no matter any more
        self.bindings: dict[str, Binding] = {}
        self.epochs = dict.fromkeys(range(PARTITIONS), 1)
        self.ours = dict.fromkeys(range(PARTITIONS), True)
        self.placed: set[str] = set()
        self.ended: set[str] = set()
        self.now_ms = 0
        self.last_entry = 0
        self.pools = tuple(
            Pool(name, strategy, (POOLS[1],) if plan.fallback and i == 0 else (), candidates=CANDIDATES_MAX)
            for i, (name, strategy) in enumerate(zip(POOLS, plan.strategies, strict=True))
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
            tenant_id="",
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
            self.events.append((host.name,))
        else:
            self.open.discard(host.name)

    def release(self, hosts: Sequence[Host]) -> None:
        """release.lua: the oldest job of each host ends; told is only what was full."""
        freed = []
        for host in hosts:
            if host.held:
                host.held.pop(0)
                if host.has_room and host.name not in self.open:
                    self.open.add(host.name)
                    freed.append(host.name)
        if freed:
            self.events.append(tuple(freed))

    def take(self, host: Host, job_id: str) -> None:
        assert host.has_room, f"{host.name} is over capacity"
        assert job_id not in self.placed, f"{job_id} is placed twice"
        assert job_id not in self.ended, f"{job_id} is placed after its end"
        self.placed.add(job_id)
        host.held.append(job_id)
        if len(host.held) == host.slots:
            self.open.discard(host.name)

    def reserve(self, sent: Sequence[Try], boots: dict[str, str]) -> list[Reserved | NotPlaced]:
        """reserve.lua, with the order of sessions checked at each placing."""
        blocked: set[str] = set()
        return [self._reserve(each, boots, blocked) for each in sent]

    def _reserve(self, each: Try, boots: dict[str, str], blocked: set[str]) -> Reserved | NotPlaced:
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
        groups = [[self.hosts[name] for name in names] for names in found.groups]
        fit = [[host for host in each if host.has_room and boots[host.name] == f"{host.boot}-x"] for each in groups]
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
        self.take(host, job.job_id)
        self.bindings[job.session_id] = Binding(each.wanted.pool, job.src_lang, job.tgt_lang, host.name)
        return Reserved(host.name, 1, len(host.held))

    def foreign_dispatch(self, partition: int) -> None:
        """Another owner places the first entry of a partition that it holds."""
        if self.ours[partition] or not self.intake[partition]:
            return
        entry, job = next(iter(self.intake[partition].items()))
        for host in self.hosts.values():
            if host.has_room:
                del self.intake[partition][entry]
                self.take(host, job.job_id)
                return

    def reject(self, job: Job) -> bool:
        """reject.lua. Returns: False when the caller is not the owner."""
        if not self.ours[job.partition] or self.epochs[job.partition] != job.epoch:
            return False
        if self.intake[job.partition].pop(int(job.entry_id), None) is not None:
            self.ended.add(job.job_id)
        return True


class Driver:
    """The dispatcher's steps around `Waiting`."""

    def __init__(self, cell: Cell, simulation: Simulation, random: Random) -> None:
        self.waiting = Waiting()
        self.bindings = Bindings(SESSIONS_MAX, 1_000_000)
        self.index = Index(cell.snapshot)
        self.epochs = dict(cell.epochs)
        self.refused: list[Job] = []
        self.loads: dict[str, int] = {}
        self.cursors = dict.fromkeys(cell.epochs, 0)
        self.events_read = 0
        self.events_handed = 0
        self.ahead: Batch | None = None
        self.no_node_since: dict[Class, int] = {}
        self.tries_in_vain = 0
        self._cell = cell
        self._between = simulation.between
        self._random = random

    # ---- the reader ----

    def read(self, events: int, entries: int, gap: bool = False) -> Batch:
        """At most `events` of `freed` and `entries` of each partition. gap: the events are lost on the way."""
        end = min(len(self._cell.events), self.events_read + events)
        freed = [] if gap else [name for event in self._cell.events[self.events_read : end] for name in event]
        self.events_read = end
        found: list[Job] = []
        for partition, epoch in self.epochs.items():
            fresh = [job for entry, job in self._cell.intake[partition].items() if entry > self.cursors[partition]][
                :entries
            ]
            if fresh:
                self.cursors[partition] = int(fresh[-1].entry_id)
            found += [msgspec.structs.replace(job, epoch=epoch) for job in fresh]
        return Batch(tuple(found), tuple(dict.fromkeys(freed)), gap, end)

    # ---- the step ----

    def run_once(self, events: int, entries: int, gap: bool) -> None:
        self._keep()
        if not self.waiting.busy:
            self.check_settled()
        batch, self.ahead = self.ahead or self.read(events, entries, gap), None
        self.events_handed = batch.events
        self._swap()
        newcomers = []
        for job in batch.entries:
            if job.deadline_at_ms is not None and job.deadline_at_ms <= self._cell.now_ms:
                self._refuse(job)
            else:
                newcomers.append(job)
        for waiter in self.waiting.overdue(self._cell.now_ms):
            self._refuse(waiter.job)
            self.waiting.leave(waiter)
        for node in batch.freed:
            if node in self.loads:
                self.loads[node] = max(0, self.loads[node] - 1)
        self.waiting.wake(batch.freed, self.index.serves)
        if batch.gap:
            self.waiting.ask_all()
        self._try_waiting()
        self._newcomers(newcomers)
        self._try_waiting()
        self._reject_refused()

    def _swap(self) -> None:
        old, new = self.index, self.index
        if self._cell.snapshot.version != old.version:
            new = self.index = Index(self._cell.snapshot)
        if new is old:
            return
        for wanted in self.waiting.classes():
            known = {(node.id, node.boot) for node in old.eligible(wanted)}
            gained = [node.id for node in new.eligible(wanted) if (node.id, node.boot) not in known]
            self.waiting.wake_class(wanted, gained)
        for waiter in [waiter for waiter in self.waiting if not new.eligible(waiter.wanted)]:
            binding, _ = self.bindings.get(waiter.job.session_id, 0)
            wanted = placement.classify(waiter.job, binding, new)
            if wanted != waiter.wanted:
                self.waiting.reclassify(waiter, wanted)

    def _newcomers(self, jobs: list[Job]) -> None:
        """As placer.py: a call is made ready, and may be answered, before the one before it is settled."""
        self._between()
        for job in jobs:
            if job.session_id not in self.bindings:
                self.bindings.learn(job.session_id, self._cell.bindings.get(job.session_id))
        under_way: list[tuple[list[Try], list[Reserved | NotPlaced]]] = []
        for chunk in chunks(jobs, BATCH_MAX, lambda partition: partition % 2):
            partitions = {job.partition for job in chunk}
            if under_way and any(each.job.partition in partitions for each in under_way[0][0]):
                self._land(under_way)
            if self.waiting.busy:
                self._land(under_way)
                self._try_waiting()
            under_way.append(self._send(self._tries(chunk)))
            if len(under_way) > 1:
                self._land(under_way, 1)
        self._land(under_way)

    def _land(self, under_way: list[tuple[list[Try], list[Reserved | NotPlaced]]], count: int | None = None) -> None:
        for _ in range(len(under_way) if count is None else count):
            self._settle_all(*under_way.pop(0))

    def _tries(self, jobs: Sequence[Job]) -> list[Try]:
        draws = placement.Draws(self.loads, self._random, len(jobs))
        tries: list[Try] = []
        held: set[str] = set()
        for job in jobs:
            if self.epochs.get(job.partition) != job.epoch:
                continue
            binding, _ = self.bindings.get(job.session_id, 0)
            wanted = placement.classify(job, binding, self.index)
            found = None
            if job.session_id not in held and not self.waiting.must_wait(job, wanted):
                found = placement.place(job, wanted, binding, self.index, draws)
            if found is None:
                held.add(job.session_id)
            tries.append(Try(job, wanted, None, found))
        self._check_newcomers(tries)
        return tries

    def _try_waiting(self) -> None:
        rounds = 0
        while self.waiting.busy:
            rounds += 1
            assert rounds < ROUNDS_MAX, "the waiting are tried without end"
            self._keep()
            asking = self.waiting.asking()
            if asking:
                self._ask(asking)
            tries = []
            for waiter in self.waiting.tries(BATCH_MAX):
                attempt = self._place_waiter(waiter)
                if attempt is not None:
                    tries.append(attempt)
            self._reserve(tries)

    def _place_waiter(self, waiter: Waiter) -> Try | None:
        binding, _ = self.bindings.get(waiter.job.session_id, 0)
        job, wanted = waiter.job, waiter.wanted
        if waiter.hint is None:
            wanted = placement.classify(job, binding, self.index)
            if wanted != waiter.wanted:
                self.waiting.reclassify(waiter, wanted)
                return None
            draws = placement.Draws(self.loads, self._random)
            found = placement.place(job, wanted, binding, self.index, draws)
            if found is None:
                self.waiting.park(waiter)
                return None
        else:
            found = placement.place_among(job, wanted, binding, self.index, waiter.hint, self.loads, self._random)
            if found is None:
                waiter.complete = False
                self.waiting.still_full(waiter, waiter.hint)
                return None
        return Try(job, wanted, waiter, found)

    def _ask(self, waiters: list[Waiter]) -> None:
        self._between()
        is_open = set(self._cell.open)
        for waiter in waiters:
            nodes = [node.id for node in self.index.eligible(waiter.wanted) if node.id in is_open]
            self._random.shuffle(nodes)
            self.waiting.answer_open(waiter, tuple(nodes))

    def _reserve(self, tries: list[Try]) -> None:
        self._settle_all(*self._send(tries))

    def _send(self, tries: list[Try]) -> tuple[list[Try], list[Reserved | NotPlaced]]:
        sent = [each for each in tries if each.placement is not None]
        if not sent:
            return tries, []
        self._between()
        return tries, self._cell.reserve(sent, self.index.boots)

    def _settle_all(self, tries: list[Try], answers: list[Reserved | NotPlaced]) -> None:
        answered = iter(answers)
        for each in tries:
            self._settle(each, next(answered) if each.placement is not None else None)
        self._reject_refused()

    def _settle(self, each: Try, answer: Reserved | NotPlaced | None) -> None:
        job, waiter = each.job, each.waiter
        if self.epochs.get(job.partition) != job.epoch:
            return
        if isinstance(answer, Reserved):
            self.loads[answer.node] = answer.used
            self.bindings.wrote(job.session_id, Binding(each.wanted.pool, job.src_lang, job.tgt_lang, answer.node), 0)
            if waiter is not None:
                self.waiting.leave(waiter, placed=True)
        elif answer is None:
            if self.waiting.must_wait(job, each.wanted):
                self.waiting.queue(job, each.wanted, 0)
            else:
                self.waiting.tried_in_vain(job, each.wanted, 0)
        elif answer.why in ("full", "behind"):
            assert each.placement is not None
            if waiter is None:
                self.waiting.tried_in_vain(job, each.wanted, 0)
            else:
                self.tries_in_vain += 1
                self.waiting.still_full(waiter, each.placement.candidates)
        elif answer.why == "fenced":
            self._lose(job.partition)
        else:
            if answer.why == "cancelling":
                self._refuse(job)
            if waiter is not None:
                self.waiting.leave(waiter)

    def _reject_refused(self) -> None:
        refused, self.refused = self.refused, []
        for job in refused:
            if self.epochs.get(job.partition) == job.epoch:
                self._between()
                if not self._cell.reject(job):
                    self._lose(job.partition)

    # ---- what runs on timers ----

    def _keep(self) -> None:
        self._between(timers=True)

    def claim(self) -> None:
        for partition, epoch in self._cell.epochs.items():
            if not self._cell.ours[partition]:
                self._lose(partition)
            elif self.epochs.get(partition) != epoch:
                self._lose(partition)
                self.epochs[partition] = epoch
                self.cursors[partition] = 0

    def _lose(self, partition: int) -> None:
        if self.epochs.pop(partition, None) is None:
            return
        self.waiting.drop_partitions({partition})
        self.refused = [job for job in self.refused if job.partition != partition]
        self.bindings.forget([name for name in self.bindings.sessions() if int(name[1:]) % PARTITIONS == partition])

    def sweep(self) -> None:
        self.loads.clear()
        unservable = [wanted for wanted in self.waiting.classes() if not self.index.eligible(wanted)]
        now_ms = self._cell.now_ms
        self.no_node_since = {wanted: self.no_node_since.get(wanted, now_ms) for wanted in unservable}
        for wanted, since_ms in self.no_node_since.items():
            if now_ms - since_ms >= GRACE_MS:
                for waiter in self.waiting.parked(wanted):
                    self._refuse(waiter.job)
                    self.waiting.leave(waiter)
        settled = [wanted for wanted in self.waiting.settled_classes() if self.index.eligible(wanted)]
        is_open = set(self._cell.open)
        self._between()
        told = self.told()
        for wanted in settled:
            untold = [node.id for node in self.index.eligible(wanted) if node.id in is_open and node.id not in told]
            if untold:
                self.waiting.wake_class(wanted, untold, swept=True)

    def told(self) -> set[str]:
        """Nodes of events that are in the stream and not handed over yet."""
        return {name for event in self._cell.events[self.events_handed :] for name in event}

    def _refuse(self, job: Job) -> None:
        self.refused.append(job)
        self._cell.ending.add(job.job_id)

    # ---- what must hold ----

    def competing(self) -> dict[str, Waiter]:
        """The first waiter of each session, found without any of the bookkeeping under test."""
        first: dict[str, Waiter] = {}
        for waiter in sorted(self.waiting, key=lambda waiter: waiter.order):
            first.setdefault(waiter.job.session_id, waiter)
        return first

    def _check_newcomers(self, tries: list[Try]) -> None:
        """Newcomers pass neither those of their class who compete nor anybody of their session."""
        competing = self.competing()
        classes = {waiter.wanted for waiter in competing.values()}
        for each in tries:
            if each.placement is not None:
                assert each.wanted not in classes, f"{each.job.job_id} passes competing jobs of its class"
                assert each.job.session_id not in competing, f"{each.job.job_id} passes its session"

    def check_settled(self) -> None:
        """Before the blocking read: nobody is in between, nobody is lost, nobody waits beside a free slot."""
        assert not self.waiting.busy, "the step ends although somebody is to be tried"
        competing = self.competing()
        told = self.told()
        waiters = list(self.waiting)
        for waiter in waiters:
            first = competing[waiter.job.session_id] is waiter
            assert waiter.status == ("parked" if first else "behind"), f"{waiter.job.job_id} is {waiter.status}"
        for waiter in competing.values():
            for node in self.index.eligible(waiter.wanted):
                host = self._cell.hosts[node.id]
                if host.has_room and node.boot == f"{host.boot}-x":
                    assert node.id in told, f"{waiter.job.job_id} is parked, {node.id} has room, and nothing tells it"
        counts = Counter(waiter.wanted for waiter in competing.values())
        assert set(self.waiting.classes()) == set(counts)
        assert {wanted: len(self.waiting.parked(wanted)) for wanted in counts} == dict(counts)
        assert len(self.waiting) == len(waiters)
        self._check_nobody_lost(waiters)
        assert self.waiting.sweep_hits == 0, "the sweep found what no event told"

    def _check_nobody_lost(self, waiters: list[Waiter]) -> None:
        ahead = {job.entry_id for job in self.ahead.entries} if self.ahead else set()
        in_hand = Counter(waiter.job.entry_id for waiter in waiters)
        assert not in_hand or max(in_hand.values()) == 1, "a job waits twice"
        for partition, epoch in self.epochs.items():
            for entry, job in self._cell.intake[partition].items():
                if entry <= self.cursors[partition] and str(entry) not in ahead:
                    kept = in_hand[job.entry_id] + sum(each.entry_id == job.entry_id for each in self.refused)
                    assert kept == 1, f"{job.job_id} of epoch {epoch} is lost"


class Simulation:
    """One cell, one driver, and operations that happen to them."""

    def __init__(self, plan: FleetPlan, seed: int = 0) -> None:
        self.cell = Cell(plan)
        self._pending: list[Operation] = []
        self.driver = Driver(self.cell, self, Random(seed))

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
        self.driver.check_settled()

    def settle(self) -> None:
        """Let everything be read and told."""
        self._pending = []
        for _ in range(3):
            self.run(1_000, 1_000)

    def between(self, timers: bool = False) -> None:
        """Something else happens now. timers: what the driver does when it is due may happen too."""
        while self._pending and self._pending[0].kind in ("run", "prefetch", "miss"):
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
                if host.has_room:
                    cell.last_entry += 1
                    cell.take(host, f"f{cell.last_entry}")
            case "resize":
                cell.capacity(host, y % 4, host.boot)
            case "reboot":
                cell.capacity(host, y % 4, host.boot + 1)
                host.pool = z % 2 if z < 2 else host.pool
            case "publish":
                cell.publish()
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
