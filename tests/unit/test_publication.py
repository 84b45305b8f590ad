"""What is told of a change, and when the whole snapshot is stored again."""

from __future__ import annotations

import pytest

from scheduler.config import DEFAULTS
from scheduler.management.fleet import Fleet, clear_changed, configure, fold
from scheduler.management.pools import DEFAULT_POOL, PoolDocument
from scheduler.management.publication import (
    DELTA_SIZE_MAX,
    WHOLE_SHARE,
    FleetView,
    Stored,
    revise,
    snapshot_of,
    store,
    told,
    view_of,
)
from scheduler.protocol.documents import NodeBeat
from scheduler.protocol.snapshot import Delta, Node
from tests.unit.arrange import BOOT, EN_ZH, a_beat, a_node, picture


def seed_published(*beats: NodeBeat) -> tuple[Fleet, FleetView]:
    """A fleet whose picture was published under version 5."""
    fleet, _ = fold(Fleet(), [(beat, 1_000) for beat in beats])
    return clear_changed(fleet), revise(FleetView(), fleet, fleet.changed, 5, DEFAULTS)[0]


def test_a_delta_tells_who_is_another_one_and_who_is_gone() -> None:
    """And nothing of the others, nor of the pools."""
    fleet, before = seed_published(a_beat("n1"), a_beat("n2"), a_beat("n3"))
    fleet, _ = fold(fleet, [(a_beat("n2", capacity=9), 2_000), (a_beat("n3", draining=True), 2_000)])
    after, delta = revise(before, fleet, fleet.changed, 6, DEFAULTS)
    changed = Node("n2", BOOT, 9, DEFAULT_POOL, (EN_ZH,), assigned=True)
    assert delta == Delta(6, 5, (changed,), ("n3",))
    assert snapshot_of(after) == picture(fleet, 6, DEFAULTS)
    assert set(before.nodes) == {"n1", "n2", "n3"}


def test_nothing_new_is_the_picture_before() -> None:
    """Also when somebody was news, and is what he was."""
    fleet, before = seed_published(a_beat("n1"), a_beat("n2"))
    assert revise(before, fleet, ["n1", "n2", "gone"], 6, DEFAULTS) == (before, Delta(6, 5))


@pytest.mark.parametrize("said", [{"gold": PoolDocument()}, {DEFAULT_POOL: PoolDocument(candidates=2)}])
def test_pools_are_told_as_a_whole_when_one_is_another(said: dict[str, PoolDocument]) -> None:
    """Without any node."""
    fleet, before = seed_published(a_beat("n1"))
    after, delta = revise(before, configure(fleet, said), (), 6, DEFAULTS)
    assert (delta.nodes, delta.removed, delta.pools) == ((), (), after.pools)
    assert delta.pools != before.pools


def test_a_pool_that_its_last_node_leaves_is_gone() -> None:
    """And one that its first node names is there."""
    fleet, before = seed_published(a_beat("n1", pool="a"))
    fleet, _ = fold(fleet, [(a_beat("n1", draining=True, pool="a"), 2_000), (a_beat("n2", pool="b"), 2_000)])
    _, delta = revise(before, fleet, fleet.changed, 6, DEFAULTS)
    assert delta.pools is not None
    assert [pool.id for pool in delta.pools] == ["b", DEFAULT_POOL]


def test_a_published_snapshot_is_the_picture_of_a_new_leader() -> None:
    """Which has nothing new to tell when he knows the same."""
    fleet, before = seed_published(a_beat("n1"), a_beat("n2", pool="a"))
    _, delta = revise(view_of(snapshot_of(before)), fleet, fleet.nodes, 6, DEFAULTS)
    assert delta.size == 0


@pytest.mark.parametrize(
    ("nodes", "before", "has_body"),
    [
        pytest.param(DELTA_SIZE_MAX, 5, True, id="as many as may be"),
        pytest.param(DELTA_SIZE_MAX + 1, 5, False, id="more"),
        pytest.param(1, 0, False, id="it is not known what it changes"),
    ],
)
def test_what_is_told_of_a_delta(nodes: int, before: int, has_body: bool) -> None:
    """Of one that is too large, or that fits nothing, only that it is there."""
    delta = Delta(6, before, tuple(a_node(f"n{number}") for number in range(nodes)))
    assert told(delta) == (delta if has_body else Delta(6, before))


KNOWN = Stored(whole=5, oldest=4, deltas=2, size=7)


@pytest.mark.parametrize(
    ("stored", "delta_size", "nodes", "deltas_max", "expected"),
    [
        pytest.param(KNOWN, 3, 40, 3, Stored(5, 4, 3, 10), id="a small one is stored beside the others"),
        pytest.param(KNOWN, 3, 39, 3, Stored(6, 5), id="together they have more than a quarter of the nodes"),
        pytest.param(KNOWN, 3, 40, 2, Stored(6, 5), id="there would be too many"),
        pytest.param(KNOWN, DELTA_SIZE_MAX + 1, 100_000, 9, Stored(6, 5), id="it is not told"),
        pytest.param(Stored(), 1, 100_000, 9, Stored(6, 0), id="it is not known what is stored"),
    ],
)
def test_when_the_whole_is_stored_again(
    stored: Stored, delta_size: int, nodes: int, deltas_max: int, expected: Stored
) -> None:
    """Its version is that of the delta then, and deltas from the whole before on are kept."""
    delta = Delta(6, 5, tuple(a_node(f"n{number}") for number in range(delta_size)))
    assert WHOLE_SHARE == 4
    assert store(stored, delta, nodes, deltas_max) == expected
