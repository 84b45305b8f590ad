"""Limits that are set while jobs run: these count too, whoever placed them, and whatever happens to the leader."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from scheduler.errors import Fenced, SchedulerError
from scheduler.management import counting
from scheduler.management.commands import ApplyPools, RemovePool
from scheduler.management.manager import Manager
from scheduler.management.pools import PoolDocument
from scheduler.node.handlers import Job
from scheduler.producer import Request
from scheduler.protocol import messages
from scheduler.protocol.documents import JobDocument
from scheduler.runtime.dispatcher import Dispatcher
from scheduler.runtime.waiting.queues import Waiter
from scheduler.store.cell import Cell
from scheduler.store.control import Control
from scheduler.store.store import Store, open_store
from tests.integration.desk import UNHURRIED, Desk
from tests.seeds import (
    release,
    release_item,
    reserve,
    reserve_item,
    seed_job,
    seed_node,
    seed_owner,
)
from tests.system import QUICK, System, running

EN_ZH: Final = ("en", "zh")
EN_DE: Final = ("en", "de")
ONE_A_SESSION: Final = PoolDocument(session_concurrency=1)
TWO_A_TENANT: Final = PoolDocument(tenant_concurrency=2)
SESSION: Final = frozenset({"session"})


# ---- the leader ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def desk(store: Store) -> AsyncIterator[Desk]:
    """A led fleet with a node, on which two jobs of two sessions and of one tenant run, one of another without any."""
    async with await open_store(store.connection.url, UNHURRIED) as opened:
        await opened.control.write_layout()
        desk = Desk(opened)
        epoch = await seed_owner(opened)
        await seed_node(opened, slots=9)
        tenants = {"j1": "t1", "j2": "t1", "j3": ""}
        items = [
            reserve_item(await seed_job(opened, job, f"s{job}", tenant=tenant), epoch, job, f"s{job}", tenant=tenant)
            for job, tenant in tenants.items()
        ]
        await reserve(opened, items)
        await desk.manager.run_once()
        yield desk


async def held(store: Store) -> dict[str, list[str]]:
    """Who counts for each limit."""
    client, prefix = store.connection.commands, store.cell.keys.held("", "")[:-1]
    names = sorted([name.decode() async for name in client.scan_iter(f"{prefix}*")])
    members = {name.removeprefix(prefix): await client.zrange(name, 0, -1) for name in names}
    return {limit: sorted(member.decode() for member in counted) for limit, counted in members.items()}


async def least(store: Store, limits: Sequence[str]) -> list[int]:
    """The smallest limit of those who count for each."""
    return [each for _, each in await store.reads.held_sizes(limits)]


ALL_SESSIONS: Final = {"session:sj1": ["j1"], "session:sj2": ["j2"], "session:sj3": ["j3"]}
ALL_TENANTS: Final = {"tenant:t1": ["j1", "j2"]}


async def test_a_limit_counts_what_was_placed_before_it_was_set(desk: Desk) -> None:
    """Only then it is published, and its command answered; what was counted for another kind goes on to count."""
    assert await held(desk.store) == {}
    assert str(await desk.store.reads.counted()) == ""

    await desk.ask(ApplyPools({"gold": ONE_A_SESSION}))
    await desk.manager.run_once()

    accepted = (await desk.answer())["accepted"]
    assert await held(desk.store) == ALL_SESSIONS
    assert await desk.store.reads.counted() == messages.Counted(accepted["version"], SESSION)
    await desk.ask(ApplyPools({"silver": TWO_A_TENANT}))
    await desk.manager.run_once()
    assert await held(desk.store) == ALL_SESSIONS | ALL_TENANTS


async def test_nothing_is_counted_without_limits(desk: Desk) -> None:
    """After the last one of a kind is gone; what is held is freed as jobs end."""
    await desk.ask(ApplyPools({"gold": ONE_A_SESSION, "silver": TWO_A_TENANT}))
    await desk.manager.run_once()
    await desk.ask(RemovePool("gold"))
    await desk.manager.run_once()
    assert (await desk.store.reads.counted()).kinds == {"tenant"}

    await desk.ask(RemovePool("silver"))
    await desk.manager.run_once()

    assert str(await desk.store.reads.counted()) == ""
    assert await held(desk.store) == ALL_SESSIONS | ALL_TENANTS
    records = {job: await desk.store.reads.record(job) for job in ("j1", "j2", "j3")}
    for job, record in records.items():
        token, tenant = int(record["token"]), record.get("tenant", "")
        await release(desk.store, release_item(token, "finish", job, f"s{job}", tenant_id=tenant))
    assert await held(desk.store) == {}


async def test_other_limits_of_the_same_kind_send_dispatchers_to_their_snapshot(desk: Desk) -> None:
    """What is allowed is in the snapshot alone, so the cell knows from which one on it is in force."""
    for most in (5, 2):
        await desk.ask(ApplyPools({"gold": PoolDocument(session_concurrency=most)}))
        await desk.manager.run_once()
        assert (await desk.store.reads.counted()).version == await desk.control.read_version()

    await desk.ask(ApplyPools({"bronze": PoolDocument()}))
    await desk.manager.run_once()
    assert (await desk.store.reads.counted()).version < await desk.control.read_version()


async def test_who_runs_stands_for_the_limits_of_its_pool_as_they_are_set(desk: Desk) -> None:
    """They are written before they are published, also those of a job that was lost from those that count."""
    limits = list(ALL_SESSIONS)
    for most in (2, 5, 0):
        pool, other = PoolDocument(session_concurrency=most), PoolDocument(session_concurrency=9)
        await desk.ask(ApplyPools({"default": pool, "gold": other}))
        await desk.manager.run_once()
        assert await least(desk.store, limits) == [most] * 3
    await desk.ask(ApplyPools({"default": PoolDocument(session_concurrency=4)}))
    await desk.manager.run_once()
    await desk.store.connection.commands.delete(*[desk.store.cell.keys.held(*each.split(":")) for each in limits])

    desk.manager._counting._patrolled_at_ms -= counting.PATROL_MS
    await desk.manager.run_once()

    assert await least(desk.store, limits) == [4] * 3


class Dies(SchedulerError):
    """The process ends here."""


def dying_at(cell: Cell, number: int, before: bool) -> Callable[..., Awaitable[Any]]:
    """`count` of a process that dies in its call of this number, before the server did it, or after that."""
    seen = 0

    async def count(*arguments: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == number and before:
            raise Dies("before")
        answer = await Cell.count(cell, *arguments)
        if seen == number:
            raise Dies("after")
        return answer

    return count


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
async def test_a_leader_that_dies_between_the_steps_is_finished_by_the_next(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, number: int, before: bool
) -> None:
    """Calls: the cell is told, one for each job, and the version. Up to then nothing is in force, or answered."""
    one_a_call = msgspec.structs.replace(UNHURRIED, batch_max=1)
    monkeypatch.setattr(desk.manager, "_counting", counting.Counting(desk.store, one_a_call, desk.manager._keep_lead))
    monkeypatch.setattr(desk.store.cell, "count", dying_at(desk.store.cell, number, before))
    await desk.ask(ApplyPools({"gold": ONE_A_SESSION}))

    with pytest.raises(Dies):
        await desk.manager.run_once()

    is_in_force = "gold" in await desk.in_force()
    assert is_in_force == (number == 5) == bool(await desk.answers())
    monkeypatch.undo()
    await desk.manager.give_up()
    other = Manager(desk.store, UNHURRIED, "m2+1")
    await other.run_once()
    await other.run_once()
    assert [answer for _, answer in await desk.answers()] == ["accepted"]
    assert await held(desk.store) == ALL_SESSIONS
    assert await desk.store.reads.counted() == messages.Counted(await desk.control.read_version(), SESSION)


async def test_a_command_that_was_taken_back_leaves_nothing_counted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leader died after the cell was told; the next one finds no limit."""
    monkeypatch.setattr(desk.store.cell, "count", dying_at(desk.store.cell, 1, before=False))
    command = await desk.ask(ApplyPools({"gold": ONE_A_SESSION}))
    with pytest.raises(Dies):
        await desk.manager.run_once()
    monkeypatch.undo()
    assert await desk.store.reads.counted() == messages.Counted(0, SESSION)
    await desk.store.connection.commands.xdel(desk.control.keys.commands, command)
    await desk.manager.give_up()

    await Manager(desk.store, UNHURRIED, "m2+1").run_once()

    assert str(await desk.store.reads.counted()) == ""


async def test_a_leader_that_was_paused_while_it_counted_is_fenced(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one has removed the limit meanwhile; what the first still says changes nothing."""
    other = Manager(desk.store, UNHURRIED, "m2+1")
    count, paused = desk.store.cell.count, asyncio.Event()

    async def late(*arguments: Any) -> Any:
        if not paused.is_set():
            paused.set()
            await desk.store.control.give_up_lead("m1+1")
            await other.run_once()
            await desk.ask(RemovePool("gold"))
            await other.run_once()
        return await count(*arguments)

    monkeypatch.setattr(desk.store.cell, "count", late)
    await desk.ask(ApplyPools({"gold": ONE_A_SESSION}))

    with pytest.raises(Fenced):
        await desk.manager.run_once()

    assert str(await desk.store.reads.counted()) == ""


@pytest.mark.parametrize("is_new", [False, True], ids=["look back", "take-over"])
async def test_what_somebody_deleted_is_counted_again(
    desk: Desk, caplog: pytest.LogCaptureFixture, is_new: bool
) -> None:
    """And told: what was placed meanwhile may not count."""
    await desk.ask(ApplyPools({"gold": ONE_A_SESSION}))
    await desk.manager.run_once()
    stored = await desk.store.reads.counted()
    client, keys = desk.store.connection.commands, desk.store.cell.keys
    await client.delete(keys.counted, keys.held("session", "sj1"))
    manager = desk.manager
    if is_new:
        await desk.manager.give_up()
        manager = Manager(desk.store, UNHURRIED, "m2+1")
    else:
        desk.manager._looked_back_at_ms = -1e9

    await manager.run_once()

    assert await held(desk.store) == ALL_SESSIONS
    assert (await desk.store.reads.counted()).kinds == stored.kinds
    assert "the server has lost that limits are counted (session): counting anew" in caplog.text


async def test_a_set_that_somebody_deleted_is_made_again_within_a_lease(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """And told. The leader looks at some nodes once a second."""
    await desk.ask(ApplyPools({"gold": ONE_A_SESSION}))
    await desk.manager.run_once()
    keys = desk.store.cell.keys
    await desk.store.connection.commands.delete(keys.held("session", "sj1"), keys.held("session", "sj2"))
    await desk.manager.run_once()

    desk.manager._counting._patrolled_at_ms = -1e9
    await desk.manager.run_once()

    assert await held(desk.store) == ALL_SESSIONS
    assert "2 jobs were lost from those that count for limits; they count again" in caplog.text


async def test_what_is_deleted_while_it_is_counted_is_begun_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise what was placed meanwhile would not count."""
    count, keys, seen = desk.store.cell.count, desk.store.cell.keys, Counter[int]()

    async def losing(epoch: int, counted: messages.Counted, items: Sequence[messages.CountItem] = ()) -> Any:
        seen[len(items)] += 1
        if seen[3] == 1:
            await desk.store.connection.commands.delete(keys.counted)
        return await count(epoch, counted, items)

    monkeypatch.setattr(desk.store.cell, "count", losing)
    await desk.ask(ApplyPools({"gold": ONE_A_SESSION}))
    await desk.manager.run_once()

    assert (seen[3], await held(desk.store)) == (2, ALL_SESSIONS)


async def test_a_limit_after_flushall_is_counted_before_it_is_published(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stored is gone with all that was held; the leader stores it again."""
    await desk.ask(ApplyPools({"gold": ONE_A_SESSION}))
    await desk.manager.run_once()
    await desk.store.connection.commands.flushall()
    told: list[str] = []
    publish, count = Control.publish, Cell.count

    async def note_publish(control: Control, *arguments: Any, **rest: Any) -> Any:
        told.append("publish")
        return await publish(control, *arguments, **rest)

    async def note_count(cell: Cell, *arguments: Any) -> Any:
        told.append("count")
        return await count(cell, *arguments)

    monkeypatch.setattr(Control, "publish", note_publish)
    monkeypatch.setattr(Cell, "count", note_count)
    other = Manager(desk.store, UNHURRIED, "m2+1")
    await other.run_once()
    await desk.ask(ApplyPools({"gold": ONE_A_SESSION}))
    await other.run_once()

    assert told.index("count") < len(told) - 1 - told[::-1].index("publish")
    assert (await desk.store.reads.counted()).kinds == SESSION


# ---- all of it, from outside ---------------------------------------------------------------------------------------


class Work:
    """A handler that runs until it is told; most: of each session at once; pools: by job."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.pools: dict[str, str] = {}
        self.may_end = asyncio.Event()

    async def __call__(self, job: Job) -> str:
        self.now[job.session_id] += 1
        self.most[job.session_id] = max(self.most[job.session_id], self.now[job.session_id])
        self.pools[job.job_id] = job.policy.pool
        try:
            await self.may_end.wait()
        finally:
            self.now[job.session_id] -= 1
        return job.job_id


async def apply(url: str, path: Path, text: str) -> None:
    """`scheduler pools apply`, from which it returns when the limit is in force."""
    path.write_text(text)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scheduler", "pools", "apply", str(path), "--redis-url", url,
        env=os.environ | {"SCHED_START_MS": "500", "SCHED_LEASE_MS": "900", "SCHED_MARGIN_MS": "100"},
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0


async def submit(system: System, session: str, *pairs: tuple[str, str]) -> list[str]:
    """Jobs of a session, in this order."""
    requests = [
        Request(JobDocument(session, src_lang=source, tgt_lang=target, tenant_id="acme")) for source, target in pairs
    ]
    return [accepted.job_id for accepted in await system.producer.submit_many(requests)]


def is_limited(dispatcher: Dispatcher, job_id: str) -> Callable[[], bool]:
    """Whether a job waits for a limit."""
    waiting: Callable[[], list[Waiter]] = lambda: list(dispatcher.state.waiting)  # noqa: E731
    return lambda: any(each.job.job_id == job_id and each.state == "limited" for each in waiting())


async def test_a_limit_that_is_set_while_jobs_run_counts_them(url: str, tmp_path: Path) -> None:
    """No more start until they have ended."""
    async with running(url, QUICK) as system:
        work = Work()
        await system.add_node("n1", work)
        first = await submit(system, "s1", EN_ZH, EN_ZH)
        await system.until(lambda: work.now["s1"] == 2)

        await apply(url, tmp_path / "pools.toml", "[pools.default]\nsession_concurrency = 2\n")
        (third,) = await submit(system, "s1", EN_ZH)
        await system.until(is_limited(system.dispatcher, third))
        (other,) = await submit(system, "s2", EN_ZH)
        await system.until(lambda: other in work.pools)
        assert set(work.pools) == {*first, other}

        work.may_end.set()
        assert await system.producer.result(third, timeout_ms=15_000) == third
        assert (work.most["s1"], system.dispatcher.report.sweep_hits) == (2, 0)


async def test_jobs_in_a_pool_without_a_limit_count_for_that_of_another(url: str, tmp_path: Path) -> None:
    """A session changes its languages, for which the limited pool has no node."""
    async with running(url, QUICK) as system:
        work = Work()
        text = '[pools.gold]\ntenants = ["acme"]\nfallback = ["default"]\nsession_concurrency = 1\n'
        await apply(url, tmp_path / "pools.toml", text)
        await system.add_node("g1", work, pool="gold")
        await system.add_node("d1", work, pairs=(EN_ZH, EN_DE))
        first, second = await submit(system, "s1", EN_DE, EN_ZH)
        await system.until(is_limited(system.dispatcher, second))
        await system.until(lambda: first in work.pools)
        assert work.pools == {first: "default"}

        work.may_end.set()
        assert await system.producer.result(second, timeout_ms=15_000) == second
        assert (work.most["s1"], work.pools[second]) == (1, "gold")
        await system.until(lambda: nothing_is_held(system.store))


async def test_no_job_of_whatever_pool_runs_beside_one_under_a_limit_of_one(url: str, tmp_path: Path) -> None:
    """What comes behind it keeps its order, and an event wakes it when that one ends."""
    async with running(url, QUICK) as system:
        work = Work()
        text = '[pools.gold]\ntenants = ["acme"]\nfallback = ["default"]\nsession_concurrency = 1\n'
        await apply(url, tmp_path / "pools.toml", text)
        await system.add_node("g1", work, pool="gold")
        await system.add_node("d1", work, pairs=(EN_ZH, EN_DE), capacity=4)
        first, second, third = await submit(system, "s1", EN_ZH, EN_DE, EN_DE)
        await system.until(is_limited(system.dispatcher, second))
        await system.until(lambda: first in work.pools)
        assert work.pools == {first: "gold"}

        work.may_end.set()
        for job in (first, second, third):
            assert await system.producer.result(job, timeout_ms=15_000) == job
        assert work.pools == {first: "gold", second: "default", third: "default"}
        assert list(work.pools) == [first, second, third]
        assert system.dispatcher.report.sweep_hits == 0
        await system.until(lambda: nothing_is_held(system.store))


@pytest.mark.parametrize("line", ["session_concurrency = 2", ""], ids=["a higher one", "none"])
async def test_another_limit_holds_at_once_for_what_waits_beside_a_job(url: str, tmp_path: Path, line: str) -> None:
    """The job that runs stands for the new one; the first that waits is tried when the snapshot comes."""
    async with running(url, QUICK) as system:
        work = Work()
        text = '[pools.gold]\ntenants = ["acme"]\nfallback = ["default"]\n'
        await apply(url, tmp_path / "pools.toml", f"{text}session_concurrency = 1\n")
        await system.add_node("g1", work, pool="gold")
        await system.add_node("d1", work, pairs=(EN_ZH, EN_DE), capacity=4)
        first, second = await submit(system, "s1", EN_ZH, EN_DE)
        await system.until(is_limited(system.dispatcher, second))

        await apply(url, tmp_path / "pools.toml", f"{text}{line}\n")

        await system.until(lambda: second in work.pools)
        assert (work.now["s1"], work.pools) == (2, {first: "gold", second: "default"})
        assert system.dispatcher.report.sweep_hits == 0
        work.may_end.set()


async def nothing_is_held(store: Store) -> bool:
    """No limit is taken."""
    return await held(store) == {}


async def test_jobs_are_placed_while_the_leader_counts(url: str) -> None:
    """By the snapshot that there is, which names no limit; they count already."""
    async with running(url, QUICK) as system:
        work = Work()
        await system.add_node("n1", work)
        epoch = int(await system.store.connection.commands.get(system.store.cell.keys.leader_epoch))
        await system.store.cell.count(epoch, messages.Counted(0, SESSION))
        (job,) = await submit(system, "s1", EN_ZH)
        await system.until(lambda: job in work.pools)
        assert await held(system.store) == {"session:s1": [job]}
        work.may_end.set()
        assert await system.producer.result(job, timeout_ms=15_000) == job


async def test_a_job_whose_record_was_deleted_limits_its_session_no_more(url: str, tmp_path: Path) -> None:
    """Nobody could end it, so the next job of the session would wait for ever."""
    async with running(url, QUICK) as system:
        work = Work()
        await apply(url, tmp_path / "pools.toml", "[pools.default]\nsession_concurrency = 1\n")
        await system.add_node("n1", work)
        (first,) = await submit(system, "s1", EN_ZH)
        await system.until(lambda: first in work.pools)
        await system.store.connection.commands.delete(system.store.cell.keys.job(first))
        work.may_end.set()

        (second,) = await submit(system, "s1", EN_ZH)
        assert await system.producer.result(second, timeout_ms=15_000) == second


async def test_a_dispatcher_whose_snapshot_is_late_is_sent_back_to_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told nothing of what is published, until `reserve` refuses it."""
    async with running(url, QUICK) as system:
        work = Work()
        await system.add_node("n1", work)
        await submit(system, "s1", EN_ZH)
        await system.until(lambda: work.now["s1"] == 1)
        snapshots = system.dispatcher.snapshots
        monkeypatch.setattr(snapshots, "follow", lambda: asyncio.sleep(0.05))
        await asyncio.sleep(1.2)  # the read that is under way comes to its end
        version = snapshots.index.version

        await apply(url, tmp_path / "pools.toml", "[pools.default]\nsession_concurrency = 1\n")
        assert snapshots.index.version == version
        (second,) = await submit(system, "s1", EN_ZH)
        await system.until(is_limited(system.dispatcher, second))
        assert snapshots.index.version > version
        assert (await held(system.store))["session:s1"] != []
        work.may_end.set()
        assert await system.producer.result(second, timeout_ms=15_000) == second
        assert work.most["s1"] == 1
