"""Two lives of a node: what a later boot ends, and what an earlier one keeps until its handlers have ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from scheduler.node import drain
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.roles import start_manager, start_reaper
from scheduler.store.cell import Cell
from tests.fault.test_nodes import ended, submit
from tests.integration.test_main_job import Gate
from tests.integration.test_protocol_clients import serving
from tests.integration.test_rules_nodes import Spans, reserved, server_ms, stop_reaper
from tests.raw.node import Assignment
from tests.system import QUICK, System, running

HANDING_OVER = msgspec.structs.replace(QUICK, start_ms=900, lease_ms=900, margin_ms=400, silence_ms=5_000)
LONG_LEASES = msgspec.structs.replace(HANDING_OVER, start_ms=9_000, lease_ms=9_000)
SIGNAL_S = 10  # how long a thread waits for what a test is about to do


class Stubborn:
    """Handlers that end when the test lets them, and not when they are told to stop."""

    def __init__(self) -> None:
        self._thread_may_end = threading.Event()
        self._may_end = asyncio.Event()

    def let_go(self) -> None:
        """From now on they end."""
        self._thread_may_end.set()
        self._may_end.set()

    def in_a_thread(self, job: Job) -> None:
        """A plain handler."""
        assert self._thread_may_end.wait(SIGNAL_S)

    async def asynchronously(self, job: Job) -> None:
        """An async one, which swallows its cancellation."""
        while not self._may_end.is_set():
            try:
                await self._may_end.wait()
            except asyncio.CancelledError:
                continue


@pytest.fixture
def stubborn() -> Iterator[Stubborn]:
    """Handlers of one test, which end with it at the latest."""
    handlers = Stubborn()
    yield handlers
    handlers.let_go()


async def dead_life(system: System, slots: int) -> None:
    """A boot of n1 that is known to the scheduler, and that nobody serves."""
    boot = f"{await system.store.control.time_us()}-dead"
    await system.store.control.beat(encode_beat(NodeBeat("n1", boot, slots, pairs=(("en", "zh"),))))
    await system.until(lambda: "n1" in system.dispatcher.snapshots.index.nodes)


async def held(system: System, job_id: str) -> tuple[str, int]:
    """Job id and token of a reservation."""
    return job_id, int((await reserved(system, job_id))["token"])


async def until_later(system: System, wait_ms: int) -> None:
    """Wait until the server's clock has gone on."""
    later_ms = await server_ms(system) + wait_ms

    async def is_later() -> bool:
        return await server_ms(system) > later_ms

    await system.until(is_later)


# ---- a life that is dead -------------------------------------------------------------------------------------------


async def test_a_later_boot_ends_what_lower_boots_held(url: str) -> None:
    """RULES 12 and 13: no reaper is needed; what was started counts as a crash, what never was does not."""
    gate = Gate()
    async with running(url, LONG_LEASES) as system:
        await stop_reaper(system)
        await dead_life(system, slots=2)
        ids = await submit(system, 2)
        tokens = [(await held(system, job_id))[1] for job_id in ids]
        await system.store.cell.renew("n1", [(ids[0], tokens[0])])

        await system.add_node("n1", gate)
        await gate.wait_for(2)
        records = [await system.store.reads.record(job_id) for job_id in ids]
        counted = [(record.get("crashes"), record.get("not_started"), record["attempts"]) for record in records]
        assert counted == [("1", "0", "0"), ("0", "1", "0")]
        assert [int(record["token"]) > token for record, token in zip(records, tokens, strict=True)] == [True, True]
        gate.open.set()
        assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}
        assert sorted(gate.started) == ids


async def test_what_was_renewed_since_a_boot_began_is_left_to_its_lease(url: str) -> None:
    """RULES 13: somebody was alive to renew it, and may run it; the other job is ended a margin later."""
    gate = Gate()
    gate.open.set()
    async with running(url, HANDING_OVER) as system:
        await stop_reaper(system)
        await dead_life(system, slots=2)
        ids = await submit(system, 2)
        first, second = [await held(system, job_id) for job_id in ids]
        await system.store.cell.renew("n1", [first, second])
        node = Node(url, "n1", capacity=2, handler=gate, pairs=[("en", "zh")], settings=HANDING_OVER)
        system.nodes["n1"] = await node.__aenter__()
        await system.store.cell.renew("n1", [first])

        assert {outcome.state for outcome in await ended(system, [second[0]])} == {"completed"}
        await until_later(system, HANDING_OVER.lease_ms)
        assert (await held(system, first[0]), gate.started) == (first, [second[0]])
        system.reapers.append(await start_reaper(url, HANDING_OVER))
        assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}


# ---- a life that is replaced ---------------------------------------------------------------------------------------


async def test_a_node_stops_when_a_later_boot_is_there(url: str) -> None:
    """RULES 13: its handlers end, and what they ran goes back at no cost of an attempt."""
    gate = Gate()
    async with running(url) as system:
        node = await system.add_node("n1", gate)
        (job_id,) = await submit(system, 1)
        await gate.wait_for(1)
        await reserved(system, job_id)
        await stop_reaper(system)
        boot = f"{await system.store.control.time_us()}-later"
        await system.store.control.beat(encode_beat(NodeBeat("n1", boot, 1)))

        await node.stopped()
        await system.until(lambda: node.running == 0)
        assert node.phase == "replaced"
        await system.remove_node("n1")
        after = await system.store.reads.record(job_id)
        counted = [after.get(name) for name in ("attempts", "crashes", "not_started")]
        assert (after["state"], counted) == ("queued", ["0", "0", "0"])


@pytest.mark.parametrize("in_threads", [False, True], ids=["async", "threads"])
async def test_two_lives_of_a_node_never_run_more_than_its_slots(url: str, in_threads: bool) -> None:
    """RULES 13: a slot of the earlier life is free for the later one when the handler in it has really ended."""

    later = False

    async def slow_to_stop(job: Job) -> None:
        try:
            await asyncio.get_running_loop().create_future() if not later else None
        finally:
            for _ in range(20):
                await system.store.control.time_us()

    def in_a_thread(job: Job) -> None:
        if not later:
            job.stopped.wait(5)

    spans = Spans()
    handler = in_a_thread if in_threads else slow_to_stop
    async with running(url) as system:
        first = await system.add_node("n1", handler, capacity=3, observer=spans)
        ids = await submit(system, 9)
        await system.until(lambda: spans.begun() == 3)
        del system.nodes["n1"]
        later = True
        await system.add_node("n1", handler, capacity=3, observer=spans)
        outcomes = await ended(system, ids)
        await first.__aexit__()
        assert (first.phase, {outcome.state for outcome in outcomes}) == ("replaced", {"completed"})
        assert {outcome.attempts for outcome in outcomes} == {0}
        assert spans.most() <= 3


@pytest.mark.parametrize("in_threads", [False, True], ids=["async", "threads"])
async def test_handlers_that_do_not_stop_keep_their_slots_when_a_later_boot_is_there(
    url: str, stubborn: Stubborn, in_threads: bool
) -> None:
    """RULES 13: the earlier life renews them for as long as they run, so the later one finds no room beside them."""
    spans = Spans()
    handler: Callable[[Job], Any] = stubborn.in_a_thread if in_threads else stubborn.asynchronously
    async with running(url, HANDING_OVER) as system:
        first = await system.add_node("n1", handler, capacity=2, observer=spans)
        ids = await submit(system, 3)
        await system.until(lambda: spans.begun() == 2)
        second = await system.add_node("n1", handler, capacity=2, observer=spans)
        await first.stopped()
        await until_later(system, HANDING_OVER.margin_ms + 2 * HANDING_OVER.lease_ms)
        assert (first.running, second.running, await system.used()) == (2, 0, 2)

        stubborn.let_go()
        outcomes = await ended(system, ids)
        await first.__aexit__()
        assert {(outcome.state, outcome.attempts) for outcome in outcomes} == {("completed", 0)}
        # What a thread returns once it was stopped is thrown away, so its job runs again.
        assert (len(spans.spans), spans.most()) == (5 if in_threads else 3, 2)


async def test_lives_that_know_the_protocol_alone_share_their_slots_too(url: str) -> None:
    """RULES 13: clients of another language do as docs/PROTOCOL.md says, with handlers that do not stop."""
    may_end, running_now, most = threading.Event(), set[str](), list[int]()

    def work(assignment: Assignment) -> None:
        running_now.add(assignment.token)
        most.append(len(running_now))
        assert may_end.wait(SIGNAL_S)
        running_now.remove(assignment.token)

    async with running(url, HANDING_OVER) as system:
        margin_ms = HANDING_OVER.margin_ms
        async with serving(system, work, "n1", capacity=2, margin_ms=margin_ms) as first:
            ids = await submit(system, 3)
            await system.until(lambda: len(running_now) == 2)
            async with serving(system, work, "n1", capacity=2, margin_ms=margin_ms):
                await system.until(lambda: first.node.phase == "replaced")
                await until_later(system, margin_ms + 2 * HANDING_OVER.lease_ms)
                assert (len(running_now), await system.used()) == (2, 2)
                may_end.set()
                assert await first.ended() == "replaced"
                assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}
                assert max(most) == 2


async def test_a_third_life_leaves_the_slots_of_the_first_alone_too(url: str, stubborn: Stubborn) -> None:
    """RULES 13: a life that was replaced reads on, and renews at once at each boot that is later still."""
    spans = Spans()
    async with running(url, LONG_LEASES) as system:
        first = await system.add_node("n1", stubborn.in_a_thread, capacity=2, observer=spans)
        ids = await submit(system, 3)
        await system.until(lambda: spans.begun() == 2)
        second = await system.add_node("n1", stubborn.in_a_thread, capacity=2, observer=spans)
        await first.stopped()
        third = await system.add_node("n1", stubborn.in_a_thread, capacity=2, observer=spans)
        await second.stopped()
        await until_later(system, 4 * LONG_LEASES.margin_ms)
        assert (first.running, third.running, await system.used()) == (2, 0, 2)

        stubborn.let_go()
        assert {(outcome.state, outcome.attempts) for outcome in await ended(system, ids)} == {("completed", 0)}
        await first.__aexit__()
        await second.__aexit__()
        assert spans.most() == 2


async def test_a_later_boot_takes_each_slot_whose_handler_has_ended(url: str, stubborn: Stubborn) -> None:
    """RULES 13: one thread stops when it is told to and another does not; only the slot of that one is kept."""
    spans = Spans()

    def handle(job: Job) -> None:
        if job.job_id == "j0":
            stubborn.in_a_thread(job)
        elif not later:
            job.stopped.wait(SIGNAL_S)

    later = False
    async with running(url, HANDING_OVER) as system:
        first = await system.add_node("n1", handle, capacity=2, observer=spans)
        ids = await submit(system, 5)
        await system.until(lambda: spans.begun() == 2)
        later = True
        await system.add_node("n1", handle, capacity=2, observer=spans)
        outcomes = await ended(system, ids[1:])
        assert (first.running, (await reserved(system, "j0"))["boot"]) == (1, first.boot)

        stubborn.let_go()
        outcomes += await ended(system, ids[:1])
        await first.__aexit__()
        assert {(outcome.state, outcome.attempts) for outcome in outcomes} == {("completed", 0)}
        assert spans.most() <= 2


async def test_a_replaced_life_that_leaves_waits_for_its_handlers(url: str) -> None:
    """RULES 13: what they do to clean up is not cut short, and then their jobs go back."""
    gate, cleaned = Gate(), list[str]()

    async def handle(job: Job) -> None:
        try:
            await gate(job)
        finally:
            for _ in range(50):
                await system.store.control.time_us()
            cleaned.append(job.job_id)

    async with running(url) as system:
        first = await system.add_node("n1", handle, capacity=2)
        ids = await submit(system, 2)
        await gate.wait_for(2)
        joining = asyncio.create_task(system.add_node("n1", handle, capacity=2))
        await first.stopped()
        await first.__aexit__()
        assert sorted(cleaned) == ids
        await joining
        gate.open.set()
        assert {(outcome.state, outcome.attempts) for outcome in await ended(system, ids)} == {("completed", 0)}


async def test_a_thread_that_overruns_frees_its_job_and_not_its_slot(url: str, stubborn: Stubborn) -> None:
    """RULES 12: the attempt has failed at once, and nothing else starts there before the thread has ended."""
    spans = Spans()
    settings = msgspec.structs.replace(QUICK, run_ms_max=1, attempts_max=1, start_ms=400, lease_ms=600, margin_ms=50)
    async with running(url, settings) as system:
        node = await system.add_node("n1", stubborn.in_a_thread, capacity=1, observer=spans)
        first, second = await submit(system, 2, sessions=1)
        (outcome,) = await ended(system, [first])
        assert (outcome.reason, outcome.detail[:26]) == ("attempts_exhausted", "failed 1 times; last: the ")
        await system.until(lambda: is_given_back(system, second))
        assert (node.running, await system.used()) == (1, 0)

        stubborn.let_go()
        (outcome,) = await ended(system, [second])
        assert (outcome.state, outcome.attempts, len(spans.spans), spans.most()) == ("completed", 0, 2, 1)


async def test_a_node_that_stops_gives_back_what_still_comes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 13: nobody took its slots away, nor heard that it leaves, but it starts nothing more while its last
    handlers end.
    """
    gate, may_stop = Gate(), asyncio.Event()

    async def slow_to_stop(job: Job) -> None:
        try:
            await gate(job)
        finally:
            await may_stop.wait()

    async def not_yet(*_: object) -> str:
        return "busy"

    monkeypatch.setattr(Cell, "leave", not_yet)
    monkeypatch.setattr(drain, "STOP_MS_MIN", 10_000)
    async with running(url) as system:
        node = Node(url, "n1", capacity=2, handler=slow_to_stop, settings=QUICK, drain_ms_max=1)
        await node.__aenter__()
        first = await system.producer.submit("s1")
        await gate.wait_for(1)
        await system.managers.pop()[0].stop()
        leaving = asyncio.create_task(node.__aexit__())
        await node.stopped()
        second = await system.producer.submit("s2")
        await system.until(lambda: is_given_back(system, second))
        may_stop.set()
        await leaving
        assert (gate.started, await is_given_back(system, first)) == ([first], True)
        system.managers.append(await start_manager(url, QUICK))


async def is_given_back(system: System, job_id: str) -> bool:
    """Whether its last reservation ended so."""
    return (await system.store.reads.record(job_id)).get("last_verdict") == "give_back"
