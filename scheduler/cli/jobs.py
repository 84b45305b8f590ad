"""`scheduler jobs`: submit jobs and wait for them; show what is known of one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import BinaryIO, Final

import click
import msgspec

from scheduler import arguments
from scheduler.cli.submit import Awaited, Submitter, beside, outcome_fields, result_fields
from scheduler.cli.tables import print_pairs
from scheduler.config import Settings
from scheduler.console import terminal
from scheduler.console.common import (
    Connecting,
    duration,
    json_option,
    milliseconds,
    moment,
    opened_store,
    print_json,
    print_json_line,
    server_options,
    settings_of_environment,
    shown,
    shown_or_whole,
)
from scheduler.console.failures import Failure
from scheduler.console.process import run_async
from scheduler.host import Host
from scheduler.producer import Producer
from scheduler.protocol import record_fields
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.lifecycle import TERMINAL, TRANSITIONS, Body
from scheduler.protocol.messages import Outcome
from scheduler.protocol.results import BYTES
from scheduler.session.bindings import Binding, parse
from scheduler.session.decisions import in_words
from scheduler.store.reads import Reads
from scheduler.store.store import Store, open_store

NAMED_MAX: Final = 5
RESULT_SHOWN_MAX: Final = 400
DETAIL_SHOWN_MAX: Final = 2_000


@click.group()
def jobs() -> None:
    """Submit jobs, and see what became of them."""


# ---- submit ---------------------------------------------------------------------------------------------------------


_SUBMIT_HELP: Final = f"""Submit the jobs of FILE, or of standard input for `-`: a JSON object a line.

Its fields: {", ".join(JobDocument.__struct_fields__)}; and payload (text) or payload_base64. Only session_id is needed.
Lines are submitted as they come.

Prints the id of each accepted job, in order. A line that is not accepted is explained on stderr, the others are
submitted all the same. Ends with 1 if a line was not accepted, or with --wait if a job did not complete.

\b
Examples:
  scheduler jobs submit jobs.jsonl --wait --timeout-ms 60000
  echo '{{"session_id": "s1", "payload": "hi"}}' | scheduler jobs submit -
"""


@jobs.command(short_help="Submit jobs from lines of JSON, and wait for them.", help=_SUBMIT_HELP)
@click.argument("file", type=click.File("rb"))
@click.option("--wait", is_flag=True, help="Print each outcome, a JSON line, instead of the ids.")
@click.option(
    "--timeout-ms",
    type=milliseconds(1),
    help="With --wait: how long after the end of the input.  [default: for ever]",
)
@server_options()
def submit(redis_url: str | None, file: BinaryIO, wait: bool, timeout_ms: int | None) -> None:
    """Its help is _SUBMIT_HELP."""
    if timeout_ms is not None and not wait:
        raise click.UsageError("--timeout-ms is for --wait.")
    settings = settings_of_environment()
    run_async(_submit(redis_url, settings, file, wait, timeout_ms))


async def _submit(
    redis_url: str | None, settings: Settings, file: BinaryIO, wait: bool, timeout_ms: int | None
) -> None:
    async with opened_store(redis_url, settings) as (found, _):
        url = found.connection.url
    connecting = Connecting(url)
    async with (
        await open_store(url, settings, connect=connecting) as store,
        Producer(url, settings=settings, host=Host(connect=connecting)) as producer,
    ):
        if wait:
            await _submit_and_wait(store, producer, settings, file, timeout_ms, connecting)
            return

        async def accept(accepted: Mapping[str, JobDocument]) -> None:
            connecting.has_begun()
            terminal.write_line("\n".join(accepted))

        submitter = Submitter(producer, settings, accept)
        await submitter.run(file)
        _conclude(submitter.refused, 0, [], timeout_ms)


async def _submit_and_wait(
    store: Store,
    producer: Producer,
    settings: Settings,
    file: BinaryIO,
    timeout_ms: int | None,
    connecting: Connecting,
) -> None:
    incomplete = 0

    def tell(outcome: Outcome) -> None:
        nonlocal incomplete
        incomplete += outcome.state != "completed"
        print_json_line(outcome_fields(outcome))

    async def accept(accepted: Mapping[str, JobDocument]) -> None:
        connecting.has_begun()
        await awaited.add(accepted)

    awaited = Awaited(producer, store, tell)
    submitter = Submitter(producer, settings, accept)

    async def work() -> None:
        await submitter.run(file)
        try:
            async with asyncio.timeout(None if timeout_ms is None else timeout_ms / 1000):
                await awaited.all_ended()
        except TimeoutError:
            return

    try:
        await beside(work(), [awaited.follow(), awaited.sweep(), awaited.explain()])
    except BaseException:  # Ctrl-C too: nothing else tells which jobs go on
        if awaited.open:
            ids = "\n".join(awaited.open)
            jobs = _jobs(len(awaited.open))
            terminal.write_line(f"not ended yet ({jobs}; see `scheduler jobs show ID`):\n{ids}", err=True)
        raise
    _conclude(submitter.refused, incomplete, list(awaited.open), timeout_ms)


def _conclude(refused: int, incomplete: int, still_open: list[str], timeout_ms: int | None) -> None:
    """Raises: Failure when something went otherwise than well."""
    parts = []
    if refused:
        parts.append(f"{_lines(refused)} not accepted")
    if incomplete:
        parts.append(f"{_jobs(incomplete)} did not complete")
    if still_open:
        names = ", ".join(itertools.islice(still_open, NAMED_MAX))
        more = ", ..." if len(still_open) > NAMED_MAX else ""
        parts.append(
            f"{_jobs(len(still_open))} had not ended {timeout_ms} ms after the end of the input: {names}{more}"
        )
    if parts:
        raise Failure("; ".join(parts))


def _lines(count: int) -> str:
    return "1 line was" if count == 1 else f"{count} lines were"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


# ---- show -----------------------------------------------------------------------------------------------------------


class Picture(msgspec.Struct, frozen=True):
    """What is known of a job. Times in ms of the server's clock; body: the stream and the entry that hold it, `lost`
    when somebody has deleted that.
    """

    job_id: str
    state: str
    life: int
    session_id: str
    body: str
    body_entry: str | None
    entry: str
    attempts: int
    crashes: int
    not_started: int
    cancelling: bool
    now_ms: int
    submitted_ms: int | None
    started_ms: int | None
    ended_ms: int | None
    due_ms: int | None
    node: str | None
    boot: str | None
    token: int | None
    pool: str | None
    decision: str
    lease_until_ms: int | None
    reason: str
    detail: str
    binding: Binding | None
    content_type: str
    result: bytes | None


@jobs.command(short_help="Show what is known of a job.")
@click.argument("job_id")
@json_option
@server_options()
def show(redis_url: str | None, job_id: str, as_json: bool) -> None:
    """Show what is known of the job JOB_ID: its state, where its body is, its reservation, and what came of it.

    Known are jobs that were submitted or placed; one that has ended is forgotten when its retention ends.

    \b
    Example:
      scheduler jobs show 5f0c0a9e1b7d4c2f8e6a1b3d
    """
    arguments.text("JOB_ID", job_id)
    picture = run_async(_look(redis_url, settings_of_environment(), job_id))
    if as_json:
        fields = msgspec.to_builtins(picture, builtin_types=(bytes,))
        del fields["result"]
        print_json(fields | result_fields(picture.content_type, picture.result))
        return
    print_pairs(_in_words(picture))


async def _look(redis_url: str | None, settings: Settings, job_id: str) -> Picture:
    """Read a job's record and what belongs to it. Raises: Failure for an unknown job."""
    async with opened_store(redis_url, settings) as (store, _):
        reads = store.reads
        record = await reads.record(job_id)
        body: str
        if not record:
            raise Failure(
                f"nothing is known of job '{shown(job_id)}': it was never submitted, was written by XADD and is not "
                "placed yet, or its retention has ended"
            )
        outcome = await reads.outcome(job_id)
        (bound,) = await reads.bindings([record.get("session", "")])
        due_ms = await reads.due_ms(job_id)
        detail = await reads.detail(job_id) if outcome is None else outcome.detail
        (lease,) = await reads.leases(record.get("node", ""), [job_id])
        now_ms = await store.control.time_us() // 1000
        body, body_entry = body_of(record)
        # It may have moved meanwhile: then the record says something else now.
        if await _is_gone(reads, record) and await reads.record(job_id) == record:
            body = "lost"

    def number(name: str) -> int | None:
        return record_fields.number_of(record.get(name))

    return Picture(
        job_id=job_id,
        state=record.get("state", "none"),
        life=number("life") or 1,
        session_id=record.get("session", ""),
        body=body,
        body_entry=body_entry,
        entry=record.get("entry", ""),
        attempts=number("attempts") or 0,
        crashes=number("crashes") or 0,
        not_started=number("not_started") or 0,
        cancelling="cancel" in record,
        now_ms=now_ms,
        submitted_ms=number("submitted_ms"),
        started_ms=number("started_ms"),
        ended_ms=number("ended_ms"),
        due_ms=due_ms,
        node=record.get("node") or None,
        boot=record.get("boot") or None,
        token=number("token") or None,
        pool=record_fields.policy_of(record.get("policy")).pool or None,
        decision=record.get("decision", ""),
        lease_until_ms=lease.until_ms,
        reason=record.get("reason", ""),
        detail=detail,
        binding=parse(bound),
        content_type=record.get("content_type", ""),
        result=outcome.result if outcome else None,
    )


def body_of(record: dict[str, str]) -> tuple[Body, str | None]:
    """Where a job's body is, by the transition table, and the entry that holds it."""
    bodies = {row.body for row in TRANSITIONS if row.next_state == record.get("state")}
    body: Body = bodies.pop() if len(bodies) == 1 else "none"
    if record.get("dead_id"):
        body = "dead"
    field = {"intake": "entry", "inbox": "inbox_id", "parked": "parked_id", "dead": "dead_id", "none": ""}[body]
    return body, record.get(field)


async def _is_gone(reads: Reads, record: dict[str, str]) -> bool:
    """Whether the entry is not there that should hold the body of a job."""
    body, entry = body_of(record)
    if not entry or body == "none":
        return False
    partition, _, entry_id = entry.rpartition("/")
    streams = {"inbox": reads.keys.inbox(record.get("node", "")), "parked": reads.keys.parked, "dead": reads.keys.dead}
    stream = streams.get(body) or reads.keys.jobs(int(partition) if partition.isdigit() else 0)
    is_id = record_fields.entry_id_of(entry_id) is not None
    return not is_id or not await reads.entries(stream, entry_id, entry_id, 1)


def _in_words(picture: Picture) -> list[tuple[str, str]]:
    """Name and words of each thing that there is to say."""

    def at(at_ms: int | None) -> str:
        if at_ms is None:
            return ""
        past_ms = picture.now_ms - at_ms
        return f"{moment(at_ms)} ({f'{duration(past_ms)} ago' if past_ms >= 0 else f'in {duration(-past_ms)}'})"

    live = picture.state == "reserved"
    counts = f"{picture.attempts} failed"
    if picture.state not in TERMINAL:  # the rest is kept while the job goes on
        counts += f", {picture.crashes} lost with their node, {picture.not_started} not started"
    detail_name = "detail" if picture.state in TERMINAL else "last failure"
    rows = [
        ("job", picture.job_id),
        ("state", picture.state + (", being cancelled" if picture.cancelling else "")),
        ("body", _body_in_words(picture)),
        ("session", picture.session_id),
        ("bound to", _binding_in_words(picture.binding)),
        ("attempts", counts + (f"; life {picture.life}" if picture.life > 1 else "")),
        ("submitted", at(picture.submitted_ms)),
        ("due", at(picture.due_ms)),
        ("node" if live else "last node", picture.node or ""),
        ("placed because", in_words(picture.decision)),
        ("boot", picture.boot or ""),
        ("pool", picture.pool or ""),
        ("token", str(picture.token or "")),
        ("started", at(picture.started_ms)),
        ("lease until", at(picture.lease_until_ms) if live else ""),
        ("ended", at(picture.ended_ms)),
        ("reason", shown_or_whole(picture.reason)),
        (detail_name, shown_or_whole(picture.detail, DETAIL_SHOWN_MAX)),
        ("result", _result_in_words(picture)),
    ]
    return [(name, words) for name, words in rows if words]


def _body_in_words(picture: Picture) -> str:
    partition, _, entry_id = picture.entry.partition("/")
    return {
        "intake": f"intake of partition {partition}, entry {entry_id}",
        "inbox": f"inbox of node {picture.node}, entry {picture.body_entry}",
        "parked": f"parked, entry {picture.body_entry}",
        "dead": f"dead stream, entry {picture.body_entry}",
        "none": "none any more",
        "lost": f"lost: somebody deleted its entry {picture.body_entry}",
    }[picture.body]


def _binding_in_words(binding: Binding | None) -> str:
    if binding is None:
        return "nothing"
    pair = f", {binding.src_lang} to {binding.tgt_lang}" if binding.src_lang else ""
    return f"node {binding.node} of pool {binding.pool}{pair}"


def _result_in_words(picture: Picture) -> str:
    if not picture.content_type or picture.result is None or picture.result == picture.detail.encode():
        return ""  # of a job that failed, why it did is the result
    if picture.content_type == BYTES:
        return f"{len(picture.result)} bytes"
    return shown_or_whole(picture.result.decode(errors="replace"), RESULT_SHOWN_MAX)
