"""Endings on their way to the server, with a cell that answers when it is let."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import cast

import pytest

from scheduler.clock import Clock
from scheduler.config import DEFAULTS
from scheduler.errors import ServerUnavailable
from scheduler.node import retry
from scheduler.node.attempt_log import AttemptLog
from scheduler.node.handlers import Job
from scheduler.node.reporting import Reporter
from scheduler.protocol.messages import Layout, NotReleased, Released, ReleaseItem
from scheduler.store.cell import Cell


class SlowCell:
    """Takes endings and answers once it may."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.busy: set[int] = set()
        self.invalid: set[int] = set()
        self.described: list[list[int]] = []
        self.is_full = False

    async def release(
        self, items: Sequence[ReleaseItem], retention_ms: int, dead_retention_ms: int
    ) -> tuple[int, list[Released | NotReleased]]:
        """As the cell: an answer for each."""
        self.calls.append([item.token for item in items])
        self.asked.set()
        await self.may_answer.wait()
        return 1_000, [self._answer(item) for item in items]

    async def describe(self, items: Sequence[ReleaseItem], retention_ms: int) -> list[str]:
        """As the cell: one call, that full memory refuses."""
        if self.is_full:
            raise ServerUnavailable("memory is full")
        self.described.append([item.token for item in items])
        return ["described"] * len(items)

    def _answer(self, item: ReleaseItem) -> Released | NotReleased:
        if item.token in self.invalid:
            return NotReleased("invalid", "verdict = 'finsh': expected another")
        return NotReleased("busy") if item.token in self.busy else Released("completed")


@pytest.fixture
def cell() -> SlowCell:
    """A cell that does not answer yet."""
    return SlowCell()


@pytest.fixture
def reporter(cell: SlowCell) -> Reporter:
    """A reporter of three batches' worth of endings, but for one."""
    layout = Layout(partitions=16, cells=1, protocol=4, retention_ms=1, dead_retention_ms=1)
    reporter = Reporter(cast(Cell, cell), DEFAULTS, layout, "n1", "1-a", AttemptLog("n1", Clock()))
    for token in range(3 * DEFAULTS.batch_max - 1):
        reporter.add(Job("n1", "1000-0", _fields(token)), retry.completed("", b""))
    return reporter


def _fields(token: int) -> dict[bytes, bytes]:
    return {
        b"job": b'{"session_id":"s1"}',
        b"job_id": b"j%d" % token,
        b"reservation": b"%d 1-a 5000 0/1-1 1 1 1 5000" % token,
    }


async def test_only_attempts_that_failed_are_described(reporter: Reporter, cell: SlowCell) -> None:
    """Nothing that ends well costs a call more; nor does an ending that the server has not taken yet."""
    cell.may_answer.set()
    await reporter.report()
    assert cell.described == []
    fields = {b"job": b'{"session_id":"s1"}', b"job_id": b"j", b"reservation": b"7 1-a 5000 0/1-1 1 1 1 5000"}
    for token in (b"900", b"901", b"902"):
        fields[b"reservation"] = token + b" 1-a 5000 0/1-1 1 1 1 5000"
        reporter.add(Job("n1", "1000-0", fields), retry.failed(1, "why", 0, 1, 1, Random(1)))
    fields[b"reservation"] = b"903 1-a 5000 0/1-1 1 1 1 5000"
    reporter.add(Job("n1", "1000-0", fields), retry.given_back("the node stopped"))
    cell.busy = {901}
    await reporter.report()
    assert cell.described == [[900, 902]]


async def test_details_that_are_not_kept_stop_no_report(
    reporter: Reporter, cell: SlowCell, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has them, and says that the server has not."""
    cell.may_answer.set()
    cell.is_full = True
    fields = {b"job": b'{"session_id":"s1"}', b"job_id": b"j", b"reservation": b"900 1-a 5000 0/1-1 1 1 1 5000"}
    reporter.add(Job("n1", "1000-0", fields), retry.failed(1, "why", 0, 1, 1, Random(1)))
    await reporter.report()
    assert (len(reporter), [each.getMessage() for each in caplog.records]) == (0, ["n1: memory is full"])


async def test_two_reports_at_once_lose_nothing(reporter: Reporter, cell: SlowCell) -> None:
    """The release loop and a node that leaves both report: each ending is told, and told once."""
    both = asyncio.gather(reporter.report(), reporter.report())
    await cell.asked.wait()
    cell.may_answer.set()
    await both
    assert [len(batch) for batch in cell.calls] == [DEFAULTS.batch_max, DEFAULTS.batch_max, DEFAULTS.batch_max - 1]
    assert [token for batch in cell.calls for token in batch] == list(range(3 * DEFAULTS.batch_max - 1))
    assert len(reporter) == 0


async def test_a_report_that_is_cut_off_keeps_what_was_not_answered(reporter: Reporter, cell: SlowCell) -> None:
    """Whoever gives up, another report tells all of it."""
    first = asyncio.create_task(reporter.report())
    second = asyncio.create_task(reporter.report())
    await cell.asked.wait()
    first.cancel()
    await asyncio.wait([first])
    cell.may_answer.set()
    await second
    assert [batch[0] for batch in cell.calls] == [0, 0, DEFAULTS.batch_max, 2 * DEFAULTS.batch_max]
    assert len(reporter) == 0


async def test_what_the_server_is_too_busy_for_is_kept(reporter: Reporter, cell: SlowCell) -> None:
    """For the next report, behind what came after it."""
    cell.may_answer.set()
    cell.busy = {3}
    await reporter.report()
    assert (len(cell.calls), len(reporter)) == (1, 2 * DEFAULTS.batch_max)
    cell.busy = set()
    await reporter.report()
    assert (cell.calls[-1][-1], len(reporter)) == (3, 0)


async def test_what_was_reported_while_an_inbox_is_read_again_is_known(reporter: Reporter, cell: SlowCell) -> None:
    """The inbox may have been read before the report took its entry away; later nobody need know."""
    cell.may_answer.set()
    reporter.remember_reported()
    assert reporter.knows(("j3", 3))
    await reporter.report()
    assert (len(reporter), reporter.knows(("j3", 3))) == (0, True)
    reporter.forget_reported()
    assert not reporter.knows(("j3", 3))


async def test_large_results_go_in_several_calls(reporter: Reporter, cell: SlowCell) -> None:
    """Two megabytes at most, or one result; those that are not answered yet are known by job and token."""
    first = 3 * DEFAULTS.batch_max
    for token in range(first, first + 4):
        fields = {
            b"job": b'{"session_id":"s1"}',
            b"job_id": b"j",
            b"reservation": b"%d 1-a 5000 0/1-1 1 1 1 5000" % token,
        }
        reporter.add(Job("n1", "1000-0", fields), retry.completed("", bytes(1_048_576)))
    cell.may_answer.set()
    cell.busy = {first + 3}
    await reporter.report()
    assert cell.calls[3:] == [[first + 1, first + 2], [first + 3]]
    assert reporter.keys == {("j", first + 3)}


async def test_large_results_of_a_node_that_stops_are_given_back(reporter: Reporter, cell: SlowCell) -> None:
    """So that their jobs are charged nothing; small ones are reported as they are."""
    cell.may_answer.set()
    await reporter.report()
    fields = {b"job": b'{"session_id":"s1"}', b"job_id": b"j", b"reservation": b"7 1-a 5000 0/1-1 1 1 1 5000"}
    reporter.add(Job("n1", "1000-0", fields), retry.completed("text/plain", bytes(65_536)))
    assert not reporter.give_back_results("why")
    reporter.add(Job("n1", "1000-0", fields), retry.completed("text/plain", bytes(65_537)))
    assert reporter.give_back_results("why")
    assert [(item.verdict, item.detail, len(item.result)) for item in reporter._endings] == [
        ("finish", "", 65_536),
        ("give_back", "why", 0),
    ]


async def test_what_is_put_into_another_order_while_a_call_is_under_way_is_told(
    reporter: Reporter, cell: SlowCell
) -> None:
    """A node that stops gives its large results back while the release loop still waits for an answer."""
    first = 3 * DEFAULTS.batch_max
    for token, result in ((first, bytes(1_048_576)), (first + 1, b"")):
        reporter.add(Job("n1", "1000-0", _fields(token)), retry.completed("", result))
    loop = asyncio.create_task(reporter.report())
    await cell.asked.wait()
    assert reporter.give_back_results("the node stopped")
    cell.may_answer.set()
    await asyncio.gather(loop, reporter.report())
    assert {token for batch in cell.calls for token in batch} == {*range(first - 1), first, first + 1}
    assert (len(reporter), reporter.keys) == (0, set())


async def test_what_the_server_cannot_read_is_told_and_dropped(
    reporter: Reporter, cell: SlowCell, caplog: pytest.LogCaptureFixture
) -> None:
    """It would never be taken; the others of its batch are."""
    cell.may_answer.set()
    cell.invalid = {3}
    await reporter.report()
    assert (len(cell.calls), len(reporter)) == (3, 0)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "ERROR",
        "n1: the finish of job j3 is invalid: verdict = 'finsh': expected another",
    )
