"""`scheduler pools`: configure pools from a TOML file, see what is in force, and remove what was configured."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Final, TypeVar

import click
import msgspec

from scheduler import arguments
from scheduler.cli.tables import Column, add_row, new_table, print_pairs, print_parts, some
from scheduler.config import Settings
from scheduler.console import streams, terminal
from scheduler.console.common import (
    json_option,
    led_fields,
    milliseconds,
    opened_store,
    print_json,
    read_snapshot,
    server_options,
    settings_of_environment,
    shown,
    unled,
)
from scheduler.console.failures import Failure, WrongUsage
from scheduler.console.process import run_async
from scheduler.errors import InvalidInput
from scheduler.management import pools as documents
from scheduler.management.checks import nearest
from scheduler.management.commands import (
    Accepted,
    Answer,
    ApplyPools,
    RemovePool,
    Wanted,
    decode_answer,
    encode_command,
)
from scheduler.management.pools import DEFAULT_POOL, PoolDocument
from scheduler.protocol.snapshot import STRATEGIES, Node, Pool
from scheduler.store.control import Led
from scheduler.store.store import Store

logger = logging.getLogger("scheduler")

_Command = TypeVar("_Command", bound=Callable[..., Any])

FILE_BYTES_MAX: Final = 1_048_576
ANSWER_MS_MAX: Final = 10_000  # longer than a leader's lease, after which another manager takes over
FALLBACK_WIDTH_MAX: Final = 16
TENANTS_WIDTH_MAX: Final = 16
NODES_WIDTH_MAX: Final = 40


@click.group()
def pools() -> None:
    """Configure pools, and see what is in force."""


def timeout_option(command: _Command) -> _Command:
    """`--timeout-ms`."""
    return click.option(
        "--timeout-ms",
        type=milliseconds(1),
        default=ANSWER_MS_MAX,
        show_default=True,
        help="How long to wait for the manager's answer.",
    )(command)


# ---- apply ----------------------------------------------------------------------------------------------------------


_STRATEGY_WIDTH: Final = max(map(len, STRATEGIES))
_STRATEGIES: Final = "\n".join(
    ["\b", "Strategies, by which a session gets a node of its pool:"]
    + [f"  {name:{_STRATEGY_WIDTH}}  {sentence}" for name, sentence in STRATEGIES.items()]
)


@pools.command("apply", short_help="Configure the pools of a TOML file.", epilog=_STRATEGIES)
@click.argument("file", type=click.File("rb"))
@timeout_option
@server_options()
def pools_apply(redis_url: str | None, file: BinaryIO, timeout_ms: int) -> None:
    """Configure the pools of FILE, or of standard input for `-`: all of them, or none if something is wrong.

    Each replaces what was configured of the pool before; pools that the file does not name stay. What a pool does not
    say has the value of the manager's settings. Prints each pool: new, changed or unchanged. They are in force then.

    \b
    Example of a file:
      [pools.gold]
      strategy = "spread"
      fallback = ["default"]
      tenants = ["acme"]
      session_concurrency = 1
      [pools.gold.match]
      labels = { zone = "eu" }

    \b
    Example:
      scheduler pools apply pools.toml
    """
    settings = settings_of_environment()
    changes = _read_file(file)
    before = run_async(_apply(redis_url, settings, file.name, changes, timeout_ms))
    for name, document in changes.items():
        terminal.write_line(
            f"{name}: {'new' if name not in before else 'changed' if before[name] != document else 'unchanged'}"
        )


def _read_file(file: BinaryIO) -> dict[str, PoolDocument]:
    """The pools of a file. Raises: WrongUsage."""
    try:
        data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise InvalidInput(f"it is longer than {FILE_BYTES_MAX} bytes")
        return documents.parse_file(tomllib.loads(data.decode()))
    except OSError as error:
        raise streams.unread(file, error) from error
    except (InvalidInput, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, a number without end
        raise WrongUsage(f"{file.name}: {error}") from None


async def _apply(
    redis_url: str | None, settings: Settings, file_name: str, changes: dict[str, PoolDocument], timeout_ms: int
) -> dict[str, PoolDocument]:
    """Check, ask, and return what was configured before. Raises: WrongUsage when it is refused."""
    async with opened_store(redis_url, settings) as (store, _):
        before = await _configured(store)
        snapshot = await read_snapshot(store)
        live = {node.pool for node in snapshot.nodes if not node.assigned}
        try:
            documents.applied(before, changes, live, settings)
        except InvalidInput as error:
            raise WrongUsage(f"{file_name}: {error}") from None
        answer = await _ask(store, ApplyPools(changes), timeout_ms)
    if not isinstance(answer, Accepted):
        raise WrongUsage(f"{file_name}: refused by the manager: {shown(answer.why, 1_000)}")
    return before


async def _configured(store: Store) -> dict[str, PoolDocument]:
    """What is stored of pools; what cannot be used of it is logged."""
    found, complaints = documents.read(await store.control.read_config())
    for complaint in complaints:
        logger.warning("%s", shown(complaint))
    return found


async def _ask(store: Store, wanted: Wanted, timeout_ms: int) -> Answer:
    """Raises: Failure when nobody answers, or not in a way that is understood."""
    data = await store.control.send_command(encode_command(wanted), timeout_ms)
    if data is None:
        raise Failure(
            f"no manager answered within {timeout_ms} ms: is one running? The command was taken back; a manager that "
            f"had read it already may still do it"
        )
    try:
        return decode_answer(data)
    except InvalidInput as error:
        raise Failure(f"the manager's answer: {error}") from None


# ---- rm -------------------------------------------------------------------------------------------------------------


@pools.command("rm", short_help="Remove what was configured of a pool.")
@click.argument("name")
@timeout_option
@server_options()
def pools_rm(redis_url: str | None, name: str, timeout_ms: int) -> None:
    """Remove what was configured of the pool NAME. Its nodes move to where the rules of the other pools put them.

    It is refused while another pool falls back to it. Nodes that name the pool by --pool stay in it, with the policy of
    the manager's settings.

    \b
    Example:
      scheduler pools rm gold
    """
    arguments.text("NAME", name)
    answer = run_async(_remove(redis_url, settings_of_environment(), name, timeout_ms))
    terminal.write_line(f"{name}: removed")
    if answer.named_by:
        nodes = "1 node that names it stays" if answer.named_by == 1 else f"{answer.named_by} nodes that name it stay"
        terminal.write_line(f"{nodes} in it, with the policy of the settings")
    elif name == DEFAULT_POOL:
        terminal.write_line("it goes on with the policy of the settings")


async def _remove(redis_url: str | None, settings: Settings, name: str, timeout_ms: int) -> Accepted:
    """Raises: Failure when it is not configured, or is refused."""
    async with opened_store(redis_url, settings) as (store, _):
        configured = await _configured(store)
        if name not in configured and documents.stored_field(name) not in await store.control.read_config():
            near = f"; the nearest that is one is {nearest(name, configured)}" if configured else ""
            raise Failure(f"pool '{shown(name)}' is not configured{near}")
        try:
            documents.removed(configured, name)
        except InvalidInput as error:
            raise Failure(str(error)) from None
        answer = await _ask(store, RemovePool(name), timeout_ms)
    if not isinstance(answer, Accepted):
        raise Failure(f"refused by the manager: {shown(answer.why, 1_000)}")
    return answer


# ---- ls and show ----------------------------------------------------------------------------------------------------


class InForce(msgspec.Struct, frozen=True):
    """A pool of the snapshot. said: None when nobody configured it; nodes: that take work; used: slots of them."""

    pool: Pool
    said: PoolDocument | None
    nodes: tuple[str, ...]
    slots: int
    used: int


_COLUMNS: Final[tuple[Column, ...]] = (
    "pool", ("strategy", "left"), ("nodes", "right"), ("slots", "right"), ("used", "right"), ("fallback", "left"),
    ("tenants", "left"),
)  # fmt: skip


@pools.command("ls", short_help="List the pools.")
@json_option
@server_options()
def pools_ls(redis_url: str | None, as_json: bool) -> None:
    """List the pools that are in force: configured ones, those that nodes name, and `default`.

    Nodes are those that take work, as the leading manager says; when none leads, a line tells since when, in JSON `led`
    and `leader_silence_ms`. Tenants are those whose sessions prefer the pool; `only` says that it serves nobody else.

    \b
    Example:
      scheduler pools ls
      scheduler pools ls --json | jq '.[] | select(.configured) | .id'
    """
    found, led = run_async(_read(redis_url, settings_of_environment()))
    if as_json:
        print_json([_fields(each) | led_fields(led) for each in found.values()])
        return
    table = new_table(*_COLUMNS, keep=("pool", "nodes"))
    for name, each in found.items():
        pool = each.pool
        counts = (len(each.nodes), each.slots, each.used)
        add_row(table, name, pool.strategy, *counts, some(pool.fallback, FALLBACK_WIDTH_MAX) or "-", _tenants(pool))
    nothing = "no pool is known: no manager has published a snapshot yet"
    print_parts(table if found else nothing, *[line for line in unled(led) if found])


def _tenants(pool: Pool) -> str:
    alone = pool.match.tenants
    return f"only {some(alone, TENANTS_WIDTH_MAX - 5)}" if alone else some(pool.tenants, TENANTS_WIDTH_MAX) or "-"


@pools.command("show", short_help="Show what is in force of a pool.")
@click.argument("name")
@click.option("--toml", "as_toml", is_flag=True, help="Print a file for `apply`, with what was not said as comments.")
@json_option
@server_options()
def pools_show(redis_url: str | None, name: str, as_toml: bool, as_json: bool) -> None:
    """Show everything that is in force of the pool NAME. What was not configured is marked `default`.

    \b
    Example:
      scheduler pools show gold
      scheduler pools show gold --toml > gold.toml
    """
    if as_toml and as_json:
        raise click.UsageError("--toml and --json: only one of them.")
    found, _ = run_async(_read(redis_url, settings_of_environment()))
    if name not in found:
        near = f"; the nearest is {nearest(name, found)}" if found else ""
        raise Failure(f"no pool '{shown(name)}'{near}")
    each = found[name]
    if as_json:
        print_json(_fields(each))
    elif as_toml:
        terminal.write_line(documents.to_toml({name: each.said or PoolDocument()}, {name: each.pool}).rstrip("\n"))
    else:
        _print_words(each)


async def _read(redis_url: str | None, settings: Settings) -> tuple[dict[str, InForce], Led]:
    """Every pool of the published snapshot, and whether that is kept up."""
    async with opened_store(redis_url, settings) as (store, _):
        led = await store.control.led()
        configured = await _configured(store)
        snapshot = await read_snapshot(store)
        names = [node.id for node in snapshot.nodes]
        used = dict(zip(names, await store.reads.used(names), strict=True))
    members: dict[str, list[Node]] = {pool.id: [] for pool in snapshot.pools}
    for node in snapshot.nodes:
        members.setdefault(node.pool, []).append(node)
    return {
        pool.id: InForce(
            pool=pool,
            said=configured.get(pool.id),
            nodes=tuple(node.id for node in members[pool.id]),
            slots=sum(node.slots for node in members[pool.id]),
            used=sum(used[node.id] for node in members[pool.id]),
        )
        for pool in snapshot.pools
    }, led


def _fields(each: InForce) -> dict[str, Any]:
    """A pool for programs. said: the fields that were configured."""
    said = {} if each.said is None else documents.to_table(each.said)
    counts = {"nodes": each.nodes, "slots": each.slots, "used": each.used}
    head = {"id": each.pool.id, "configured": each.said is not None, "said": sorted(said)}
    return head | documents.in_force(each.pool) | counts


def _print_words(each: InForce) -> None:
    said: Mapping[str, Any] = {} if each.said is None else documents.to_table(each.said)
    by = "" if each.said is not None else ", which nobody configured"
    names = f": {some(each.nodes, NODES_WIDTH_MAX)}" if each.nodes else ""
    rows = [
        ("pool", each.pool.id + by),
        ("nodes", f"{len(each.nodes)} with {each.slots} slots, {each.used} used{names}"),
    ]
    fields = documents.in_force(each.pool)
    match = fields.pop("match")
    marked = [(field, _in_words(value), "" if field in said else "default") for field, value in fields.items()]
    print_pairs([*rows, *marked, *((f"match.{field}", _in_words(value)) for field, value in match.items())])


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name}={each}" for name, each in value.items()]
    return (" ".join(value) if isinstance(value, list) else str(value)) or "none"
