"""Nodes that exist in the books alone: registered as real ones are, but no process reads their inboxes."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from benchmarks.measure import BenchmarkFailed
from benchmarks.workload import Workload
from scheduler.config import Settings
from scheduler.loads import PAIRS
from scheduler.management.manager import Manager
from scheduler.model import NodeBeat, encode_beat
from scheduler.store.store import Store

REGISTER_S_MAX: Final = 30.0
BEATS_AT_ONCE: Final = 100


async def register(store: Store, settings: Settings, workload: Workload) -> None:
    """Let every node beat once, and a manager fold that into capacities and a published snapshot; then it goes.

    Each node has a slot for every job and serves every pair, so that no job ever waits, wherever it is placed.
    Raises: BenchmarkFailed.
    """
    manager = Manager(store, settings, "bench+manager")
    pairs = tuple((pair.src_lang, pair.tgt_lang) for pair in PAIRS)
    boot = f"{await store.control.time_us()}-bench"
    beats = [
        encode_beat(NodeBeat(node=node, boot=boot, capacity=workload.jobs, pairs=pairs))
        for node in workload.node_names()
    ]
    for start in range(0, len(beats), BEATS_AT_ONCE):
        await asyncio.gather(*(store.control.beat(beat) for beat in beats[start : start + BEATS_AT_ONCE]))
    until_s = time.monotonic() + REGISTER_S_MAX
    published = 0
    while published < workload.nodes:
        if time.monotonic() > until_s:
            raise BenchmarkFailed(f"{published} of {workload.nodes} nodes are published after {REGISTER_S_MAX:.0f} s")
        report = await manager.run_once()
        if report.published:
            published = len((await store.control.read_snapshot()).nodes)
    await manager.give_up()
