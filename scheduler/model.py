"""What travels and what is stored: records, documents, answers, and the one transition table.

The only codecs of the project. A document is JSON or msgpack, told apart by its first byte; unknown fields are
tolerated, so that an older reader survives a newer writer. Every struct is frozen.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeVar

import msgspec

from scheduler import keys
from scheduler.errors import IllegalTransition, InvalidInput

State = Literal["none", "queued", "reserved", "delayed", "completed", "failed", "dead", "cancelled"]
Body = Literal["intake", "inbox", "parked", "dead", "none"]
Verdict = Literal["finish", "retry", "expire", "reboot", "give_back", "dead"]
Strategy = Literal["affinity", "spread", "least_loaded"]
Reason = Literal["ready", "draining", "quarantined", "dead"]

TERMINAL: Final[frozenset[str]] = frozenset({"completed", "failed", "dead", "cancelled"})


# ---- the transition table -------------------------------------------------------------------------------------------


class Transition(NamedTuple):
    """One row: in `state`, `event` of `script` leads to `next_state`, and the body of the job is then at `body`."""

    state: State
    event: str
    script: str
    next_state: State
    body: Body


TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition("none", "xadd", "XADD", "none", "intake"),
    Transition("none", "submitted", "submit", "queued", "intake"),
    Transition("none", "reserved", "reserve", "reserved", "inbox"),
    Transition("queued", "reserved", "reserve", "reserved", "inbox"),
    Transition("none", "refused", "reserve", "none", "intake"),
    Transition("queued", "refused", "reserve", "queued", "intake"),
    Transition("none", "rejected", "reject", "dead", "dead"),
    Transition("queued", "rejected", "reject", "dead", "dead"),
    Transition("none", "rejected_cancelled", "reject", "cancelled", "none"),
    Transition("queued", "rejected_cancelled", "reject", "cancelled", "none"),
    Transition("queued", "deferred", "defer", "delayed", "parked"),
    Transition("reserved", "renewed", "renew", "reserved", "inbox"),
    Transition("reserved", "completed", "release", "completed", "none"),
    Transition("reserved", "failed", "release", "failed", "none"),
    Transition("reserved", "requeued", "release", "queued", "intake"),
    Transition("reserved", "parked", "release", "delayed", "parked"),
    Transition("reserved", "given_up", "release", "dead", "dead"),
    Transition("reserved", "body_lost", "release", "dead", "none"),
    Transition("reserved", "cancelled", "release", "cancelled", "none"),
    Transition("reserved", "cancel_requested", "cancel", "reserved", "inbox"),
    Transition("queued", "cancelled", "cancel", "cancelled", "none"),
    Transition("delayed", "cancelled", "cancel", "cancelled", "none"),
    Transition("delayed", "promoted", "promote", "queued", "intake"),
    Transition("delayed", "body_lost", "promote", "dead", "none"),
    Transition("dead", "requeued", "requeue", "queued", "intake"),
    Transition("completed", "forgotten", "retention", "none", "none"),
    Transition("failed", "forgotten", "retention", "none", "none"),
    Transition("dead", "forgotten", "retention", "none", "none"),
    Transition("cancelled", "forgotten", "retention", "none", "none"),
)
_ROWS: Final = {(row.state, row.event): row for row in TRANSITIONS}


def transition(state: State, event: str) -> Transition:
    """The row of `state` and `event`. Raises: IllegalTransition when the table has none."""
    row = _ROWS.get((state, event))
    if row is None:
        raise IllegalTransition(f"{event!r} in state {state!r}: not in the transition table")
    return row


# ---- documents: what producers and nodes write ----------------------------------------------------------------------


class JobDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job as its producer describes it. `deadline_ms` counts from the first submission. Languages: both or none."""

    session_id: str
    job_id: str = ""
    src_lang: str = ""
    tgt_lang: str = ""
    tenant_id: str = ""
    routing_key: str = ""
    features: tuple[str, ...] = ()
    priority: int = 0
    deadline_ms: int | None = None
    reply_to: str = ""


class NodeBeat(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="node"):
    """A node's heartbeat: a complete registration. Languages, features, labels and version are fixed for a boot."""

    node: str
    boot: str
    capacity: int
    pairs: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    pool: str = ""
    version: str = ""
    draining: bool = False
    healthy: bool = True
    running: int = 0


class DispatcherBeat(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="dispatcher"):
    """A dispatcher's heartbeat. waiting: jobs that wait, by pool."""

    name: str
    boot: str
    waiting: dict[str, int] = {}
    snapshot_version: int = 0


class ReaperBeat(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="reaper"):
    """A reaper's heartbeat. expired: leases that it ended, by node, since its start."""

    name: str
    boot: str
    expired: dict[str, int] = {}


Beat = NodeBeat | DispatcherBeat | ReaperBeat


# ---- the snapshot: what placement reads -----------------------------------------------------------------------------


class Pool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A named set of nodes with a policy. Times in ms; `*_max` are counts unless they end in `_ms_max`."""

    id: str
    strategy: Strategy = "affinity"
    fallback: tuple[str, ...] = ()
    start_ms: int = 5_000
    lease_ms: int = 15_000
    run_ms_max: int = 3_600_000
    attempts_max: int = 3
    crashes_max: int = 5


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node as placement sees it. Nodes that cannot take work (draining, dead) are not in the snapshot."""

    id: str
    boot: str
    slots: int
    pool: str
    pairs: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    version: str = ""
    suspect: bool = False


class Snapshot(msgspec.Struct, frozen=True):
    """The immutable picture of nodes and pools. `version` is a fencing number: it never falls back."""

    version: int
    nodes: tuple[Node, ...] = ()
    pools: tuple[Pool, ...] = ()


EMPTY_SNAPSHOT: Final = Snapshot(version=0)


# ---- codecs ---------------------------------------------------------------------------------------------------------

_T = TypeVar("_T")
_JSON_JOB: Final = msgspec.json.Decoder(JobDocument)
_MSGPACK_JOB: Final = msgspec.msgpack.Decoder(JobDocument)
_JSON_BEAT: Final[msgspec.json.Decoder[Beat]] = msgspec.json.Decoder(Beat)
_MSGPACK_BEAT: Final[msgspec.msgpack.Decoder[Beat]] = msgspec.msgpack.Decoder(Beat)
_SNAPSHOT: Final = msgspec.msgpack.Decoder(Snapshot)
_JSON_FIRST_BYTES: Final = b"{ \t\r\n"
_LANGUAGE_LENGTH_MAX: Final = 35  # RFC 5646, section 4.4.1
_FEATURES_MAX: Final = 32


def _decode(what: str, data: bytes, json: msgspec.json.Decoder[_T], packed: msgspec.msgpack.Decoder[_T]) -> _T:
    if not data:
        raise InvalidInput(f"{what} is empty: expected a JSON or msgpack object")
    is_json = data[0] in _JSON_FIRST_BYTES
    try:
        return json.decode(data) if is_json else packed.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if is_json else "msgpack"
        raise InvalidInput(f"{what} is no valid {kind} document: {error}") from None


def decode_job(data: bytes) -> JobDocument:
    """Decode and validate a job document.

    Args: data, JSON (first byte is a brace or white space) or msgpack. Raises: InvalidInput, naming the field.
    """
    job = _decode("job", data, _JSON_JOB, _MSGPACK_JOB)
    keys.check_id("session_id", job.session_id)
    if job.job_id:
        keys.check_id("job_id", job.job_id)
        if job.job_id.startswith(keys.GENERATED_PREFIX):
            raise InvalidInput(f"job_id = {job.job_id!r}: expected not to start with ~, which is for generated ids")
    if bool(job.src_lang) != bool(job.tgt_lang):
        raise InvalidInput(
            f"src_lang = {job.src_lang!r}, tgt_lang = {job.tgt_lang!r}: expected both languages, or none of them"
        )
    if job.src_lang:
        check_pair(job.src_lang, job.tgt_lang)
    if job.tenant_id:
        keys.check_name("tenant_id", job.tenant_id)
    if job.reply_to:
        keys.check_name("reply_to", job.reply_to)
    if job.routing_key:
        keys.check_id("routing_key", job.routing_key)
    if job.features:
        check_features(job.features)
    if job.deadline_ms is not None and job.deadline_ms <= 0:
        raise InvalidInput(f"deadline_ms = {job.deadline_ms}: expected milliseconds above 0, or no such field")
    return job


def decode_beat(data: bytes) -> Beat:
    """Decode and validate a heartbeat document; its `kind` is node, dispatcher or reaper. Raises: InvalidInput."""
    beat = _decode("heartbeat", data, _JSON_BEAT, _MSGPACK_BEAT)
    if isinstance(beat, NodeBeat):
        keys.check_name("node", beat.node)
        check_boot(beat.boot)
        if beat.capacity < 0:
            raise InvalidInput(f"capacity = {beat.capacity}: expected a number of slots, 0 or more")
        for source, target in beat.pairs:
            check_pair(source, target)
        check_features(beat.features)
        if beat.pool:
            keys.check_name("pool", beat.pool)
    return beat


def check_pair(source: str, target: str) -> tuple[str, str]:
    """Return the pair if both are language tags. Raises: InvalidInput."""
    for what, value in (("src_lang", source), ("tgt_lang", target)):
        keys.check_id(what, value, _LANGUAGE_LENGTH_MAX)
        if ":" in value:
            raise InvalidInput(f"{what} = {value!r}: expected a language tag without a colon, such as en or zh-Hant")
    return source, target


def check_features(features: tuple[str, ...]) -> None:
    """Raises: InvalidInput when there are too many features, or one is no name."""
    if len(features) > _FEATURES_MAX:
        raise InvalidInput(f"features: {len(features)} of them: expected at most {_FEATURES_MAX}")
    for feature in features:
        keys.check_name("feature", feature)


def check_boot(boot: str) -> str:
    """Return the boot id if it is ordered: `<server us>-<random>`. Raises: InvalidInput."""
    number, _, random = boot.partition("-")
    if not (number.isascii() and number.isdigit() and len(number) <= 16 and random):
        raise InvalidInput(f"boot = {boot!r}: expected <server time in us>-<random>, such as 1735689600000000-a1b2c3")
    return keys.check_name("boot", boot)


def boot_order(boot: str) -> int:
    """The number that orders boots of one node."""
    return int(boot.partition("-")[0])


def encode_job(job: JobDocument) -> bytes:
    """A job document as JSON, so that a person can read the stream."""
    return msgspec.json.encode(job)


def encode_beat(beat: Beat) -> bytes:
    """A heartbeat as JSON."""
    return msgspec.json.encode(beat)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """A snapshot as msgpack."""
    return msgspec.msgpack.encode(snapshot)


def decode_snapshot(data: bytes) -> Snapshot:
    """The reverse of encode_snapshot. Raises: InvalidInput."""
    try:
        return _SNAPSHOT.decode(data)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"snapshot is no valid msgpack document: {error}") from None


# ---- what scripts are asked and what they answer --------------------------------------------------------------------


class Layout(msgspec.Struct, frozen=True):
    """What every role must agree on; written once by the first manager."""

    partitions: int
    cells: int
    protocol: int
    retention_ms: int
    dead_retention_ms: int


class Entry(msgspec.Struct, frozen=True):
    """An intake entry as it was read. `epoch` is the hold under which it was read."""

    partition: int
    epoch: int
    id: str
    fields: dict[bytes, bytes]


class ReserveItem(msgspec.Struct, frozen=True):
    """One job of a reserve call.

    candidates: node ids, best first; choice: take the `first` with room, or the `freest`. binding: `pool src:tgt`,
    empty to leave the session's binding alone; bound_node: the node that the stored binding names, so that it is
    written only on change.
    """

    partition: int
    epoch: int
    entry_id: str
    job_id: str
    session_id: str
    tenant_id: str
    reply_to: str
    pool: str
    candidates: tuple[str, ...]
    choice: Literal["first", "freest"]
    binding: str
    bound_node: str
    variant: str = "-"


class Reserved(msgspec.Struct, frozen=True):
    """The slot is taken. used: slots in use on that node after it; -1 in the answer to a repeat."""

    node: str
    token: int
    used: int


class Refused(msgspec.Struct, frozen=True):
    """The job was not placed.

    why: full, behind, limited (it waits) | fenced (not our partition) | duplicate, gone (nothing left to do) |
    job_id_taken, cancelling, broken (to be rejected; broken: the script failed because of this job).
    """

    why: Literal["full", "behind", "limited", "fenced", "duplicate", "gone", "job_id_taken", "cancelling", "broken"]


class ReleaseItem(msgspec.Struct, frozen=True, kw_only=True):
    """One ending. `boot` is the caller's boot and only read with verdict `reboot`."""

    job_id: str
    node: str
    partition: int
    session_id: str
    tenant_id: str
    reply_to: str
    token: int
    verdict: Verdict
    state: Literal["completed", "failed"] = "completed"
    boot: str = ""
    delay_ms: int = 0
    reason: str = ""
    detail: str = ""
    content_type: str = ""
    result: bytes = b""


class Released(msgspec.Struct, frozen=True):
    """The reservation has ended; `state` is where the job is now."""

    state: State


class NotReleased(msgspec.Struct, frozen=True):
    """Nothing was changed. stale: not the holder any more; unknown: no record; busy: not allowed yet; moved: other
    keys.
    """

    why: Literal["stale", "unknown", "busy", "moved", "broken"]


class Renewed(msgspec.Struct, frozen=True):
    """The lease lasts until `lease_until_ms` (server time). cancelling: somebody asked to stop the job."""

    lease_until_ms: int
    cancelling: bool = False


class NotRenewed(msgspec.Struct, frozen=True):
    """stale, unknown: the reservation is gone; overrun: the job ran for longer than its pool allows."""

    why: Literal["stale", "unknown", "overrun"]


class RejectItem(msgspec.Struct, frozen=True):
    """One entry that the owner refuses. reason `cancelled` ends as cancelled, every other one as dead."""

    partition: int
    epoch: int
    entry_id: str
    job_id: str
    session_id: str
    tenant_id: str
    reply_to: str
    reason: str
    detail: str


class SubmitItem(msgspec.Struct, frozen=True):
    """One job to accept. nonce: the same one again is the same submission."""

    partition: int
    job_id: str
    session_id: str
    tenant_id: str
    reply_to: str
    nonce: str
    document: bytes
    payload: bytes


class Submitted(msgspec.Struct, frozen=True):
    """Accepted: the job is in the intake as `entry` (`<partition>/<entry id>`)."""

    job_id: str
    entry: str


class NotSubmitted(msgspec.Struct, frozen=True):
    """Not accepted. duplicate: this session has that job already; job_id_taken: another has; busy: backlog full."""

    job_id: str
    why: Literal["duplicate", "job_id_taken", "busy", "refused"]
    detail: str = ""


class Owned(msgspec.Struct, frozen=True):
    """A partition that is ours under `epoch`."""

    partition: int
    epoch: int


class HeldByOther(msgspec.Struct, frozen=True):
    """A partition of somebody else, until `until_ms` (server time)."""

    partition: int
    owner: str
    until_ms: int


class CapacityItem(msgspec.Struct, frozen=True):
    """What the leader says of a node: its slots, for which boot, and why."""

    node: str
    slots: int
    boot: str
    reason: Reason


class Command(msgspec.Struct, frozen=True):
    """An operator's command as read from the stream."""

    id: str
    fields: dict[bytes, bytes]


class Heartbeat(msgspec.Struct, frozen=True):
    """A heartbeat entry: document undecoded, time_ms by the server's clock."""

    id: str
    document: bytes
    time_ms: int


class Taken(msgspec.Struct, frozen=True):
    """One take: heartbeats and commands to fold. ids of heartbeats are acknowledged by the next take."""

    now_ms: int
    heartbeats: tuple[Heartbeat, ...]
    commands: tuple[Command, ...]


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a life of a job ended. result: the handler's bytes, None when they must be fetched by job id."""

    job_id: str
    session_id: str
    life: int
    state: str
    reason: str = ""
    detail: str = ""
    node: str = ""
    token: int = 0
    attempts: int = 0
    entry: str = ""
    submitted_ms: int = 0
    ended_ms: int = 0
    content_type: str = ""
    result: bytes | None = None
