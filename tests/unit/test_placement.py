"""Candidates, best first: which pool, in which order, and what a session and a failed attempt change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random

import msgspec
import pytest

from scheduler.protocol.snapshot import Node, Pool, Strategy
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.placement.candidates import Groups, classify, place, place_among, rendezvous
from scheduler.runtime.placement.sampler import Sampler
from scheduler.session.bindings import Binding
from tests.unit.arrange import EN_DE, EN_ZH, a_class, a_job, a_node, an_index

A123 = (a_node("a1"), a_node("a2"), a_node("a3"))
LOADS = {"a1": 3, "a2": 1, "a3": 2}


def bound(node: str, pool: str = "a", pair: tuple[str, str] = EN_ZH) -> Binding:
    """A session that is bound."""
    return Binding(pool, *pair, node)


def placed(
    strategy: Strategy,
    binding: Binding | None = None,
    *,
    nodes: tuple[Node, ...] = A123,
    loads: Mapping[str, int] = LOADS,
    count: int = 4,
    avoid: str = "",
) -> Groups | None:
    """Where a job of pool a goes."""
    index = an_index(*nodes, pools={"a": Pool("a", strategy, candidates=count)})
    found = place(a_job(avoid=avoid), a_class(), binding, index, Sampler(loads, Random(1)))
    return found.groups if found else None


# ---- the pool ----------------------------------------------------------------------------------------------


def fleet() -> Index:
    """Two pools that serve en:zh, one of them en:de as well."""
    return an_index(a_node("a1", "a", pairs=(EN_ZH, EN_DE)), a_node("b1", "b"))


def two_pool_keys() -> tuple[str, str]:
    """A routing key of pool a and one of pool b."""
    index = fleet()
    keys = {classify(a_job(routing_key=key), None, index).pool: key for key in (f"k{i}" for i in range(50))}
    return keys["a"], keys["b"]


KEY_A, KEY_B = two_pool_keys()


@pytest.mark.parametrize(
    ("job", "binding", "expected"),
    [
        pytest.param(a_job(routing_key=KEY_A), None, "a", id="a new session goes by its routing key"),
        pytest.param(a_job(routing_key=KEY_B), None, "b", id="another key, another pool"),
        pytest.param(a_job(routing_key=KEY_A), bound("b1", "b"), "b", id="a session keeps its pool"),
        pytest.param(a_job(routing_key=KEY_A), bound("gone", "b"), "b", id="also when its node is gone"),
        pytest.param(a_job(routing_key=KEY_A), bound("b1", "b", EN_DE), "a", id="another pair starts anew"),
        pytest.param(a_job(routing_key=KEY_A), bound("c1", "c"), "a", id="so does a pool that was removed"),
        pytest.param(a_job(pair=EN_DE), bound("b1", "b", EN_DE), "a", id="and a pool that cannot serve the pair"),
        pytest.param(a_job(pair=EN_DE, routing_key=KEY_B), None, "a", id="a pool that cannot serve it is no choice"),
        pytest.param(a_job(pair=("en", "fr")), bound("a1"), "", id="nobody serves the pair"),
        pytest.param(a_job(features=("gpu",)), None, "", id="nobody has the feature"),
        pytest.param(a_job(pair=("", ""), routing_key=KEY_B), None, "b", id="without languages every pool will do"),
    ],
)
def test_preferred_pool(job: Job, binding: Binding | None, expected: str) -> None:
    """The bound pool while the pair is the same and it can serve; else by the routing key over those that can."""
    assert classify(job, binding, fleet()) == JobClass(job.src_lang, job.tgt_lang, job.features, expected)


def test_a_pool_has_as_many_keys_as_its_slots() -> None:
    """Three quarters of the capacity get about three quarters of the sessions."""
    chosen = [rendezvous(f"k{i}", {"small": 10, "large": 30}) for i in range(2_000)]
    assert 0.7 < chosen.count("large") / 2_000 < 0.8


# ---- the order within a pool -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "binding", "options", "expected"),
    [
        pytest.param("affinity", None, {}, (("a2", "a3", "a1"),), id="unbound: least loaded first"),
        pytest.param("affinity", bound("a1"), {}, (("a1",), ("a2", "a3")), id="the bound node first"),
        pytest.param("affinity", bound("gone"), {}, (("a2", "a3", "a1"),), id="a bound node that is gone"),
        pytest.param("affinity", bound("a1"), {"count": 2}, (("a1",), ("a2",)), id="the bound node counts"),
        pytest.param("affinity", bound("a1"), {"nodes": A123[:1]}, (("a1",),), id="its only node is named once"),
        pytest.param("affinity", bound("a1"), {"avoid": "a1"}, (("a2", "a3"),), id="not where it failed"),
        pytest.param("affinity", bound("a1"), {"avoid": "a2"}, (("a1",), ("a3",)), id="another one failed"),
        pytest.param("spread", None, {}, (("a2", "a3", "a1"),), id="spread: least loaded first"),
        pytest.param("spread", bound("a2"), {}, (("a3", "a1"),), id="not the last node"),
        pytest.param("spread", bound("a1"), {"nodes": A123[:1]}, (("a1",),), id="unless it is the only one"),
        pytest.param("spread", bound("a2"), {"avoid": "a3"}, (("a1",),), id="neither last nor failed"),
        pytest.param(
            "spread",
            bound("a2"),
            {"nodes": A123[1:], "avoid": "a3"},
            (("a2",),),
            id="rather the last than the failed",
        ),
        pytest.param("least_loaded", bound("a1"), {}, (("a2", "a3", "a1"),), id="whatever it did before"),
        pytest.param("least_loaded", None, {"nodes": A123[:1], "avoid": "a1"}, (("a1",),), id="no choice left"),
        pytest.param("least_loaded", None, {"count": 2}, (("a2", "a3"),), id="a few are enough"),
        pytest.param(
            "least_loaded",
            None,
            {"loads": {"a1": 6, "a2": 5, "a3": 4}},
            (("a3", "a2", "a1"),),
            id="all are believed to be full, which may be wrong",
        ),
    ],
)
def test_order(strategy: Strategy, binding: Binding | None, options: dict[str, object], expected: Groups) -> None:
    """What the strategy, the session and an earlier failure make of three nodes with 3, 1 and 2 jobs."""
    assert placed(strategy, binding, **options) == expected  # type: ignore[arg-type]


def test_load_is_relative_to_the_slots() -> None:
    """Four of sixteen is less than two of four."""
    nodes = (a_node("small", slots=4), a_node("large", slots=16))
    assert placed("least_loaded", nodes=nodes, loads={"small": 2, "large": 4}) == (("large", "small"),)


def test_of_many_nodes_the_best_of_a_few_drawn_are_taken() -> None:
    """Twice as many are drawn as are job_class, and one more; the less loaded are offered."""
    nodes = tuple(a_node(f"a{i:02}", slots=100) for i in range(100))
    loads = {node.id: i for i, node in enumerate(nodes)}
    index = an_index(*nodes)
    seen = set()
    for seed in range(400):
        found = place(a_job(), a_class(), None, index, Sampler(loads, Random(seed)))
        assert found is not None
        drawn = [loads[name] for name in found.candidates]
        assert drawn == sorted(drawn)
        assert len(set(drawn)) == 4
        seen.update(drawn)
    assert len(seen) > 70


@pytest.mark.parametrize("count", [5, 12, 17, 18, 40])
def test_each_node_is_offered_as_often_as_any_other(count: int) -> None:
    """And at each place: of few nodes, which are drawn in another way, and of many."""
    nodes = tuple(a_node(f"a{i:02}") for i in range(count))
    index, random, times = an_index(*nodes), Random(1), 500 * count
    offered: Counter[tuple[int, str]] = Counter()
    for _ in range(times):
        found = place(a_job(), a_class(), None, index, Sampler({}, random))
        assert found is not None
        assert len(set(found.candidates)) == 4
        offered.update(enumerate(found.candidates))
    assert len(offered) == 4 * count
    assert 350 < min(offered.values()) <= max(offered.values()) < 650


def test_jobs_of_a_call_share_what_is_drawn_and_have_other_candidates_each() -> None:
    """Of 1,000 nodes a call of 64 jobs names about half as many, the less loaded of those drawn, each in turn: none of
    them twice as often as all do on average.
    """
    nodes = tuple(a_node(f"a{i:03}", slots=1_000) for i in range(1_000))
    loads = {node.id: i for i, node in enumerate(nodes)}
    index = an_index(*nodes)
    sampler = Sampler(loads, Random(1), 64)
    placements = [place(a_job(), a_class(), None, index, sampler) for _ in range(64)]
    offered = Counter(name for placement in placements if placement for name in placement.candidates)
    assert {len(placement.candidates) for placement in placements if placement} == {4}
    assert len(offered) == 31
    assert max(offered.values()) <= 2 * offered.total() / 31
    assert sum(loads[name] for name in offered) / 31 < 300


def test_where_room_is_scarce_each_job_of_a_call_is_offered_some() -> None:
    """One node in ten is not believed to be full: more of them are looked at, and none that is full is in the way."""
    nodes = tuple(a_node(f"a{i:03}", slots=8) for i in range(1_000))
    loads = {node.id: 8 for i, node in enumerate(nodes) if i % 10}
    index = an_index(*nodes)
    for seed in range(20):
        sampler = Sampler(loads, Random(seed), 10)
        for _ in range(10):
            found = place(a_job(), a_class(), None, index, sampler)
            assert found is not None
            assert any(name not in loads for name in found.candidates)


def test_no_node_of_the_pool_serves_the_job() -> None:
    """There is nothing to offer."""
    assert place(a_job(), a_class("b"), None, an_index(*A123), Sampler({}, Random(1))) is None


# ---- among nodes that were named ---------------------------------------------------------------------------

TIERS = (a_node("c1", "c"), a_node("b1", "b"), a_node("a1"), a_node("b2", "b"), a_node("a2"), a_node("x1", "x"))


def among(
    names: tuple[str, ...],
    binding: Binding | None = None,
    strategy: Strategy = "least_loaded",
    avoid: str = "",
) -> Groups | None:
    """Where a job of pool a goes when these nodes are said to have room; pool a falls back to c, then to b."""
    index = an_index(*TIERS, pools={"a": Pool("a", strategy, ("c", "b"))})
    loads = {"a1": 2, "a2": 1, "b1": 1}
    found = place_among(a_job(avoid=avoid), a_class(), binding, index, names, loads, Random(1))
    return found.groups if found else None


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        pytest.param("b1 a1", {}, (("a1",), ("b1",)), id="the preferred pool first"),
        pytest.param(
            "b1 a1 b2 c1 a2",
            {},
            (("a2", "a1"), ("c1",), ("b2", "b1")),
            id="then the fallback pools in their order, each by load",
        ),
        pytest.param("b2 b1", {}, (("b2", "b1"),), id="one pool alone: the freest"),
        pytest.param("a1 x1 unknown", {}, (("a1",),), id="only nodes that may take the job"),
        pytest.param("x1 unknown", {}, None, id="nobody may"),
        pytest.param("", {}, None, id="nobody is named"),
        pytest.param(
            "b1 a2 a1",
            {"binding": bound("a1"), "strategy": "affinity"},
            (("a1",), ("a2",), ("b1",)),
            id="the bound node before all",
        ),
        pytest.param(
            "b1 a2",
            {"binding": bound("a1"), "strategy": "affinity"},
            (("a1",), ("a2",), ("b1",)),
            id="the bound node also when it is not named",
        ),
        pytest.param(
            "b2 a1 a2",
            {"binding": bound("a2"), "strategy": "spread"},
            (("a1",), ("a2",), ("b2",)),
            id="the last node behind its pool, but before the fallback",
        ),
        pytest.param("a1 a2", {"avoid": "a2"}, (("a1",), ("a2",)), id="where it failed comes last"),
        pytest.param("a2", {"avoid": "a2"}, (("a2",),), id="but it comes"),
    ],
)
def test_place_among(names: str, options: dict[str, object], expected: Groups | None) -> None:
    """Every named node that may take the job is a candidate; what one would rather avoid comes last in its tier."""
    assert among(tuple(names.split()), **options) == expected  # type: ignore[arg-type]


# ---- suspects ----------------------------------------------------------------------------------------------


def suspects(*names: str) -> tuple[Node, ...]:
    """The nodes of pool a, some of them suspect."""
    return tuple(msgspec.structs.replace(node, suspect=node.id in names) for node in A123)


@pytest.mark.parametrize(
    ("names", "binding", "expected"),
    [
        pytest.param(["a2"], None, {"a1", "a3"}, id="the others are candidates"),
        pytest.param(["a2"], bound("a2"), {"a1", "a3"}, id="also for a session that is bound to it"),
        pytest.param(["a1", "a2", "a3"], None, {"a1", "a2", "a3"}, id="unless all are suspect"),
    ],
)
@pytest.mark.parametrize("strategy", ["affinity", "spread", "least_loaded"])
def test_suspects_are_placed_on_last(
    strategy: Strategy, names: list[str], binding: Binding | None, expected: set[str]
) -> None:
    """RULES 17: a suspect is no candidate while another node may have room."""
    groups = placed(strategy, binding, nodes=suspects(*names))
    assert groups is not None
    assert {name for names in groups for name in names} == expected


def test_a_suspect_that_alone_has_room_is_taken() -> None:
    """RULES 17: last is not never: among the nodes known to have room it comes after all others."""
    index = an_index(*suspects("a2"), pools={"a": Pool("a", "affinity")})
    groups = {}
    for names, binding in (("a2 a3", bound("a2")), ("a2 a3", None), ("a2", bound("a2"))):
        found = place_among(a_job(), a_class(), binding, index, names.split(), LOADS, Random(1))
        groups[names, binding is not None] = found.groups if found else None
    assert groups == {
        ("a2 a3", True): (("a3",), ("a2",)),
        ("a2 a3", False): (("a3",), ("a2",)),
        ("a2", True): (("a2",),),
    }
