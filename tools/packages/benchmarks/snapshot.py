"""`snapshot`: what a fleet costs in the manager, in the server and in dispatchers, by its size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from benchmarks.following import Followed, Part, follow
from benchmarks.snapshot_cost import Cost
from benchmarks.snapshot_cost import measure as measure_costs
from benchmarks.verdict import Claim, Shown
from scheduler.config import Settings

SIZES: Final = (1_000, 10_000, 100_000)
LIVE: Final = (1_000, 10_000)
QUICK_SIZES: Final = (100, 1_000)
QUICK_LIVE: Final = (100,)
GET_US_MAX: Final = 1
SWAP_US_MAX: Final = 10
MANAGER_PERCENT_MAX: Final = 30
VISIBLE_MS_MAX: Final = 500
SHORT_OF_BEATS_MAX: Final = 0.05


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. sizes: nodes of each fleet whose pure parts are measured; live: of each that beats."""

    sizes: tuple[int, ...]
    live: tuple[int, ...]
    rounds: int
    seconds: float
    seed: int


def measure(plan: Plan, settings: Settings, url: str | None) -> tuple[list[Followed], list[Cost]]:
    """The fleets that beat, then what needs no server. Raises: BenchmarkFailed, ServerUnavailable, ServerRefused."""
    return (
        follow(plan.live, plan.seconds, plan.seed, settings, url),
        measure_costs(plan.sizes, plan.rounds, plan.seed),
    )


def show(followed: Sequence[Followed], costs: Sequence[Cost], plan: Plan) -> Shown:
    """Figures by the size of the fleet; the largest of each are judged."""
    return Shown(
        facts=followed[-1].facts,
        inputs=msgspec.structs.asdict(plan) | {"sizes": _words(plan.sizes), "live": _words(plan.live)},
        figures={"live": followed, "costs": costs},
        lines=[*_live_lines(followed, plan), "", *_cost_lines(costs)],
        claims=_claims(followed[-1], costs),
    )


def _words(sizes: Sequence[int]) -> str:
    return " ".join(f"{size:,}" for size in sizes)


def _claims(live: Followed, costs: Sequence[Cost]) -> list[Claim]:
    manager = round(100 * max(live.steady.use.manager, live.changing.use.manager), 1)
    short = max(0.0, 1 - min(live.steady.beats_per_s, live.changing.beats_per_s) / live.nodes)
    nodes = f"{live.nodes:,} nodes"
    return [
        Claim(f"manager of {nodes} that beat once a second", manager, MANAGER_PERCENT_MAX, "% of a core"),
        Claim(f"versions that {nodes} publish while nothing changes", live.steady.replaced, 0),
        Claim(
            f"p99 of a change of one of {nodes} until a dispatcher sees it",
            None if live.unseen else live.visible_ms.p99,
            VISIBLE_MS_MAX,
            "ms",
        ),
        Claim("heartbeats short of one a second and node", round(short, 3), SHORT_OF_BEATS_MAX),
        Claim("reading the snapshot, in the slowest fleet", max(cost.get_us for cost in costs), GET_US_MAX, "us"),
        Claim("replacing the snapshot, in the slowest fleet", max(cost.swap_us for cost in costs), SWAP_US_MAX, "us"),
    ]


def _live_lines(followed: Sequence[Followed], plan: Plan) -> Iterator[str]:
    """Fleets that beat."""
    yield "cores in use, without changes and with one every 200 ms"
    yield f"{'nodes':>9}{'':10}{'manager':>9}{'dispatcher':>12}{'server':>8}{'bench':>7}{'others':>8}{'versions':>10}"
    for each in followed:
        for name, part in (("steady", each.steady), ("changing", each.changing)):
            yield f"{each.nodes:9,} {name:9}{_part(part)}"
    for each in followed:
        visible, ms = each.visible_ms, _following_ms(each)
        late_ms = max(each.steady.late_ms, each.changing.late_ms)
        yield (
            f"{each.nodes:,} nodes: a change is seen after p50 {visible.p50} ms, p99 {visible.p99} ms; {each.unseen} "
            f"of {each.changing.changes} were not; the whole was read {each.loads} times; a dispatcher uses "
            f"{ms:.1f} ms for a version; heartbeats were up to {late_ms:,.0f} ms late"
        )
    beyond = [size for size in plan.sizes if size > max(plan.live)]
    if beyond:
        yield (
            f"{_words(beyond)} nodes do not beat here: one server cannot take so many heartbeats a second. The parts "
            f"that need no server:"
        )


def _part(part: Part) -> str:
    use = part.use
    others = "-" if use.others is None else f"{use.others:.2f}"
    return f"{use.manager:9.3f}{use.dispatcher:12.3f}{use.server:8.2f}{use.bench:7.2f}{others:>8}{part.replaced:10,}"


def _following_ms(followed: Followed) -> float:
    """CPU time of the dispatcher for each version."""
    more = followed.changing.use.dispatcher - followed.steady.use.dispatcher
    return 1_000 * max(0.0, more) * followed.changing.seconds / max(1, followed.changing.replaced)


def _cost_lines(costs: Sequence[Cost]) -> Iterator[str]:
    """What needs no server."""
    yield "CPU time; index after one change: from the whole, and from the delta"
    yield (
        f"{'nodes':>9}{'bytes':>12}{'encode':>8}{'decode':>8}{'index':>9}{'whole':>8}{'delta':>8}{'get':>8}{'swap':>8}"
    )
    yield f"{'':9}{'':12}{'ms':>8}{'ms':>8}{'ms':>9}{'ms':>8}{'ms':>8}{'us':>8}{'us':>8}"
    for cost in costs:
        yield (
            f"{cost.nodes:9,}{cost.bytes:12,}{cost.encode_ms:8.1f}{cost.decode_ms:8.1f}{cost.scratch_ms:9.1f}"
            f"{cost.whole_ms:8.1f}{cost.delta_ms:8.1f}{cost.get_us:8.3f}{cost.swap_us:8.3f}"
        )
    for cost in costs:
        yield (
            f"{cost.nodes:,} nodes: the manager needs {cost.second_ms:,.0f} ms to fold a heartbeat of each; one change "
            f"is {cost.delta_bytes} bytes; the index remembers answers for {cost.classes} classes"
        )
