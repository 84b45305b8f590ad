"""Where a session stands, why a job of it would have to move, and what `reserve` is told of that."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from scheduler.protocol.snapshot import Node, Pool
from scheduler.runtime.placement.candidates import Placement, classify, place
from scheduler.runtime.placement.sampler import Sampler
from scheduler.session.bindings import Binding
from tests.unit.arrange import EN_DE, EN_ZH, a_class, a_job, a_node, an_index
from tests.unit.test_placement import A123, bound

FLEET = (*A123[:2], a_node("de", pairs=(EN_DE,)), a_node("b1", "b"), a_node("x1", "x"))
"""Pool a has two nodes for en:zh and one for en:de, and falls back to b; x is another pool."""


def decided(
    binding: Binding | None, *, nodes: tuple[Node, ...] = FLEET, avoid: str = "", preferred: str = "", **policy: str
) -> Placement | None:
    """What is asked for a job of pool a; of its nodes a1 is the less used."""
    said = msgspec.convert({"id": "a", "fallback": ["b"], **policy}, Pool)
    index = an_index(*nodes, pools={"a": said})
    job = a_job(avoid=avoid, preferred_node=preferred)
    return place(job, a_class(), binding, index, Sampler({"a1": 1, "a2": 2}, Random(1)))


def suspected(*names: str) -> tuple[Node, ...]:
    """The fleet, in which these nodes are suspect."""
    return tuple(msgspec.structs.replace(node, suspect=node.id in names) for node in FLEET)


@pytest.mark.parametrize(
    ("binding", "options", "expected"),
    [
        pytest.param(None, {}, Placement((("a1", "a2"),)), id="a new session"),
        pytest.param(bound("a2"), {}, Placement((("a2",), ("a1",)), "a2", "full"), id="its node before all others"),
        pytest.param(
            bound("a2", pair=EN_DE), {}, Placement((("a1", "a2"),), why="pair"), id="another pair begins anew"
        ),
        pytest.param(bound("a9"), {}, Placement((("a1", "a2"),), why="gone a9"), id="its node is gone"),
        pytest.param(bound("de"), {}, Placement((("a1", "a2"),), why="unfit"), id="its node cannot serve the job"),
        pytest.param(bound("x1"), {}, Placement((("a1", "a2"),), why="pool"), id="its node is in a pool of others"),
        pytest.param(
            bound("b1"), {}, Placement((("b1",), ("a1", "a2")), "b1", "full"), id="it stays where it spilled to"
        ),
        pytest.param(
            bound("b1"),
            {"pressure": "return"},
            Placement((("a1", "a2"),), why="pool", keeps="full"),
            id="or returns, if its pool says so",
        ),
        pytest.param(
            bound("a2"),
            {"pressure": "return"},
            Placement((("a2",), ("a1",)), "a2", "full", keeps="full"),
            id="and stays bound to its node while that is full",
        ),
        pytest.param(
            bound("a2"),
            {"avoid": "a2"},
            Placement((("a1",),), "a2", "avoid", keeps="avoid"),
            id="a retry goes elsewhere and leaves the session where it is",
        ),
        pytest.param(
            bound("a2"),
            {"avoid": "a2", "nodes": A123[1:2]},
            Placement((("a2",),), "a2", "full"),
            id="unless there is no other node",
        ),
        pytest.param(
            bound("a2"),
            {"nodes": suspected("a2")},
            Placement((("a1",),), "a2", "suspect"),
            id="its node is suspect, and another one is not",
        ),
        pytest.param(
            bound("a2"),
            {"nodes": suspected("a1", "a2")},
            Placement((("a2",), ("a1",)), "a2", "full"),
            id="all are suspect",
        ),
        pytest.param(
            bound("a2"),
            {"strategy": "spread"},
            Placement((("a1",),), why="strategy"),
            id="a strategy that binds no session",
        ),
        pytest.param(
            bound("a1"),
            {"preferred": "a2"},
            Placement((("a2",), ("a1",)), "a1", "full", preferred="a2"),
            id="the node that it asks for before its own",
        ),
        pytest.param(
            bound("a1"),
            {"preferred": "de"},
            Placement((("a1",), ("a2",)), "a1", "full", note="preferred de unfit"),
            id="a node that cannot serve it is no choice",
        ),
        pytest.param(
            bound("a1"),
            {"preferred": "a9"},
            Placement((("a1",), ("a2",)), "a1", "full", note="preferred a9 gone"),
            id="nor is one that is gone",
        ),
        pytest.param(
            None,
            {"preferred": "a2", "avoid": "a2"},
            Placement((("a1",),)),
            id="it asks for the node that it failed on",
        ),
    ],
)
def test_where_a_session_stands(binding: Binding | None, options: dict[str, Any], expected: Placement) -> None:
    """Candidates, and what `reserve` needs to say why a job is not where its session is bound."""
    assert decided(binding, **options) == expected


@pytest.mark.parametrize(("pair", "expected"), [(EN_ZH, "b"), (EN_DE, "a")])
def test_the_pool_of_a_tenant_is_taken_where_it_can_serve(pair: tuple[str, str], expected: str) -> None:
    """Otherwise the job goes where all others go."""
    index = an_index(*FLEET, pools={"b": Pool("b", tenants=("t1",))})
    assert classify(a_job(pair=pair, tenant_id="t1"), None, index).pool == expected
