"""The management shell: lead -> take -> fold -> capacity -> publish. Only its scripts write snapshot, version,
capacities.

Any number of managers may run; one leads, the others stand by. Every step is fenced by the leader's epoch, so a manager
that was paused can harm nothing when it wakes: it learns that it leads no more and stands by.

Commands are answered in the order of their stream, in the step that reads them, and together with what they change; one
whose answer failed is read again, so that nothing of it is in force before it is stored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from scheduler.clock import SYSTEM_CLOCK, Clock, ServerTime
from scheduler.config import Settings
from scheduler.errors import Fenced, InvalidInput, Lost
from scheduler.management import arrivals, commands, fleet, pools
from scheduler.management.commands import Decided, Refused
from scheduler.management.counting import Counting
from scheduler.management.heartbeats import AHEAD_US, BOOT_MAX, Hearing, NotGiven
from scheduler.management.memory import Memory
from scheduler.management.pools import PoolDocument
from scheduler.management.publication import Picture, Stored, picture_of, revise, snapshot_of, store, told
from scheduler.management.server_copy import LOOK_MS, Standing
from scheduler.protocol.documents import NodeBeat, boot_order
from scheduler.protocol.keys import is_absurd
from scheduler.protocol.messages import CapacityItem, Heartbeat, Taken
from scheduler.protocol.snapshot import EMPTY_SNAPSHOT, Delta, Pool, Snapshot, limited_kinds, limits_of_pool
from scheduler.store.control import Leading
from scheduler.store.holders import read_holders
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.manager")

TAKE_MAX: Final = 1_000  # heartbeats of one call
TAKES_MAX: Final = 10  # calls of one step, while there is more to hear
DEAF_MS: Final = 1_000  # after so long without a take of our own, silence proves nothing
FORGET_MS: Final = 60_000
LOOK_BACK_MS: Final = 5_000
STREAMS_MS: Final = 500  # between two looks whether heartbeats and commands can be written
SHOWN_MAX: Final = 10


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
        self.invalid_heartbeats = 0
        self._store = store
        self._settings = settings
        self._clock = clock
        self._epoch: int | None = None
        self._follows = ""
        self._seen_epoch = 0
        self._fleet = fleet.Fleet()
        self._hearing = Hearing()
        self._version = 0
        self._published = Picture()
        self._stored = Stored()
        self._published_at_ms = 0.0
        self._server_time = ServerTime()
        self._now_ms = 0
        self._taken_at_ms = 0.0
        self._led_at_ms = 0.0
        self._looked_back_at_ms = 0.0
        self._looked_at_streams_ms = 0.0
        self._standing = Standing(store)
        self._memory = Memory()
        self._has_lost = False
        self._looked_at_ms = float("-inf")
        self._life = store.connection.life
        self._acknowledge: tuple[str, ...] = ()
        self._unanswered = False
        self._untold = 0  # commands that were decided, and could not be answered
        self._has_taken = False
        self._written: dict[str, CapacityItem] = {}
        self._told: dict[str, CapacityItem] = {}
        self._unwritten: set[str] = set()
        self._unpublished: set[str] = set()
        self._withheld: set[str] = set()
        self._lost: dict[str, PoolDocument | None] = {}
        self._counting = Counting(store, settings, self._keep_lead)
        self._recounts = True

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
            # Nobody is called silent who could not be heard while the answer was on its way and what follows it.
            self._taken_at_ms = self._looked_back_at_ms = now_ms
            self._looked_at_ms = float("-inf")
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
        snapshot, self._published = await self._read_snapshot()
        self._version = await self._store.control.read_version()
        self._stored = Stored()
        capacities = await self._store.reads.capacities() or await self._find_holders(snapshot)
        documents = await self._read_pools()
        missing = self._memory.missing(self._version, documents)
        if missing:
            names = ", ".join(sorted(missing)[:SHOWN_MAX])
            logger.warning("%s was lost: the pools %s are written again", self._store.control.keys.config, names)
        self._lost = dict(missing)
        documents |= missing
        self._fleet = fleet.configure(fleet.recover(snapshot, capacities, leading.now_ms), documents)
        self._unwritten, self._unpublished = set(), set()
        self._written = {}
        self._told = {node: fleet.capacity_of(known) for node, known in self._fleet.nodes.items()}
        self._counting.forget()
        self._recounts = True
        self._acknowledge = ()
        while True:
            taken, _ = await self._take(leading.epoch, pending=True, late=False)
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

    async def _read_snapshot(self) -> tuple[Snapshot, Picture]:
        """The published snapshot; what cannot be read of it is made anew, and nothing of it is built upon."""
        try:
            snapshot = await self._store.control.read_snapshot()
        except InvalidInput as error:
            logger.error("the published snapshot is ignored: %s", error)
            return EMPTY_SNAPSHOT, Picture()
        return snapshot, picture_of(snapshot)

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
        taken, invalid = await self._take(self._epoch, pending=pending)
        heartbeats = len(taken.heartbeats)
        for _ in range(1, TAKES_MAX):
            if pending or taken.commands or len(taken.heartbeats) < TAKE_MAX:
                break
            taken, more_invalid = await self._take(self._epoch, pending=False)
            heartbeats += len(taken.heartbeats)
            invalid += more_invalid
        is_heard = not pending and len(taken.heartbeats) < TAKE_MAX
        if taken.commands and not pending:
            # With those before them whose reading was lost, so that all are answered in their order.
            self._unanswered = True
            taken, more_invalid = await self._take(self._epoch, pending=True)
            invalid += more_invalid
        self._unanswered = bool(taken.commands)
        if is_heard:  # otherwise there is more to hear, perhaps of those who seem silent
            self._fleet = fleet.age(self._fleet, taken.now_ms, self._settings.silence_ms)
        named = fleet.named_pools(self._fleet) if taken.commands else {}
        decided = commands.decide(self._fleet.pools, taken.commands, named, self._settings)
        self._note_news()
        self._withheld = set() if is_heard else self._doubtful(taken.now_ms)
        capacities = await self._write_capacities()
        await self._recount()
        published = await self._publish(taken.now_ms, decided)
        self._memory.saw(self._published.version, self._fleet.pools)
        self._unanswered = taken.more
        self._has_lost = await self._look() or self._has_lost
        return Report(True, heartbeats, invalid, capacities, published, len(taken.commands))

    async def _take(self, epoch: int, *, pending: bool, late: bool | None = None) -> tuple[Taken, int]:
        """Take and fold. late: newer heartbeats than these may be folded already; without a word, if they are pending.

        Returns: what was taken, and how many heartbeats of it could not be decoded.
        """
        sent_ms = self._clock.ms()
        taken = await self._store.control.take(self.name, epoch, self._acknowledge, pending=pending, count=TAKE_MAX)
        self._acknowledge = tuple(heartbeat.id for heartbeat in taken.heartbeats)
        if taken.groups_made and self._has_taken:
            logger.warning(
                "groups of %s or %s were lost: what they had not dealt with is read again",
                self._store.control.keys.heartbeats, self._store.control.keys.commands,
            )  # fmt: skip
        self._has_taken = True
        now_ms = self._clock.ms()
        step_ms = self._server_time.told(taken.now_ms, sent_ms, now_ms)
        if step_ms:
            logger.warning("the server's clock was stepped by about %.0f ms: all ages of nodes begin anew", step_ms)
        if step_ms or now_ms - self._taken_at_ms > DEAF_MS:
            self._fleet = fleet.listen_anew(self._fleet, taken.now_ms)
        self._taken_at_ms = now_ms
        self._now_ms = taken.now_ms
        return taken, await self._fold(taken.heartbeats, pending if late is None else late)

    async def _fold(self, heartbeats: tuple[Heartbeat, ...], late: bool) -> int:
        """Fold what can be decoded. Returns how many could not."""
        beats = []
        invalid = 0
        self._hearing.boot_max = 1_000 * self._now_ms + AHEAD_US
        last_boot: int | None = None
        for heartbeat in heartbeats:
            try:
                try:
                    beat = self._hearing.beat(heartbeat.document, heartbeat.time_ms)
                except NotGiven as doubt:
                    if last_boot is None:
                        last_boot = await self._store.reads.last_boot()
                    if not self._was_given(doubt.beat, last_boot):
                        raise
                    beat = doubt.beat
                    self._hearing.believe(heartbeat.document, beat)
            except InvalidInput as error:
                invalid += 1
                logger.warning("heartbeat %s is ignored: %s", heartbeat.id, error)
            else:
                if beat is not None:
                    beats.append((beat, heartbeat.time_ms))
        self.invalid_heartbeats += invalid
        self._fleet, ignored = fleet.fold(self._fleet, beats, late=late)
        for each in ignored:
            logger.debug("heartbeat of %s: %s", each.node, each.why)
        return invalid

    def _was_given(self, beat: NodeBeat, last_boot: int) -> bool:
        """Whether a boot ahead of the clock was given by `boot`, or is one of a node whose last one was ahead too."""
        known = self._fleet.nodes.get(beat.node)
        known_order = boot_order(known.beat.boot) + 1 if known is not None else 0
        return boot_order(beat.boot) <= min(max(last_boot, known_order), BOOT_MAX - 1)

    def _note_news(self) -> None:
        """What is new of nodes is to be written and to be published."""
        self._unwritten |= self._fleet.news
        self._unpublished |= self._fleet.news
        self._fleet = fleet.settled(self._fleet)

    def _doubtful(self, now_ms: int) -> set[str]:
        """Who would take work again by a heartbeat that is older than the silence of the dead. That waits until all
        that was said has been heard.
        """
        known = self._fleet.nodes
        names = (self._unwritten | self._unpublished) & known.keys()
        others = {name for name in names if self._written.get(name) != fleet.capacity_of(known[name])}
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
        serving = sum(item.reason in fleet.SERVING for item in self._written.values())
        lost = await self._standing.look(self._epoch, serving, self._published.version, bool(self._fleet.pools))
        if lost.config:
            await self._publish_anew()
        untold, self._untold = self._untold, 0
        return is_other or lost.capacities or lost.snapshot or untold > 0

    async def _look_back(self) -> None:
        """Write again what the server has lost: after a crash its last writes can be missing. Drop who is long dead."""
        stored = await self._store.reads.capacities()
        lost = [
            node
            for node, item in self._written.items()
            if stored.get(node) != item and (node in stored or item.reason in fleet.SERVING)
        ]
        # Who takes no work has left, unless he holds something: a reaper has to find that.
        gone = [node for node in self._written if node not in stored and node not in lost]
        lost += [node for node, used in zip(gone, await self._store.reads.used(gone), strict=True) if used]
        for node in lost:
            del self._written[node]
        self._unwritten.update(lost)
        if await self._store.control.stored_version() != self._published.version:
            await self._publish_anew()
        self._recounts = True
        adopted = fleet.adopt(self._fleet, stored, self._now_ms)
        self._fleet = fleet.forget(adopted, {*stored, *lost}, self._now_ms, FORGET_MS)
        self._written = {node: item for node, item in self._written.items() if node in self._fleet.nodes}
        self._told = {node: item for node, item in self._told.items() if node in self._fleet.nodes}

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
            if is_absurd(last_id, self._now_ms):
                answer = await control.restart(self.name, epoch, stream)
                logger.warning("stream %s has the id %s, which no clock gives: %s", stream, last_id, answer)

    async def _publish_anew(self) -> None:
        """Let the next step publish the whole, with all of the configuration that the server has not."""
        self._published, self._stored = Picture(), Stored()
        self._counting.forget()
        self._unpublished.update(self._fleet.nodes)
        configured = self._fleet.pools
        self._lost = {name: configured.get(name) for name in {*await self._read_pools(), *configured}}

    async def _write_capacities(self) -> int:
        """Write what differs from what we wrote. Returns how many."""
        assert self._epoch is not None
        known = self._fleet.nodes
        items = [fleet.capacity_of(known[node]) for node in sorted(self._unwritten - self._withheld) if node in known]
        changed = [item for item in items if self._written.get(item.node) != item]
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
                    self._written[item.node] = item
                    self._tell(item)
                if item.reason == "dead" and answer == "written":
                    logger.warning("node %s is dead: silent for %d ms", item.node, self._settings.silence_ms)
        self._unwritten = refused | self._withheld
        for node in sorted(left & self._told.keys()):
            logger.info("node %s has left", node)
            del self._told[node]
        if left:
            self._fleet = fleet.without(self._fleet, left)
            self._unpublished |= left
            self._written = {node: item for node, item in self._written.items() if node not in left}
        suspects = [item.node for item in changed if item.reason == "suspect"]
        if suspects:
            shown = ", ".join(suspects[:SHOWN_MAX])
            logger.error(
                "%d nodes fell silent at once, so they are suspect, not dead: is the network in order? %s%s",
                len(suspects), shown, ", ..." if len(suspects) > SHOWN_MAX else "",
            )  # fmt: skip
        return len(changed)

    def _tell(self, item: CapacityItem) -> None:
        """Log what is news of a node."""
        if news := arrivals.news_of(self._told.get(item.node), item, self._fleet.nodes[item.node]):
            logger.log(logging.WARNING if item.reason == "quarantined" else logging.INFO, "node %s %s", item.node, news)
        self._told[item.node] = item

    async def _recount(self) -> None:
        """Compare what the cell counts with what is published, if it may be another one; and who counts, with time."""
        assert self._epoch is not None
        if self._recounts and self._published.version:  # otherwise with what is about to be
            await self._counting.look(self._epoch, self._published.pools, self._published.version, self._fleet.nodes)
            self._recounts = False
        await self._counting.patrol(self._epoch, self._published.pools, self._fleet.nodes, self._clock.ms())

    async def _publish(self, now_ms: int, decided: Decided) -> bool:
        """Publish what was decided at once, else when placement would see a difference, at most every `publish_ms`. A
        limit is published once the cell counts for it.

        Returns whether there is a new snapshot.
        """
        assert self._epoch is not None
        if not decided.answers and self._clock.ms() - self._published_at_ms < self._settings.publish_ms:
            return False
        next_fleet = fleet.configure(self._fleet, decided.documents) if decided.changes else self._fleet
        version = max(self._version + 1, now_ms * 1000)
        names = (self._unpublished | next_fleet.news) - self._withheld
        picture, delta = revise(self._published, next_fleet, names, version, self._settings)
        news = delta.size > 0
        kinds = limited_kinds(picture.pools)
        are_others = kinds != self._counting.kinds or _limits(self._published.pools) != _limits(picture.pools)
        if are_others:
            await self._counting.add(self._epoch, picture.pools, next_fleet.nodes)
        if news:
            stored = store(self._stored, delta, len(picture.nodes), self._settings.deltas_max)
            self._version = version  # used up, even if we never learn what came of it: another picture has another
            await self._send(picture, delta, stored, decided)
            self._stored, self._published_at_ms = stored, self._clock.ms()
        elif decided.answers:
            await self._send(picture, None, self._stored, decided)
        self._fleet, self._published = next_fleet, picture
        self._unpublished = set(self._withheld)
        if are_others:
            await self._counting.settle(self._epoch, kinds, picture.version)
        return news

    async def _send(self, picture: Picture, delta: Delta | None, stored: Stored, decided: Decided) -> None:
        """Write what is new, None for nothing, and what was decided. Raises: Lost, and all will be published anew."""
        assert self._epoch is not None
        changes = self._lost | decided.changes
        try:
            self._untold = await self._store.control.publish(
                self.name,
                self._epoch,
                snapshot_of(picture) if delta and stored.whole == delta.version else None,
                told(delta) if delta else None,
                oldest=stored.oldest,
                sets={
                    pools.stored_field(name): pools.encode(said) for name, said in changes.items() if said is not None
                },
                deletes=[pools.stored_field(name) for name, said in changes.items() if said is None],
                answers=[
                    (command, commands.encode_answer(answer, picture.version)) for command, answer in decided.answers
                ],
            )
        except Lost:
            await self._publish_anew()
            raise
        self._lost = {}
        if self._untold:
            stream = self._store.control.keys.answers
            logger.warning("%s takes no entry: %d commands are decided again, to be answered", stream, self._untold)
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
