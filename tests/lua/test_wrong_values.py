"""What a client can get wrong: each value that it sends is checked, and the answer or the error names it."""

from __future__ import annotations

from typing import Any, Final

import pytest

from scheduler.errors import WrongType
from scheduler.store.connection import Argument, ScriptFailed
from scheduler.store.store import Store
from tests.dumps import standing, unchanged
from tests.seeds import BOOT, JOB, LATER_BOOT, NODE, PARTITION, SESSION, document, seed_node, seed_reserved

FAR: Final = 10**13


def named(answer: Any) -> tuple[str, str]:
    """The word of an answer, and what it names."""
    return answer[0].decode(), answer[1].decode() if len(answer) > 1 else ""


# ---- release -----------------------------------------------------------------------------------------------


def release_call(store: Store, own_token: Any, **changed: Any) -> tuple[list[str], list[Argument]]:
    """KEYS and ARGV of a release of the seeded job, with some values changed. `head`: the first eight."""
    k = store.cell.keys
    names = [k.capacity, k.open, k.freed, k.results, k.delayed, k.parked, k.dead, k.jobs(PARTITION)]
    names += [k.slots(NODE), k.inbox(NODE), k.job(JOB), k.result(JOB), k.results]
    names += [k.held("session", SESSION), k.held("tenant", "")]
    item = {
        "partition": 1,
        "node": 1,
        "job_id": JOB,
        "session": SESSION,
        "tenant": "",
        "reply_to": "",
        "token": own_token,
    }
    item |= {"verdict": "finish", "boot": BOOT, "delay_ms": 0, "state": "completed", "reason": "", "detail": ""}
    item |= {"content_type": "", "result": ""}
    head = {"P": 1, "N": 1, "retention_ms": 1000, "dead_retention_ms": 1000, "not_started_max": 5}
    head |= {"results_max": 1000, "freed_max": 1000, "result_inline_bytes_max": 4096}
    for name, value in changed.items():
        (head if name in head else item)[name] = value
    return names, [*head.values(), PARTITION, NODE, *item.values()]


@pytest.mark.parametrize("verdict", ["", "finsh", "Finish", "finish ", "released", "constructor"])
async def test_verdict_that_is_none_ends_nothing(store: Store, verdict: str) -> None:
    """A typo does not send the job round for ever; nothing was done, and the answer says what would be."""
    token = await seed_reserved(store)

    async with unchanged(store):
        _, answer = await store.connection.call("release", *release_call(store, token, verdict=verdict))

    expected = "finish, retry, expire, reboot, give_back or dead"
    assert named(answer) == ("invalid", f"verdict = '{verdict}': expected {expected}")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"state": "weird"}, "state = 'weird': expected completed or failed"),
        ({"state": ""}, "state = ''"),
        ({"state": "cancelled"}, "state = 'cancelled'"),
        ({"delay_ms": ""}, "delay_ms = '': expected a whole number"),
        ({"delay_ms": "-1"}, "delay_ms = '-1'"),
        ({"delay_ms": "1.5"}, "delay_ms = '1.5'"),
        ({"delay_ms": "nan"}, "delay_ms = 'nan'"),
        ({"delay_ms": "1e3"}, "delay_ms = '1e3'"),
        ({"delay_ms": "0x10"}, "delay_ms = '0x10'"),
        ({"verdict": "retry", "delay_ms": FAR}, f"delay_ms = '{FAR}'"),
        ({"verdict": "reboot", "boot": "b1"}, "boot = 'b1'"),
        ({"verdict": "reboot", "boot": ""}, "boot = ''"),
        ({"partition": 0}, "partition = '0': expected an index from 1 to P = 1"),
        ({"partition": 2}, "partition = '2'"),
        ({"partition": "1.5"}, "partition = '1.5'"),
        ({"partition": "p1"}, "partition = 'p1'"),
        ({"node": 0}, "node = '0': expected an index from 1 to N = 1"),
        ({"node": 2}, "node = '2'"),
        ({"node": NODE}, f"node = '{NODE}'"),
        ({"token": ""}, "token = '': expected digits"),
        ({"token": "1.0"}, "token = '1.0'"),
        ({"job_id": "j2"}, "job_id = 'j2': expected that of the key"),
        ({"job_id": ""}, "job_id = ''"),
        ({"reason": "two words"}, "reason = 'two words': expected one word"),
        ({"reason": "w\xf6rt"}, "reason = 'w"),
        ({"content_type": "x" * 129}, f"content_type = '{'x' * 64}': expected 128 characters of visible ASCII at most"),
        ({"content_type": "a\nb"}, "content_type = 'a\nb'"),
        ({"result": b"x" * (2**20 + 1)}, "size of the result = '1048577': expected 1048576 bytes at most"),
        ({"session": "s2"}, "KEYS[14] = '{sched:0}:held:session:s1': expected {sched:0}:held:session:s2"),
        ({"tenant": "t1"}, "KEYS[15] = '{sched:0}:held:tenant:': expected {sched:0}:held:tenant:t1"),
        ({"reply_to": "r1"}, "KEYS[13] = '{sched:0}:results': expected {sched:0}:results:r1"),
    ],
)
async def test_value_of_an_ending_that_is_none_is_named(store: Store, changed: dict[str, Any], problem: str) -> None:
    """Nothing was done."""
    token = await seed_reserved(store)

    async with unchanged(store):
        _, answer = await store.connection.call("release", *release_call(store, token, **changed))

    word, why = named(answer)
    assert (word, why[: len(problem)]) == ("invalid", problem)


@pytest.mark.parametrize("index", range(10, 15))
async def test_a_key_of_an_ending_is_that_of_its_ids(store: Store, index: int) -> None:
    """A result under the id of another job, or an outcome in the feed of another producer, would be believed."""
    token = await seed_reserved(store)
    names, arguments = release_call(store, token)

    for wrong in ("x", names[index] + "2", names[index][:-1], names[index].replace("sched", "other"), names[9]):
        async with unchanged(store):
            _, answer = await store.connection.call("release", [*names[:index], wrong, *names[index + 1 :]], arguments)
        assert named(answer)[0] == "invalid"
        assert wrong in named(answer)[1]


async def test_texts_of_an_ending_are_cut_and_the_longest_result_is_taken(store: Store) -> None:
    """What is for people is told in feeds that many read; its begin is as good."""
    token = await seed_reserved(store)
    changed = {"reason": "r" * 65, "detail": "d" * 5000, "content_type": "c" * 128, "result": b"x" * 2**20}

    _, answer = await store.connection.call("release", *release_call(store, token, **changed))

    assert named(answer) == ("released", "completed")
    ((_, told),) = await store.reads.entries(store.cell.keys.results)
    assert (told[b"reason"], told[b"detail"]) == (b"r" * 64, b"d" * 4096)
    assert (await store.reads.record(JOB))["reason"] == "r" * 64
    assert await store.reads.result(JOB) == b"x" * 2**20


async def test_others_of_a_batch_go_on(store: Store) -> None:
    """Who gets one ending wrong has not lost the others."""
    token = await seed_reserved(store)
    names, arguments = release_call(store, token)
    wrong = release_call(store, token, verdict="finsh")[1][10:]

    _, *answers = await store.connection.call("release", names + names[10:], arguments[:10] + wrong + arguments[10:])

    assert [named(answer)[0] for answer in answers] == ["invalid", "released"]
    assert (await standing(store))[0] == "completed"


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"P": ""}, "P = ''"),
        ({"N": "n1"}, "N = 'n1'"),
        ({"retention_ms": "1h"}, "retention_ms = '1h'"),
        ({"retention_ms": 0}, "retention_ms = '0': expected a whole number from 1"),
        ({"dead_retention_ms": "-1"}, "dead_retention_ms = '-1'"),
        ({"not_started_max": ""}, "not_started_max = ''"),
        ({"results_max": "many"}, "results_max = 'many'"),
        ({"results_max": 0}, "results_max = '0': expected a whole number from 1000"),
        ({"results_max": 999}, "results_max = '999'"),
        ({"results_max": "9" * 20}, f"results_max = '{'9' * 20}'"),
        ({"freed_max": 0}, "freed_max = '0': expected a whole number from 1000"),
        ({"freed_max": "1.5"}, "freed_max = '1.5'"),
        ({"result_inline_bytes_max": "4k"}, "result_inline_bytes_max = '4k'"),
        ({"P": 2}, "number of arguments = '25'"),
    ],
)
async def test_value_that_all_endings_share_is_an_error(store: Store, changed: dict[str, Any], problem: str) -> None:
    """It names the script, the value and what was expected, and nothing was done."""
    token = await seed_reserved(store)

    async with unchanged(store):
        with pytest.raises(ScriptFailed) as error:
            await store.connection.call("release", *release_call(store, token, **changed))

    assert f"release: {problem}" in str(error.value)


async def test_arguments_and_keys_of_a_release_fit_together(store: Store) -> None:
    """A value too many or too few would shift all that follow; a key too few would be another one."""
    token = await seed_reserved(store)
    names, arguments = release_call(store, token)
    k = store.cell.keys
    slots, jobs = names.index(k.slots(NODE)), names.index(k.jobs(PARTITION))
    swapped = [*names[:slots], names[slots + 1], names[slots], *names[slots + 2 :]]
    other = [*names[:jobs], k.jobs(PARTITION + 1), *names[jobs + 1 :]]

    for wrong_keys, wrong_arguments, problem in (
        (names, arguments[:-1], "number of arguments = '24'"),
        (names, [*arguments, ""], "number of arguments = '26'"),
        (names[:-1], arguments, "number of keys = '14'"),
        ([*names, k.results], arguments, "number of keys = '16'"),
        (swapped, arguments, f"KEYS[9] = '{k.inbox(NODE)}': expected {k.slots(NODE)}"),
        (other, arguments, f"KEYS[8] = '{k.jobs(PARTITION + 1)}'"),
        *[([*names[:i], "x", *names[i + 1 :]], arguments, "KEYS[") for i in range(10)],
        (names, arguments[:10] + arguments[10:] * 129, "number of jobs = '129': expected 128 at most"),
    ):
        async with unchanged(store):
            with pytest.raises(ScriptFailed) as error:
                await store.connection.call("release", wrong_keys, wrong_arguments)
        assert f"release: {problem}" in str(error.value)


# ---- submit ------------------------------------------------------------------------------------------------


def submit_call(store: Store, **changed: Any) -> tuple[list[str], list[Argument]]:
    """KEYS and ARGV of a submission, with some values changed."""
    item = {"partition": 1, "job_id": JOB, "session": SESSION, "tenant": "", "reply_to": "", "nonce": "n"}
    item |= {"document": document(), "payload": b""}
    head = {"P": 1, "backlog_max": 10}
    for name, value in changed.items():
        (head if name in head else item)[name] = value
    job_id = item["job_id"] if not changed.get("key") else changed.pop("key")
    names = [store.cell.keys.jobs(PARTITION), f"{store.cell.keys.job('')}{job_id}", store.cell.keys.partitions]
    item.pop("key", None)
    return names, [*head.values(), PARTITION, *item.values()]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"partition": 0}, "partition = '0': expected an index from 1 to P = 1"),
        ({"partition": 2}, "partition = '2'"),
        ({"job_id": ""}, "job_id = '': expected 1 to 128 visible"),
        ({"job_id": "a b"}, "job_id = 'a b'"),
        ({"job_id": "{a}"}, "job_id = '{a}'"),
        ({"job_id": "j" * 129}, "job_id = 'jjj"),
        ({"job_id": "~0-1-5-0"}, "job_id = '~0-1-5-0': expected one that does not begin with ~"),
        ({"job_id": "j2", "key": "j1"}, "job_id = 'j2': expected that of the key"),
        ({"session": ""}, "session = ''"),
        ({"session": "s\n"}, "session = 's\n'"),
        ({"session": "s" * 129}, "session = 'sss"),
        ({"tenant": "t" * 65}, "tenant = 'ttt"),
        ({"tenant": "a b"}, "tenant = 'a b'"),
        ({"reply_to": "r" * 65}, "reply_to = 'rrr"),
        ({"reply_to": "}"}, "reply_to = '}'"),
        ({"nonce": ""}, "nonce = '': expected something random"),
    ],
)
async def test_value_of_a_submission_that_is_none_is_named(store: Store, changed: dict[str, Any], problem: str) -> None:
    """Nothing was accepted."""
    async with unchanged(store):
        _, answer = await store.connection.call("submit", *submit_call(store, **changed))

    word, why = named(answer)
    assert (word, why[: len(problem)]) == ("invalid", problem)


@pytest.mark.parametrize("job_id", ["j" * 128, "!", "a/b:c|d~"])
async def test_every_id_that_may_be_is_accepted(store: Store, job_id: str) -> None:
    """The longest, the shortest, and all kinds of characters."""
    _, answer = await store.connection.call("submit", *submit_call(store, job_id=job_id, tenant="t" * 64))

    assert named(answer)[0] == "accepted"


async def test_arguments_and_keys_of_a_submission_fit_together(store: Store) -> None:
    """An error names what does not, and nothing is accepted."""
    names, arguments = submit_call(store)
    other = [store.cell.keys.jobs(PARTITION + 1), *names[1:]]

    for wrong_keys, wrong_arguments, problem in (
        (names, arguments[:-1], "number of arguments = '10'"),
        (names[:2], arguments, "number of keys = '2'"),
        ([*names[:2], "x"], arguments, "KEYS[3] = 'x': expected that of the partitions"),
        (other, arguments, f"KEYS[1] = '{other[0]}': expected the intake of partition {PARTITION}"),
        (names, ["x", *arguments[1:]], "P = 'x'"),
        (names, [1, "", *arguments[2:]], "backlog_max = ''"),
        (names, [*arguments[:3], *arguments[3:] * 129], "number of jobs = '129'"),
    ):
        async with unchanged(store):
            with pytest.raises(ScriptFailed) as error:
                await store.connection.call("submit", wrong_keys, wrong_arguments)
        assert f"submit: {problem}" in str(error.value)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("partition", ["16", "999", "4096", "01", "1e1", "-1", "", "x"])
async def test_a_partition_that_nobody_reads_takes_no_job(store: Store, partition: str, told: bool) -> None:
    """What is accepted has an outcome some time. How many there are the manager tells; never more than 4096."""
    if told:
        await store.cell.write_partitions()
    names, arguments = submit_call(store)
    names[0], arguments[2] = f"{store.cell.keys.jobs(0)[:-1]}{partition}", partition

    async with unchanged(store):
        if not told and partition in ("16", "999"):
            return
        with pytest.raises(ScriptFailed, match=f"submit: partition = '{partition}': expected a number from 0 to "):
            await store.connection.call("submit", names, arguments)


@pytest.mark.parametrize("stored", [None, "16", "x", "0"])
async def test_every_partition_of_the_layout_takes_jobs(store: Store, stored: str | None) -> None:
    """Also before a manager was there, and when somebody has written nonsense."""
    if stored is not None:
        await store.connection.commands.set(store.cell.keys.partitions, stored)
    for partition in (0, 1, 15):
        names, arguments = submit_call(store, job_id=f"j{partition}")
        names[0], arguments[2] = store.cell.keys.jobs(partition), partition
        _, answer = await store.connection.call("submit", names, arguments)
        assert named(answer)[0] == "accepted"


# ---- renew, beat -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job_id", "token", "problem"), [(JOB, "", "token = ''"), (JOB, "t1", "token = 't1'"), ("j2", "1", "job_id = 'j2'")]
)
async def test_value_of_a_renewal_that_is_none_is_named(store: Store, job_id: str, token: str, problem: str) -> None:
    """Nothing is prolonged."""
    await seed_reserved(store)
    k = store.cell.keys

    async with unchanged(store):
        _, answer = await store.connection.call(
            "renew", [k.slots(NODE), k.job(JOB), k.capacity], [job_id, token, "started"]
        )

    word, why = named(answer)
    assert (word, why[: len(problem)]) == ("invalid", problem)


async def test_arguments_and_keys_of_a_renewal_fit_together(store: Store) -> None:
    """An error says how many were expected."""
    k = store.cell.keys
    calls: list[list[Argument]] = [[JOB], [JOB, 1, "j2", 2]]
    for arguments in calls:
        with pytest.raises(ScriptFailed, match=f"renew: number of arguments = {len(arguments)} with 2 keys"):
            await store.connection.call("renew", [k.slots(NODE), k.job(JOB)], arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["", "", 1000, 10, "stays"], "document = ''"),
        (
            ["x" * (2**20 + 1), "", 1000, 10, "stays"],
            "size of the document = '1048577': expected 1048576 bytes at most",
        ),
        (["doc", "d1", 1000, 10, "stays"], "member = 'd1'"),
        (["doc", "d 1+1", 1000, 10, "stays"], "member = 'd 1+1'"),
        (["doc", "d" * 127 + "+1", 1000, 10, "stays"], "member = 'ddd"),
        (["doc", "", "", 10, "stays"], "heartbeats_max = ''"),
        (["doc", "", 0, 10, "stays"], "heartbeats_max = '0': expected a whole number from 1000"),
        (["doc", "", 999, 10, "stays"], "heartbeats_max = '999'"),
        (["doc", "", "9" * 20, 10, "stays"], f"heartbeats_max = '{'9' * 20}'"),
        (["doc", "", 1000, "5s", "stays"], "silence_ms = '5s'"),
        (["doc", "d1+1", 1000, 0, "stays"], "silence_ms = '0'"),
        (["doc", "", 1000, 10, ""], "ARGV[5] = ''"),
        (["doc", "", 1000, 10, "goes"], "ARGV[5] = 'goes': expected stays or leaves"),
    ],
)
async def test_value_of_a_heartbeat_that_is_none_is_named(
    store: Store, arguments: list[Argument], problem: str
) -> None:
    """Nobody reads such a heartbeat."""
    k = store.control.keys

    async with unchanged(store):
        with pytest.raises(ScriptFailed) as error:
            await store.connection.call("beat", [k.heartbeats, k.dispatchers], arguments)

    assert f"beat: {problem}" in str(error.value)


async def test_a_heartbeat_that_cannot_be_written_is_an_error(store: Store) -> None:
    """Who is told the time believes that he was heard."""
    k = store.control.keys
    await store.connection.commands.set(k.heartbeats, "no stream")

    with pytest.raises(WrongType, match="heartbeats holds a string, where a stream belongs"):
        await store.connection.call("beat", [k.heartbeats, k.dispatchers], ["doc", "d1+1", 1000, 5000, "stays"])

    assert not await store.connection.commands.exists(k.dispatchers)


@pytest.mark.parametrize("script", ["beat", "command", "boot", "leave"])
async def test_a_key_of_a_call_is_that_of_its_name(store: Store, script: str) -> None:
    """Another node's slots, or a stream under the name of another key, are not touched by a mistake."""
    await seed_node(store)
    await seed_reserved(store, "j2", "s2", node="n2")
    k, control = store.cell.keys, store.control.keys
    calls: dict[str, tuple[list[str], list[Argument]]] = {
        "beat": ([control.heartbeats, control.dispatchers], ["doc", "", 1000, 10, "stays"]),
        "command": ([control.commands], ["{}", 1000]),
        "boot": ([k.last_boot, k.capacity, k.slots(NODE)], [NODE]),
        "leave": ([k.capacity, k.open, k.slots(NODE), k.inbox(NODE), k.left(NODE)], [NODE, BOOT, "leaves"]),
    }
    names, arguments = calls[script]

    for index, name in enumerate(names):
        for wrong in ("x", name.replace(NODE, "n2") if NODE in name else f"{name}2"):
            async with unchanged(store):
                with pytest.raises(ScriptFailed, match=rf"{script}: KEYS\[1?{index + 1}?\] = "):
                    await store.connection.call(script, [*names[:index], wrong, *names[index + 1 :]], arguments)


# ---- leave -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boot", "why", "problem"),
    [
        ("", "leaves", "boot = ''"),
        ("b1", "leaves", "boot = 'b1'"),
        ("5-", "dead", "boot = '5-'"),
        (LATER_BOOT, "now", "ARGV[3] = 'now': expected leaves, drained or dead"),
    ],
)
async def test_value_of_a_leave_that_is_none_is_named(store: Store, boot: str, why: Any, problem: str) -> None:
    """Nobody leaves by a mistake."""
    await seed_node(store, slots=0, reason="dead")

    async with unchanged(store):
        with pytest.raises(ScriptFailed) as error:
            await store.cell.leave(NODE, boot, why)

    assert f"leave: {problem}" in str(error.value)


# ---- command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["", 1000], "size of the document = 0: expected 1 to 1048576 bytes"),
        (["x" * (2**20 + 1), 1000], "size of the document = 1048577"),
        (["{}", ""], "commands_max = ''"),
        (["{}", 0], "commands_max = '0': expected a whole number from 1000"),
        (["{}"], "commands_max = 'nil': expected a whole number"),
    ],
)
async def test_value_of_a_command_that_is_none_is_named(store: Store, arguments: list[Argument], problem: str) -> None:
    """Nothing is asked for."""
    async with unchanged(store):
        with pytest.raises(ScriptFailed) as error:
            await store.connection.call("command", [store.control.keys.commands], arguments)

    assert f"command: {problem}" in str(error.value)
