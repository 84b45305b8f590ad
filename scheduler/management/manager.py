"""The manager: lead -> take -> fold -> write capacities -> publish. Only its scripts write snapshot and capacities.

Any number of managers may run; one leads, the others stand by. Every step is fenced by the leader's epoch, so a manager
that was paused can harm nothing when it wakes: it learns that it leads no more and stands by.

Commands are answered in the order of their stream, in the step that reads them, and together with what they change. A
command whose answer failed is read again, so nothing of it is in force before it is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.config import Settings
from scheduler.errors import Fenced, InvalidInput, PublishConflict
from scheduler.management import arrivals, commands, fleet, pools
from scheduler.management.commands import Decided, Refused
from scheduler.management.configuration_memory import ConfigurationMemory
from scheduler.management.counting import Counting
from scheduler.management.listening import TAKE_MAX, Listener
from scheduler.management.lost_writes import LOOK_MS, LostWrites
from scheduler.management.pools import PoolDocument
from scheduler.management.publication import FleetView, Stored, revise, snapshot_of, store, told, view_of
from scheduler.management.server_copy import ServerCopy
from scheduler.protocol.keys import is_absurd
from scheduler.protocol.messages import CapacityItem, Taken
from scheduler.protocol.snapshot import EMPTY_SNAPSHOT, Delta, Pool, Snapshot, limited_kinds, limits_of_pool
from scheduler.store.control import Leading
from scheduler.store.holders import read_holders
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.manager")

TAKES_MAX: Final = 10  # calls of one step, while there is more to hear
FORGET_MS: Final = 60_000
LOOK_BACK_MS: Final = 5_000
STREAMS_MS: Final = 500  # between two looks whether heartbeats and commands can be written
SHOWN_MAX: Final = 10
NEVER_MS: Final = float("-inf")


class Report(msgspec.Struct, frozen=True):
    """What one step did."""

    leading: bool = False
    heartbeats: int = 0
    invalid: int = 0
    capacities: int = 0
    published: bool = False
    commands: int = 0


class Manager:
    """One manager. `run_once` is a step; the epoch and the fleet live between steps while it leads."""

    def __init__(self, store: Store, settings: Settings, name: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self.name = name
        self._store = store
        self._settings = settings
        self._clock = clock
        self._epoch: int | None = None
        self._follows = ""
        self._seen_epoch = 0
        self._fleet = fleet.Fleet()
        self._listener = Listener(store, name, clock)
        self._copy = ServerCopy()
        self._lost_writes = LostWrites(store)
        self._memory = ConfigurationMemory()
        self._life = store.connection.life
        self._led_at_ms = 0.0
        self._published_at_ms = 0.0
        self._looked_at_ms = NEVER_MS
        self._looked_back_at_ms = 0.0
        self._looked_at_streams_ms = 0.0
        self._has_lost = False
        self._unanswered = False
        self._undelivered = 0  # commands that were decided, and could not be answered
        self._counting = Counting(store, settings, self._keep_lead)
        self._recounts = True

    @property
    def invalid_heartbeats(self) -> int:
        """How many heartbeats could not be decoded."""
        return self._listener.invalid

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
        except Fenced as fenced:
            self._epoch = None
            self._seen_epoch = max(self._seen_epoch, fenced.epoch)
            raise

    async def give_up(self) -> None:
        """Stop leading at once."""
        if self._epoch is not None:
            self._epoch = None
            await self._store.control.give_up_lead(self.name)

    async def _lead(self) -> bool:
        """Renew at a third of the lease; a new epoch means a take-over."""
        now_ms = self._clock.ms()
        if self._epoch is not None and (now_ms - self._led_at_ms) * 3 < self._settings.leader_lease_ms:
            return True
        answer = await self._store.control.lead(self.name, self._seen_epoch)
        if not isinstance(answer, Leading):
            if self._epoch is not None:
                logger.warning("%s leads no more: %s does", self.name, answer.leader)
            elif answer.leader != self._follows:
                logger.info("%s stands by: %s leads", self.name, answer.leader)
            self._epoch, self._follows = None, answer.leader
            await self._remember()
            return False
        self._follows = ""
        self._led_at_ms = now_ms
        if answer.epoch != self._epoch:
            self._epoch = None  # until everything is known that is stored
            self._listener.begin(now_ms)
            self._looked_back_at_ms, self._looked_at_ms = now_ms, NEVER_MS
            await self._take_over(answer)
            self._epoch = answer.epoch
        return True

    async def _remember(self) -> None:
        """While another one leads: what is configured, once a second."""
        if self._clock.ms() - self._looked_at_ms < LOOK_MS:
            return
        self._looked_at_ms = self._clock.ms()
        documents, _ = pools.read(await self._store.control.read_config())
        self._memory.saw(await self._store.control.read_version(), documents)

    async def _keep_lead(self) -> None:
        """Within a step that takes long. Raises: Fenced."""
        epoch = self._epoch
        if not await self._lead() or self._epoch != epoch:
            raise Fenced(f"{self.name} leads no more under epoch {epoch}")

    async def _take_over(self, leading: Leading) -> None:
        """Raise the epoch everywhere, learn what is stored, and let every age start now.

        The capacities of all nodes are written again by the next step, because an earlier leader may have written
        some of them late. So are commands answered that it left.
        """
        await self._store.cell.capacity(leading.epoch, [])
        snapshot, view = await self._read_snapshot()
        version = await self._store.control.read_version()
        capacities = await self._store.reads.capacities() or await self._find_holders(snapshot)
        documents = await self._read_pools()
        missing = self._memory.missing(version, documents)
        if missing:
            names = ", ".join(sorted(missing)[:SHOWN_MAX])
            logger.warning("%s was lost: the pools %s are written again", self._store.control.keys.config, names)
        documents |= missing
        self._fleet = fleet.configure(fleet.recover(snapshot, capacities, leading.now_ms), documents)
        announced = {node: fleet.capacity_of(known) for node, known in self._fleet.nodes.items()}
        self._copy = ServerCopy(version, view, announced, missing)
        self._counting.forget()
        self._recounts = True
        while True:
            taken = await self._take(leading.epoch, pending=True, late=False)
            self._unanswered = bool(taken.commands)
            if not taken.heartbeats:
                break
        logger.info(
            "%s leads under epoch %d with %d known nodes and %d configured pools",
            self.name, leading.epoch, len(self._fleet.nodes), len(documents),
        )  # fmt: skip

    async def _find_holders(self, snapshot: Snapshot) -> dict[str, CapacityItem]:
        """Without capacities, which may have been deleted: nodes that only their reservations tell of. Reapers go by
        the capacities, so their jobs would never come back.
        """
        published = {node.id for node in snapshot.nodes}
        found = {node: item for node, item in (await read_holders(self._store)).items() if node not in published}
        if found:
            logger.warning(
                "%s was lost: %d nodes that hold something count as dead until they are heard",
                self._store.cell.keys.capacity, len(found),
            )  # fmt: skip
        return found

    async def _read_snapshot(self) -> tuple[Snapshot, FleetView]:
        """The published snapshot; what cannot be read of it is made anew, and nothing of it is built upon."""
        try:
            snapshot = await self._store.control.read_snapshot()
        except InvalidInput as error:
            logger.error("the published snapshot is ignored: %s", error)
            return EMPTY_SNAPSHOT, FleetView()
        return snapshot, view_of(snapshot)

    async def _read_pools(self) -> dict[str, PoolDocument]:
        """The stored configuration; what cannot be used of it is logged."""
        documents, complaints = pools.read(await self._store.control.read_config())
        for complaint in complaints:
            logger.error("%s", complaint)
        return documents

    async def _manage(self) -> Report:
        assert self._epoch is not None
        # Now and then also what a lost reply left behind.
        pending = self._unanswered
        if self._has_lost or self._clock.ms() - self._looked_back_at_ms > LOOK_BACK_MS:
            pending = True
            self._has_lost = False
            self._looked_back_at_ms = self._clock.ms()
            await self._look_back()
        await self._look_at_streams(self._epoch)
        invalid = self._listener.invalid
        taken = await self._take(self._epoch, pending=pending)
        heartbeats = len(taken.heartbeats)
        for _ in range(1, TAKES_MAX):
            if pending or taken.commands or len(taken.heartbeats) < TAKE_MAX:
                break
            taken = await self._take(self._epoch, pending=False)
            heartbeats += len(taken.heartbeats)
        has_caught_up = not pending and len(taken.heartbeats) < TAKE_MAX
        if taken.commands and not pending:
            # With those before them whose reading was lost, so that all are answered in their order.
            self._unanswered = True
            taken = await self._take(self._epoch, pending=True)
        self._unanswered = bool(taken.commands)
        if has_caught_up:  # otherwise there is more to hear, perhaps of nodes that seem silent
            self._fleet = fleet.age(self._fleet, taken.now_ms, self._settings.silence_ms)
        named = fleet.named_pools(self._fleet) if taken.commands else {}
        decided = commands.decide(self._fleet.pools, taken.commands, named, self._settings)
        self._copy.changed(self._fleet.changed)
        self._fleet = fleet.clear_changed(self._fleet)
        self._copy.withhold(() if has_caught_up else self._doubtful(taken.now_ms))
        capacities = await self._write_capacities()
        await self._recount()
        published = await self._publish(taken.now_ms, decided)
        self._memory.saw(self._copy.view.version, self._fleet.pools)
        self._unanswered = taken.more
        self._has_lost = await self._look() or self._has_lost
        return Report(True, heartbeats, self._listener.invalid - invalid, capacities, published, len(taken.commands))

    async def _take(self, epoch: int, *, pending: bool, late: bool | None = None) -> Taken:
        """Take and fold. late: newer heartbeats than these may be folded already; by default if they are pending."""
        taken = await self._listener.take(epoch, pending=pending)
        if self._listener.is_stalled:
            self._fleet = fleet.reset_silence(self._fleet, taken.now_ms)
        heartbeats = await self._listener.decode(taken.heartbeats, self._fleet.nodes)
        self._fleet, ignored = fleet.fold(self._fleet, heartbeats, late=pending if late is None else late)
        for heartbeat in ignored:
            logger.debug("heartbeat of %s: %s", heartbeat.node, heartbeat.why)
        return taken

    def _doubtful(self, now_ms: int) -> set[str]:
        """Who would take work again by a heartbeat that is older than the silence of the dead. That waits until all
        that was said has been heard.
        """
        others = self._copy.other_than_written(self._fleet.nodes)
        return fleet.doubtful(self._fleet, others, now_ms, self._settings.silence_ms)

    async def _look(self) -> bool:
        """Whether something may be lost that was written, so that all of it is to be compared. What hangs on no other
        thing is written again already. At the end of a step, because nobody may seem silent for it.
        """
        assert self._epoch is not None
        is_other = self._store.connection.life != self._life
        if not is_other and self._clock.ms() - self._looked_at_ms < LOOK_MS:
            return False
        self._life, self._looked_at_ms = self._store.connection.life, self._clock.ms()
        copy = self._copy
        lost = await self._lost_writes.look(self._epoch, copy.serving, copy.view.version, bool(self._fleet.pools))
        if lost.config:
            await self._publish_anew()
        undelivered, self._undelivered = self._undelivered, 0
        return is_other or lost.capacities or lost.snapshot or undelivered > 0

    async def _look_back(self) -> None:
        """Write again what the server has lost: after a crash its last writes can be missing. Drop who is long dead."""
        stored = await self._store.reads.capacities()
        lost, gone = self._copy.lost_capacities(stored)
        # A node without slots has left, unless it holds something: a reaper has to find that.
        lost += [node for node, used in zip(gone, await self._store.reads.used(gone), strict=True) if used]
        self._copy.write_again(lost)
        if await self._store.control.stored_version() != self._copy.view.version:
            await self._publish_anew()
        self._recounts = True
        adopted = fleet.adopt(self._fleet, stored, self._listener.now_ms)
        self._fleet = fleet.forget(adopted, {*stored, *lost}, self._listener.now_ms, FORGET_MS)
        self._copy.keep_only(self._fleet.nodes.keys())

    async def _look_at_streams(self, epoch: int) -> None:
        """Begin a stream anew that takes no entry any more, because somebody wrote one with an id that no clock gives.

        What is in it is taken and answered first, in the next steps.
        """
        if self._clock.ms() - self._looked_at_streams_ms < STREAMS_MS:
            return
        self._looked_at_streams_ms = self._clock.ms()
        control = self._store.control
        streams = (control.keys.heartbeats, control.keys.commands)
        last_ids = await self._store.reads.last_ids(streams)
        for stream, last_id in zip(streams, last_ids, strict=True):
            if is_absurd(last_id, self._listener.now_ms):
                answer = await control.restart(self.name, epoch, stream)
                logger.warning("stream %s has the id %s, which no clock gives: %s", stream, last_id, answer)

    async def _publish_anew(self) -> None:
        """Let the next step publish the whole, with all of the configuration that the server has not."""
        self._counting.forget()
        configured = self._fleet.pools
        missing = {name: configured.get(name) for name in {*await self._read_pools(), *configured}}
        self._copy.publish_again(self._fleet.nodes, missing)

    async def _write_capacities(self) -> int:
        """Write what differs from what we wrote. Returns how many."""
        assert self._epoch is not None
        changed = self._copy.capacities_to_write(self._fleet.nodes)
        refused, left = set(), set()
        for start in range(0, len(changed), self._settings.batch_max):
            batch = changed[start : start + self._settings.batch_max]
            answers = await self._store.cell.capacity(self._epoch, batch)
            for item, answer in zip(batch, answers, strict=True):
                if answer == "refused":
                    refused.add(item.node)
                elif answer == "left":
                    left.add(item.node)  # and whatever we heard of it is older
                else:
                    self._announce(self._copy.wrote(item), item)
                if item.reason == "dead" and answer == "written":
                    logger.warning("node %s is dead: silent for %d ms", item.node, self._settings.silence_ms)
        for node in self._copy.wrote_all(refused, left):
            logger.info("node %s has left", node)
        if left:
            self._fleet = fleet.without(self._fleet, left)
        suspects = [item.node for item in changed if item.reason == "suspect"]
        if suspects:
            shown = ", ".join(suspects[:SHOWN_MAX])
            logger.error(
                "%d nodes fell silent at once, so they are suspect, not dead: is the network in order? %s%s",
                len(suspects), shown, ", ..." if len(suspects) > SHOWN_MAX else "",
            )  # fmt: skip
        return len(changed)

    def _announce(self, before: CapacityItem | None, item: CapacityItem) -> None:
        """Log what is news of a node. before: what was announced of it last."""
        if news := arrivals.news_of(before, item, self._fleet.nodes[item.node]):
            logger.log(logging.WARNING if item.reason == "quarantined" else logging.INFO, "node %s %s", item.node, news)

    async def _recount(self) -> None:
        """Compare what the cell counts with what is published, if it may be another one; and who counts, with time."""
        assert self._epoch is not None
        view = self._copy.view
        if self._recounts and view.version:  # otherwise with what is about to be
            await self._counting.look(self._epoch, view.pools, view.version, self._fleet.nodes)
            self._recounts = False
        await self._counting.patrol(self._epoch, view.pools, self._fleet.nodes, self._clock.ms())

    async def _publish(self, now_ms: int, decided: Decided) -> bool:
        """Publish what was decided at once, else when placement would see a difference, at most every `publish_ms`. A
        limit is published once the cell counts for it.

        Returns whether there is a new snapshot.
        """
        assert self._epoch is not None
        if not decided.answers and self._clock.ms() - self._published_at_ms < self._settings.publish_ms:
            return False
        copy = self._copy
        next_fleet = fleet.configure(self._fleet, decided.documents) if decided.changes else self._fleet
        version = max(copy.version + 1, now_ms * 1000)
        view, delta = revise(copy.view, next_fleet, copy.to_publish(next_fleet.changed), version, self._settings)
        has_news = delta.size > 0
        kinds = limited_kinds(view.pools)
        has_other_limits = kinds != self._counting.kinds or _limits(copy.view.pools) != _limits(view.pools)
        if has_other_limits:
            await self._counting.add(self._epoch, view.pools, next_fleet.nodes)
        stored = copy.stored
        if has_news:
            stored = store(copy.stored, delta, len(view.nodes), self._settings.deltas_max)
            copy.sending(delta)
            await self._send(view, delta, stored, decided)
            self._published_at_ms = self._clock.ms()
        elif decided.answers:
            await self._send(view, None, stored, decided)
        self._fleet = next_fleet
        copy.published(view, stored)
        if has_other_limits:
            await self._counting.settle(self._epoch, kinds, view.version)
        return has_news

    async def _send(self, view: FleetView, delta: Delta | None, stored: Stored, decided: Decided) -> None:
        """Write what is new, None for nothing, and what was decided. Raises: PublishConflict; then all is
        published anew.
        """
        assert self._epoch is not None
        changes = self._copy.missing | decided.changes
        try:
            self._undelivered = await self._store.control.publish(
                self.name,
                self._epoch,
                snapshot_of(view) if delta and stored.whole == delta.version else None,
                told(delta) if delta else None,
                oldest=stored.oldest,
                sets={
                    pools.stored_field(name): pools.encode(said) for name, said in changes.items() if said is not None
                },
                deletes=[pools.stored_field(name) for name, said in changes.items() if said is None],
                answers=[
                    (command, commands.encode_answer(answer, view.version)) for command, answer in decided.answers
                ],
            )
        except PublishConflict:
            await self._publish_anew()
            raise
        self._copy.wrote_configuration()
        if self._undelivered:
            stream = self._store.control.keys.answers
            logger.warning(
                "%s takes no entry: %d commands are decided again, to be answered", stream, self._undelivered
            )
        else:
            _log(decided)


def _limits(pools: Iterable[Pool]) -> dict[str, tuple[tuple[str, int], ...]]:
    return {pool.id: limits_of_pool(pool) for pool in pools if limited_kinds([pool])}


def _log(decided: Decided) -> None:
    for command, answer in decided.answers:
        if isinstance(answer, Refused):
            logger.warning("command %s is refused: %s", command, answer.why)
        else:
            more = ", ..." if len(answer.pools) > SHOWN_MAX else ""
            logger.info("command %s is done, for pools %s%s", command, ", ".join(answer.pools[:SHOWN_MAX]), more)
