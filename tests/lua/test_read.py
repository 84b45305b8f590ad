"""read.lua: entries of streams, by bytes."""

from __future__ import annotations

from scheduler.protocol.messages import Head
from scheduler.store.reads import Part
from scheduler.store.store import Store
from tests.dumps import unchanged
from tests.seeds import POISON_ID

NO_LIMIT = (2**53, 2**53, 2**53)
LIMITS = (100, 200, 50)


async def add(store: Store, stream: str, **fields: bytes) -> str:
    """An entry; returns its id."""
    added: bytes = await store.connection.commands.xadd(stream, fields)
    return added.decode()


async def read(
    store: Store,
    cursors: dict[str, str],
    bytes_max: int,
    parts_max: tuple[int, int, int] = LIMITS,
    with_heads: bool = False,
    count: int = 10,
) -> dict[str, Part]:
    """One call, which changes nothing."""
    async with unchanged(store):
        return await store.reads.by_bytes(cursors, count, bytes_max, parts_max, with_heads, False)


async def test_what_fits_is_whole_and_the_answer_ends_before_what_does_not(store: Store) -> None:
    """The next call goes on there, and ends when all is read."""
    jobs = store.cell.keys.jobs(1)
    first, second, third = [await add(store, jobs, job=b"x" * 90) for _ in range(3)]

    part = (await read(store, {jobs: "0"}, 190))[jobs]
    assert part == Part([(first, {b"job": b"x" * 90}), (second, {b"job": b"x" * 90})], [], second, False)
    part = (await read(store, {jobs: second}, 190))[jobs]
    assert part == Part([(third, {b"job": b"x" * 90})], [], third, True)
    assert (await read(store, {jobs: third}, 190))[jobs] == Part([], [], "", True)


async def test_one_entry_is_read_whatever_it_has(store: Store) -> None:
    """Or nobody would get past it; another stream has to wait then."""
    jobs, others = store.cell.keys.jobs(1), store.cell.keys.jobs(2)
    first = await add(store, jobs, job=b"x" * 90)
    await add(store, jobs, job=b"x")
    await add(store, others, job=b"x")

    found = await read(store, {jobs: "0", others: "0"}, 1)
    assert found[jobs] == Part([(first, {b"job": b"x" * 90})], [], first, False)
    assert found[others] == Part([], [], "", False)


async def test_what_is_above_a_limit_is_told_by_its_head(store: Store) -> None:
    """Each part has its own; the rest goes on behind it."""
    jobs = store.cell.keys.jobs(1)
    document = await add(store, jobs, job=b"x" * 101, job_id=b"j1")
    payload = await add(store, jobs, job=b"x", payload=b"x" * 201)
    other = await add(store, jobs, job=b"x", what=b"x" * 50, short=b"y")
    good = await add(store, jobs, job=b"x" * 100, payload=b"x" * 200)

    part = (await read(store, {jobs: "0"}, 1_000))[jobs]
    assert part.heads == [
        Head(document, {b"job_id": b"j1"}, 101, 0, 11),
        Head(payload, {b"job": b"x"}, 1, 201, 10),
        Head(other, {b"what": b"x" * 50, b"short": b"y", b"job": b"x"}, 1, 0, 63),
    ]
    assert [entry_id for entry_id, _ in part.entries] == [good]
    assert (part.last_id, part.is_end) == (good, True)


async def test_heads_of_all_that_does_not_fit(store: Store) -> None:
    """A node learns of everything at once; what fits behind something large comes whole."""
    inbox = store.cell.keys.inbox("n1")
    large = await add(store, inbox, job=b"x" * 90, reservation=b"7 b 1")
    small = await add(store, inbox, control=b"boot", long=b"x" * 2_000)
    word = await add(store, inbox, control=b"boot")

    part = (await read(store, {inbox: "0"}, 50, NO_LIMIT, with_heads=True))[inbox]
    assert part.heads == [
        Head(large, {b"reservation": b"7 b 1"}, 90, 0, 19),
        Head(small, {b"control": b"boot"}, 0, 0, 2_015),
    ]
    assert part.entries == [(word, {b"control": b"boot"})]
    assert part.is_end


async def test_no_more_than_count_of_a_stream(store: Store) -> None:
    """Heads count too."""
    jobs = store.cell.keys.jobs(1)
    ids = [await add(store, jobs, job=b"x" * (101 - i)) for i in range(3)]

    part = (await read(store, {jobs: "0"}, 1_000, count=2))[jobs]
    assert (part.last_id, part.is_end) == (ids[1], False)


async def test_a_call_looks_at_one_huge_entry_at_most(store: Store) -> None:
    """The server does nothing else meanwhile."""
    jobs = store.cell.keys.jobs(1)
    first, _ = [await add(store, jobs, payload=b"x" * (33 * 2**20)) for _ in range(2)]

    part = (await read(store, {jobs: "0"}, 1_000))[jobs]
    assert [head.id for head in part.heads] == [first]
    assert not part.is_end


async def test_nothing_comes_after_the_highest_id(store: Store) -> None:
    """Somebody's entry can have it."""
    jobs = store.cell.keys.jobs(1)
    await store.connection.commands.xadd(jobs, {"job": "x"}, POISON_ID)

    assert (await read(store, {jobs: "0"}, 1_000))[jobs].last_id == POISON_ID
    assert (await read(store, {jobs: POISON_ID}, 1_000))[jobs] == Part([], [], "", True)
