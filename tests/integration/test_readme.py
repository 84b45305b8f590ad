"""The README and the pages of docs/ are right: every example runs as it is typed, the tables match the code, and the
links lead somewhere.

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
from typing import Final

import click
import msgspec
import pytest

from scheduler.cli.main import main
from scheduler.config import DEFAULTS, NOT_SETTINGS, NUMBER_MAX, Settings, check_settings, read_settings
from scheduler.errors import InvalidInput
from scheduler.management.pools import PoolDocument
from scheduler.node.handlers import Job
from scheduler.protocol import keys
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.lifecycle import TERMINAL
from scheduler.protocol.snapshot import STRATEGIES, Match
from scheduler.server.location import write_url_file
from tests.system import System, running

ROOT = Path(__file__).resolve().parents[2]
PAGES: Final = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
}
"""Every page by its path."""
README = PAGES["README.md"]
GETTING_STARTED = PAGES["docs/GETTING_STARTED.md"]
JOBS = PAGES["docs/JOBS.md"]
NODES = PAGES["docs/NODES.md"]
POOLS = PAGES["docs/POOLS.md"]
OPERATIONS = PAGES["docs/OPERATIONS.md"]
SETTINGS = PAGES["docs/SETTINGS.md"]
ARCHITECTURE = PAGES["docs/ARCHITECTURE.md"]
PROTOCOL = PAGES["docs/PROTOCOL.md"]
BENCHMARKS = PAGES["docs/BENCHMARKS.md"]
ELSEWHERE: Final = (
    "CHANGELOG",
    "ARCHITECTURE",
    "BASELINE",
    "BENCHMARKS",
    "PROMISES",
    "PROTOCOL",
    "PROTOCOL_MANAGEMENT",
    "RESULTS",
    "RULES",
    "SIMULATION",
)
USER_PAGES: Final = {name: text for name, text in PAGES.items() if Path(name).stem not in ELSEWHERE}
"""The pages for users; the others have tests of their own."""
README_BYTES_MAX = 10_000
LINE_WIDTH = 80
WAIT_MS = 20_000
HELLO = "HELLO"
NOWHERE = "redis://127.0.0.1:1/0"

Block = tuple[str, str]
"""Language and text of a fenced block."""


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, in their order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)


def block(page: str, language: str, beginning: str) -> str:
    """The only block of a page in this language that begins like this."""
    (found,) = [text for name, text in blocks(page) if name == language and text.startswith(beginning)]
    return found


def python_file(page: str, name: str) -> str:
    """The block of Python that follows the line with the name of its file."""
    found = re.search(rf"`{re.escape(name)}`[^`]*:\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
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
        for name, options in (("scheduler", "-m scheduler "), ("python", "")):
            command = commands / name
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {options}"$@"\n')
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
    """A scheduler at work with the default settings, which the terminal finds."""
    write_url_file(terminal.directory, url)
    async with running(url, DEFAULTS) as system:
        yield system


# ---- what is typed --------------------------------------------------------------------------------------------------


TRIED: Final = {
    "CONTRIBUTING.md": [],
    "README.md": [
        ("sh", "./tools/demo    # a whole scheduler on one screen: 2,000 jobs, six nodes, audited at the end"),
        ("text", "producer --- submit, or XADD ---> jobs:<p>           one stream per partition"),
        ("sh", ". .venv/bin/activate"),
        ("sh", "scheduler up"),
        ("python", "from scheduler import Job"),
        ("sh", "scheduler node --id n1 --capacity 8 --pair en:zh --handler my_handler:translate"),
        ("python", "import asyncio"),
        ("sh", "python first_job.py"),
        ("sh", "./tools/bench latency"),  # tried in test_bench.py
    ],
    "SECURITY.md": [],
    "docs/GETTING_STARTED.md": [
        ("sh", ". .venv/bin/activate"),
        ("sh", "scheduler up"),
        ("sh", "scheduler node --id n1 --capacity 4 --pair en:zh"),
        ("jsonl", '{"session_id": "call-7", "src_lang": "en", "tgt_lang": "zh", "payload": "good morning"}'),
        ("sh", "scheduler jobs submit jobs.jsonl --wait"),
        ("sh", "scheduler nodes ls"),
        ("python", "import asyncio"),
        ("sh", "python my_node.py"),
        ("python", "import asyncio"),
        ("sh", "python my_producer.py"),
    ],
    "docs/GUARANTEES.md": [],
    "docs/JOBS.md": [
        (
            "sh",
            'echo \'{"session_id": "call-9", "src_lang": "en", "tgt_lang": "zh", "payload": "hi"}\''
            " | scheduler jobs submit - --wait",
        ),
        ("sh", "redis-cli -u \"$(cat .scheduler/url)\" XADD '{sched:0}:jobs:5' '*' \\"),
        ("sh", "redis-cli -u \"$(cat .scheduler/url)\" GET '{sched:0}:result:typed-1'"),
        ("python", "import json"),
    ],
    "docs/NODES.md": [("sh", "scheduler node --id n3 --capacity 8 --pair en:zh --handler my_node:translate")],
    "docs/OPERATIONS.md": [("sh", "honcho start -c dispatcher=2,node=3")],  # tried in test_procfile.py
    "docs/POOLS.md": [
        ("toml", "[pools.gold]"),
        ("sh", "scheduler pools apply pools.toml"),
        ("sh", "scheduler node --id n4 --capacity 4 --pair en:zh --label zone=eu"),
        ("sh", "scheduler pools rm gold"),
    ],
    "docs/README.md": [],
    "docs/SETTINGS.md": [],
}
"""Language and first line of every block of the pages for users, decisions aside."""


def test_every_block_is_tried() -> None:
    """A new block needs a test here."""
    first_lines = {
        name: [(language, text.partition("\n")[0]) for language, text in blocks(page)]
        for name, page in USER_PAGES.items()
    }
    assert {name: lines for name, lines in first_lines.items() if lines or not name.startswith("docs/adr/")} == TRIED


def test_the_tools_are_there() -> None:
    """Every tool that a page names can be run."""
    named = {tool for page in USER_PAGES.values() for tool in re.findall(r"\./tools/\w+", page)}
    assert "./tools/demo" in named
    assert [name for name in sorted(named) if not os.access(ROOT / name, os.X_OK)] == []


def test_the_picture_fits() -> None:
    """Pictures can be read on 80 columns."""
    pictures = [text for document in (README, ARCHITECTURE) for name, text in blocks(document) if name == "text"]
    assert [line for text in pictures for line in text.splitlines() if len(line) > LINE_WIDTH] == []


def test_the_readme_is_short() -> None:
    """Details have pages of their own."""
    assert len(README.encode()) <= README_BYTES_MAX


async def test_one_example_of_each_role(terminal: Terminal) -> None:
    """The README's scheduler, node and producer work together in one directory."""
    terminal.write("my_handler.py", python_file(README, "my_handler.py"))
    terminal.write("first_job.py", python_file(README, "first_job.py"))
    async with terminal.serving(block(README, "sh", "scheduler up")) as up:
        async with terminal.serving(block(README, "sh", "scheduler node")) as node:
            assert await terminal.type(block(README, "sh", "python first_job.py")) == f"{HELLO}\n"
            assert await end(node, signal.SIGINT) == 0
        assert await end(up, signal.SIGINT) == 0


async def test_first_steps(terminal: Terminal) -> None:
    """GETTING_STARTED from its beginning to its end, in three terminals."""
    terminal.write("jobs.jsonl", block(GETTING_STARTED, "jsonl", ""))
    terminal.write("my_node.py", python_file(GETTING_STARTED, "my_node.py"))
    terminal.write("my_producer.py", python_file(GETTING_STARTED, "my_producer.py"))
    async with terminal.serving(block(GETTING_STARTED, "sh", "scheduler up")) as up:
        async with terminal.serving(block(GETTING_STARTED, "sh", "scheduler node --id n1")) as node:
            printed = await terminal.type(block(GETTING_STARTED, "sh", "scheduler jobs submit"))
            outcomes = [msgspec.json.decode(line) for line in printed.splitlines()]
            assert [(each["state"], each["node"]) for each in outcomes] == [("completed", "n1")] * 3
            assert "n1" in await terminal.type(block(GETTING_STARTED, "sh", "scheduler nodes ls"))
            assert await end(node, signal.SIGINT) == 0
        async with terminal.start("bash", "-c", f"exec {block(GETTING_STARTED, 'sh', 'python my_node.py')}") as node:
            printed = await terminal.type(block(GETTING_STARTED, "sh", "python my_producer.py"))
            assert printed.splitlines()[1:] == [HELLO]
            assert await end(node, signal.SIGINT) == 0
        assert await end(up, signal.SIGINT) == 0


async def test_node_and_producer(system: System, terminal: Terminal) -> None:
    """The two programs of two dozen lines meet; Ctrl-C drains the node, and nothing else is printed."""
    terminal.write("my_node.py", python_file(GETTING_STARTED, "my_node.py"))
    terminal.write("my_producer.py", python_file(GETTING_STARTED, "my_producer.py"))
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
        terminal.write(name, python_file(GETTING_STARTED, name))
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
    program = python_file(GETTING_STARTED, "my_producer.py").replace("timeout_ms=30_000", "timeout_ms=100")
    terminal.write("my_producer.py", program)
    submitted, advice = (await terminal.output(sys.executable, "my_producer.py")).splitlines()
    shown = (await terminal.type(advice.partition("to go on looking: ")[2])).split()
    assert shown[:4] == ["job", submitted.split()[1], "state", "queued"]


async def test_a_function_by_name(system: System, terminal: Terminal) -> None:
    """The command line runs the function of the same file, and drains on SIGTERM."""
    terminal.write("my_node.py", python_file(GETTING_STARTED, "my_node.py"))
    terminal.write("my_producer.py", python_file(GETTING_STARTED, "my_producer.py"))
    async with terminal.serving(block(NODES, "sh", "scheduler node --id n3")) as node:
        assert (await terminal.output(sys.executable, "my_producer.py")).split()[-1] == HELLO
        assert await end(node, signal.SIGTERM) == 0
    assert await system.store.reads.capacities() == {}


async def test_pools(system: System, terminal: Terminal) -> None:
    """A pool is in force when the command ends, takes the node that fits, and gives it back when it is removed."""

    async def pool_of(node: str) -> list[str]:
        return [each.pool for each in (await system.store.control.read_snapshot()).nodes if each.id == node]

    terminal.write("pools.toml", block(POOLS, "toml", ""))
    printed = await terminal.type(block(POOLS, "sh", "scheduler pools apply"))
    assert printed.startswith("gold: new\npool     strategy")
    async with terminal.serving(block(POOLS, "sh", "scheduler node --id n4")) as node:
        while await pool_of("n4") != ["gold"]:
            pass
        shown = await terminal.type("scheduler pools show gold --toml")
        terminal.write("shown.toml", shown)
        assert await terminal.type("scheduler pools apply shown.toml") == "gold: unchanged\n"
        assert await terminal.type(block(POOLS, "sh", "scheduler pools rm")) == "gold: removed\n"
        assert await pool_of("n4") == ["default"]
        assert await end(node, signal.SIGTERM) == 0


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="the page types redis-cli, which is not on PATH")
async def test_typed_with_redis_cli(system: System, terminal: Terminal) -> None:
    """A job that a person types runs, once, and its result can be typed for."""
    ran = []

    async def handle(job: Job) -> str:
        ran.append(job.job_id)
        return HELLO

    await system.add_node("n1", handle)
    typed = block(JOBS, "sh", 'redis-cli -u "$(cat .scheduler/url)" XADD')
    assert f":jobs:{keys.partition_of('call-7', DEFAULTS.partitions)}'" in typed
    await terminal.type(typed)
    await system.producer.outcome("typed-1", WAIT_MS, unknown_ms=None)
    assert (await terminal.type(block(JOBS, "sh", 'redis-cli -u "$(cat .scheduler/url)" GET'))).split() == [HELLO]
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
    terminal.write("plain.py", python_file(JOBS, "plain.py"))
    printed = [await terminal.output(sys.executable, "plain.py") for _ in range(2)]
    assert printed == [f"completed {HELLO}\n"] * 2


async def test_jobs_of_standard_input(system: System, terminal: Terminal) -> None:
    """A shell submits a job and waits for it."""

    async def handle(_: Job) -> str:
        return HELLO

    await system.add_node("n1", handle)
    assert '"state":"completed"' in await terminal.type(block(JOBS, "sh", "echo "))


async def test_exit_codes(system: System, terminal: Terminal) -> None:
    """The codes of the table that need no signal; those of signals are tested beside the commands."""
    codes = [int(code) for code, _ in table(OPERATIONS, "| exit code | meaning |")]
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


HEADER: Final = "| name | default | unit | bounds | meaning |"
SETTING_ROWS: Final = table(SETTINGS, HEADER)


def test_defaults() -> None:
    """The table of settings is that of the code, field by field, in its order."""
    assert [(name.strip("`"), default) for name, default, *_ in SETTING_ROWS] == [
        (field.name, str(getattr(DEFAULTS, field.name))) for field in msgspec.structs.fields(Settings)
    ]
    assert [name for name, *_, meaning in SETTING_ROWS if not meaning] == []


def test_units() -> None:
    """The unit agrees with the end of the name."""
    for name, _, unit, _, _ in SETTING_ROWS:
        ending = re.search(r"_(ms|bytes)(_max)?$", name.strip("`"))
        assert (ending[1] if ending else None) == (unit if unit in ("ms", "bytes") else None), name


@pytest.mark.parametrize("row", SETTING_ROWS, ids=lambda row: row[0].strip("`"))
def test_bounds(row: list[str]) -> None:
    """The program accepts the ends of the bounds on the page, and refuses what is beyond."""
    name, bounds = row[0].strip("`"), row[3]

    def is_accepted(value: int | str) -> bool:
        try:
            check_settings(msgspec.structs.replace(DEFAULTS, **{name: value}))
        except InvalidInput:
            return False
        return True

    if name == "strategy":
        assert quoted(bounds) == list(STRATEGIES)
        assert [word for word in [*quoted(bounds), "random"] if not is_accepted(word)] == ["random"]
    elif name == "namespace":
        assert bounds == "1 to 64 characters"
        assert [length for length in (0, 1, 64, 65) if not is_accepted("s" * length)] == [0, 65]
    else:
        twice, least, most = re.fullmatch(r"(?:twice `(\w+)`|(\d+)) (?:to (\d+)|or more)", bounds).groups()  # type: ignore[union-attr]
        low = 2 * int(getattr(DEFAULTS, twice)) if twice else int(least)
        assert (is_accepted(low), is_accepted(low - 1)) == (True, False)
        if most is not None:
            assert is_accepted(int(most))
        assert not is_accepted(int(most or NUMBER_MAX) + 1)


def test_settings_that_are_mentioned() -> None:
    """An assignment to a SCHED_ variable can be made as it stands; a variable alone is known to the program."""
    for page in USER_PAGES.values():
        for variable, value in re.findall(r"\b(SCHED_[A-Z_]+)=(\w+)", page):
            read_settings({variable: value})
        known = NOT_SETTINGS | {f"SCHED_{name.upper()}" for name in Settings.__struct_fields__}
        others = set(re.findall(r"\b(SCHED_[A-Z_]+[A-Z])\b", page)) - known
        assert read_settings(dict.fromkeys(others, "tcp://10.0.0.1:80")) == DEFAULTS  # those that Kubernetes makes


def test_the_figure_is_that_of_the_benchmarks() -> None:
    """The README repeats a cited figure. When that is measured again, change the README too."""
    cited = re.findall(r"\| submission until readable in an inbox, 1,000 jobs/s, (p50|p99) \| (\S+ ms) \|", BENCHMARKS)
    assert [name for name, _ in cited] == ["p50", "p99"]
    assert [figure for _, figure in cited if figure not in README.replace("\n", " ")] == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    """Every link within the repository names a file, and a heading of it."""
    text = re.sub(r"^```.*?^```$", "", PAGES[name], flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / name).parent / place if place else ROOT / name
        page = PAGES.get(target.resolve().relative_to(ROOT).as_posix(), "")
        headings = {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", page, re.MULTILINE)
        }
        if not target.exists() or (anchor and anchor not in headings):
            broken.append(link)
    assert broken == []


def test_every_page_is_in_the_index() -> None:
    """A reader finds each page by a question."""
    index = PAGES["docs/README.md"]
    there = {Path(name).relative_to("docs").as_posix() for name in PAGES if name.startswith("docs/")} - {"README.md"}
    assert [name for name in sorted(there) if f"({name}" not in index] == []


def commands_told() -> Iterator[list[str]]:
    """Every command that stands in backquotes or in a block, word by word, without files and options."""
    for page in USER_PAGES.values():
        typed = [line for name, text in blocks(page) if name == "sh" for line in text.splitlines()]
        for text in [*quoted(page), *typed]:
            if text.startswith("scheduler "):
                words = text.partition(" -")[0].split()[1:]
                yield [word for word in words if "." not in word]


def test_commands_that_are_told_exist() -> None:
    """Every command that a page names is there."""
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
    told = [name for cell, *_ in table(JOBS, "| field | what it is |") for name in quoted(cell)]
    assert sorted(told) == sorted(JobDocument.__struct_fields__)


def test_fields_of_a_pool() -> None:
    """Everything that can be said of a pool is in the table, and of its rule too."""
    rows = table(POOLS, "| key | default | meaning |")
    told = [name for cell, *_ in rows for name in quoted(cell)]
    assert sorted(told) == sorted(PoolDocument.__struct_fields__)
    assert set(Match.__struct_fields__) <= {name for *_, meaning in rows[-1:] for name in quoted(meaning)}


def test_states_and_reasons() -> None:
    """The states in which a job ends, and every reason that a dead job can have."""
    states = [quoted(row[0])[0] for row in table(JOBS, "| state | when | what is kept |")]
    assert set(states) == TERMINAL
    told = {quoted(row[0])[0] for row in table(JOBS, "| reason of `dead` | what happened |")}
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
