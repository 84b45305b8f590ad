"""Pure. Decides; never performs. Pools as they are configured: read, checked as one set, completed, written down, and
which pool a node belongs to.

A document holds only what was said of a pool; the rest comes from the settings when a snapshot is made. It has one form
everywhere, in a TOML file, in a command and in the stored configuration: a table with the fields of `PoolDocument`.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, get_args

import msgspec
from msgspec import UNSET, UnsetType

from scheduler.config import CANDIDATES_MAX, Settings
from scheduler.errors import InvalidInput
from scheduler.management.checks import Check, known_key, nearest, number, one_of, refuse, table, text, texts
from scheduler.protocol.documents import ANY_LANGUAGE, NodeBeat, check_pair
from scheduler.protocol.keys import check_name
from scheduler.protocol.snapshot import STRATEGIES, Match, Pool, Pressure, Strategy

DEFAULT_POOL: Final = "default"
STORED_PREFIX: Final = "pool:"
POOLS_MAX: Final = 1_000  # every dispatcher has them all in its snapshot
FALLBACK_MAX: Final = 16
NAMES_MAX: Final = 1_000  # tenants, pairs, features and labels of one pool
DESCRIPTION_LENGTH_MAX: Final = 500


class PoolDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of a pool. The fields are those of `model.Pool`; what was not said is UNSET."""

    description: str | UnsetType = UNSET
    strategy: Strategy | UnsetType = UNSET
    pressure: Pressure | UnsetType = UNSET
    fallback: tuple[str, ...] | UnsetType = UNSET
    tenants: tuple[str, ...] | UnsetType = UNSET
    candidates: int | UnsetType = UNSET
    session_concurrency: int | UnsetType = UNSET
    tenant_concurrency: int | UnsetType = UNSET
    start_ms: int | UnsetType = UNSET
    lease_ms: int | UnsetType = UNSET
    run_ms_max: int | UnsetType = UNSET
    attempts_max: int | UnsetType = UNSET
    crashes_max: int | UnsetType = UNSET
    backoff_ms: int | UnsetType = UNSET
    backoff_ms_max: int | UnsetType = UNSET
    match: Match | UnsetType = UNSET


Documents = Mapping[str, PoolDocument]
"""Pools by name; a name that is not there is a pool of which nothing was said."""


# ---- reading --------------------------------------------------------------------------------------------------------


def _pair(key: str, value: str) -> tuple[str, str]:
    source, colon, target = value.partition(":")
    if not colon or ":" in target:
        refuse(key, value, "source:target, such as en:zh")
    try:
        return check_pair(source, target)
    except InvalidInput as error:
        raise InvalidInput(f"{key} = {value!r}: {error}") from None


def _labels(key: str, value: object) -> dict[str, str]:
    labels = table(key, value, NAMES_MAX)
    return {
        text(f"a name in {key}", name, DESCRIPTION_LENGTH_MAX): text(f"{key}.{name}", each, DESCRIPTION_LENGTH_MAX)
        for name, each in labels.items()
    }


_names: Final = partial(texts, size_max=NAMES_MAX, check=check_name)
_MATCH: Final[Mapping[str, Check]] = {
    "labels": _labels,
    "pairs": partial(texts, size_max=NAMES_MAX, check=_pair),
    "features": _names,
    "tenants": _names,
}


def _match(key: str, value: object) -> Match:
    return Match(**_checked(key, table(key, value), _MATCH))


_FIELDS: Final[Mapping[str, Check]] = {
    "description": partial(text, length_max=DESCRIPTION_LENGTH_MAX),
    "strategy": partial(one_of, words=STRATEGIES),
    "pressure": partial(one_of, words=get_args(Pressure)),
    "fallback": partial(texts, size_max=FALLBACK_MAX, check=check_name),
    "tenants": _names,
    "candidates": partial(number, least=1, most=CANDIDATES_MAX),
    "session_concurrency": partial(number, least=0),
    "tenant_concurrency": partial(number, least=0),
    "start_ms": partial(number, least=1),
    "lease_ms": partial(number, least=1),
    "run_ms_max": partial(number, least=1),
    "attempts_max": partial(number, least=1),
    "crashes_max": partial(number, least=1),
    "backoff_ms": partial(number, least=1),
    "backoff_ms_max": partial(number, least=1),
    "match": _match,
}


def _checked(key: str, said: Mapping[str, object], checks: Mapping[str, Check]) -> dict[str, Any]:
    """Each value of a table by its check. Raises: InvalidInput, also for a key that has none."""
    return {name: checks[known_key(key, name, checks)](f"{key}.{name}", value) for name, value in said.items()}


def parse(name: str, said: object) -> PoolDocument:
    """A pool from its table. Raises: InvalidInput, naming key, value, what was expected and the nearest known key."""
    check_name("pool", name)
    key = f"pools.{name}"
    return PoolDocument(**_checked(key, table(key, said), _FIELDS))


def parse_pools(said: object) -> dict[str, PoolDocument]:
    """Pools from a table of tables. Raises: InvalidInput."""
    tables = table("pools", said, POOLS_MAX)
    if not tables:
        refuse("pools", tables, "at least one table [pools.<name>]")
    return {name: parse(name, each) for name, each in tables.items()}


def parse_file(said: Mapping[str, object]) -> dict[str, PoolDocument]:
    """Pools from what a TOML file says. Raises: InvalidInput."""
    for key in said:
        known_key("", key, ("pools",))
    return parse_pools(said.get("pools", {}))


def stored_field(name: str) -> str:
    """The field of the stored configuration that holds a pool."""
    return STORED_PREFIX + name


def read(config: Mapping[str, bytes]) -> tuple[dict[str, PoolDocument], list[str]]:
    """Pools from the stored configuration, and a sentence for each field that cannot be used."""
    documents = {}
    complaints = []
    for field, data in sorted(config.items()):
        if not field.startswith(STORED_PREFIX):
            continue
        name = field.removeprefix(STORED_PREFIX)
        try:
            documents[name] = decode(name, data)
        except InvalidInput as error:
            complaints.append(f"the stored configuration of pool {name!r} is ignored: {error}")
    return documents, complaints


def decode(name: str, data: bytes) -> PoolDocument:
    """A stored document. Keys that only a later version knows are passed over. Raises: InvalidInput."""
    try:
        said = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"no valid JSON document: {error}") from None
    known = {key: value for key, value in said.items() if key in _FIELDS} if isinstance(said, dict) else said
    return parse(name, known)


# ---- writing --------------------------------------------------------------------------------------------------------


def to_table(document: PoolDocument) -> dict[str, Any]:
    """What was said of a pool, as `parse` reads it; of `match` only what names something."""
    said = {field: getattr(document, field) for field in PoolDocument.__struct_fields__}
    return {field: _plain(value) for field, value in said.items() if value is not UNSET}


def _plain(value: object) -> object:
    if isinstance(value, Match):
        named = {field: getattr(value, field) for field in Match.__struct_fields__ if getattr(value, field)}
        return {field: _pairs(each) if field == "pairs" else _plain(each) for field, each in named.items()}
    return list(value) if isinstance(value, tuple) else value


def _pairs(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{source}:{target}" for source, target in pairs]


def encode(document: PoolDocument) -> bytes:
    """The reverse of `decode`."""
    return msgspec.json.encode(to_table(document))


def in_force(pool: Pool) -> dict[str, Any]:
    """Every field of a completed pool in the form of a document."""
    return {field: _plain(getattr(pool, field)) for field in PoolDocument.__struct_fields__}


def to_toml(documents: Documents, completed: Mapping[str, Pool] = {}) -> str:
    """A file from which `parse_file` reads the same. completed: adds what was not said, as comments."""
    parts = []
    for name, document in documents.items():
        said = to_table(document)
        match = said.pop("match", None)
        heading = f"pools.{_toml_key(name)}"
        parts.append([f"[{heading}]", *_toml_lines(said)])
        if name in completed:
            silent = {key: value for key, value in in_force(completed[name]).items() if key not in {*said, "match"}}
            parts[-1] += ["# not said, so as in the settings:", *(f"# {line}" for line in _toml_lines(silent))]
        if match is not None:
            parts.append([f"[{heading}.match]", *_toml_lines(match)])
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _toml_lines(said: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in said.items()]


def _toml(value: Any) -> str:
    """Texts are written as in JSON: without control characters, which no document has, the two agree."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_toml_key(key)} = {_toml(each)}' for key, each in value.items())} }}"
    return msgspec.json.encode(value).decode()


def _toml_key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _toml(name)


# ---- one set --------------------------------------------------------------------------------------------------------


def applied(stored: Documents, changes: Documents, live: Iterable[str], settings: Settings) -> dict[str, PoolDocument]:
    """The configuration with the changes, checked as one set.

    Args: stored, what is in force; changes, pools that replace those of their name; live, pools that live nodes name;
    settings, of the leader. Raises: InvalidInput. What is in force already is not held against the changes: nodes that
    named a fallback pool may be gone for a moment.
    """
    merged = {**stored, **changes}
    if len(merged) > POOLS_MAX:
        refuse("pools", f"{len(merged)} of them", f"at most {POOLS_MAX} pools in all")
    for name, document in changes.items():
        _check_leases(name, document, settings)
    known = {DEFAULT_POOL, *merged, *live, *(each for document in stored.values() for each in fallback_of(document))}
    for name, document in changes.items():
        for each in fallback_of(document):
            if each not in known:
                refuse(
                    f"pools.{name}.fallback", each,
                    f"a pool that is configured or that a node names; the nearest is {nearest(each, known)}",
                )  # fmt: skip
    _check_cycles(merged, changes)
    _check_tenants(merged, changes)
    return merged


def removed(stored: Documents, name: str) -> dict[str, PoolDocument]:
    """The configuration without a pool. Raises: InvalidInput while another pool falls back to it."""
    users = [other for other, document in sorted(stored.items()) if name in fallback_of(document)]
    if users and name != DEFAULT_POOL:  # which is there all the same
        raise InvalidInput(f"pool {name!r} cannot be removed: {', '.join(users[:10])} would fall back to nothing")
    return {other: document for other, document in stored.items() if other != name}


def fallback_of(document: PoolDocument) -> tuple[str, ...]:
    """The pools that one falls back to."""
    return () if document.fallback is UNSET else document.fallback


def _check_leases(name: str, document: PoolDocument, settings: Settings) -> None:
    """The same rule as that of the settings."""
    for field in ("start_ms", "lease_ms"):
        value = getattr(document, field)
        if value is not UNSET and value < 2 * settings.margin_ms:
            refuse(
                f"pools.{name}.{field}",
                value,
                f"at least {2 * settings.margin_ms}, twice margin_ms ({settings.margin_ms})",
            )


def _check_cycles(documents: Documents, changes: Documents) -> None:
    falls = {name: fallback_of(document) for name, document in sorted(documents.items())}
    try:
        graphlib.TopologicalSorter(falls).prepare()
    except graphlib.CycleError as error:
        cycle: Sequence[str] = error.args[1][:0:-1]
        start = cycle.index(min(cycle, key=lambda name: (name not in changes, name)))
        names = [*cycle[start:], *cycle[:start]]
        refuse(f"pools.{names[0]}.fallback", list(falls[names[0]]), f"no cycle: {' -> '.join([*names, names[0]])}")


def _check_tenants(documents: Documents, changes: Documents) -> None:
    claimed: dict[str, str] = {}
    for name in sorted(documents, key=lambda name: (name in changes, name)):
        document = documents[name]
        alone = () if document.match is UNSET else document.match.tenants
        for tenant in () if document.tenants is UNSET else document.tenants:
            key = f"pools.{name}.tenants"
            if claimed.setdefault(tenant, name) != name:
                refuse(key, tenant, f"a tenant that no other pool claims; pool {claimed[tenant]} does")
            if alone and tenant not in alone:
                refuse(key, tenant, "one of match.tenants, who alone may use this pool")


# ---- in force -------------------------------------------------------------------------------------------------------


def complete(name: str, document: PoolDocument, settings: Settings) -> Pool:
    """A pool with all that is in force; what was not said has the value of the settings."""
    silent = Pool(
        id=name,
        strategy=settings.strategy,
        candidates=settings.candidates_max,
        start_ms=settings.start_ms,
        lease_ms=settings.lease_ms,
        run_ms_max=settings.run_ms_max,
        attempts_max=settings.attempts_max,
        crashes_max=settings.crashes_max,
        backoff_ms=settings.backoff_ms,
        backoff_ms_max=settings.backoff_ms_max,
    )
    said = {field: getattr(document, field) for field in PoolDocument.__struct_fields__}
    return msgspec.structs.replace(silent, **{field: value for field, value in said.items() if value is not UNSET})


class Rule(NamedTuple):
    """Nodes that name no pool and fit `match` belong to `pool`."""

    pool: str
    match: Match


def node_rules(documents: Documents) -> list[Rule]:
    """The rules that take nodes, in the order in which they are tried: the one that names most first, then by name."""
    rules = [Rule(name, each.match) for name, each in sorted(documents.items()) if each.match is not UNSET]
    return sorted((rule for rule in rules if _named(rule.match)), key=lambda rule: -_named(rule.match))


def _named(match: Match) -> int:
    return len(match.labels) + len(match.pairs) + len(match.features)


def pool_of(beat: NodeBeat, rules: Iterable[Rule]) -> str:
    """The pool of a node: the one that it names, else that of the first rule which fits, else the default one."""
    return beat.pool or next((rule.pool for rule in rules if _fits(rule.match, beat)), DEFAULT_POOL)


def _fits(match: Match, beat: NodeBeat) -> bool:
    for name, value in match.labels.items():
        if beat.labels.get(name) != value:
            return False  # at once: a fleet of 10,000 nodes is asked for every rule when the configuration changes
    return set(match.features).issubset(beat.features) and all(_serves(beat, *pair) for pair in match.pairs)


def _serves(beat: NodeBeat, source: str, target: str) -> bool:
    if source == ANY_LANGUAGE:
        return any(each == target for _, each in beat.pairs)
    return (source, target) in beat.pairs
