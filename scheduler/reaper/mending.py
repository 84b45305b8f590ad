"""What keys that were deleted have left behind is found once a second, and put right from what is still there.

The set of open nodes is made from capacities and slots; a reservation without a slot ends when nobody has renewed it
for a lease, for renewing gives it its slot back; a delayed job without a time is found by its body. A part of the fleet
is looked at in each second, so the costs are bounded. What counts for limits the leader looks after (counting.py).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from scheduler.clock import Clock
from scheduler.config import Settings
from scheduler.protocol import record_fields
from scheduler.reaper.duties import each_in_turn
from scheduler.store.reads import Unslotted, position
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.reaper")

LOOK_MS: Final = 1_000
NODES_AT_ONCE_MAX: Final = 1_000
USUAL_MS: Final = 60_000  # a word can go when a slot is lost, so that the difference says nothing
PAGE: Final = 64  # entries that a script reads at once, with their bodies

Seat = tuple[str, Unslotted]


class Mender:
    """The looks of one reaper.

    Args: store; settings; clock, the process's own; expire(seats), ends reservations, (node, assignment) each, if
    nobody has renewed them; promote(job ids), sends delayed jobs back to the intake.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        clock: Clock,
        expire: Callable[[Sequence[Seat]], Awaitable[None]],
        promote: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._cell = store.cell
        self._connection = store.connection
        self._reads = store.reads
        self._settings = settings
        self._clock = clock
        self._expire = expire
        self._promote = promote
        self._due_ms = 0.0
        self._first_node = 0
        self._usual: dict[str, tuple[int, float]] = {}
        self._since_ms: dict[Seat, float] = {}
        self._later_ms: dict[str, tuple[int, int]] = {}

    async def look(self, nodes: Sequence[str], now_ms: int) -> None:
        """One look, if it is due. nodes: all that have a capacity; now_ms: the server's time."""
        if self._clock.ms() < self._due_ms:
            return
        self._due_ms = self._clock.ms() + LOOK_MS
        # No call of a role fails by these, or rarely: scripts pass over a feed that takes nothing, nodes alone ask for
        # boots, and a word to a node is written when its capacity changes.
        k = self._reads.keys
        await self._connection.retype([k.results, k.freed, k.parked, k.dead, k.last_boot, k.control_ids])
        if self._first_node >= len(nodes):
            self._first_node = 0
            self._usual = {node: self._usual[node] for node in nodes if node in self._usual}
            present = frozenset(nodes)
            self._since_ms = {seat: ms for seat, ms in self._since_ms.items() if seat[0] in present}
        chosen = nodes[self._first_node : self._first_node + NODES_AT_ONCE_MAX]
        self._first_node += NODES_AT_ONCE_MAX
        await each_in_turn(lambda: self._look_at_nodes(chosen), lambda: self._look_at_delayed(now_ms))

    async def _look_at_nodes(self, nodes: Sequence[str]) -> None:
        rooms = dict(zip(nodes, await self._reads.room(nodes), strict=True))
        unused = {node: entries - used for node, (_, used, entries) in rooms.items()}
        usual = {node for node, more in unused.items() if self._is_usual(node, more)}
        await each_in_turn(
            lambda: self._look_at_open(rooms),
            *[functools.partial(self._look_at_slots, node, unused[node]) for node in nodes if node not in usual],
            self._end,
        )

    def _is_usual(self, node: str, unused: int) -> bool:
        """Whether nothing was found when as many entries had no slot, not long ago."""
        usual, looked_at_ms = self._usual.get(node, (-1, 0.0))
        return usual == unused and self._clock.ms() - looked_at_ms < USUAL_MS

    # ---- open ----

    async def _look_at_open(self, rooms: Mapping[str, tuple[bool, int, int]]) -> None:
        """A node that is not open has no room, unless `open` was lost. The script knows better, and capacities too."""
        capacities = await self._reads.capacities()
        wrong = [
            node
            for node, (is_open, used, _) in rooms.items()
            if node in capacities and is_open != (used < capacities[node].slots)
        ]
        for start in range(0, len(wrong), self._settings.batch_max):
            batch = wrong[start : start + self._settings.batch_max]
            answers = dict(zip(batch, await self._cell.reopen(batch), strict=True))
            if mended := [node for node, answer in answers.items() if answer != "right"]:
                logger.warning(
                    "%s was not right (was it deleted?): %d nodes are put right", self._reads.keys.open, len(mended)
                )

    # ---- slots ----

    async def _look_at_slots(self, node: str, unused: int) -> None:
        """An inbox with more entries than the node's slots and words account for has what has lost its slot.

        unused: how many more entries than slots in use. That is the same as long as no words come and nothing is lost.
        """
        found = await self._unslotted(node)
        if found:
            self._usual.pop(node, None)
        else:
            self._usual[node] = unused, self._clock.ms()
        new = [each for each in found if (node, each) not in self._since_ms]
        if new:
            logger.warning(
                "%s lacks %d reservations (was it deleted?): each is put back when its node renews it, or ends",
                self._reads.keys.slots(node), len(new),
            )  # fmt: skip
        now_ms = self._clock.ms()
        since_ms = {(node, each): self._since_ms.get((node, each), now_ms) for each in found}
        self._since_ms = {seat: ms for seat, ms in self._since_ms.items() if seat[0] != node} | since_ms

    async def _end(self) -> None:
        """Reservations that nobody has renewed for a lease; a pool may have longer ones than the settings. An
        assignment that is no reservation, because its record was deleted or written anew, is dropped.
        """
        now_ms = self._clock.ms()
        seats = [seat for seat, ms in self._since_ms.items() if now_ms - ms >= self._settings.lease_ms]
        fields = ("state", "holder", "policy")
        records = await self._reads.records([each.job_id for _, each in seats], fields)
        lapsed, dropped = [], []
        for seat, (state, holder, policy) in zip(seats, records, strict=True):
            node, each = seat
            held = record_fields.parse_holder(holder)
            is_its = state == "reserved" and held is not None and (held.node, held.token) == (node, each.token)
            if not is_its:
                dropped.append(seat)
            if state is None or (is_its and now_ms - self._since_ms[seat] >= record_fields.policy_of(policy).lease_ms):
                lapsed.append(seat)
        if lapsed:
            await self._expire(lapsed)
        for node, each in dropped:
            await self._cell.drop(self._reads.keys.inbox(node), [each.entry_id])
            del self._since_ms[node, each]

    async def _unslotted(self, node: str) -> list[Unslotted]:
        found: list[Unslotted] = []
        after = "0"
        while after:
            page, after = await self._reads.unslotted(node, after, PAGE)
            found += page
        return found

    # ---- delayed ----

    async def _look_at_delayed(self, now_ms: int) -> None:
        """More bodies are parked than jobs are delayed: some have lost their time, or their jobs are no more."""
        keys = self._reads.keys
        bodies, delayed = await self._reads.length(keys.parked), await self._reads.delayed()
        if bodies > delayed + len(self._later_ms):
            after = "0"
            while after:
                page, after = await self._reads.parked(after, PAGE)
                await self._sort_out(page, now_ms)
        # No job is due later than its delay from now: the server's clock may go back meanwhile.
        self._later_ms = {
            job_id: (min(due_ms, now_ms + length_ms), length_ms)
            for job_id, (due_ms, length_ms) in self._later_ms.items()
        }
        due = [job_id for job_id, (due_ms, _) in self._later_ms.items() if due_ms <= now_ms]
        for start in range(0, len(due), self._settings.batch_max):
            batch = due[start : start + self._settings.batch_max]
            await self._promote(batch)
            for job_id in batch:
                del self._later_ms[job_id]

    async def _sort_out(self, page: Sequence[tuple[str, str]], now_ms: int) -> None:
        """Bodies without a time: each belongs to a delayed job, which is due when it was to be, or to none."""
        records = await self._reads.records([job_id for _, job_id in page], ("state", "parked_id", "delay_ms"))
        nobodys, found = [], 0
        for (entry_id, job_id), (state, parked_id, delay_ms) in zip(page, records, strict=True):
            if state != "delayed" or parked_id != entry_id:
                nobodys.append(entry_id)
            elif job_id not in self._later_ms:
                found += 1
                length_ms = record_fields.number_of(delay_ms) or 0
                self._later_ms[job_id] = min(position(entry_id)[0], now_ms) + length_ms, length_ms
        if found:
            logger.warning(
                "%s lacks %d jobs (was it deleted?): they are found by their bodies", self._reads.keys.delayed, found
            )
        if nobodys:
            logger.warning("%d parked bodies belong to no delayed job: they are dropped", len(nobodys))
            await self._cell.drop(self._reads.keys.parked, nobodys)
