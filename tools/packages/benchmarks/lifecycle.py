"""`lifecycle`: from `submit` to the result by the SDK, with workers that do nothing, beside the relay.

The dispatcher is a process of its own. Producer, nodes and manager share this one, and what it costs counts: it is what
a user of the SDK pays.
"""

from __future__ import annotations

import asyncio
import contextlib
from statistics import median
from typing import Final

import click
import msgspec

from benchmarks.cores import process_us
from benchmarks.dispatchers import dispatchers
from benchmarks.fleet import COMMON_PAIRS
from benchmarks.measure import STALL_S, BenchmarkFailed, Stopwatch, facts, server_counters
from benchmarks.relay import relay_round
from benchmarks.verdict import Claim, Shown
from benchmarks.workload import Workload
from scheduler.config import Settings
from scheduler.console.own_server import on_own_server
from scheduler.loop import end_tasks
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.producer import Producer, Request
from scheduler.protocol.documents import decode_job
from scheduler.protocol.messages import Submitted
from scheduler.roles import start_manager
from scheduler.store.cleanup import remove_namespace
from scheduler.store.store import open_store

RATIO_MIN: Final = 0.25
WORKERS: Final = 4
SLOTS: Final = 256
OPEN_MAX: Final = 2_000
"""Jobs that were submitted and have no outcome yet: enough that nobody has to wait for the producer."""
REPLY_TO: Final = "bench"


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run: rounds that count, after one to warm up, of each of both."""

    workload: Workload
    rounds: int


class Lived(msgspec.Struct, frozen=True):
    """A round: jobs a second, and CPU microseconds a job.

    server_us: of the server
    client_us: of this process and the dispatcher together, None where the system does not tell that of another process
    """

    jobs_per_s: float
    server_us: float
    client_us: float | None


class Figures(msgspec.Struct, frozen=True):
    """Jobs a second of each round of the relay, and the rounds of the lifecycle."""

    relay: list[float]
    rounds: list[Lived]

    @property
    def lifecycle(self) -> list[float]:
        """Jobs a second of each round."""
        return [each.jobs_per_s for each in self.rounds]

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return round(median(self.lifecycle) / median(self.relay), 3)


def lifecycle(plan: Plan, settings: Settings, url: str | None) -> tuple[dict[str, str | int], Figures]:
    """Both in turns, on a server in memory or in a namespace of its own. Returns: facts of the machine; figures.

    Blocks; belongs into the main thread. Raises: BenchmarkFailed, ServerUnavailable, ServerRefused.
    """

    async def perform(found_url: str, own: Settings) -> tuple[dict[str, str | int], Figures]:
        async with await open_store(found_url, own) as store:
            found = await facts(store)
        figures = Figures([], [])
        for number in range(plan.rounds + 1):
            relayed = (await relay_round(found_url, own, plan.workload)).jobs_per_s
            lived = await _round(found_url, own, plan.workload)
            what = f"round {number} of {plan.rounds}" if number else "warm-up"
            click.echo(f"{what}: relay {relayed:,.0f}, lifecycle {lived.jobs_per_s:,.0f} jobs/s", err=True)
            if number:
                figures.relay.append(round(relayed))
                figures.rounds.append(lived)
        return found, figures

    return on_own_server("bench", url, settings, perform)


async def _round(url: str, settings: Settings, workload: Workload) -> Lived:
    """From the first submission to the last outcome."""
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(await open_store(url, settings))
        stack.push_async_callback(remove_namespace, store)
        manager, _ = await start_manager(url, settings)
        stack.push_async_callback(manager.stop)
        (dispatcher,) = await stack.enter_async_context(dispatchers(url, settings, store, 1))
        for number in range(WORKERS):
            node = Node(url, f"n{number}", capacity=SLOTS, handler=_do_nothing, pairs=COMMON_PAIRS, settings=settings)
            await stack.enter_async_context(node)
        producer = await stack.enter_async_context(Producer(url, settings=settings, reply_to=REPLY_TO))
        requests = [Request(decode_job(document), workload.payload()) for _, document in workload.documents()]
        await producer.result(await producer.submit("first", src_lang="en", tgt_lang="zh"))
        watch, from_us = Stopwatch(await server_counters(store)), process_us(dispatcher)
        watch.start()
        await _live(producer, requests, workload.batch)
        watch.stop()
        until_us = process_us(dispatcher)
        found = watch.round(workload.jobs, await server_counters(store))
        used_us = None if from_us is None or until_us is None else (until_us - from_us) / workload.jobs
        return Lived(
            round(found.jobs_per_s),
            round(found.server_us, 2),
            None if used_us is None else round(found.client_us + used_us, 2),
        )


async def _do_nothing(_: Job) -> None:
    """The handler."""


async def _live(producer: Producer, requests: list[Request], batch: int) -> None:
    """Submit all of it and wait for every outcome. Raises: BenchmarkFailed."""
    ended, news = 0, asyncio.Event()

    async def follow() -> None:
        nonlocal ended
        async for _, outcome in producer.results("0"):
            if outcome.job_id.startswith("j"):
                ended += outcome.state == "completed"
                news.set()

    async def until(count: int) -> None:
        while ended < count:
            news.clear()
            try:
                async with asyncio.timeout(STALL_S):
                    await news.wait()
            except TimeoutError:
                raise BenchmarkFailed(f"{ended} of {len(requests)} jobs are completed, and none for 10 s") from None

    following = asyncio.create_task(follow())
    try:
        for start in range(0, len(requests), batch):
            await until(start - OPEN_MAX)
            answers = await producer.submit_many(requests[start : start + batch])
            if not all(isinstance(answer, Submitted) for answer in answers):
                raise BenchmarkFailed("a job was not accepted")
        await until(len(requests))
    finally:
        await end_tasks([following])


def show(machine: dict[str, str | int], plan: Plan, figures: Figures) -> Shown:
    """Both side by side, and the verdict on the ratio of their medians."""
    lines = [f"{'':10}{'jobs/s':>12}{'min':>10}{'max':>10}"]
    for name, speeds in (("relay", figures.relay), ("lifecycle", figures.lifecycle)):
        lines.append(f"{name:10}{median(speeds):12,.0f}{min(speeds):10,.0f}{max(speeds):10,.0f}")
    ratios = tuple(round(ours / theirs, 3) for ours, theirs in zip(figures.lifecycle, figures.relay, strict=True))
    return Shown(
        facts=machine,
        inputs={"rounds": plan.rounds, "workers": WORKERS, "slots": SLOTS} | msgspec.structs.asdict(plan.workload),
        figures={
            "relay": figures.relay,
            "lifecycle": figures.lifecycle,
            "ratio": figures.ratio,
            "rounds": figures.rounds,
        },
        lines=lines,
        claims=[Claim("lifecycle by relay, jobs/s", figures.ratio, RATIO_MIN, is_least=True, rounds=ratios)],
    )
