"""Connections: what is refused, what is waited out, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from scheduler.clock import SYSTEM_CLOCK
from scheduler.config import DEFAULTS
from scheduler.errors import InvalidInput, SchedulerError, ServerRefused, ServerUnavailable, WrongType
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.server.embedded import start_embedded
from scheduler.store import connection, telling
from scheduler.store.connection import PATIENCE_MS, Connection, ScriptFailed, or_each_alone
from scheduler.store.store import Store, open_store
from scheduler.url import parse_url
from tests.system import QUICK, running

NOWHERE = "redis://127.0.0.1:1/0"


class Listener(logging.Handler):
    """Hears what is logged, and tells when something was."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        self.told = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """One record."""
        self.messages.append(f"{record.levelname} {record.getMessage()}")
        self.told.set()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Who hears warnings of the store."""
    heard = Listener()
    logger = logging.getLogger("scheduler.store")
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    yield heard
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(heard)


async def test_a_url_that_is_none_is_invalid_input() -> None:
    """The error names the thing and shows nothing of it."""
    with pytest.raises(InvalidInput, match=r"^server URL: its scheme is not known: expected redis://host:port/0,"):
        await open_store("foo://user:secret@host")


async def test_nobody_there_is_unavailable_after_the_patience() -> None:
    """The error names the place without its password."""
    with pytest.raises(ServerUnavailable, match=r"^redis://127.0.0.1:1/0 does not answer"):
        await open_store("redis://:secret@127.0.0.1:1/0", patience_ms=100)


async def test_an_evicting_server_is_refused(store: Store) -> None:
    """A server that may evict records would lose jobs."""
    client = store.connection.commands
    await client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ServerRefused, match="maxmemory-policy = allkeys-lru: expected noeviction"):
            await open_store(store.connection.url)
    finally:
        await client.config_set("maxmemory-policy", "noeviction")


async def test_several_commands_in_one_round_trip_are_repeated_whole(store: Store) -> None:
    """A connection that is lost while they are under way costs none of them its answer."""
    async with await open_store(store.connection.url, store.settings) as other:
        under_way = asyncio.create_task(other.connection.all_of([("BLPOP", "nothing", 0.3), ("ECHO", "last")]))
        client = store.connection.commands
        while not (blocked := [each for each in await client.client_list() if each["cmd"] == "blpop"]):
            assert not under_way.done()
            await asyncio.sleep(0)
        await client.client_kill_filter(_id=blocked[0]["id"])

        assert await under_way == [None, b"last"]


@pytest.mark.parametrize("patience_ms", [None, PATIENCE_MS])
async def test_whoever_waits_for_a_server_is_told_so(
    monkeypatch: pytest.MonkeyPatch, listener: Listener, patience_ms: int | None
) -> None:
    """Soon, once, with the place and without what may be a password; and it goes on when the server comes."""
    monkeypatch.setattr(telling, "TOLD_MS", 20)
    monkeypatch.setattr(telling, "LOOK_MS", 10)
    with start_embedded() as server:
        server.kill()
        opening = asyncio.create_task(open_store(server.url, DEFAULTS, patience_ms))
        await listener.told.wait()
        server.start()
        async with await opening:
            place = str(parse_url(server.url))
            first, *_ = listener.messages
            assert re.fullmatch(
                rf"WARNING the server at {re.escape(place)} does not answer, for \d s now: .*; trying on", first
            )
            assert listener.messages[-1].startswith(f"INFO the server at {place} answers again, after ")


async def test_little_patience_ends_with_the_error_alone(monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    """Commands that ask and go do not announce that they wait for two seconds."""
    monkeypatch.setattr(telling, "TOLD_MS", 50)
    monkeypatch.setattr(telling, "LOOK_MS", 10)
    with pytest.raises(ServerUnavailable):
        await open_store(NOWHERE, patience_ms=100)
    assert listener.messages == []


async def test_whoever_waits_for_a_scheduler_is_told_so(
    url: str, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    """A server alone is not enough; what is missing is named, and awaited."""
    monkeypatch.setattr(telling, "TOLD_MS", 100)
    monkeypatch.setattr(telling, "LOOK_MS", 10)
    async with await open_store(url) as store:
        waiting = asyncio.create_task(store.layout())
        await listener.told.wait()
        await store.control.write_layout()
        await waiting
    assert listener.messages[0] == (
        f"WARNING the server at {parse_url(url)} is not ready, for 0 s now: no scheduler was started there (namespace "
        "'sched'): expected a running manager, such as `scheduler up`; trying on"
    )
    assert listener.messages[1].startswith(f"INFO the server at {parse_url(url)} is ready, after ")


async def test_another_server_is_called_so() -> None:
    """Something that speaks another protocol is no Redis, whatever it answers."""

    def greet(page: socket.socket) -> None:
        client, _ = page.accept()
        with client:
            client.sendall(b"<!DOCTYPE HTML>\r\n")
            while client.recv(1024):
                pass

    with socket.create_server(("127.0.0.1", 0)) as page:
        greeting = asyncio.create_task(asyncio.to_thread(greet, page))
        url = f"redis://127.0.0.1:{page.getsockname()[1]}/0"
        with pytest.raises(ServerRefused, match=f"^{url} is no Redis or Valkey server: "):
            await open_store(url)
        await greeting


async def test_a_producer_without_a_scheduler_is_told_so(url: str) -> None:
    """A server on which no manager ever ran is named, with what was expected."""
    async with await open_store(url) as store:
        with pytest.raises(ServerUnavailable, match="no scheduler was started there"):
            await store.layout(wait_ms=100)


@pytest.mark.parametrize("moment", range(30))
async def test_a_cancellation_is_never_lost(url: str, moment: int) -> None:
    """Whenever a blocking reader is cancelled, it ends."""
    opened = Connection(url)
    async with await open_store(url) as store:
        reads = store.new_reads()

        async def read_on() -> None:
            while True:
                await reads.streams({"nothing": "$"}, count=1, block_ms=5)

        reader = asyncio.create_task(read_on())
        await asyncio.wait([reader], timeout=moment / 2_000)
        reader.cancel()
        ended, _ = await asyncio.wait([reader], timeout=5)
        assert ended == {reader}
    await opened.close()


async def test_leaving_does_not_wait_for_ever_for_a_server_that_is_gone() -> None:
    """A node whose server died with unreported outcomes still stops."""
    started = asyncio.Event()

    async def handle(job: Job) -> None:
        started.set()
        await asyncio.Event().wait()

    with start_embedded() as server:
        async with running(server.url) as system:
            node = Node(server.url, "n1", capacity=1, handler=handle, settings=QUICK, drain_ms_max=100)
            await node.__aenter__()
            await system.producer.submit("s1")
            await started.wait()
            await node._release()
            server.kill()
            before = time.monotonic()
            await node.__aexit__()
            assert time.monotonic() - before < 5
            server.restart()
            await system.managers[0][1]._store.control.write_layout()


async def test_a_command_that_the_kernel_does_not_take_at_once_arrives_whole(store: Store) -> None:
    """More bytes than fit into the buffers of a socket."""
    payload = b"x" * 16_000_000
    assert await store.connection.commands.echo(payload) == payload


async def test_a_server_that_takes_no_more_bytes_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It greets, and then reads nothing: sending ends after the timeout of a command."""
    over = asyncio.Event()

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"ECHO" not in (received := await reader.read(1_000)):
            writer.write(b"+OK\r\n" * received.count(b"SETINFO") + b"$0\r\n\r\n" * received.count(b"INFO\r\n$6"))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.close()

    monkeypatch.setattr(connection, "COMMAND_TIMEOUT_MS", 300)
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        silent = Connection(f"redis://127.0.0.1:{port}/0", patience_ms=0)
        try:
            with pytest.raises(ServerUnavailable, match="Timeout writing to socket"):
                await silent.patiently(lambda: silent.commands.echo(b"x" * 16_000_000))
        finally:
            await silent.close()
            over.set()


async def test_one_at_fault_suffers_alone() -> None:
    """After an error inside the script each item is tried alone, in order."""
    calls: list[list[int]] = []

    async def call(batch: object) -> list[str]:
        items = list(batch)  # type: ignore[call-overload]
        calls.append(items)
        if 2 in items:
            raise ScriptFailed("boom")
        return [f"ok {item}" for item in items]

    assert await or_each_alone([1, 2, 3], call, lambda item: f"broken {item}") == ["ok 1", "broken 2", "ok 3"]
    assert calls == [[1, 2, 3], [1], [2], [3]]


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (WrongType("boom", ("job:2",)), ["ok 1", "broken 2", "ok 3"]),
        (ScriptFailed("boom"), ["ok 1", "failed 2", "ok 3"]),
        (WrongType("boom", ("owners",)), None),
        (WrongType("boom", ("job:2", "owners")), None),
    ],
)
async def test_an_item_is_at_fault_by_its_own_key_alone(error: SchedulerError, answers: list[str] | None) -> None:
    """What all share, or what nothing is known of, is the fault of none."""

    async def call(batch: Sequence[int]) -> list[str]:
        if 2 in batch:
            raise error
        return [f"ok {item}" for item in batch]

    async def each_alone() -> list[str]:
        return await or_each_alone(
            [1, 2, 3],
            call,
            lambda item: f"broken {item}",
            lambda item: f"failed {item}",
            lambda item: f"job:{item}",
        )

    if answers is not None:
        assert await each_alone() == answers
        return
    with pytest.raises(WrongType):
        await each_alone()


async def test_the_time_of_a_call_is_that_of_the_try_that_was_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """RULES 11: an outage makes no lease look as old as it was long; each try leaves a line."""
    with start_embedded(tmp_path, persistent=True) as server, caplog.at_level(logging.DEBUG, "scheduler.store"):
        async with await open_store(server.url, patience_ms=None) as store:
            server.kill()
            boot = asyncio.create_task(
                store.connection.call_timed(
                    "boot", ["{sched:0}:last_boot", "{sched:0}:capacity", "{sched:0}:slots:n1"], ["n1"]
                )
            )
            while not caplog.messages:
                await asyncio.wait([boot], timeout=0.01)
            back_ms = SYSTEM_CLOCK.ms()
            server.start()
            sent_ms, _ = await boot
    assert sent_ms >= back_ms
    assert caplog.messages[0].startswith("failed for ")
