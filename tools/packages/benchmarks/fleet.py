"""Nodes that exist in the books alone: registered as real ones are, but no process of their own reads their inboxes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.measure import BenchmarkFailed
from scheduler.audit.workloads import PAIRS
from scheduler.config import Settings
from scheduler.management.manager import Manager
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.store.store import Store

REGISTER_S_MAX: Final = 30.0
BEATS_AT_ONCE: Final = 100
COMMON_PAIRS: Final = tuple((pair.src_lang, pair.tgt_lang) for pair in PAIRS)


class Member(msgspec.Struct, frozen=True):
    """A node of the fleet; pairs are (source, target) languages."""

    node: str
    slots: int
    pairs: tuple[tuple[str, str], ...] = COMMON_PAIRS


async def register(store: Store, settings: Settings, members: Sequence[Member]) -> None:
    """Let every node beat once, and a manager fold that into capacities and a published snapshot; then it goes.

    Raises: BenchmarkFailed.
    """
    manager = Manager(store, settings, "bench+manager")
    boot = f"{await store.control.time_us()}-bench"
    beats = [encode_beat(NodeBeat(each.node, boot, each.slots, each.pairs)) for each in members]
    for start in range(0, len(beats), BEATS_AT_ONCE):
        await asyncio.gather(*(store.control.beat(beat) for beat in beats[start : start + BEATS_AT_ONCE]))
    until_s = time.monotonic() + REGISTER_S_MAX
    published = 0
    while published < len(members):
        if time.monotonic() > until_s:
            raise BenchmarkFailed(f"{published} of {len(members)} nodes are published after {REGISTER_S_MAX:.0f} s")
        report = await manager.run_once()
        if report.published:
            published = len((await store.control.read_snapshot()).nodes)
    await manager.give_up()
