"""The lines that a waiting job can be in: which nodes are tried by which of those that were woken."""

from __future__ import annotations

import pytest

from scheduler.runtime.waiting.queues import shared_out


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        pytest.param("a1 b1", [("a1", "b1")], id="few go into one part as they come"),
        pytest.param("b1 a1 b2 c1 a2", [("a1", "a2", "b1")], id="one part is filled from the next tiers"),
        pytest.param("c1 b1 c2 c3", [("b1", "c1", "c2")], id="whichever tier is the best that there is"),
        pytest.param("a1 b1 a2 a3", [("a1", "a2", "a3")], id="the best tier alone if it fills the part"),
        pytest.param("a1 b1 a2 a3 a4", [("a1", "a2", "a3"), ("a4",)], id="or in parts, if it is larger"),
    ],
)
def test_nodes_are_shared_out(nodes: str, expected: list[tuple[str, ...]]) -> None:
    """In parts of three, by the place of their pool."""
    assert shared_out(nodes.split(), lambda node: "abc".index(node[0]), 3) == expected
