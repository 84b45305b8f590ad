"""What may not last: a job beside a free slot or past its deadline while the owner of its partition is well, a lease
that lapsed or a delayed job that is due while a reaper is well.

A job that is the first of its session in the intake, that no limit holds back and whose deadline has not passed, waits
rightly only while no eligible node has room. Which pool it belongs to is asked of the product's own pure functions, by
the snapshot and the bindings that are stored; which nodes of that pool can run it, this file knows by itself.
"""

from __future__ import annotations

import math
from typing import Final

from scheduler.protocol import keys, messages
from scheduler.runtime import intake
from scheduler.runtime.index import Index
from scheduler.runtime.placement import candidates
from scheduler.runtime.waiting.limits import has_room, limits_of
from scheduler.session.bindings import parse
from tests.simulation.checker import Checker
from tests.simulation.fleet import SETTINGS, Fleet, can_run
from tests.simulation.limits import read_published
from tests.simulation.network import SCRIPTS, Network
from tests.simulation.plan import DISPATCHERS, REAPERS
from tests.simulation.server import Server
from tests.simulation.world import Process, World

LOOK_EVERY_S: Final = 0.2
REPEAT_EVERY: Final = 5  # looks
WAIT_S_MAX: Final = 1.0
LATE_S_MAX: Final = {"roomy": 2.5, "tight": 12.5}
"""A dispatcher looks at deadlines each second, and every ten seconds at those that it has no memory for."""
OVERDUE_S_MAX: Final = 3.0
DEAF_S: Final = SETTINGS.lease_ms / 1000 + 2.0  # so long after a start, or a step of the clock, a reaper judges nobody
CALM_S: Final = 1.0  # so long after trouble nobody is to blame
_RENEW: Final = next(sha for sha, name in SCRIPTS.items() if name == "renew")
_CELL: Final = keys.CellKeys(SETTINGS.namespace)
_CONTROL: Final = keys.ControlKeys(SETTINGS.namespace)


class RestChecker:
    """Looks five times a second. late_s_max: so late a deadline may be noticed; troubled_until_s: of the server or of
    all; nobody is to blame until then.
    """

    def __init__(
        self, world: World, server: Server, network: Network, fleet: Fleet, checker: Checker, late_s_max: float
    ) -> None:
        self.troubled_until_s = 0.0
        self._late_s_max = late_s_max
        self._world = world
        self._server = server
        self._network = network
        self._fleet = fleet
        self._checker = checker
        self._since_s: dict[tuple[int, str], float] = {}
        self._blamed: set[tuple[int, str]] = set()
        self._late: set[str] = set()
        self._overdue: set[str] = set()
        self._owned_since_s: dict[int, tuple[str, float]] = {}
        self._taken: dict[int, tuple[str, float, float]] = {}  # epoch, since when, and what the server's clock said
        self._index = Index()
        self._looks = 0
        self._chance = world.chance("repeats")

    def begin(self) -> None:
        """Look now, and again and again."""
        self.look()
        self._checker.check_leases()
        self._looks += 1
        if self._looks % REPEAT_EVERY == 0:
            self._repeat_late()
        self._world.call_at(self._world.now_s + LOOK_EVERY_S, self.begin)

    def _repeat_late(self) -> None:
        """A call of a while ago comes once more, and a renewal with a token that is not the newest comes late."""
        if self._checker.data_faults or not self._server.past or self._server.refuses:
            return
        command = self._chance.choice(self._server.past)
        if changed := self._server.again(command):
            self._checker.blame("repeat", f"{SCRIPTS[command[1]]} came again late and changed {changed}")
        live = [(job_id, record) for job_id, record in self._checker.records.items() if record["state"] == "reserved"]
        if live:
            job_id, record = self._chance.choice(live)
            names = _CELL.slots(record["node"]).encode(), _CELL.job(job_id).encode(), _CELL.capacity.encode()
            stale = str(int(record["token"]) - 1).encode()
            if changed := self._server.again([b"EVALSHA", _RENEW, b"3", *names, job_id.encode(), stale, b"started"]):
                self._checker.blame("stale", f"renew of job {job_id} with an old token changed {changed}")

    def trouble(self, for_s: float) -> None:
        """The server is in trouble for so long."""
        self.troubled_until_s = max(self.troubled_until_s, self._world.now_s + for_s)

    def look(self) -> None:
        """One look."""
        now_s = self._world.now_s
        waits: set[tuple[int, str]] = set()
        if now_s > self.troubled_until_s + CALM_S and self._read_index():
            owners = self._owners()
            for partition, owner in owners.items():
                if self._is_well(partition, owner):
                    jobs = self._read_jobs(partition)
                    waits |= {(partition, entry) for entry in self._wrongly_waiting(jobs)}
                    self._check_deadlines(partition, jobs)
        self._since_s = {each: self._since_s.get(each, now_s) for each in sorted(waits)}
        for each, since_s in self._since_s.items():
            if now_s - since_s > WAIT_S_MAX and each not in self._blamed:
                self._blamed.add(each)
                self._checker.blame("waits", f"entry {each[1]} of partition {each[0]} waits beside a free slot")
        if now_s > self.troubled_until_s + DEAF_S and any(map(self._is_calm, REAPERS)):
            self._check_overdue()

    def _is_calm(self, seat: str) -> bool:
        """Whether the process there has had nothing in its way for as long as a reaper keeps still after that."""
        process = self._fleet.seats[seat].process
        if process is None:
            return False
        wires = self._network.wires(process)
        since_s = max(process.begun_s, process.suspended_until_s, wires.troubled_until_s, wires.cut_until_s)
        return self._world.now_s > since_s + DEAF_S

    def _check_overdue(self) -> None:
        """What a reaper should have dealt with."""
        until_s = self._world.now_s - OVERDUE_S_MAX
        for (node, job_id), ends_s in self._checker.lease_ends_s.items():
            if ends_s < until_s:
                self._blame_overdue(job_id, f"the lease of job {job_id} on {node} has lapsed")
        for job_id, due_s in self._checker.due_at_s.items():
            if due_s < until_s:
                self._blame_overdue(job_id, f"job {job_id} is due")

    def _blame_overdue(self, job_id: str, detail: str) -> None:
        if job_id not in self._overdue and job_id not in self._checker.exempt:
            self._overdue.add(job_id)
            self._checker.blame("overdue", f"{detail} for more than {OVERDUE_S_MAX} s")

    def _owners(self) -> dict[int, str]:
        """Whose lease is in force. One that has lapsed can be of somebody who does not know: of before a loss."""
        flat = self._server.ask("HGETALL", _CELL.owners)
        now_ms = self._server.wall_s() * 1000
        words = {int(flat[i]): flat[i + 1].decode().split(" ") for i in range(0, len(flat), 2)}
        for partition, (epoch, *_) in words.items():
            if self._taken.get(partition, ("", 0.0, 0.0))[0] != epoch:
                self._taken[partition] = epoch, self._world.now_s, now_ms
        stored = {partition: owner for partition, (_, owner, until_ms, *_) in words.items() if int(until_ms) > now_ms}
        for partition, owner in stored.items():
            if self._owned_since_s.get(partition, ("", 0.0))[0] != owner:
                self._owned_since_s[partition] = owner, self._world.now_s
        return stored

    def _is_well(self, partition: int, owner: str) -> bool:
        """Whether the owner has held the partition for a while and nothing has kept it from its work."""
        now_s = self._world.now_s
        process = self._process_of(owner)
        if process is None or not process.is_alive or now_s - self._owned_since_s[partition][1] < 2 * CALM_S:
            return False
        wires = self._network.wires(process)
        return now_s > max(process.suspended_until_s, wires.troubled_until_s, wires.cut_until_s) + CALM_S

    def _process_of(self, owner: str) -> Process | None:
        for name in DISPATCHERS:
            for process in self._fleet.seats[name].processes:
                if owner.startswith(f"dispatcher-{process.name}+"):
                    return process
        return None

    def _read_index(self) -> bool:
        """The published snapshot; False while there is none that can be read."""
        version = int(self._server.ask("GET", _CONTROL.version) or 0)
        if version == self._index.version:
            return version > 0
        snapshot = read_published(self._server)
        if snapshot is None:
            return False
        self._index = Index(snapshot)
        return self._index.version == version

    def _free_nodes(self) -> set[str]:
        """Nodes with a free slot for the boot that is published. One that leaves gives back at once what it gets."""
        flat = self._server.ask("HGETALL", _CELL.capacity)
        free = set()
        for i in range(0, len(flat), 2):
            node, (slots, boot, *_) = flat[i].decode(), flat[i + 1].decode().split(" ")
            published = self._index.nodes.get(node)
            is_there = published is not None and published.boot == boot and not self._fleet.seats[node].is_leaving
            if is_there and self._server.ask("ZCARD", _CELL.slots(node)) < int(slots):
                free.add(node)
        return free

    def _read_jobs(self, partition: int) -> list[intake.Job]:
        """Those in the intake of a partition, in order."""
        found = []
        for identifier, flat in self._server.ask("XRANGE", _CELL.jobs(partition), "-", "+"):
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            job = intake.decode(messages.Entry(partition, 0, identifier.decode(), fields), 0, SETTINGS)
            if isinstance(job, intake.Job):
                found.append(job)
        return found

    def _wrongly_waiting(self, jobs: list[intake.Job]) -> list[str]:
        free = self._free_nodes() if jobs else set()
        now_ms = self._server.wall_s() * 1000
        found, sessions = [], set()
        for job in jobs if free else ():
            is_first = job.session_id not in sessions
            sessions.add(job.session_id)
            late = job.deadline_at_ms is not None and job.deadline_at_ms <= now_ms
            is_first = is_first and job.session_id not in self._checker.strays  # perhaps it waits for one elsewhere
            if is_first and not late and self._has_room(job, free):
                found.append(job.entry_id)
        return found

    def _check_deadlines(self, partition: int, jobs: list[intake.Job]) -> None:
        """A job waits no longer than its deadline after its producer got the answer, whatever the server's clock does.

        A dispatcher that takes a partition over knows the server's time alone. It counts the deadline of an entry whose
        id lies in the future from the take-over.
        """
        _, taken_s, taken_ms = self._taken[partition]
        for job in jobs:
            due_s = self._checker.due_s.get(f"{job.partition}/{job.entry_id}", math.inf)
            if job.deadline_at_ms is not None:
                submitted_ms = int(job.entry_id.partition("-")[0])
                due_s = max(due_s, taken_s + (job.deadline_at_ms - max(taken_ms, submitted_ms)) / 1000)
            late_s = self._world.now_s - due_s
            if late_s > self._late_s_max and job.job_id not in self._checker.exempt | self._late:
                self._late.add(job.job_id)
                self._checker.blame("deadline", f"job {job.job_id} waits {late_s:.1f} s past its deadline")

    def _has_room(self, job: intake.Job, free: set[str]) -> bool:
        binding = parse(self._server.ask("GET", _CELL.session(job.session_id)))
        if binding is None and job.session_id in self._checker.unbound:
            return False  # its owner may remember one, and have it wait by that
        wanted = candidates.classify(job, binding, self._index)
        for limit in limits_of(job, wanted, self._index):
            kind, _, name = limit.partition(":")
            flat = self._server.ask("ZRANGE", _CELL.held(kind, name), 0, -1, "WITHSCORES")
            least = min((int(score) for score in flat[1::2] if int(score)), default=0)
            if not has_room(limit, len(flat) // 2, least, wanted.pool, self._index):
                return False
        if self._is_coming_into_force(job):
            return False
        pools = [pool for pool in self._index.tiers(wanted.pool) if self._admits(pool, job.tenant_id)]
        return any(
            self._index.nodes[node].pool in pools and can_run(node, job.src_lang, job.tgt_lang, job.features)
            for node in free
        )

    def _is_coming_into_force(self, job: intake.Job) -> bool:
        """Whether a job of the session runs under a limit that a leader has counted in the cell and not published yet:
        it holds the later ones of the session already.
        """
        counted = messages.parse_counted((self._server.ask("GET", _CELL.counted) or b"").decode())
        if "session" not in counted.kinds - self._index.counted:
            return False
        flat = self._server.ask("ZRANGE", _CELL.held("session", job.session_id), 0, -1, "WITHSCORES")
        least = min((int(score) for score in flat[1::2] if int(score)), default=0)
        return 0 < least <= len(flat) // 2

    def _admits(self, pool: str, tenant: str) -> bool:
        tenants = self._index.policy(pool).match.tenants
        return not tenants or tenant in tenants
