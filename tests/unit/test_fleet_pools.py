"""Where nodes are: they name a pool, or one is found for them by the rules that are in force."""

from __future__ import annotations

from typing import Any

from scheduler.config import DEFAULTS
from scheduler.management.fleet import Fleet, age, configure, fold, named_pools, recover
from scheduler.management.pools import DEFAULT_POOL, PoolDocument
from scheduler.protocol.documents import NodeBeat
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Match
from tests.unit.arrange import EN_DE, EN_ZH, LATER_BOOT, a_beat, picture

SILENCE_MS = 5_000


def seed_fleet(*beats: NodeBeat) -> Fleet:
    """A fleet that was heard at 1000."""
    return fold(Fleet(), [(beat, 1_000) for beat in beats])[0]


def pools_of(fleet: Fleet) -> dict[str, tuple[str, bool]]:
    """The pool of each node of the snapshot, and whether it was found for it."""
    return {node.id: (node.pool, node.assigned) for node in picture(fleet, 1, DEFAULTS).nodes}


def rule(**match: Any) -> PoolDocument:
    """A pool that takes the nodes that fit."""
    return PoolDocument(match=Match(**match))


def test_a_node_that_joins_is_where_the_rules_put_it() -> None:
    """Unless it names its pool; each beat after it leaves it there."""
    fleet = configure(Fleet(), {"chinese": rule(pairs=(EN_ZH,))})
    joined = [(a_beat("n1"), 1), (a_beat("n2", pairs=(EN_DE,)), 1), (a_beat("n3", pool="fast"), 1)]
    fleet, _ = fold(fleet, [*joined, *((beat, 2) for beat, _ in joined)])
    assert pools_of(fleet) == {"n1": ("chinese", True), "n2": (DEFAULT_POOL, True), "n3": ("fast", False)}


def test_a_later_boot_is_put_anew() -> None:
    """It may serve something else."""
    fleet, _ = fold(configure(Fleet(), {"chinese": rule(pairs=(EN_ZH,))}), [(a_beat("n1"), 1)])
    fleet, _ = fold(fleet, [(a_beat("n1", LATER_BOOT, pairs=(EN_DE,)), 2)])
    assert pools_of(fleet) == {"n1": (DEFAULT_POOL, True)}


def test_another_configuration_moves_nodes_that_named_no_pool() -> None:
    """A rule that is gone gives them to the next one that fits, at last to the default pool."""
    fleet = seed_fleet(a_beat("n1"), a_beat("n2", pool="exact"))
    wide, exact = rule(pairs=(EN_ZH,)), rule(pairs=(EN_ZH, EN_DE))
    for said, expected in (
        ({"exact": wide, "wide": wide}, "exact"),
        ({"exact": exact, "wide": wide}, "wide"),
        ({"exact": exact}, DEFAULT_POOL),
        ({}, DEFAULT_POOL),
    ):
        fleet = configure(fleet, said)
        assert pools_of(fleet) == {"n1": (expected, True), "n2": ("exact", False)}


def test_a_configuration_that_moves_nobody_leaves_every_node_as_it_is() -> None:
    """The fleet before it as well: it is a value."""
    fleet = seed_fleet(a_beat("n1"), a_beat("n2", pool="fast"))
    assert configure(fleet, {"fast": PoolDocument()}).nodes == fleet.nodes
    assert fleet == seed_fleet(a_beat("n1"), a_beat("n2", pool="fast"))


def test_pools_that_nodes_name_are_counted() -> None:
    """Also by nodes that drain; not by the dead, nor those that a rule gave to a pool."""
    fleet = seed_fleet(a_beat("n1", pool="fast"), a_beat("n2", pool="fast", draining=True), a_beat("n3"))
    fleet = configure(fleet, {"fast": rule(pairs=(EN_ZH,))})
    assert named_pools(fleet) == {"fast": 2}
    assert named_pools(age(fleet, 1_000 + SILENCE_MS, SILENCE_MS)) == {}


def test_after_a_take_over_the_rules_still_decide() -> None:
    """A pool that was found for a node is not one that it names: with other rules it goes elsewhere."""
    fleet = seed_fleet(a_beat("n1"), a_beat("n2", pool="chinese"), a_beat("n3", pairs=(EN_DE,)))
    said = {"chinese": rule(pairs=(EN_ZH,))}
    stored = picture(configure(fleet, said), 5, DEFAULTS)
    written = {node.id: CapacityItem(node.id, node.slots, node.boot, "ready") for node in stored.nodes}

    recovered = configure(recover(stored, written, 90_000), said)
    assert picture(recovered, 5, DEFAULTS) == stored
    assert named_pools(recovered) == {"chinese": 1}
    heard, ignored = fold(recovered, [(known.beat, 90_001) for known in fleet.nodes.values()])
    assert (picture(heard, 5, DEFAULTS), ignored) == (stored, [])
    assert pools_of(configure(heard, {})) == {
        "n1": (DEFAULT_POOL, True), "n2": ("chinese", False), "n3": (DEFAULT_POOL, True),
    }  # fmt: skip
