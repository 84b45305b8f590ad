"""Pools are configured by commands: in one step, in their order, whatever happens to the leader on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from scheduler.errors import SchedulerError
from scheduler.management import manager as manager_module
from scheduler.management import pools
from scheduler.management.commands import ApplyPools, RemovePool, encode_command
from scheduler.management.manager import Manager
from scheduler.management.pools import PoolDocument
from scheduler.protocol.snapshot import Match
from scheduler.roles import start_manager
from scheduler.store.control import Control, Leading
from scheduler.store.store import Store, open_store
from tests.integration.desk import UNHURRIED, Desk

EN_ZH = (("en", "zh"),)
GOLD = PoolDocument(strategy="spread", match=Match(pairs=EN_ZH))
SILENT = PoolDocument()


@pytest.fixture
async def desk(store: Store) -> AsyncIterator[Desk]:
    """A led fleet without nodes, whose snapshot would not be published again for a minute."""
    async with await open_store(store.connection.url, UNHURRIED) as opened:
        await opened.control.write_layout()
        desk = Desk(opened)
        await desk.manager.run_once()
        yield desk


async def lose(*_: object, **__: object) -> None:
    """Fail as a call does whose answer never comes."""
    raise SchedulerError("lost")


# ---- one step ------------------------------------------------------------------------------------------------------


async def test_a_pool_is_in_force_stored_and_answered_in_one_step(desk: Desk) -> None:
    """RULES 30: without waiting for the next snapshot to be due; nodes are where its rule puts them."""
    await desk.beat("n1", pairs=EN_ZH)
    await desk.beat("n2", pairs=EN_ZH, pool="fast")
    command = await desk.ask(ApplyPools({"gold": GOLD}))
    report = await desk.manager.run_once()

    assert (report.commands, report.published) == (1, True)
    snapshot = await desk.control.read_snapshot()
    assert await desk.answers() == [(command, "accepted")]
    assert await desk.answer() == {"accepted": {"pools": ["gold"], "named_by": 0, "version": snapshot.version}}
    assert await desk.stored() == {"gold": GOLD}
    assert (await desk.in_force())["gold"] == pools.complete("gold", GOLD, UNHURRIED)
    assert await desk.placed() == {"n1": "gold", "n2": "fast"}
    assert await desk.unanswered() == 0


async def test_a_pool_is_in_force_within_a_second(url: str) -> None:
    """From the moment at which the command is sent, with a manager as it runs."""
    async with await open_store(url) as store:
        role, _ = await start_manager(url, store.settings)
        try:
            async with asyncio.timeout(10):
                while await store.control.read_version() == 0:
                    await store.control.time_us()
            async with asyncio.timeout(1):
                answer = await store.control.send_command(encode_command(ApplyPools({"gold": GOLD})), 1_000)
            assert answer is not None
            snapshot = await store.control.read_snapshot()
            assert json.loads(answer)["accepted"]["version"] == snapshot.version
            assert [pool.id for pool in snapshot.pools] == ["default", "gold"]
        finally:
            await role.stop()


async def test_what_is_refused_leaves_everything_as_it_is(desk: Desk) -> None:
    """RULES 30: the running configuration stays, of several pools not one is taken, and the reason is answered."""
    await desk.ask(ApplyPools({"gold": GOLD}))
    await desk.manager.run_once()
    before = (await desk.control.read_snapshot(), await desk.control.read_config())

    await desk.ask(ApplyPools({"gold": SILENT, "silver": PoolDocument(fallback=("gild",))}))
    report = await desk.manager.run_once()
    assert (report.commands, report.published) == (1, False)
    assert (await desk.control.read_snapshot(), await desk.control.read_config()) == before
    assert await desk.answer() == {
        "refused": "pools.silver.fallback = 'gild': expected a pool that is configured or that a node names; the "
        "nearest is gold"
    }


async def test_a_pool_that_says_what_is_in_force_anyway_makes_no_new_version(desk: Desk) -> None:
    """It is stored and answered, and placement sees no difference."""
    await desk.ask(ApplyPools({"default": PoolDocument(lease_ms=UNHURRIED.lease_ms)}))
    version = await desk.control.read_version()
    report = await desk.manager.run_once()
    assert (report.published, await desk.control.read_version()) == (False, version)
    assert (await desk.answer())["accepted"]["version"] == version
    assert set(await desk.stored()) == {"default"}


async def test_a_bad_command_harms_no_other(desk: Desk) -> None:
    """Each is answered, in the order of the stream; what is good is done."""
    several = (b"{", ApplyPools({"a": SILENT}), b'{"kind":"explode"}', b"\xff", ApplyPools({"b": SILENT}))
    asked = [await desk.ask(each) for each in several]
    await desk.manager.run_once()
    words = ["refused", "accepted", "refused", "refused", "accepted"]
    assert await desk.answers() == list(zip(asked, words, strict=True))
    assert set(await desk.stored()) == {"a", "b"}


@pytest.mark.parametrize("lost", ["the group", "the group before the answer", "the group and the answers"])
async def test_what_was_answered_is_not_decided_again_when_the_group_is_lost(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """A command that was refused would be accepted later; each has one answer."""
    client, keys = desk.store.connection.commands, desk.control.keys
    await desk.ask(ApplyPools({"gold": PoolDocument(fallback=("b",)), "b": SILENT}))
    await desk.ask(RemovePool("b"))
    if lost == "the group before the answer":
        publish = Control.publish

        async def late(self: Control, *arguments: Any, **named: Any) -> None:
            await client.xgroup_destroy(keys.commands, "management")
            await publish(self, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(Control, "publish", late)
            await desk.manager.run_once()
    else:
        await desk.manager.run_once()
    await desk.ask(ApplyPools({"gold": SILENT}))
    await desk.manager.run_once()
    assert [word for _, word in await desk.answers()] == ["accepted", "refused", "accepted"]
    await client.xgroup_destroy(keys.commands, "management")
    if lost.endswith("answers"):
        await client.delete(keys.answers)
    waits = await desk.ask(ApplyPools({"c": SILENT}))
    for _ in range(3):
        await desk.manager.run_once()

    assert set(await desk.stored()) == {"gold", "b", "c"}
    assert (await desk.answers())[-1] == (waits, "accepted")
    assert len(await desk.answers()) == (1 if lost.endswith("answers") else 4)
    assert await client.xlen(keys.commands) == 0


async def test_a_removed_pool_gives_its_nodes_back(desk: Desk) -> None:
    """Those that its rule took are where the other rules put them; those that name it stay, with the defaults."""
    await desk.beat("n1", pairs=EN_ZH)
    await desk.beat("n2", pairs=EN_ZH, labels={"zone": "eu"})
    await desk.beat("n3", pool="gold")
    europe = PoolDocument(match=Match(labels={"zone": "eu"}))
    await desk.ask(ApplyPools({"gold": GOLD, "z-europe": europe}))
    await desk.manager.run_once()
    assert await desk.placed() == {"n1": "gold", "n2": "gold", "n3": "gold"}

    await desk.ask(RemovePool("gold"))
    await desk.manager.run_once()
    assert await desk.placed() == {"n1": "default", "n2": "z-europe", "n3": "gold"}
    assert (await desk.answer())["accepted"]["named_by"] == 1
    assert (await desk.in_force())["gold"] == pools.complete("gold", SILENT, UNHURRIED)
    assert await desk.stored() == {"z-europe": europe}


# ---- again, and in which order -------------------------------------------------------------------------------------


async def test_a_command_that_was_sent_twice_comes_to_the_same(desk: Desk) -> None:
    """RULES 28: a sender that lost the reply sends again; both are accepted and the state is that of one."""
    for wanted in (ApplyPools({"gold": GOLD}), RemovePool("gold")):
        await desk.ask(wanted)
        await desk.manager.run_once()
        once = (await desk.control.read_snapshot(), await desk.control.read_config())
        await desk.ask(wanted)
        await desk.manager.run_once()
        assert (await desk.control.read_snapshot(), await desk.control.read_config()) == once
    assert [word for _, word in await desk.answers()] == ["accepted"] * 4


async def test_crash_after_take_before_publish(desk: Desk) -> None:
    """RULES 28: the next leader does what the last one had read, and there is one answer."""
    command = await desk.ask(ApplyPools({"gold": GOLD}))
    epoch = (await desk.control.lead("m1+1")).epoch  # type: ignore[union-attr]
    taken = await desk.control.take("m1+1", epoch)
    assert [each.id for each in taken.commands] == [command]
    await desk.control.give_up_lead("m1+1")

    later = Manager(desk.store, UNHURRIED, "m2+1")
    await later.run_once()
    await later.run_once()
    assert await desk.answers() == [(command, "accepted")]
    assert (set(await desk.stored()), set(await desk.in_force())) == ({"gold"}, {"default", "gold"})


async def test_an_answer_that_fails_is_given_later_and_nothing_is_in_force_before(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RULES 30: the step after it reads the command again, before the newer one."""
    first = await desk.ask(ApplyPools({"gold": PoolDocument(candidates=2)}))
    with monkeypatch.context() as patch:
        patch.setattr(Control, "publish", lose)
        with pytest.raises(SchedulerError, match="lost"):
            await desk.manager.run_once()
    assert (await desk.answers(), await desk.stored(), set(await desk.in_force())) == ([], {}, {"default"})

    second = await desk.ask(ApplyPools({"gold": PoolDocument(candidates=3)}))
    await desk.manager.run_once()
    await desk.manager.run_once()
    assert [command for command, _ in await desk.answers()] == [first, second]
    assert (await desk.in_force())["gold"].candidates == 3


async def test_a_command_whose_reading_was_lost_is_done_before_the_next(desk: Desk) -> None:
    """RULES 28: a lost reply of `take` leaves it pending; it must not be done after what was asked later."""
    first = await desk.ask(ApplyPools({"gold": PoolDocument(candidates=2)}))
    leading = await desk.control.lead("m1+1")
    assert isinstance(leading, Leading)
    await desk.control.take("m1+1", leading.epoch)  # whose answer nobody gets
    second = await desk.ask(ApplyPools({"gold": PoolDocument(candidates=3)}))

    await desk.manager.run_once()
    assert [command for command, _ in await desk.answers()] == [first, second]
    assert (await desk.in_force())["gold"].candidates == 3


async def test_more_commands_than_a_step_reads(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is read by the next steps, in order."""
    monkeypatch.setattr(manager_module, "TAKE_MAX", 2)
    asked = [await desk.ask(ApplyPools({"gold": PoolDocument(candidates=number)})) for number in range(1, 6)]
    async with asyncio.timeout(10):
        while len(await desk.answers()) < len(asked):
            await desk.manager.run_once()
    assert [command for command, _ in await desk.answers()] == asked
    assert (await desk.in_force())["gold"].candidates == 5


# ---- another leader ------------------------------------------------------------------------------------------------


async def test_a_standby_takes_over_with_the_configuration(desk: Desk) -> None:
    """It publishes the same; rules still decide about the nodes that they had, and a removal moves them."""
    await desk.beat("n1", pairs=EN_ZH)
    await desk.beat("n2", pairs=EN_ZH, pool="gold")
    await desk.ask(ApplyPools({"gold": GOLD}))
    await desk.manager.run_once()
    before = await desk.control.read_snapshot()
    await desk.manager.give_up()

    later = Manager(desk.store, UNHURRIED, "m2+1")
    await later.run_once()
    await later.run_once()
    assert await desk.control.read_snapshot() == before
    await desk.ask(RemovePool("gold"))
    await later.run_once()
    assert await desk.placed() == {"n1": "default", "n2": "gold"}


async def test_a_standby_completes_pools_by_its_own_settings(desk: Desk) -> None:
    """What a pool does not say is not stored, so it is the leader's."""
    await desk.ask(ApplyPools({"gold": GOLD}))
    await desk.manager.run_once()
    await desk.manager.give_up()
    settings = msgspec.structs.replace(UNHURRIED, lease_ms=7_000, strategy="least_loaded")
    await Manager(desk.store, settings, "m2+1").run_once()
    gold, default = (await desk.in_force())["gold"], (await desk.in_force())["default"]
    assert (gold.lease_ms, gold.strategy) == (7_000, "spread")
    assert (default.lease_ms, default.strategy) == (7_000, "least_loaded")


async def test_stored_fields_that_cannot_be_used_are_logged_and_ignored(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are in force, and the next command is done."""
    client, config = desk.store.connection.commands, desk.control.keys.config
    await client.hset(config, mapping={"pool:bad": b"{", b"pool:\xff": b"{}", "drain:n1": b"1", "pool:gold": b"{}"})
    await desk.manager.give_up()
    later = Manager(desk.store, UNHURRIED, "m2+1")
    await later.run_once()
    assert set(await desk.in_force()) == {"default", "gold"}
    assert [record.message.split(" is ")[0] for record in caplog.records if record.levelname == "ERROR"] == [
        "the stored configuration of pool 'bad'",
        "the stored configuration of pool '\ufffd'",
    ]
    await desk.ask(RemovePool("bad"))
    await later.run_once()
    assert (await desk.answers())[-1][1] == "accepted"
    assert "pool:bad" not in await desk.control.read_config()


async def test_a_take_over_that_fails_begins_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody leads who does not know the configuration."""
    await desk.ask(ApplyPools({"gold": GOLD}))
    await desk.manager.run_once()
    await desk.manager.give_up()
    later = Manager(desk.store, UNHURRIED, "m2+1")
    with monkeypatch.context() as patch:
        patch.setattr(Control, "read_config", lose)
        with pytest.raises(SchedulerError, match="lost"):
            await later.run_once()
    assert not later.leading
    await later.run_once()
    assert (later.leading, set(await desk.in_force())) == (True, {"default", "gold"})


async def test_a_snapshot_that_cannot_be_read_is_made_anew(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Pools and nodes come from the configuration and from what is heard."""
    await desk.ask(ApplyPools({"gold": GOLD}))
    await desk.manager.run_once()
    await desk.manager.give_up()
    await desk.store.connection.commands.set(desk.control.keys.snapshot, b"\xc1")
    await desk.beat("n1", pairs=EN_ZH)
    await Manager(desk.store, UNHURRIED, "m2+1").run_once()
    assert "the published snapshot is ignored" in caplog.text
    assert (await desk.placed(), set(await desk.in_force())) == ({"n1": "gold"}, {"default", "gold"})


async def test_what_the_server_lost_in_a_crash_is_stored_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration too: it was answered, so it has to outlive this leader."""
    client, k = desk.store.connection.commands, desk.control.keys
    await desk.ask(ApplyPools({"silver": SILENT}))
    await desk.manager.run_once()
    lost = {key: await client.dump(key) for key in (k.config, k.snapshot, k.version)}
    await desk.ask(ApplyPools({"gold": GOLD}))
    await desk.ask(RemovePool("silver"))
    await desk.manager.run_once()
    for key, value in lost.items():
        await client.restore(key, 0, value, replace=True)
    assert set(await desk.stored()) == {"silver"}

    monkeypatch.setattr(manager_module, "LOOK_BACK_MS", -1)
    monkeypatch.setattr(desk.manager, "_published_at_ms", 0.0)
    await desk.manager.run_once()
    assert (set(await desk.stored()), set(await desk.in_force())) == ({"gold"}, {"default", "gold"})


# ---- the sender ----------------------------------------------------------------------------------------------------


async def test_a_command_that_nobody_answers_is_taken_back(desk: Desk) -> None:
    """A manager that starts later must not do what its sender has given up, by itself or because he was told to."""
    await desk.manager.give_up()
    client, commands = desk.store.connection.commands, desk.control.keys.commands
    document = encode_command(ApplyPools({"gold": GOLD}))
    assert await desk.control.send_command(document, 20) is None
    sending = asyncio.create_task(desk.control.send_command(document, 60_000))
    while not await client.xlen(commands):
        await asyncio.wait([sending], timeout=0)
    sending.cancel()
    await asyncio.wait([sending])
    assert (sending.cancelled(), await client.xlen(commands)) == (True, 0)
    later = Manager(desk.store, UNHURRIED, "m2+1")
    await later.run_once()
    await later.run_once()
    assert (await desk.answers(), await desk.stored()) == ([], {})


async def test_a_command_that_was_read_and_taken_back_is_forgotten(desk: Desk) -> None:
    """Its body is gone, so the next leader acknowledges it without doing it."""
    sending = asyncio.create_task(desk.control.send_command(encode_command(ApplyPools({"gold": GOLD})), 200))
    leading = await desk.control.lead("m1+1")
    assert isinstance(leading, Leading)
    while not (await desk.control.take("m1+1", leading.epoch)).commands:
        pass
    await desk.control.give_up_lead("m1+1")
    assert await sending is None
    await Manager(desk.store, UNHURRIED, "m2+1").run_once()
    assert (await desk.unanswered(), await desk.answers(), await desk.stored()) == (0, [], {})


async def test_each_sender_hears_its_own_answer(desk: Desk) -> None:
    """Also when others are answered at the same time, and when there are answers from before."""
    await desk.ask(b"{")
    await desk.manager.run_once()
    names = [f"p{number}" for number in range(4)]
    async with await open_store(desk.store.connection.url) as other:
        senders = [
            asyncio.create_task(control.send_command(encode_command(ApplyPools({name: SILENT})), 10_000))
            for control, name in zip([desk.control, other.control] * 2, names, strict=True)
        ]
        while not all(sender.done() for sender in senders):
            await desk.manager.run_once()
        answers = [json.loads(sender.result() or b"") for sender in senders]
    assert [answer["accepted"]["pools"] for answer in answers] == [[name] for name in names]
