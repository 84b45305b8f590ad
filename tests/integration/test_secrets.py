"""No secret, no traceback and the right exit code, whatever URL, option or variable is given to a command or the SDK.

Port 1 refuses every connection, so that no server is needed: 3 is the exit code of a URL that was taken, 2 of one that
was not.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import Result

from scheduler import Node, Producer
from scheduler.config import DEFAULTS
from scheduler.console import common, process
from scheduler.errors import SchedulerError
from scheduler.server.location import find_url, write_url_file
from tests.integration.commands import run

SECRETS = ("Wonder7", "t41SZq", "Xk3yXX")
AT = "127.0.0.1:1"
NO_SERVER, USAGE = 3, 2
NODE = ("node", "--id", "n1")
UNTAKEN = f"redis://{AT}"


def generated(seed: int, count: int) -> Iterator[tuple[str, int]]:
    """(URL, exit code) of passwords that are made of the secrets and of signs that URLs are made of."""
    draw = random.Random(seed)
    forms = ("redis://:{}@{}/0", "redis://me:{}@{}", "rediss://me:{}@{}/1", "REDIS://{}:x@{}")
    for number in range(count):
        form = forms[number % len(forms)]
        password = "".join(itertools.chain(*((word, draw.choice("@/#?:+=&%! é$'")) for word in SECRETS)))
        is_encoded = draw.random() < 0.4
        breaks = not is_encoded and bool(set(password) & set("@/#?"))
        yield form.format(quote(password, safe="") if is_encoded else password, AT), USAGE if breaks else NO_SERVER


BY_HAND = [
    (f"redis://{AT}/0?password=Wonder7", NO_SERVER),
    (f"redis://{AT}?db=1&username=t41SZq&password=Wonder7", NO_SERVER),
    ("unix:///run/none.sock?db=1&password=Wonder7", NO_SERVER),
    ("unix://t41SZq:Wonder7@/run/none.sock", NO_SERVER),
    (f"rediss://{AT}/0?ssl_password=Wonder7", NO_SERVER),
    (f"rediss://{AT}/0?ssl_keyfile=Wonder7&ssl_certfile=t41SZq", USAGE),
    (f"rediss://{AT}/0?ssl_ca_certs=/none/Wonder7", USAGE),
    (f"rediss://{AT}/0?ssl_ca_data=Wonder7", USAGE),
    (f"rediss://{AT}/0?ssl_ciphers=Wonder7", USAGE),
    (f"rediss://{AT}/0?ssl_cert_reqs=Wonder7", USAGE),
    (f"rediss://{AT}/0?ssl_cert_reqs=none", NO_SERVER),
    (f"redis://{AT}/0?ssl_password=Wonder7", USAGE),
    (f"rediss://:F6tM/t41SZq/c57=@{AT}/0", USAGE),
    (f"redis://:p@Wonder7@{AT}/0", USAGE),
    (f"redis://me:my Wonder7@{AT}/0", NO_SERVER),
    (f"http://{AT}/?password=Wonder7", USAGE),
    (f"redis+sentinel://:Wonder7@{AT}/0", USAGE),
    (f"reddis://:Wonder7@{AT}/0", USAGE),
    (f":Wonder7@{AT}", USAGE),
    ("Wonder7", USAGE),
    ("", USAGE),
    (f"redis://:Wonder7@{AT}/t41SZq", USAGE),
    (f"redis://:Wonder7@{AT}/0#t41SZq", USAGE),
    (f"redis://:Wonder7@{AT}/0?t41SZq", USAGE),
    (f"redis://:Wonder7@{AT}/0?pasword=t41SZq", USAGE),
    (f"redis://:Wonder7@{AT}/0?socket_timeout=t41SZq", USAGE),
    (f"redis://:Wonder7@{AT}/0?db=t41SZq", USAGE),
    ("redis://me:Wonder7", USAGE),
    ("redis://[::1]:Wonder7", USAGE),
    ("redis://:Wonder7@[t41SZq", USAGE),
    ("redis://:Wonder7@::1:6379", USAGE),
    ("redis://:Wonder7@[::1]:1/0", NO_SERVER),
    (f"redis://:Wonder7@{'h' * 70}", USAGE),
    ("redis://:Wonder7@ho st", USAGE),
    ("redis://:Wonder7@h\x1b[31m", USAGE),
    ("redis://:Wonder7%00@127.0.0.1:1", NO_SERVER),
    ("redis://:Wonder7%ff@127.0.0.1:1", USAGE),
    ("redis://:Wonder7@127.0.0.1:0", USAGE),
    ("redis://:Wonder7@127.0.0.1:99999999999999999999", USAGE),
    ("redis://:Wonder7@" + "a" * 100_000, USAGE),
]
URLS = [*BY_HAND, *generated(18, 100 - len(BY_HAND))]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands give up at once, and a server that was named elsewhere is not found."""
    monkeypatch.setattr(common, "PATIENCE_MS", 0)
    monkeypatch.setattr(process, "START_MS_MAX", 0)
    for name in ("SCHED_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def told(result: Result, exit_code: int) -> None:
    """What a command printed is what it should be."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == exit_code, result.output
    assert_clean(result.output)


def assert_clean(text: str) -> None:
    """No part of a secret, no traceback."""
    assert [word for word in SECRETS if word in text] == []
    assert "Traceback" not in text


def test_a_url_in_the_wrong_place() -> None:
    """Such as where a handler is meant."""
    told(run(*NODE, "--handler", f"redis://me:Wonder7@{AT}/0"), USAGE)


def test_there_are_a_hundred() -> None:
    """By hand and generated."""
    assert len(URLS) == 100
    assert {code for _, code in URLS} == {USAGE, NO_SERVER}


@pytest.mark.parametrize("number", range(len(URLS)))
def test_a_command(number: int) -> None:
    """Each URL as an option and as a variable, at each level of logging."""
    url, exit_code = URLS[number]
    typed = run("nodes", "ls", "--redis-url", url, "--log-level", "debug")
    told(typed, exit_code)
    if url and "\x00" not in url:
        told(run("nodes", "ls", SCHED_REDIS_URL=url), exit_code)
    if exit_code == USAGE:
        assert typed.stderr.splitlines()[-1].startswith(
            ("Error: --redis-url: ", "Error: server URL: TLS cannot be set up with ")
        )


@pytest.mark.parametrize("url", [url for url, _ in URLS[::7]])
@pytest.mark.parametrize("command", [("up",), ("manager",), ("dispatcher",), ("reaper",), NODE, ("jobs", "show", "j")])
def test_each_kind_of_command(command: tuple[str, ...], url: str) -> None:
    """Roles, nodes and commands print the same form of a URL."""
    told(run(*command, REDIS_URL=url or UNTAKEN), dict(URLS).get(url, 0) if url else NO_SERVER)


@pytest.mark.parametrize("number", range(len(URLS)))
def test_the_sdk(number: int, caplog: pytest.LogCaptureFixture) -> None:
    """Errors, their causes and tracebacks, reprs and log lines of a producer, and of a node that is made."""
    url, _ = URLS[number]
    caplog.set_level(logging.DEBUG)

    async def enter() -> None:
        producer = Producer(url, settings=DEFAULTS, patience_ms=0)
        assert_clean(repr(producer) + repr(Node(url, "n1", capacity=1, handler=print, settings=DEFAULTS)))
        async with producer:
            pass

    with pytest.raises(SchedulerError) as error:
        asyncio.run(enter())
    assert_clean("".join(traceback.format_exception(error.value)).replace("Traceback (most recent call last)", ""))
    assert_clean(repr(error.value) + caplog.text)


@pytest.mark.parametrize("url", [url for url, _ in BY_HAND if "://" in url])
def test_a_url_file(url: str, tmp_path: Path) -> None:
    """What another process has written there is not shown either."""
    write_url_file(tmp_path, url)
    found = find_url(None, {}, tmp_path)
    assert_clean(f"{found} {found!r}")


WRONG = [
    ("nodes", "ls", "Wonder7"),
    ("nodes", "ls", "redis://:Wonder7@h"),
    ("redis://:Wonder7@h", "nodes"),
    ("nodes", "redis://:Wonder7@h"),
    ("nodes", "ls", "--redis-uri", "redis://:Wonder7@h"),
    ("nodes", "ls", "--redis-uri=redis://:Wonder7@h"),
    ("--redis-url=redis://:Wonder7@h", "nodes", "ls"),
    ("nodes", "ls", "-redis-url=redis://:Wonder7@h"),
    ("nodes", "ls", "--password", "Wonder7"),
    ("nodes", "ls", "--password=Wonder7"),
    ("nodes", "ls", "-aWonder7"),
    ("nodes", "ls", "--log-level", "redis://:Wonder7@h"),
    ("jobs", "submit", "redis://:Wonder7@h"),
    ("pools", "apply", "redis://:Wonder7@h"),
    ("jobs", "submit"),
    ("jobs", "show"),
    ("jobs", "show", "\udcff"),
    ("jobs", "submit", os.devnull, "--timeout-ms", "5"),
    ("jobs", "submit", os.devnull, "--wait", "--timeout-ms", "0"),
    ("jobs", "submit", os.devnull, "--wait", "--timeout-ms", "9" * 40),
    ("jobs", "submit", "/"),
    ("reservations", "ls", "--node", "\udcff"),
    ("pools", "rm", "\udcff"),
    ("pools", "apply", os.devnull),
    ("demo", "--redis-url", ""),
    ("demo", "--jobs", "0"),
    ("demo", "--jobs", "1" * 30),
    ("demo", "--sessions", "5", "--jobs", "4"),
    ("replay", "--speech", "--redis-url", ""),
    ("replay",),
    ("replay", "/none"),
    ("replay", "/"),
    *(("replay", "--speech", "--speed", value) for value in ("nan", "inf", "0", "-1", "x", "1e400")),
    *(("replay", "--speech", "--ms-per-token", value) for value in ("nan", "inf", "0", "-1", "x")),
    *(
        ("replay", "--speech", "--pairs", value)
        for value in ("", "en", "en:zh=nan", "en:zh=inf", "en:zh=0", "en:zh=-1")
    ),
    *(("replay", "--speech", name, "9" * 30) for name in ("--jobs", "--nodes", "--capacity")),
    *((role, "--wait-server-ms", value) for role in ("manager", "reaper") for value in ("-1", "x", "nan", "9" * 400)),
    ("manager", "--shutdown-grace-ms", "1.5"),
    ("manager", "--shutdown-grace-ms", "9" * 40),
    ("node", "--id", ""),
    ("node", "--id", "a b"),
    ("node", "--id", "\udcff"),
    *((*NODE, "--capacity", value) for value in ("0", "-1", "1.5", "nan", "x", "9" * 30)),
    *((*NODE, "--pair", value) for value in ("en", "en:", ":zh", "en:z h", "en:zh:de", "\udcff:zh")),
    *((*NODE, "--feature", value) for value in ("", "a b", "\udcff", "f" * 65)),
    *((*NODE, "--label", value) for value in ("zone", "=eu", "zone=\udcff")),
    *((*NODE, "--pool", value) for value in ("a b", "\udcff", "p" * 65)),
    (*NODE, "--version", "\udcff"),
    *((*NODE, "--work-ms", value) for value in ("-1", "nan", "inf", "x")),
    *((*NODE, "--drain-ms", value) for value in ("-1", "1.5", "9" * 40)),
    *(
        (*NODE, "--handler", value)
        for value in ("", ":", "x", "no_such:f", "os:no_such", "os:sep", "\udcff:f", "builtins:int")
    ),
    (*NODE, "--handler", "builtins:print", "--work-ms", "1"),
    (*NODE, "--record", "/none/none"),
    ("server", "extra"),
    ("up", "--data-dir", "/dev/null/x"),
]


def test_there_are_a_hundred_wrong_arguments() -> None:
    """The SDK's own are in unit/test_arguments.py."""
    assert len(WRONG) >= 90


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_argument(number: int) -> None:
    """It is refused before a server is asked, in words, and what may be a password is not repeated."""
    arguments = WRONG[number]
    takes_url = arguments[0] in ("nodes", "jobs", "pools", "reservations", "manager", "reaper", "node")
    result = run(*arguments, **({"SCHED_REDIS_URL": UNTAKEN} if takes_url else {}))
    told(result, USAGE)
    assert result.stdout == ""
    assert "Error: " in result.stderr


VARIABLES = [
    ("SCHED_REDIS_PASSWORD", "Wonder7"),
    ("SCHED_REDIS_URI", "redis://:Wonder7@h"),
    ("SCHED_URL", "redis://h?password=Wonder7"),
    ("SCHED_PASSWORD", "Wonder7"),
    ("SCHED_LEASE", "Wonder7"),
    ("SCHED_REDIS_PORT", "Wonder7"),
    ("SCHED_LEASE_MS", "redis://:Wonder7@h"),
    ("SCHED_NAMESPACE", "{redis://:Wonder7@h}"),
]


@pytest.mark.parametrize(("variable", "value"), VARIABLES)
@pytest.mark.parametrize("command", [("nodes", "ls"), ("up",), NODE])
def test_a_wrong_variable(command: tuple[str, ...], variable: str, value: str) -> None:
    """The value of one that there is not is not shown."""
    told(run(*command, **{"SCHED_REDIS_URL": UNTAKEN, variable: value}), USAGE)


@pytest.mark.parametrize("command", [(), ("nodes", "ls"), ("up",), NODE[:1], ("demo",), ("jobs", "submit")])
def test_help(command: tuple[str, ...]) -> None:
    """It shows no default that comes from the environment, and where a password is safe."""
    result = run(*command, "--help", SCHED_REDIS_URL=f"redis://me:Wonder7@{AT}", SCHED_REDIS_PASSWORD="t41SZq")
    told(result, 0)


@pytest.mark.parametrize(("url", "exit_code"), [BY_HAND[0], BY_HAND[2], BY_HAND[12], BY_HAND[14]])
def test_a_process(url: str, exit_code: int, tmp_path: Path) -> None:
    """As it is really run, with all that Python itself prints at the end."""
    command = [sys.executable, "-m", "scheduler", "nodes", "ls"]
    environment = {**os.environ, "SCHED_REDIS_URL": url, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == exit_code
    assert_clean(done.stdout + done.stderr)


def test_a_program_that_catches_nothing(tmp_path: Path) -> None:
    """Its traceback has each cause, and no secret."""
    program = (
        "import asyncio\nfrom scheduler import Producer\n"
        "async def main():\n    async with Producer(URL, patience_ms=0): pass\n"
        "import os\nURL = os.environ['URL']\nasyncio.run(main())\n"
    )
    for url in (f"redis://me:Wonder7@{AT}", f"redis://:Wonder7/t41SZq@{AT}", "unix://:Wonder7@/run/none.sock"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "URL": url, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 1
        assert "scheduler.errors." in done.stderr
        assert [word for word in SECRETS if word in done.stderr] == []
