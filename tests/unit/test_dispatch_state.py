"""What a dispatcher knows, and what a snapshot changes of it."""

from __future__ import annotations

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.runtime.dispatch_state import DispatchState
from scheduler.runtime.index import Index
from tests.unit.arrange import a_class, a_job, a_node, a_state, an_index

ZH = a_class()
BEFORE = an_index(a_node("n1", "a"), a_node("n2", "b"))


def full_of_one_class() -> DispatchState:
    """Two jobs of a class wait, which is as many as may, and a third one is deferred."""
    state = a_state(msgspec.structs.replace(DEFAULTS, waiting_class_max=2))
    state.apply_snapshot(BEFORE)
    for job_id in ("j1", "j2"):
        state.waiting.found_no_room(a_job(job_id, job_id), ZH, 0)
    state.overflow.defer(a_job("3", "j3"), ZH)
    return state


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param(BEFORE, False, id="no other snapshot"),
        pytest.param(an_index(a_node("n1", "a"), a_node("n2", "b"), version=2), False, id="the same nodes"),
        pytest.param(an_index(a_node("n1", "a"), a_node("n2", "b", 8), version=2), True, id="a larger pool"),
    ],
)
def test_deferred_jobs_are_read_again_when_they_may_belong_to_another_pool(after: Index, expected: bool) -> None:
    """Their class has no memory left, so without that they would wait beside the free slots of the other pool."""
    state = full_of_one_class()
    assert not state.must_read_again
    state.apply_snapshot(after)
    assert state.must_read_again is expected
