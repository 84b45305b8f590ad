"""Heartbeats become what is known of the nodes, and that becomes capacities and a snapshot."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from scheduler.config import DEFAULTS
from scheduler.management.fleet import (
    Fleet,
    Ignored,
    NodeState,
    age,
    capacity_of,
    clear_changed,
    configure,
    fold,
    forget,
    recover,
    reset_silence,
)
from scheduler.management.pools import DEFAULT_POOL, PoolDocument, complete
from scheduler.protocol.documents import NodeBeat
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Node, Reason, Snapshot
from tests.unit.arrange import BOOT, EN_DE, EN_ZH, LATER_BOOT, a_beat, picture, same_picture

SILENCE_MS = 5_000


def seed_fleet(*beats: NodeBeat, heard_ms: int = 1_000) -> Fleet:
    """A fleet that was heard at `heard_ms`."""
    fleet, ignored = fold(Fleet(), [(beat, heard_ms) for beat in beats])
    assert ignored == []
    return fleet


def capacities(fleet: Fleet) -> dict[str, tuple[int, str]]:
    """Slots and reason of each node."""
    items = [capacity_of(known) for known in fleet.nodes.values()]
    return {item.node: (item.slots, item.reason) for item in items}


def placed_on(fleet: Fleet) -> list[str]:
    """The nodes of the snapshot."""
    return [node.id for node in picture(fleet, 1, DEFAULTS).nodes]


# ---- heartbeats --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("beats", "expected", "ignored"),
    [
        pytest.param([(a_beat(), 5)], NodeState(a_beat(), 5), [], id="the first is a registration"),
        pytest.param(
            [(a_beat(), 5), (a_beat(capacity=9, draining=True, healthy=False, running=3), 6)],
            NodeState(a_beat(capacity=9, draining=True, healthy=False, running=3), 6),
            [],
            id="capacity, health and load change within a boot",
        ),
        pytest.param(
            [(a_beat(), 5), (a_beat(pairs=(EN_DE,), pool="b", capacity=9), 6)],
            NodeState(a_beat(capacity=9), 6),
            [Ignored("n1", f"boot {BOOT} changed what it serves; that takes a new boot")],
            id="what it serves does not",
        ),
        pytest.param(
            [(a_beat(), 5), (a_beat(boot=LATER_BOOT, pairs=(EN_DE,)), 6)],
            NodeState(a_beat(boot=LATER_BOOT, pairs=(EN_DE,)), 6),
            [],
            id="a later boot replaces all of it",
        ),
        pytest.param(
            [(a_beat(boot=LATER_BOOT), 5), (a_beat(capacity=9), 6)],
            NodeState(a_beat(boot=LATER_BOOT), 5),
            [Ignored("n1", f"boot {BOOT} is older than {LATER_BOOT}")],
            id="an earlier boot changes nothing",
        ),
        pytest.param(
            [(a_beat(), 5), (a_beat(boot="1000-z"), 6)],
            NodeState(a_beat(), 5),
            [Ignored("n1", f"boot 1000-z is older than {BOOT}")],
            id="nor does another boot of the same number",
        ),
        pytest.param(
            [(a_beat(boot="999-a"), 5), (a_beat(boot="1000-a"), 6)],
            NodeState(a_beat(boot="1000-a"), 6),
            [],
            id="boots are ordered as numbers",
        ),
        pytest.param(
            [(a_beat(capacity=2), 9), (a_beat(), 6)],
            NodeState(a_beat(), 9),
            [],
            id="a stamp from before the clock was stepped makes nobody silent",
        ),
    ],
)
def test_fold(beats: Sequence[tuple[NodeBeat, int]], expected: NodeState, ignored: list[Ignored]) -> None:
    """What is known of a node after some of its heartbeats."""
    fleet, found = fold(Fleet(), beats)
    assert (fleet.nodes, found) == ({"n1": expected}, ignored)


def test_a_heartbeat_of_one_node_leaves_the_others_alone() -> None:
    """And the fleet before it as well: it is a value."""
    before = seed_fleet(a_beat("n1"), a_beat("n2"))
    after, _ = fold(before, [(a_beat("n2", capacity=9), 2_000)])
    assert after.nodes == {"n1": NodeState(a_beat("n1"), 1_000), "n2": NodeState(a_beat("n2", capacity=9), 2_000)}
    assert before == seed_fleet(a_beat("n1"), a_beat("n2"))


# ---- silence -----------------------------------------------------------------------------------------------


def test_a_silent_node_is_dead_and_alive_when_it_is_heard_again() -> None:
    """Silence of exactly the limit is too long; a dead node has no slots and is not in the snapshot."""
    fleet = seed_fleet(a_beat("n1"), a_beat("n2"))
    fleet, _ = fold(fleet, [(a_beat("n2"), 1_001)])
    fleet = age(fleet, 1_000 + SILENCE_MS, SILENCE_MS)
    assert (capacities(fleet), placed_on(fleet)) == ({"n1": (0, "dead"), "n2": (4, "ready")}, ["n2"])
    fleet, _ = fold(fleet, [(a_beat("n1"), 1_000 + SILENCE_MS)])
    fleet = age(fleet, 1_001 + SILENCE_MS, SILENCE_MS)
    assert (capacities(fleet), placed_on(fleet)) == ({"n1": (4, "ready"), "n2": (0, "dead")}, ["n1"])


@pytest.mark.parametrize(
    ("fleet", "silent", "expected"),
    [
        pytest.param(10, 3, "dead", id="three of ten are nodes that died"),
        pytest.param(10, 4, "suspect", id="four of ten are more than three"),
        pytest.param(20, 6, "dead", id="six of twenty are not more than 30 %"),
        pytest.param(20, 7, "suspect", id="seven of twenty are"),
        pytest.param(4, 4, "suspect", id="a small fleet that falls silent as a whole"),
    ],
)
def test_many_that_fall_silent_at_once_are_suspect(fleet: int, silent: int, expected: str) -> None:
    """RULES 17: they keep their slots and are placed on; the others are as they were."""
    names = [f"n{number}" for number in range(fleet)]
    known = seed_fleet(*(a_beat(name) for name in names))
    known, _ = fold(known, [(a_beat(name), 4_000) for name in names[silent:]])
    after = age(known, 1_000 + SILENCE_MS, SILENCE_MS)
    assert {capacities(after)[name] for name in names[:silent]} == {(4 if expected == "suspect" else 0, expected)}
    assert [capacities(after)[name] for name in names[silent:]] == [(4, "ready")] * (fleet - silent)
    assert {node.id for node in picture(after, 1, DEFAULTS).nodes if node.suspect} == (
        set(names[:silent]) if expected == "suspect" else set()
    )


def test_those_that_fell_silent_together_reach_the_end_of_their_period_one_after_the_other() -> None:
    """RULES 17: the first of them is suspect already, because the others have not been heard for long either."""
    known, _ = fold(Fleet(), [(a_beat(f"n{number}"), 1_000 + 200 * number) for number in range(5)])
    after = age(known, 1_000 + SILENCE_MS, SILENCE_MS)
    assert capacities(after)["n0"] == (4, "suspect")


def test_a_suspect_is_dead_after_five_periods_and_well_when_it_is_heard() -> None:
    """RULES 17: silence that lasts is death after all."""
    fleet = age(seed_fleet(*(a_beat(f"n{number}") for number in range(5))), 1_000 + SILENCE_MS, SILENCE_MS)
    fleet, _ = fold(fleet, [(a_beat("n0"), 20_000)])
    just_before = age(fleet, 999 + 5 * SILENCE_MS, SILENCE_MS)
    assert capacities(just_before) == {"n0": (0, "dead")} | {f"n{number}": (4, "suspect") for number in range(1, 5)}
    assert capacities(age(just_before, 1_000 + 5 * SILENCE_MS, SILENCE_MS))["n1"] == (0, "dead")
    heard, _ = fold(just_before, [(a_beat("n1"), 25_999)])
    assert capacities(age(heard, 26_000, SILENCE_MS))["n1"] == (4, "ready")


@pytest.mark.parametrize("what", ["a pause of the leader", "a take-over"])
def test_a_suspect_stays_one_until_it_is_heard(what: str) -> None:
    """RULES 17: that nobody listened makes nobody well, and its leases still cost no crash when they end."""
    fleet = age(seed_fleet(*(a_beat(f"n{number}") for number in range(5))), 1_000 + SILENCE_MS, SILENCE_MS)
    if what == "a take-over":
        written = {item.node: item for item in map(capacity_of, fleet.nodes.values())}
        fleet = recover(picture(fleet, 1, DEFAULTS), written, 30_000)
    else:
        fleet = reset_silence(fleet, 30_000)
    assert set(capacities(age(fleet, 30_001, SILENCE_MS)).values()) == {(4, "suspect")}
    heard, _ = fold(fleet, [(a_beat("n1"), 30_002)])
    assert capacities(age(heard, 30_003, SILENCE_MS))["n1"] == (4, "ready")


def test_a_new_leader_believes_the_cells_about_slots() -> None:
    """The leader before wrote fewer slots there, acknowledged the heartbeat, and was gone before it published them."""
    stored = picture(seed_fleet(a_beat("n1", capacity=4)), 1, DEFAULTS)
    fleet = recover(stored, {"n1": CapacityItem("n1", 2, BOOT, "ready")}, 90_000)
    assert capacities(fleet) == {"n1": (2, "ready")}


def test_a_drain_of_many_is_no_silence_of_many() -> None:
    """RULES 17: nodes that drain are expected to fall silent, so that they are dead when they do."""
    fleet = seed_fleet(*(a_beat(f"n{number}", draining=True) for number in range(9)), a_beat("n9"))
    after = age(fleet, 1_000 + SILENCE_MS, SILENCE_MS)
    assert set(capacities(after).values()) == {(0, "dead")}


def test_a_dead_node_stays_dead_when_many_others_fall_silent() -> None:
    """RULES 17: it fell silent alone and before them, so that nothing speaks for it; the others are suspect."""
    names = [f"n{number}" for number in range(9)]
    fleet = seed_fleet(a_beat("dead"), *map(a_beat, names))
    fleet, _ = fold(fleet, [(a_beat(name), 4_000) for name in names])
    fleet = age(fleet, 1_000 + SILENCE_MS, SILENCE_MS)
    fleet, _ = fold(fleet, [(a_beat(name), 9_000) for name in names[4:]])
    after = age(fleet, 4_000 + SILENCE_MS, SILENCE_MS)
    assert capacities(after) == {"dead": (0, "dead")} | dict.fromkeys(names[:4], (4, "suspect")) | dict.fromkeys(
        names[4:], (4, "ready")
    )


def test_a_node_that_drains_is_dead_when_it_falls_silent_with_many_others() -> None:
    """RULES 17: it was expected to go; as a suspect it would be in the way of its reaper for four periods more."""
    names = [f"n{number}" for number in range(9)]
    fleet = seed_fleet(a_beat("drains", draining=True), *map(a_beat, names))
    after = age(fleet, 1_000 + SILENCE_MS, SILENCE_MS)
    assert capacities(after) == {"drains": (0, "dead")} | dict.fromkeys(names, (4, "suspect"))


def test_silence_counts_only_while_somebody_listened() -> None:
    """After a pause of the leader every age starts anew."""
    fleet = reset_silence(seed_fleet(a_beat("n1")), 60_000)
    assert capacities(age(fleet, 60_000 + SILENCE_MS - 1, SILENCE_MS)) == {"n1": (4, "ready")}
    assert capacities(age(fleet, 60_000 + SILENCE_MS, SILENCE_MS)) == {"n1": (0, "dead")}


@pytest.mark.parametrize(("nodes", "reason"), [(1, "dead"), (4, "suspect")])
def test_a_node_that_is_heard_again_is_news(nodes: int, reason: str) -> None:
    """Though it says what it said before: the cells have it as dead or suspect, and nothing else tells them."""
    beats = [a_beat(f"n{number}") for number in range(nodes)]
    fleet = clear_changed(age(seed_fleet(*beats), 1_000 + SILENCE_MS, SILENCE_MS))
    assert {why for _, why in capacities(fleet).values()} == {reason}
    heard, _ = fold(fleet, [(beats[0], 1_001 + SILENCE_MS)])
    assert (set(heard.changed), capacities(heard)["n0"]) == ({"n0"}, (4, "ready"))


def test_a_node_whose_first_heartbeat_is_read_late_is_dead_in_time() -> None:
    """Its silence counts from when it was heard, though all others were looked at later than that."""
    fleet = age(seed_fleet(a_beat("n1"), heard_ms=4_000), 4_000, SILENCE_MS)
    fleet, _ = fold(fleet, [(a_beat("n2"), 1_000)])
    after = age(fleet, 1_000 + SILENCE_MS, SILENCE_MS)
    assert capacities(after) == {"n1": (4, "ready"), "n2": (0, "dead")}


def test_what_is_read_late_is_old_news() -> None:
    """Newer heartbeats are folded already; one of a node that was not heard since is none."""
    fleet = seed_fleet(a_beat("n1", capacity=2), heard_ms=9)
    assert fold(fleet, [(a_beat("n1"), 6)], late=True)[0].nodes == fleet.nodes
    assert fold(fleet, [(a_beat("n1"), 9)], late=True)[0].nodes["n1"].beat == a_beat("n1")


def test_listening_anew_makes_everybody_heard_now() -> None:
    """Also whom the clock, before it went back, had heard later; of the dead only that."""
    fleet = seed_fleet(a_beat("n1"), a_beat("n2"), heard_ms=9_000)
    assert {known.heard_ms for known in reset_silence(fleet, 8_000).nodes.values()} == {8_000}
    dead = age(fleet, 9_000 + SILENCE_MS, SILENCE_MS)
    assert {known.heard_ms for known in reset_silence(dead, 8_000).nodes.values()} == {8_000}
    assert {known.heard_ms for known in reset_silence(dead, 90_000).nodes.values()} == {9_000}


def test_silence_counts_when_the_clock_went_back() -> None:
    """Whoever seems to be heard later than now was heard now, and is dead when it stays silent."""
    fleet = clear_changed(age(seed_fleet(a_beat("n1"), heard_ms=7_200_000), 7_200_000, SILENCE_MS))
    fleet = age(fleet, 3_600_000, SILENCE_MS)
    assert not fleet.nodes["n1"].dead
    assert age(fleet, 3_600_000 + SILENCE_MS, SILENCE_MS).nodes["n1"].dead


def test_the_dead_stay_dead_when_listening_begins_anew() -> None:
    """A pause of the leader is no sign of life of a node that was dead before it."""
    fleet = age(seed_fleet(a_beat("n1")), 1_000 + SILENCE_MS, SILENCE_MS)
    fleet = age(reset_silence(fleet, 60_000), 60_000, SILENCE_MS)
    assert (capacities(fleet), placed_on(fleet)) == ({"n1": (0, "dead")}, [])


@pytest.mark.parametrize(
    ("dead", "present", "now_ms", "kept"),
    [
        pytest.param(True, [], 61_000, False, id="dead for long, and no cell knows it"),
        pytest.param(True, ["n1"], 61_000, True, id="a cell still knows it"),
        pytest.param(True, [], 60_999, True, id="not dead for long enough"),
        pytest.param(False, [], 61_000, True, id="not dead"),
    ],
)
def test_forget(dead: bool, present: list[str], now_ms: int, kept: bool) -> None:
    """A node goes when it is dead, was silent for a minute, and has been taken out of the cells."""
    fleet = Fleet({"n1": NodeState(a_beat("n1"), 1_000, dead=dead), "n2": NodeState(a_beat("n2"), 60_000)})
    assert set(forget(fleet, present, now_ms, 60_000).nodes) == ({"n1", "n2"} if kept else {"n2"})


# ---- capacities and the snapshot ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "slots", "reason"),
    [
        pytest.param(NodeState(a_beat(), 0), 4, "ready", id="ready"),
        pytest.param(NodeState(a_beat(draining=True), 0), 0, "draining", id="draining"),
        pytest.param(NodeState(a_beat(healthy=False), 0), 0, "quarantined", id="it calls itself unhealthy"),
        pytest.param(NodeState(a_beat(), 0, dead=True), 0, "dead", id="dead"),
        pytest.param(NodeState(a_beat(draining=True, healthy=False), 0, dead=True), 0, "dead", id="dead before all"),
        pytest.param(NodeState(a_beat(draining=True, healthy=False), 0), 0, "draining", id="draining before unhealthy"),
    ],
)
def test_capacity_of(known: NodeState, slots: int, reason: Reason) -> None:
    """A node that can take no work has no slots, and the reason is said."""
    assert capacity_of(known) == CapacityItem("n1", slots, BOOT, reason)


def test_the_picture_shows_who_can_take_work_and_every_pool() -> None:
    """Sorted by id; a node without a pool is in the default one; pools without configuration have the defaults."""
    fleet = seed_fleet(
        a_beat("n3", capacity=0),
        a_beat("n2", pool="fast", pairs=(EN_ZH, EN_DE)),
        a_beat("n1"),
        a_beat("n4", draining=True, pool="empty"),
    )
    said = {"fast": PoolDocument(strategy="spread"), "later": PoolDocument()}
    assert picture(configure(fleet, said), 7, DEFAULTS) == Snapshot(
        7,
        (
            Node("n1", BOOT, 4, DEFAULT_POOL, (EN_ZH,), assigned=True),
            Node("n2", BOOT, 4, "fast", (EN_ZH, EN_DE)),
        ),
        (
            complete(DEFAULT_POOL, PoolDocument(), DEFAULTS),
            complete("fast", said["fast"], DEFAULTS),
            complete("later", said["later"], DEFAULTS),
        ),
    )


def test_a_steady_fleet_gives_the_same_picture() -> None:
    """Heartbeats that change the load only, and the passing of time, are nothing that placement can see."""
    fleet = seed_fleet(a_beat("n1"), a_beat("n2"))
    before = picture(fleet, 1, DEFAULTS)
    fleet, _ = fold(fleet, [(a_beat("n2", running=3), 2_000), (a_beat("n1", running=1), 2_001)])
    after = picture(age(fleet, 2_002, SILENCE_MS), 2, DEFAULTS)
    assert same_picture(before, after)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(a_beat("n1", capacity=5), id="capacity"),
        pytest.param(a_beat("n1", draining=True), id="draining"),
        pytest.param(a_beat("n1", healthy=False), id="health"),
        pytest.param(a_beat("n1", boot=LATER_BOOT), id="a new boot"),
        pytest.param(a_beat("n2"), id="another node"),
    ],
)
def test_what_placement_can_see_makes_another_picture(change: NodeBeat) -> None:
    """Each of these is published."""
    fleet = seed_fleet(a_beat("n1"))
    after, _ = fold(fleet, [(change, 2_000)])
    assert not same_picture(picture(fleet, 1, DEFAULTS), picture(after, 1, DEFAULTS))


def test_another_policy_of_a_pool_makes_another_picture() -> None:
    """Also when no node changed."""
    fleet = seed_fleet(a_beat("n1"))
    other = configure(fleet, {DEFAULT_POOL: PoolDocument(strategy="spread")})
    assert not same_picture(picture(fleet, 1, DEFAULTS), picture(other, 1, DEFAULTS))


# ---- a new leader ------------------------------------------------------------------------------------------


def test_a_new_leader_knows_what_is_stored_and_ages_from_now() -> None:
    """It publishes the same picture, and nobody is dead before a whole period of silence."""
    stored = picture(seed_fleet(a_beat("n1"), a_beat("n2", pool="fast")), 5, DEFAULTS)
    written = {node.id: CapacityItem(node.id, node.slots, node.boot, "ready") for node in stored.nodes}
    fleet = age(recover(stored, written, 90_000), 90_000 + SILENCE_MS - 1, SILENCE_MS)
    assert picture(fleet, 5, DEFAULTS) == stored
    assert set(capacities(age(fleet, 90_000 + SILENCE_MS, SILENCE_MS)).values()) == {(0, "dead")}


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        pytest.param(CapacityItem("n9", 3, BOOT, "ready"), (3, "ready"), id="published by nobody yet"),
        pytest.param(CapacityItem("n9", 0, BOOT, "draining"), (0, "draining"), id="draining"),
        pytest.param(CapacityItem("n9", 0, BOOT, "quarantined"), (0, "quarantined"), id="quarantined"),
        pytest.param(CapacityItem("n9", 0, BOOT, "dead"), (0, "dead"), id="dead"),
        pytest.param(CapacityItem("n1", 2, LATER_BOOT, "ready"), (2, "ready"), id="a boot that is not published yet"),
        pytest.param(CapacityItem("n1", 0, BOOT, "draining"), (0, "draining"), id="drained since the last snapshot"),
    ],
)
def test_a_node_that_only_a_cell_knows_is_not_placed_on_before_it_is_heard(
    item: CapacityItem, expected: tuple[int, str]
) -> None:
    """Its capacity stands as it is written; its languages are not known."""
    stored = Snapshot(5, (Node("n1", BOOT, 4, DEFAULT_POOL, (EN_ZH,)),))
    written = {"n1": CapacityItem("n1", 4, BOOT, "ready")} | {item.node: item}
    fleet = age(recover(stored, written, 90_000), 90_001, SILENCE_MS)
    assert capacities(fleet)[item.node] == expected
    assert item.node not in placed_on(fleet)
    heard, ignored = fold(fleet, [(a_beat(item.node, boot=item.boot), 90_002)])
    assert (capacities(heard)[item.node], item.node in placed_on(heard), ignored) == ((4, "ready"), True, [])


def test_an_earlier_boot_does_not_return_by_a_take_over() -> None:
    """A late heartbeat of the boot before changes nothing about the one that the cell has."""
    fleet = recover(Snapshot(5), {"n1": CapacityItem("n1", 2, LATER_BOOT, "ready")}, 90_000)
    after, ignored = fold(fleet, [(a_beat("n1"), 90_001)])
    assert (after, ignored) == (fleet, [Ignored("n1", f"boot {BOOT} is older than {LATER_BOOT}")])


def test_the_dead_do_not_get_a_new_period_by_a_take_over() -> None:
    """A node that the cell calls dead is dead at once, until it is heard; also if the new leader pauses."""
    fleet = recover(Snapshot(5), {"n1": CapacityItem("n1", 0, BOOT, "dead")}, 90_000)
    assert capacities(age(fleet, 90_000, SILENCE_MS)) == {"n1": (0, "dead")}
    assert capacities(age(reset_silence(fleet, 99_000), 99_000, SILENCE_MS)) == {"n1": (0, "dead")}
    heard, _ = fold(fleet, [(a_beat("n1"), 90_001)])
    assert capacities(age(heard, 90_002, SILENCE_MS)) == {"n1": (4, "ready")}
