"""Where a session stays, why a job is elsewhere, and limits: what reserve.lua decides beyond room and order."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import pytest

from scheduler.protocol import messages
from scheduler.store.store import Store
from tests.lua.placements import placed
from tests.seeds import (
    JOB,
    LATER_BOOT,
    NODE,
    SESSION,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_closed,
    seed_job,
    seed_node,
    seed_owner,
    seed_record,
)

BOUND: Final[dict[str, Any]] = {"bound": "n1", "why": "full", "binding": "default en:zh", "stored_node": "n1"}


async def seed_fleet(store: Store, *slots: int) -> int:
    """Nodes n1, n2, ... with so many slots each, and an owned partition; returns the epoch."""
    for number, count in enumerate(slots, 1):
        await seed_node(store, f"n{number}", slots=count)
    return await seed_owner(store)


async def seed_used(store: Store, epoch: int, node: str, count: int) -> None:
    """Jobs of other sessions that hold slots of a node."""
    for number in range(count):
        job_id = f"used-{node}-{number}"
        entry_id = await seed_job(store, job_id, f"session-{job_id}")
        answers = await reserve(store, [reserve_item(entry_id, epoch, job_id, f"session-{job_id}", candidates=(node,))])
        assert placed(answers) == [node]


async def decision(store: Store, job_id: str = JOB) -> str:
    """Why a job is where it is, as its record says."""
    return (await store.reads.record(job_id))["decision"]


async def binding(store: Store, session: str = SESSION) -> bytes | None:
    """The stored binding."""
    (stored,) = await store.reads.bindings([session])
    return stored


# ---- groups of candidates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        pytest.param((("n1",), ("n2", "n3")), "n1", id="the first group that has room"),
        pytest.param((("n4",), ("n2", "n3")), "n3", id="the freest of the next one"),
        pytest.param((("n4",), ("n4",), ("n2",)), "n2", id="however many are full before"),
        pytest.param((("n2", "n3"), ("n1",)), "n3", id="a later group only when there is none"),
    ],
)
async def test_freest_of_the_first_group_with_room(
    store: Store, groups: tuple[tuple[str, ...], ...], expected: str
) -> None:
    """n1 has one free slot of two, n2 one of three, n3 two of three, and n4 none."""
    epoch = await seed_fleet(store, 2, 3, 3, 1)
    for node, count in (("n1", 1), ("n2", 2), ("n3", 1), ("n4", 1)):
        await seed_used(store, epoch, node, count)
    item = reserve_item(await seed_job(store), epoch)

    answers = await reserve(store, [msgspec.structs.replace(item, candidates=groups)])

    assert placed(answers) == [expected]


# ---- decisions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("used", "options", "expected"),
    [
        pytest.param(0, {}, ("n1", "new"), id="a new session"),
        pytest.param(0, BOUND, ("n1", "stayed"), id="the bound node has room"),
        pytest.param(2, BOUND, ("n2", "full n1 2/2"), id="the bound node is full"),
        pytest.param(0, BOUND | {"why": "avoid", "candidates": ("n2",)}, ("n2", "avoid n1 0/2"), id="it failed there"),
        pytest.param(0, {"why": "gone n9"}, ("n1", "gone n9"), id="the bound node is not in the snapshot"),
        pytest.param(0, {"why": "pair"}, ("n1", "pair"), id="another pair"),
        pytest.param(
            0, BOUND | {"preferred": "n2", "candidates": ("n2", "n1")}, ("n2", "preferred"), id="as the job asked"
        ),
        pytest.param(
            0, BOUND | {"note": "preferred n9 gone"}, ("n1", "stayed preferred n9 gone"), id="it asked in vain"
        ),
    ],
)
async def test_decision_says_why_a_job_is_where_it_is(
    store: Store, used: int, options: dict[str, Any], expected: tuple[str, str]
) -> None:
    """In a word, with the slots of the node that the session is bound to as they were at that moment."""
    epoch = await seed_fleet(store, 2, 2)
    await seed_used(store, epoch, "n1", used)
    item = reserve_item(await seed_job(store), epoch, **{"candidates": ("n1", "n2")} | options)

    (node,) = placed(await reserve(store, [item]))

    assert (node, await decision(store)) == expected


@pytest.mark.parametrize("what", ["drained", "another boot", "takes no entry"])
async def test_a_bound_node_that_takes_no_work_is_closed(store: Store, what: str) -> None:
    """It has not merely no room: the session has to move."""
    epoch = await seed_fleet(store, 2, 2)
    if what == "takes no entry":
        await seed_closed(store, store.cell.keys.inbox("n1"))
    else:
        reason: Any = "draining" if what == "drained" else "ready"
        await seed_node(
            store, "n1", 0 if what == "drained" else 2, LATER_BOOT if what == "another boot" else "1000-a", reason
        )
    item = reserve_item(await seed_job(store), epoch, candidates=("n1", "n2"), **BOUND)

    assert placed(await reserve(store, [item])) == ["n2"]
    assert (await decision(store)).split()[:2] == ["closed", "n1"]


async def test_decision_outlives_the_job(store: Store) -> None:
    """The record of a job that has ended still says why it was where it was."""
    epoch = await seed_fleet(store, 1)
    (answer,) = await reserve(store, [reserve_item(await seed_job(store), epoch, **BOUND)])
    assert isinstance(answer, messages.Reserved)

    await release(store, release_item(answer.token, "finish"))

    assert await decision(store) == "stayed"


# ---- the binding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keeps", "home"),
    [
        pytest.param("", "n2", id="a session that stays where it went"),
        pytest.param("full", "n1", id="a session that returns"),
        pytest.param("avoid", "n2", id="kept for another reason only"),
    ],
)
async def test_a_session_that_spills_is_bound_as_its_pool_says(store: Store, keeps: str, home: str) -> None:
    """The answer and the stored binding name the same node."""
    epoch = await seed_fleet(store, 1, 1)
    await seed_used(store, epoch, "n1", 1)
    item = reserve_item(
        await seed_job(store), epoch, candidates=("n1", "n2"), **BOUND | {"stored_node": ""}, keeps=keeps
    )

    (answer,) = await reserve(store, [item])

    assert isinstance(answer, messages.Reserved)
    assert (answer.node, answer.home) == ("n2", home)
    assert await binding(store) == f"default en:zh {home} -".encode()


@pytest.mark.parametrize("has_ended", [False, True])
async def test_a_repeat_does_not_move_a_session_back_that_its_first_call_moved(store: Store, has_ended: bool) -> None:
    """The session's second job found no room at first. Its caller knows the binding of before: it is told that."""
    epoch = await seed_fleet(store, 1, 1)
    await seed_used(store, epoch, "n1", 1)
    entries = [await seed_job(store, job_id) for job_id in ("j1", "j2")]
    items = [
        reserve_item(
            entry_id, epoch, job_id, candidates=("n1", "n2"), **BOUND | {"stored_node": "n1"}, follows=number > 0
        )
        for number, (job_id, entry_id) in enumerate(zip(("j1", "j2"), entries, strict=True))
    ]
    first, full = await reserve(store, items)
    assert isinstance(first, messages.Reserved)
    assert (first.node, full) == ("n2", messages.Refused("full"))
    _, token = (await store.reads.record("used-n1-0"))["holder"].split(" ")
    await release(store, release_item(int(token), "finish", "used-n1-0", "session-used-n1-0", node="n1"))
    if has_ended:
        await release(store, release_item(first.token, "finish", job_id="j1", node="n2"))

    again, second = await reserve(store, items)

    assert again == messages.Reserved("n2", first.token, -1)
    assert second == messages.Refused("bound")
    assert await binding(store) == b"default en:zh n2 -"


async def test_a_session_that_the_caller_does_not_know_is_looked_up(store: Store) -> None:
    """A bound one is the answer, nothing is placed, and later jobs of it are behind; a new one is placed and bound."""
    epoch = await seed_fleet(store, 9, 9)
    unread: dict[str, Any] = {"binding": "default en:zh", "unread": True}
    first = reserve_item(await seed_job(store, "j1"), epoch, "j1", **unread)
    assert placed(await reserve(store, [first])) == ["n1"]
    named = (("j2", SESSION), ("j3", SESSION), ("j4", "new"), ("j5", "new"))
    entries = [await seed_job(store, job_id, session) for job_id, session in named]
    items = [
        reserve_item(entry_id, epoch, job_id, session, candidates=("n2",), **unread)
        for entry_id, (job_id, session) in zip(entries, named, strict=True)
    ]

    assert placed(await reserve(store, items)) == ["bound", "behind", "n2", "n2"]

    assert (await binding(store), await binding(store, "new")) == (b"default en:zh n1 -", b"default en:zh n2 -")
    assert (await store.reads.record("j2"))["state"] == "queued"
    assert placed(await reserve(store, items[2:])) == ["n2", "n2"]  # a repeat, with the same answer


async def test_jobs_of_a_new_session_in_one_call_follow_each_other(store: Store) -> None:
    """The second goes where the first went, although the caller knew of no binding; it is written once."""
    epoch = await seed_fleet(store, 4, 9)
    entries = [await seed_job(store, f"j{i}") for i in range(2)]
    items = [
        reserve_item(entries[0], epoch, "j0", candidates=("n1",), binding="default en:zh"),
        reserve_item(entries[1], epoch, "j1", candidates=("n2",), binding="default en:zh", follows=True),
    ]

    assert placed(await reserve(store, items)) == ["n1", "n1"]
    assert [await decision(store, job_id) for job_id in ("j0", "j1")] == ["new", "stayed"]
    assert await binding(store) == b"default en:zh n1 -"


async def test_a_job_that_follows_one_that_spilled_says_so(store: Store) -> None:
    """The session moved with the first job; when there is no room for the second, that is the node that was full."""
    epoch = await seed_fleet(store, 1, 1, 1)
    await seed_used(store, epoch, "n1", 1)
    entries = [await seed_job(store, f"j{i}") for i in range(2)]
    items = [
        reserve_item(entries[i], epoch, f"j{i}", candidates=("n1", "n2", "n3"), **BOUND, follows=i == 1)
        for i in range(2)
    ]

    assert placed(await reserve(store, items)) == ["n2", "n3"]
    assert [await decision(store, job_id) for job_id in ("j0", "j1")] == ["full n1 1/1", "full n2 1/1"]
    assert await binding(store) == b"default en:zh n3 -"


async def test_a_job_of_another_class_in_the_same_call_is_bound_on_its_own(store: Store) -> None:
    """It does not follow the first one, whose node has room; and what that one wrote is written over, also when the
    second stays where memory says.
    """
    epoch = await seed_fleet(store, 2, 2)
    entries = [await seed_job(store, f"j{i}") for i in range(2)]
    items = [
        reserve_item(entries[0], epoch, "j0", candidates=("n1",), binding="default en:zh"),
        reserve_item(entries[1], epoch, "j1", candidates=("n2",), binding="default en:de", stored_node="n2"),
    ]

    assert placed(await reserve(store, items)) == ["n1", "n2"]
    assert await binding(store) == b"default en:de n2 -"


@pytest.mark.parametrize(("first", "word"), [("j0", "pair"), ("gone", "new")])
async def test_a_job_that_does_not_follow_the_one_before_it_says_why(store: Store, first: str, word: str) -> None:
    """If that one was placed, and otherwise its session is new."""
    epoch = await seed_fleet(store, 1, 2)
    entries = [await seed_job(store, f"j{i}") for i in range(2)]
    gone = entries[0] if first == "j0" else "1-1"
    items = [
        reserve_item(gone, epoch, first, candidates=("n1",), binding="default en:zh"),
        reserve_item(entries[1], epoch, "j1", candidates=("n2",), binding="default en:de", together="pair"),
    ]

    assert placed(await reserve(store, items))[1] == "n2"
    assert await decision(store, "j1") == word


async def test_a_job_stays_where_its_session_was_and_says_that_it_moved_meanwhile(store: Store) -> None:
    """The job before it, which could not go there, has moved the session in the same call."""
    epoch = await seed_fleet(store, 2, 2)
    entries = [await seed_job(store, f"j{i}") for i in range(2)]
    items = [
        reserve_item(entries[0], epoch, "j0", candidates=("n2",), binding="default en:zh", why="unfit"),
        reserve_item(entries[1], epoch, "j1", candidates=("n1",), **BOUND, together="together"),
    ]

    assert placed(await reserve(store, items)) == ["n2", "n1"]
    assert await decision(store, "j1") == "together"
    assert await binding(store) == b"default en:zh n1 -"


# ---- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["session", "tenant"])
async def test_rule_22_a_full_limit_holds_a_job_back_until_one_of_it_ends(store: Store, kind: str) -> None:
    """What is held are job ids, so that the end of a job frees exactly its own place, and is told."""
    epoch, name = await seed_fleet(store, 9), SESSION if kind == "session" else "t1"
    entries = [await seed_job(store, f"j{i}", tenant="t1") for i in range(2)]
    items = [
        reserve_item(entry, epoch, f"j{i}", tenant="t1", limits=((kind, name, 1),)) for i, entry in enumerate(entries)
    ]
    k = store.cell.keys

    first, second = await reserve(store, items)

    assert isinstance(first, messages.Reserved)
    assert second == messages.Refused("limited", f"{kind}:{name}")
    assert await store.connection.commands.zrange(k.held(kind, name), 0, -1) == [b"j0"]
    before = await store.reads.last_id(k.freed)
    await release(store, release_item(first.token, "finish", "j0", tenant_id="t1"))
    assert await store.connection.commands.exists(k.held(kind, name)) == 0
    ((_, event),) = await store.reads.entries(k.freed, f"({before}")
    assert event == {b"nodes": b"", b"limits": f"{kind}:{name}".encode()}
    assert placed(await reserve(store, items[1:])) == [NODE]


@pytest.mark.parametrize(
    ("run", "own", "expected"),
    [
        pytest.param([1], 0, "limited", id="one, under its limit of one"),
        pytest.param([2], 0, NODE, id="one, of two"),
        pytest.param([2, 0], 0, "limited", id="two, one of them without a limit"),
        pytest.param([2, 3], 5, "limited", id="the smallest of several, whatever its own"),
        pytest.param([0, 0], 3, NODE, id="no limit but its own"),
        pytest.param([0, 0], 2, "limited", id="its own"),
        pytest.param([3, 3], 3, NODE, id="as many as all of them allow"),
    ],
)
async def test_rule_22_no_job_of_a_session_is_placed_beside_more_than_those_that_run_allow(
    store: Store, run: list[int], own: int, expected: str
) -> None:
    """Whatever its own pool says: a limit is for the jobs that run under it."""
    epoch = await seed_fleet(store, 9)
    for number, most in enumerate(run):
        await store.connection.commands.zadd(store.cell.keys.held("session", SESSION), {f"r{number}": most})
    item = reserve_item(await seed_job(store, "j9"), epoch, "j9", limits=(("session", SESSION, own),))

    assert placed(await reserve(store, [item])) == [expected]


async def test_rule_22_who_is_placed_stands_for_the_limit_of_its_pool(store: Store) -> None:
    """Until it ends; what comes behind in the same call, too, waits for it."""
    epoch = await seed_fleet(store, 9)
    entries = [await seed_job(store, f"j{i}") for i in range(3)]
    items = [
        reserve_item(entry, epoch, f"j{i}", limits=(("session", SESSION, most),))
        for i, (entry, most) in enumerate(zip(entries, (1, 0, 0), strict=True))
    ]

    first, *others = await reserve(store, items)

    assert isinstance(first, messages.Reserved)
    assert others == [messages.Refused("limited", f"session:{SESSION}"), messages.Refused("behind")]
    await release(store, release_item(first.token, "finish", "j0"))
    assert placed(await reserve(store, items[1:])) == [NODE, NODE]


async def test_rule_22_of_a_tenant_each_pool_says_what_it_starts_itself(store: Store) -> None:
    """A job that runs under a limit of its tenant keeps none of another pool from running."""
    epoch = await seed_fleet(store, 9)
    entries = [await seed_job(store, f"j{i}", f"s{i}", tenant="t1") for i in range(3)]
    items = [
        reserve_item(entry, epoch, f"j{i}", f"s{i}", tenant="t1", limits=(("tenant", "t1", most),))
        for i, (entry, most) in enumerate(zip(entries, (1, 0, 3), strict=True))
    ]

    assert placed(await reserve(store, items)) == [NODE, NODE, NODE]


async def test_rule_22_a_limited_job_blocks_the_later_ones_of_its_session(store: Store) -> None:
    """Order holds whatever the reason for waiting is, also when a later job has no limit."""
    epoch = await seed_fleet(store, 9)
    entries = [await seed_job(store, f"j{i}") for i in range(3)]
    limits = (("session", SESSION, 1),)
    items = [
        reserve_item(entries[0], epoch, "j0", limits=limits),
        reserve_item(entries[1], epoch, "j1", limits=limits),
        reserve_item(entries[2], epoch, "j2"),
    ]

    assert placed(await reserve(store, items)) == [NODE, "limited", "behind"]


@pytest.mark.parametrize("verdict", ["finish", "retry", "expire", "reboot", "give_back", "dead"])
async def test_rule_22_every_ending_frees_what_is_held(store: Store, verdict: Any) -> None:
    """Also the ways back: the job counts again when it is placed again."""
    epoch = await seed_fleet(store, 9)
    item = reserve_item(await seed_job(store), epoch, limits=(("session", SESSION, 1),))
    (answer,) = await reserve(store, [item])
    assert isinstance(answer, messages.Reserved)
    await store.connection.commands.zadd(store.cell.keys.slots(NODE), {JOB: 1}, xx=True)

    await release(store, release_item(answer.token, verdict, boot=LATER_BOOT))

    assert await store.connection.commands.exists(store.cell.keys.held("session", SESSION)) == 0
    assert "held" not in await store.reads.record(JOB)


async def test_rule_22_a_limit_that_several_endings_free_is_told_once(store: Store) -> None:
    """However many jobs of a tenant end in a call; a limit that none of them held is not told."""
    epoch = await seed_fleet(store, 9)
    entries = [await seed_job(store, f"j{i}", f"s{i}", tenant="t1") for i in range(3)]
    limits = (("tenant", "t1", 9),)
    answers = await reserve(
        store,
        [
            reserve_item(entry, epoch, f"j{i}", f"s{i}", tenant="t1", limits=(("session", f"s{i}", 9), *limits))
            for i, entry in enumerate(entries)
        ],
    )
    k = store.cell.keys
    await store.connection.commands.zrem(k.held("session", "s1"), "j1")
    before = await store.reads.last_id(k.freed)

    await release(
        store,
        *[
            release_item(answer.token, "finish", f"j{i}", f"s{i}", tenant_id="t1")
            for i, answer in enumerate(answers)
            if isinstance(answer, messages.Reserved)
        ],
    )

    ((_, event),) = await store.reads.entries(k.freed, f"({before}")
    assert event == {b"nodes": b"", b"limits": b"session:s0 tenant:t1 session:s2"}


async def test_rule_22_a_limit_of_several_is_exact_within_a_call(store: Store) -> None:
    """Two of three sessions of a tenant run."""
    epoch = await seed_fleet(store, 9)
    entries = [await seed_job(store, f"j{i}", f"s{i}", tenant="t1") for i in range(3)]
    items = [
        reserve_item(entry, epoch, f"j{i}", f"s{i}", tenant="t1", limits=(("tenant", "t1", 2),))
        for i, entry in enumerate(entries)
    ]

    assert placed(await reserve(store, items)) == [NODE, NODE, "limited"]


async def test_rule_22_a_repeat_counts_once(store: Store) -> None:
    """A call whose answer was lost is answered from the record."""
    epoch = await seed_fleet(store, 9)
    item = reserve_item(await seed_job(store), epoch, limits=(("session", SESSION, 1),))

    first, again = await reserve(store, [item]), await reserve(store, [item])

    assert placed(first) == placed(again) == [NODE]
    assert await store.connection.commands.zcard(store.cell.keys.held("session", SESSION)) == 1


async def test_rule_22_a_cancelled_job_needs_no_place(store: Store) -> None:
    """It is to be rejected whether its limit has room or not."""
    epoch = await seed_fleet(store, 9)
    entry_id = await seed_job(store)
    await seed_record(store, cancel=1)
    await store.connection.commands.zadd(store.cell.keys.held("session", SESSION), {"j9": 1})
    item = reserve_item(entry_id, epoch, limits=(("session", SESSION, 1),))

    assert await reserve(store, [item]) == [messages.Refused("cancelling")]
