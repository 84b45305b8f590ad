"""`scheduler streams`, `reservations` and `nodes` within this process, at 80 columns."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import pytest

from scheduler.cli import listings
from scheduler.management.pools import stored_field
from scheduler.protocol.documents import NodeBeat, encode_beat
from scheduler.protocol.snapshot import Node, Pool, Snapshot
from scheduler.store.store import Store
from tests import seeds
from tests.integration.commands import on_server, refusal, run

LONG_JOB = "0123456789abcdef01234567"

pytestmark = pytest.mark.usefixtures("own_place")


def listed(url: str, *command: str) -> tuple[list[list[str]], Any]:
    """A listing's lines as words, none longer than 80 columns, and its JSON."""
    table, document = run(*command, "--redis-url", url), run(*command, "--json", REDIS_URL=url)
    assert (table.exit_code, document.exit_code, table.stderr, document.stderr) == (0, 0, "", "")
    lines = table.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    return [line.split() for line in lines], json.loads(document.stdout)


def test_streams(ready_url: str) -> None:
    """Each partition's backlog and owner, and what lies in the other streams."""

    async def seed(store: Store) -> None:
        await seeds.seed_owner(store, 1)
        await seeds.seed_job(store, partition=1)
        await seeds.seed_job(store, "j2", partition=1)
        await store.cell.claim("gone+1", [2])
        await store.cell.claim("gone+1", (), [2])
        await store.control.beat(encode_beat(NodeBeat("n1", seeds.BOOT, 1)))

    on_server(ready_url, seed)
    rows, document = listed(ready_url, "streams", "ls")
    assert rows[0] == ["partition", "backlog", "oldest", "owner", "lease"]
    assert rows[1] == ["0", "0", "-"]
    assert (rows[2][:2], rows[2][4], rows[2][6]) == (["1", "2"], seeds.OWNER, "s")
    assert rows[3] == ["2", "0", "-"]
    assert [" ".join(row) for row in rows[18:]] == [
        "heartbeats 1 from nodes and roles results 0 outcomes kept",
        "freed 1 news for waiting jobs delayed 0 not due yet",
        "parked 0 bodies of delayed jobs dead 0 given up",
    ]
    assert len(rows) + len(["the command", "the next prompt"]) <= 24
    owned = document["partitions"][1]
    assert (owned["partition"], owned["backlog"], owned["owner"]) == (1, 2, seeds.OWNER)
    assert 0 < owned["lease_left_ms"] <= 6_000
    assert owned["oldest_ms"] >= 0
    assert document["entries"] == {
        "heartbeats": 1, "results": 0, "freed": 1, "delayed": 0, "parked": 0, "dead": 0,
    }  # fmt: skip


def test_reservations(ready_url: str) -> None:
    """Each held slot with its job, node, token and lease; ids of jobs and tokens are never cut."""

    async def seed(store: Store) -> int:
        session = "a-session-with-a-name-that-is-rather-long"
        await seeds.seed_reserved(store, "other", "s2", node="n2")
        return await seeds.seed_reserved(store, LONG_JOB, session, node="a-node-with-a-name-that-is-rather-long")

    token = on_server(ready_url, seed)
    rows, document = listed(ready_url, "reservations", "ls")
    assert rows[0] == ["job", "node", "session", "token", "age", "lease"]
    assert (rows[1][0], rows[1][3]) == (LONG_JOB, str(token))
    assert len(rows) == 3
    assert [(each["job_id"], each["node"]) for each in document] == [
        (LONG_JOB, "a-node-with-a-name-that-is-rather-long"),
        ("other", "n2"),
    ]
    assert 0 <= document[0]["age_ms"] < 5_000
    assert 0 < document[0]["lease_left_ms"] <= 5_000


def test_reservations_of_a_node(ready_url: str) -> None:
    """One node's reservations only; a lapsed lease is called so, and an unknown node is an error."""

    async def seed(store: Store) -> None:
        await seeds.seed_reserved(store, "j1", "s1", node="n1")
        await seeds.seed_reserved(store, "j2", "s2", node="n2")
        await seeds.seed_node(store, "n3")
        await seeds.seed_lapsed(store, "j2", "n2")

    on_server(ready_url, seed)
    rows, document = listed(ready_url, "reservations", "ls", "--node", "n2")
    assert (rows[1][0], rows[1][-1], len(rows)) == ("j2", "lapsed", 2)
    assert document[0]["lease_left_ms"] < 0
    assert run("reservations", "ls", "--node", "n3", REDIS_URL=ready_url).stdout == "no slot is held\n"
    assert refusal(run("reservations", "ls", "--node", "n4", REDIS_URL=ready_url)) == (
        1,
        "Error: no node 'n4'; there is n1, n2, n3\n",
    )


def test_nodes(ready_url: str) -> None:
    """Each node with its slots; long lists of pairs are shortened, and one that takes no work says why."""
    pairs = tuple(("en", target) for target in ("de", "es", "fr", "it", "ja", "zh"))

    async def seed(store: Store) -> None:
        await seeds.seed_reserved(store, node="n1", slots=4)
        await seeds.seed_node(store, "n2", slots=0, reason="draining")
        epoch = await seeds.seed_leader(store)
        node = Node("n1", seeds.BOOT, 4, "a-pool-with-a-long-name", pairs, ("asr", "tts"), {"zone": "eu"}, "2.1")
        other = Node("n2", seeds.LATER_BOOT, 4, "of-another-boot")
        await store.control.publish(seeds.MANAGER, epoch, Snapshot(1, (node, other)))

    on_server(ready_url, seed)
    rows, document = listed(ready_url, "nodes", "ls")
    assert rows[0] == ["node", "pool", "used", "slots", "state", "pairs", "features", "age"]
    assert rows[1][2:10] == ["1", "4", "ready", "en:de", "en:es", "+4", "asr", "tts"]
    assert rows[2][:5] == ["n2", "-", "0", "0", "draining"]
    assert document[0] | {"boot_age_ms": 0} == {
        "id": "n1",
        "pool": "a-pool-with-a-long-name",
        "slots": 4,
        "used": 1,
        "state": "ready",
        "pairs": [list(pair) for pair in pairs],
        "features": ["asr", "tts"],
        "labels": {"zone": "eu"},
        "version": "2.1",
        "boot": seeds.BOOT,
        "boot_age_ms": 0,
        "led": True,
        "leader_silence_ms": None,
    }


def test_nodes_that_take_no_work(ready_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they serve is what their last heartbeat said, in the pool that they name or that a rule gives them; of one
    that was not heard nothing is known.
    """
    monkeypatch.setattr(listings, "HEARTBEATS_COUNT", 2)

    async def seed(store: Store) -> None:
        await seeds.seed_leader(store)
        for name, boot in (
            ("named", seeds.BOOT),
            ("ruled", seeds.BOOT),
            ("again", seeds.LATER_BOOT),
            ("mute", seeds.BOOT),
        ):
            await seeds.seed_node(store, name, slots=0, boot=boot, reason="draining")
        beats = [
            NodeBeat("ruled", seeds.BOOT, 2, features=("asr",), labels={"zone": "eu"}, version="2.1"),
            NodeBeat("again", seeds.BOOT, 1, pool="of-another-boot"),
            NodeBeat("named", seeds.BOOT, 3, (("en", "de"),), pool="gold"),
            NodeBeat("named", seeds.BOOT, 3, (("en", "zh"),), pool="gold", draining=True),
            NodeBeat("busy", seeds.BOOT, 1),
        ]
        for beat in beats:
            await store.control.beat(encode_beat(beat))
        client = store.connection.commands
        await client.xadd(store.control.keys.heartbeats, {"node": "no document"})
        document = b'{"match": {"labels": {"zone": "eu"}}}'
        await client.hset(store.control.keys.config, stored_field("silver"), document)

    on_server(ready_url, seed)
    rows, document = listed(ready_url, "nodes", "ls")
    assert [row[:-2] for row in rows[1:]] == [
        ["again", "-", "0", "0", "draining"],
        ["mute", "-", "0", "0", "draining"],
        ["named", "gold", "0", "0", "draining", "en:zh"],
        ["ruled", "silver", "0", "0", "draining", "asr"],
    ]
    assert [(each["pool"], each["labels"], each["version"]) for each in document] == [
        (None, {}, ""), (None, {}, ""), ("gold", {}, ""), ("silver", {"zone": "eu"}, "2.1"),
    ]  # fmt: skip


def test_a_picture_that_no_manager_keeps_up_says_its_age(ready_url: str) -> None:
    """In words and for programs, of nodes and of pools; while one leads there is nothing to say."""

    async def seed(store: Store) -> None:
        await seeds.seed_node(store, "n1")
        epoch = await seeds.seed_leader(store)
        node = Node("n1", seeds.BOOT, 4, "default", ())
        await store.control.publish(seeds.MANAGER, epoch, Snapshot(1, (node,), (Pool("default"),)))

    async def silent(store: Store) -> None:
        until_ms = await store.reads.now_ms() - 20_000
        await store.connection.commands.hset(store.control.keys.leader, "until_ms", until_ms)

    async def gone(store: Store) -> None:
        await store.connection.commands.delete(store.control.keys.leader)

    def said(*command: str) -> tuple[str, bool, int | None]:
        (document,) = json.loads(run(*command, "--json", REDIS_URL=ready_url).stdout)
        answer = run(*command, REDIS_URL=ready_url)
        assert answer.exit_code == 0
        return answer.stdout.splitlines()[-1], document["led"], document["leader_silence_ms"]

    on_server(ready_url, seed)
    for command in (("nodes", "ls"), ("pools", "ls")):
        line, is_led, _ = said(*command)
        assert (is_led, "manager" in line) == (True, False)
    on_server(ready_url, silent)
    for command in (("nodes", "ls"), ("pools", "ls")):
        line, is_led, silence_ms = said(*command)
        assert re.fullmatch(r"no manager leads: last heard 2\d\.\d s ago; this is what it said then", line)
        assert is_led is False
        assert silence_ms is not None
        assert silence_ms > 20_000
    on_server(ready_url, lambda store: store.control.give_up_lead(seeds.MANAGER))
    line, is_led, silence_ms = said("nodes", "ls")
    assert line.startswith("no manager leads: last heard ")
    assert silence_ms is not None
    assert silence_ms < 5_000
    on_server(ready_url, gone)
    assert said("nodes", "ls") == ("no manager leads, and none is known to have led", False, None)


SPOILED: Final = {
    "{sched:0}:owners": ["streams", "ls"],
    "{sched:0}:capacity": ["nodes", "ls"],
    "{sched}:config": ["pools", "ls"],
    "{sched}:layout": ["nodes", "ls"],
    "{sched:0}:delayed": ["streams", "ls"],
}


@pytest.mark.parametrize("key", SPOILED)
def test_a_key_of_another_type_is_named(ready_url: str, key: str) -> None:
    """In a line, without a traceback; it is a failure, for the server is there and nothing was typed wrong."""

    async def spoil(store: Store) -> None:
        await store.connection.commands.set(key, "rubbish")

    on_server(ready_url, spoil)
    exit_code, stderr = refusal(run(*SPOILED[key], REDIS_URL=ready_url))
    assert exit_code == 1
    assert stderr.startswith(f"Error: {key} holds a string, where a ")
    assert len(stderr.splitlines()) == 1


def test_values_that_no_script_has_written_are_no_tracebacks(ready_url: str) -> None:
    """An owner that is none owns nothing; a layout or a snapshot that is none is named."""

    async def spoil(store: Store) -> None:
        client = store.connection.commands
        await client.hset(store.cell.keys.owners, mapping={"5": "rubbish", "x": "1 me 5"})
        await client.set(store.control.keys.snapshot, "rubbish")
        await client.hset(store.cell.keys.capacity, "n1", "\u00b2 boot ready")

    on_server(ready_url, spoil)
    assert run("streams", "ls", REDIS_URL=ready_url).exit_code == 0
    exit_code, stderr = refusal(run("nodes", "ls", REDIS_URL=ready_url))
    assert exit_code == 1
    assert stderr.startswith("Error: what is stored as {sched}:snapshot cannot be read: ")

    async def spoil_layout(store: Store) -> None:
        await store.connection.commands.hset(store.control.keys.layout, "partitions", "x")

    on_server(ready_url, spoil_layout)
    for command in (["nodes", "ls"], ["jobs", "submit", __file__]):
        exit_code, stderr = refusal(run(*command, REDIS_URL=ready_url))
        assert exit_code == 1
        assert "{sched}:layout says partitions = 'x': expected numbers" in stderr
