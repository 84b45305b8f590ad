"""Peers of another protocol are refused at every entrance, clearly and before they write anything; others go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from scheduler.errors import ServerRefused
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.producer import Producer
from scheduler.protocol import keys
from scheduler.roles import start_dispatcher, start_manager, start_reaper
from scheduler.store.store import open_store
from scheduler.url import parse_url
from tests.integration.commands import refusal, run
from tests.raw.producer import Producer as RawProducer
from tests.raw.server import Refused
from tests.system import QUICK, running

LAYOUT: Final = "{sched}:layout"
OURS: Final = keys.PROTOCOL
LATER: Final = OURS + 1
OTHER: Final = {"protocol": str(LATER), "partitions": "a tree", "shards": "4"}
"""What a later version may have made of the layout: other fields, and another meaning of known ones."""
REFUSED: Final = (
    f"protocol {LATER} is in use in namespace 'sched': expected {keys.PROTOCOL}, "
    f".*install the version that speaks {LATER}, or use another"
)


async def echo(job: Job) -> bytes:
    """Give back the payload."""
    return job.payload


async def enter_node(url: str) -> None:
    """The node SDK."""
    async with Node(url, "n1", capacity=1, handler=echo, settings=QUICK):
        pass


async def enter_producer(url: str) -> None:
    """The producer SDK."""
    async with Producer(url, settings=QUICK):
        pass


ENTRANCES: Final[dict[str, Callable[[str], Awaitable[Any]]]] = {
    "manager": lambda url: start_manager(url, QUICK),
    "dispatcher": lambda url: start_dispatcher(url, QUICK),
    "reaper": lambda url: start_reaper(url, QUICK),
    "node": enter_node,
    "producer": enter_producer,
}
COMMANDS: Final = (
    ("up",),
    ("manager",),
    ("dispatcher",),
    ("reaper",),
    ("node", "--id", "n1", "--capacity", "1"),
    ("streams", "ls"),
    ("nodes", "ls"),
    ("reservations", "ls"),
    ("jobs", "show", "j1"),
    ("jobs", "submit", "jobs.jsonl"),
)


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """A plain client of the server."""
    with redis.Redis.from_url(url, decode_responses=True) as opened:
        yield opened


@pytest.mark.parametrize("entrance", ENTRANCES)
async def test_an_entrance_refuses_another_protocol(url: str, client: Any, entrance: str) -> None:
    """The message names both numbers, the namespace and what to do; nothing is written."""
    client.hset(LAYOUT, mapping=OTHER)

    with pytest.raises(ServerRefused, match=REFUSED):
        await ENTRANCES[entrance](url)

    assert (client.keys(), client.hgetall(LAYOUT)) == ([LAYOUT], OTHER)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "-".join(command[:2]))
@pytest.mark.usefixtures("own_place")
def test_a_command_refuses_another_protocol(empty_url: str, command: tuple[str, ...]) -> None:
    """It ends with 1 and says the same in one line; nothing is written."""
    Path("jobs.jsonl").write_text('{"session_id": "s1"}\n')
    with redis.Redis.from_url(empty_url, decode_responses=True) as client:
        client.hset(LAYOUT, mapping=OTHER)

        exit_code, stderr = refusal(run(*command, "--redis-url", empty_url))

        assert exit_code == 1
        place = parse_url(empty_url)
        assert f"Error: {place}: protocol {LATER} is in use in namespace 'sched': expected {keys.PROTOCOL}" in stderr
        assert (client.keys(), client.hgetall(LAYOUT)) == ([LAYOUT], OTHER)


async def test_a_manager_of_another_protocol_that_comes_later_changes_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, also when its other settings differ; the running ones go on as before."""
    async with running(url) as system:
        await system.add_node("n1", echo)
        before = await system.store.connection.commands.hgetall(LAYOUT)
        with monkeypatch.context() as later:
            later.setattr(keys, "PROTOCOL", LATER)
            with pytest.raises(
                ServerRefused, match=rf"protocol {OURS} is in use .*: expected {LATER}, .*speaks {OURS}"
            ):
                await start_manager(url, QUICK)

        assert await system.store.connection.commands.hgetall(LAYOUT) == before
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="zh", payload=b"hello")
        assert await system.producer.result(job_id, timeout_ms=20_000) == b"hello"


async def test_of_two_first_managers_of_different_protocols_one_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes the layout first decides; the other one leaves no trace in it."""
    async with await open_store(url, QUICK) as one, await open_store(url, QUICK) as other:
        await one.control.write_layout()
        written = await one.connection.commands.hgetall(LAYOUT)
        monkeypatch.setattr(keys, "PROTOCOL", keys.PROTOCOL + 1)
        with pytest.raises(ServerRefused, match=f"protocol {OURS} is in use"):
            await other.control.write_layout()
        assert await one.connection.commands.hgetall(LAYOUT) == written


async def test_who_waits_for_a_layout_refuses_that_of_another_protocol(url: str, client: Any) -> None:
    """A node that was started before any manager does not wait for ever."""
    async with await open_store(url, QUICK) as store:
        assert await store.control.read_layout() is None
        waiting = asyncio.create_task(store.layout())
        await asyncio.to_thread(client.hset, LAYOUT, mapping=OTHER)
        with pytest.raises(ServerRefused, match=REFUSED):
            await waiting


async def test_a_raw_peer_notices_by_the_layout(url: str, client: Any) -> None:
    """It reads `protocol` first, and refuses likewise."""
    client.hset(LAYOUT, mapping=OTHER)

    with pytest.raises(Refused, match=f"protocol {LATER} is in use there: expected {keys.PROTOCOL}"):
        await asyncio.to_thread(RawProducer, url)


async def test_two_protocols_live_side_by_side_in_two_namespaces(url: str, client: Any) -> None:
    """What the message proposes works."""
    client.hset("{later}:layout", mapping=OTHER)
    async with running(url) as system:
        await system.add_node("n1", echo)
        job_id = await system.producer.submit("s1", src_lang="en", tgt_lang="zh", payload=b"hello")
        assert await system.producer.result(job_id, timeout_ms=20_000) == b"hello"
    assert client.hgetall("{later}:layout") == OTHER
