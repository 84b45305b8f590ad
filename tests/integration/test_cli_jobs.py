"""`scheduler jobs` within this process: which lines are accepted, and what is said of a job."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result

from scheduler.cli.jobs import body_of
from scheduler.cli.submit import Needs, result_fields
from scheduler.protocol import messages, record_fields
from scheduler.protocol.documents import JobDocument, decode_job
from scheduler.protocol.lifecycle import TRANSITIONS, Transition
from scheduler.store.store import Store
from tests import seeds
from tests.integration.commands import on_server, refusal, run

pytestmark = pytest.mark.usefixtures("own_place")


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
    assert decode_job(found["none"][b"job"]) == JobDocument("s", job_id="none", priority=3)


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
        '{"sesion_id": "s", "tgtlang": "zh", "x": 1}',
        '{"session_id": "s", "priority": "high"}',
        '{"session_id": "s", "src_lang": "en", "target_lang": "zh"}',
        '{"session_id": "s"',
        '{"x":' * 10_000,
        '{"session_id": "s", "job_id": "last"}',
        SCHED_PAYLOAD_BYTES_MAX="8",
    )
    assert result.exit_code == 1
    assert result.stdout.split() == ["first", "last"]
    *explained, conclusion = result.stderr.splitlines()
    assert [re.sub(r"job [0-9a-f]{24}", "job ID", line) for line in explained] == [
        r"line 2: 'oops\x1b[31m': expected a JSON object",
        "line 4: session_id = 'a b': expected 1 to 128 visible ASCII characters without spaces and braces",
        "line 5: payload of job ID: 9 bytes: expected at most 8",
        "line 6: payload and payload_base64: expected one of them",
        "line 7: job (JSON): Invalid base64 encoded string - at `$.payload_base64`",
        "line 8: job first is not accepted: duplicate (queued)",
        "line 9: job first is not accepted: job_id_taken",
        "line 10: it is longer than 98352 bytes: no document and payload need so much",
        "line 11: job (JSON): Object missing required field `session_id`; "
        "'sesion_id' is no field: the nearest is session_id; 'tgtlang' is no field: the nearest is tgt_lang",
        "line 12: job (JSON): Expected `int`, got `str` - at `$.priority`",
        "line 13: src_lang = 'en', tgt_lang = '': expected both languages, or none of them; 'target_lang' is no field: "
        "the nearest is tgt_lang",
        "line 14: job is no valid JSON document: Input data was truncated",
        "line 15: job is no valid JSON document: maximum recursion depth exceeded while deserializing an object",
    ]
    assert conclusion == "Error: 13 lines were not accepted"


def test_fields_that_there_are_not(ready_url: str, tmp_path: Path) -> None:
    """Each is told once with its first line and the nearest field, and how many lines have it; no value is shown."""
    result = submit(
        ready_url,
        tmp_path,
        '{"session_id": "s", "job_id": "a", "paylod": "Wonder7"}',
        '{"session_id": "s", "job_id": "b", "paylod": 7, "prefered_node": "n1"}',
        '{"session_id": "s", "job_id": "c", "paylod": null, "x\\u001b": {"payload": 1}}',
        '{"session_id": "s", "job_id": "d", "payload": "hi"}',
    )
    assert (result.exit_code, result.stdout.split()) == (0, ["a", "b", "c", "d"])
    lines = result.stderr.splitlines()
    assert lines.pop(2).startswith(r"line 3: 'x\x1b' is no field: expected one of deadline_ms, features,")
    assert lines == [
        "line 1: 'paylod' is no field: the nearest is payload; it is passed over",
        "line 2: 'prefered_node' is no field: the nearest is preferred_node; it is passed over",
        "'paylod' is no field: the nearest is payload; it was passed over in 3 lines",
    ]


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


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Needs("en", "zh", (), ""), "no node serves en:zh"),
        (Needs("en", "zh", ("asr", "tts"), ""), "no node serves en:zh with asr, tts"),
        (Needs("", "", ("llm",), ""), "no node offers llm"),
        (Needs("", "", (), "acme"), "no node is there"),
    ],
)
def test_what_no_node_serves(needs: Needs, words: str) -> None:
    """Languages as the options of a node name them, and features."""
    assert needs.unmet() == words


def test_results_in_json() -> None:
    """A result is decoded as its content type says, and kept as bytes where that is a lie."""
    assert result_fields("application/json", b'{"a":1}') == {"result": {"a": 1}}
    assert result_fields("text/plain; charset=utf-8", b"hi") == {"result": "hi"}
    assert result_fields("", b"") == {"result": None}
    for content_type, data in [
        ("application/octet-stream", b"\xff"),
        ("application/json", b"{"),
        ("application/json", 10_000 * b"[" + 10_000 * b"]"),
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
    assert stderr.startswith(r"Error: nothing is known of job 'no\tsuch': it was never submitted")


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


def test_show_says_why_the_last_attempt_failed(ready_url: str) -> None:
    """While the job waits for the next one; whole, for the place in the code is at the end."""
    detail = f"ValueError: {'bad ' * 200} (/app/h.py:6 in second)"

    async def seed(store: Store) -> None:
        token = await seeds.seed_delayed(store, due=False)
        await store.cell.describe([seeds.release_item(token, "retry", detail=detail)], 60_000)

    on_server(ready_url, seed)
    words, fields = show(ready_url)
    assert fields["detail"] == detail
    assert words["last failure"].startswith("ValueError: bad bad")


def test_show_failed_job(ready_url: str) -> None:
    """Why is told once, although it is the result too."""

    async def seed(store: Store) -> None:
        token = await seeds.seed_reserved(store)
        why: dict[str, Any] = {"reason": "rejected", "detail": "no", "result": b"no"}
        why["content_type"] = "text/plain; charset=utf-8"
        await seeds.release(store, seeds.release_item(token, "finish", state="failed", **why))

    on_server(ready_url, seed)
    words, fields = show(ready_url)
    assert (words["state"], words["reason"], words["detail"], words.get("result")) == ("failed", "rejected", "no", None)
    assert (fields["detail"], fields["result"]) == ("no", "no")


def test_show_dead_job(ready_url: str) -> None:
    """A dead job is in the dead stream, with reason and detail; what a terminal may obey is taken out."""

    async def seed(store: Store) -> None:
        token = await seeds.seed_reserved(store)
        item = seeds.release_item(token, "dead", reason="run_time", detail="gone\x1b[2J")
        assert await seeds.release(store, item) == [messages.Released("dead")]

    on_server(ready_url, seed)
    words, fields = show(ready_url)
    assert words["state"] == "dead"
    assert words["body"] == f"dead stream, entry {fields['body_entry']}"
    assert (words["reason"], words["detail"]) == ("run_time", r"gone\x1b[2J")
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


@pytest.mark.parametrize("junk", ["", "junk"])
def test_show_damaged_job(ready_url: str, junk: str) -> None:
    """Of a record that somebody else has written into, everything else is still told."""
    numbers = ("attempts", "crashes", "not_started", "submitted_ms", "started_ms", "ended_ms", "life")

    async def seed(store: Store) -> None:
        for job in ("reserved", "dead"):
            token = await seeds.seed_reserved(store, job, f"s-{job}", slots=2, started=True)
            if job == "dead":
                await seeds.release(store, seeds.release_item(token, "dead", job, f"s-{job}"))
            fields = (*numbers, "dead_id", "policy")
            if junk:
                await seeds.seed_record(store, job, **dict.fromkeys(fields, junk))
            else:
                await store.connection.commands.hdel(store.cell.keys.job(job), "state", *fields)

    on_server(ready_url, seed)
    for job in ("reserved", "dead"):
        table, document = show(ready_url, job)
        assert table["session"] == f"s-{job}"
        assert (document["state"], document["attempts"]) == (job if junk else "none", 0)


@pytest.mark.parametrize("row", [row for row in TRANSITIONS if row.next_state != "none"], ids=lambda row: row.event)
def test_body_as_the_transition_table_says(row: Transition) -> None:
    """Where a body is said to be is where the transition table leaves it."""
    record = {"state": row.next_state, "entry": "1/1-0", "inbox_id": "2-0", "parked_id": "3-0"}
    if row.body == "dead":
        record["dead_id"] = "4-0"
    assert body_of(record)[0] == row.body


def test_show_a_job_whose_body_was_deleted(ready_url: str) -> None:
    """It points to no entry that is gone, in no stream; whether it is there is looked at, not guessed."""

    async def seed(store: Store) -> None:
        await seeds.seed_job(store, "queued", "s1")
        await seeds.seed_job(store, "kept", "s1")
        await seeds.seed_reserved(store, "reserved", "s2")
        entry_id = record_fields.entry_id_of((await store.reads.record("queued"))["entry"].partition("/")[2])
        assert entry_id is not None
        client, keys = store.connection.commands, store.cell.keys
        await client.xdel(keys.jobs(seeds.PARTITION), entry_id)
        await client.delete(keys.inbox(seeds.NODE))

    on_server(ready_url, seed)
    for job_id in ("queued", "reserved"):
        lines, document = show(ready_url, job_id)
        assert re.fullmatch(r"lost: somebody deleted its entry \S+", lines["body"])
        assert document["body"] == "lost"
    lines, document = show(ready_url, "kept")
    assert lines["body"].startswith("intake of partition ")
    assert document["body"] == "intake"
