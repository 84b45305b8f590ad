"""However something ends, in order, by a failure or by a cancellation: its connections end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import msgspec
import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from scheduler.console.process import stop_roles
from scheduler.errors import ServerUnavailable
from scheduler.node.node import Node
from scheduler.producer import Producer
from scheduler.roles import start_dispatcher, start_manager, start_reaper
from scheduler.store.connection import Connection
from scheduler.store.connection_pool import Pool
from scheduler.store.store import Store, open_store
from scheduler.url import ServerUrl, parse_url
from tests.system import PATIENCE_MS, QUICK, running

UNSENT_BYTES = 20_000_000  # more than sockets hold that nobody reads


COUNTED = "counted"


@pytest.fixture(autouse=True)
def counted_user(url: str) -> Iterator[None]:
    """A user for those whose connections are counted: others may connect at any time."""
    with redis.Redis.from_url(url, protocol=2) as client:
        client.acl_setuser(COUNTED, enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all"])
        yield
        client.acl_deluser(COUNTED)


def counted(url: str | ServerUrl) -> ServerUrl:
    """The same server, by that user."""
    return msgspec.structs.replace(parse_url(url), username=COUNTED)


async def until_connected(store: Store, count: int) -> None:
    """Wait until the server has so many counted clients; it hears of an end a little later than we do."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while True:
            clients = await store.connection.commands.client_list()
            if sum(client["user"] == COUNTED for client in clients) == count:
                return


async def until(store: Store, true: Callable[[], bool]) -> None:
    """Wait until something is true that nobody signals."""
    async with asyncio.timeout(PATIENCE_MS / 1000):
        while not true():
            await store.control.time_us()


# ---- a pool, and a connection with all its clients ----


async def test_a_turn_that_nobody_takes_is_the_next_ones(url: str) -> None:
    """Who is cancelled just as a connection is given back leaves it to the one who waits behind."""
    pool = Pool.from_url(url, max_connections=1)
    held = await pool.get_connection()
    first, second = (asyncio.create_task(pool.get_connection()) for _ in range(2))
    await asyncio.sleep(0)
    await pool.release(held)
    first.cancel()
    async with asyncio.timeout(PATIENCE_MS / 1000):
        assert await second is held
    assert first.cancelled()
    await pool.release(held)
    await pool.aclose()


async def test_calls_under_way_fail_when_the_connection_is_closed(store: Store) -> None:
    """More callers than there are connections: each is told, and no one connects again."""
    other = Connection(counted(store.connection.url))
    reader = other.blocking(60_000)
    reads = [asyncio.create_task(other.patiently(lambda: reader.xread({"s": "$"}, block=60_000))) for _ in range(6)]
    await until_connected(store, 4)
    await other.close()
    async with asyncio.timeout(PATIENCE_MS / 1000):
        ended = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(each) for each in ended} == {ServerUnavailable}
    await until_connected(store, 0)


async def test_a_connection_that_is_made_while_all_are_closed_is_closed_too(store: Store) -> None:
    """Whoever is connecting then is told when he has come through, and leaves nothing open."""
    other = Connection(counted(store.connection.url))
    call = asyncio.create_task(other.call("beat", [], []))
    await asyncio.sleep(0)
    await other.close()
    with pytest.raises(ServerUnavailable, match="are closed"):
        await call
    await until_connected(store, 0)


async def test_a_closed_connection_stays_closed(url: str) -> None:
    """A call that comes too late does not connect again."""
    store = await open_store(url)
    await store.close()
    with pytest.raises(ServerUnavailable, match="are closed"):
        await store.control.time_us()


async def test_closing_does_not_wait_for_a_server_that_reads_nothing(store: Store) -> None:
    """What could not be sent is given up: the socket is closed at once, and the caller is told."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(1)
            writer.write(b"+OK\r\n" * 2 + b"$0\r\n\r\n")  # to CLIENT SETINFO, and to INFO
            accepted.set()
            await ended
        finally:
            writer.close()

    accepted = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        connection = Connection(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        sending = asyncio.create_task(connection.commands.set("k", b"x" * UNSENT_BYTES))
        await accepted.wait()
        (used,) = connection.commands.connection_pool._in_use_connections
        transport = used._writer.transport
        await until(store, lambda: transport.get_write_buffer_size() > 0)
        await connection.close()
        assert transport.get_extra_info("socket").fileno() == -1
        with pytest.raises(RedisConnectionError):
            await sending
        ended.set_result(None)


# ---- those who have one ----


async def test_results_that_nobody_follows_any_more_are_not_read(url: str) -> None:
    """Each look at the feed has a connection of its own, which ends with it."""
    async with running(url) as system:

        async def handle(_: object) -> None:
            return None

        await system.add_node("n1", handle)
        await system.producer.result(await system.producer.submit("s1", src_lang="en", tgt_lang="zh"))
        async with Producer(counted(url), settings=QUICK) as producer:
            for _ in range(5):
                async for _ in producer.results("0"):
                    break
            await until_connected(system.store, 1)


async def test_a_producer_that_is_left_serves_nobody(url: str) -> None:
    """Who still waits for an outcome then is told so."""
    async with running(url) as system:
        async with Producer(counted(url), settings=QUICK) as producer:
            waiting = asyncio.create_task(producer.outcome("never"))
            await system.until(lambda: "never" in producer._awaited)
        with pytest.raises(ServerUnavailable):
            await waiting
        await until_connected(system.store, 0)


async def test_a_node_whose_leaving_is_cancelled_disconnects(url: str) -> None:
    """Its handlers are stopped, and nothing of it runs on."""
    started, stopped = asyncio.Event(), asyncio.Event()

    async def handle(_: object) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with running(url) as system:
        node = Node(counted(url), "n1", capacity=1, handler=handle, pairs=[("en", "zh")], settings=QUICK)
        await node.__aenter__()
        await system.producer.submit("s1", src_lang="en", tgt_lang="zh")
        await started.wait()
        leaving = asyncio.create_task(node.__aexit__())
        await until(system.store, lambda: node.phase == "draining")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await stopped.wait()
        assert all(task.done() for task in node._tasks)
        await until_connected(system.store, 0)


async def test_a_node_that_cannot_join_disconnects(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails on the way in."""

    async def fail(_: Node) -> None:
        raise ValueError("boom")

    monkeypatch.setattr(Node, "_beat", fail)
    async with running(url) as system:
        with pytest.raises(ValueError, match="boom"):
            await Node(counted(url), "n1", capacity=1, handler=print, settings=QUICK).__aenter__()
        await until_connected(system.store, 0)


async def test_a_dispatcher_that_is_abandoned_leaves_no_call_under_way(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the call for a job that waited is ended, and its answer awaited by nobody."""
    gate, called, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handle(_: object) -> None:
        await gate.wait()

    async def reserve(*_: object) -> None:
        called.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    async with running(url) as system:
        await system.add_node("n1", handle, capacity=1)
        for _ in range(2):
            await system.producer.submit("s1", src_lang="en", tgt_lang="zh")
        await system.until(lambda: len(system.dispatcher.state.waiting) == 1)
        role, dispatcher = system.dispatchers.pop()
        monkeypatch.setattr(dispatcher._store.cell, "reserve", reserve)
        gate.set()
        await called.wait()
        await role.abandon()
        assert ended.is_set()


async def test_roles_that_have_no_time_to_stop_are_disconnected(url: str) -> None:
    """All of them, and nothing that one of them began runs on."""
    async with await open_store(url, QUICK) as store:
        tasks = asyncio.all_tasks()
        started = [(await start(counted(url), QUICK))[0] for start in (start_manager, start_dispatcher, start_reaper)]
        await stop_roles(started, 0)
        assert asyncio.all_tasks() == tasks
        await until_connected(store, 0)
