"""Nobody waits in silence: servers that can never work, that cannot now, and that say nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import redis

from scheduler.console import common
from scheduler.console.process import begin_within, begun
from scheduler.errors import CredentialsRefused, SchedulerError, ServerNotReady, ServerRefused
from scheduler.node.handlers import Job
from scheduler.node.node import Node
from scheduler.producer import Producer
from scheduler.roles import Role, start_dispatcher, start_manager, start_reaper
from scheduler.server.embedded import available_engines
from scheduler.store import connection, telling
from scheduler.store.connection import Connection
from scheduler.store.store import open_store
from scheduler.url import parse_url
from tests.fault.processes import process
from tests.integration.commands import run
from tests.system import QUICK, running

ROLES: Final = (["manager"], ["dispatcher"], ["reaper"], ["up"], ["node", "--id", "n1"])
COMMANDS: Final = (["nodes", "ls"], ["pools", "ls"], ["streams", "ls"], ["jobs", "show", "j"])
START_S_MAX: Final = 4.0  # 2 s by the rules, on a machine with nothing else to do


class Server:
    """A server of one's own, as its options make it."""

    def __init__(self, directory: Path, *options: str, tls: bool = False) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"{'rediss' if tls else 'redis'}://127.0.0.1:{self.port}/0"
        binary = available_engines().get("redis") or next(iter(available_engines().values()))
        ports = ["--port", "0", "--tls-port", str(self.port)] if tls else ["--port", str(self.port)]
        self.process = subprocess.Popen(
            [str(binary), *ports, "--bind", "127.0.0.1", "--save", "", "--dir", str(directory), *options],
            stdout=subprocess.DEVNULL,
        )
        until_s = time.monotonic() + 10
        while self.process.poll() is None and time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 0.5).close()
                return
        pytest.skip("this server cannot be started so")

    def client(self) -> redis.Redis:
        """As the default user."""
        return redis.Redis(port=self.port, protocol=2)

    def as_user(self, *rights: str) -> str:
        """The URL of a user who may do that."""
        rules = ("reset", "on", ">p", "~*", "&*", *rights)
        self.client().execute_command("ACL", "SETUSER", "u", *rules)  # type: ignore[no-untyped-call]
        return f"redis://u:p@127.0.0.1:{self.port}/0"

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers that are there until the last test of the file."""
    servers: list[Server] = []

    def started(*options: str, tls: bool = False) -> Server:
        servers.append(Server(tmp_path_factory.mktemp("server"), *options, tls=tls))
        return servers[-1]

    yield started
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def plain(start: Callable[..., Server]) -> Server:
    """One without anything special."""
    return start()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key, and a certificate that it signed itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here")
    directory = tmp_path_factory.mktemp("certificates")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(directory / "key"), "-out", str(directory / "certificate")]
    subprocess.run(
        [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            *names,
            *files,
        ],
        check=True,
        capture_output=True,
    )
    return directory


@pytest.fixture(scope="module")
def secure(start: Callable[..., Server], certificates: Path) -> Server:
    """One that speaks TLS."""
    certificate = str(certificates / "certificate")
    files = [
        "--tls-cert-file",
        certificate,
        "--tls-key-file",
        str(certificates / "key"),
        "--tls-ca-cert-file",
        certificate,
    ]
    return start(*files, "--tls-auth-clients", "no", tls=True)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What would be told after a second is told after a tenth of it."""
    monkeypatch.setattr(telling, "TOLD_MS", 100)
    monkeypatch.setattr(telling, "LOOK_MS", 20)
    caplog.set_level(logging.INFO, "scheduler")


REFUSALS: Final = {
    "replica": ("it is a replica", ("--replicaof", "127.0.0.1 1")),
    "cluster": ("cluster mode", ("--cluster-enabled", "yes")),
    "no password": ("NOAUTH", ("--requirepass", "x")),
}


@pytest.fixture(params=[*REFUSALS, "wrong password", "no rights", "TLS here", "TLS there", "unknown CA"])
def refused(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(URL of a server that can never work, what it is told for)."""
    kind = request.param
    if kind in REFUSALS:
        words, options = REFUSALS[kind]
        return request.getfixturevalue("start")(*options).url, words
    if kind == "TLS here":
        return request.getfixturevalue("plain").url.replace("redis:", "rediss:"), "it speaks without TLS"
    if kind == "TLS there":
        return request.getfixturevalue("secure").url.replace("rediss:", "redis:"), "it speaks TLS"
    if kind == "unknown CA":
        return request.getfixturevalue("secure").url, "CERTIFICATE_VERIFY_FAILED"
    plain = request.getfixturevalue("plain")
    if kind == "wrong password":
        return plain.as_user("+@all").replace("u:p@", "u:secret@"), "WRONGPASS"
    with plain.client() as client:
        client.flushall()
    assert asyncio.run(_has_layout(plain.url))
    return plain.as_user("+@all", "-evalsha"), "NOPERM"


async def _has_layout(url: str) -> bool:
    async with await open_store(url, QUICK) as store:
        return bool(await store.control.write_layout())


def test_what_can_never_work_is_refused_at_the_start(
    refused: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES 29: each role and command ends soon with 1, in the server's words, without a secret."""
    monkeypatch.setattr(connection, "PROBE_MS", 50)
    url, words = refused
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"session_id": "s"}')
    commands = [*ROLES, ["jobs", "submit", str(jobs)]]
    commands += [] if words == "NOPERM" else COMMANDS[:2]  # they need no script
    for command in commands:
        started_s = time.monotonic()
        done = run(*command, "--redis-url", url)
        assert (done.exit_code, time.monotonic() - started_s < START_S_MAX) == (1, True), (command, done.output)
        assert words in done.stderr, (command, done.stderr)
        assert "Traceback" not in done.output, command
        assert "secret" not in done.output, command


async def test_the_sdk_raises_what_can_never_work(plain: Server) -> None:
    """Entering a node or a producer says why."""
    url = plain.as_user("+@all", "-evalsha")
    assert await _has_layout(plain.url)
    for enter in (Node(url, "n1", capacity=1, handler=idle), Producer(url)):
        with pytest.raises(ServerRefused, match="NOPERM"):
            await enter.__aenter__()
    with pytest.raises(CredentialsRefused, match="WRONGPASS"):
        await Producer(url.replace("u:p@", "u:q@")).__aenter__()


@pytest.mark.parametrize("start_role", [start_manager, start_dispatcher, start_reaper])
async def test_a_right_that_only_a_script_needs_is_no_fault_of_its_call(
    plain: Server, caplog: pytest.LogCaptureFixture, start_role: Callable[..., Awaitable[tuple[Role, object]]]
) -> None:
    """Who may call scripts, but not do what they do, is refused at the start like others without rights: in one error
    that ends the role, and not in its log besides.
    """
    url = plain.as_user("+@all", "-xadd", "-hset")
    assert await _has_layout(plain.url)
    with pytest.raises(ServerRefused, match=r"The user executing the script|ACL failure in script"):
        await asyncio.wait_for(_begun_or_refused(start_role, url), 10)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def _begun_or_refused(start_role: Callable[..., Awaitable[tuple[Role, object]]], url: str) -> None:
    role, _ = await start_role(url, QUICK)
    await begun(role)


@pytest.mark.usefixtures("soon")
async def test_rights_that_are_taken_away_are_waited_for(plain: Server, caplog: pytest.LogCaptureFixture) -> None:
    """By nodes and producers too, as told in the server's words; no job pays for it."""
    url = plain.as_user("+@all")
    async with running(url) as system:
        await system.add_node("n1", idle)
        plain.as_user("+@all", "-hget", "-hmget", "-hset")
        submitting = asyncio.create_task(system.producer.submit("s1", src_lang="en", tgt_lang="zh"))
        await until(lambda: "refuses, for 0 s now: " in caplog.text and "xecuting the script" in caplog.text)
        assert not submitting.done()
        plain.as_user("+@all")
        assert (await system.producer.outcome(await submitting, 20_000)).state == "completed"


async def idle(_: Job) -> None:
    """A handler."""


@pytest.mark.usefixtures("soon")
async def test_a_refusal_is_waited_out_for_as_long_as_it_was_said(
    plain: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """`--wait-server-ms`: somebody may mend it by then. It is told, and so is its end."""
    url = plain.as_user("+@all", "-evalsha")

    async def begin(_: int) -> bool:
        return await _has_layout(url)

    with pytest.raises(ServerRefused, match="NOPERM"):
        await begin_within(parse_url(url), 0, begin)
    waiting = asyncio.create_task(begin_within(parse_url(url), 20_000, begin))
    await until(lambda: "refuses, for 0 s now: " in caplog.text)
    plain.as_user("+@all")
    assert await waiting
    assert "takes again what it refused" in caplog.text


@contextlib.asynccontextmanager
async def setting(server: Server, name: str, value: str, normal: str) -> AsyncIterator[None]:
    """A server is configured so for a while."""
    with server.client() as client:
        client.config_set(name, value)
        try:
            yield
        finally:
            client.config_set(name, normal)


NOW_NOT: Final = [
    ("OOM", "maxmemory", "1mb", "0"),
    ("NOREPLICAS", "min-replicas-to-write", "1", "0"),
]


@pytest.mark.parametrize(("word", "name", "value", "normal"), NOW_NOT)
async def test_a_command_ends_in_the_servers_words(
    plain: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, name: str, value: str, normal: str
) -> None:
    """A server that answers is not called silent: exit code 1, soon."""
    monkeypatch.setattr(common, "PATIENCE_MS", 200)
    assert await _has_layout(plain.url)
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"session_id": "s"}')
    async with setting(plain, name, value, normal):
        done = await asyncio.to_thread(run, "jobs", "submit", str(jobs), "--redis-url", plain.url)
    assert (done.exit_code, word in done.stderr, "does not answer" in done.stderr) == (1, True, False), done.output


@pytest.mark.parametrize(("word", "name", "value", "normal"), NOW_NOT)
def test_a_replay_ends_in_the_servers_words(
    plain: Server, monkeypatch: pytest.MonkeyPatch, word: str, name: str, value: str, normal: str
) -> None:
    """As soon as any other command, though it runs roles and nodes, which would wait."""
    monkeypatch.setattr(common, "PATIENCE_MS", 200)
    with plain.client() as client:
        client.config_set(name, value)
        try:
            done = run("replay", "--speech", "--jobs", "2", "--nodes", "1", "--redis-url", plain.url)
        finally:
            client.config_set(name, normal)
    assert (done.exit_code, word in done.stderr, "does not answer" in done.stderr) == (1, True, False), done.output


@pytest.mark.usefixtures("soon")
async def test_roles_and_the_sdk_wait_and_tell(plain: Server, caplog: pytest.LogCaptureFixture) -> None:
    """While the server takes no writes, and they go on by themselves after that."""
    async with running(plain.url) as system:
        await system.add_node("n1", idle)
        async with setting(plain, "min-replicas-to-write", "1", "0"):
            submitting = asyncio.create_task(system.producer.submit("s1", src_lang="en", tgt_lang="zh"))
            await until(lambda: caplog.text.count("NOREPLICAS Not enough good replicas to write; trying on") >= 5)
        job_id = await submitting
        assert (await system.producer.outcome(job_id, 20_000)).state == "completed"
    assert "does not answer" not in caplog.text
    assert caplog.text.count("takes again what it refused (NOREPLICAS), after") >= 5


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("start_role", [start_manager, start_dispatcher, start_reaper])
async def test_a_role_starts_when_the_server_can(
    plain: Server, caplog: pytest.LogCaptureFixture, start_role: Callable[..., Awaitable[tuple[Role, object]]]
) -> None:
    """It waits for one that takes no writes, and tells so; it begins by itself."""
    assert await _has_layout(plain.url)
    async with setting(plain, "min-replicas-to-write", "1", "0"):
        starting = asyncio.ensure_future(_begun(start_role, plain.url))
        await until(lambda: "refuses, for 0 s now: NOREPLICAS" in caplog.text)
        assert not starting.done()
    await (await starting).stop()


async def _begun(start_role: Callable[..., Awaitable[tuple[Role, object]]], url: str) -> Role:
    role, _ = await start_role(url, QUICK)
    await role.begun.wait()
    return role


@pytest.mark.usefixtures("soon")
async def test_a_busy_server_is_told_as_busy(plain: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Also by a connection that is made while a script runs for long."""
    with plain.client() as client:
        client.config_set("busy-reply-threshold", 20)
    script = asyncio.create_task(asyncio.to_thread(_run_for_long, plain))
    await asyncio.sleep(0.2)
    opening = asyncio.create_task(open_store(plain.url, QUICK))
    await until(lambda: "refuses, for 0 s now: BUSY" in caplog.text)
    with pytest.raises(ServerNotReady, match="refuses it for now: BUSY"):
        await open_store(plain.url, QUICK, patience_ms=0)
    with plain.client() as client:
        client.script_kill()
    await (await opening).close()
    await script


def _run_for_long(server: Server) -> None:
    with server.client() as client, contextlib.suppress(redis.RedisError):
        client.eval("while true do end", 0)


@pytest.mark.usefixtures("soon")
async def test_a_server_with_too_many_clients_says_so(
    start: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    """It says that and hangs up, which is told as what it is, and it is tried on."""
    full = start("--maxclients", "1")
    with full.client() as client:
        client.ping()
        with pytest.raises(ServerNotReady, match="max number of clients reached"):
            await open_store(full.url, QUICK, patience_ms=0)
        opening = asyncio.create_task(open_store(full.url, QUICK))
        await until(lambda: "refuses, for 0 s now: max number of clients reached" in caplog.text)
    await (await opening).close()


@pytest.mark.usefixtures("soon")
async def test_a_socket_that_says_nothing_is_told_before_its_time_out(caplog: pytest.LogCaptureFixture) -> None:
    """It takes connections and bytes, and nothing comes of it."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        entering = asyncio.create_task(Node(url, "n1", capacity=1, handler=idle).__aenter__())
        await until(lambda: f"the server at {url} does not answer, for 0 s now: no answer comes" in caplog.text)
        entering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await entering


async def test_a_password_that_is_taken_no_more_ends_whoever_runs(plain: Server) -> None:
    """RULES 29: a role is told, a node's `stopped` raises, and so does a submission."""
    url = plain.as_user("+@all")
    with plain.client() as client:
        client.flushall()
    role, _ = await start_manager(url, QUICK)
    try:
        async with Producer(url, settings=QUICK) as producer:
            node = Node(url, "n1", capacity=1, handler=idle, settings=QUICK)
            async with node:
                with plain.client() as client:
                    client.acl_deluser("u")
                async with asyncio.timeout(10):
                    assert "WRONGPASS" in str(await role.until_refused())
                    with pytest.raises(CredentialsRefused, match="WRONGPASS"):
                        await node.stopped()
                    with pytest.raises(CredentialsRefused, match="WRONGPASS"):
                        await producer.submit("s1")
    finally:
        await role.abandon()


@pytest.mark.parametrize("command", [["manager"], ["node", "--id", "n1"]], ids=lambda command: command[0])
async def test_a_process_whose_password_is_taken_no_more_ends_with_1(
    plain: Server, tmp_path: Path, command: list[str]
) -> None:
    """In the server's words."""
    url = plain.as_user("+@all")
    assert await _has_layout(plain.url)
    async with process(url, *command, log=tmp_path / "log") as started:
        with plain.client() as client:
            client.acl_deluser("u")
        async with asyncio.timeout(15):
            assert await started.exit_code() == 1
    assert "Error: redis://" in (log := (tmp_path / "log").read_text())
    assert "refuses it: WRONGPASS" in log


async def until(true: Callable[[], bool]) -> None:
    """Wait until something is logged."""
    async with asyncio.timeout(10):
        while not true():
            await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0.01))])


def test_what_a_server_refuses_for_now_is_no_other_error_to_programs() -> None:
    """Who catches that no server can be used catches that it cannot be used now."""
    assert issubclass(ServerNotReady, SchedulerError)


@pytest.mark.usefixtures("soon")
async def test_a_node_that_no_manager_takes_in_says_so(plain: Server, caplog: pytest.LogCaptureFixture) -> None:
    """It has registered, and waits for the word `boot`; and the manager tells that it comes, drains and leaves."""
    with plain.client() as client:
        client.flushall()
    assert await _has_layout(plain.url)
    async with Node(plain.url, "n1", capacity=3, handler=idle, pairs=[("en", "zh")], settings=QUICK) as node:
        await until(lambda: "no manager has taken in node n1 yet: it waits for the word `boot`" in caplog.text)
        role, _ = await start_manager(plain.url, QUICK)
        await until(lambda: node.phase == "serving")
        await until(lambda: "node n1 has come: 3 slots in pool default, en:zh" in caplog.text)
        assert f"the server at {plain.url} is ready, after" in caplog.text
    await until(lambda: "node n1 has left" in caplog.text)
    await role.stop()


async def test_what_refuses_a_connection_is_no_error_of_a_call(plain: Server) -> None:
    """Such as a database that is not there: no script has failed, and no job pays for it."""
    client = Connection(plain.url.removesuffix("/0") + "/99", patience_ms=0)
    try:
        with pytest.raises(ServerRefused, match="DB index is out of range"):
            await client.call("last_ids", ["stream"], [])
    finally:
        await client.close()
