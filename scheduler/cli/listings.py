"""`scheduler streams`, `reservations` and `nodes`: what there is, as tables or as JSON."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

import click
import msgspec

from scheduler import arguments
from scheduler.cli.tables import Column, add_row, age, new_table, print_parts, some
from scheduler.config import Settings
from scheduler.console.common import (
    duration,
    json_option,
    led_fields,
    opened_store,
    print_json,
    read_snapshot,
    server_options,
    settings_of_environment,
    unled,
)
from scheduler.console.failures import Failure
from scheduler.console.process import run_async
from scheduler.errors import InvalidInput
from scheduler.management.pools import node_rules, pool_of, read
from scheduler.protocol import messages, record_fields
from scheduler.protocol.documents import NodeBeat, boot_order, decode_beat
from scheduler.protocol.snapshot import Node
from scheduler.store.control import Led
from scheduler.store.store import Store

PAIRS_WIDTH_MAX: Final = 14
FEATURES_WIDTH_MAX: Final = 10
NODE_RESERVATIONS_MAX: Final = 10_000
HEARTBEATS_COUNT: Final = 1_000
HEARTBEATS_READ_MAX: Final = 10_000  # the newest: a second of the largest fleet


@click.group()
def streams() -> None:
    """What lies in the streams."""


@click.group()
def reservations() -> None:
    """Slots that are held."""


@click.group()
def nodes() -> None:
    """The fleet."""


# ---- streams --------------------------------------------------------------------------------------------------------


class Intake(msgspec.Struct, frozen=True):
    """A partition's intake. owner: None when nobody holds it; a lapsed lease holds until somebody takes it."""

    partition: int
    backlog: int
    oldest_ms: int | None
    owner: str | None
    epoch: int | None
    lease_left_ms: int | None


class Streams(msgspec.Struct, frozen=True):
    """All intakes, and the entries of the other streams and of the set of delayed jobs."""

    partitions: list[Intake]
    entries: dict[str, int]


_STREAM_WORDS: Final = {
    "heartbeats": "from nodes and roles",
    "results": "outcomes kept",
    "freed": "news for waiting jobs",
    "delayed": "not due yet",
    "parked": "bodies of delayed jobs",
    "dead": "given up",
}
_STREAMS_A_ROW: Final = 2  # so that all of it fits on 24 lines beside 16 partitions


@streams.command("ls", short_help="List what lies in the streams.")
@json_option
@server_options()
def streams_ls(redis_url: str | None, as_json: bool) -> None:
    """List each partition's intake with its backlog and owner, and how much lies in the other streams.

    Those are heartbeats of nodes, dispatchers and reapers, the feed of outcomes, news for jobs that wait, jobs that
    wait for their time and their bodies, and jobs that were given up, with reason and body.

    \b
    Examples:
      scheduler streams ls
      scheduler streams ls --json | jq '.entries.dead'
    """
    seen = run_async(_read_streams(redis_url, settings_of_environment()))
    if as_json:
        print_json(seen)
        return
    heads: tuple[Column, ...] = (
        ("partition", "right"), ("backlog", "right"), ("oldest", "right"), "owner", ("lease", "right"),
    )  # fmt: skip
    intakes = new_table(*heads, keep=("partition", "backlog"))
    for intake in seen.partitions:
        lease_ms = intake.lease_left_ms
        lease = "" if lease_ms is None else duration(lease_ms) if lease_ms > 0 else "lapsed"
        add_row(intakes, intake.partition, intake.backlog, age(intake.oldest_ms), intake.owner or "-", lease)
    columns: tuple[Column, ...] = (("stream", "left"), ("entries", "right"), "what")
    others = new_table(*columns * _STREAMS_A_ROW, keep=("stream", "entries"), has_header=False)
    cells = [cell for name, entries in seen.entries.items() for cell in (name, entries, _STREAM_WORDS[name])]
    for start in range(0, len(cells), len(columns) * _STREAMS_A_ROW):
        add_row(others, *cells[start : start + len(columns) * _STREAMS_A_ROW])
    print_parts(intakes, others)


async def _read_streams(redis_url: str | None, settings: Settings) -> Streams:
    async with opened_store(redis_url, settings) as (store, layout):
        reads, keys = store.reads, store.cell.keys
        owners = await reads.owners()
        backlogs = await reads.backlogs(range(layout.partitions))
        names = {
            "heartbeats": store.control.keys.heartbeats,
            "results": keys.results,
            "freed": keys.freed,
            "parked": keys.parked,
            "dead": keys.dead,
        }
        lengths = dict(zip(names, await reads.lengths(list(names.values())), strict=True))
        lengths["delayed"] = await reads.delayed()
        now_ms = await store.control.time_us() // 1000
    intakes = []
    for partition, (backlog, oldest_id) in enumerate(backlogs):
        epoch, owner, until_ms = owners.get(partition, (None, "-", 0))
        held = owner != "-"
        intakes.append(
            Intake(
                partition=partition,
                backlog=backlog,
                oldest_ms=max(0, now_ms - int(oldest_id.partition("-")[0])) if oldest_id else None,
                owner=owner if held else None,
                epoch=epoch,
                lease_left_ms=until_ms - now_ms if held else None,
            )
        )
    return Streams(partitions=intakes, entries={name: lengths[name] for name in _STREAM_WORDS})


# ---- reservations ---------------------------------------------------------------------------------------------------


class HeldSlot(msgspec.Struct, frozen=True):
    """One reservation. age_ms: since the slot was taken; lease_left_ms: below 0 when the lease has ended."""

    job_id: str
    node: str
    token: int
    session_id: str
    age_ms: int
    lease_left_ms: int


@reservations.command("ls", short_help="List the slots that are held.")
@click.option("--node", "node_id", metavar="NAME", help="Only those of this node.")
@json_option
@server_options()
def reservations_ls(redis_url: str | None, node_id: str | None, as_json: bool) -> None:
    """List the slots that are held: by which job, on which node, and for how long the lease still lasts.

    \b
    Example:
      scheduler reservations ls --node n1
    """
    if node_id is not None:
        arguments.text("--node", node_id)
    held = run_async(_read_reservations(redis_url, settings_of_environment(), node_id))
    if as_json:
        print_json(held)
        return
    heads: tuple[Column, ...] = (
        ("job", "left"), "node", "session", ("token", "right"), ("age", "right"), ("lease", "right"),
    )  # fmt: skip
    table = new_table(*heads, keep=("job", "lease"))
    for each in held:
        lease = duration(each.lease_left_ms) if each.lease_left_ms > 0 else "lapsed"
        add_row(table, each.job_id, each.node, each.session_id, each.token, duration(each.age_ms), lease)
    print_parts(table if held else "no slot is held")


async def _read_reservations(redis_url: str | None, settings: Settings, node_id: str | None) -> list[HeldSlot]:
    async with opened_store(redis_url, settings) as (store, _):
        reads = store.reads
        known = sorted(await reads.capacities())
        if node_id is not None and node_id not in known:
            names = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise Failure(f"no node {node_id!r}; there is {names or 'none'}")
        asked = known if node_id is None else [node_id]
        slots = await reads.held(asked, NODE_RESERVATIONS_MAX)
        records = await reads.records([job_id for job_id, _, _ in slots], ("state", "holder", "session"))
        now_us = await store.control.time_us()
    return [
        HeldSlot(
            job_id=job_id,
            node=node,
            token=held.token,
            session_id=session or "",
            # A token is the server's time in microseconds, save where several were given out in one.
            age_ms=max(0, now_us - held.token) // 1000,
            lease_left_ms=until_ms - now_us // 1000,
        )
        for (job_id, node, until_ms), (state, holder, session) in zip(slots, records, strict=True)
        # It may have ended between the two reads.
        if state == "reserved" and (held := record_fields.parse_holder(holder)) is not None
    ]


# ---- nodes ----------------------------------------------------------------------------------------------------------


class Member(msgspec.Struct, frozen=True):
    """A node.

    state: ready, or why it takes no work. What it serves then is what its last heartbeat said, if that is kept.
    pool: None if it is not.
    """

    id: str
    pool: str | None
    slots: int
    used: int
    state: str
    pairs: tuple[tuple[str, str], ...]
    features: tuple[str, ...]
    labels: dict[str, str]
    version: str
    boot: str
    boot_age_ms: int


_NODE_COLUMNS: Final[tuple[Column, ...]] = (
    "node", "pool", ("used", "right"), ("slots", "right"), ("state", "left"), ("pairs", "left"), ("features", "left"),
    ("age", "right"),
)  # fmt: skip


@nodes.command("ls", short_help="List the nodes.")
@json_option
@server_options()
def nodes_ls(redis_url: str | None, as_json: bool) -> None:
    """List the nodes with their slots, and why one takes no work.

    This is what the leading manager says. When none leads, a line tells how old it is, in JSON `led` and
    `leader_silence_ms`.

    \b
    Examples:
      scheduler nodes ls
      scheduler nodes ls --json | jq '.[] | select(.state != "ready")'
    """
    fleet, led = run_async(_read_nodes(redis_url, settings_of_environment()))
    if as_json:
        print_json([msgspec.to_builtins(each) | led_fields(led) for each in fleet])
        return
    table = new_table(*_NODE_COLUMNS, keep=("node", "state"))
    for each in fleet:
        pairs = some([f"{source}:{target}" for source, target in each.pairs], PAIRS_WIDTH_MAX)
        words = (each.state, pairs, some(each.features, FEATURES_WIDTH_MAX), age(each.boot_age_ms))
        add_row(table, each.id, each.pool or "-", each.used, each.slots, *words)
    print_parts(table if fleet else "no node is known", *[line for line in unled(led) if fleet])


async def _read_nodes(redis_url: str | None, settings: Settings) -> tuple[list[Member], Led]:
    async with opened_store(redis_url, settings) as (store, _):
        led = await store.control.led()
        snapshot = await read_snapshot(store)
        capacities = await store.reads.capacities()
        names = sorted(capacities)
        used = await store.reads.used(names)
        now_us = await store.control.time_us()
        boots = {name: item.boot for name, item in capacities.items()}
        serving = {node.id: node for node in snapshot.nodes if boots.get(node.id) == node.boot}
        serving |= await _last_heard(store, {name: boots[name] for name in names if name not in serving})
    return [
        _member(capacities[name], serving.get(name), count, now_us) for name, count in zip(names, used, strict=True)
    ], led


async def _last_heard(store: Store, boots: Mapping[str, str]) -> dict[str, Node]:
    """What nodes with these boots serve, by the newest heartbeats, as far as those tell."""
    found: dict[str, Node] = {}
    rules = node_rules(read(await store.control.read_config())[0]) if boots else []
    before = "+"
    for _ in range(HEARTBEATS_READ_MAX // HEARTBEATS_COUNT):
        if len(found) == len(boots):
            break
        entries = await store.reads.newest(store.control.keys.heartbeats, before, HEARTBEATS_COUNT)
        for _, fields in entries:
            with contextlib.suppress(InvalidInput):
                beat = decode_beat(fields.get(b"node", b""))
                if isinstance(beat, NodeBeat) and boots.get(beat.node) == beat.boot and beat.node not in found:
                    found[beat.node] = _node(beat, pool_of(beat, rules))
        if len(entries) < HEARTBEATS_COUNT:
            break
        before = f"({entries[-1][0]}"
    return found


def _node(beat: NodeBeat, pool: str) -> Node:
    return Node(
        beat.node, beat.boot, beat.capacity, pool, beat.pairs, beat.features, beat.labels, beat.version,
        since_ms=beat.since_ms,
    )  # fmt: skip


def _member(item: messages.CapacityItem, node: Node | None, used: int, now_us: int) -> Member:
    since_ms = (node.since_ms if node else 0) or boot_order(item.boot) // 1000
    return Member(
        id=item.node,
        pool=node.pool if node else None,
        slots=item.slots,
        used=used,
        state=item.reason,
        pairs=node.pairs if node else (),
        features=node.features if node else (),
        labels=node.labels if node else {},
        version=node.version if node else "",
        boot=item.boot,
        boot_age_ms=max(0, now_us // 1000 - since_ms),
    )
