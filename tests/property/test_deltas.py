"""Random histories of a fleet, followed by deltas: always what the whole says, whatever becomes of the deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.config import DEFAULTS
from scheduler.management import publication as picture_module
from scheduler.management.fleet import Fleet, age, clear_changed, configure, fold
from scheduler.management.pools import PoolDocument
from scheduler.management.publication import FleetView, Stored, revise, snapshot_of, store, told
from scheduler.protocol.deltas import chain, followed
from scheduler.protocol.documents import ANY_LANGUAGE, NodeBeat
from scheduler.protocol.snapshot import EMPTY_SNAPSHOT, Delta, Match, Snapshot
from scheduler.runtime import index as index_module
from scheduler.runtime.index import Group, Index
from tests.unit.arrange import EN_DE, EN_ZH, picture

SILENCE_MS = 5_000
NEEDS = [
    (*pair, features, tenant)
    for pair in (EN_ZH, EN_DE, (ANY_LANGUAGE, "zh"), ("", ""))
    for features in ((), ("gpu",))
    for tenant in ("", "t1")
]
"""What indexes are asked: (src_lang, tgt_lang, features, tenant)."""

beats = st.builds(
    lambda node, boot, capacity, pairs, features, pool, draining: NodeBeat(
        f"n{node}", f"{boot}-x", capacity, pairs, features, pool=pool, draining=draining
    ),
    st.integers(0, 5),
    st.integers(1, 2),
    st.integers(0, 3),
    st.sampled_from([(EN_ZH,), (EN_DE, EN_ZH), (("auto", "zh"),), ()]),
    st.sampled_from([(), ("gpu",)]),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from([False, False, True]),
)
configurations = st.sampled_from(
    [
        {},
        {"a": PoolDocument(fallback=("b",))},
        {"b": PoolDocument(match=Match(pairs=(EN_DE,), tenants=("t1",))), "a": PoolDocument(candidates=2)},
    ]
)
steps = st.one_of(
    st.lists(st.tuples(beats, st.integers(0, 400)), max_size=4),
    st.integers(1, 3_000),  # so much time passes
    configurations,
)
histories = st.lists(steps, min_size=1, max_size=16)


class Version:
    """One version of a history: its delta, and what placement is to see."""

    def __init__(self, delta: Delta, whole: Snapshot) -> None:
        self.delta = delta
        self.whole = whole


def lived(history: Sequence[Any]) -> list[Version]:
    """The versions of a history, each made from the news alone and compared with the picture of the whole fleet."""
    fleet, before, now_ms, versions = Fleet(), FleetView(), 10_000, list[Version]()
    for step in history:
        if isinstance(step, int):
            now_ms += step
        elif isinstance(step, dict):
            fleet = configure(fleet, step)
        else:
            fleet, _ = fold(fleet, [(beat, now_ms - late_ms) for beat, late_ms in step])
        fleet = age(fleet, now_ms, SILENCE_MS)
        after, delta = revise(before, fleet, fleet.changed, before.version + 1, DEFAULTS)
        assert snapshot_of(after) == picture(fleet, after.version, DEFAULTS)
        assert (after.version > before.version) == (delta.size > 0)
        if delta.size:
            versions.append(Version(delta, snapshot_of(after)))
        fleet, before = clear_changed(fleet), after
    return versions


def seen(index: Index) -> object:
    """All that an index answers, without the order of the nodes."""

    def shown(group: Group | None) -> object:
        if group is None:
            return None
        nodes = sorted(group.nodes, key=lambda node: node.id)
        return nodes, sorted(group.ids), group.slots, shown(group.trusted)

    answers = {needs: {pool: shown(found) for pool, found in index.members(*needs).items()} for needs in NEEDS}
    return index.version, index.nodes, index.boots, index.pools, index.overrides, answers


@pytest.mark.parametrize("moved_min", [0, 2, 100])
@settings(deadline=None)
@given(history=histories)
def test_each_delta_leads_to_the_next_version(moved_min: int, history: list[Any]) -> None:
    """Of the snapshot, and of an index that remembers what it was asked."""
    with mock.patch.object(index_module, "MOVED_MIN", moved_min):
        whole, index = EMPTY_SNAPSHOT, Index()
        for version in lived(history):
            assert followed(whole, [version.delta]) == version.whole
            index = index.revised([version.delta])
            assert seen(index) == seen(Index(version.whole))
            whole = version.whole


@settings(deadline=None)
@given(history=histories, start=st.integers(0, 15), end=st.integers(0, 15))
def test_several_deltas_at_once_lead_to_the_last_version(history: list[Any], start: int, end: int) -> None:
    """From any version to any later one."""
    versions = lived(history)
    before, ahead = versions[start : start + 1], versions[start + 1 : end + 1]
    if not before or not ahead:
        return
    deltas = chain(before[0].whole.version, [version.delta for version in ahead])
    assert deltas is not None
    assert followed(before[0].whole, deltas) == ahead[-1].whole
    index = Index(before[0].whole)
    seen(index)
    assert seen(index.revised(deltas)) == seen(Index(ahead[-1].whole))


faults = st.lists(st.tuples(st.sampled_from(["lose", "repeat", "swap", "silence"]), st.integers(0, 15)), max_size=4)


@settings(deadline=None)
@given(history=histories, harm=faults, reads=st.lists(st.integers(1, 3), max_size=16))
def test_lost_repeated_and_reordered_deltas_lead_to_a_reload(
    history: list[Any], harm: list[tuple[str, int]], reads: list[int]
) -> None:
    """Never to an index that no version has, and at the end to the newest."""
    versions = lived(history)
    wholes = {version.whole.version: version.whole for version in versions} | {0: EMPTY_SNAPSHOT}
    stream: list[Delta | None] = [version.delta for version in versions]
    for kind, place in harm:
        harmed(stream, kind, place)
    index = Index()
    while stream:
        count = reads.pop() if reads else 1
        read, stream = stream[:count], stream[count:]
        deltas = chain(index.version, read)
        # The newest that was published by then, as a reader finds it.
        index = index.revised(deltas) if deltas else Index(versions[-1].whole, index)
        assert seen(index) == seen(Index(wholes[index.version]))
    if versions and index.version != versions[-1].whole.version:
        index = Index(versions[-1].whole, index)  # as whoever compares versions does
    assert seen(index) == seen(Index(versions[-1].whole if versions else EMPTY_SNAPSHOT))


def harmed(stream: list[Delta | None], kind: str, place: int) -> None:
    """Something becomes of the deltas on their way."""
    if place >= len(stream):
        return
    if kind == "lose":
        del stream[place]
    elif kind == "repeat":
        stream.insert(place, stream[place])
    elif kind == "swap":
        stream[place - 1], stream[place] = stream[place], stream[place - 1]
    else:
        stream[place] = None


@pytest.mark.parametrize(("size_max", "share"), [(500, 4), (2, 1)])
@settings(deadline=None)
@given(history=histories, deltas_max=st.integers(1, 5), new_leaders=st.sets(st.integers(0, 15)))
def test_the_stored_whole_and_the_deltas_after_it_are_the_newest_version(
    size_max: int, share: int, history: list[Any], deltas_max: int, new_leaders: set[int]
) -> None:
    """After each publication, also of new leaders; who is a version behind finds what leads on from there."""
    with (
        mock.patch.object(picture_module, "DELTA_SIZE_MAX", size_max),
        mock.patch.object(picture_module, "WHOLE_SHARE", share),
    ):
        stored, whole, stream, before = Stored(), EMPTY_SNAPSHOT, list[Delta](), EMPTY_SNAPSHOT
        for number, version in enumerate(lived(history)):
            stored = Stored() if number in new_leaders else stored
            stored = store(stored, version.delta, len(version.whole.nodes), deltas_max)
            stream.append(told(version.delta))
            if stored.whole == version.whole.version:
                whole = version.whole
                stream = [delta for delta in stream if delta.version >= stored.oldest]
            after = chain(whole.version, [d if d.size else None for d in stream if d.version > whole.version])
            assert after is not None
            assert len(after) <= deltas_max
            assert followed(whole, after) == version.whole
            behind = chain(before.version, [d if d.size else None for d in stream if d.version > before.version])
            assert behind is None or followed(before, behind) == version.whole
            before = version.whole
