"""Which nodes can serve a job: its languages, its features, its pool and the pools that one falls back to."""

from __future__ import annotations

import msgspec
import pytest

from scheduler.protocol.deltas import followed
from scheduler.protocol.snapshot import Delta, Match, Node, Pool, Snapshot
from scheduler.runtime import index as index_module
from scheduler.runtime.index import Group, Index
from scheduler.runtime.intake import JobClass
from tests.unit.arrange import EN_DE, EN_ZH, LATER_BOOT, a_class, a_node, an_index

NOBODY: tuple[str, str] = ("", "")


def members(index: Index, pair: tuple[str, str], *features: str) -> dict[str, list[str]]:
    """The nodes of each pool that can serve a job."""
    found = index.members(*pair, tuple(sorted(features)))
    return {pool: [node.id for node in group.nodes] for pool, group in found.items()}


FLEET: tuple[Node, ...] = (
    a_node("zh", pairs=(EN_ZH,)),
    a_node("zh-gpu", pairs=(EN_ZH,), features=("gpu",)),
    a_node("both-gpu-asr", "b", pairs=(EN_ZH, EN_DE), features=("asr", "gpu")),
    a_node("plain", pairs=()),
    a_node("plain-gpu", "b", pairs=(), features=("gpu",)),
)


@pytest.mark.parametrize(
    ("pair", "features", "expected"),
    [
        pytest.param(EN_ZH, (), {"a": ["zh", "zh-gpu"], "b": ["both-gpu-asr"]}, id="the pair must be served"),
        pytest.param(EN_DE, (), {"b": ["both-gpu-asr"]}, id="a pool without such a node is missing"),
        pytest.param(("zh", "en"), (), {}, id="a pair has a direction"),
        pytest.param(("en", "fr"), (), {}, id="nobody serves it"),
        pytest.param(EN_ZH, ("gpu",), {"a": ["zh-gpu"], "b": ["both-gpu-asr"]}, id="a feature must be there"),
        pytest.param(EN_ZH, ("asr", "gpu"), {"b": ["both-gpu-asr"]}, id="all features must be there"),
        pytest.param(EN_ZH, ("tpu",), {}, id="nobody has the feature"),
        pytest.param(
            NOBODY,
            (),
            {"a": ["zh", "zh-gpu", "plain"], "b": ["both-gpu-asr", "plain-gpu"]},
            id="a job without languages goes anywhere",
        ),
        pytest.param(
            NOBODY, ("gpu",), {"a": ["zh-gpu"], "b": ["both-gpu-asr", "plain-gpu"]}, id="it matches by features alone"
        ),
    ],
)
def test_members(pair: tuple[str, str], features: tuple[str, ...], expected: dict[str, list[str]]) -> None:
    """The pair and all features decide; a node without pairs serves only jobs without languages."""
    assert members(an_index(*FLEET), pair, *features) == expected


@pytest.mark.parametrize(
    ("fallback", "expected"),
    [
        pytest.param((), ["a1", "a2"], id="without fallback the pool alone"),
        pytest.param(("b",), ["a1", "a2", "b1"], id="then the fallback"),
        pytest.param(("c", "b"), ["a1", "a2", "c1", "b1"], id="fallbacks in their order"),
        pytest.param(("a", "b", "b"), ["a1", "a2", "b1"], id="a pool that is named twice counts once"),
        pytest.param(("gone", "b"), ["a1", "a2", "b1"], id="a pool that is not there is passed over"),
    ],
)
def test_eligible(fallback: tuple[str, ...], expected: list[str]) -> None:
    """Nodes of the pool come first, then those of its fallback pools; other nodes are not eligible."""
    nodes = [a_node("b1", "b"), a_node("a1"), a_node("c1", "c"), a_node("a2"), a_node("d1", "d")]
    index = an_index(*nodes, pools={"a": Pool("a", fallback=fallback)})
    assert [node.id for node in index.eligible(a_class("a"))] == expected
    serving = {node.id for node in nodes if index.serves(a_class("a"), node.id)}
    assert serving == set(expected)


@pytest.mark.parametrize(
    "job_class", [a_class(""), a_class("a", EN_DE), a_class("unknown"), a_class("a", EN_ZH, ("x",))]
)
def test_a_class_that_nobody_serves_has_no_eligible_node(job_class: JobClass) -> None:
    """No pool, no pair, no such pool, no feature."""
    index = an_index(a_node("a1"))
    assert (index.eligible(job_class), index.serves(job_class, "a1")) == ((), False)


def test_a_pair_that_a_node_names_twice_counts_once() -> None:
    """A careless registration does not double the node."""
    assert members(an_index(a_node("n1", pairs=(EN_ZH, EN_ZH))), EN_ZH) == {"a": ["n1"]}


@pytest.mark.parametrize(
    ("pairs", "asked", "serves"),
    [
        pytest.param((EN_ZH,), ("auto", "zh"), True, id="a job with any source goes to any node with its target"),
        pytest.param((EN_ZH,), ("auto", "de"), False, id="but to no other target"),
        pytest.param((("auto", "zh"),), EN_ZH, True, id="a node that takes any source takes this one"),
        pytest.param((("auto", "zh"),), ("auto", "zh"), True, id="and any"),
        pytest.param((("auto", "zh"),), EN_DE, False, id="but no other target"),
        pytest.param((("auto", "zh"), EN_ZH), EN_ZH, True, id="both ways count once"),
        pytest.param((), ("auto", "zh"), False, id="without pairs no languages"),
    ],
)
def test_auto_is_any_source(pairs: tuple[tuple[str, str], ...], asked: tuple[str, str], serves: bool) -> None:
    """Of a job and of a node."""
    assert members(an_index(a_node("n1", pairs=pairs)), asked) == ({"a": ["n1"]} if serves else {})


@pytest.mark.parametrize(
    ("tenant", "scope", "pools"),
    [("t1", "t1", {"a", "vip"}), ("t2", "", {"a"}), ("", "", {"a"})],
)
def test_a_pool_for_certain_tenants_is_for_them_alone(tenant: str, scope: str, pools: set[str]) -> None:
    """Others do not see it; who may use it may use the others too."""
    index = an_index(a_node("a1"), a_node("v1", "vip"), pools={"vip": Pool("vip", match=Match(tenants=("t1",)))})
    assert index.scope_of(tenant) == scope
    assert set(index.members(*EN_ZH, (), index.scope_of(tenant))) == pools


def seen(index: Index) -> dict[str, object]:
    """What an index answers, without the order of the nodes."""

    def shown(group: Group) -> object:
        nodes = sorted(group.nodes, key=lambda node: node.id)
        return nodes, sorted(group.ids), group.slots, group.trusted and sorted(group.trusted.ids)

    asked = [(*pair, (), tenant) for pair in (EN_ZH, EN_DE, ("auto", "zh"), NOBODY) for tenant in ("", "t1")]
    members = {needs: {pool: shown(found) for pool, found in index.members(*needs).items()} for needs in asked}
    return {"boots": index.boots, "eligible": sorted(n.id for n in index.eligible(a_class("a"))), "members": members}


@pytest.mark.parametrize(
    "delta",
    [
        pytest.param(Delta(2, 1, (a_node("new"),)), id="a node joins"),
        pytest.param(Delta(2, 1, (a_node("new", "b", pairs=(("auto", "zh"),)),)), id="of any source"),
        pytest.param(Delta(2, 1, removed=("zh",)), id="a node leaves"),
        pytest.param(Delta(2, 1, removed=("zh", "zh-gpu", "plain")), id="a pool loses its last node"),
        pytest.param(Delta(2, 1, (a_node("zh", slots=9),)), id="a node grows"),
        pytest.param(Delta(2, 1, (a_node("zh", "b"),)), id="a node goes to another pool"),
        pytest.param(Delta(2, 1, (a_node("zh", pairs=(EN_DE,)),)), id="a node serves something else"),
        pytest.param(Delta(2, 1, (a_node("zh", boot=LATER_BOOT),)), id="a node was started again"),
        pytest.param(Delta(2, 1, (msgspec.structs.replace(a_node("zh"), suspect=True),)), id="a node becomes suspect"),
        pytest.param(Delta(2, 1, pools=(Pool("a", fallback=("b",)), Pool("b"))), id="another fallback"),
        pytest.param(
            Delta(2, 1, (a_node("new", "b"),), pools=(Pool("a"), Pool("b", match=Match(tenants=("t1",))))),
            id="a pool for one tenant, and a node in it",
        ),
    ],
)
@pytest.mark.parametrize("moved_min", [0, 64])
@pytest.mark.parametrize("asked", [True, False])
def test_an_index_after_a_change_answers_as_one_made_anew(
    delta: Delta, moved_min: int, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it had been asked before or not, and whether the nodes that moved are posted at once or not."""
    monkeypatch.setattr(index_module, "MOVED_MIN", 0)
    before = an_index(*FLEET)
    monkeypatch.setattr(index_module, "MOVED_MIN", moved_min)
    if asked:
        seen(before)
    whole = followed(Snapshot(1, FLEET, tuple(before.pools.values())), [delta])
    assert seen(before.revised([delta])) == seen(Index(whole))


def test_a_node_that_joins_a_pool_for_one_tenant_is_for_that_one_alone() -> None:
    """Also in an index that had been asked for its members before."""
    before = an_index(a_node("a1"), pools={"vip": Pool("vip", match=Match(tenants=("t1",)))})
    seen(before)
    after = before.revised([Delta(2, 1, (a_node("v1", "vip"),))])
    assert [set(after.members(*EN_ZH, (), tenant)) for tenant in ("", "t1")] == [{"a"}, {"a", "vip"}]


def test_what_a_change_did_not_touch_is_shared() -> None:
    """A new version costs what changed: other classes keep their very answers."""
    before = an_index(*FLEET)
    zh, de = before.members(*EN_ZH, ()), before.members(*EN_DE, ())
    nodes = (a_node("zh", slots=9), *FLEET[1:])
    after = Index(Snapshot(2, nodes, tuple(before.pools.values())), before)
    assert after.members(*EN_DE, ()) is de
    assert after.members(*EN_ZH, ()) is not zh
    assert after.members(*EN_ZH, ())["b"] is zh["b"]
    assert after.members(*EN_ZH, ())["a"].slots == 13
    assert zh["a"].slots == 8
