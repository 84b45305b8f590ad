"""Every number that can be set: read and validated once, then frozen.

The defaults are the table of docs/SETTINGS.md. A setting comes from the environment as `SCHED_<NAME>`, for example
`SCHED_LEASE_MS=20000`. Pool policies (lease, attempts, strategy) are the defaults of pools that say nothing of their
own.

Others put variables with our prefix into the environment too: Kubernetes does for each service called `sched` or
`sched-<something>`. These, and variables that are empty, are no settings; everything else is refused, for it may be a
misspelt one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from scheduler.errors import InvalidConfig, InvalidInput, UnknownKey
from scheduler.protocol.keys import check_name
from scheduler.protocol.snapshot import STRATEGIES, Strategy
from scheduler.texts import choice

PREFIX: Final = "SCHED_"
MARGIN_MS_MIN: Final = 20
FEED_MIN: Final = 1_000  # entries of a stream that many write and read: the scripts cut none below it
RESULT_BYTES_MAX: Final = 1_048_576  # that the scripts take
CANDIDATES_MAX: Final = 16  # of a try: each costs two keys of a script call
NUMBER_MAX: Final = 10**12  # 31 years in milliseconds; scripts hold it exactly
_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")
SERVER_URL: Final = "SCHED_REDIS_URL"
NOT_SETTINGS: Final = frozenset({SERVER_URL, "SCHED_TEST_DATA", "SCHED_TEST_SERVERS"})
_SERVICE_LINK: Final = re.compile(
    r"(?P<service>SCHED(_[A-Z0-9_]+?)??)_"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://\S+")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. Units stand in the names; sizes in bytes, times in milliseconds, the rest are counts."""

    namespace: str = "sched"
    partitions: int = 16
    cells: int = 1

    # Nodes and leases.
    heartbeat_ms: int = 1_000
    silence_ms: int = 5_000  # a node that is not heard for so long is dead
    start_ms: int = 5_000  # the first lease: a job must be started within it
    lease_ms: int = 15_000
    margin_ms: int = 1_000  # a handler stops this long before its lease ends
    run_ms_max: int = 3_600_000

    # Ownership and leadership.
    partition_lease_ms: int = 6_000
    leader_lease_ms: int = 6_000
    publish_ms: int = 200  # the least time between two snapshots

    # Retries.
    attempts_max: int = 3
    crashes_max: int = 5
    not_started_max: int = 5
    backoff_ms: int = 1_000  # doubles with each attempt
    backoff_ms_max: int = 60_000

    # Retention.
    retention_ms: int = 3_600_000
    dead_retention_ms: int = 7 * 24 * 3_600_000
    session_ttl_ms: int = 1_800_000

    # Bounds: each keeps one kind of memory from growing without end.
    backlog_max: int = 100_000  # entries of a partition that submit accepts
    payload_bytes_max: int = 262_144
    document_bytes_max: int = 16_384
    other_bytes_max: int = 16_384  # of an intake entry beside document and payload, with the names
    result_bytes_max: int = 1_048_576
    result_inline_bytes_max: int = 4_096  # longer results are fetched by job id, not copied into the feeds
    batch_max: int = 128  # jobs of one script call: bounds how long the server is busy with it
    candidates_max: int = 4  # nodes that one try names
    read_ahead_max: int = 512  # intake entries in hand that are not placed yet
    waiting_max: int = 100_000  # jobs that wait in one dispatcher; others are scanned past, and read again later
    waiting_class_max: int = 10_000  # the same for those that wait for the same class, limit or session
    sessions_max: int = 100_000  # bindings that one dispatcher remembers
    heartbeats_max: int = 20_000
    results_max: int = 100_000
    freed_max: int = 1_000
    deltas_max: int = 1_000
    answers_max: int = 1_000

    # Placement.
    strategy: Strategy = "affinity"
    no_node_grace_ms: int = 60_000  # how long a job that no node serves waits for a fleet that starts, or starts again


DEFAULTS: Final = Settings()


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from `SCHED_*` variables over the defaults.

    Raises: InvalidConfig, naming the key, its value and what was expected; for a key that there is not the nearest one,
    and no value: it may be a password.
    """
    types = {field.name: field.type for field in msgspec.structs.fields(Settings)}
    chosen: dict[str, object] = {}
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable in NOT_SETTINGS or not text.strip():
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in types:
            if _is_service_link(variable, environment):
                continue
            known = [SERVER_URL, *(PREFIX + each.upper() for each in types)]
            nearest = difflib.get_close_matches(variable, known, n=1, cutoff=0.0)[0]
            raise UnknownKey(variable, f"a known setting; the nearest is {nearest}")
        if types[name] is int:
            if not _WHOLE_NUMBER.fullmatch(text.strip()):
                raise InvalidConfig(variable, text, "a whole number")
            chosen[name] = int(text)
        else:
            chosen[name] = text.strip()
    return check_settings(msgspec.structs.replace(DEFAULTS, **chosen), prefix=PREFIX)


def _is_service_link(variable: str, environment: Mapping[str, str]) -> bool:
    """Whether Kubernetes has put a variable there, and not somebody who means a setting, such as SCHED_PORT=6379.

    It puts all variables of a service there, or none; and a host is never meant as a setting.
    """
    link = _SERVICE_LINK.fullmatch(variable)
    return link is not None and (
        f"{link['service']}_SERVICE_HOST" in environment or _ADDRESS.fullmatch(environment[variable]) is not None
    )


def check_settings(settings: Settings, prefix: str = "") -> Settings:
    """Return the settings if they can work, each alone and beside the others. Raises: InvalidConfig."""
    if not isinstance(settings, Settings):
        raise InvalidInput(f"settings are of type {type(settings).__name__}: expected Settings, of scheduler.config")

    def refuse(name: str, expected: str) -> None:
        raise InvalidConfig(prefix + name.upper() if prefix else name, getattr(settings, name), expected)

    def need_twice(name: str, half: str) -> None:
        """Who is told is what was set: the longer time, unless the other one is above its default."""
        whole_ms, half_ms = getattr(settings, name), getattr(settings, half)
        if whole_ms < 2 * half_ms and half_ms > getattr(DEFAULTS, half):
            refuse(half, f"at most half of {name} ({whole_ms})")
        if whole_ms < 2 * half_ms:
            refuse(name, f"at least twice {half} ({half_ms})")

    check_name(f"{prefix}NAMESPACE" if prefix else "namespace", settings.namespace)
    for field in msgspec.structs.fields(Settings):
        value = getattr(settings, field.name)
        if field.type is int and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            refuse(field.name, "a whole number above 0")
        if field.type is int and value > NUMBER_MAX:
            refuse(field.name, f"at most {NUMBER_MAX}")
    if settings.strategy not in STRATEGIES:
        refuse("strategy", choice(STRATEGIES))
    if settings.cells != 1:
        refuse("cells", "1: there is one cell so far")
    if settings.partitions > 4096:
        refuse("partitions", "at most 4096")
    if settings.batch_max > 128:
        refuse("batch_max", "at most 128 jobs of one script call")
    if settings.candidates_max > CANDIDATES_MAX:
        refuse("candidates_max", f"at most {CANDIDATES_MAX} nodes, each of which costs two keys of a script call")
    for name in ("heartbeats_max", "results_max", "freed_max"):
        if getattr(settings, name) < FEED_MIN:
            refuse(name, f"at least {FEED_MIN}, or some would miss what others tell")
    if settings.result_bytes_max > RESULT_BYTES_MAX:
        refuse("result_bytes_max", f"at most {RESULT_BYTES_MAX}, for all results are kept in memory")
    if settings.sessions_max < 2 * settings.batch_max:
        refuse("sessions_max", f"at least {2 * settings.batch_max}, the sessions of two calls of batch_max jobs")
    need_twice("start_ms", "margin_ms")
    need_twice("lease_ms", "margin_ms")
    need_twice("silence_ms", "heartbeat_ms")
    if settings.margin_ms < MARGIN_MS_MIN:
        refuse("margin_ms", f"at least {MARGIN_MS_MIN}, for a node looks at its leases twice in that time")
    return settings
