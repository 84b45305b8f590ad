"""Folding heartbeats of any kind, in any order."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.config import DEFAULTS
from scheduler.management.fleet import SUSPECTS_MIN, Fleet, age, capacity_of, clear_changed, fold, recover
from scheduler.management.publication import node_of
from scheduler.protocol.documents import NodeBeat, boot_order
from tests.unit.arrange import EN_DE, EN_ZH, a_beat, picture, same_picture

SILENCE_MS = 5_000
FEW = [f"n{number}" for number in range(SUSPECTS_MIN)]

beats = st.builds(
    lambda node, boot, capacity, pairs, draining, healthy, running: a_beat(
        f"n{node}", f"{boot}-x", capacity, pairs, draining=draining, healthy=healthy, running=running
    ),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from([(EN_ZH,), (EN_DE,), ()]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
)
heard = st.lists(st.tuples(beats, st.integers(0, 20_000)), max_size=20)


def folded(happened: list[tuple[NodeBeat, int]]) -> Fleet:
    """The fleet after these heartbeats."""
    return fold(Fleet(), happened)[0]


@settings(deadline=None)
@given(heard)
def test_the_highest_boot_rules_and_what_it_serves_is_what_it_said_first(happened: list[tuple[NodeBeat, int]]) -> None:
    """Its capacity and health are what it said last, whatever the clock said then."""
    for name, known in folded(happened).nodes.items():
        highest = max(boot_order(beat.boot) for beat, _ in happened if beat.node == name)
        ruling = [each for each in happened if each[0].node == name and boot_order(each[0].boot) == highest]
        first, last = ruling[0][0], ruling[-1][0]
        assert known.beat == a_beat(
            name,
            first.boot,
            last.capacity,
            first.pairs,
            draining=last.draining,
            healthy=last.healthy,
            running=last.running,
        )


@settings(deadline=None)
@given(heard, st.integers(0, 20))
def test_it_does_not_matter_where_a_batch_ends(happened: list[tuple[NodeBeat, int]], cut: int) -> None:
    """Two takes fold to the same as one."""
    half, ignored = fold(Fleet(), happened[:cut])
    fleet, more = fold(half, happened[cut:])
    assert (fleet, ignored + more) == fold(Fleet(), happened)


@settings(deadline=None)
@given(heard)
def test_heard_again_is_steady(happened: list[tuple[NodeBeat, int]]) -> None:
    """The last word of every node, repeated, publishes nothing."""
    fleet = folded(happened)
    again, ignored = fold(fleet, [(known.beat, known.heard_ms + 1) for known in fleet.nodes.values()])
    assert ignored == []
    assert same_picture(picture(fleet, 1, DEFAULTS), picture(again, 2, DEFAULTS))


@settings(deadline=None)
@given(heard, st.integers(0, 40_000))
def test_dead_is_who_was_silent_for_too_long(happened: list[tuple[NodeBeat, int]], now_ms: int) -> None:
    """However often ages are looked at, while few are silent, so none is suspect; and a clock that goes back wakes no
    dead.
    """
    fleet = folded([each for each in happened if each[0].node in FEW])
    aged = age(fleet, now_ms, SILENCE_MS)
    assert {name for name, known in aged.nodes.items() if known.dead} == {
        name for name, known in fleet.nodes.items() if now_ms - known.heard_ms >= SILENCE_MS
    }
    earlier = age(aged, now_ms - SILENCE_MS, SILENCE_MS)
    assert {name for name, known in earlier.nodes.items() if known.dead} >= {
        name for name, known in aged.nodes.items() if known.dead
    }


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.tuples(beats, st.integers(0, 2_000)), max_size=3), st.integers(-500, 4_000))))
def test_to_look_when_somebody_is_due_is_to_look_always(happened: list[tuple[list[Any], int]]) -> None:
    """Nobody is dead, suspect or alive a step later for it, also when heartbeats come late and a clock falls back."""
    now_ms, fleet, always = 20_000, Fleet(), Fleet()
    for said, passed_ms in happened:
        now_ms += passed_ms
        heard_at = [(beat, now_ms - late_ms) for beat, late_ms in said]
        fleet = age(fold(fleet, heard_at)[0], now_ms, SILENCE_MS)
        looking = msgspec.structs.replace(fold(always, heard_at)[0], due_ms=0)
        always = age(looking, now_ms, SILENCE_MS)
        assert fleet.nodes == always.nodes


@settings(deadline=None)
@given(heard, st.integers(0, 40_000))
def test_whose_capacity_or_picture_changed_is_news(happened: list[tuple[NodeBeat, int]], now_ms: int) -> None:
    """And who says what he said before is not."""
    before = clear_changed(age(folded(happened[:10]), now_ms, SILENCE_MS))
    after = age(fold(before, happened[10:])[0], now_ms, SILENCE_MS)
    others = {
        name
        for name, known in after.nodes.items()
        if name not in before.nodes
        or capacity_of(before.nodes[name]) != capacity_of(known)
        or node_of(before.nodes[name]) != node_of(known)
    }
    assert others <= after.changed
    again, _ = fold(
        clear_changed(after), [(known.beat, known.heard_ms) for known in after.nodes.values() if not known.dead]
    )
    assert again.changed == {name for name, known in after.nodes.items() if known.suspect}


@settings(deadline=None)
@given(heard, st.integers(0, 40_000))
def test_a_take_over_changes_no_capacity_of_the_living_and_no_picture(
    happened: list[tuple[NodeBeat, int]], now_ms: int
) -> None:
    """The next leader says of every node what the last one said, before anybody is heard."""
    fleet = age(folded(happened), now_ms, SILENCE_MS)
    published = picture(fleet, 9, DEFAULTS)
    written = {name: capacity_of(known) for name, known in fleet.nodes.items()}
    taken_over = age(recover(published, written, now_ms), now_ms, SILENCE_MS)
    assert {name: capacity_of(known) for name, known in taken_over.nodes.items()} == written
    assert same_picture(picture(taken_over, 9, DEFAULTS), published)
