"""rebuild.lua: a stream whose ids are absurd is copied beside itself, and the copy takes its place."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ResponseError

from scheduler.protocol import messages
from scheduler.protocol.keys import is_absurd
from scheduler.store import cell
from scheduler.store.rebuilding import rebuild
from scheduler.store.store import Store
from tests.dumps import dump, unchanged
from tests.seeds import (
    JOB,
    NODE,
    PARTITION,
    POISON_ID,
    document,
    reject,
    reject_item,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_delayed,
    seed_entry,
    seed_job,
    seed_node,
    seed_owner,
    seed_poison,
    seed_reserved,
)


async def entries(store: Store, stream: str) -> list[tuple[str, dict[bytes, bytes]]]:
    """What is in a stream."""
    return await store.reads.entries(stream, count=10_000)


async def rebuilt(store: Store, stream: str, field: str = "", hold: tuple[int, int] | None = None) -> None:
    """Rebuild a stream and see that it takes an entry again, and that nothing is left of the copy."""
    assert await rebuild(store.cell, stream, POISON_ID, field, hold)
    assert store.cell.keys.rebuilt(stream) not in await dump(store)
    (last_id,) = await store.reads.last_ids([stream])
    assert not is_absurd(last_id, await store.control.time_us() // 1000)
    added = await store.connection.commands.xadd(stream, {"one": "more"})
    await store.connection.commands.xdel(stream, added)


async def test_an_intake_keeps_its_entries_and_takes_new_ones(store: Store) -> None:
    """All under their ids and in their order, whatever was absurd at their end under a new id."""
    stream, hold = store.cell.keys.jobs(PARTITION), (PARTITION, await seed_owner(store))
    for number in range(40):
        await seed_entry(store, f"j{number}", entry_id=f"{number + 1}-0")
    await store.connection.commands.xdel(stream, "7-0")
    before = await entries(store, stream)
    await seed_entry(store, "late", entry_id=POISON_ID)

    await rebuilt(store, stream, "entry", hold)

    *kept, (late_id, late) = await entries(store, stream)
    assert kept == before
    assert late[b"job"] == document("late")
    assert late_id != POISON_ID


async def test_a_long_stream_is_copied_in_short_calls(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call goes on where the last one stopped, whoever makes it, and nothing is added meanwhile."""
    monkeypatch.setattr(cell, "REBUILT_BYTES_MAX", 1_000)
    dead = store.cell.keys.dead
    for number in range(100):
        await store.connection.commands.xadd(dead, {"job": b"x" * 100}, id=f"{number + 1}-0")
    before = await entries(store, dead)
    await seed_poison(store, dead)

    answers = [(await store.cell.rebuild(dead, "dead_id")).answer for _ in range(3)]
    assert answers == ["copying"] * 3
    assert await entries(store, dead) == before
    await asyncio.gather(*(rebuild(store.cell, dead, POISON_ID, "dead_id") for _ in range(3)))

    assert await entries(store, dead) == before


@pytest.mark.parametrize(
    "deleted", [("1-0", "2-0"), ("50-0",), ("1-0", "3-0", "99-0"), tuple(f"{i}-0" for i in range(1, 101))]
)
async def test_what_was_deleted_meanwhile_does_not_come_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, deleted: tuple[str, ...]
) -> None:
    """Entries go while the stream is copied, from its start or its middle."""
    monkeypatch.setattr(cell, "REBUILT_BYTES_MAX", 1_000)
    parked = store.cell.keys.parked
    for number in range(100):
        await store.connection.commands.xadd(parked, {"job": b"x" * 100}, id=f"{number + 1}-0")
    await seed_poison(store, parked)
    for _ in range(20):
        assert (await store.cell.rebuild(parked, "parked_id")).answer == "copying"
    await store.connection.commands.xdel(parked, *deleted)
    before = await entries(store, parked)

    assert await store.cell.rebuild(parked, "parked_id") == messages.Rebuilding("rebuilt", (), len(before), 0)

    assert await entries(store, parked) == before


async def test_absurd_entries_are_copied_in_short_calls_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id in microseconds makes all later ones absurd. Records name the new ids when the copy takes its place, not
    before, and what was deleted meanwhile does not come back.
    """
    monkeypatch.setattr(cell, "REBUILT_BYTES_MAX", 500)
    stream, hold = store.cell.keys.jobs(PARTITION), (PARTITION, await seed_owner(store))
    await store.connection.commands.xadd(stream, {"foreign": "1"}, id=f"{10**15}-0")
    asked = [await seed_job(store, f"j{number}", f"s{number}") for number in range(30)]
    await store.connection.commands.xadd(stream, {"job": document("plain")})
    answers, job_ids = list[str](), dict[bytes, None]()
    while not answers or answers[-1] != "rebuilt":
        found = await store.cell.rebuild(stream, "entry", tuple(job_ids), hold)
        answers.append(found.answer)
        job_ids |= dict.fromkeys(found.job_ids)
        if len(answers) == 5:
            await store.connection.commands.xdel(stream, asked.pop(0))
        if found.answer == "records":
            await store.connection.commands.xdel(stream, asked.pop(0))
        if found.answer != "rebuilt":
            for number, entry in enumerate(asked, start=30 - len(asked)):
                assert (await store.reads.record(f"j{number}"))["entry"] == f"{PARTITION}/{entry}"

    assert answers.count("copying") >= 5
    assert answers[-2:] == ["records", "rebuilt"]
    assert (found.entries, found.renamed) == (0, 30)
    there = dict(await entries(store, stream))
    assert len(there) == 30
    for number in range(2, 30):
        entry_id = (await store.reads.record(f"j{number}"))["entry"].partition("/")[2]
        assert there[entry_id][b"job_id"] == f"j{number}".encode()
    assert not {store.cell.keys.rebuilt(stream), store.cell.keys.renamed(stream)} & (await dump(store)).keys()


async def test_many_absurd_ids_are_changed_a_part_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copy changes some, and records name at every time what is there. The stream stays closed until all are."""
    monkeypatch.setattr(cell, "RENAMED_MAX", 4)
    client, stream, hold = (
        store.connection.commands,
        store.cell.keys.jobs(PARTITION),
        (PARTITION, await seed_owner(store)),
    )
    await seed_job(store, "j0")
    await client.xadd(stream, {"foreign": "1"}, id=f"{10**15}-0")
    for number in range(1, 11):
        await seed_job(store, f"j{number}", f"s{number}")
    before = [fields for _, fields in await entries(store, stream)]
    job_ids, asked = dict[bytes, None](), []
    while (found := await store.cell.rebuild(stream, "entry", tuple(job_ids), hold)).answer != "rebuilt":
        job_ids |= dict.fromkeys(found.job_ids)
        asked.append(len(found.job_ids))
        there = dict(await entries(store, stream))
        assert list(there.values()) == before
        for number in range(11):
            entry_id = (await store.reads.record(f"j{number}"))["entry"].partition("/")[2]
            assert there[entry_id][b"job_id"] == f"j{number}".encode()
        with pytest.raises(ResponseError):
            await client.xadd(stream, {"one": "more"})

    assert [each for each in asked if each] == [3, 4, 3]
    assert [fields for _, fields in await entries(store, stream)] == before
    await client.xadd(stream, {"one": "more"})


async def test_a_copy_of_what_the_stream_was_before_is_begun_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who copied it died; the stream was made anew by a script, closed again, and has as many entries as before. What
    ended does not come back, and what came is there.
    """
    client, inbox = store.connection.commands, store.cell.keys.inbox(NODE)
    now_ms = await store.control.time_us() // 1000
    await seed_reserved(store, "a", "sa", slots=9)
    await client.xadd(inbox, {"ahead": ""}, id=f"{now_ms + 3_600_000}-0")
    ended = await seed_reserved(store, "b", "sb", slots=9)
    await client.xdel(inbox, f"{now_ms + 3_600_000}-0")
    await seed_poison(store, inbox)
    with monkeypatch.context() as patch:
        patch.setattr(cell, "REBUILT_BYTES_MAX", 1)
        for _ in range(3):
            assert (await store.cell.rebuild(inbox, "assignment")).answer == "copying"
    await release(store, release_item(ended, "finish", "b", "sb"))
    token = await seed_reserved(store, "c", "sc", slots=9)
    before = await entries(store, inbox)
    await seed_poison(store, inbox)

    await rebuilt(store, inbox, "assignment")

    assert await entries(store, inbox) == before
    assert await release(store, release_item(token, "give_back", "c", "sc")) == [messages.Released("queued")]


@pytest.mark.parametrize("known", ["by the server", "by the owner", "by nobody"])
async def test_ids_that_were_given_are_not_given_again(store: Store, known: str) -> None:
    """The clock was ahead, and went back: what has an id of before would be taken for the job that had it then."""
    stream, epoch, client = store.cell.keys.jobs(PARTITION), await seed_owner(store), store.connection.commands
    given_ms = await store.control.time_us() // 1000 + 5_000
    await client.xdel(stream, await seed_entry(store, entry_id=f"{given_ms}-7"))
    if known == "by the server":
        await seed_entry(store, "j2", entry_id=POISON_ID)
    else:
        await seed_poison(store, stream)
    above_ms = given_ms + 10_000 if known == "by the owner" else 0

    assert await rebuild(store.cell, stream, POISON_ID, "entry", (PARTITION, epoch), above_ms)

    ahead_ms = int((await seed_entry(store, "j3")).partition("-")[0]) - given_ms
    assert 0 < ahead_ms <= {"by the server": 1, "by the owner": 10_001, "by nobody": 82_800_000}[known]
    last_ids = await store.reads.last_ids([stream])
    await client.xadd(stream, {"foreign": "1"}, id=POISON_ID)
    assert await rebuild(store.cell, stream, POISON_ID, "entry", (PARTITION, epoch), given_ms + 10**9)
    assert not is_absurd((await store.reads.last_ids([stream]))[0], given_ms)
    assert last_ids < await store.reads.last_ids([stream])


async def test_an_entry_of_many_fields_keeps_them(store: Store) -> None:
    """`reject` writes as many as an entry of somebody had, and its own after them."""
    epoch, dead = await seed_owner(store), store.cell.keys.dead
    fields = {f"f{number}": "" for number in range(2_500)} | {"job": "x"}
    entry = (await store.connection.commands.xadd(store.cell.keys.jobs(PARTITION), fields)).decode()
    assert await reject(store, reject_item(entry, epoch, "invalid", f"~0-{PARTITION}-{entry}", "")) == ["rejected"]
    before = await entries(store, dead)
    assert before[0][1][b"reason"] == b"invalid"
    await seed_poison(store, dead)

    await rebuilt(store, dead, "dead_id")

    assert await entries(store, dead) == before


async def test_records_are_asked_for_once(store: Store) -> None:
    """Those of another answer are added to those of the one before, or the two would take turns for ever."""
    asked: list[set[bytes]] = []

    class Told:
        async def rebuild(self, _: str, __: str, job_ids: tuple[bytes, ...], *___: object) -> messages.Rebuilding:
            asked.append(set(job_ids))
            missing = {b"j1": b"j2", b"j2": b"j1"}
            for job_id in missing:
                if job_id not in job_ids:
                    return messages.Rebuilding("records", (job_id,))
            return messages.Rebuilding("rebuilt")

    assert await rebuild(Told(), "stream", POISON_ID, "entry")  # type: ignore[arg-type]
    assert asked == [set(), {b"j1"}, {b"j1", b"j2"}]


@pytest.mark.parametrize("when", ["before", "meanwhile, more", "meanwhile, less"])
async def test_a_copy_of_something_else_is_begun_anew(store: Store, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Whatever somebody wrote there is no part of the stream, and what he deleted there is one."""
    dead, client = store.cell.keys.dead, store.connection.commands
    for number in range(9):
        await client.xadd(dead, {"job": "x"}, id=f"{number + 1}-0")
    before = await entries(store, dead)
    await seed_poison(store, dead)
    if when != "before":
        with monkeypatch.context() as patch:
            patch.setattr(cell, "REBUILT_BYTES_MAX", 1)
            for _ in range(9):
                assert (await store.cell.rebuild(dead, "dead_id")).answer == "copying"
    if when == "meanwhile, less":
        await client.xdel(store.cell.keys.rebuilt(dead), "5-0")
    else:
        await client.xadd(store.cell.keys.rebuilt(dead), {"foreign": "1"}, id="500-0")

    await rebuilt(store, dead)

    assert await entries(store, dead) == before


async def test_an_empty_stream_whose_highest_id_is_used_is_deleted(store: Store) -> None:
    """The entry with that id was deleted, which does not open the stream."""
    await seed_poison(store, store.cell.keys.dead)

    await rebuilt(store, store.cell.keys.dead)


@pytest.mark.parametrize("at", ["the end", "years ahead"])
async def test_records_name_the_new_ids(store: Store, at: str) -> None:
    """What scripts wrote into a stream near its end, or above an id that is years ahead, is found by its record."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=9)
    absurd = "18446744073709551615-18446744073709551000" if at == "the end" else f"{10**15}-5"
    k = store.cell.keys
    for stream in (k.jobs(PARTITION), k.inbox(NODE), k.parked, k.dead):
        await store.connection.commands.xadd(stream, {"foreign": "1"}, id=absurd)
    (placed,) = await reserve(store, [reserve_item(await seed_job(store, "j1", "s1"), epoch, "j1", "s1")])
    assert isinstance(placed, messages.Reserved)
    tokens = [await seed_reserved(store, f"j{number}", f"s{number}", slots=9) for number in (2, 3)]
    await release(store, release_item(tokens[0], "dead", "j2", "s2", reason="given_up"))
    await release(store, release_item(tokens[1], "retry", "j3", "s3", delay_ms=1))
    queued = await seed_job(store, "j4", "s4")

    await rebuilt(store, k.jobs(PARTITION), "entry", (PARTITION, epoch))
    await rebuilt(store, k.inbox(NODE), "assignment")
    await rebuilt(store, k.parked, "parked_id")
    await rebuilt(store, k.dead, "dead_id")

    record = await store.reads.record("j4")
    assert record["entry"] != f"{PARTITION}/{queued}"
    entry_id = record["entry"].partition("/")[2]
    assert entry_id in dict(await entries(store, k.jobs(PARTITION)))
    (again,) = await reserve(store, [reserve_item(entry_id, epoch, "j4", "s4")])
    assert isinstance(again, messages.Reserved)
    (given_back,) = await release(store, release_item(placed.token, "give_back", "j1", "s1"))
    assert given_back == messages.Released("queued")
    outcome = await store.reads.outcome("j2")
    assert outcome is not None
    assert outcome.reason == "given_up"
    assert (await store.reads.record("j2"))["dead_id"] in dict(await entries(store, k.dead))
    assert (await store.reads.record("j3"))["parked_id"] in dict(await entries(store, k.parked))


async def test_a_record_that_names_another_entry_stays_as_it_is(store: Store) -> None:
    """An absurd entry of somebody who wrote a job's id into it changes nothing of the job."""
    await seed_delayed(store)
    await store.connection.commands.xadd(store.cell.keys.parked, {"job_id": JOB}, id=POISON_ID)
    before = await store.reads.record(JOB)

    await rebuilt(store, store.cell.keys.parked, "parked_id")

    assert await store.reads.record(JOB) == before


async def test_a_record_of_another_type_does_not_stop_it(store: Store) -> None:
    """Somebody wrote a text where the record of the named job would be."""
    await store.connection.commands.set(store.cell.keys.job("j0"), "no record")
    await store.connection.commands.xadd(store.cell.keys.dead, {"job_id": b"j0"}, id=POISON_ID)

    await rebuilt(store, store.cell.keys.dead, "dead_id")

    assert len(await entries(store, store.cell.keys.dead)) == 1


async def test_only_the_owner_rebuilds_an_intake(store: Store) -> None:
    """Whoever lost the partition changes nothing."""
    epoch = await seed_owner(store)
    await seed_poison(store, store.cell.keys.jobs(PARTITION))

    async with unchanged(store):
        answer = await store.cell.rebuild(store.cell.keys.jobs(PARTITION), "entry", (), (PARTITION, epoch - 1))
    assert answer == messages.Rebuilding("fenced")


async def test_a_stream_with_ids_an_hour_ahead_is_left_alone(store: Store) -> None:
    """It takes entries, and no time is read from them that lies ahead."""
    now_ms = await store.control.time_us() // 1000
    await store.connection.commands.xadd(store.cell.keys.dead, {"job": "x"}, id=f"{now_ms + 3_600_000}-0")

    async with unchanged(store):
        assert await store.cell.rebuild(store.cell.keys.dead, "dead_id") == messages.Rebuilding("open")


async def test_a_rebuild_that_was_left_half_way_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to know of the copy of a process that died."""
    monkeypatch.setattr(cell, "REBUILT_BYTES_MAX", 1)
    dead = store.cell.keys.dead
    for number in range(40):
        await store.connection.commands.xadd(dead, {"job": "x"}, id=f"{number + 1}-0")
    await seed_poison(store, dead)
    await store.cell.rebuild(dead, "dead_id")

    assert 0 < await store.connection.commands.pttl(store.cell.keys.rebuilt(dead)) <= 60_000
    await rebuilt(store, dead)
    assert await store.connection.commands.pttl(dead) == -1
