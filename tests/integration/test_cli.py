"""The command line within this process: help, wrong usage, servers that are not there, and how words are printed."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import redis

import scheduler
from scheduler.cli import main
from scheduler.cli.main import COMMANDS
from scheduler.console.common import duration, moment, shown
from scheduler.errors import without_credentials
from tests.integration.commands import refusal, run

OF_OTHER_PAGES = {"demo", "replay"}

pytestmark = pytest.mark.usefixtures("own_place")


# ---- help and usage ----


def test_version() -> None:
    """`--version` names the program and the package's version."""
    assert run("--version").stdout == f"scheduler, version {scheduler.__version__}\n"


def all_commands(group: click.Group, *names: str) -> Iterator[tuple[str, ...]]:
    """The names of each command below a group."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from all_commands(command, *names, name)
        else:
            yield (*names, name)


def test_help_of_everything() -> None:
    """Every command says what it does, within 80 columns, and gives an example."""
    assert run("--help").exit_code == 0
    for names in all_commands(main):
        result = run(*names, "--help")
        assert result.exit_code == 0
        assert max(map(len, result.stdout.splitlines())) <= 80
        assert names[0] in OF_OTHER_PAGES or "Example" in result.stdout


def test_all_commands_are_listed() -> None:
    """The help of the program lists every command."""
    listed = re.findall(r"^  (\w+) +\S", run("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nods", "ls"], "no such command 'nods'. Did you mean 'nodes'?"),
        (["jobs", "submit", "no-such-file"], "No such file or directory"),
        (["jobs", "submit", "no\x1bsuch\n"], r"'no\x1bsuch\n': No such file"),
        (["nodes", "ls", "--\u202ejson"], r"\u202ejson"),
        (["jobs", "submit", __file__, "--timeout-ms", "5"], "--timeout-ms is for --wait."),
        (
            ["nodes", "ls", "--redis-url", "http://x:y@host"],
            "--redis-url: its scheme is not known: expected redis://host:port/0",
        ),
        (["node", "--id", "n1", "--pair", "en"], "'en': expected source:target, such as en:zh"),
        (["node", "--id", "n1", "--label", "zone"], "'zone': expected key=value, such as zone=eu-1"),
        (["node", "--id", "n1", "--handler", "a:b", "--work-ms", "1"], "not with --handler"),
        (
            ["node", "--id", "n1", "--record", "no/f"],
            "--record = 'no/f': No such file or directory: expected a file th",
        ),
        (["node", "--id", "n 1"], "node = 'n 1': expected 1 to 64 visible ASCII"),
        (["node", "--id", "n1", "--pair", "en:zh:de"], "tgt_lang = 'zh:de': expected a language tag"),
        (["node", "--id", "n 1", "--redis-url", "redis://host"], "node = 'n 1': expected 1 to 64 visible ASCII"),
        (["node", "--id", "n1", "--pair", "a b:c", "--redis-url", "redis://host"], "src_lang = 'a b': expected"),
    ],
)
def test_wrong_usage(arguments: list[str], problem: str) -> None:
    """What was typed wrongly ends with 2 and is named."""
    exit_code, stderr = refusal(run(*arguments))
    assert exit_code == 2
    assert problem in stderr


def test_unknown_setting() -> None:
    """A setting that is none ends with 2, beside the nearest that is one."""
    assert refusal(run("nodes", "ls", SCHED_LEASE="5")) == (
        2,
        "Error: SCHED_LEASE: expected a known setting; the nearest is SCHED_LEASE_MS\n",
    )


# ---- servers ----


@pytest.mark.parametrize(
    "command", [["nodes", "ls"], ["jobs", "submit", __file__], ["manager"], ["node", "--id", "n1"]]
)
def test_no_server(command: list[str]) -> None:
    """Without a server the command ends with 3 and names the places that were looked at."""
    exit_code, stderr = refusal(run(*command))
    assert exit_code == 3
    assert stderr.splitlines() == [
        "Error: no server found; looked at",
        "  --redis-url      not given",
        "  SCHED_REDIS_URL  not set",
        "  REDIS_URL        not set",
        f"  .scheduler/url   no such file in {Path.cwd()}",
        "Change to the directory where `scheduler up` runs, name its server with",
        "--redis-url, or start one here: scheduler up",
    ]


@pytest.mark.parametrize("command", [["streams", "ls"], ["jobs", "submit", __file__], ["reaper"], ["up"]])
def test_server_that_does_not_answer(command: list[str]) -> None:
    """A server that does not answer ends with 3; its password is not shown."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    exit_code, stderr = refusal(run(*command, "--redis-url", f"redis://me:secret@127.0.0.1:{port}/0"))
    assert exit_code == 3
    errors = [line for line in stderr.splitlines() if " INFO " not in line]
    assert len(errors) == 1
    assert errors[0].startswith(f"Error: redis://127.0.0.1:{port}/0 does not answer: ")


def test_server_without_a_scheduler(empty_url: str) -> None:
    """A server where no scheduler was started ends with 3."""
    exit_code, stderr = refusal(run("nodes", "ls", REDIS_URL=empty_url))
    assert exit_code == 3
    assert "no scheduler was started there (namespace 'sched')" in stderr


def test_foreign_key(ready_url: str) -> None:
    """What the server refuses is a line, not a traceback."""
    with redis.Redis.from_url(ready_url) as client:
        client.set("{sched:0}:capacity", "mine")
    exit_code, stderr = refusal(run("nodes", "ls", "--redis-url", ready_url))
    assert exit_code == 1
    assert stderr.startswith("Error: {sched:0}:capacity holds a string, where a hash belongs: ")


def test_namespace(ready_url: str) -> None:
    """SCHED_NAMESPACE chooses which of several schedulers on a server is asked."""
    assert run("nodes", "ls", SCHED_REDIS_URL=ready_url).stdout == "no node is known\n"
    assert run("nodes", "ls", SCHED_REDIS_URL=ready_url, SCHED_NAMESPACE="other").exit_code == 3


# ---- handlers ----


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        ("fine", "expected package.module:function"),
        ("../fine:run", "expected package.module:function"),
        (".fine:run", "expected package.module:function"),
        ("fine: run", "expected package.module:function"),
        ("fine:run()", "expected package.module:function"),
        ("nowhere:run", "no module nowhere in the current directory or among what is installed"),
        ("nowhere.deep:run", "no module nowhere in the current directory or among what is installed"),
        ("fine:rum", "fine has no rum; the nearest is run"),
        ("fine:Some.method", "fine has no Some.method"),
        ("fine:NUMBER", "NUMBER is a int: expected a function of one job"),
        ("broken:run", "importing broken failed: ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("needy:run", "importing needy failed: ModuleNotFoundError: No module named 'nowhere' (needy.py, line 1)"),
        ("torn:run", "importing torn failed: SyntaxError: invalid syntax (torn.py, line 1)"),
        ("leaving:run", "importing leaving ended the program with 0 (leaving.py, line 2)"),
        ("silent:run", "importing silent failed: Silent: (its text cannot be had) (silent.py, line 3)"),
        ("lazy:run", "looking up run failed: ValueError: no (lazy.py, line 1)"),
        ("fine:Some", "Some is a class: expected a function of one job, or an object that can be called with one"),
        (
            "fine:Some.two",
            "Some.two takes (self, job): expected a function of one job; this one belongs to a class: "
            "name that of an object",
        ),
        ("fine:stream", "stream is a generator: expected a function of one job that returns its result, without yield"),
    ],
)
def test_handler_that_cannot_be_loaded(tmp_path: Path, handler: str, problem: str) -> None:
    """A handler that cannot be loaded ends with 2 and says what is wrong, and where."""
    (tmp_path / "fine.py").write_text(
        "NUMBER = 1\nclass Some:\n def two(self, job): pass\ndef run(job): return 1\ndef stream(job): yield 1\n"
    )
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    (tmp_path / "needy.py").write_text("import nowhere\n")
    (tmp_path / "torn.py").write_text("def = 1\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "silent.py").write_text("class Silent(BaseException):\n def __str__(self): raise self\nraise Silent\n")
    (tmp_path / "lazy.py").write_text("def __getattr__(name): raise ValueError('no')\n")
    assert refusal(run("node", "--id", "n1", "--handler", handler)) == (
        2,
        f"Error: --handler = {handler!r}: {problem}\n",
    )
    sys.modules.pop("fine", None)


# ---- words ----


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (59_999, "59.9 s"),
        (60_000, "1m 00s"),
        (3_599_999, "59m 59s"),
        (3_900_000, "1h 05m"),
        (90_000_000, "1d 1h"),
        (-1_500, "-1.5 s"),
    ],
)
def test_duration(milliseconds: int, words: str) -> None:
    """A length of time never rounds up into the next unit."""
    assert duration(milliseconds) == words


def test_moment() -> None:
    """A time is ISO 8601 in UTC."""
    assert moment(1_700_000_000_123) == "2023-11-14T22:13:20.123Z"


def test_shown() -> None:
    """A text from elsewhere is one line, and short."""
    assert shown("a\nb\x07") == r"a\nb\x07"
    assert shown("x" * 300, 5) == "xxxxx... (300 characters)"


def test_credentials() -> None:
    """User and password disappear from every URL of a text; other things stay."""
    text = "redis://u:p@h:1/0 and rediss://:p@h, mail a@b, redis://h:1/0"
    assert without_credentials(text) == "redis://***@h:1/0 and rediss://***@h, mail a@b, redis://h:1/0"
