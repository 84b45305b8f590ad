"""What is told of nodes: that they come, return, are started again, drain, and of those that nobody needs."""

from __future__ import annotations

import logging

import msgspec
import pytest

from scheduler.management.arrivals import PAIRS_SHOWN_MAX, in_words, news_of
from scheduler.management.fleet import NodeState
from scheduler.node.idle import IDLE_AGAIN_MS, IDLE_TOLD_MS, Idle
from scheduler.protocol.documents import NodeBeat
from scheduler.protocol.messages import CapacityItem
from scheduler.protocol.snapshot import Reason
from scheduler.runtime.intake import JobClass
from scheduler.runtime.waiting.unserved import LOG_AFTER_MS, Unserved

BEAT = NodeBeat("n1", "7-b", 4, pairs=(("en", "zh"),), features=("asr",), running=2)
KNOWN = NodeState(BEAT, 0)
WORDS = "4 slots in pool default, en:zh, features asr"


def item(reason: Reason, boot: str = "7-b") -> CapacityItem:
    """What was written of the node."""
    return CapacityItem("n1", 4, boot, reason)


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        (None, item("ready"), f"has come: {WORDS}"),
        (None, item("draining"), ""),
        (item("ready", "6-a"), item("ready"), f"was started again, as boot 7-b after 6-a: {WORDS}"),
        (item("dead", "6-a"), item("ready"), f"is back, as boot 7-b after 6-a: {WORDS}"),
        (item("dead"), item("ready"), "is heard again, and takes jobs"),
        (item("suspect"), item("ready"), "is heard again, and takes jobs"),
        (item("ready"), item("draining"), "drains: it takes no new jobs, 2 run"),
        (item("draining"), item("ready"), "takes jobs again"),
        (item("ready"), item("quarantined"), "calls itself unhealthy: it is given no jobs"),
        (item("ready"), item("dead"), ""),
        (item("ready"), item("suspect"), ""),
        (item("ready"), item("ready"), ""),
    ],
)
def test_what_is_news_of_a_node(before: CapacityItem | None, after: CapacityItem, news: str) -> None:
    """Its death, and that many fall silent at once, are told where they are seen."""
    assert news_of(before, after, KNOWN) == news


def test_what_a_node_serves_in_words() -> None:
    """However much that is."""
    pairs = tuple((f"a{number}", "b") for number in range(PAIRS_SHOWN_MAX + 3))
    many = NodeState(msgspec.structs.replace(BEAT, pairs=pairs, features=(), capacity=1), 0, pool="gold")
    assert in_words(many).startswith("1 slot in pool gold, a0:b, a1:b, ")
    assert in_words(many).endswith("a7:b, and 3 more")
    assert "jobs without languages" in in_words(NodeState(NodeBeat("n2", "1-a", 1), 0))


def test_a_class_without_a_node_is_told_before_its_jobs_die(caplog: pytest.LogCaptureFixture) -> None:
    """Once, and when a node comes; not of one that was only started again, nor again when the jobs are dead."""
    caplog.set_level(logging.INFO, "scheduler.dispatcher")
    unserved = Unserved(60_000)
    german = JobClass("en", "de", ("asr",), "", "")
    served: set[JobClass] = set()
    for now_ms in (0, LOG_AFTER_MS - 1, LOG_AFTER_MS, 5_000):
        unserved.look({german: 0}, lambda _: 3, served.__contains__, now_ms)
    words = "no node serves en:de with asr: jobs that wait for one: 3; each is dead when none has come for 60 s"
    assert caplog.messages == [words]
    served.add(german)
    unserved.look({}, lambda _: 0, served.__contains__, 6_000)
    assert caplog.messages[1:] == ["a node serves en:de with asr now"]
    served.clear()
    unserved.look({german: 6_000}, lambda _: 1, served.__contains__, 7_000)
    unserved.look({}, lambda _: 0, served.__contains__, 67_000)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


def test_an_idle_node_says_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each time that it is idle, and rarely again."""
    caplog.set_level(logging.INFO, "scheduler.node")
    idle = Idle(BEAT)
    idle.worked(1_000)
    for now_ms in (1_000, IDLE_TOLD_MS, 1_000 + IDLE_TOLD_MS, 2 * IDLE_TOLD_MS):
        idle.look(0, now_ms)
    assert caplog.messages == [
        "n1 is idle for 30 s: it waits for jobs with the languages en:zh, or none; no other features than asr; in the "
        "pool that the rules put it in"
    ]
    idle.look(0, 1_000 + IDLE_TOLD_MS + IDLE_AGAIN_MS)
    assert len(caplog.messages) == 2
    idle.look(1, 10**6)
    idle.look(0, 10**6 + IDLE_TOLD_MS - 1)
    assert len(caplog.messages) == 2
