"""The transition table, as the scripts ask it: what it does not name, no script writes."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple, get_args

import pytest

from scheduler.protocol import messages
from scheduler.protocol.lifecycle import TRANSITIONS, State, Transition, Verdict
from scheduler.store import connection
from scheduler.store.scripts import SCRIPT_NAMES, compose, load_scripts
from scheduler.store.store import Store
from tests.seeds import (
    BOOT,
    LATER_BOOT,
    NODE,
    PARTITION,
    document,
    promote,
    reject,
    reject_item,
    release,
    release_item,
    reserve,
    reserve_item,
    seed_entry,
    seed_job,
    seed_node,
    seed_owner,
    seed_record,
    submit_item,
)

STATES: Final[tuple[State, ...]] = get_args(State)


class Seeded(NamedTuple):
    """A job of which everything but its state lets every script go on."""

    job_id: str
    session: str
    epoch: int
    entry_id: str
    token: int


Act = Callable[[Store, Seeded], Awaitable[object]]


async def seed(store: Store, number: int, state: State) -> Seeded:
    """Its body lies in intake, inbox and parked, so that no script stops for want of one."""
    job_id, session, k, client = f"j{number}", f"s{number}", store.cell.keys, store.connection.commands
    epoch = await seed_owner(store)
    await seed_node(store, slots=100)
    (placed,) = await reserve(store, [reserve_item(await seed_job(store, job_id, session), epoch, job_id, session)])
    assert isinstance(placed, messages.Reserved)
    await client.zadd(k.slots(NODE), {job_id: 1})
    entry_id = await seed_entry(store, job_id, session)
    body = {"job": document(job_id, session), "payload": "body", "job_id": job_id, "partition": PARTITION}
    parked_id = (await client.xadd(k.parked, body)).decode()
    await client.zadd(k.delayed, {job_id: 1})
    if state == "none":
        await client.delete(k.job(job_id))
    else:
        await seed_record(store, job_id, state=state, entry=f"{PARTITION}/{entry_id}", parked_id=parked_id)
    return Seeded(job_id, session, epoch, entry_id, placed.token)


def submitting() -> Act:
    """Another submission under its id."""
    return lambda store, job: store.cell.submit([submit_item(job.job_id, job.session, nonce="other")])


def reserving() -> Act:
    """A placement of its entry."""
    return lambda store, job: reserve(store, [reserve_item(job.entry_id, job.epoch, job.job_id, job.session)])


def rejecting(reason: str) -> Act:
    """A refusal of its entry."""
    return lambda store, job: reject(store, reject_item(job.entry_id, job.epoch, reason, job.job_id, job.session))


def releasing(verdict: Verdict, delay_ms: int = 0, state: str = "completed", prepared: str = "") -> Act:
    """An ending of its reservation."""

    async def act(store: Store, job: Seeded) -> None:
        record = await store.reads.record(job.job_id)
        if prepared == "body lost" and record:
            await store.connection.commands.xdel(store.cell.keys.inbox(NODE), record["inbox_id"])
        elif record and prepared:
            await seed_record(store, job.job_id, **{prepared: 9})
        boot = LATER_BOOT if verdict == "reboot" else BOOT
        item = release_item(job.token, verdict, job.job_id, job.session, delay_ms=delay_ms, state=state, boot=boot)
        await release(store, item)

    return act


def promoting(*, is_lost: bool) -> Act:
    """Its way back to the intake."""

    async def act(store: Store, job: Seeded) -> None:
        if is_lost:
            await store.connection.commands.delete(store.cell.keys.parked)
        await promote(store, job.job_id)

    return act


async def renew(store: Store, job: Seeded) -> None:
    """A renewal of its lease."""
    await store.cell.renew(NODE, [(job.job_id, job.token)])


ACTS: Final[dict[str, list[Act]]] = {
    "submit": [submitting()],
    "reserve": [reserving()],
    "reject": [rejecting("expired"), rejecting("cancelled")],
    "release": [
        releasing("finish"),
        releasing("finish", state="failed"),
        *[
            releasing(verdict, delay_ms, prepared=prepared)
            for verdict in ("retry", "expire", "reboot", "give_back", "dead")
            for delay_ms, prepared in ((0, ""), (1_000, ""), (0, "cancel"), (0, "attempts"), (0, "body lost"))
        ],
    ],
    "promote": [promoting(is_lost=False), promoting(is_lost=True)],
    "renew": [renew],
}


async def seed_jobs(store: Store, script: str, state: State) -> list[Seeded]:
    """One for each act of the script."""
    return [await seed(store, number, state) for number in range(len(ACTS[script]))]


async def check(store: Store, script: str, state: State, jobs: list[Seeded], rows: Iterable[Transition]) -> None:
    """Whatever the script is asked for, a job comes from its state only to where rows of the table lead."""
    allowed = {row.next_state for row in rows if row.script == script and row.state == state}
    for number, (job, act) in enumerate(zip(jobs, ACTS[script], strict=True)):
        before = await store.reads.record(job.job_id)
        await act(store, job)
        after = await store.reads.record(job.job_id)
        assert after.get("state", "none") in {state, *allowed}, number
        if not allowed:
            assert {**after, "cancel": "", "attempts": ""} == {**before, "cancel": "", "attempts": ""}, number


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("script", ACTS)
async def test_a_script_writes_only_what_the_table_allows(store: Store, script: str, state: State) -> None:
    """Of every state; where it has no row, the record stays as it is."""
    jobs = await seed_jobs(store, script, state)

    await check(store, script, state, jobs, TRANSITIONS)


@pytest.mark.parametrize(
    "row",
    [row for row in TRANSITIONS if row.script in ACTS and row.event not in ("refused", "renewed")],
    ids=lambda row: f"{row.script}-{row.state}-{row.event}",
)
async def test_a_script_asks_the_table(store: Store, row: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a row the script does not write what only that row allows."""
    rows = tuple(each for each in TRANSITIONS if each != row)
    jobs = await seed_jobs(store, row.script, row.state)
    scripts = load_scripts() | {row.script: compose(row.script, rows)}
    monkeypatch.setattr(connection, "load_scripts", lambda: scripts)

    rest = [each for each in rows if each.event != "refused"]
    await check(store, row.script, row.state, jobs, rest)


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_no_script_names_a_state_that_it_writes(name: str) -> None:
    """What it writes is what the table answers."""
    source = load_scripts()[name].source
    states = "|".join(state for state in STATES if state != "none")

    assert re.findall(rf"'state', '(?:{states})'", source) == []
    changes = {"submit", "reserve", "reject", "release", "promote"}
    assert ("next_state(" in source) == (name in changes)
