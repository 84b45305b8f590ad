"""The pure files of the baseline v2: how it chooses, how a measurement is accounted for, and what is claimed of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmarks.complexity import PARTS, ROOT, measure
from benchmarks.measure import BenchmarkFailed
from benchmarks.v2.account import Errors, Measured, arrivals, completed, errors, latencies_us
from benchmarks.v2.figures import claims, figures
from benchmarks.v2.registry import Registry
from benchmarks.verdict import Claim
from hypothesis import given
from hypothesis import strategies as st

from scheduler.protocol.documents import JobDocument
from scheduler.protocol.snapshot import Node, Snapshot

EN_ZH = (("en", "zh"),)
JOB = JobDocument("s1", "j1", "en", "zh")
MS_NS = 1_000_000


def node(name: str, slots: int = 4, pool: str = "p", **more: object) -> Node:
    """A node that serves en:zh, if nothing else is said."""
    return Node(**({"id": name, "boot": "1-a", "slots": slots, "pool": pool, "pairs": EN_ZH} | more))  # type: ignore[arg-type]


def registry(*nodes: Node, **used: int) -> Registry:
    """A registry of these nodes, with some slots in use."""
    found = Registry(Snapshot(1, nodes))
    for name, count in used.items():
        for _ in range(count):
            chosen = found.choose([name.encode()], JOB)
            assert chosen is not None
            chosen.take()
    return found


def chosen(found: Registry, members: str, job: JobDocument = JOB) -> str | None:
    """The name of the node that is chosen among members, separated by blanks."""
    entry = found.choose([name.encode() for name in members.split()], job)
    return None if entry is None else entry.name


# ---- choosing -------------------------------------------------------------------------------------------------------


def test_the_least_loaded_member_is_chosen() -> None:
    """By the share of its slots that is in use, not by their number."""
    assert chosen(registry(node("a", 2), node("b", 8), node("c", 4), a=1, b=2, c=3), "a b c") == "b"


@pytest.mark.parametrize(
    "unfit",
    [
        node("x", pairs=(("en", "de"),)),
        node("x", pairs=(("zh", "en"),)),
        node("x", suspect=True),
        node("x", slots=0),
    ],
)
def test_nodes_that_cannot_serve_the_job_are_passed_over(unfit: Node) -> None:
    """Other pairs, unhealthy, or no room: a node that is more loaded is taken instead."""
    found = registry(unfit, node("a", 4), a=3)
    assert chosen(found, "x a") == "a"
    assert chosen(found, "x") is None


def test_a_node_needs_all_features_of_the_job() -> None:
    """One of two is not enough."""
    found = registry(node("a", features=("gpu",)), node("b", features=("gpu", "tts", "asr")), b=3)
    assert chosen(found, "a b", JobDocument("s1", "j1", "en", "zh", features=("tts", "gpu"))) == "b"


def test_members_that_are_not_registered_are_passed_over() -> None:
    """Members of a pool are read from Redis, the registry is in memory: they may differ."""
    assert chosen(registry(node("a")), "gone a") == "a"


def test_every_member_is_looked_at() -> None:
    """Also when the first one is idle."""
    looked: list[bytes] = []

    def members() -> Iterator[bytes]:
        for number in range(50):
            looked.append(b"n%d" % number)
            yield looked[-1]

    found = registry(*(node(f"n{number}") for number in range(50)))
    assert found.choose(members(), JOB) is not None
    assert len(looked) == 50


def test_pools_that_serve_the_pair_take_turns_by_routing_key() -> None:
    """Each key has its own first pool, and all others after it."""
    found = registry(node("a", pool="p"), node("b", pool="q"), node("c", pool="r", pairs=(("en", "de"),)))
    orders = {tuple(found.pools_for(JobDocument(f"s{number}", "j", "en", "zh"))) for number in range(50)}
    assert orders == {("p", "q"), ("q", "p")}
    assert found.pools_for(JobDocument("s1", "j", "fr", "zh")) == []
    assert found.members() == {"p": [b"a"], "q": [b"b"], "r": [b"c"]}


# ---- accounting -----------------------------------------------------------------------------------------------------


def test_a_round_without_errors_has_none() -> None:
    """Each job in one inbox and one slot."""
    found = errors(["j0", "j1", "j2"], {"i:a": ["j0", "j2"], "i:b": ["j1"]}, {"a": ["j0", "j2"], "b": ["j1"]}, 2)
    assert (found, found.total) == (Errors(), 0)


def test_each_error_is_counted_by_its_kind() -> None:
    """j0 twice in inboxes and slots; j1 lost; j2 without a slot; three slots of two on a."""
    inboxes = {"i:a": ["j0", "j3", "j4", "j5"], "i:b": ["j0", "j2"]}
    found = errors([f"j{n}" for n in range(6)], inboxes, {"a": ["j0", "j3", "j4"], "b": ["j0", "j5"]}, 2)
    assert found == Errors(lost=1, doubled=1, double_reservations=1, unreserved=1, over_capacity=1)
    assert found.total == 5


def test_jobs_of_an_inbox_appear_in_its_order() -> None:
    """The server tells of an inbox, not of a job."""
    seen = [("i:a", 10), ("i:b", 20), ("i:a", 30)]
    assert arrivals(seen, {"i:a": ["j5", "j1"], "i:b": ["j2"], "i:c": []}) == {"j5": 10, "j2": 20, "j1": 30}


@pytest.mark.parametrize("inboxes", [{"i:a": ["j1"]}, {"i:a": ["j1", "j2", "j3"]}, {}])
def test_times_that_do_not_match_the_inboxes_are_refused(inboxes: dict[str, list[str]]) -> None:
    """Otherwise latencies would be those of other jobs."""
    with pytest.raises(BenchmarkFailed, match="i:a"):
        arrivals([("i:a", 1), ("i:a", 2)], inboxes)


@given(
    sent=st.lists(st.integers(0, 100), min_size=1, max_size=20),
    took=st.lists(st.integers(0, 50), min_size=20, max_size=20),
    window=st.tuples(st.integers(0, 100), st.integers(0, 100)).map(sorted),
)
def test_latencies_are_of_jobs_sent_in_time_and_throughput_of_those_that_arrived(
    sent: list[int], took: list[int], window: list[int]
) -> None:
    """A slow job counts with all of its latency, although it arrives afterwards."""
    sent_ns = {f"j{number}": at * MS_NS for number, at in enumerate(sent)}
    arrived_ns = {job: at + wait * MS_NS for (job, at), wait in zip(sent_ns.items(), took, strict=False)}
    from_ms, until_ms = window
    found = latencies_us(sent_ns, arrived_ns, from_ms * MS_NS, until_ms * MS_NS)
    assert list(found) == [1_000 * wait for at, wait in zip(sent, took, strict=False) if from_ms <= at < until_ms]
    ends = [at + wait for at, wait in zip(sent, took, strict=False)]
    assert completed(arrived_ns, from_ms * MS_NS, until_ms * MS_NS) == sum(from_ms <= at < until_ms for at in ends)


# ---- figures and claims ---------------------------------------------------------------------------------------------


def measured(jobs: int, ms: float, found: Errors | None = None) -> Measured:
    """A second in which all jobs took the same time."""
    return Measured(
        seconds=1.0, jobs=jobs, latencies_us=(round(ms * 1_000),) * jobs, errors=found or Errors(),
        server_us=50.0 * jobs, scheduler_us=20.0 * jobs, load_us=10.0 * jobs, others_us=500_000.0,
    )  # fmt: skip


def test_figures_are_medians_with_their_spread() -> None:
    """Latencies are of all rounds' jobs, by a histogram of three digits; errors add up."""
    rounds = {(8, "v2"): [measured(100, 1), measured(300, 3, Errors(lost=1)), measured(200, 2, Errors(lost=2))]}
    found = figures(rounds)[8, "v2"]
    assert (found.jobs_per_s.median, found.jobs_per_s.min, found.jobs_per_s.max) == (200, 100, 300)
    assert (found.mean_ms.median, found.server_us.median, found.scheduler_us.median) == (2, 50, 20)
    assert (found.latency.jobs, found.latency.max_ms, found.errors) == (600, 3, Errors(lost=3))
    assert found.latency.p50_ms == pytest.approx(2, rel=0.002)
    assert found.latency.p999_ms == pytest.approx(3, rel=0.002)
    assert found.others_cores is not None
    assert found.others_cores.median == 0.5


@pytest.mark.parametrize(("v2_ms", "expected"), [(100.0, [True, True, True]), (50.0, [False, False, True])])
def test_claims_at_64_are_of_throughput_and_p99(v2_ms: float, expected: list[bool]) -> None:
    """Ten times as many jobs, a tenth of p99, and no more errors."""
    rounds = {(64, "v2"): [measured(round(64_000 / v2_ms), v2_ms)], (64, "dispatch"): [measured(6_500, 9.8)]}
    listed = claims(rounds, figures(rounds))
    assert [claim.ok for claim in listed] == expected
    assert [claim.line()[:6] for claim in listed] == ["PASS: " if ok else "FAIL: " for ok in expected]


def test_claims_at_1_and_8_are_of_the_mean_and_of_errors() -> None:
    """Half the mean; an error more than v2 has is too many."""
    rounds = {(1, "v2"): [measured(10, 2)], (1, "dispatch"): [measured(20, 1)]}
    rounds |= {(8, "v2"): [measured(10, 2)], (8, "dispatch"): [measured(20, 1.01, Errors(doubled=1))]}
    assert [claim.ok for claim in claims(rounds, figures(rounds))] == [True, True, False, False]


def test_nothing_is_claimed_without_both_sides() -> None:
    """Nor with other numbers of jobs in flight, but for errors."""
    alone = {(64, "v2"): [measured(10, 2)]}
    assert claims(alone, figures(alone)) == []
    other = {(3, "v2"): [measured(10, 2)], (3, "dispatch"): [measured(10, 2)]}
    assert [claim.what for claim in claims(other, figures(other))] == ["errors of dispatch, 3 in flight"]


@pytest.mark.parametrize(
    ("value", "least", "ok"), [(10, True, True), (9.99, True, False), (10, False, True), (10.01, False, False)]
)
def test_a_claim_is_reached_up_to_its_limit(value: float, least: bool, ok: bool) -> None:
    """From above or from below."""
    claim = Claim("x", value, 10, is_least=least, rounds=(1.0, 2.5))
    assert claim.ok is ok
    assert "(rounds 1 to 2.5)" in claim.line()
    assert ("at least 10" in claim.line()) is least


# ---- complexity -----------------------------------------------------------------------------------------------------


def test_complexity_counts_functions_and_branches_of_python_and_lua() -> None:
    """One a function and one more a branch, by lizard."""
    registry_alone = measure(("tools/packages/benchmarks/v2/registry.py",))
    assert (registry_alone.files, registry_alone.functions, registry_alone.worst_name) == (1, 6, "choose")
    assert registry_alone.total > registry_alone.worst > 1
    assert measure(("lua/reserve.lua",)).worst_name == "reserve"


def test_complexity_counts_whole_files_once() -> None:
    """The part that decides is contained in the dispatch path, and nothing is counted on both sides."""
    for names in PARTS.values():
        assert len(names) == len(set(names))
        assert all((ROOT / name).is_file() for name in names)
    assert set(PARTS["deciding"]) < set(PARTS["dispatch"])
    assert not set(PARTS["v2"]) & set(PARTS["dispatch"])
