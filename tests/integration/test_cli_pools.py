"""`scheduler pools` against a scheduler that runs: files, tables, and what is refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import Result

from scheduler.cli.pools import FILE_BYTES_MAX
from scheduler.protocol.snapshot import EMPTY_SNAPSHOT, decode_snapshot, encode_snapshot
from tests.integration.commands import refusal, run
from tests.integration.test_cli_processes import answer, running, up

pytestmark = pytest.mark.usefixtures("own_place")

GOLD = """
[pools.gold]
description = "for acme"
strategy = "spread"
fallback = ["fast", "default"]
tenants = ["acme", "globex", "initech"]
session_concurrency = 1

[pools.gold.match]
labels = { zone = "eu" }
tenants = ["acme", "globex", "initech", "umbrella"]

[pools.silver]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory where a scheduler runs with two nodes: n1 has a label, n2 names the pool fast."""
    directory = tmp_path_factory.mktemp("pools")
    with (
        up(directory) as (scheduler, _),
        running(directory, "node", "--id", "n1", "--capacity", "4", "--label", "zone=eu"),
        running(directory, "node", "--id", "n2", "--capacity", "2", "--pool", "fast"),
    ):
        with redis.Redis.from_url((directory / ".scheduler" / "url").read_text().strip()) as client:
            none = encode_snapshot(EMPTY_SNAPSHOT)
            while len(decode_snapshot(client.get("{sched}:snapshot") or none).nodes) < 2:
                pass  # a node is ready when it has registered; the snapshot follows
        yield directory
        assert scheduler.end(signal.SIGTERM)[0] == 0


@pytest.fixture
def url(place: Path) -> Iterator[str]:
    """The URL of its server; what a test configures is gone after it."""
    found = (place / ".scheduler" / "url").read_text().strip()
    yield found
    while configured := [name for name, each in listing(found).items() if each["configured"]]:
        for name in configured:  # one that another pool falls back to goes after that one
            run("pools", "rm", name, REDIS_URL=found)


def apply(url: str, text: str | bytes, *options: str, **environment: str) -> Result:
    """Apply a file of this text."""
    Path("pools.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return run("pools", "apply", "pools.toml", "--redis-url", url, *options, **environment)


def done(result: Result) -> str:
    """What a command printed that went well."""
    assert (result.exit_code, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines()), default=0) <= 80
    return result.stdout


def rows(text: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in text.splitlines()]


def listing(url: str) -> dict[str, Any]:
    """Every pool as programs see it, by its name."""
    return {each["id"]: each for each in json.loads(run("pools", "ls", "--json", REDIS_URL=url).stdout)}


def pool(url: str, name: str) -> Any:
    """A pool as programs see it."""
    return json.loads(done(run("pools", "show", name, "--json", REDIS_URL=url)))


# ---- what is done --------------------------------------------------------------------------------------------------


def test_pools_are_applied_and_listed(url: str) -> None:
    """Each is told to be new, changed or unchanged, and in force when the command ends."""
    assert done(apply(url, GOLD)) == "gold: new\nsilver: new\n"
    assert rows(done(run("pools", "ls", "--redis-url", url))) == [
        ["pool", "strategy", "nodes", "slots", "used", "fallback", "tenants"],
        ["default", "affinity", "0", "0", "0", "-", "-"],
        ["fast", "affinity", "1", "2", "0", "-", "-"],
        ["gold", "spread", "1", "4", "0", "fast", "default", "only", "acme", "+3"],
        ["silver", "affinity", "0", "0", "0", "-", "-"],
    ]
    assert done(apply(url, GOLD.replace('"spread"', '"least_loaded"'))) == "gold: changed\nsilver: unchanged\n"
    assert pool(url, "gold")["strategy"] == "least_loaded"


def test_long_names_fit_into_the_table(url: str) -> None:
    """Those of other pools and tenants are cut; its own name is whole, and programs get all of them whole."""
    name, other = "a" * 64, "b" * 64
    tenants = [f"tenant-with-a-long-name-{number}" for number in range(9)]
    text = f"[pools.{name}]\nstrategy = 'least_loaded'\nfallback = ['{other}']\ntenants = {tenants}\n[pools.{other}]\n"
    done(apply(url, text))
    assert name in done(run("pools", "ls", "--redis-url", url))
    assert name in run("pools", "show", name, "--redis-url", url).stdout
    assert (pool(url, name)["fallback"], pool(url, name)["tenants"]) == ([other], tenants)


def test_everything_in_force_is_shown(url: str) -> None:
    """What was not said is marked; programs get every field, and which were said."""
    done(apply(url, GOLD))
    shown = rows(done(run("pools", "show", "gold", "--redis-url", url)))
    assert shown[:5] == [
        ["pool", "gold"],
        ["nodes", "1", "with", "4", "slots,", "0", "used:", "n1"],
        ["description", "for", "acme"],
        ["strategy", "spread"],
        ["pressure", "stay", "default"],
    ]
    assert ["lease_ms", "15000", "default"] in shown
    assert ["session_concurrency", "1"] in shown
    assert shown[-2:] == [["match.labels", "zone=eu"], ["match.tenants", "acme", "globex", "initech", "umbrella"]]
    assert pool(url, "gold") == {
        "id": "gold",
        "configured": True,
        "said": ["description", "fallback", "match", "session_concurrency", "strategy", "tenants"],
        "description": "for acme",
        "strategy": "spread",
        "pressure": "stay",
        "fallback": ["fast", "default"],
        "tenants": ["acme", "globex", "initech"],
        "candidates": 4,
        "session_concurrency": 1,
        "tenant_concurrency": 0,
        "start_ms": 5_000,
        "lease_ms": 15_000,
        "run_ms_max": 3_600_000,
        "attempts_max": 3,
        "crashes_max": 5,
        "backoff_ms": 1_000,
        "backoff_ms_max": 60_000,
        "match": {"labels": {"zone": "eu"}, "tenants": ["acme", "globex", "initech", "umbrella"]},
        "nodes": ["n1"],
        "slots": 4,
        "used": 0,
    }


def test_a_pool_that_nobody_configured_is_shown_as_well(url: str) -> None:
    """It has the policy of the settings, and a file for it says nothing."""
    assert rows(done(run("pools", "show", "fast", "--redis-url", url)))[0] == [
        "pool", "fast,", "which", "nobody", "configured",
    ]  # fmt: skip
    assert (pool(url, "fast")["configured"], pool(url, "fast")["nodes"]) == (False, ["n2"])
    assert done(run("pools", "show", "fast", "--toml", "--redis-url", url)).startswith("[pools.fast]\n# not said")


def test_what_is_shown_can_be_applied_again(url: str, place: Path) -> None:
    """From standard input too; nothing has changed then."""
    done(apply(url, GOLD))
    before = pool(url, "gold")
    shown = done(run("pools", "show", "gold", "--toml", "--redis-url", url))
    assert "\n# lease_ms = 15000\n" in shown
    assert answer(place, "pools", "apply", "-", text=shown) == (0, "gold: unchanged\n", "")
    done(run("pools", "rm", "gold", "--redis-url", url))
    assert done(apply(url, shown)) == "gold: new\n"
    assert pool(url, "gold") == before


def test_a_pool_is_removed(url: str) -> None:
    """Its nodes go elsewhere; those that name it stay, and that is said."""
    done(apply(url, GOLD))
    assert done(run("pools", "rm", "gold", "--redis-url", url)) == "gold: removed\n"
    assert pool(url, "default")["nodes"] == ["n1"]
    done(apply(url, "[pools.fast]\nlease_ms = 9000\n[pools.default]\ncandidates = 2\n"))
    assert done(run("pools", "rm", "fast", "--redis-url", url)) == (
        "fast: removed\n1 node that names it stays in it, with the policy of the settings\n"
    )
    assert done(run("pools", "rm", "default", "--redis-url", url)) == (
        "default: removed\nit goes on with the policy of the settings\n"
    )
    assert (pool(url, "fast")["lease_ms"], pool(url, "default")["candidates"]) == (15_000, 4)


def test_a_stored_pool_that_cannot_be_used_is_told_and_can_be_removed(url: str) -> None:
    """What was configured besides is shown all the same."""
    with redis.Redis.from_url(url) as client:
        client.hset("{sched}:config", "pool:broken", b"{")
        listed = run("pools", "ls", "--redis-url", url)
        assert listed.exit_code == 0
        assert "the stored configuration of pool 'broken' is ignored: no valid JSON document" in listed.stderr
        assert run("pools", "rm", "broken", "--redis-url", url).stdout == "broken: removed\n"
        assert client.hgetall("{sched}:config") == {}


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[pools.gold", "Expected ']' at the end of a table declaration"),
        (b"[pools.gold]\ndescription = '\xff'", "'utf-8' codec can't decode byte 0xff"),
        ("[pools.gold]\nlease_ms = " + "9" * 5_000, "limit"),
        ("#" * (FILE_BYTES_MAX + 1), f"it is longer than {FILE_BYTES_MAX} bytes"),
        ("", "pools = {}: expected at least one table [pools.<name>]"),
        ("[pools.gold]\nlease = 9000", "pools.gold.lease: expected a known key; the nearest is lease_ms"),
        ("[pools.gold]\nlease_ms = 0", "pools.gold.lease_ms = 0: expected a whole number from 1"),
        ("[pools.silver]\n[pools.gold]\nfallback = ['fats']", "a node names; the nearest is fast"),
        ("[pools.a]\nfallback = ['b']\n[pools.b]\nfallback = ['a']", "expected no cycle: a -> b -> a"),
    ],
)
def test_a_bad_file_is_refused_as_a_whole(url: str, text: str | bytes, problem: str) -> None:
    """It ends with 2, names the file and what is wrong, and changes nothing."""
    exit_code, stderr = refusal(apply(url, text))
    assert (exit_code, stderr[:19]) == (2, "Error: pools.toml: ")
    assert problem in stderr
    assert list(listing(url)) == ["default", "fast"]


def test_a_file_is_checked_against_what_is_configured(url: str) -> None:
    """A tenant that a pool of an earlier file claims is no other pool's."""
    done(apply(url, GOLD))
    assert refusal(apply(url, "[pools.bronze]\ntenants = ['acme']")) == (
        2,
        "Error: pools.toml: pools.bronze.tenants = 'acme': expected a tenant that no other pool claims; pool gold "
        "does\n",
    )


def test_what_only_the_manager_refuses(url: str) -> None:
    """It goes by its own settings, and its reason is shown."""
    text = "[pools.gold]\nlease_ms = 500\nstart_ms = 500"
    assert refusal(apply(url, text, SCHED_MARGIN_MS="100")) == (
        2,
        "Error: pools.toml: refused by the manager: pools.gold.start_ms = 500: expected at least 2000, twice margin_ms "
        "(1000)\n",
    )


def test_a_pool_that_another_one_falls_back_to_is_not_removed(url: str) -> None:
    """It ends with 1 and names that one."""
    done(apply(url, "[pools.gold]\nfallback = ['silver']\n[pools.silver]"))
    assert refusal(run("pools", "rm", "silver", "--redis-url", url)) == (
        1,
        "Error: pool 'silver' cannot be removed: gold would fall back to nothing\n",
    )


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["show", "fats"], "no pool 'fats'; the nearest is fast"),
        (["rm", "fast"], "pool 'fast' is not configured; the nearest that is one is gold"),
        (["rm", "a\tb"], r"pool 'a\tb' is not configured; the nearest that is one is gold"),
    ],
)
def test_a_pool_that_is_none(url: str, command: list[str], problem: str) -> None:
    """It ends with 1 and names the nearest one."""
    done(apply(url, "[pools.gold]"))
    assert refusal(run("pools", *command, "--redis-url", url)) == (1, f"Error: {problem}\n")


def test_no_manager(ready_url: str) -> None:
    """A command that nobody answers ends with 1 after the given time, and is taken back."""
    exit_code, stderr = refusal(apply(ready_url, GOLD.replace('"fast", ', ""), "--timeout-ms", "20"))
    assert exit_code == 1
    assert stderr.startswith("Error: no manager answered within 20 ms: is one running? The command was taken back")
    with redis.Redis.from_url(ready_url) as client:
        assert client.xlen("{sched}:commands") == 0
    assert run("pools", "ls", REDIS_URL=ready_url).stdout == (
        "no pool is known: no manager has published a snapshot yet\n"
    )
    assert refusal(run("pools", "show", "gold", REDIS_URL=ready_url)) == (1, "Error: no pool 'gold'\n")
    assert refusal(run("pools", "rm", "gold", REDIS_URL=ready_url)) == (1, "Error: pool 'gold' is not configured\n")


def test_no_server() -> None:
    """A good file ends with 3 where there is no server, a bad one with 2 all the same."""
    Path("pools.toml").write_text("[pools.gold]")
    assert refusal(run("pools", "apply", "pools.toml"))[0] == 3
    Path("pools.toml").write_text("[pools.gold]\nlease_ms = 0")
    assert refusal(run("pools", "apply", "pools.toml"))[0] == 2


def test_two_forms_at_once(url: str) -> None:
    """A file and JSON cannot both be printed."""
    assert refusal(run("pools", "show", "fast", "--toml", "--json", REDIS_URL=url))[0] == 2
