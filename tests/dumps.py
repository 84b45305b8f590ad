"""Comparing: everything that lies in a server, and what the transition table says of a job."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from scheduler.protocol import keys
from scheduler.protocol.lifecycle import TRANSITIONS, Transition
from scheduler.store.store import Store
from tests.seeds import JOB

Dump = dict[str, tuple[str, Any, bool]]


def transitions(script: str) -> tuple[Transition, ...]:
    """The rows of the transition table that a script performs."""
    return tuple(row for row in TRANSITIONS if row.script == script)


async def standing(store: Store, job_id: str = JOB) -> tuple[str, list[str]]:
    """The state of a job and every place of its body: what a row of the transition table says of it."""
    record = await store.reads.record(job_id)
    return record.get("state", "none"), await whereabouts(store, job_id)


def stands(row: Transition) -> tuple[str, list[str]]:
    """What `standing` is after a row of the transition table."""
    return row.next_state, [] if row.body == "none" else [row.body]


async def whereabouts(store: Store, job_id: str = JOB) -> list[str]:
    """Every place where a body of the job lies (intake, inbox, parked, dead), one word a copy."""
    return sorted(place for place, holder in await bodies(store) if holder == job_id)


async def bodies(store: Store) -> list[tuple[str, str]]:
    """(place, job_id) of every stream entry that holds a body."""
    k = store.cell.keys
    intake, inbox = k.jobs(0).removesuffix("0"), k.inbox("")
    places: dict[str, str] = {k.parked: "parked", k.dead: "dead"}
    found: list[tuple[str, str]] = []
    for key, (kind, value, _) in (await dump(store)).items():
        place = "intake" if key.startswith(intake) else "inbox" if key.startswith(inbox) else places.get(key)
        if kind == "stream" and place:
            partition = key.removeprefix(intake)
            found += [
                (place, job_id_of(fields, partition, entry_id))
                for entry_id, fields in value["entries"].items()
                if "control" not in fields
            ]
    return found


def job_id_of(fields: dict[str, str], partition: str, entry_id: str) -> str:
    """The field wins over the document; without either the entry names the job."""
    if "job_id" in fields:
        return fields["job_id"]
    try:
        named = str(msgspec.json.decode(fields["job"]).get("job_id", ""))
    except (KeyError, AttributeError, msgspec.DecodeError):
        named = ""
    return named or keys.generated_job_id(0, int(partition), entry_id)


@contextlib.asynccontextmanager
async def unchanged(store: Store) -> AsyncIterator[None]:
    """Whatever happens inside leaves everything in the server as it was."""
    before = await dump(store)
    yield
    assert await dump(store) == before


async def dump(store: Store) -> Dump:
    """Everything in the server: key -> (type, value, whether it expires); streams with counters, groups."""
    client = store.connection.commands
    names = sorted([name async for name in client.scan_iter(count=1_000)])
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.type(name)
    kinds = [kind.decode() for kind in await pipeline.execute()]
    for name, kind in zip(names, kinds, strict=True):
        pipeline.pttl(name)
        if kind == "string":
            pipeline.get(name)
        elif kind == "hash":
            pipeline.hgetall(name)
        elif kind == "set":
            pipeline.smembers(name)
        elif kind == "zset":
            pipeline.zrange(name, 0, -1, withscores=True)
        else:
            pipeline.execute_command("XINFO", "STREAM", name, "FULL", "COUNT", "0")
    rows = await pipeline.execute()
    return {
        name.decode(): (kind, _plain(value) if kind != "stream" else _stream(value), rows[2 * i] >= 0)
        for i, (name, kind, value) in enumerate(zip(names, kinds, rows[1::2], strict=True))
    }


def _plain(value: Any) -> Any:
    """Bytes as text, sets as sorted lists, so that a difference can be read."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, dict):
        return {_plain(field): _plain(each) for field, each in value.items()}
    if isinstance(value, set):
        return sorted(_plain(each) for each in value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _stream(value: Any) -> dict[str, Any]:
    """Entries, the counters that tell of a write when its entry is gone, and what each group has pending."""
    told = _pairs(value)
    groups = [_pairs(group) for group in told["groups"]]
    return {
        "entries": {entry_id: _pairs(fields) for entry_id, fields in told["entries"]},
        "last": told["last-generated-id"],
        "added": told["entries-added"],
        "groups": {
            group["name"]: (group["last-delivered-id"], [pending[0] for pending in group["pending"]])
            for group in groups
        },
    }


def _pairs(flat: Any) -> dict[str, Any]:
    plain = _plain(flat)
    return {plain[i]: plain[i + 1] for i in range(0, len(plain), 2)}
