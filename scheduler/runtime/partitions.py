"""The partitions that this dispatcher holds, each under an epoch that every script call names.

The live dispatchers determine which of them should own each partition (the preferred owner, session/ring.py);
`claim.lua` decides which one does. A partition that should not be ours any more is handed over. One that should be ours
and has another owner is claimed when the lease of that owner ends, or at once when the owner says that it gave it up.
An owner that hears nothing of other dispatchers keeps what it holds.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from scheduler.clock import Clock
from scheduler.config import Settings
from scheduler.protocol import messages
from scheduler.session import ring
from scheduler.store.cell import Cell
from scheduler.store.connection import RETRY_MS_MAX

logger = logging.getLogger("scheduler.dispatcher")


class Partitions:
    """What is held, and under which epoch.

    Before anything that is remembered of partitions is used, `take_changes` must be applied to it.

    Args:
        cell: of the partitions.
        owner: name+boot.
        count: of partitions.
        settings: of the process.
        clock: the process's own.

    life: the server process that the partitions are read from; calls about them go to no other one.
    """

    def __init__(
        self,
        cell: Cell,
        owner: str,
        count: int,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.owner = owner
        self.life = ""
        self._cell = cell
        self._clock = clock
        self._count = count
        self._lease_ms = settings.partition_lease_ms
        self._stall_ms = min(settings.silence_ms, settings.partition_lease_ms) / 2
        self._return_ms = settings.heartbeat_ms + RETRY_MS_MAX
        self._dropped: set[int] = set()
        self._gained: dict[int, int] = {}
        self._live: frozenset[str] = frozenset()
        self._seen_ms = self._clock.ms()
        self._returning_until_ms = 0.0
        self._wished: frozenset[int] = frozenset()
        self._epochs: dict[int, int] = {}
        self._lanes: dict[int, int] = {}
        self._to_give_up: set[int] = set()
        self._claim_due_ms = 0.0
        self._ahead_ms = 0.0

    def __len__(self) -> int:
        return len(self._epochs)

    @property
    def held(self) -> frozenset[int]:
        """The partitions that are ours."""
        return frozenset(self._epochs)

    @property
    def epochs(self) -> dict[int, int]:
        """partition -> epoch of what is ours."""
        return dict(self._epochs)

    def holds(self, partition: int, epoch: int) -> bool:
        """Whether what was read under `epoch` is still ours to place."""
        return self._epochs.get(partition) == epoch

    def lane(self, partition: int) -> int:
        """0 or 1: each is about half of what is held, for calls that must share no partition."""
        return self._lanes.get(partition, 0)

    def server_ms(self) -> int:
        """The server's time, by the answer to the last claim. A step of its clock since then is not in it."""
        return int(self._clock.ms() + self._ahead_ms)

    @property
    def has_changes(self) -> bool:
        """Whether partitions were lost or gained since `take_changes`."""
        return bool(self._dropped)

    def take_changes(self) -> tuple[frozenset[int], dict[int, int]]:
        """What was lost or gained since the last call.

        Returns: the partitions to forget everything about, and those to begin with, partition -> epoch.
        """
        dropped, gained = frozenset(self._dropped), self._gained
        self._dropped, self._gained = set(), {}
        return dropped, gained

    # ---- when to claim ----

    def update_members(self, live: Iterable[str], *, stepped: bool = False) -> bool:
        """Apply which dispatchers are alive, by the answer to a heartbeat.

        The first dispatcher that gets through after an outage, or after a step of the server's clock, reads of no other
        one. It gives them time to write a heartbeat too before it takes them for dead. After a step it claims at once,
        which cuts the leases of dead owners.

        Args:
            live: their names.
            stepped: whether the server's clock was set since the last heartbeat.
        Returns: whether there is something to claim now.
        """
        now_ms = self._clock.ms()
        if stepped or now_ms - self._seen_ms > self._stall_ms:
            self._returning_until_ms = now_ms + self._return_ms
        if stepped:
            self.claim_now()
        self._seen_ms = now_ms
        seen = frozenset({self.owner, *live})
        if now_ms < self._returning_until_ms:
            seen |= self._live
        if seen == self._live:
            return stepped
        self._live = seen
        wished = ring.partitions_of(self.owner, seen, self._count)
        logger.info(
            "%s alive, %d of %d partitions should be ours", counted(len(seen), "dispatcher"), len(wished), self._count
        )
        if wished == self._wished:
            return stepped
        self._wished = wished
        self.claim_now()
        return True

    def claim_now(self) -> None:
        """Claim at the next step."""
        self._claim_due_ms = 0.0

    def next_ms(self) -> float:
        """For how long there is nothing to claim."""
        return self._claim_due_ms - self._clock.ms()

    async def claim(self) -> None:
        """Hand over what other dispatchers should own, take what should be ours and is free, renew what is ours, and
        learn what was lost.
        """
        self._claim_due_ms = self._clock.ms() + self._lease_ms / 3
        self._to_give_up |= self._drop(self.held - self._wished)
        # What should be ours again before it was given up is given up all the same: under another epoch nothing that
        # was read before the drop is placed after it.
        now_ms, answers = await self._cell.claim(self.owner, sorted(self._wished), sorted(self._to_give_up))
        self._to_give_up.clear()
        self._ahead_ms = now_ms - self._clock.ms()
        refused = [answer for answer in answers if isinstance(answer, messages.HeldByOther)]
        self._drop(frozenset(answer.partition for answer in refused))
        self._take([answer for answer in answers if isinstance(answer, messages.Owned)])
        if refused:
            # The owner renews its lease, or hands over and says so; if it does neither, the lease ends.
            lapse_ms = min(answer.until_ms for answer in refused) + 1 - now_ms
            self._claim_due_ms = min(self._claim_due_ms, self._clock.ms() + lapse_ms)

    def _take(self, owned: list[messages.Owned]) -> None:
        """Begin with an empty memory of each partition that is ours under a new epoch."""
        new = {hold.partition: hold.epoch for hold in owned if not self.holds(hold.partition, hold.epoch)}
        lost = [partition for partition in new if partition in self._epochs]
        if lost:
            logger.warning("`owners` has lost our partitions %s: they are claimed anew", _listed(lost))
        if new:
            self._dropped |= set(new)
            self._epochs |= new
            self._gained |= new
            self._lanes = {partition: rank % 2 for rank, partition in enumerate(sorted(self._epochs))}
            logger.info("%s ours", _named(new))

    # ---- what ends ----

    def begin_anew(self, partitions: frozenset[int]) -> None:
        """Hold these partitions under another epoch, with an empty memory: what is remembered of them is not what the
        server has.
        """
        self._to_give_up |= self._drop(partitions)
        self.claim_now()

    def lose(self, partition: int) -> bool:
        """Drop a partition. Returns: whether it was held."""
        return bool(self._drop(frozenset({partition})))

    def _drop(self, partitions: frozenset[int]) -> frozenset[int]:
        """Drop partitions, and claim soon what should be ours. Returns: those that were held."""
        held = self.held & partitions
        if held:
            for partition in held:
                del self._epochs[partition]
                self._gained.pop(partition, None)
            self._dropped |= held
            logger.info("%s not ours any more", _named(held))
        if held & self._wished:
            self.claim_now()
        return held

    async def give_up(self) -> None:
        """Hand everything over at once, so that the next owner need not wait for the lease.

        The next claim, even our own, is under another epoch: nothing that was read before it is placed after it.
        """
        self._to_give_up |= self._drop(self.held)
        if self._to_give_up:
            await self._cell.claim(self.owner, (), sorted(self._to_give_up))
            self._to_give_up.clear()


def counted(count: int, what: str) -> str:
    """A count with its verb: `1 dispatcher is`, `2 dispatchers are`."""
    return f"1 {what} is" if count == 1 else f"{count} {what}s are"


def _named(partitions: Collection[int]) -> str:
    listed = _listed(partitions)
    return f"partition {listed} is" if len(partitions) == 1 else f"partitions {listed} are"


def _listed(partitions: Iterable[int]) -> str:
    return ", ".join(str(partition) for partition in sorted(partitions))
