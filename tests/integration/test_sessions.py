"""Where the jobs of sessions go: the cases of placement, each in a sentence, through a dispatcher on a real server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import pytest

from scheduler.protocol import keys, messages
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.protocol.snapshot import Match, Node, Pool, Snapshot
from scheduler.runtime.placement.candidates import rendezvous
from scheduler.session.bindings import parse
from scheduler.store.cell import Cell
from scheduler.store.control import Leading
from tests.integration.test_dispatcher import BOOT, CALM, EPOCH, Bench, bench

EN_ZH: Final = ("en", "zh")
EN_DE: Final = ("en", "de")
GOLD: Final = Pool("gold")
PLAIN: Final = Pool("plain")


def a_node(name: str, pool: str = "plain", slots: int = 4, **rest: Any) -> Node:
    """A node that serves en:zh unless it is said otherwise."""
    fields: dict[str, Any] = {"boot": BOOT, "pairs": (EN_ZH,)} | rest
    return Node(name, slots=slots, pool=pool, **fields)


def a_job(session: str = "s1", pair: tuple[str, str] = EN_ZH, **rest: Any) -> JobDocument:
    """A job of a session."""
    return JobDocument(session, src_lang=pair[0], tgt_lang=pair[1], **rest)


async def publish(b: Bench, nodes: tuple[Node, ...], pools: tuple[Pool, ...]) -> None:
    """Let these nodes and pools be what there is."""
    items = [messages.CapacityItem(node.id, node.slots, node.boot, "ready") for node in nodes]
    await b.store.cell.capacity(EPOCH, items)
    lead = await b.store.control.lead("m+1")
    assert isinstance(lead, Leading)
    await b.store.control.publish("m+1", lead.epoch, Snapshot(await b.store.control.time_us(), nodes, pools))
    await b.dispatcher.snapshots.load()


async def submit(b: Bench, job: JobDocument, job_id: str) -> None:
    """Add a job to the intake, and step until the dispatcher has dealt with it."""
    partition = keys.partition_of(job.session_id, b.layout.partitions)
    document = encode_job(msgspec.structs.replace(job, job_id=job_id))
    await b.store.connection.commands.xadd(b.store.cell.keys.jobs(partition), {"job": document})
    b.entries += 1
    await b.step_until_read()


async def submit_together(b: Bench, *jobs: JobDocument) -> None:
    """Add jobs in one transaction, so that they share a call, and step until the dispatcher has dealt with them."""
    pipeline = b.store.connection.commands.pipeline(transaction=True)
    for job in jobs:
        pipeline.xadd(b.store.cell.keys.jobs(b.partition_of(job.session_id)), {"job": encode_job(job)})
    await pipeline.execute()
    b.entries += len(jobs)
    await b.step_until_read()


async def where(b: Bench, job_id: str) -> tuple[str, str]:
    """The node that a job is on, and why; "waits" for one that is not placed."""
    record = await b.store.reads.record(job_id)
    return (record["node"], record["decision"]) if record.get("state") == "reserved" else ("waits", "")


# A case: a sentence; the nodes; the pools; the jobs, in their order; where each goes, and why.
CASES: Final[
    Mapping[str, tuple[tuple[Node, ...], tuple[Pool, ...], tuple[JobDocument, ...], list[tuple[str, str]]]]
] = {
    "a session stays on its node": (
        (a_node("p1", slots=9), a_node("p2", slots=9)),
        (msgspec.structs.replace(PLAIN, candidates=1),),
        (a_job(preferred_node="p2"), a_job(), a_job()),
        [("p2", "preferred"), ("p2", "stayed"), ("p2", "stayed")],
    ),
    "it spills when its node is full, and stays where it went": (
        (a_node("p1", slots=1), a_node("p2", slots=3)),
        (PLAIN,),
        (a_job(preferred_node="p1"), a_job(), a_job()),
        [("p1", "preferred"), ("p2", "full p1 1/1"), ("p2", "stayed")],
    ),
    "a full pool falls back, and the session stays there": (
        (a_node("g1", "gold", slots=1), a_node("p1", slots=3, pairs=(EN_DE, EN_ZH))),
        (Pool("gold", fallback=("plain",), tenants=("t1",)), PLAIN),
        (a_job("s0", tenant_id="t1"), a_job(tenant_id="t1"), a_job(tenant_id="t1")),
        [("g1", "new"), ("p1", "new"), ("p1", "stayed")],
    ),
    "a tenant's sessions prefer the pool that names it": (
        (a_node("g1", "gold"), a_node("p1", slots=400)),
        (Pool("gold", tenants=("t1",)), PLAIN),
        (a_job("s1", tenant_id="t1"), a_job("s2", tenant_id="t1"), a_job("s3", tenant_id="t1")),
        [("g1", "new")] * 3,
    ),
    "a pool for certain tenants alone is closed to others": (
        (a_node("g1", "gold", slots=400), a_node("p1", slots=3)),
        (Pool("gold", match=Match(tenants=("t1",))), PLAIN),
        (a_job("s1"), a_job("s2", tenant_id="t2"), a_job("s3", routing_key="r3")),
        [("p1", "new")] * 3,
    ),
    "spread keeps away from the session's last node": (
        (a_node("p1", slots=9), a_node("p2", slots=9)),
        (Pool("plain", "spread"),),
        (a_job(preferred_node="p1"), a_job(), a_job()),
        [("p1", "preferred"), ("p2", "strategy"), ("p1", "strategy")],
    ),
    "spread with one node takes that one": (
        (a_node("p1", slots=9),),
        (Pool("plain", "spread"),),
        (a_job(), a_job()),
        [("p1", "new"), ("p1", "strategy")],
    ),
    "least_loaded goes where most is free": (
        (a_node("p1", slots=2), a_node("p2", slots=8)),
        (Pool("plain", "least_loaded"),),
        (a_job(preferred_node="p1"), a_job(), a_job()),
        [("p1", "preferred"), ("p2", "strategy"), ("p2", "strategy")],
    ),
    "auto is any source, and the session stays when its source is known": (
        (a_node("p1", pairs=(EN_DE,)), a_node("p2", pairs=(EN_ZH,))),
        (PLAIN,),
        (a_job(pair=("auto", "zh")), a_job(pair=EN_ZH), a_job(pair=("auto", "zh"))),
        [("p2", "new"), ("p2", "stayed"), ("p2", "stayed")],
    ),
    "features must all be there": (
        (a_node("p1", slots=9), a_node("p2", slots=1, features=("asr", "gpu"))),
        (PLAIN,),
        (a_job(features=("gpu",)), a_job("s2", features=("asr", "gpu"))),
        [("p2", "new"), ("waits", "")],
    ),
    "a session that asks for more than its node has moves": (
        (a_node("p1", slots=9), a_node("p2", slots=9, features=("gpu",))),
        (PLAIN,),
        (a_job(preferred_node="p1"), a_job(features=("gpu",))),
        [("p1", "preferred"), ("p2", "unfit")],
    ),
    "a preferred node that is full is passed over": (
        (a_node("p1", slots=1), a_node("p2", slots=1)),
        (PLAIN,),
        (a_job("s1", preferred_node="p1"), a_job("s2", preferred_node="p1")),
        [("p1", "preferred"), ("p2", "new")],
    ),
    "a preferred node that is gone is told": (
        (a_node("p1"),),
        (PLAIN,),
        (a_job(preferred_node="p9"),),
        [("p1", "new preferred p9 gone")],
    ),
    "a preferred node that cannot serve the job is told": (
        (a_node("p1"), a_node("p2", pairs=(EN_DE,))),
        (PLAIN,),
        (a_job(preferred_node="p2"),),
        [("p1", "new preferred p2 unfit")],
    ),
    "a session that changes its languages is bound anew": (
        (a_node("p1", slots=9), a_node("p2", slots=9, pairs=(EN_DE,))),
        (PLAIN,),
        (a_job(), a_job(pair=EN_DE), a_job(pair=EN_DE)),
        [("p1", "new"), ("p2", "pair"), ("p2", "stayed")],
    ),
    "one job of a session at a time, if its pool says so": (
        (a_node("p1", slots=9),),
        (Pool("plain", session_concurrency=1),),
        (a_job("s1"), a_job("s1"), a_job("s2")),
        [("p1", "new"), ("waits", ""), ("p1", "new")],
    ),
    "so many jobs of a tenant at a time": (
        (a_node("p1", slots=9),),
        (Pool("plain", tenant_concurrency=2),),
        (a_job("s1", tenant_id="t1"), a_job("s2", tenant_id="t1"), a_job("s3", tenant_id="t1"), a_job("s4")),
        [("p1", "new"), ("p1", "new"), ("waits", ""), ("p1", "new")],
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_case(url: str, case: str) -> None:
    """As its name says."""
    nodes, pools, jobs, expected = CASES[case]
    async with bench(url, CALM) as b:
        await publish(b, nodes, pools)
        for number, job in enumerate(jobs):
            await submit(b, job, f"j{number}")
        assert [await where(b, f"j{number}") for number in range(len(jobs))] == expected


async def test_sessions_of_one_routing_key_share_a_pool(url: str) -> None:
    """Whatever their session ids are, and other keys go elsewhere too."""
    async with bench(url, CALM) as b:
        await publish(b, (a_node("g1", "gold", slots=99), a_node("p1", slots=99)), (GOLD, PLAIN))
        for number in range(30):
            await submit(b, a_job(f"s{number}", routing_key=f"k{number % 10}"), f"j{number}")
        nodes = [(await where(b, f"j{number}"))[0] for number in range(30)]
        assert nodes[:10] == nodes[10:20] == nodes[20:]
        assert set(nodes) == {"g1", "p1"}


@pytest.mark.parametrize(
    ("pressure", "third", "bound"),
    [("stay", ("p2", "stayed"), "p2"), ("return", ("p1", "stayed"), "p1")],
)
async def test_after_the_pressure_a_session_stays_or_returns(
    url: str, pressure: Any, third: tuple[str, str], bound: str
) -> None:
    """Its node was full for one job; the pool says where the next one goes, and what is stored."""
    async with bench(url, CALM) as b:
        await publish(b, (a_node("p1", slots=1), a_node("p2", slots=3)), (Pool("plain", pressure=pressure),))
        await submit(b, a_job(preferred_node="p1"), "j0")
        await submit(b, a_job(), "j1")
        assert await where(b, "j1") == ("p2", "full p1 1/1")
        await b.free("p1", "j0")
        await submit(b, a_job(), "j2")
        assert await where(b, "j2") == third
        (stored,) = await b.store.reads.bindings(["s1"])
        binding = parse(stored)
        assert binding is not None
        assert binding.node == bound


async def test_a_session_that_returns_leaves_the_fallback_pool(url: str) -> None:
    """It was placed there because its pool had no room."""
    nodes = (a_node("g1", "gold", slots=1), a_node("p1", slots=3))
    pools = (Pool("gold", fallback=("plain",), tenants=("t1",), pressure="return"), PLAIN)
    async with bench(url, CALM) as b:
        await publish(b, nodes, pools)
        await submit(b, a_job("s0", tenant_id="t1"), "j0")
        await submit(b, a_job(tenant_id="t1"), "j1")
        assert await where(b, "j1") == ("p1", "new")
        await b.free("g1", "j0")
        await submit(b, a_job(tenant_id="t1"), "j2")
        assert await where(b, "j2") == ("g1", "pool")


async def test_removing_a_pool_moves_its_sessions_at_their_next_job(url: str) -> None:
    """Their node is in another pool now, or gone; those of other pools stay."""
    async with bench(url, CALM) as b:
        await publish(b, (a_node("g1", "gold"), a_node("p1")), (Pool("gold", tenants=("t1",)), PLAIN))
        await submit(b, a_job("s1", tenant_id="t1"), "j0")
        assert await where(b, "j0") == ("g1", "new")
        await publish(b, (a_node("g1", "plain"), a_node("p1")), (PLAIN,))
        await submit(b, a_job("s1", tenant_id="t1"), "j1")
        assert await where(b, "j1") == ("g1", "stayed")
        await publish(b, (a_node("p1"),), (PLAIN,))
        await submit(b, a_job("s1", tenant_id="t1"), "j2")
        assert await where(b, "j2") == ("p1", "gone g1")


async def test_jobs_of_a_new_session_in_one_batch_stay_together(url: str) -> None:
    """Nobody knows a binding when they are read, and there are many nodes as free as the first one's."""
    async with bench(url, CALM) as b:
        await publish(b, tuple(a_node(f"p{number}", slots=9) for number in range(20)), (PLAIN,))
        await submit_together(b, *(a_job(job_id=f"j{number}") for number in range(6)))
        placed = [await where(b, f"j{number}") for number in range(6)]
        assert placed == [(placed[0][0], "new")] + [(placed[0][0], "stayed")] * 5


async def test_a_job_waits_in_the_pool_that_its_session_has_since_the_same_batch(url: str) -> None:
    """It was read with the job that bound the session, and asked for a pool that is full."""
    async with bench(url, CALM) as b:
        nodes = (a_node("g1", "gold", slots=1), a_node("p1", slots=9, features=("asr",)))
        await publish(b, nodes, (Pool("gold", tenants=("t1",)), PLAIN))
        await submit(b, a_job("s0", tenant_id="t1"), "j0")
        await submit_together(
            b, a_job(tenant_id="t1", job_id="j1", features=("asr",)), a_job(tenant_id="t1", job_id="j2")
        )
        await b.step_until_read()
        placed = [await where(b, job_id) for job_id in ("j0", "j1", "j2")]
        assert placed == [("g1", "new"), ("p1", "new"), ("p1", "stayed")]


async def test_a_new_owner_finds_what_sessions_are_bound_to(url: str) -> None:
    """The owner before it died without a word; pool and node are read back from the server."""
    async with bench(url, CALM, owner="d+1") as before:
        await publish(before, tuple(a_node(f"p{number}", slots=9) for number in range(20)), (PLAIN, GOLD))
        for number in range(8):
            await submit(before, a_job(f"s{number}"), f"j{number}")
        nodes = [(await where(before, f"j{number}"))[0] for number in range(8)]
        await before.pause()
        async with bench(url, CALM, owner="d+2") as after:
            for number in range(8):
                await submit(after, a_job(f"s{number}"), f"k{number}")
            found = [await where(after, f"k{number}") for number in range(8)]
        assert found == [(node, "stayed") for node in nodes]


async def test_bound_sessions_among_new_ones_are_placed_where_they_are_bound(url: str) -> None:
    """One batch of a new owner: it takes all for new, is told of those that are not, and keeps the order of each."""
    async with bench(url, CALM, owner="d+1") as before:
        await publish(before, tuple(a_node(f"p{number}", slots=99) for number in range(20)), (PLAIN,))
        for number in range(4):
            await submit(before, a_job(f"s{number}"), f"j{number}")
        nodes = [(await where(before, f"j{number}"))[0] for number in range(4)]
        await before.pause()
        async with bench(url, CALM, owner="d+2") as after:
            partitions = [keys.partition_of(f"s{number}", after.layout.partitions) for number in range(40)]
            pipeline = after.store.connection.commands.pipeline()
            for turn in range(2):
                for number, partition in enumerate(partitions):
                    document = encode_job(msgspec.structs.replace(a_job(f"s{number}"), job_id=f"k{number}-{turn}"))
                    pipeline.xadd(after.store.cell.keys.jobs(partition), {"job": document})
            await pipeline.execute()
            after.entries += 80
            await after.step_until_read()
            for number, node in enumerate(nodes):
                assert [await where(after, f"k{number}-{turn}") for turn in range(2)] == [(node, "stayed")] * 2
            for number in range(4, 40):
                (first, why), (second, then) = [await where(after, f"k{number}-{turn}") for turn in range(2)]
                assert (why, then, first) == ("new", "stayed", second)


async def test_unknown_session_behind_a_job_that_nobody_serves_keeps_its_node(url: str) -> None:
    """Whoever waits does so in the class that his session prefers, although the script was never asked about it."""
    session, other = [f"s{i}" for i in range(99) if rendezvous(f"s{i}", {"a": 2, "b": 1}) == "b"][:2]
    pools = (Pool("a"), Pool("b"))
    first, second = a_node("a1", "a", slots=2), a_node("b1", "b", slots=1)
    async with bench(url) as b:
        await publish(b, (first,), pools)
        await submit(b, a_job(session), "j0")
        await publish(b, (first, second), pools)
        await submit(b, a_job(other), "fills-b1")
        assert await where(b, "fills-b1") == ("b1", "new")
        b.dispatcher.state.bindings.clear()  # as after a take-over

        await submit_together(b, a_job(session, job_id="unserved", features=("gpu",)), a_job(session, job_id="j1"))

        assert {waiter.job.job_id: waiter.job_class.pool for waiter in b.dispatcher.state.waiting} == {
            "unserved": "",
            "j1": "a",
        }


async def test_answer_to_a_repeat_does_not_leave_an_old_binding_in_memory(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not tell where the session is bound since the call whose answer was lost."""
    reserve = Cell.reserve

    async def twice(cell: Cell, *arguments: Any) -> list[messages.Reserved | messages.Refused]:
        await reserve(cell, *arguments)  # its answer is lost
        return await reserve(cell, *arguments)

    async with bench(url) as b:
        await publish(b, (a_node("p1", slots=1), a_node("p2", slots=3)), (PLAIN,))
        await submit(b, a_job(preferred_node="p1"), "j0")
        monkeypatch.setattr(Cell, "reserve", twice)
        await submit(b, a_job(), "j1")
        monkeypatch.setattr(Cell, "reserve", reserve)
        assert (await where(b, "j1"))[0] == "p2"
        await b.free("p1", "j0")

        await submit(b, a_job(), "j2")

        assert await where(b, "j2") == ("p2", "stayed")


async def test_session_of_a_job_that_is_gone_is_not_taken_for_a_new_one(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier call may have placed it and bound the session, and its answer never came."""
    reserve = Cell.reserve

    async with bench(url) as b:
        await publish(b, (a_node("p1", slots=1),), (PLAIN,))
        await submit(b, a_job("s0"), "j0")
        await submit(b, a_job(), "j1")  # full; the session is known to be bound to no node

        async def late(cell: Cell, *arguments: Any) -> list[messages.Reserved | messages.Refused]:
            await reserve(cell, *arguments)  # its answer is lost, and until it is repeated the lease has ended
            return [messages.Refused("gone")]

        monkeypatch.setattr(Cell, "reserve", late)
        await publish(b, (a_node("p1", slots=1), a_node("p2", slots=3)), (PLAIN,))
        while len(b.dispatcher.state.waiting):
            await b.dispatcher.run_once()
        monkeypatch.setattr(Cell, "reserve", reserve)

        await submit(b, a_job(), "j2")

        assert await where(b, "j2") == ("p2", "stayed")


async def test_job_after_a_repeat_leaves_nothing_in_memory_that_is_not_stored(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two jobs in the call whose answer was lost only the first had room; its repeat tells no binding."""
    reserve = Cell.reserve

    async def twice(cell: Cell, *arguments: Any) -> list[messages.Reserved | messages.Refused]:
        await reserve(cell, *arguments)  # its answer is lost, and then there is room
        await cell.capacity(EPOCH, [messages.CapacityItem("p1", 5, BOOT, "ready")])
        return await reserve(cell, *arguments)

    async with bench(url) as b:
        await publish(b, (a_node("p1", slots=2, pairs=(EN_ZH, ("fr", "zh"))),), (PLAIN,))
        await submit(b, a_job(), "j0")
        monkeypatch.setattr(Cell, "reserve", twice)
        await submit_together(b, *[a_job(pair=("auto", "zh"), job_id=job) for job in ("j1", "j2")])
        monkeypatch.setattr(Cell, "reserve", reserve)

        assert [(await where(b, job))[0] for job in ("j1", "j2")] == ["p1", "p1"]
        (stored,) = await b.store.reads.bindings(["s1"])
        assert b.dispatcher.state.bindings.peek("s1") in (None, parse(stored))


async def test_placed_job_is_not_asked_about_again_beside_one_that_nobody_serves(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is in memory from the first answer on."""
    reserve, asked = Cell.reserve, []

    async def noted(cell: Cell, items: Any, *arguments: Any) -> list[messages.Reserved | messages.Refused]:
        asked.append([item.job_id for item in items])
        return await reserve(cell, items, *arguments)

    async with bench(url) as b:
        await publish(b, (a_node("p1"),), (PLAIN,))
        monkeypatch.setattr(Cell, "reserve", noted)

        await submit_together(b, a_job(job_id="j0"), a_job(job_id="unserved", features=("gpu",)))

        assert asked == [["j0"]]
        assert "s1" in b.dispatcher.state.bindings
