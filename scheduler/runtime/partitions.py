"""The partitions that this dispatcher holds, each under an epoch that every script call names.

Who is alive says who should own what (a wish, session/ring.py); `claim.lua` says who does. What is held and not wished
any more is handed over; what is wished and held by somebody else is claimed when its lease ends, or at once when the
holder says that it gave it up. Nobody is asked: without a word of the others an owner keeps what it holds.
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

    Whoever remembers something of partitions asks `take_changes` before it acts on what it remembers.

    Args: cell; owner, name+boot; count of partitions; settings; clock, the process's own.
    life: of the server process that all of that is read from; calls about it go to no other one.
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
        """The server's time, as the last claim told it; a step of its clock since is not in it."""
        return int(self._clock.ms() + self._ahead_ms)

    @property
    def has_changes(self) -> bool:
        """Whether partitions were lost or gained since that was taken."""
        return bool(self._dropped)

    def take_changes(self) -> tuple[frozenset[int], dict[int, int]]:
        """What was lost or gained since the last time: partitions to forget everything about, and partition -> epoch of
        those to begin with.
        """
        dropped, gained = frozenset(self._dropped), self._gained
        self._dropped, self._gained = set(), {}
        return dropped, gained

    # ---- when to claim ----

    def update_members(self, live: Iterable[str], *, stepped: bool = False) -> bool:
        """The dispatchers that are alive, as a heartbeat was told; stepped, the server's clock was since the last one.

        The first that is heard after an outage, or after a step of the clock, is told of nobody else. So it leaves the
        others, who beat again as soon as they get through, the time for that before it calls them silent. After a step
        it claims at once, which cuts the leases of the dead.
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
        """Hand over what others should own, take what is wished and free, renew what is ours, learn what was lost."""
        self._claim_due_ms = self._clock.ms() + self._lease_ms / 3
        self._to_give_up |= self._drop(self.held - self._wished)
        # What is wished again before it could be given up is given up all the same: under another epoch nothing that
        # was read before the drop is placed after it.
        now_ms, answers = await self._cell.claim(self.owner, sorted(self._wished), sorted(self._to_give_up))
        self._to_give_up.clear()
        self._ahead_ms = now_ms - self._clock.ms()
        refused = [answer for answer in answers if isinstance(answer, messages.HeldByOther)]
        self._drop(frozenset(answer.partition for answer in refused))
        self._take([answer for answer in answers if isinstance(answer, messages.Owned)])
        if refused:
            # The holder renews, or hands over and says so; if it does neither, its lease ends.
            lapse_ms = min(answer.until_ms for answer in refused) + 1 - now_ms
            self._claim_due_ms = min(self._claim_due_ms, self._clock.ms() + lapse_ms)

    def _take(self, owned: list[messages.Owned]) -> None:
        """Begin each new hold with an empty memory."""
        new = {each.partition: each.epoch for each in owned if not self.holds(each.partition, each.epoch)}
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
        """What is remembered of these is not what the server has: hold them under another epoch, with empty memory."""
        self._to_give_up |= self._drop(partitions)
        self.claim_now()

    def lose(self, partition: int) -> bool:
        """Hold a partition no more. Returns whether it was held."""
        return bool(self._drop(frozenset({partition})))

    def _drop(self, partitions: frozenset[int]) -> frozenset[int]:
        """Hold these no more, and claim again soon what should be ours. Returns those that were held."""
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

        Who claims again, perhaps we, does so under another epoch: nothing that was read before is placed after that.
        """
        self._to_give_up |= self._drop(self.held)
        if self._to_give_up:
            await self._cell.claim(self.owner, (), sorted(self._to_give_up))
            self._to_give_up.clear()


def counted(count: int, what: str) -> str:
    """How many of something are: `1 dispatcher is`, `2 dispatchers are`."""
    return f"1 {what} is" if count == 1 else f"{count} {what}s are"


def _named(partitions: Collection[int]) -> str:
    listed = _listed(partitions)
    return f"partition {listed} is" if len(partitions) == 1 else f"partitions {listed} are"


def _listed(partitions: Iterable[int]) -> str:
    return ", ".join(str(partition) for partition in sorted(partitions))
