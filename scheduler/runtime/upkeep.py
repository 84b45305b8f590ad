"""What a dispatcher does by the clock beside placing: its heartbeat, and looks at waiting jobs and at the server."""

from __future__ import annotations

import asyncio
from random import Random

from scheduler.clock import ServerTime
from scheduler.config import Settings
from scheduler.protocol.documents import DispatcherBeat, encode_beat
from scheduler.runtime.behind import Behind
from scheduler.runtime.dispatch_state import DispatchState
from scheduler.runtime.intake_streams import Intakes
from scheduler.runtime.reader import Reader
from scheduler.runtime.snapshots import Snapshots
from scheduler.runtime.strays import uncount_strays
from scheduler.runtime.sweep import Sweep
from scheduler.store.store import Store


class Upkeep:
    """What one dispatcher does beside its steps.

    Args:
        store: the server.
        settings: of the process.
        state: of the dispatcher.
        snapshots: that it follows.
        owner: name+boot.
        random: for the choice of limits that are looked at.
        work: is set when a step has work to do.

    behind: notices that the server has less than was read from it.
    intakes: notices that an intake takes no entries.
    sweep: looks at jobs that wait.
    stepped_ms: when the last step began.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        state: DispatchState,
        snapshots: Snapshots,
        owner: str,
        random: Random,
        work: asyncio.Event,
    ) -> None:
        self.behind = Behind(store, state.partitions, snapshots)
        self.intakes = Intakes(store.cell, store.reads, state.partitions)
        self.sweep = Sweep(state.waiting, settings)
        self.stepped_ms = state.clock.ms()
        self._store = store
        self._settings = settings
        self._state = state
        self._owner = owner
        self._random = random
        self._work = work
        self._server_time = ServerTime()

    async def look(self, reader: Reader) -> None:
        """Sweep. The believed loads are forgotten too, because they grow stale."""
        state = self._state
        state.loads.clear()
        state.forget_counted()
        state.retry_rejections()
        self.sweep.judge(state.index, state.undecided, state.clock.ms())
        await self.sweep.look(state.index, self._store.reads, reader)
        limits = list(dict.fromkeys(limit for limit, _ in state.waiting.limits.settled()))
        await uncount_strays(limits, self._store.reads, self._store.cell, self._random)

    async def look_at_streams(self) -> None:
        """Rebuild intakes that take no entries any more. The next step claims their partitions anew."""
        if await self.intakes.look():
            self._work.set()

    async def heartbeat(self, leaves: bool = False) -> None:
        """Write a heartbeat, and read which dispatchers are alive. After a whole lease without a step none is written:
        we must not seem alive.
        """
        clock, partitions = self._state.clock, self._state.partitions
        if leaves:
            await self._store.control.beat(self.document(), self._owner, leaves=True)
            return
        sent_ms = clock.ms()
        if sent_ms - self.stepped_ms > self._settings.partition_lease_ms:
            return
        reply = await self._store.control.beat(self.document(), self._owner)
        step_ms = self._server_time.told(reply.now_ms, sent_ms, clock.ms())
        if partitions.update_members(reply.live, stepped=step_ms != 0):
            self._work.set()

    def document(self) -> bytes:
        """The heartbeat as it is written."""
        name, _, boot = self._owner.partition("+")
        state, now_ms = self._state, self._state.clock.ms()
        heartbeat = DispatcherBeat(
            name,
            boot,
            state.waiting.by_pool(),
            state.index.version,
            state.decisions.p99_of_late(now_ms),
            state.session_waits.p99_of_late(now_ms),
        )
        return encode_beat(heartbeat)
