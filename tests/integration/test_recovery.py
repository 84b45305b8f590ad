"""Recovery: from a backlog of heartbeats, a thread that will not stop, and writes that the server lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from scheduler.errors import ServerUnavailable
from scheduler.management import manager
from scheduler.management.manager import Manager
from scheduler.node.handlers import Job
from scheduler.protocol import keys, messages
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.store.cell import Cell
from scheduler.store.store import open_store
from tests.fault.test_nodes import submit
from tests.system import QUICK, running


async def test_a_backlog_of_heartbeats_is_no_silence(url: str) -> None:
    """RULES 16: a node that was started again while nobody managed is alive, though its first heartbeat is old."""
    async with await open_store(url, QUICK) as store:
        await store.control.write_layout()
        now_us = await store.control.time_us()
        first, second = f"{now_us}-a", f"{now_us + 1}-b"
        await store.control.beat(encode_beat(NodeBeat("n1", first, 3)))
        earlier = Manager(store, QUICK, "m+1")
        await earlier.run_once()
        await earlier.give_up()

        pipeline = store.connection.commands.pipeline(transaction=False)
        for node in ["n1"] + ["n2"] * 1_000:
            document = encode_beat(NodeBeat(node, second, 3))
            pipeline.xadd(store.control.keys.heartbeats, {"node": document, "time_ms": now_us // 1000 - 10_000})
        await pipeline.execute()
        await store.control.beat(encode_beat(NodeBeat("n1", second, 3)))
        later = Manager(store, QUICK, "m+2")
        reasons = set()
        for _ in range(4):
            await later.run_once()
            reasons.add((await store.reads.capacities())["n1"].reason)
        assert reasons == {"ready"}


@pytest.mark.parametrize("lost", ["the group", "the leader for long"])
async def test_a_node_that_died_long_ago_gets_nothing_while_old_heartbeats_are_read(
    url: str, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """RULES 16: a step that does not reach the end writes and publishes nobody as ready by what was said long ago; who
    lives is ready once his newest heartbeat has been read.
    """
    monkeypatch.setattr(manager, "TAKE_MAX", 5)
    monkeypatch.setattr(manager, "TAKES_MAX", 2)
    async with await open_store(url, QUICK) as store:
        control, add = store.control, store.connection.commands.xadd
        await control.write_layout()
        now_us = await control.time_us()
        ghost = NodeBeat("ghost", f"{now_us - 10**9}-a", 3)
        alive = NodeBeat("n1", f"{now_us - 10**9}-b", 3)
        if lost == "the group":
            leader = Manager(store, QUICK, "m+1")
            await leader.run_once()
        for number in range(50):
            for beat in (ghost, alive):
                fields = {"node": encode_beat(beat), "time_ms": now_us // 1000 - 600_000 + number}
                await add(control.keys.heartbeats, fields)
        if lost == "the group":
            await store.connection.commands.xgroup_destroy(control.keys.heartbeats, keys.MANAGEMENT_GROUP)
        else:
            leader = Manager(store, QUICK, "m+2")
        seen: list[object] = []
        for _ in range(8):
            await leader.run_once()
            seen += [(await store.reads.capacities()).get(node) for node in ("ghost", "n1")]
            seen += (await control.read_snapshot()).nodes
        assert seen == [None] * 16
        await control.beat(encode_beat(alive))
        for _ in range(6):
            await leader.run_once()
            monkeypatch.setattr(leader, "_published_at_ms", 0.0)
        capacities = await store.reads.capacities()
        assert {name for name, item in capacities.items() if item.slots} == {"n1"}
        assert [node.id for node in (await control.read_snapshot()).nodes] == ["n1"]


async def test_a_thread_that_does_not_stop_keeps_no_job_from_another_node(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 7: a slot that is still occupied gives back what it gets; the job runs where there is room."""
    renew, release = Cell.renew, Cell.release
    end, verdicts = threading.Event(), list[str]()

    def stubborn(job: Job) -> str:
        end.wait()
        return job.node

    async def cut_off(
        self: Cell, node: str, started: Sequence[tuple[str, int]], waiting: Sequence[tuple[str, int]] = ()
    ) -> tuple[int, float, list[messages.Renewed | messages.NotRenewed]]:
        if node == "n1":
            raise ServerUnavailable("cut off")
        return await renew(self, node, started, waiting)

    async def spy(
        self: Cell, items: Sequence[messages.ReleaseItem], retention_ms: int, dead_retention_ms: int
    ) -> tuple[int, list[messages.Released | messages.NotReleased]]:
        verdicts.extend(item.verdict for item in items)
        return await release(self, items, retention_ms, dead_retention_ms)

    monkeypatch.setattr(Cell, "renew", cut_off)
    monkeypatch.setattr(Cell, "release", spy)
    async with running(url) as system:
        await system.add_node("n1", stubborn, capacity=1)
        (job_id,) = await submit(system, 1)
        await system.until(lambda: system.nodes["n1"].running == 1)
        await system.add_node("n2", lambda job: job.node, capacity=1)
        try:
            outcome = await system.producer.outcome(job_id, 20_000)
            assert (outcome.state, outcome.node) == ("completed", "n2")
            assert verdicts.count("give_back") < 10
        finally:
            end.set()
            monkeypatch.undo()


async def test_a_leader_notices_that_the_server_lost_its_last_writes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 31: a capacity that was written and lost, with the leader's epoch intact, is written again."""
    monkeypatch.setattr(manager, "LOOK_BACK_MS", 500)
    async with running(url) as system:
        node = await system.add_node("n1", lambda job: job.node)
        await system.store.connection.commands.hdel(system.store.cell.keys.capacity, "n1")
        (job_id,) = await submit(system, 1)
        try:
            outcome = await system.producer.outcome(job_id, 20_000)
            assert outcome.state == "completed"
        finally:
            node._end_life("replace")
