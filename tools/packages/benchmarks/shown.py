"""What came of a load becomes what is shown: figures, words and claims, one function for each command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from benchmarks.evenness import averaged, sampled
from benchmarks.free_slots import free_stretches, waits_beside_room
from benchmarks.history import Percentiles, Window, decisions, percentiles
from benchmarks.load import Lived, Load
from benchmarks.verdict import Claim, Shown

WAIT_MS_MAX: Final = 50
BUSIEST_MAX: Final = 1.2
DECISION_US_MAX: Final = 1_000
SESSION_WAIT_MS_MAX: Final = 10
SHORT_OF_USE_MAX: Final = 0.03
SAMPLE_EVERY_MS: Final = 100
WORST_SHOWN: Final = 3

Show = Callable[[Lived, Load, Mapping[str, object]], Shown]


def show_waits(lived: Lived, load: Load, inputs: Mapping[str, object]) -> Shown:
    """Whether a job waited while a node that serves it had a free slot."""
    eligible = {wait.pair: lived.slots for wait in lived.waits}
    beside = waits_beside_room(lived.waits, lived.holds, eligible)
    worst = sorted(zip(beside, lived.waits, strict=True), key=lambda each: -each[0])[:WORST_SHOWN]
    all_of_it, part = percentiles(wait.until_ms - wait.from_ms for wait in lived.waits), percentiles(beside)
    full_ms = _without_room_ms(lived)
    lines = [
        f"wait from intake to inbox: {_words(all_of_it, 'ms')}",
        f"longest part of it with a slot free on a node that serves the job: {_words(part, 'ms')}",
        f"no slot at all was free for {full_ms:,} ms of the time",
        *(
            f"job {wait.job_id} ({wait.pair}) waited {wait.until_ms - wait.from_ms} ms, {ms} of them beside a free slot"
            for ms, wait in worst
        ),
    ]
    figures = {"jobs": len(lived.waits), "wait_ms": all_of_it, "beside_free_slot_ms": part, "no_free_slot_ms": full_ms}
    claim = Claim("longest wait beside a free slot", part.max, WAIT_MS_MAX, "ms")
    return _shown(lived, load, inputs, figures, lines, [claim])


def show_evenness(lived: Lived, load: Load, inputs: Mapping[str, object]) -> Shown:
    """How much more the busiest node is used than the mean of all."""
    over_time = averaged(lived.slots, lived.holds, lived.window)
    instants = sampled(lived.slots, lived.holds, lived.window, SAMPLE_EVERY_MS)
    seconds = lived.window.seconds
    lines = [
        f"averaged over {seconds:.1f} s, divided by the mean: busiest node {over_time.busiest:.3f}, idlest node "
        f"{over_time.idlest:.3f}",
        f"at {instants.samples:,} instants, busiest node divided by the mean: median {instants.median:.3f}, worst "
        f"{instants.worst:.3f}; a full node comes to {1 / load.use:.3f}",
    ]
    claim = Claim(f"busiest node divided by the mean, averaged over {seconds:.1f} s", over_time.busiest, BUSIEST_MAX)
    return _shown(lived, load, inputs, {"averaged": over_time, "instants": instants}, lines, [claim])


def show_sessions(lived: Lived, load: Load, inputs: Mapping[str, object]) -> Shown:
    """How long decisions take and how long jobs wait for their session, by what dispatchers tell of themselves."""
    found = decisions(lived.placed.values())
    dispatch = percentiles((wait.dispatch_us for wait in lived.waits), per=1_000)
    lines = [f"from intake to inbox: {_words(dispatch, 'ms')}", "decisions: " + _counts(found)]
    for field, each in lived.beats.items():
        words = "missing" if each.worst is None else f"worst {each.worst:,g}, median {each.median:,g}"
        lines.append(f"{field} in {each.heartbeats:,} heartbeats: {words}")
    decision, wait = lived.beats["decision_us_p99"].worst, lived.beats["session_wait_ms_p99"].worst
    claims = [
        Claim("p99 of a binding decision, in the worst heartbeat", decision, DECISION_US_MAX, "us"),
        Claim("p99 of the wait for a session, in the worst heartbeat", wait, SESSION_WAIT_MS_MAX, "ms"),
    ]
    figures = {"dispatch_ms": dispatch, "decisions": found, "heartbeats": lived.beats}
    return _shown(lived, load, inputs, figures, lines, claims)


def _shown(
    lived: Lived,
    load: Load,
    inputs: Mapping[str, object],
    figures: Mapping[str, object],
    lines: list[str],
    claims: list[Claim],
) -> Shown:
    """With what all of them tell: the load as it really was."""
    use = round(lived.use, 4)
    came = (
        f"{len(lived.waits):,} jobs in {lived.window.seconds:.1f} s; {use:.1%} of {sum(lived.slots.values()):,} slots "
        f"in use; submitted at most {lived.lag_ms:,.0f} ms late"
    )
    common = {"use": use, "seconds": lived.window.seconds, "submission_lag_ms": lived.lag_ms, "cores": lived.cores}
    short = Claim("use short of what was asked for", round(max(0.0, load.use - use), 4), SHORT_OF_USE_MAX)
    return Shown(
        facts=lived.facts,
        inputs=inputs,
        figures={**figures, **common},
        lines=[came, f"cores kept busy: {lived.cores.words()}", *lines],
        claims=[*claims, short],
    )


def _without_room_ms(lived: Lived) -> int:
    """For how much of the window no node had a free slot."""
    window: Window = lived.window
    room_ms = 0.0
    for stretch in free_stretches(lived.slots, lived.holds):
        room_ms += max(0.0, min(stretch.until_ms, window.until_ms) - max(stretch.from_ms, window.from_ms))
    return window.until_ms - window.from_ms - round(room_ms)


def _words(found: Percentiles, unit: str) -> str:
    values = {"p50": found.p50, "p99": found.p99, "p99.9": found.p999, "max": found.max}
    return ", ".join(f"{name} {'-' if value is None else f'{value:,g}'}" for name, value in values.items()) + f" {unit}"


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{word} {count:,}" for word, count in found.items()) or "none"


def inputs_of(load: Load, strategy: str) -> dict[str, object]:
    """What figures depend on beside the machine."""
    return msgspec.structs.asdict(load) | {"strategy": strategy, "jobs_per_s": round(load.jobs_per_s, 1)}
