"""Several dispatchers that share the partitions: who joins, stops, dies or sleeps, and how long nobody dispatches."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from scheduler.config import DEFAULTS, Settings
from scheduler.node.handlers import Job
from scheduler.protocol import keys
from scheduler.roles import start_dispatcher
from scheduler.session import ring
from tests.fault.processes import process
from tests.fault.test_nodes import ended
from tests.system import QUICK, System, running

QUICK_LEASE: Settings = msgspec.structs.replace(QUICK, partition_lease_ms=1_500, silence_ms=1_000)


async def run(job: Job) -> str:
    """The work."""
    return job.node


def owners(system: System) -> Callable[[], Awaitable[dict[str, int]]]:
    """Asks how many partitions each dispatcher holds."""

    async def ask() -> dict[str, int]:
        counts: dict[str, int] = {}
        for _, owner, _ in (await system.store.reads.owners()).values():
            counts[owner] = counts.get(owner, 0) + 1
        return counts

    return ask


async def shared_by(system: System, count: int) -> dict[str, int]:
    """Wait until so many dispatchers hold all partitions: those of `system` as rendezvous hashing wishes, if they are
    all that there are. It may wish nothing for one of them.
    """
    ask, partitions = owners(system), range(system.settings.partitions)
    known = [dispatcher.owner for _, dispatcher in system.dispatchers]
    wished = dict(Counter(ring.owner_of(partition, known) for partition in partitions)) if known else {}
    held: dict[str, int] = {}

    async def shared() -> bool:
        nonlocal held
        held = await ask()
        if "-" in held or sum(held.values()) != len(partitions):
            return False
        return held == wished if len(known) == count else len(held) == count

    await system.until(shared)
    return held


def sessions(system: System) -> list[str]:
    """A session of each partition."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < system.settings.partitions:
        found.setdefault(keys.partition_of(f"s{number}", system.settings.partitions), f"s{number}")
        number += 1
    return [found[partition] for partition in sorted(found)]


async def dispatched_everywhere(system: System) -> float:
    """Submit a job to each partition; how many seconds pass until all are done."""
    started_s = time.monotonic()
    ids = await asyncio.gather(
        *(system.producer.submit(each, src_lang="en", tgt_lang="zh") for each in sessions(system))
    )
    assert {outcome.state for outcome in await ended(system, list(ids))} == {"completed"}
    return time.monotonic() - started_s


async def test_dispatchers_share_the_partitions(url: str) -> None:
    """Whoever joins gets its share handed over, and what one that stops had goes to the others."""
    async with running(url) as system:
        await system.add_node("n1", run, capacity=16)
        alone = await shared_by(system, 1)
        system.dispatchers.append(await start_dispatcher(url, system.settings))
        system.dispatchers.append(await start_dispatcher(url, system.settings))
        three = await shared_by(system, 3)
        await dispatched_everywhere(system)

        first, _ = system.dispatchers.pop(0)
        await first.stop()
        two = await shared_by(system, 2)
        await dispatched_everywhere(system)

        stayed = {owner: count for owner, count in three.items() if owner not in alone}
        assert set(two).isdisjoint(alone)
        assert all(two[owner] >= count for owner, count in stayed.items())


async def test_a_graceful_stop_is_a_hand_over(url: str) -> None:
    """With the default leases, all partitions dispatch again within a second of the stop of an owner."""
    async with (
        running(url, DEFAULTS, dispatcher=False) as system,
        process(url, "dispatcher", settings=DEFAULTS) as leaving,
    ):
        system.dispatchers.append(await start_dispatcher(url, DEFAULTS))
        await system.add_node("n1", run, capacity=16)
        await shared_by(system, 2)
        leaving.send(signal.SIGTERM)
        assert await dispatched_everywhere(system) < 1
        assert await leaving.exit_code() == 0


@pytest.mark.parametrize("settings", [DEFAULTS, QUICK_LEASE], ids=["default", "quick"])
async def test_sigkill_of_an_owner(url: str, settings: Settings) -> None:
    """All partitions dispatch again within the lease and a second of the death of an owner."""
    async with (
        running(url, settings, dispatcher=False) as system,
        process(url, "dispatcher", settings=settings) as doomed,
    ):
        system.dispatchers.append(await start_dispatcher(url, settings))
        await system.add_node("n1", run, capacity=16)
        await shared_by(system, 2)
        doomed.send(signal.SIGKILL)
        assert await dispatched_everywhere(system) < settings.partition_lease_ms / 1000 + 1


async def test_a_paused_owner_that_wakes_takes_its_share_again(url: str) -> None:
    """While it sleeps the others take over; awake it is fenced, and then is handed its share by itself."""
    async with (
        running(url, QUICK_LEASE, dispatcher=False) as system,
        process(url, "dispatcher", settings=QUICK_LEASE) as sleeper,
    ):
        system.dispatchers.append(await start_dispatcher(url, QUICK_LEASE))
        await system.add_node("n1", run, capacity=16)
        before = await shared_by(system, 2)
        sleeper.send(signal.SIGSTOP)
        await shared_by(system, 1)
        await dispatched_everywhere(system)
        sleeper.send(signal.SIGCONT)
        assert await shared_by(system, 2) == before
        await dispatched_everywhere(system)
