"""Pure. Decides; never performs. What `scheduler demo` and `scheduler replay` submit, and when.

Two loads: live speech made from a seed, and a recorded trace of conversations. Languages and tenants are
given to a session by a seeded rule: a session keeps its pair, and a seed always makes the same load. No
clock, no server; `read_trace` alone opens a file, the one it is given, and hands its lines to `parse_trace`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import floor, isfinite, log
from pathlib import Path
from random import Random

import msgspec

from scheduler.errors import InvalidInput
from scheduler.protocol.keys import check_id

SEGMENTS_A_SESSION = 10
"""Mean number of segments of a session when no total is asked for."""
NUMBER_MAX = 2**53
"""Largest number of a trace: above it, a float no longer holds every whole number."""
VALUE_LENGTH_MAX = 40
"""Characters of a bad value that an error shows."""


class LanguagePair(msgspec.Struct, frozen=True):
    """Languages of a session; weight is its share among the pairs it is listed with."""

    src_lang: str
    tgt_lang: str
    weight: float = 1.0


class Tenant(msgspec.Struct, frozen=True):
    """A customer whose sessions these are; weight is its share among the tenants it is listed with."""

    tenant_id: str
    weight: float = 1.0


PAIRS = (
    LanguagePair("en", "zh", 5.0),
    LanguagePair("zh", "en", 4.0),
    LanguagePair("en", "de", 2.0),
    LanguagePair("ja", "en", 1.0),
)
"""A few common pairs and a rare one."""
TENANTS = (Tenant("acme", 3.0), Tenant("globex", 2.0), Tenant("initech", 1.0))


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """One job to submit: at_ms after the load's start, of work_ms of handler time."""

    at_ms: float
    session_id: str
    work_ms: float
    src_lang: str
    tgt_lang: str
    tenant_id: str


class SpeechShape(msgspec.Struct, frozen=True):
    """How people speak: turns of a few segments, then a pause while the other side speaks.

    start_spread_ms: sessions start within it; turn_segments, pause_ms: means of a turn's length and of a
    pause; jitter_ms: at most this much earlier or later, less than half a segment; work_ms, work_sigma:
    median and log-space deviation of the lognormal handler time; work_ms_max cuts its tail.
    """

    start_spread_ms: float = 3_000.0
    turn_segments: float = 6.0
    pause_ms: float = 1_200.0
    jitter_ms: float = 25.0
    work_ms: float = 95.0
    work_sigma: float = 0.3
    work_ms_max: float = 1_000.0


SPEECH = SpeechShape()


class OfferedLoad(msgspec.Struct, frozen=True):
    """What a load asks of a fleet that had room for everything at once.

    duration_ms: from the first arrival to the last end; mean_slots, peak_slots: handlers running at a time.
    """

    jobs: int
    duration_ms: float
    mean_slots: float
    peak_slots: int


def speech_arrivals(
    seed: int,
    sessions: int = 200,
    segments_total: int | None = None,
    segment_ms: float = 200.0,
    *,
    shape: SpeechShape = SPEECH,
    pairs: Sequence[LanguagePair] = PAIRS,
    tenants: Sequence[Tenant] = TENANTS,
) -> list[Arrival]:
    """Live speech: each session speaks in turns, one segment (a job) every segment_ms, then pauses.

    Args: seed; sessions, each with one segment or more; segments_total, the exact number of jobs (None: ten a
        session), shared out unevenly; segment_ms; shape; pairs and tenants with weights.
    Returns: arrivals by rising at_ms.
    Raises: InvalidInput for numbers that no load can have.
    """
    total = sessions * SEGMENTS_A_SESSION if segments_total is None else segments_total
    _require(sessions >= 1, "sessions", sessions, "1 or more")
    _require(total >= sessions, "segments_total", total, f"{sessions} or more, one for each session")
    _check_shape(shape, segment_ms)
    _check_weights(pairs, tenants)
    arrivals: list[Arrival] = []
    for index, segments in enumerate(_uneven_shares(Random(f"{seed}/shares"), total, sessions)):
        session_id = f"s{index:04d}"
        pair, tenant = _assign(seed, session_id, pairs, tenants)
        random = Random(f"{seed}/speech/{session_id}")
        for at_ms in _speak(random, segments, segment_ms, shape):
            work_ms = min(shape.work_ms_max, random.lognormvariate(log(shape.work_ms), shape.work_sigma))
            arrivals.append(
                Arrival(at_ms, session_id, round(work_ms, 3), pair.src_lang, pair.tgt_lang, tenant.tenant_id)
            )
    return sorted(arrivals, key=lambda arrival: arrival.at_ms)


def read_trace(
    path: Path | str,
    seed: int = 0,
    *,
    speed: float = 1.0,
    ms_per_token: float = 10.0,
    pairs: Sequence[LanguagePair] = PAIRS,
    tenants: Sequence[Tenant] = TENANTS,
) -> list[Arrival]:
    """Read a recorded trace from a file; arguments, result and errors of `parse_trace`.

    Raises: InvalidInput also for a file that cannot be read.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        expected = "a readable file with one JSON object a line"
        raise InvalidInput(f"trace {str(path)!r}: {error.strerror or error}: expected {expected}") from error
    return parse_trace(lines, str(path), seed, speed=speed, ms_per_token=ms_per_token, pairs=pairs, tenants=tenants)


def parse_trace(
    lines: Iterable[bytes],
    source: str,
    seed: int = 0,
    *,
    speed: float = 1.0,
    ms_per_token: float = 10.0,
    pairs: Sequence[LanguagePair] = PAIRS,
    tenants: Sequence[Tenant] = TENANTS,
) -> list[Arrival]:
    """Turn a recorded trace into arrivals; empty lines are passed over, unknown fields tolerated.

    Args: lines, JSON objects with at_ms, session_id, input_tokens, output_tokens; source, the name for
        errors; seed, for languages and tenants, which the recording lacks; speed, how many times faster than
        recorded: it divides arrival times and work, so the slots in use stay; ms_per_token, handler time of
        an output token.
    Returns: arrivals by rising at_ms; those of one instant in the order of the lines.
    Raises: InvalidInput naming source, line, field, value and expectation.
    """
    _require_positive("speed", speed)
    _require_positive("ms_per_token", ms_per_token)
    _check_weights(pairs, tenants)
    assigned: dict[str, tuple[LanguagePair, Tenant]] = {}
    arrivals: list[Arrival] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        at_ms, session_id, output_tokens = _parse_line(line, f"{source}, line {number}")
        if session_id not in assigned:
            assigned[session_id] = _assign(seed, session_id, pairs, tenants)
        pair, tenant = assigned[session_id]
        work_ms = output_tokens * ms_per_token / speed
        arrivals.append(Arrival(at_ms / speed, session_id, work_ms, pair.src_lang, pair.tgt_lang, tenant.tenant_id))
    if not arrivals:
        raise InvalidInput(f"{source}: no requests: expected one JSON object a line")
    return sorted(arrivals, key=lambda arrival: arrival.at_ms)


def offered_load(arrivals: Sequence[Arrival]) -> OfferedLoad:
    """How many slots a load keeps busy if every job starts when it arrives.

    Args: arrivals in any order. Returns: mean (all work / duration) and peak; zeros without arrivals.
    """
    if not arrivals:
        return OfferedLoad(jobs=0, duration_ms=0.0, mean_slots=0.0, peak_slots=0)
    ends = [(arrival.at_ms + arrival.work_ms, -1) for arrival in arrivals if arrival.work_ms > 0]
    starts = [(arrival.at_ms, 1) for arrival in arrivals if arrival.work_ms > 0]
    running = peak = 0
    for _, change in sorted(starts + ends):  # at one instant -1 sorts first: an end makes room for a start
        running += change
        peak = max(peak, running)
    last_ms = max(arrival.at_ms + arrival.work_ms for arrival in arrivals)
    duration_ms = last_ms - min(arrival.at_ms for arrival in arrivals)
    work_ms = sum(arrival.work_ms for arrival in arrivals)
    mean = work_ms / duration_ms if duration_ms > 0 else 0.0
    return OfferedLoad(jobs=len(arrivals), duration_ms=duration_ms, mean_slots=mean, peak_slots=peak)


def _assign(
    seed: int, session_id: str, pairs: Sequence[LanguagePair], tenants: Sequence[Tenant]
) -> tuple[LanguagePair, Tenant]:
    """A session's pair and tenant, from seed and id alone: no other session can change them."""
    random = Random(f"{seed}/assign/{session_id}")
    pair = random.choices(pairs, [each.weight for each in pairs])[0]
    tenant = random.choices(tenants, [each.weight for each in tenants])[0]
    return pair, tenant


def _uneven_shares(random: Random, total: int, sessions: int) -> list[int]:
    """Share `total` out into `sessions` numbers of 1 or more, by random weights; what is over goes to the first."""
    weights = [random.gammavariate(2.0, 1.0) for _ in range(sessions)]
    scale = (total - sessions) / sum(weights)
    shares = [1 + floor(weight * scale) for weight in weights]
    for index in range(total - sum(shares)):  # fewer than sessions: each lost less than one to rounding
        shares[index] += 1
    return shares


def _speak(random: Random, segments: int, segment_ms: float, shape: SpeechShape) -> list[float]:
    """A session's segments in ms, rising: turns of geometric length, exponential pauses, a little jitter."""
    times_ms: list[float] = []
    clock_ms = shape.jitter_ms + random.uniform(0.0, shape.start_spread_ms)
    for _ in range(segments):
        times_ms.append(round(clock_ms + random.uniform(-shape.jitter_ms, shape.jitter_ms), 3))
        clock_ms += segment_ms
        if random.random() < 1.0 / shape.turn_segments:
            clock_ms += random.expovariate(1.0 / shape.pause_ms)
    return times_ms


def _parse_line(line: bytes, place: str) -> tuple[float, str, int]:
    """at_ms, session_id and output_tokens of one line; place names source and line for errors."""
    try:
        fields = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"{place}: {_shown(line)}: expected a JSON object ({error})") from error
    if not isinstance(fields, dict):
        raise InvalidInput(f"{place}: {_shown(fields)}: expected a JSON object")
    number = f"a number from 0 to {NUMBER_MAX}"
    at_ms = fields.get("at_ms")
    if isinstance(at_ms, bool) or not isinstance(at_ms, int | float) or not 0 <= at_ms <= NUMBER_MAX:
        raise _wrong(place, fields, "at_ms", number)
    for name in ("input_tokens", "output_tokens"):
        tokens = fields.get(name)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= NUMBER_MAX:
            raise _wrong(place, fields, name, f"a whole number from 0 to {NUMBER_MAX}")
    session_id = fields.get("session_id")
    if not isinstance(session_id, str):
        raise _wrong(place, fields, "session_id", "a string")
    try:
        check_id("session_id", session_id)
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}") from error
    return float(at_ms), session_id, fields["output_tokens"]


def _wrong(place: str, fields: dict[str, object], name: str, expected: str) -> InvalidInput:
    found = f"{name} = {_shown(fields[name])}" if name in fields else f"{name} is missing"
    return InvalidInput(f"{place}: {found}: expected {expected}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_LENGTH_MAX else text[:VALUE_LENGTH_MAX] + "..."


def _check_shape(shape: SpeechShape, segment_ms: float) -> None:
    _require_positive("segment_ms", segment_ms)
    _require_positive("pause_ms", shape.pause_ms)
    _require_positive("work_ms", shape.work_ms)
    _require_positive("work_ms_max", shape.work_ms_max)
    _require(shape.turn_segments >= 1, "turn_segments", shape.turn_segments, "1 or more")
    fits = 0 <= shape.jitter_ms < segment_ms / 2  # else a session's segments could change places
    _require(fits, "jitter_ms", shape.jitter_ms, "0 to less than half a segment")
    for name, value in (("start_spread_ms", shape.start_spread_ms), ("work_sigma", shape.work_sigma)):
        _require(isfinite(value) and value >= 0, name, value, "a finite number of 0 or more")


def _check_weights(pairs: Sequence[LanguagePair], tenants: Sequence[Tenant]) -> None:
    groups: tuple[tuple[str, Sequence[LanguagePair | Tenant]], ...] = (("pairs", pairs), ("tenants", tenants))
    for name, group in groups:
        weights = [each.weight for each in group]
        usable = all(isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
        _require(usable, f"weights of {name}", weights, "finite, none below 0, and one above 0")


def _require(fits: bool, name: str, value: object, expected: str) -> None:
    if not fits:
        raise InvalidInput(f"{name} = {_shown(value)}: expected {expected}")


def _require_positive(name: str, value: float) -> None:
    _require(isfinite(value) and value > 0, name, value, "a finite number above 0")
