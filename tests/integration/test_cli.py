"""The command line within this process: what it prints, and how it ends when something is wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import pytest
import redis
from click.testing import CliRunner, Result

import scheduler
from scheduler import model
from scheduler.cli import main
from scheduler.cli.common import duration, moment, shown
from scheduler.cli.failures import without_credentials
from scheduler.cli.jobs import body_of
from scheduler.cli.main import COMMANDS
from scheduler.cli.submit import result_fields
from scheduler.store.server import EmbeddedServer, start_embedded
from scheduler.store.store import Store, open_store
from tests import seeds

T = TypeVar("T")
OF_OTHER_PAGES = {"demo", "replay"}


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedServer]:
    """One server is enough: the commands run no script that is not tested on all of them."""
    with start_embedded() as server:
        yield server


@pytest.fixture
def empty_url(engine: EmbeddedServer) -> str:
    """The URL of a server without any data."""
    with redis.Redis.from_url(engine.url) as client:
        client.flushall()
    return engine.url


@pytest.fixture
def ready_url(empty_url: str) -> str:
    """The URL of a server where a manager has written the layout."""
    on_server(empty_url, lambda store: store.control.write_layout())
    return empty_url


@pytest.fixture(autouse=True)
def own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty current directory, no server named by the environment, and nothing left behind in this process."""
    for name in ("SCHED_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = before
    logging.getLogger("scheduler").setLevel(logging.NOTSET)


def on_server(url: str, act: Callable[[Store], Awaitable[T]]) -> T:
    """Arrange something on the server."""

    async def run() -> T:
        async with await open_store(url) as store:
            return await act(store)

    return asyncio.run(run())


def run(*arguments: str, **environment: str) -> Result:
    """Run a command, 80 columns wide."""
    return CliRunner().invoke(main, arguments, env={"COLUMNS": "80", **environment})


def refusal(result: Result) -> tuple[int, str]:
    """Exit code and stderr of a command that printed nothing else."""
    assert result.stdout == ""
    return result.exit_code, result.stderr


# ---- help and usage ----


def test_version() -> None:
    """`--version` names the program and the package's version."""
    assert run("--version").stdout == f"scheduler, version {scheduler.__version__}\n"


def all_commands(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    """The names of each command below a group."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, *names, name)
        else:
            yield (*names, name)


def test_help_of_everything() -> None:
    """Every command says what it does, within 80 columns, and gives an example."""
    assert run("--help").exit_code == 0
    for names in all_commands(main):
        result = run(*names, "--help")
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= 80
        assert names[0] in OF_OTHER_PAGES or "Example" in result.stdout


def test_all_commands_are_listed() -> None:
    """The help of the program lists every command."""
    listed = re.findall(r"^  (\w+) +\S", run("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nods", "ls"], "no such command 'nods'. Did you mean 'nodes'?"),
        (["jobs", "submit", "no-such-file"], "No such file or directory"),
        (["jobs", "submit", __file__, "--timeout-ms", "5"], "--timeout-ms is for --wait."),
        (["nodes", "ls", "--redis-url", "http://x:y@host"], "'http://***@host': expected redis://host:port/0"),
        (["node", "--capacity", "1"], "Missing option '--id'"),
        (["node", "--id", "n1", "--pair", "en"], "'en': expected source:target, such as en:zh"),
        (["node", "--id", "n1", "--label", "zone"], "'zone': expected key=value, such as zone=eu-1"),
        (["node", "--id", "n1", "--handler", "a:b", "--work-ms", "1"], "not with --handler"),
        (["node", "--id", "n 1", "--redis-url", "redis://host"], "node = 'n 1': expected 1 to 64 visible ASCII"),
        (["node", "--id", "n1", "--pair", "a b:c", "--redis-url", "redis://host"], "src_lang = 'a b': expected"),
    ],
)
def test_wrong_usage(arguments: list[str], problem: str) -> None:
    """What was typed wrongly ends with 2 and is named."""
    exit_code, stderr = refusal(run(*arguments))
    assert exit_code == 2
    assert problem in stderr


def test_unknown_setting() -> None:
    """A setting that is none ends with 2, beside the nearest that is one."""
    assert refusal(run("nodes", "ls", SCHED_LEASE="5")) == (
        2,
        "Error: SCHED_LEASE = '5': expected a known setting; the nearest is SCHED_LEASE_MS\n",
    )


# ---- servers ----


@pytest.mark.parametrize(
    "command", [["nodes", "ls"], ["jobs", "submit", __file__], ["manager"], ["node", "--id", "n1"]]
)
def test_no_server(command: list[str]) -> None:
    """Without a server the command ends with 3 and names the places that were looked at."""
    exit_code, stderr = refusal(run(*command))
    assert exit_code == 3
    assert stderr.splitlines() == [
        "Error: no server found; looked at",
        "  --redis-url      not given",
        "  SCHED_REDIS_URL  not set",
        "  REDIS_URL        not set",
        "  .scheduler/url   no such file",
        "Name one, or start one here: scheduler up",
    ]


def test_server_that_does_not_answer() -> None:
    """A server that does not answer ends with 3; its password is not shown."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    exit_code, stderr = refusal(run("streams", "ls", "--redis-url", f"redis://me:secret@127.0.0.1:{port}/0"))
    assert exit_code == 3
    assert stderr.startswith(f"Error: redis://***@127.0.0.1:{port}/0 does not answer: ")
    assert stderr.count("\n") == 1


def test_server_without_a_scheduler(empty_url: str) -> None:
    """A server where no scheduler was started ends with 3."""
    exit_code, stderr = refusal(run("nodes", "ls", REDIS_URL=empty_url))
    assert exit_code == 3
    assert "no scheduler was started there (namespace 'sched')" in stderr


def test_foreign_key(ready_url: str) -> None:
    """What the server refuses is a line, not a traceback."""
    with redis.Redis.from_url(ready_url) as client:
        client.set("{sched:0}:capacity", "mine")
    exit_code, stderr = refusal(run("nodes", "ls", "--redis-url", ready_url))
    assert exit_code == 1
    assert stderr.startswith(f"Error: {ready_url}: WRONGTYPE")


def test_namespace(ready_url: str) -> None:
    """SCHED_NAMESPACE chooses which of several schedulers on a server is asked."""
    assert run("nodes", "ls", SCHED_REDIS_URL=ready_url).stdout == "no node is known\n"
    assert run("nodes", "ls", SCHED_REDIS_URL=ready_url, SCHED_NAMESPACE="other").exit_code == 3


# ---- handlers ----


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        ("fine", "expected package.module:function"),
        ("nowhere:run", "no module nowhere in the current directory or among what is installed"),
        ("nowhere.deep:run", "no module nowhere in the current directory or among what is installed"),
        ("fine:rum", "fine has no rum; the nearest is run"),
        ("fine:Some.method", "fine has no Some.method"),
        ("fine:NUMBER", "NUMBER is a int: expected a function of one job"),
        ("broken:run", "importing broken failed: ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("needy:run", "importing needy failed: ModuleNotFoundError: No module named 'nowhere' (needy.py, line 1)"),
        ("torn:run", "importing torn failed: SyntaxError: invalid syntax (torn.py, line 1)"),
    ],
)
def test_handler_that_cannot_be_loaded(tmp_path: Path, handler: str, problem: str) -> None:
    """A handler that cannot be loaded ends with 2 and says what is wrong, and where."""
    (tmp_path / "fine.py").write_text("NUMBER = 1\nclass Some: pass\ndef run(job): return 1\n")
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    (tmp_path / "needy.py").write_text("import nowhere\n")
    (tmp_path / "torn.py").write_text("def = 1\n")
    assert refusal(run("node", "--id", "n1", "--handler", handler)) == (
        2,
        f"Error: --handler = {handler!r}: {problem}\n",
    )
    sys.modules.pop("fine", None)


# ---- jobs submit ----


def entries(url: str, job_id: str) -> list[dict[bytes, bytes]]:
    """The intake entries of a job."""

    async def look(store: Store) -> list[dict[bytes, bytes]]:
        streams = [await store.reads.entries(store.cell.keys.jobs(partition)) for partition in range(16)]
        return [fields for stream in streams for _, fields in stream if fields[b"job_id"] == job_id.encode()]

    return on_server(url, look)


def submit(url: str, path: Path, *lines: str, options: tuple[str, ...] = (), **environment: str) -> Result:
    """Run `jobs submit` on a file of these lines."""
    file = path / "jobs.jsonl"
    file.write_text("\n".join(lines))
    return run("jobs", "submit", str(file), "--redis-url", url, *options, **environment)


def test_submit(ready_url: str, tmp_path: Path) -> None:
    """Each accepted job's id is printed, in the order of the lines; the last line needs no end."""
    lines = [json.dumps({"session_id": f"s{number % 7}", "job_id": f"j{number}"}) for number in range(300)]
    result = submit(ready_url, tmp_path, *lines)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.split() == [f"j{number}" for number in range(300)]


def test_submitted_bodies(ready_url: str, tmp_path: Path) -> None:
    """A payload is text, or bytes in base64, or nothing; the document holds the rest."""
    result = submit(
        ready_url,
        tmp_path,
        '{"session_id": "s", "job_id": "text", "src_lang": "en", "tgt_lang": "zh", "payload": "h\\u00e9"}',
        '{"session_id": "s", "job_id": "bytes", "payload_base64": "/wA="}',
        '{"session_id": "s", "job_id": "none", "priority": 3}',
    )
    assert result.exit_code == 0
    found = {job_id: entries(ready_url, job_id)[0] for job_id in result.stdout.split()}
    assert {job_id: fields.get(b"payload") for job_id, fields in found.items()} == {
        "text": "hé".encode(),
        "bytes": b"\xff\x00",
        "none": None,
    }
    assert model.decode_job(found["none"][b"job"]) == model.JobDocument("s", job_id="none", priority=3)


def test_lines_that_are_not_accepted(ready_url: str, tmp_path: Path) -> None:
    """Each bad line is explained by its number, the others are submitted, and the command ends with 1."""
    result = submit(
        ready_url,
        tmp_path,
        '{"session_id": "s", "job_id": "first"}',
        "oops\x1b[31m",
        "",
        '{"session_id": "a b"}',
        '{"session_id": "s", "payload": "123456789"}',
        '{"session_id": "s", "payload": "1", "payload_base64": "MQ=="}',
        '{"session_id": "s", "payload_base64": "*"}',
        '{"session_id": "s", "job_id": "first"}',
        '{"session_id": "other", "job_id": "first"}',
        '{"session_id": "' + "s" * 200_000 + '"}',
        '{"session_id": "s", "job_id": "last"}',
        SCHED_PAYLOAD_BYTES_MAX="8",
    )
    assert result.exit_code == 1
    assert result.stdout.split() == ["first", "last"]
    *explained, conclusion = result.stderr.splitlines()
    assert [re.sub(r"job [0-9a-f]{24}", "job ID", line) for line in explained] == [
        "line 2: 'oops\N{REPLACEMENT CHARACTER}[31m': expected a JSON object",
        "line 4: session_id = 'a b': expected 1 to 128 visible ASCII characters without spaces and braces",
        "line 5: payload of job ID: 9 bytes: expected at most 8",
        "line 6: payload and payload_base64: expected one of them",
        "line 7: job is no valid JSON document: Invalid base64 encoded string - at `$.payload_base64`",
        "line 8: job first is not accepted: duplicate (queued)",
        "line 9: job first is not accepted: job_id_taken",
        "line 10: it is longer than 98352 bytes: no document and payload need so much",
    ]
    assert conclusion == "Error: 8 lines were not accepted"


def test_full_backlog(ready_url: str, tmp_path: Path) -> None:
    """A partition that is full takes no more, and says how full it is."""
    lines = [f'{{"session_id": "s", "job_id": "j{number}"}}' for number in range(3)]
    result = submit(ready_url, tmp_path, *lines, SCHED_BACKLOG_MAX="2")
    assert result.stdout.split() == ["j0", "j1"]
    assert result.stderr == "line 3: job j2 is not accepted: busy (2)\nError: 1 line was not accepted\n"


def test_wait_that_takes_too_long(ready_url: str, tmp_path: Path) -> None:
    """With a time limit, what has not ended by then is counted and named, and the command ends with 1."""
    lines = [f'{{"session_id": "s", "job_id": "j{number}"}}' for number in range(6)]
    result = submit(ready_url, tmp_path, *lines, options=("--wait", "--timeout-ms", "20"))
    assert refusal(result) == (
        1,
        "Error: 6 jobs had not ended 20 ms after the end of the input: j0, j1, j2, j3, j4, ...\n",
    )


def test_results_in_json() -> None:
    """A result is decoded as its content type says, and kept as bytes where that is a lie."""
    assert result_fields("application/json", b'{"a":1}') == {"result": {"a": 1}}
    assert result_fields("text/plain; charset=utf-8", b"hi") == {"result": "hi"}
    assert result_fields("", b"") == {"result": None}
    for content_type, data in [
        ("application/octet-stream", b"\xff"),
        ("application/json", b"{"),
        ("text/plain; charset=utf-8", b"\xff"),
    ]:
        fields = result_fields(content_type, data)
        assert json.loads(msgspec.json.encode(fields)) == {"result_base64": base64.b64encode(data).decode()}


# ---- jobs show ----


def show(url: str, job_id: str = seeds.JOB) -> tuple[dict[str, str], dict[str, Any]]:
    """What `jobs show` says of a job: its lines by their first words, and its JSON."""
    table, document = (
        run("jobs", "show", job_id, "--redis-url", url),
        run("jobs", "show", job_id, "--json", REDIS_URL=url),
    )
    assert (table.exit_code, document.exit_code) == (0, 0)
    assert max(map(len, table.stdout.splitlines())) <= 80
    pieces = [re.split(r"  +", line.strip(), maxsplit=1) for line in table.stdout.splitlines()]
    return {piece[0]: piece[1] for piece in pieces if len(piece) == 2}, json.loads(document.stdout)


def test_show_unknown_job(ready_url: str) -> None:
    """A job that nobody knows ends with 1 and says why that may be."""
    exit_code, stderr = refusal(run("jobs", "show", "no\tsuch", "--redis-url", ready_url))
    assert exit_code == 1
    assert stderr.startswith("Error: nothing is known of job 'no\N{REPLACEMENT CHARACTER}such': it was never submitted")


def test_show_queued_job(ready_url: str) -> None:
    """A queued job is in the intake."""
    entry_id = on_server(ready_url, seeds.seed_job)
    words, fields = show(ready_url)
    assert words["state"] == "queued"
    assert words["body"] == f"intake of partition 1, entry {entry_id}"
    assert words["bound to"] == "nothing"
    assert words["attempts"] == "0 failed, 0 lost with their node, 0 not started"
    assert (fields["body"], fields["body_entry"], fields["node"]) == ("intake", f"1/{entry_id}", None)


def test_show_reserved_job(ready_url: str) -> None:
    """A reserved job is in its node's inbox, under a lease that still lasts."""

    async def seed(store: Store) -> int:
        token = await seeds.seed_reserved(store, started=True)
        await seeds.seed_record(store, cancel="1")
        await store.connection.commands.set(store.cell.keys.session(seeds.SESSION), "default en:zh n1 -")
        return token

    token = on_server(ready_url, seed)
    words, fields = show(ready_url)
    assert words["state"] == "reserved, being cancelled"
    assert words["body"] == f"inbox of node n1, entry {fields['body_entry']}"
    assert words["bound to"] == "node n1 of pool default, en to zh"
    assert (words["node"], words["boot"], words["token"]) == ("n1", seeds.BOOT, str(token))
    assert re.search(r"\(in 14\.\d s\)$", words["lease until"])
    assert words["started"].endswith(" ago)")
    assert fields["binding"] == {"pool": "default", "src_lang": "en", "tgt_lang": "zh", "node": "n1", "variant": "-"}


def test_show_delayed_job(ready_url: str) -> None:
    """A delayed job is parked, and says when it is due."""
    on_server(ready_url, lambda store: seeds.seed_delayed(store, due=False))
    words, fields = show(ready_url)
    assert words["state"] == "delayed"
    assert words["body"] == f"parked, entry {fields['body_entry']}"
    assert re.search(r"\(in 59\.\d s\)$", words["due"])
    assert words["attempts"].startswith("1 failed")


def test_show_dead_job(ready_url: str) -> None:
    """A dead job is in the dead stream, with reason and detail; what a terminal may obey is taken out."""

    async def seed(store: Store) -> None:
        token = await seeds.seed_reserved(store)
        item = seeds.release_item(token, "dead", reason="run_time", detail="gone\x1b[2J")
        assert await seeds.release(store, item) == [model.Released("dead")]

    on_server(ready_url, seed)
    words, fields = show(ready_url)
    assert words["state"] == "dead"
    assert words["body"] == f"dead stream, entry {fields['body_entry']}"
    assert (words["reason"], words["detail"]) == ("run_time", "gone\N{REPLACEMENT CHARACTER}[2J")
    assert fields["detail"] == "gone\x1b[2J"


@pytest.mark.parametrize(
    ("content_type", "result", "words", "fields"),
    [
        ("application/json", b'{"a":1}', '{"a":1}', {"result": {"a": 1}}),
        ("text/plain; charset=utf-8", b"x" * 500, "x" * 63, {"result": "x" * 500}),
        ("application/octet-stream", b"\xff\x00", "2 bytes", {"result_base64": "/wA="}),
    ],
)
def test_show_completed_job(
    ready_url: str, content_type: str, result: bytes, words: str, fields: dict[str, object]
) -> None:
    """A completed job has no body any more but a result: cut in the table, whole in JSON."""

    async def seed(store: Store) -> None:
        token = await seeds.seed_reserved(store)
        await seeds.release(store, seeds.release_item(token, "finish", content_type=content_type, result=result))

    on_server(ready_url, seed)
    table, document = show(ready_url)
    assert (table["state"], table["body"], table["last node"]) == ("completed", "none any more", "n1")
    assert table["result"].startswith(words)
    assert document | fields == document


@pytest.mark.parametrize(
    "row", [row for row in model.TRANSITIONS if row.next_state != "none"], ids=lambda row: row.event
)
def test_body_as_the_transition_table_says(row: model.Transition) -> None:
    """Where a body is said to be is where the transition table leaves it."""
    record = {"state": row.next_state, "entry": "1/1-0", "inbox_id": "2-0", "parked_id": "3-0"}
    if row.body == "dead":
        record["dead_id"] = "4-0"
    assert body_of(record)[0] == row.body


# ---- listings ----


def listed(url: str, *command: str) -> tuple[list[list[str]], Any]:
    """A listing's lines as words, none longer than 80 columns, and its JSON."""
    table, document = run(*command, "--redis-url", url), run(*command, "--json", REDIS_URL=url)
    assert (table.exit_code, document.exit_code, table.stderr, document.stderr) == (0, 0, "", "")
    lines = table.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    return [line.split() for line in lines], json.loads(document.stdout)


def test_streams(ready_url: str) -> None:
    """Each partition's backlog and owner, and what lies in the other streams."""

    async def seed(store: Store) -> None:
        await seeds.seed_owner(store, 1)
        await seeds.seed_job(store, partition=1)
        await seeds.seed_job(store, "j2", partition=1)
        await store.cell.claim("gone+1", [2])
        await store.cell.claim("gone+1", (), [2])
        await store.control.beat(model.encode_beat(model.NodeBeat("n1", seeds.BOOT, 1)))

    on_server(ready_url, seed)
    rows, document = listed(ready_url, "streams", "ls")
    assert rows[0] == ["partition", "backlog", "oldest", "owner", "lease"]
    assert rows[1] == ["0", "0", "nobody"]
    assert (rows[2][:2], rows[2][4], rows[2][6]) == (["1", "2"], seeds.OWNER, "s")
    assert rows[3] == ["2", "0", "nobody"]
    assert rows[18] == ["stream", "entries", "what"]
    assert {row[0]: row[1] for row in rows[19:]} == {
        "heartbeats": "1", "results": "0", "freed": "0", "delayed": "0", "parked": "0", "dead": "0",
    }  # fmt: skip
    owned = document["partitions"][1]
    assert (owned["partition"], owned["backlog"], owned["owner"]) == (1, 2, seeds.OWNER)
    assert 0 < owned["lease_left_ms"] <= 6_000
    assert owned["oldest_ms"] >= 0
    assert document["entries"] == {
        "heartbeats": 1, "results": 0, "freed": 0, "delayed": 0, "parked": 0, "dead": 0,
    }  # fmt: skip


LONG_JOB = "0123456789abcdef01234567"


def test_reservations(ready_url: str) -> None:
    """Each held slot with its job, node, token and lease; ids of jobs and tokens are never cut."""

    async def seed(store: Store) -> int:
        session = "a-session-with-a-name-that-is-rather-long"
        await seeds.seed_reserved(store, "other", "s2", node="n2")
        return await seeds.seed_reserved(store, LONG_JOB, session, node="a-node-with-a-name-that-is-rather-long")

    token = on_server(ready_url, seed)
    rows, document = listed(ready_url, "reservations", "ls")
    assert rows[0] == ["job", "node", "session", "token", "age", "lease"]
    assert (rows[1][0], rows[1][3]) == (LONG_JOB, str(token))
    assert len(rows) == 3
    assert [(each["job_id"], each["node"]) for each in document] == [
        (LONG_JOB, "a-node-with-a-name-that-is-rather-long"),
        ("other", "n2"),
    ]
    assert 0 <= document[0]["age_ms"] < 5_000
    assert 0 < document[0]["lease_left_ms"] <= 5_000


def test_reservations_of_a_node(ready_url: str) -> None:
    """One node's reservations only; a lapsed lease is called so, and an unknown node is an error."""

    async def seed(store: Store) -> None:
        await seeds.seed_reserved(store, "j1", "s1", node="n1")
        await seeds.seed_reserved(store, "j2", "s2", node="n2")
        await seeds.seed_node(store, "n3")
        await seeds.seed_lapsed(store, "j2", "n2")

    on_server(ready_url, seed)
    rows, document = listed(ready_url, "reservations", "ls", "--node", "n2")
    assert (rows[1][0], rows[1][-1], len(rows)) == ("j2", "lapsed", 2)
    assert document[0]["lease_left_ms"] < 0
    assert run("reservations", "ls", "--node", "n3", REDIS_URL=ready_url).stdout == "no slot is held\n"
    assert refusal(run("reservations", "ls", "--node", "n4", REDIS_URL=ready_url)) == (
        1,
        "Error: no node 'n4'; there is n1, n2, n3\n",
    )


def test_nodes(ready_url: str) -> None:
    """Each node with its slots; long lists of pairs are shortened, and one that takes no work says why."""
    pairs = tuple(("en", target) for target in ("de", "es", "fr", "it", "ja", "zh"))

    async def seed(store: Store) -> None:
        await seeds.seed_reserved(store, node="n1", slots=4)
        await seeds.seed_node(store, "n2", slots=0, reason="draining")
        epoch = await seeds.seed_leader(store)
        node = model.Node("n1", seeds.BOOT, 4, "a-pool-with-a-long-name", pairs, ("asr", "tts"), {"zone": "eu"}, "2.1")
        other = model.Node("n2", seeds.LATER_BOOT, 4, "of-another-boot")
        await store.control.publish(seeds.MANAGER, epoch, model.Snapshot(1, (node, other)))

    on_server(ready_url, seed)
    rows, document = listed(ready_url, "nodes", "ls")
    assert rows[0] == ["node", "pool", "used", "slots", "reason", "pairs", "features", "boot"]
    assert rows[1][2:10] == ["1", "4", "ready", "en:de", "en:es", "+4", "asr", "tts"]
    assert rows[2][:5] == ["n2", "-", "0", "0", "draining"]
    assert document[0] | {"boot_age_ms": 0} == {
        "id": "n1",
        "pool": "a-pool-with-a-long-name",
        "slots": 4,
        "used": 1,
        "reason": "ready",
        "pairs": [list(pair) for pair in pairs],
        "features": ["asr", "tts"],
        "labels": {"zone": "eu"},
        "version": "2.1",
        "boot": seeds.BOOT,
        "boot_age_ms": 0,
    }


# ---- words ----


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (59_999, "59.9 s"),
        (60_000, "1m 00s"),
        (3_599_999, "59m 59s"),
        (3_900_000, "1h 05m"),
        (90_000_000, "1d 1h"),
        (-1_500, "-1.5 s"),
    ],
)
def test_duration(milliseconds: int, words: str) -> None:
    """A length of time never rounds up into the next unit."""
    assert duration(milliseconds) == words


def test_moment() -> None:
    """A time is ISO 8601 in UTC."""
    assert moment(1_700_000_000_123) == "2023-11-14T22:13:20.123Z"


def test_shown() -> None:
    """A text from elsewhere is one line, and short."""
    assert shown("a\nb\x07") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert shown("x" * 300, 5) == "xxxxx... (300 characters)"


def test_credentials() -> None:
    """User and password disappear from every URL of a text; other things stay."""
    text = "redis://u:p@h:1/0 and rediss://:p@h, mail a@b, redis://h:1/0"
    assert without_credentials(text) == "redis://***@h:1/0 and rediss://***@h, mail a@b, redis://h:1/0"
