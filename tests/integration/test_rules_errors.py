"""Which failures are waited out and which are a job's own, against a server that says exactly what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import ReadOnlyError

from scheduler.store import connection
from scheduler.store.connection import Connection, ScriptFailed
from scheduler.store.meanings import Meaning, meaning_of
from tests.integration.test_dispatcher import bench

GOOD = b"*1\r\n:7\r\n"
NO_ANSWER = b""
TEMPORARY = (
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica. script: 5ca1, on @user_script:30.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "MOVED 3999 127.0.0.1:6381",
    "ASK 3999 127.0.0.1:6381",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "NOSCRIPT No matching script. Please use EVAL.",
    "NOREPLICAS Not enough good replicas to write.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "NOPERM User default has no permissions to run the 'evalsha' command",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
)
PERMANENT = (
    "WRONGTYPE Operation against a key holding the wrong kind of value script: 5ca1, on @user_script:30.",
    "ERR user_script:30: attempt to index a nil value script: 5ca1, on @user_script:30.",
    "ERR The ID specified in XADD is equal or smaller than the target stream top item script: 5ca1, on @user_script:1.",
)


class Stub:
    """A server that answers each EVALSHA with the next of its answers, and everything else with OK.

    An empty answer is none at all: the client waits until it gives up.
    """

    def __init__(self, answers: list[bytes]) -> None:
        self.url = ""
        self.calls = 0
        self._answers = answers

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its end."""
        try:
            while (header := await reader.readline()).startswith(b"*"):
                words = []
                for _ in range(int(header[1:])):
                    length = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(length + 2))[:-2])
                writer.write(self._answer(words[0]))
        finally:
            writer.close()

    def _answer(self, command: bytes) -> bytes:
        if command != b"EVALSHA":
            return b"+OK\r\n"
        self.calls += 1
        return self._answers.pop(0)


@asynccontextmanager
async def stub(*answers: bytes) -> AsyncIterator[tuple[Stub, Connection]]:
    """A stub that listens, and a connection to it."""
    server = Stub(list(answers))
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listener:
        server.url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}/0"
        client = Connection(server.url)
        try:
            yield server, client
        finally:
            await client.close()


@pytest.mark.parametrize("error", TEMPORARY, ids=lambda error: error.partition(" ")[0])
async def test_an_error_of_the_server_is_waited_out(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    """RULES 29: whatever the server cannot do now is asked again until it can, and no job pays for it."""
    monkeypatch.setattr(connection, "_RETRY_FIRST_MS", 1)
    told = f"-{error}\r\n".encode()
    async with stub(told, told, told, GOOD) as (server, client):
        client.has_started = True
        assert await client.call("renew", ["slots"], []) == [7]
        assert server.calls == 4


@pytest.mark.parametrize("error", PERMANENT, ids=lambda error: error.partition(" ")[0])
async def test_an_error_inside_the_script_is_not_repeated(error: str) -> None:
    """RULES 29: what the script itself raises is told at once, so that the jobs of the call are tried singly."""
    async with stub(f"-{error}\r\n".encode(), GOOD) as (server, client):
        with pytest.raises(ScriptFailed, match="renew: "):
            await client.call("renew", ["slots"], [])
        assert server.calls == 1


async def test_no_answer_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 29: a call that times out is made again, over a new connection."""
    monkeypatch.setattr(connection, "COMMAND_TIMEOUT_MS", 50)
    async with stub(NO_ANSWER, GOOD) as (server, client):
        assert await client.call("renew", ["slots"], []) == [7]
        assert server.calls == 2


async def test_a_batch_on_a_server_that_became_a_replica(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """RULES 29: while nothing can be written the batch waits; then every job is placed, in order, none is dead."""
    refused = asyncio.Event()

    def spy(error: BaseException) -> Meaning:
        if isinstance(error, ReadOnlyError):
            refused.set()
        return meaning_of(error)

    monkeypatch.setattr(connection, "meaning_of", spy)
    async with bench(url) as b:
        b.store.connection.has_started = True
        await b.fleet(n1=10)
        ids = [f"j{i}" for i in range(6)]
        for job_id in ids:
            await b.add("s1", job_id)
        commands = b.store.connection.commands
        await commands.replicaof("127.0.0.1", 1)
        try:
            steps = asyncio.create_task(b.step_until_read())
            async with asyncio.timeout(10):
                await refused.wait()
        finally:
            await commands.replicaof("NO", "ONE")
        await steps
        assert await b.inbox("n1") == ids
        assert (await b.store.reads.length(b.store.cell.keys.dead), b.dispatcher.report.rejected) == (0, 0)
