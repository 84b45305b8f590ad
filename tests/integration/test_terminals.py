"""Terminals, pipes and files of all kinds: nothing that others wrote is obeyed, no letter is missing without a trace,
nothing fails for want of one, and what is cut is not the name or the state.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from scheduler.protocol import messages
from scheduler.protocol.snapshot import Node, Pool, Snapshot
from scheduler.server.embedded import start_embedded
from scheduler.store.store import Store
from scheduler.visible import is_hidden
from tests import seeds
from tests.integration.commands import on_server

ROOT = Path(__file__).resolve().parents[2]
END_MAX_S = 30
STYLE: Final = re.compile(r"\x1b\[[012]m")
EVIL: Final = "\x1b[2J\x9b31m\u202e\r\n\u4f60\u597d\xe9\u2028"
NODE: Final = "translator-eu-west-1-production-gpu-a100-0001"
TWIN: Final = "translator-eu-west-1-production-gpu-a100-0002"
EVIL_NODE: Final = f"n{EVIL}"
JOB: Final = "job-4711-2026-11-30-abcdefghijklmnopqrstuvwxyz-000000000001"
DEAD: Final = "dead-1"
SESSION: Final = "customer-4711-call-2026-11-30-abcdefghijklmnopqrstuvwxyz-0001"
PAIRS: Final = tuple(("en", target) for target in ("de", "es", "fr", "it", "ja", "zh"))
DETAIL: Final = f"{EVIL} {'x' * 2_100} the end"

NO_UTF_8: Final = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN: Final = {"PYTHONIOENCODING": "latin-1"}
ASCII: Final = {"PYTHONIOENCODING": "ascii"}
STRICT: Final = {"PYTHONIOENCODING": "ascii:strict"}
CYRILLIC: Final = {"PYTHONIOENCODING": "koi8-r"}
CHINESE: Final = {"PYTHONIOENCODING": "gb18030"}
WINDOWS: Final = {"PYTHONIOENCODING": "cp1252"}
UTF_8: Final = {"PYTHONIOENCODING": "utf-8"}

COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "nodes": ("nodes", "ls"),
    "nodes json": ("nodes", "ls", "--json"),
    "reservations": ("reservations", "ls"),
    "job": ("jobs", "show", JOB),
    "dead": ("jobs", "show", DEAD),
    "dead json": ("jobs", "show", DEAD, "--json"),
    "pools": ("pools", "ls"),
    "pool": ("pools", "show", "default"),
    "streams": ("streams", "ls"),
    "unknown": ("jobs", "show", EVIL),
    "wrong": ("nodes", "ls", f"--{EVIL}"),
    "line": ("jobs", "submit", "-"),
    "help": ("nodes", "ls", "--help"),
}
EXIT_CODES: Final = {"unknown": 1, "wrong": 2, "line": 1}


class End(NamedTuple):
    """What is at the other end of stdout and stderr.

    kind: `pipe`, `file` or `terminal`; variables; columns: of a terminal by itself.
    """

    kind: str
    variables: Mapping[str, str]
    columns: int = 80

    @property
    def width(self) -> int | None:
        """Columns of a line, None without end."""
        named = self.variables.get("COLUMNS", "")
        return int(named) if named else self.columns if self.kind == "terminal" else None

    @property
    def has_styles(self) -> bool:
        """Whether there may be escape sequences."""
        if self.variables.get("NO_COLOR") or self.variables.get("TERM") == "dumb":
            return False
        return self.kind == "terminal" or bool(self.variables.get("FORCE_COLOR"))

    @property
    def encoding(self) -> str:
        """How it writes letters."""
        return self.variables.get("PYTHONIOENCODING", "ascii" if "LC_ALL" in self.variables else "utf-8").split(":")[0]


FORTY: Final = [
    # encodings
    ("nodes", End("pipe", NO_UTF_8)), ("dead", End("pipe", NO_UTF_8)), ("dead json", End("pipe", NO_UTF_8)),
    ("unknown", End("pipe", NO_UTF_8)), ("line", End("pipe", NO_UTF_8)), ("pool", End("terminal", NO_UTF_8, 40)),
    ("dead", End("pipe", LATIN)), ("dead json", End("pipe", LATIN)), ("line", End("file", LATIN)),
    ("dead", End("terminal", ASCII)), ("dead json", End("pipe", ASCII)), ("unknown", End("terminal", ASCII)),
    ("dead", End("pipe", STRICT)), ("nodes", End("file", STRICT)), ("wrong", End("pipe", STRICT)),
    ("dead", End("pipe", CYRILLIC)), ("dead json", End("file", CHINESE)), ("dead", End("terminal", CHINESE)),
    ("dead", End("file", WINDOWS)), ("nodes json", End("pipe", WINDOWS)), ("dead json", End("terminal", UTF_8)),
    # pipes and files: everything, on one line
    ("nodes", End("pipe", UTF_8)), ("reservations", End("pipe", UTF_8)), ("job", End("file", UTF_8)),
    ("dead", End("pipe", UTF_8)), ("pools", End("file", UTF_8)), ("nodes", End("pipe", UTF_8 | {"TERM": "dumb"})),
    # widths
    ("nodes", End("pipe", UTF_8 | {"COLUMNS": "40"})), ("nodes", End("terminal", UTF_8, 40)),
    ("reservations", End("terminal", ASCII, 40)), ("job", End("terminal", UTF_8, 40)),
    ("streams", End("terminal", UTF_8, 40)), ("pools", End("terminal", LATIN, 20)),
    ("nodes", End("terminal", UTF_8 | {"COLUMNS": "200"})), ("nodes", End("terminal", UTF_8, 0)),
    # styles
    ("nodes", End("terminal", {"NO_COLOR": "1"})), ("job", End("terminal", {"TERM": "dumb"})),
    ("nodes", End("pipe", {"FORCE_COLOR": "1"})), ("job", End("terminal", {"NO_COLOR": "1", "FORCE_COLOR": "1"})),
    ("help", End("terminal", NO_UTF_8 | {"NO_COLOR": "1"}, 40)),
]  # fmt: skip


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server on which somebody wrote what no script lets through."""
    with start_embedded() as server:
        on_server(server.url, _seed)
        yield server.url


async def _seed(store: Store) -> None:
    await store.control.write_layout()
    await seeds.seed_reserved(store, JOB, SESSION, node=NODE)
    for name in (TWIN, EVIL_NODE):
        await store.connection.commands.hset(store.cell.keys.capacity, name, f"4 {seeds.BOOT} ready")
    token = await seeds.seed_reserved(store, DEAD, "s2", node="n2")
    item = seeds.release_item(token, "dead", DEAD, "s2", node="n2", reason="run_time", detail=DETAIL)
    assert await seeds.release(store, item) == [messages.Released("dead")]
    await seeds.seed_record(store, DEAD, session=EVIL, decision=EVIL, pool=EVIL)
    epoch = await seeds.seed_leader(store)
    nodes = tuple(Node(name, seeds.BOOT, 4, "default", PAIRS, ("asr", "tts")) for name in (NODE, TWIN))
    pools = (Pool("default", tenants=(EVIL, "acme"), description=EVIL), Pool(EVIL))
    await store.control.publish(seeds.MANAGER, epoch, Snapshot(1, nodes, pools))


def run(command: str, end: End, url: str, directory: Path) -> tuple[int, str]:
    """Run a command: its exit code, and what came out at the other end."""
    ours = ("SCHED_", "PYTHON", "LC_", "LANG", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "REDIS_", "COVERAGE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"PYTHONPATH": str(ROOT), "SCHED_REDIS_URL": url, "TERM": "xterm", "LANG": "C.UTF-8"}
    typed = [sys.executable, "-m", "scheduler", *COMMANDS[command]]
    given = f'"{EVIL}"\n'.encode()
    read_end, write_end = _open(end, directory)
    process = subprocess.Popen(
        typed, env=environment | dict(end.variables), stdin=subprocess.PIPE, stdout=write_end, stderr=write_end
    )
    os.close(write_end)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(given)
        process.stdin.close()
    output = b"" if end.kind == "file" else _read(read_end)
    exit_code = process.wait(END_MAX_S)
    if end.kind == "file":
        output = (directory / "output").read_bytes()
    os.close(read_end)
    return exit_code, output.decode(end.encoding).replace("\r\n", "\n" if end.kind == "terminal" else "\r\n")


def _open(end: End, directory: Path) -> tuple[int, int]:
    if end.kind == "pipe":
        return os.pipe()
    if end.kind == "file":
        path = directory / "output"
        write_end = os.open(path, os.O_WRONLY | os.O_CREAT)
        return os.open(path, os.O_RDONLY), write_end
    read_end, write_end = pty.openpty()
    fcntl.ioctl(write_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, end.columns, 0, 0))
    return read_end, write_end


def _read(descriptor: int) -> bytes:
    read = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
        while piece := os.read(descriptor, 65_536):
            read += piece
    return read


@pytest.mark.parametrize(("command", "end"), FORTY)
def test_forty_terminals_and_pipes(url: str, tmp_path: Path, command: str, end: End) -> None:
    """Exit code, letters, styles and widths are right at each of them."""
    exit_code, output = run(command, end, url, tmp_path)
    assert "Traceback" not in output
    is_no_text = command == "unknown" and "LC_ALL" in end.variables  # what was typed could not even be read
    assert exit_code == (2 if is_no_text else EXIT_CODES.get(command, 0)), output
    assert not is_no_text or "UTF-8" in output
    if is_no_text:
        return
    plain = STYLE.sub("", output) if end.has_styles else output
    assert {each for each in plain if is_hidden(each)} <= {"\n"}
    assert (plain != output) == (end.has_styles and command in {"nodes", "reservations", "job", "dead", "pools",
                                                                "pool", "streams"})  # fmt: skip
    _check_what_is_there(command, end, plain)


def _check_what_is_there(command: str, end: End, text: str) -> None:
    lines = text.splitlines()
    if command == "nodes":
        rows = [line for line in lines if line.startswith("translator")]
        assert [row.split()[0] for row in rows] == [NODE, TWIN]
        assert all("ready" in row.split() for row in rows)
        if end.width is None or end.width >= 200:
            assert all(row.split()[1:4] == ["default", "1" if NODE in row else "0", row.split()[3]] for row in rows)
        if end.width is None:
            assert all(" ".join(f"{source}:{target}" for source, target in PAIRS) in row for row in rows)
        if end.width == 40:
            assert lines[0].split() == ["node", "state"]
    elif command == "nodes json":
        assert {each["id"] for each in json.loads(text)} == {NODE, TWIN, EVIL_NODE, "n2"}
    elif command == "reservations":
        (row,) = [line.split() for line in lines if line.startswith(JOB)]
        assert row[-1] in ("s", "lapsed")
        assert end.width is not None or row[1:3] == [NODE, SESSION]
    elif command == "job":
        assert f"job {JOB}" in re.sub(" +", " ", text)
        assert SESSION in text
        assert NODE in text
    elif command == "dead":
        assert r"\x1b[2J\x9b31m\u202e\r\n" in text
        assert (DETAIL[-20:] in text) == (end.width is None)
        seen = {
            "utf-8": "你好é",
            "latin-1": r"\u4f60\u597dé",
            "ascii": r"\u4f60\u597d\xe9",
            "koi8-r": r"\u4f60\u597d\xe9",
        }
        assert seen.get(end.encoding, "") in text
    elif command == "dead json":
        assert json.loads(text)["detail"] == DETAIL
    elif command in ("unknown", "line", "wrong"):
        assert r"\x1b[2J\x9b31m\u202e\r" in text
    elif command == "streams":
        assert lines[1].split()[:2] == ["0", "0"]
        assert max(map(len, lines)) <= 40
    elif command == "pools":
        assert any(line.startswith("default") for line in lines)
