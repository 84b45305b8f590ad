"""From one version of the snapshot to the next ones, step by step; tests/property has whole histories."""

from __future__ import annotations

import pytest

from scheduler.protocol.deltas import applied, chain, followed, newest_pools
from scheduler.protocol.snapshot import Delta, Pool, Snapshot
from tests.unit.arrange import a_node

ONE, TWO = a_node("n1"), a_node("n2")
FIVE, SIX, SEVEN = Delta(5, 4), Delta(6, 5), Delta(7, 6)


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        pytest.param([], [], id="nothing new"),
        pytest.param([SIX, SEVEN], [SIX, SEVEN], id="each from the one before"),
        pytest.param([SEVEN], None, id="one is missing before"),
        pytest.param([SIX, Delta(8, 7)], None, id="one is missing between"),
        pytest.param([FIVE, SIX], None, id="one came before"),
        pytest.param([SIX, SIX], None, id="one comes twice"),
        pytest.param([SIX, None], None, id="one only says that something changed"),
        pytest.param([Delta(5, 5), SIX], None, id="one that leads nowhere"),
    ],
)
def test_deltas_lead_on_from_a_version_or_they_do_not(deltas: list[Delta | None], expected: list[Delta] | None) -> None:
    """From version 5; a reader that finds that they do not reads the whole."""
    assert chain(5, deltas) == expected


def test_a_node_that_left_and_came_back_is_there() -> None:
    """And the other way round: what is told last counts."""
    came = Delta(6, 5, nodes=(ONE,))
    left = Delta(7, 6, removed=("n1", "never there"))
    assert applied({"n2": TWO}, [left, came]) == {"n1": ONE, "n2": TWO}
    assert applied({"n2": TWO}, [came, left]) == {"n2": TWO}


def test_pools_are_those_that_were_told_last() -> None:
    """None at all are pools too; a delta that says nothing of them leaves them."""
    pools = (Pool("a"),)
    assert newest_pools((), [Delta(6, 5, pools=pools), Delta(7, 6)]) == pools
    assert newest_pools(pools, [Delta(6, 5, pools=()), Delta(7, 6)]) == ()


def test_a_snapshot_that_is_followed_has_its_nodes_in_order() -> None:
    """And the version of the last delta."""
    after = followed(Snapshot(5, (TWO,), (Pool("a"),)), [Delta(6, 5, (ONE,)), SEVEN])
    assert after == Snapshot(7, (ONE, TWO), (Pool("a"),))
    assert followed(after, []) is after
