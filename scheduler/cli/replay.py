"""`scheduler replay`: a recorded trace, or seeded live speech, against a fleet of its own, audited at the end.

Arrivals and sessions are as recorded, work is output tokens times `--ms-per-token`; both are divided by `--speed`. The
recording has no languages: a seeded rule gives each session a pair, and the report says which seed and pairs.
"""

from __future__ import annotations

from typing import Final

import click
import msgspec

from scheduler.audit.workloads import PAIRS, Arrival, LanguagePair, offered_load, read_trace, speech_arrivals
from scheduler.cli.rehearsal import Plan, SimulatedNode, rehearse
from scheduler.cli.view import ProgressBars, conclude
from scheduler.console.common import Fraction, find_server, log_level_option, settings_of_environment
from scheduler.console.terminal import is_screen, new_console
from scheduler.errors import InvalidInput
from scheduler.protocol.documents import CAPACITY_MAX, check_pair

SPEED: Final = 60.0
SPEECH_SPEED: Final = 1.0
SPEECH_JOBS: Final = 2_000
SPEECH_SESSIONS: Final = 200
JOBS_MAX: Final = 10_000_000  # all of them are in memory at once
NODES_MAX: Final = 10_000
WEIGHT_MAX: Final = 1e9
SEED: Final = 1
POOL: Final = "replay"


def _parse_pairs(_: click.Context, parameter: click.Parameter, text: str) -> tuple[LanguagePair, ...]:
    """The pairs of a weighted list such as `en:zh=5,zh:en=4,ja:en`; a weight left out is 1."""
    return tuple(_parse_pair(parameter, each.strip()) for each in text.split(","))


def _parse_pair(parameter: click.Parameter, text: str) -> LanguagePair:
    languages, _, weight = text.partition("=")
    source, _, target = languages.partition(":")
    try:
        check_pair(source, target)
        return LanguagePair(source, target, _weight(weight))
    except (InvalidInput, ValueError):
        expected = "source:target=weight, such as en:zh=5"
        raise click.BadParameter(f"{text!r}: expected {expected}", param=parameter) from None


def _weight(text: str) -> float:
    """Raises: ValueError."""
    weight = float(text or 1)
    if not 0 < weight <= WEIGHT_MAX:
        raise ValueError(f"{weight}: expected a weight above 0, at most {WEIGHT_MAX:g}")
    return weight


@click.command(short_help="Replay a trace or live speech, and check what it did.")
@click.argument("file", required=False)
@click.option("--speech", is_flag=True, help="Seeded live speech instead of a file: a segment each 200 ms, in bursts.")
@click.option(
    "--jobs", type=click.IntRange(1, JOBS_MAX), help=f"With --speech: how many jobs.  [default: {SPEECH_JOBS}]"
)
@click.option(
    "--speed",
    type=Fraction(0.001, 1_000_000),
    help=f"How many times faster than recorded.  [default: {SPEED:g}, with --speech {SPEECH_SPEED:g}]",
)
@click.option(
    "--ms-per-token",
    type=Fraction(0, 1_000_000, min_open=True),
    default=20.0,
    show_default=True,
    help="Work of an output token, before --speed.",
)
@click.option("--nodes", type=click.IntRange(1, NODES_MAX), default=8, show_default=True, help="How many nodes.")
@click.option(
    "--capacity", type=click.IntRange(1, CAPACITY_MAX), default=8, show_default=True, help="Slots of each node."
)
@click.option(
    "--pairs",
    callback=_parse_pairs,
    metavar="LIST",
    default=",".join(f"{pair.src_lang}:{pair.tgt_lang}={pair.weight:g}" for pair in PAIRS),
    show_default=True,
    help="Language pairs and their weights, dealt out to sessions by the seed; every node serves all.",
)
@click.option("--seed", type=int, default=SEED, show_default=True, help="The same seed makes the same load.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many jobs.")
@click.option("--json", "as_json", is_flag=True, help="No progress bar; one JSON object alone on standard output.")
@click.option("--redis-url", metavar="URL", help="Use this server, in a namespace of its own, removed at the end.")
@log_level_option("warning")
def replay(
    file: str | None,
    speech: bool,
    jobs: int | None,
    speed: float | None,
    ms_per_token: float,
    nodes: int,
    capacity: int,
    pairs: tuple[LanguagePair, ...],
    seed: int,
    limit: int | None,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """Replay a recorded trace, FILE (a JSON object a line), or live speech, and check what the scheduler did.

    Starts a server in memory, all roles and the nodes. Ends with 0 only if nothing was lost, run twice, over capacity
    or out of order.
    """
    if speech == (file is not None):
        raise click.UsageError("expected either FILE or --speech")
    if jobs is not None and not speech:
        raise click.UsageError("--jobs goes with --speech; for a recording there is --limit")
    speed = speed or (SPEECH_SPEED if speech else SPEED)
    if file is None:
        arrivals = _speech(seed, jobs or SPEECH_JOBS, speed, pairs)
    else:
        arrivals = read_trace(file, seed, speed=speed, ms_per_token=ms_per_token, pairs=pairs)
    arrivals = arrivals[:limit]
    served = tuple((pair.src_lang, pair.tgt_lang) for pair in pairs)
    fleet = tuple(SimulatedNode(f"n{number}", POOL, capacity, served) for number in range(1, nodes + 1))
    plan = Plan(
        name="replay",
        arrivals=arrivals,
        fleet=fleet,
        settings=settings_of_environment(),
        url=None if redis_url is None else find_server(redis_url),
    )
    console = new_console()
    watch = ProgressBars(console) if is_screen(console) and not as_json else None
    result = rehearse(plan, watch)
    weights = {f"{pair.src_lang}:{pair.tgt_lang}": pair.weight for pair in pairs}
    conclude(
        console, result, _headline(plan, speed, seed, weights), _inputs(plan, speed, seed, weights), as_json=as_json
    )


def _speech(seed: int, jobs: int, speed: float, pairs: tuple[LanguagePair, ...]) -> list[Arrival]:
    """Live speech; the speed divides its times as it does those of a recording."""
    arrivals = speech_arrivals(seed, min(SPEECH_SESSIONS, jobs), jobs, pairs=pairs)
    return [
        msgspec.structs.replace(arrival, at_ms=arrival.at_ms / speed, work_ms=arrival.work_ms / speed)
        for arrival in arrivals
    ]


def _headline(plan: Plan, speed: float, seed: int, weights: dict[str, float]) -> str:
    sessions = len({arrival.session_id for arrival in plan.arrivals})
    slots, load = sum(node.capacity for node in plan.fleet), offered_load(plan.arrivals)
    pairs = ", ".join(f"{pair}={weight:g}" for pair, weight in weights.items())
    return (
        f"replay: {len(plan.arrivals):,} jobs, {sessions:,} sessions at speed {speed:g}; {slots} slots, "
        f"{load.mean_slots:.0f} wanted on average, {load.peak_slots} at the peak; seed {seed}, pairs {pairs}"
    )


def _inputs(plan: Plan, speed: float, seed: int, weights: dict[str, float]) -> dict[str, object]:
    return {"speed": speed, "slots": sum(node.capacity for node in plan.fleet), "seed": seed, "pairs": weights}
