"""The management shell: lead -> take -> fold -> capacity -> publish. Only its scripts write snapshot, version,
capacities.

Any number of managers may run; one leads, the others stand by. Every step is fenced by the leader's epoch, so a manager
that was paused can harm nothing when it wakes: it learns that it leads no more and stands by.
"""

from __future__ import annotations

import logging
import time
from typing import Final

import msgspec

from scheduler.calls import CapacityItem, Command, Heartbeat
from scheduler.config import Settings
from scheduler.errors import Fenced, InvalidInput
from scheduler.management import fold
from scheduler.model import NodeBeat, Snapshot, boot_order, decode_beat
from scheduler.store.control import Leading
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.manager")

TAKE_MAX: Final = 1_000  # heartbeats of one step
DEAF_MS: Final = 1_000  # after so long without a take of our own, silence proves nothing
FORGET_MS: Final = 60_000
BOOT_AHEAD_US_MAX: Final = 60_000_000  # a boot later than that could never be replaced
LOOK_BACK_MS: Final = 5_000
SUSPECTS_SHOWN_MAX: Final = 10


class Report(msgspec.Struct, frozen=True):
    """What one step did."""

    leading: bool = False
    heartbeats: int = 0
    invalid: int = 0
    capacities: int = 0
    published: bool = False
    suspects: int = 0


class Manager:
    """One manager. `run_once` is a step; the epoch and the fleet live between steps while it leads."""

    def __init__(self, store: Store, settings: Settings, name: str) -> None:
        self.name = name
        self.invalid_heartbeats = 0
        self._store = store
        self._settings = settings
        self._epoch: int | None = None
        self._fleet = fold.Fleet()
        self._published = Snapshot(version=0)
        self._published_at = 0.0
        self._taken_at = 0.0
        self._led_at = 0.0
        self._looked_back_at = 0.0
        self._acknowledge: tuple[str, ...] = ()
        self._written: dict[str, CapacityItem] = {}

    @property
    def leading(self) -> bool:
        """Whether the last step led."""
        return self._epoch is not None

    async def run_once(self) -> Report:
        """Lead if possible; if so take, fold, write capacities and publish. Returns counts."""
        try:
            if not await self._lead():
                return Report()
            return await self._manage()
        except Fenced:
            self._epoch = None
            raise

    async def give_up(self) -> None:
        """Stop leading at once."""
        if self._epoch is not None:
            self._epoch = None
            await self._store.control.give_up_lead(self.name)

    async def _lead(self) -> bool:
        """Renew at a third of the lease; a new epoch means a take-over."""
        now = time.monotonic()
        if self._epoch is not None and (now - self._led_at) * 3_000 < self._settings.leader_lease_ms:
            return True
        answer = await self._store.control.lead(self.name)
        if not isinstance(answer, Leading):
            if self._epoch is not None:
                logger.warning("%s leads no more: %s does", self.name, answer.leader)
            self._epoch = None
            return False
        self._led_at = now
        if answer.epoch != self._epoch:
            self._epoch = answer.epoch
            await self._take_over(answer)
        return True

    async def _take_over(self, leading: Leading) -> None:
        """Raise the epoch everywhere, learn what is stored, and let every age start now.

        The capacities of all nodes are written again by the next step, because an earlier leader may have written
        some of them late.
        """
        await self._store.cell.capacity(leading.epoch, [])
        self._published = await self._store.control.read_snapshot()
        capacities = await self._store.reads.capacities()
        self._fleet = fold.recover(self._published, capacities, leading.now_ms)
        self._written = {}
        self._acknowledge = ()
        self._taken_at = self._looked_back_at = time.monotonic()
        acknowledge: tuple[str, ...] = ()
        while True:
            taken = await self._store.control.take(self.name, leading.epoch, acknowledge, pending=True)
            if not taken.heartbeats and not taken.commands:
                break
            self._fold(taken.heartbeats)
            await self._answer(taken.commands)
            acknowledge = tuple(heartbeat.id for heartbeat in taken.heartbeats)
        logger.info("%s leads under epoch %d with %d known nodes", self.name, leading.epoch, len(self._fleet.nodes))

    async def _manage(self) -> Report:
        assert self._epoch is not None
        # Now and then also what a lost reply left behind, commands above all.
        pending = time.monotonic() - self._looked_back_at > LOOK_BACK_MS / 1000
        if pending:
            self._looked_back_at = time.monotonic()
            await self._compare()
        taken = await self._store.control.take(
            self.name, self._epoch, self._acknowledge, pending=pending, count=TAKE_MAX
        )
        self._acknowledge = tuple(heartbeat.id for heartbeat in taken.heartbeats)
        now = time.monotonic()
        if (now - self._taken_at) * 1000 > DEAF_MS:
            self._fleet = fold.listen_anew(self._fleet, taken.now_ms)
        self._taken_at = now
        invalid = self._fold(taken.heartbeats)
        await self._answer(taken.commands)
        if not pending and len(taken.heartbeats) < TAKE_MAX:
            # Otherwise there is more to hear, perhaps of those who seem silent.
            self._fleet = fold.age(self._fleet, taken.now_ms, self._settings.silence_ms)
        capacities = await self._write_capacities()
        published = await self._publish(taken.now_ms)
        await self._forget(taken.now_ms)
        suspects = sum(known.suspect for known in self._fleet.nodes.values())
        return Report(True, len(taken.heartbeats), invalid, capacities, published, suspects)

    def _fold(self, heartbeats: tuple[Heartbeat, ...]) -> int:
        """Fold what can be decoded. Returns how many could not."""
        beats = []
        invalid = 0
        for heartbeat in heartbeats:
            try:
                beat = decode_beat(heartbeat.document)
            except InvalidInput as error:
                invalid += 1
                logger.warning("heartbeat %s is ignored: %s", heartbeat.id, error)
                continue
            if isinstance(beat, NodeBeat) and boot_order(beat.boot) > heartbeat.time_ms * 1000 + BOOT_AHEAD_US_MAX:
                invalid += 1
                logger.warning("heartbeat %s is ignored: boot %s is in the future", heartbeat.id, beat.boot)
            elif isinstance(beat, NodeBeat):
                beats.append((beat, heartbeat.time_ms))
        self.invalid_heartbeats += invalid
        self._fleet, ignored = fold.fold(self._fleet, beats)
        for each in ignored:
            logger.debug("heartbeat of %s: %s", each.node, each.why)
        return invalid

    async def _answer(self, commands: tuple[Command, ...]) -> None:
        """Tell the sender of each command what became of it. No command is known yet, so each is refused."""
        if commands:
            assert self._epoch is not None
            refused = msgspec.json.encode({"refused": "unknown command"})
            answers = [(command.id, refused) for command in commands]
            await self._store.control.publish(self.name, self._epoch, None, answers=answers)

    async def _compare(self) -> None:
        """Write again what the server has lost: after a crash its last writes can be missing."""
        stored = await self._store.reads.capacities()
        lost = [
            node
            for node, item in self._written.items()
            if stored.get(node) != item and (node in stored or item.reason in fold.SERVING)
        ]
        for node in lost:
            del self._written[node]
        if await self._store.control.read_version() != self._published.version:
            self._published = Snapshot(version=0)

    async def _forget(self, now_ms: int) -> None:
        """Drop nodes that have been dead for long and that a reaper has taken out of the cells."""
        if not any(known.dead and now_ms - known.heard_ms >= FORGET_MS for known in self._fleet.nodes.values()):
            return
        present = await self._store.reads.capacities()
        self._fleet = fold.forget(self._fleet, present, now_ms, FORGET_MS)
        self._written = {node: item for node, item in self._written.items() if node in self._fleet.nodes}

    async def _write_capacities(self) -> int:
        """Write what differs from what we wrote. Returns how many."""
        assert self._epoch is not None
        items = [fold.capacity_of(known) for known in self._fleet.nodes.values()]
        changed = [item for item in items if self._written.get(item.node) != item]
        for start in range(0, len(changed), self._settings.batch_max):
            batch = changed[start : start + self._settings.batch_max]
            answers = await self._store.cell.capacity(self._epoch, batch)
            for item, answer in zip(batch, answers, strict=True):
                if answer != "refused":
                    self._written[item.node] = item
                if item.reason == "dead" and answer == "written":
                    logger.warning("node %s is dead: silent for %d ms", item.node, self._settings.silence_ms)
        suspects = [item.node for item in changed if item.reason == "suspect"]
        if suspects:
            shown = ", ".join(suspects[:SUSPECTS_SHOWN_MAX])
            logger.error(
                "%d nodes fell silent at once, so they are suspect, not dead: is the network in order? %s%s",
                len(suspects), shown, ", ..." if len(suspects) > SUSPECTS_SHOWN_MAX else "",
            )  # fmt: skip
        return len(changed)

    async def _publish(self, now_ms: int) -> bool:
        """Publish when placement would see a difference, at most every `publish_ms`."""
        assert self._epoch is not None
        if (time.monotonic() - self._published_at) * 1000 < self._settings.publish_ms:
            return False
        version = max(self._published.version + 1, now_ms * 1000)
        snapshot = fold.picture(self._fleet, version, self._settings)
        if self._published.version and fold.same_picture(snapshot, self._published):
            return False
        await self._store.control.publish(self.name, self._epoch, snapshot)
        self._published = snapshot
        self._published_at = time.monotonic()
        return True
