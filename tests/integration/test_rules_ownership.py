"""Owners of partitions that are paused, robbed, or come back: what they read and remember harms nobody."""

from __future__ import annotations

import asyncio
import signal

import msgspec
import pytest

from scheduler.node.handlers import Job
from scheduler.protocol import keys, messages
from scheduler.protocol.documents import JobDocument, encode_job
from scheduler.roles import start_dispatcher
from scheduler.store.connection import RETRY_MS_MAX
from scheduler.store.control import Beaten, Control
from tests.clock import HandClock, hand_clock
from tests.fault.processes import process
from tests.fault.test_nodes import ended, submit
from tests.integration.test_dispatcher import CALM, Bench, bench
from tests.system import QUICK, running

PATIENCE_MS = 10_000


async def until_read_ahead(b: Bench) -> None:
    """Wait until the blocked read has brought a batch, which nobody takes."""
    reader = b.dispatcher._reader
    assert reader is not None
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not reader._work.is_set():
            await b.store.control.time_us()


async def until_lost(b: Bench) -> None:
    """Step until it knows that it holds nothing any more."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while len(b.dispatcher.partitions):
            await b.dispatcher.run_once()


async def add_at_once(b: Bench, *jobs: tuple[str, str]) -> None:
    """Intake entries (session, job_id) that one read brings together."""
    pipeline = b.store.connection.commands.pipeline(transaction=True)
    for session, job_id in jobs:
        document = encode_job(JobDocument(session, job_id, "en", "zh"))
        pipeline.xadd(b.store.cell.keys.jobs(keys.partition_of(session, b.layout.partitions)), {"job": document})
    await pipeline.execute()
    b.entries += len(jobs)


def session_of(b: Bench, partition: int) -> str:
    """A session of a partition."""
    return next(f"s{i}" for i in range(1_000) if keys.partition_of(f"s{i}", b.layout.partitions) == partition)


async def test_a_blocked_read_of_a_paused_owner_swallows_nothing(url: str) -> None:
    """RULES 1: what its read brings after another took over is placed by the other, all of it, in order, once."""
    async with bench(url) as paused:
        await paused.fleet(n1=100)
        await paused.dispatcher.run_once()
        await paused.pause()
        async with bench(url, owner="d+2") as other:
            await other.dispatcher.snapshots.load()
            ids = [f"j{i}" for i in range(20)]
            await add_at_once(other, *(("s1", job_id) for job_id in ids))
            await until_read_ahead(paused)
            await other.step_until_read()
            assert await other.inbox("n1") == ids

            await until_lost(paused)
            assert await other.inbox("n1") == ids
            assert paused.dispatcher.report.read > 0
            assert (paused.dispatcher.report.placed, other.dispatcher.report.placed) == (0, 20)


async def test_an_owner_that_wakes_late_gets_through_with_nothing(url: str) -> None:
    """RULES 1 and 18: the batch in its hands is fenced, also while the new owner has the same jobs waiting."""
    async with bench(url) as paused:
        await paused.fleet(n1=1)
        await paused.dispatcher.run_once()
        await paused.pause()
        async with bench(url, owner="d+2") as other:
            await other.dispatcher.snapshots.load()
            await add_at_once(other, ("s1", "j0"), ("s1", "j1"), ("s1", "j2"))
            await until_read_ahead(paused)
            await other.step_until_read()
            await other.free("n1", "j0")

            await until_lost(paused)
            while await other.inbox("n1") != ["j1"]:
                await other.dispatcher.run_once()
            assert paused.dispatcher.report.read > 0
            assert (paused.dispatcher.report.placed, len(paused.dispatcher.state.waiting)) == (0, 0)
            assert [waiter.job.job_id for waiter in other.dispatcher.state.waiting] == ["j2"]


async def test_sigstop_of_the_dispatcher_during_its_blocked_read(url: str) -> None:
    """RULES 1: a paused process's jobs run in order under the next owner; awake again it takes part as before."""
    runs: list[str] = []

    async def handle(job: Job) -> None:
        runs.append(job.job_id)

    quick = msgspec.structs.replace(QUICK, partition_lease_ms=500)
    async with running(url, quick, dispatcher=False) as system, process(url, "dispatcher", settings=quick) as paused:
        system.dispatchers.append(await start_dispatcher(url, system.settings))
        await system.add_node("n1", handle, capacity=2)
        await ended(system, await submit(system, 1))
        paused.send(signal.SIGSTOP)
        ids = [
            await system.producer.submit(f"s{i % 4}", job_id=f"k{i}", src_lang="en", tgt_lang="zh") for i in range(24)
        ]
        assert {outcome.state for outcome in await ended(system, ids)} == {"completed"}
        for session in range(4):
            assert [run for run in runs[1:] if int(run[1:]) % 4 == session] == ids[session::4]

        paused.send(signal.SIGCONT)
        await system.dispatchers.pop()[0].stop()
        last = await system.producer.submit("s1", job_id="last", src_lang="en", tgt_lang="zh")
        assert [outcome.state for outcome in await ended(system, [last])] == ["completed"]
        assert sorted(runs) == sorted(["j0", *ids, "last"])


async def test_gaining_a_partition_again_forgets_what_was_known_of_it(url: str) -> None:
    """RULES 4: after another's hold in between nothing old is left: bindings are read anew, jobs from the start."""
    async with bench(url) as b:
        await b.fleet(n1=1)
        await b.add("s1", "j0")
        await b.add("s1", "j1")
        await b.step_until_read()
        partition = keys.partition_of("s1", b.layout.partitions)
        (before,) = list(b.dispatcher.state.waiting)
        await b.pause(partition)
        await b.store.cell.claim("d+2", [partition])
        await b.store.connection.commands.set(b.store.cell.keys.session("s1"), "default en:zh n2 -")
        await b.store.cell.claim("d+2", [], [partition])

        await b.dispatcher.partitions.claim()
        b.dispatcher._apply_partitions()  # which the next step begins with
        assert (len(b.dispatcher.state.waiting), "s1" in b.dispatcher.state.bindings) == (0, False)
        b.entries += 1
        await b.step_until_read()
        (after,) = list(b.dispatcher.state.waiting)
        binding, _ = b.dispatcher.state.bindings.get("s1", 0)
        assert (after.job.job_id, after.job.epoch > before.job.epoch) == ("j1", True)
        assert binding is not None
        assert binding.node == "n2"


async def test_claiming_again_as_the_holder_keeps_what_is_known(url: str) -> None:
    """RULES 5: a late renewal under the same epoch drops no waiting job and no binding, and reads nothing twice."""
    async with bench(url) as b:
        await b.fleet(n1=1)
        await b.add("s1", "j0")
        await b.add("s1", "j1")
        await b.step_until_read()
        before = await b.store.reads.owners()
        waiting = list(b.dispatcher.state.waiting)
        await b.pause()

        await b.dispatcher.partitions.claim()
        after = await b.store.reads.owners()
        assert {p: hold[:2] for p, hold in after.items()} == {p: hold[:2] for p, hold in before.items()}
        assert (list(b.dispatcher.state.waiting), "s1" in b.dispatcher.state.bindings) == (waiting, True)
        await b.free("n1", "j0")
        while await b.inbox("n1") != ["j1"]:
            await b.dispatcher.run_once()
        assert b.dispatcher.report.read == 2


async def test_a_stolen_partition_costs_only_its_own_jobs(url: str) -> None:
    """RULES 5: of a batch over two partitions the jobs of the lost one stay in the intake, the others are placed."""
    async with bench(url) as b:
        await b.fleet(n1=10)
        stolen, kept = session_of(b, 3), session_of(b, 4)
        await b.pause(3)
        (_, (answer,)) = await b.store.cell.claim("d+2", [3])
        assert isinstance(answer, messages.Owned)
        await add_at_once(b, *((session, f"{session}-{i}") for i in range(3) for session in (stolen, kept)))
        await b.step_until_read()
        assert await b.inbox("n1") == [f"{kept}-{i}" for i in range(3)]
        assert await b.store.reads.lengths([b.store.cell.keys.jobs(3), b.store.cell.keys.jobs(4)]) == [3, 0]
        assert (len(b.dispatcher.partitions), len(b.dispatcher.state.waiting)) == (15, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """By which dispatchers notice that they were deaf."""
    return hand_clock(monkeypatch)


async def seed_outage(clock: HandClock, *benches: Bench) -> None:
    """The server was away for longer than every silence and lease, and nobody has beaten since."""
    for b in benches:
        await b.pause()
    clock.go(CALM.silence_ms)


async def test_the_first_dispatcher_after_an_outage_takes_nothing_from_the_others(url: str, clock: HandClock) -> None:
    """RULES 16: it is told of nobody else, but nobody was listening; each keeps what it holds, under its epochs."""
    async with bench(url, clock=clock) as first, bench(url, owner="d+2", clock=clock) as second:
        for b in (first, second, first, second):
            await b.dispatcher._upkeep.heartbeat()
            await b.dispatcher.partitions.claim()
        before = await first.store.reads.owners()
        assert {owner for _, owner, _ in before.values()} == {"d+1", "d+2"}
        await seed_outage(clock, first, second)

        assert (await first.store.control.beat(b"doc", "d+1")).live == ("d+1",)
        for b in (first, second, first, second):
            await b.dispatcher._upkeep.heartbeat()
            await b.dispatcher.partitions.claim()
        after = await first.store.reads.owners()
        assert {p: hold[:2] for p, hold in after.items()} == {p: hold[:2] for p, hold in before.items()}


async def test_a_dispatcher_that_does_not_come_back_after_an_outage_is_given_up(url: str, clock: HandClock) -> None:
    """RULES 16: the others had time for a heartbeat; whoever did not use it is silent, and its share is taken."""
    async with bench(url, clock=clock) as first, bench(url, owner="d+2", clock=clock) as second:
        for b in (first, second, first):
            await b.dispatcher._upkeep.heartbeat()
        shared = first.dispatcher.partitions._wished
        await seed_outage(clock, first, second)

        await first.dispatcher._upkeep.heartbeat()
        for _ in range(RETRY_MS_MAX // CALM.heartbeat_ms):
            clock.go(CALM.heartbeat_ms)
            await first.dispatcher._upkeep.heartbeat()
            assert first.dispatcher.partitions._wished == shared
        clock.go(CALM.heartbeat_ms)
        await first.dispatcher._upkeep.heartbeat()
        assert len(first.dispatcher.partitions._wished) == first.layout.partitions


async def test_a_heartbeat_under_way_comes_before_the_last_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatcher that left must not seem alive, or what it had would be wished to be its own for a whole silence."""
    beat, may_arrive, sent = Control.beat, asyncio.Event(), asyncio.Event()
    late: list[asyncio.Task[Beaten]] = []

    async def slow(self: Control, document: bytes, dispatcher: str = "", *, leaves: bool = False) -> Beaten:
        async def arrive() -> Beaten:
            await may_arrive.wait()
            return await beat(self, document, dispatcher)

        if leaves:
            return await beat(self, document, dispatcher, leaves=True)
        late.append(asyncio.create_task(arrive()))
        sent.set()
        return await asyncio.shield(late[-1])

    async with bench(url) as b:
        monkeypatch.setattr(Control, "beat", slow)
        b.dispatcher._heartbeats.wake()
        await sent.wait()
        asyncio.get_running_loop().call_later(0.05, may_arrive.set)
        await b.dispatcher.close()
        await asyncio.gather(*late)
        assert await b.store.connection.commands.zcard(b.store.control.keys.dispatchers) == 0
