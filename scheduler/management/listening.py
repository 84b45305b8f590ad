"""Takes heartbeats and commands for the leader, and notices that it could not listen for a while."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from scheduler.clock import Clock, ServerTime
from scheduler.errors import InvalidInput
from scheduler.management.fleet import NodeState
from scheduler.management.heartbeats import AHEAD_US, BOOT_MAX, HeartbeatDecoder, NotGiven
from scheduler.protocol.documents import NodeBeat, boot_order
from scheduler.protocol.messages import Heartbeat, Taken
from scheduler.store.store import Store

logger = logging.getLogger("scheduler.manager")

TAKE_MAX: Final = 1_000  # heartbeats of one call
STALL_MS: Final = 1_000  # after so long without a call of our own, silence proves nothing

NodeHeartbeats = list[tuple[NodeBeat, int]]


class Listener:
    """Args: store; name, of the manager; clock, the process's own.

    invalid: how many heartbeats could not be decoded.
    now_ms: the server's time of the last call.
    is_stalled: whether that call came late, or the server's clock was stepped: the silence of nodes proves nothing.
    """

    def __init__(self, store: Store, name: str, clock: Clock) -> None:
        self.invalid = 0
        self.now_ms = 0
        self.is_stalled = False
        self._store = store
        self._name = name
        self._clock = clock
        self._decoder = HeartbeatDecoder()
        self._server_time = ServerTime()
        self._acknowledge: tuple[str, ...] = ()
        self._has_taken = False
        self._taken_at_ms = 0.0

    def begin(self, now_ms: float) -> None:
        """A take-over that began at now_ms, own time: nothing is to be acknowledged, and silence counts from then."""
        self._acknowledge = ()
        self._taken_at_ms = now_ms

    async def take(self, epoch: int, *, pending: bool) -> Taken:
        """Take what is new, or (pending) what was taken before and not acknowledged. Raises: Fenced."""
        sent_ms = self._clock.ms()
        taken = await self._store.control.take(self._name, epoch, self._acknowledge, pending=pending, count=TAKE_MAX)
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
        self.is_stalled = bool(step_ms) or now_ms - self._taken_at_ms > STALL_MS
        self._taken_at_ms = now_ms
        self.now_ms = taken.now_ms
        return taken

    async def decode(self, heartbeats: tuple[Heartbeat, ...], nodes: Mapping[str, NodeState]) -> NodeHeartbeats:
        """Heartbeats of nodes that can be decoded, each with its time; the others are counted and named in the log.

        nodes: that are known already.
        """
        decoded: NodeHeartbeats = []
        self._decoder.boot_max = 1_000 * self.now_ms + AHEAD_US
        last_boot: int | None = None
        for heartbeat in heartbeats:
            try:
                try:
                    document = self._decoder.beat(heartbeat.document, heartbeat.time_ms)
                except NotGiven as doubt:
                    if last_boot is None:
                        last_boot = await self._store.reads.last_boot()
                    if not _was_given(doubt.beat, last_boot, nodes):
                        raise
                    document = doubt.beat
                    self._decoder.believe(heartbeat.document, document)
            except InvalidInput as error:
                self.invalid += 1
                logger.warning("heartbeat %s is ignored: %s", heartbeat.id, error)
            else:
                if document is not None:
                    decoded.append((document, heartbeat.time_ms))
        return decoded


def _was_given(document: NodeBeat, last_boot: int, nodes: Mapping[str, NodeState]) -> bool:
    """Whether a boot ahead of the clock was given by `boot`, or is one of a node whose last one was ahead too."""
    known = nodes.get(document.node)
    known_order = boot_order(known.beat.boot) + 1 if known is not None else 0
    return boot_order(document.boot) <= min(max(last_boot, known_order), BOOT_MAX - 1)
