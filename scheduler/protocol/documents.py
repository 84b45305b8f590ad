"""What clients write: job documents and heartbeats, with their codecs.

Pure. A document is JSON or msgpack, told apart by its first byte. A reader ignores fields that it does not know, so it
survives a newer writer. Every struct is frozen.
"""

from __future__ import annotations

import functools
from typing import Final, TypeVar

import msgspec

from scheduler.errors import InvalidInput
from scheduler.protocol import keys

_PAIRS_MAX: Final = 4_096  # that are remembered as checked


class JobDocument(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A job as its producer describes it. `deadline_ms` counts from the first submission. Languages: both or none;
    src_lang `auto` is any source. preferred_node: taken when it is eligible and has room.
    """

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
    preferred_node: str = ""


class NodeBeat(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="node"):
    """A node's heartbeat: a complete registration. Languages, features, labels and version are fixed for a boot.

    since_ms: server time when this boot began, 0 if it does not say.
    """

    node: str
    boot: str
    capacity: int
    pairs: tuple[tuple[str, str], ...] = ()
    features: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    pool: str = ""
    version: str = ""
    since_ms: int = 0
    draining: bool = False
    healthy: bool = True
    running: int = 0


class DispatcherBeat(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="dispatcher"):
    """A dispatcher's heartbeat. waiting: jobs that wait, by pool.

    decision_us_p99, session_wait_ms_p99: of late, the time a job to choose its candidates, and that it waited for an
    earlier job of its session; one of a hundred took longer.
    """

    name: str
    boot: str
    waiting: dict[str, int] = {}
    snapshot_version: int = 0
    decision_us_p99: int = 0
    session_wait_ms_p99: int = 0


class ReaperBeat(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="reaper"):
    """A reaper's heartbeat. expired: leases that it ended, by node, since its last beat."""

    name: str
    boot: str
    expired: dict[str, int] = {}


Beat = NodeBeat | DispatcherBeat | ReaperBeat


_T = TypeVar("_T")
_JSON_JOB: Final = msgspec.json.Decoder(JobDocument)
_MSGPACK_JOB: Final = msgspec.msgpack.Decoder(JobDocument)
_JSON_BEAT: Final[msgspec.json.Decoder[Beat]] = msgspec.json.Decoder(Beat)
_MSGPACK_BEAT: Final[msgspec.msgpack.Decoder[Beat]] = msgspec.msgpack.Decoder(Beat)
ANY_LANGUAGE: Final = "auto"
_JSON_FIRST_BYTES: Final = b"{ \t\r\n"
_LANGUAGE_LENGTH_MAX: Final = 35  # RFC 5646, section 4.4.1
_FEATURES_MAX: Final = 32
CAPACITY_MAX: Final = 1_000_000  # slots of a node


def _decode(what: str, data: bytes, json: msgspec.json.Decoder[_T], packed: msgspec.msgpack.Decoder[_T]) -> _T:
    if not data:
        raise InvalidInput(f"{what} is empty: expected a JSON or msgpack object")
    is_json = data[0] in _JSON_FIRST_BYTES
    kind = "JSON" if is_json else "msgpack"
    try:
        return json.decode(data) if is_json else packed.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{what} ({kind}): {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
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
    if job.preferred_node:
        keys.check_name("preferred_node", job.preferred_node)
    if job.features:
        check_features(job.features)
    if job.deadline_ms is not None and job.deadline_ms <= 0:
        raise InvalidInput(f"deadline_ms = {job.deadline_ms}: expected milliseconds above 0, or no such field")
    return job


def read_job(data: bytes) -> JobDocument:
    """Decode a job document that was validated before; its values are not looked at again. Raises: InvalidInput."""
    return _decode("job", data, _JSON_JOB, _MSGPACK_JOB)


def decode_beat(data: bytes) -> Beat:
    """Decode and validate a heartbeat document; its `kind` is node, dispatcher or reaper. Raises: InvalidInput."""
    beat = _decode("heartbeat", data, _JSON_BEAT, _MSGPACK_BEAT)
    if isinstance(beat, NodeBeat):
        keys.check_name("node", beat.node)
        check_boot(beat.boot)
        if not 0 <= beat.capacity <= CAPACITY_MAX:
            shown = str(beat.capacity)[:40] if abs(beat.capacity) < 10**40 else "a huge number"
            raise InvalidInput(f"capacity = {shown}: expected a number of slots from 0 to {CAPACITY_MAX}")
        for source, target in beat.pairs:
            check_pair(source, target)
        check_features(beat.features)
        if beat.pool:
            keys.check_name("pool", beat.pool)
    return beat


@functools.lru_cache(maxsize=_PAIRS_MAX)
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
