"""The pure files of the benchmarks: what they work out from records is what looking at every millisecond finds."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import msgspec
import pytest
from benchmarks import snapshot
from benchmarks.beats import Told, figures
from benchmarks.evenness import Evenness, averaged, sampled
from benchmarks.following import Followed, Part, Use
from benchmarks.free_slots import free_stretches, longest_ms, waits_beside_room
from benchmarks.history import Hold, Percentiles, Placed, Submitted, Wait, Window, mean_use, percentiles, waits
from benchmarks.snapshot_cost import Cost
from benchmarks.traffic import HOLD_SPREAD, JOBS_A_SESSION, Traffic
from benchmarks.verdict import Claim, Shown
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.audit.workloads import LanguagePair
from scheduler.protocol.documents import DispatcherBeat, NodeBeat, encode_beat

END_MS = 24
SLOTS = {"a": 1, "b": 2, "none": 0}
HOLDS = st.lists(
    st.builds(
        lambda node, from_ms, length: Hold(node, from_ms, from_ms + length),
        st.sampled_from(["a", "b", "other"]),
        st.integers(0, END_MS),
        st.integers(0, 8),
    ),
    max_size=14,
)


def used_at(holds: list[Hold], node: str, at_ms: int) -> int:
    """Slots of a node in use during the millisecond that begins then."""
    return sum(
        hold.node == node and hold.from_ms <= at_ms and (hold.until_ms is None or at_ms < hold.until_ms)
        for hold in holds
    )


@settings(deadline=None)
@given(holds=HOLDS, from_ms=st.integers(0, END_MS), length=st.integers(0, 12))
def test_the_longest_wait_beside_room_is_that_of_looking_at_every_millisecond(
    holds: list[Hold], from_ms: int, length: int
) -> None:
    """Consecutive milliseconds of the wait in which some eligible node had a slot free."""
    longest = current = 0
    for at_ms in range(from_ms, from_ms + length):
        has_room = any(used_at(holds, node, at_ms) < count for node, count in SLOTS.items())
        current = current + 1 if has_room else 0
        longest = max(longest, current)
    assert longest_ms(free_stretches(SLOTS, holds), from_ms, from_ms + length) == longest


def test_room_on_nodes_that_do_not_serve_the_job_does_not_count() -> None:
    """Each pair has nodes of its own."""
    holds = [Hold("a", 0, 50), Hold("b", 10, 20)]
    eligible = {"x": {"a": 1}, "y": {"b": 1}, "xy": {"a": 1, "b": 1}}
    waited = [Wait(f"j{pair}", pair, 5, 60, 0) for pair in eligible]
    assert waits_beside_room(waited, holds, eligible) == [10, 40, 40]


def test_a_slot_that_was_never_released_stays_in_use() -> None:
    """Nobody gets it while the record is written."""
    assert free_stretches({"a": 1}, [Hold("a", 7, None)]) == [(float("-inf"), 7)]


def test_a_slot_that_changes_hands_within_a_millisecond_was_not_free() -> None:
    """What happens in the same millisecond happens at once."""
    stretches = free_stretches({"a": 1}, [Hold("a", 0, 10), Hold("a", 10, 20)])
    assert stretches == [(float("-inf"), 0), (20, float("inf"))]


@settings(deadline=None)
@given(holds=HOLDS)
def test_use_over_time_is_that_of_looking_at_every_millisecond(holds: list[Hold]) -> None:
    """For each node, and for all of them."""
    slots, window = {"a": 1, "b": 2}, Window(4, 20)
    holds = [hold for hold in holds if hold.node in slots]
    times = range(window.from_ms, window.until_ms)
    uses = {node: sum(used_at(holds, node, at) for at in times) / count for node, count in slots.items()}
    mean = sum(uses.values()) / len(uses)
    expected = Evenness(round(max(uses.values()) / mean, 3), round(min(uses.values()) / mean, 3)) if mean else None
    assert averaged(slots, holds, window) == (expected or Evenness(0.0, 0.0))
    in_use = sum(uses[node] * count for node, count in slots.items())
    assert mean_use(holds, 3, window) == pytest.approx(in_use / (3 * len(times)))


def test_use_at_instants_is_not_use_over_time() -> None:
    """Two nodes that take turns are equally used over time, and at no instant."""
    holds = [Hold("a", 0, 10), Hold("b", 10, 20)]
    window = Window(0, 20)
    assert averaged({"a": 1, "b": 1}, holds, window) == Evenness(1.0, 1.0)
    found = sampled({"a": 1, "b": 1}, holds, window, 5)
    assert (found.samples, found.median, found.worst) == (4, 2.0, 2.0)


def test_a_node_that_is_not_used_counts_as_idle() -> None:
    """Else a strategy that forgets a node would look even."""
    assert averaged({"a": 1, "b": 1}, [Hold("a", 0, None)], Window(0, 10)) == Evenness(2.0, 0.0)


def test_waits_are_those_of_the_window() -> None:
    """Jobs that were submitted outside of it, or not placed, are left out."""
    submitted = {f"j{ms}": Submitted("s", "en:zh", ms, 1_000 * ms) for ms in (5, 10, 15, 20)}
    placed = {name: Placed("a", job.entry_ms + 2, 1_000 * job.entry_ms + 1_700, "") for name, job in submitted.items()}
    del placed["j15"]
    assert waits(submitted, placed, Window(10, 20)) == [Wait("j10", "en:zh", 10, 12, 1_700)]


def test_percentiles_are_divided_afterwards() -> None:
    """Microseconds become milliseconds."""
    assert percentiles(range(1, 1_001), 1_000) == Percentiles(0.5, 0.99, 0.999, 1.0)
    assert percentiles([]) == Percentiles(None, None, None, None)


def test_traffic_has_its_rate_its_holding_time_and_its_sessions() -> None:
    """And the same seed makes the same jobs."""
    pairs = (LanguagePair("en", "zh", 3.0), LanguagePair("zh", "en", 1.0))
    jobs = Traffic(Random(1), "x", 500, 200, 100, pairs).until(20)
    assert jobs == Traffic(Random(1), "x", 500, 200, 100, pairs).until(20)
    assert len(jobs) == pytest.approx(10_000, rel=0.05)
    assert [job.at_s for job in jobs] == sorted(job.at_s for job in jobs)
    holds_ms = [job.hold_ms for job in jobs]
    assert sum(holds_ms) / len(jobs) == pytest.approx(200, rel=0.02)
    assert (min(holds_ms), max(holds_ms)) == (200 * (1 - HOLD_SPREAD), 200 * (1 + HOLD_SPREAD))
    sessions = Counter(job.session_id for job in jobs)
    assert len(jobs) / len(sessions) == pytest.approx(JOBS_A_SESSION, rel=0.15)
    assert len({(job.session_id, job.pair) for job in jobs}) == len(sessions)
    assert len({job.job_id for job in jobs}) == len(jobs)


def test_traffic_ends_with_its_last_job() -> None:
    """A flood has a size."""
    traffic = Traffic(Random(1), "x", 1_000, 200, 10, jobs_max=7)
    assert (len(traffic.until(0.001)) + len(traffic.until(10)), traffic.is_over) == (7, True)


def test_figures_of_heartbeats_are_those_of_dispatchers_that_tell_them() -> None:
    """Others are passed over, and what nobody tells is missing."""
    silent = encode_beat(DispatcherBeat("d1", "1-a"))
    telling = [
        msgspec.json.encode({"kind": "dispatcher", "name": "d", "boot": "1-a", "decision_us_p99": us})
        for us in (300, 900, 400)
    ]
    others = [encode_beat(NodeBeat("n1", "1-a", 4)), b"", b"\xff", b"{"]
    found = figures([silent, *telling, *others])
    assert found == {"decision_us_p99": Told(4, 900, 400), "session_wait_ms_p99": Told(4, 0, 0)}


@pytest.mark.parametrize(("measured", "expected"), [(4.9, True), (5.0, True), (5.1, False), (None, False)])
def test_a_claim_is_reached_up_to_its_limit(measured: float | None, expected: bool) -> None:
    """What was not told was not shown."""
    claim = Claim("x", measured, 5, "ms")
    assert claim.ok is expected
    assert claim.line().startswith("PASS" if expected else "FAIL")
    shown = Shown(facts={}, inputs={}, figures={"y": 1}, lines=(), claims=(Claim("z", 0, 1), claim))
    assert (shown.ok, shown.document()["ok"], shown.document()["y"]) == (expected, expected, 1)


# ---- snapshot --------------------------------------------------------------------------------------------------------

PLAN = snapshot.Plan(sizes=(1_000, 100_000), live=(1_000,), rounds=1, seconds=1, seed=1)
PART = Part(
    seconds=10,
    use=Use(manager=0.1, dispatcher=0.01, server=0.2, bench=0.1, others=0.5),
    beats_per_s=1_000,
    late_ms=3,
    changes=0,
    replaced=0,
)
CHANGING = msgspec.structs.replace(
    PART, use=msgspec.structs.replace(PART.use, dispatcher=0.03), changes=50, replaced=40
)
BUSY = Use(manager=0.31, dispatcher=0, server=0, bench=0, others=None)
FOLLOWED = Followed(
    nodes=1_000,
    steady=PART,
    changing=CHANGING,
    visible_ms=Percentiles(100, 300, 400, 400),
    unseen=0,
    loads=1,
    facts=dict.fromkeys(("cpu", "cores", "system", "server", "python", "redis-py", "hiredis", "uvloop"), "x"),
)
COST = Cost(
    nodes=100_000,
    bytes=12_000_000,
    delta_bytes=147,
    classes=300,
    encode_ms=50,
    decode_ms=300,
    scratch_ms=1_600,
    whole_ms=120,
    delta_ms=30,
    get_us=0.02,
    swap_us=0.1,
    second_ms=380,
)


@pytest.mark.parametrize(
    ("followed", "cost", "failed"),
    [
        pytest.param({}, {}, None, id="everything is kept"),
        pytest.param(
            {"changing": msgspec.structs.replace(CHANGING, use=Use(0.31, 0, 0, 0, None))}, {}, 0, id="manager"
        ),
        pytest.param({"steady": CHANGING}, {}, 1, id="a steady fleet publishes"),
        pytest.param({"visible_ms": Percentiles(100, 501, 501, 501)}, {}, 2, id="a change is seen late"),
        pytest.param({"unseen": 1}, {}, 2, id="or never"),
        pytest.param({"steady": msgspec.structs.replace(PART, beats_per_s=940)}, {}, 3, id="too few heartbeats"),
        pytest.param({}, {"get_us": 1.1}, 4, id="reading"),
        pytest.param({}, {"swap_us": 11}, 5, id="replacing"),
    ],
)
def test_what_a_fleet_may_cost(followed: dict[str, Any], cost: dict[str, Any], failed: int | None) -> None:
    """Each limit by itself, in the largest fleet."""
    one, other = msgspec.structs.replace(FOLLOWED, **followed), msgspec.structs.replace(COST, **cost)
    shown = snapshot.show([one], [other], PLAN)
    assert [number for number, claim in enumerate(shown.claims) if not claim.ok] == ([] if failed is None else [failed])


def test_a_fleet_is_told_in_80_columns() -> None:
    """Each table is a line a fleet; what is left out is said."""
    lines = snapshot.show([FOLLOWED], [COST], PLAN).lines
    assert max(len(line) for line in lines if line.lstrip()[:1].isdigit() and ":" not in line) <= 80
    text = "\n".join(lines)
    assert "a dispatcher uses 5.0 ms for a version" in text
    assert "100,000 nodes do not beat here" in text
