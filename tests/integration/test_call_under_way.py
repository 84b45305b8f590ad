"""A newer snapshot that comes while a call to `reserve` is under way: the call keeps to the one that it was made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from scheduler.protocol import messages
from scheduler.protocol.snapshot import Pool, Snapshot
from scheduler.runtime import attempts
from scheduler.runtime.dispatch_state import DispatchState
from scheduler.runtime.index import Index
from scheduler.runtime.placement.attempt import Call, PlacementAttempt
from scheduler.store.cell import Cell
from tests.integration.test_dispatcher import BOOT, bench
from tests.integration.test_sessions import EN_DE, PLAIN, a_job, a_node, publish, submit, where

LATER_BOOT = "2000-test"


async def test_the_boots_of_a_call_are_those_that_its_candidates_were_chosen_as(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES 10: a node that is another boot by now, with other languages, gets nothing meant for the earlier one."""
    call_for, reserve = attempts.call_for, Cell.reserve
    asked: list[Mapping[str, str]] = []

    def swapped_after(state: DispatchState, decided: list[PlacementAttempt], *rest: Any) -> Call:
        made = call_for(state, decided, *rest)
        state.index = Index(Snapshot(2**53, (a_node("p1", boot=LATER_BOOT, pairs=(EN_DE,)),), (PLAIN,)))
        return made

    async def noted(self: Cell, items: Sequence[messages.ReserveItem], boots: Mapping[str, str], *rest: Any) -> Any:
        asked.append(boots)
        return await reserve(self, items, boots, *rest)

    async with bench(url) as b:
        await publish(b, (a_node("p1"),), (PLAIN,))
        monkeypatch.setattr(attempts, "call_for", swapped_after)
        monkeypatch.setattr(Cell, "reserve", noted)
        await submit(b, a_job(), "j0")
        assert asked[0] == {"p1": BOOT}


async def test_a_job_that_found_no_room_waits_as_the_newest_snapshot_has_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pool was removed while its call was under way: it is not left waiting for a pool that nobody serves."""
    reserve = Cell.reserve
    async with bench(url) as b:
        full, free = a_node("g1", "gold", slots=1), a_node("p1", "plain", slots=1)
        await publish(b, (full, free), (Pool("gold", tenants=("t1",)), PLAIN))
        await submit(b, a_job("s0", tenant_id="t1"), "j0")
        assert (await where(b, "j0"))[0] == "g1"

        async def swapped_meanwhile(self: Cell, *rest: Any) -> Any:
            answers = await reserve(self, *rest)
            monkeypatch.undo()
            await publish(b, (free,), (PLAIN,))
            b.dispatcher.state.apply_snapshot(b.dispatcher.snapshots.index)
            return answers

        monkeypatch.setattr(Cell, "reserve", swapped_meanwhile)
        await submit(b, a_job("s1", tenant_id="t1"), "j1")
        assert (await where(b, "j1"))[0] == "p1"
        assert b.dispatcher.state.waiting.sweep_hits == 0
