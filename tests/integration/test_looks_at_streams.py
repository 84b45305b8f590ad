"""runtime/intake_streams.py and reaper/streams.py: which streams are asked for, and what a rebuild is told."""

from __future__ import annotations

import types
from collections.abc import Sequence

import pytest

from scheduler.reaper.streams import INBOXES_MAX, INBOXES_MIN, Streams
from scheduler.runtime.intake_streams import MARGIN_MS, Intakes
from scheduler.store.cell import Cell
from scheduler.store.reads import Reads
from scheduler.store.store import Store
from tests.clock import HandClock
from tests.seeds import PARTITION, seed_entry, seed_owner, seed_poison


@pytest.mark.parametrize("call_ms", [2, 60])
async def test_inboxes_are_asked_for_in_turn(store: Store, monkeypatch: pytest.MonkeyPatch, call_ms: int) -> None:
    """Few a second where bodies are large, for the server makes two of each; all in the end, and the others always."""
    clock, nodes = HandClock(), [f"n{number:04}" for number in range(1_500)]
    asked: list[list[str]] = []

    async def last_ids(_: Reads, streams: Sequence[str]) -> list[str]:
        clock.go(call_ms)
        asked.append(list(streams))
        return [""] * len(streams)

    monkeypatch.setattr(Reads, "last_ids", last_ids)
    streams = Streams(store.cell, store.reads, clock)
    for _ in range(100):
        clock.go(1_000)
        await streams.look(nodes, 0)

    keys = store.cell.keys
    assert all({keys.parked, keys.dead} <= set(each) for each in asked)
    assert max(len(each) - 2 for each in asked) == (INBOXES_MAX if call_ms == 2 else INBOXES_MIN)
    assert {stream for each in asked for stream in each} == {keys.parked, keys.dead, *map(keys.inbox, nodes)}


async def test_an_owner_tells_how_far_the_ids_of_its_intake_were(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it saw them before: when the clock has gone back they would be given again. What it does not hold any more it
    does not tell of.
    """
    rebuild, told = Cell.rebuild, []
    epoch, given_ms = await seed_owner(store), await store.control.time_us() // 1000 + 5_000

    async def telling(self: Cell, *arguments: object) -> object:
        told.append(arguments[-1])
        return await rebuild(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Cell, "rebuild", telling)
    partitions = types.SimpleNamespace(epochs={PARTITION: epoch}, server_ms=lambda: given_ms - 5_000)
    intakes = Intakes(store.cell, store.reads, partitions)  # type: ignore[arg-type]
    await seed_entry(store, entry_id=f"{given_ms}-1")
    await intakes.look()
    partitions.epochs = {PARTITION: epoch}
    await seed_poison(store, store.cell.keys.jobs(PARTITION))
    assert await intakes.look()
    partitions.epochs = {}
    await intakes.look()
    partitions.epochs = {PARTITION: epoch}
    await seed_poison(store, store.cell.keys.jobs(PARTITION))
    await intakes.look()

    assert told == [given_ms + MARGIN_MS, 0]
