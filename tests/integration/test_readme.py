"""What the README and the pages in docs/ say is so: every block that is typed there runs, every table is that of the
code.

A server and the roles are real. Blocks of shell run in a directory whose `.scheduler/url` names the server, with a
command `scheduler` that is this source tree.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import click
import msgspec
import pytest

from scheduler.cli.main import main
from scheduler.config import DEFAULTS, NOT_SETTINGS, Settings, read_settings
from scheduler.management.pools import PoolDocument
from scheduler.node.handlers import Job
from scheduler.protocol import keys
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.lifecycle import TERMINAL
from scheduler.protocol.snapshot import Match
from scheduler.server.location import write_url_file
from tests.system import System, running

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
LINE_WIDTH = 80
WAIT_MS = 20_000
HELLO = "HELLO"
NOWHERE = "redis://127.0.0.1:1/0"

Block = tuple[str, str]
"""Language and text of a fenced block."""


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, in their order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def block(language: str, beginning: str) -> str:
    """The one block of a language whose text begins so."""
    (found,) = [text for name, text in blocks(README) if name == language and text.startswith(beginning)]
    return found


def python_file(name: str) -> str:
    """The block of python that follows a line that names its file."""
    found = re.search(rf"^`{re.escape(name)}`:\n\n```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no block for {name}"
    return found[1]


def table(document: str, header: str) -> list[list[str]]:
    """The rows of the table with this header line, cell by cell."""
    _, _, rest = document.partition(f"\n{header}\n")
    assert rest, f"no table {header}"
    rows = []
    for line in rest.splitlines()[1:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def quoted(text: str) -> list[str]:
    """What stands in backquotes, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


# ---- a terminal -----------------------------------------------------------------------------------------------------


class Terminal:
    """A directory, and an environment in which the command `scheduler` is this source tree."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        commands = directory / "bin"
        commands.mkdir()
        command = commands / "scheduler"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m scheduler "$@"\n')
        command.chmod(0o755)
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("SCHED_", "REDIS_"))}
        path = f"{commands}{os.pathsep}{mine['PATH']}"
        self.environment = mine | {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def write(self, name: str, text: str) -> None:
        """Write a file as a reader would."""
        (self.directory / name).write_text(text, encoding="utf-8")

    @asynccontextmanager
    async def start(self, *command: str) -> AsyncIterator[Process]:
        """Run something beside the test; it is killed at the end if it still runs."""
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.directory, env=self.environment, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    @asynccontextmanager
    async def serving(self, typed: str) -> AsyncIterator[Process]:
        """Type a command that serves, and wait until it is ready."""
        async with self.start("bash", "-c", f"exec {typed}") as process:
            assert process.stdout is not None
            while (line := await process.stdout.readline()) != b"ready\n":
                assert line, f"{typed.strip()} ended before it was ready"
            yield process

    async def output(self, *command: str, code: int = 0) -> str:
        """Run something to its end, and return what it printed."""
        async with self.start(*command) as process:
            printed, errors = await process.communicate()
            assert process.returncode == code, errors.decode()
            return printed.decode()

    async def type(self, typed: str, code: int = 0) -> str:
        """Type something, and return what it printed."""
        return await self.output("bash", "-c", typed, code=code)


async def end(process: Process, number: signal.Signals) -> int | None:
    """Send a signal and wait for the end; the exit code."""
    process.send_signal(number)
    await process.communicate()
    return process.returncode


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """A terminal in a new directory, where no server is known."""
    return Terminal(tmp_path)


@pytest.fixture
async def system(url: str, terminal: Terminal) -> AsyncIterator[System]:
    """A scheduler at work with the settings of the README, which the terminal finds."""
    write_url_file(terminal.directory, url)
    async with running(url, DEFAULTS) as system:
        yield system


# ---- what is typed --------------------------------------------------------------------------------------------------


def test_every_block_is_tried() -> None:
    """A block that is new in the README needs a test here; the tools are tried by whoever runs this one."""
    first_lines = [(language, text.partition("\n")[0]) for language, text in blocks(README)]
    assert first_lines == [
        ("sh", "./tools/demo    # a whole scheduler on one screen: 2,000 jobs, six nodes, audited at the end"),
        ("text", "producer --- submit, or XADD ---> jobs:<p>           one stream a partition"),
        ("sh", ". .venv/bin/activate"),
        ("sh", "scheduler up"),
        ("sh", "scheduler node --id n1 --capacity 4 --pair en:zh"),
        ("jsonl", '{"session_id": "call-7", "src_lang": "en", "tgt_lang": "zh", "payload": "good morning"}'),
        ("sh", "scheduler jobs submit jobs.jsonl --wait"),
        ("python", "import asyncio"),
        ("sh", "scheduler node --id n3 --capacity 8 --pair en:zh --handler my_node:translate"),
        ("python", "import asyncio"),
        ("toml", "[pools.gold]"),
        ("sh", "scheduler pools apply pools.toml"),
        ("sh", "scheduler node --id n4 --capacity 4 --pair en:zh --label zone=eu"),
        ("sh", "scheduler pools rm gold"),
        ("sh", "redis-cli -u \"$(cat .scheduler/url)\" XADD '{sched:0}:jobs:5' '*' \\"),
        ("sh", "redis-cli -u \"$(cat .scheduler/url)\" GET '{sched:0}:result:typed-1'"),
        ("python", "import json"),
        ("sh", "honcho start -c dispatcher=2,node=3"),  # tried in test_procfile.py
    ]


def test_the_tools_are_there() -> None:
    """The commands of the first block can be run."""
    typed = [line.split()[0] for line in block("sh", "./tools/").splitlines()]
    assert [name for name in typed if not os.access(ROOT / name, os.X_OK)] == []


def test_the_picture_fits() -> None:
    """Pictures can be read on 80 columns."""
    pictures = [text for document in (README, ARCHITECTURE) for name, text in blocks(document) if name == "text"]
    assert [line for text in pictures for line in text.splitlines() if len(line) > LINE_WIDTH] == []


async def test_first_steps(terminal: Terminal) -> None:
    """From nothing to finished jobs in three terminals."""
    terminal.write("jobs.jsonl", block("jsonl", ""))
    async with terminal.serving(block("sh", "scheduler up")) as up:
        async with terminal.serving(block("sh", "scheduler node --id n1")) as node:
            printed = await terminal.type(block("sh", "scheduler jobs submit"))
            outcomes = [msgspec.json.decode(line) for line in printed.splitlines()]
            assert [(each["state"], each["node"]) for each in outcomes] == [("completed", "n1")] * 3
            assert await end(node, signal.SIGINT) == 0
        assert await end(up, signal.SIGINT) == 0


async def test_node_and_producer(system: System, terminal: Terminal) -> None:
    """The two programs of two dozen lines meet; Ctrl-C drains the node, and nothing else is printed."""
    terminal.write("my_node.py", python_file("my_node.py"))
    terminal.write("my_producer.py", python_file("my_producer.py"))
    async with terminal.start(sys.executable, "my_node.py") as node:
        submitted, result = (await terminal.output(sys.executable, "my_producer.py")).splitlines()
        assert (submitted.split()[0], result) == ("submitted", HELLO)
        node.send_signal(signal.SIGINT)
        assert await node.communicate() == (b"n2 is ready; Ctrl-C drains it\n", b"")
        assert node.returncode == 0
    assert await system.store.reads.capacities() == {}


async def test_programs_without_a_server(terminal: Terminal) -> None:
    """The two say where they looked; a node waits for a server that is named, and says so."""
    for name in ("my_node.py", "my_producer.py"):
        terminal.write(name, python_file(name))
        async with terminal.start(sys.executable, name) as program:
            printed, errors = await program.communicate()
        assert (program.returncode, printed) == (1, b"")
        *_, last = errors.decode().partition("ServerUnavailable: ")
        assert last.startswith("no server found; looked at\n  SCHED_REDIS_URL  not set\n")
    terminal.environment["SCHED_REDIS_URL"] = NOWHERE
    async with terminal.start(sys.executable, "my_node.py") as node:
        assert node.stderr is not None
        told = (await node.stderr.readline()).decode()
        assert told.startswith(f"the server at {NOWHERE} does not answer, for 1 s now: ")
        node.send_signal(signal.SIGINT)
        assert await node.communicate() == (b"", b"")


async def test_a_producer_whose_job_nobody_serves(system: System, terminal: Terminal) -> None:
    """After its time it says which job goes on, and how to look at it."""
    program = python_file("my_producer.py").replace("timeout_ms=30_000", "timeout_ms=100")
    terminal.write("my_producer.py", program)
    submitted, advice = (await terminal.output(sys.executable, "my_producer.py")).splitlines()
    shown = (await terminal.type(advice.partition("to go on looking: ")[2])).split()
    assert shown[:4] == ["job", submitted.split()[1], "state", "queued"]


async def test_a_function_by_name(system: System, terminal: Terminal) -> None:
    """The command line runs the function of the same file, and drains on SIGTERM."""
    terminal.write("my_node.py", python_file("my_node.py"))
    terminal.write("my_producer.py", python_file("my_producer.py"))
    async with terminal.serving(block("sh", "scheduler node --id n3")) as node:
        assert (await terminal.output(sys.executable, "my_producer.py")).split()[-1] == HELLO
        assert await end(node, signal.SIGTERM) == 0
    assert await system.store.reads.capacities() == {}


async def test_pools(system: System, terminal: Terminal) -> None:
    """A pool is in force when the command ends, takes the node that fits, and gives it back when it is removed."""

    async def pool_of(node: str) -> list[str]:
        return [each.pool for each in (await system.store.control.read_snapshot()).nodes if each.id == node]

    terminal.write("pools.toml", block("toml", ""))
    printed = await terminal.type(block("sh", "scheduler pools apply"))
    assert printed.startswith("gold: new\npool     strategy")
    async with terminal.serving(block("sh", "scheduler node --id n4")) as node:
        while await pool_of("n4") != ["gold"]:
            pass
        shown = await terminal.type("scheduler pools show gold --toml")
        terminal.write("shown.toml", shown)
        assert await terminal.type("scheduler pools apply shown.toml") == "gold: unchanged\n"
        assert await terminal.type(block("sh", "scheduler pools rm")) == "gold: removed\n"
        assert await pool_of("n4") == ["default"]
        assert await end(node, signal.SIGTERM) == 0


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="the README types redis-cli, which is not on PATH")
async def test_typed_with_redis_cli(system: System, terminal: Terminal) -> None:
    """A job that a person types runs, once, and its result can be typed for."""
    ran = []

    async def handle(job: Job) -> str:
        ran.append(job.job_id)
        return HELLO

    await system.add_node("n1", handle)
    typed = block("sh", 'redis-cli -u "$(cat .scheduler/url)" XADD')
    assert f":jobs:{keys.partition_of('call-7', DEFAULTS.partitions)}'" in typed
    await terminal.type(typed)
    await system.producer.outcome("typed-1", WAIT_MS, unknown_ms=None)
    assert (await terminal.type(block("sh", 'redis-cli -u "$(cat .scheduler/url)" GET'))).split() == [HELLO]
    await terminal.type(typed)
    later = await system.producer.submit("call-7", src_lang="en", tgt_lang="zh")
    await system.producer.outcome(later, WAIT_MS)
    assert ran == ["typed-1", later]


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="the page types redis-cli, which is not on PATH")
async def test_what_the_page_on_the_protocol_types(system: System, terminal: Terminal) -> None:
    """Its commands find the server of the directory: one reads the layout, one submits a job."""
    layout, addition = [text for name, text in blocks(PROTOCOL) if name == "sh"]
    assert "partitions\n16\n" in await terminal.type(layout)
    assert re.fullmatch(r"\d+-\d+\n", await terminal.type(addition))


async def test_plain_redis_py(system: System, terminal: Terminal) -> None:
    """A producer without the SDK reads its outcome, however often it is run."""

    async def handle(_: Job) -> str:
        return HELLO

    await system.add_node("n1", handle)
    terminal.write("plain.py", block("python", "import json"))
    printed = [await terminal.output(sys.executable, "plain.py") for _ in range(2)]
    assert printed == [f"completed {HELLO}\n"] * 2


async def test_exit_codes(system: System, terminal: Terminal) -> None:
    """The codes of the table that need no signal; those of signals are tested beside the commands."""
    codes = [int(code) for code, _ in table(README, "| exit code | meaning |")]
    assert codes == [0, 1, 2, 3, 130, 143]
    await asyncio.gather(
        terminal.type("scheduler nodes ls", code=0),
        terminal.type("scheduler jobs show nobody-knows-it", code=1),
        terminal.type("scheduler node --capacity 0", code=2),
        terminal.type("SCHED_LEASE=1 scheduler nodes ls", code=2),
        terminal.type("scheduler nodes ls --redis-url redis://127.0.0.1:1/0", code=3),
        terminal.type("SCHED_NAMESPACE=empty scheduler nodes ls", code=3),
    )


# ---- what is told ---------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    """The table of settings is that of the code, field by field, in its order."""
    rows = table(README, "| name | default | meaning |")
    assert [(name.strip("`"), default) for name, default, _ in rows] == [
        (field.name, str(getattr(DEFAULTS, field.name))) for field in msgspec.structs.fields(Settings)
    ]
    assert [name for name, _, meaning in rows if not meaning] == []


def test_settings_that_are_mentioned() -> None:
    """An assignment to a SCHED_ variable can be made as it stands; a variable alone is known to the program."""
    for variable, value in re.findall(r"\b(SCHED_[A-Z_]+)=(\w+)", README):
        read_settings({variable: value})
    known = NOT_SETTINGS | {f"SCHED_{name.upper()}" for name in Settings.__struct_fields__}
    others = set(re.findall(r"\b(SCHED_[A-Z_]+[A-Z])\b", README)) - known
    assert read_settings(dict.fromkeys(others, "tcp://10.0.0.1:80")) == DEFAULTS  # those that Kubernetes makes


def commands_told() -> Iterator[list[str]]:
    """Every command that stands in backquotes or in a block, word by word, without files and options."""
    typed = [line for name, text in blocks(README) if name == "sh" for line in text.splitlines()]
    for text in [*quoted(README), *typed]:
        if text.startswith("scheduler "):
            words = text.partition(" -")[0].split()[1:]
            yield [word for word in words if "." not in word]


def test_commands_that_are_told_exist() -> None:
    """Whoever types a command of the README finds it."""
    told = list(commands_told())
    assert ["jobs", "submit"] in told
    for words in told:
        command: click.Command = main
        for word in words:
            if not isinstance(command, click.Group):
                break  # what comes now are arguments
            found = command.get_command(click.Context(command), word)
            assert found is not None, words
            command = found


def test_fields_of_a_document() -> None:
    """The table of fields names those of the code."""
    told = [name for cell, *_ in table(README, "| field | what it is |") for name in quoted(cell)]
    assert sorted(told) == sorted(JobDocument.__struct_fields__)


def test_fields_of_a_pool() -> None:
    """Everything that can be said of a pool is in the table, and of its rule too."""
    rows = table(README, "| key | default | meaning |")
    told = [name for cell, *_ in rows for name in quoted(cell)]
    assert sorted(told) == sorted(PoolDocument.__struct_fields__)
    assert set(Match.__struct_fields__) <= {name for *_, meaning in rows[-1:] for name in quoted(meaning)}


def test_states_and_reasons() -> None:
    """The states in which a job ends, and every reason that a dead job can have."""
    states = [quoted(row[0])[0] for row in table(README, "| state | when | what is kept |")]
    assert set(states) == TERMINAL
    told = {quoted(row[0])[0] for row in table(README, "| reason of `dead` | what happened |")}
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "scheduler" / "runtime").rglob("*.py"))
    given = set(re.findall(r'refuse(?:_job)?\(\s*(?:job|entry, cell), "(\w+)"', source))
    scripts = "".join((ROOT / "lua" / f"{name}.lua").read_text(encoding="utf-8") for name in ("release", "promote"))
    given |= set(re.findall(r"'(attempts_exhausted|body_lost)'", scripts))
    assert told == given - {"cancelled"}


async def test_importing_the_package_loads_nothing_else(terminal: Terminal) -> None:
    """The public names are imported at their first use."""
    show = "import sys, scheduler; print(*sorted(name for name in sys.modules if name.startswith('scheduler')))"
    assert (await terminal.output(sys.executable, "-c", show)).split() == ["scheduler"]
    package = importlib.import_module("scheduler")
    assert {name: getattr(package, name).__name__ for name in package.__all__} == {n: n for n in package.__all__}
    with pytest.raises(AttributeError, match="no attribute 'Nod'"):
        package.Nod  # noqa: B018
