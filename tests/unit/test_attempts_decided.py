"""One try at placing a job: what `reserve` is asked, and what becomes of a job that it will never place."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from scheduler.protocol.messages import Refused, RejectItem, ReserveItem
from scheduler.protocol.snapshot import Pool
from scheduler.runtime.attempts import chunks
from scheduler.runtime.placement.attempt import PlacementAttempt, rejection_of
from scheduler.runtime.placement.candidates import Placement
from scheduler.runtime.server_calls import reserve_item
from scheduler.session.bindings import Binding, binding_after
from tests.unit.arrange import EN_DE, EN_ZH, a_class, a_job

FOUND = Placement((("n1",), ("n2",)), "n1", "full")


def bound(node: str, pool: str = "a", pair: tuple[str, str] = EN_ZH) -> Binding:
    """A session that is bound."""
    return Binding(pool, pair[0], pair[1], node)


def test_what_reserve_is_asked() -> None:
    """Everything that the script and the node need to know of the job."""
    job = a_job("j1", "s1", partition=3)
    policy = Pool("a", session_concurrency=1)
    assert reserve_item(
        PlacementAttempt(job, a_class(), None, FOUND, follows=True), FOUND, policy, {"session"}
    ) == ReserveItem(
        partition=3,
        epoch=1,
        entry_id="j1-0",
        job_id="j1",
        session_id="s1",
        tenant_id="",
        reply_to="",
        pool="a",
        candidates=(("n1",), ("n2",)),
        bound="n1",
        why="full",
        binding="a en:zh",
        follows=True,
        limits=(("session", "s1", 1),),
    )


@pytest.mark.parametrize(
    ("binding", "fresh", "source", "expected"),
    [
        pytest.param(None, False, "en", ("a en:zh", ""), id="a new session is bound"),
        pytest.param(bound("n1"), True, "en", ("a en:zh", "n1"), id="written only if another node is taken"),
        pytest.param(bound("n1"), False, "en", ("a en:zh", ""), id="written in any case once it has grown old"),
        pytest.param(bound("n1", "b"), True, "en", ("a en:zh", ""), id="or when the pool is another"),
        pytest.param(bound("n1", "a", EN_DE), True, "en", ("a en:zh", ""), id="or the pair"),
        pytest.param(bound("n1"), True, "auto", ("a en:zh", "n1"), id="any source: the known one stays known"),
        pytest.param(bound("n1", "a", ("auto", "zh")), True, "en", ("a en:zh", ""), id="a source becomes known"),
        pytest.param(None, False, "auto", ("a auto:zh", ""), id="no source is known yet"),
    ],
)
def test_what_becomes_of_the_binding(
    binding: Binding | None, fresh: bool, source: str, expected: tuple[str, str]
) -> None:
    """The part that the script stores, and the node for which it need not; memory has the same afterwards."""
    each = PlacementAttempt(a_job(pair=(source, "zh")), a_class(), None, FOUND, binding, fresh)
    item = reserve_item(each, FOUND, Pool("a"), frozenset())
    assert (item.binding, item.stored_node) == expected
    after = binding_after(binding, "a", source, "zh", "n1")
    assert f"{after.pool} {after.src_lang}:{after.tgt_lang}" == item.binding
    assert after.node == "n1"


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("job_id_taken", ("job_id_taken", "job_id 'j1' belongs to another session", "~2-3-j1-0")),
        ("cancelling", ("cancelled", "cancelled before it was placed", "j1")),
        ("broken", ("invalid", "what is stored under its id is no job record", "j1")),
        ("duplicate", None),
        ("gone", None),
    ],
)
def test_a_job_that_is_never_placed(why: str, expected: tuple[str, str, str] | None) -> None:
    """It is rejected, under a generated id if its own belongs to another job; or nothing is left to do."""
    refusal = rejection_of(a_job("j1", "s1", partition=3), Refused(why), 2)  # type: ignore[arg-type]
    if expected is None:
        assert refusal is None
    else:
        reason, detail, job_id = expected
        assert refusal == RejectItem(3, 1, "j1-0", job_id, "s1", "", "", reason, detail)


def test_a_job_that_was_submitted_as_another_is_invalid() -> None:
    """Under its own id, and as what it was submitted as, so that its producer hears of it."""
    answer = Refused("mismatch", submitted=("s2", "t1", "r1"))
    refusal = rejection_of(a_job("j1", "s1", partition=3), answer, 2)
    detail = (
        "session_id = 's1' in the document, and it was submitted with 's2', "
        "tenant_id = '' in the document, and it was submitted with 't1', "
        "reply_to = '' in the document, and it was submitted with 'r1': expected the same"
    )
    assert refusal == RejectItem(3, 1, "j1-0", "j1", "s2", "t1", "r1", "invalid", detail)


def test_only_what_differs_of_a_submission_is_told() -> None:
    """What was left out is as the document says."""
    job = a_job("j1", "s1", tenant_id="t1", reply_to="r1")
    refusal = rejection_of(job, Refused("mismatch", submitted=("s2", "", "r1")), 2)
    assert refusal is not None
    assert refusal.detail == "session_id = 's1' in the document, and it was submitted with 's2': expected the same"


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(1, 9))
def test_chunks_keep_the_order_of_each_partition(partitions: list[int], size: int) -> None:
    """Every job is in one call, and those of a partition are in their order."""
    jobs = [a_job(partition=partition, job_id=f"j{number}") for number, partition in enumerate(partitions)]
    found = list(chunks(jobs, size, lambda partition: partition % 2))
    for partition in set(partitions):
        of_it = [job for chunk in found for job in chunk if job.partition == partition]
        assert of_it == [job for job in jobs if job.partition == partition]
    assert sum(map(len, found)) == len(jobs)
    assert all(len(chunk) <= size for chunk in found)


def test_a_backlog_of_many_partitions_is_sent_two_calls_at_a_time() -> None:
    """No call shares a partition with the one before, which may so be under way still."""
    jobs = [a_job(partition=number % 16, job_id=f"j{number}") for number in range(512)]
    found = list(chunks(jobs, 64, lambda partition: partition % 2))
    assert [len(chunk) for chunk in found] == [64] * 8
    for before, after in pairwise(found):
        assert not {job.partition for job in before} & {job.partition for job in after}
