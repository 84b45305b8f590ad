"""The reaper shell: lapsed leases end, the dead leave, and delayed jobs that are due go back to the intake.

It works from `capacity`, a slice of the nodes a step, so that what it looks at is what the scripts see. Any number of
reapers may run: each of their scripts is checked and safe to repeat, so they need no leader.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import msgspec

from scheduler.clock import SYSTEM_CLOCK, Clock, ServerTime
from scheduler.config import Settings
from scheduler.protocol import messages
from scheduler.protocol.documents import ReaperBeat, encode_beat
from scheduler.reaper.ahead import Ahead
from scheduler.reaper.duties import each_in_turn
from scheduler.reaper.lapses import partition_of, read_lapses, unknown_lapses
from scheduler.reaper.mending import Mender, Seat
from scheduler.reaper.streams import Streams
from scheduler.repeats import Repeats
from scheduler.store.connection import or_each_alone
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.reaper")

SLICE_NODES_MAX: Final = 1_000
STALL_MS: Final = 1_000
TRIM_EVERY_MS: Final = 60_000


class Report(msgspec.Struct):
    """What a reaper has done since its start."""

    expired: int = 0
    left: int = 0
    promoted: int = 0


class Reaper:
    """One reaper of a cell.

    Args: store; settings; layout, as stored; name and boot, of this life of the process; clock, its own.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        layout: messages.Layout,
        name: str,
        boot: str,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.report = Report()
        self._store = store
        self._settings = settings
        self._layout = layout
        self._name = name
        self._boot = boot
        self._clock = clock
        self._server_time = ServerTime()
        self._ahead = Ahead(store.reads, settings, self._release, self._call_promote)
        self._mender = Mender(store, settings, clock, self._expire_unslotted, self._send_back)
        self._expired: dict[str, int] = {}
        self._repeats = Repeats(logger, clock)
        self._streams = Streams(store.cell, store.reads, clock)
        self._position = 0
        self._now_ms = 0
        self._heard_at_ms = float("-inf")
        self._strange_at_ms = 0.0
        self._anew_at_ms = 0.0
        self._beat_due_ms = 0.0
        self._trim_due_ms = 0.0

    async def run_once(self) -> Report:
        """One slice: expire what lapsed, let the dead leave, promote what is due. Returns the counts so far."""
        capacities = await self._store.reads.capacities()
        await self._listen()
        nodes = sorted(capacities)
        judges: list[Callable[[], Awaitable[None]]] = []
        if self._may_judge(self._settings.lease_ms):
            judges = [lambda: self._judge(capacities), lambda: self._mender.look(nodes, self._now_ms)]
        await each_in_turn(
            lambda: self._ahead.step(nodes, self._now_ms),
            *judges,
            lambda: self._streams.look(nodes, self._now_ms),
            self._promote,  # also by one that was deaf: what is due is nobody's silence
            self._trim,
        )
        self._repeats.step()
        return self.report

    async def _judge(self, capacities: Mapping[str, messages.CapacityItem]) -> None:
        nodes = self._slice(sorted(capacities))
        dead = [capacities[node] for node in nodes if capacities[node].reason == "dead"]
        await each_in_turn(
            lambda: self._expire(nodes), *[functools.partial(self._let_leave, item.node, item.boot) for item in dead]
        )

    async def _let_leave(self, node: str, boot: str) -> None:
        if await self._store.cell.leave(node, boot, "dead") == "left":
            self.report.left += 1
            logger.info("node %s is gone", node)

    async def _listen(self) -> None:
        """Ask for the time. Notice when we were deaf, or the server's clock was stepped."""
        asked_at_ms = self._clock.ms()
        if asked_at_ms >= self._beat_due_ms:
            beat = ReaperBeat(self._name, self._boot, self._expired)
            self._now_ms = (await self._store.control.beat(encode_beat(beat))).now_ms
            self._expired = {}
            self._beat_due_ms = asked_at_ms + self._settings.heartbeat_ms
        else:
            self._now_ms = await self._store.control.time_us() // 1000
        heard_at_ms = self._clock.ms()
        step_ms = self._server_time.told(self._now_ms, asked_at_ms, heard_at_ms)
        if step_ms:
            logger.warning(
                "the server's clock was stepped by about %.0f ms: no lease is ended until it could be renewed", step_ms
            )
            self._ahead.look_again()
        if step_ms or self._heard_at_ms == float("-inf"):
            self._strange_at_ms = heard_at_ms
        if heard_at_ms - self._heard_at_ms > STALL_MS:
            self._anew_at_ms = heard_at_ms
        self._heard_at_ms = heard_at_ms

    def _may_judge(self, lease_ms: int) -> bool:
        """Whether a lease that has lapsed is one that nobody renews.

        After a step of the server's clock, which a reaper that just started may have missed, it is still good by its
        node's own clock: at most for a lease. While we were deaf the nodes may have been: they renew every third.
        """
        now_ms = self._clock.ms()
        return now_ms >= self._strange_at_ms + lease_ms and now_ms >= self._anew_at_ms + lease_ms / 3

    def _slice(self, nodes: list[str]) -> list[str]:
        if self._position >= len(nodes):
            self._position = 0
        chosen = nodes[self._position : self._position + SLICE_NODES_MAX]
        self._position += SLICE_NODES_MAX
        return chosen

    async def _expire(self, nodes: list[str]) -> None:
        lapsed = await self._store.reads.lapsed(nodes, self._now_ms, self._settings.batch_max)
        for start in range(0, len(lapsed), self._settings.batch_max):
            await self._expire_those(lapsed[start : start + self._settings.batch_max])

    async def _expire_those(self, batch: Sequence[tuple[str, str]]) -> None:
        """(job_id, node) of reservations that nobody renews. The script knows whether that is so."""
        lapses, unknown = await read_lapses(self._store.reads, batch)
        items = [each.item for each in lapses if self._may_judge(each.lease_ms)]
        items += await unknown_lapses(self._store.reads, unknown, self._settings.lease_ms)
        for job_id, node in unknown:
            logger.warning(
                "no record says that job %s holds a slot of %s (was it deleted?): the slot becomes free", job_id, node
            )
        if items:
            await self._release(items)

    async def _expire_unslotted(self, seats: Sequence[Seat]) -> None:
        """Reservations without a slot: what has lapsed has none to be found by."""
        for start in range(0, len(seats), self._settings.batch_max):
            await self._expire_those(
                [(each.job_id, node) for node, each in seats[start : start + self._settings.batch_max]]
            )

    async def _release(self, items: list[messages.ReleaseItem]) -> None:
        answers = await or_each_alone(
            items,
            self._call_release,
            lambda _: messages.NotReleased("broken"),
            own_key=lambda item: self._store.cell.keys.job(item.job_id),
        )
        for item, answer in zip(items, answers, strict=True):
            if isinstance(answer, messages.Released):
                self.report.expired += 1
                self._expired[item.node] = self._expired.get(item.node, 0) + 1
                self._tell_expired(item, answer.state)

    def _tell_expired(self, item: messages.ReleaseItem, state: str) -> None:
        line = f"job {item.job_id} of session {item.session_id}: its lease on {item.node} ended, it is {state}"
        self._repeats.warn(f"jobs are {state}, for their leases on {item.node} ended", lambda: line)

    async def _call_release(
        self, items: Sequence[messages.ReleaseItem]
    ) -> list[messages.Released | messages.NotReleased]:
        layout = self._layout
        return (await self._store.cell.release(items, layout.retention_ms, layout.dead_retention_ms))[1]

    async def _promote(self) -> None:
        due = await self._store.reads.due(self._now_ms, self._settings.batch_max)
        if due:
            await self._send_back(due)

    async def _send_back(self, due: Sequence[str]) -> None:
        """Delayed jobs that are due go back to the intake."""
        records = await self._store.reads.records(due, ("entry", "reply_to"))
        await self._call_promote(
            [
                (job_id, partition_of(entry), reply_to or "")
                for job_id, (entry, reply_to) in zip(due, records, strict=True)
            ]
        )

    async def _call_promote(self, items: list[tuple[str, int, str]]) -> None:
        answers = await or_each_alone(
            items, lambda batch: self._store.cell.promote(batch, self._layout.retention_ms), lambda _: "broken"
        )
        self.report.promoted += answers.count("promoted")
        for (job_id, _, _), answer in zip(items, answers, strict=True):
            if answer == "dead":
                line = f"job {job_id} is dead, body_lost: what the stream of delayed bodies held of it is missing"
                self._repeats.warn("jobs are dead, body_lost", functools.partial(str, line))

    async def _trim(self) -> None:
        """Dead entries go with their records, when their retention ends."""
        if self._clock.ms() >= self._trim_due_ms:
            self._trim_due_ms = self._clock.ms() + TRIM_EVERY_MS
            await self._store.cell.forget_dead(self._now_ms - self._layout.dead_retention_ms)
