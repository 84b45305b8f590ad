"""Connections that put commands on the wire with hiredis and at once, wait for as long as something moves, and leave
nothing behind when they are closed.

A script call has a thousand arguments and more. redis-py parses answers with hiredis, but its asyncio connections still
join commands in Python, argument by argument, which was half of a dispatcher's time. And they send in a task of its
own, so that a timeout can end it: two more turns of the event loop a command, for what the kernel nearly always takes
at once.

Its time-out spans a whole reply, however large, so on a slow link a large one never arrives, however often it is asked
for. Here it is for as long as nothing comes, and a large request has the time that it needs to get there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import hiredis
from redis._parsers import _AsyncHiredisParser
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scheduler.store.meanings import NotAdmitted, meaning_of, words_of

BYTES_A_SECOND_MIN: Final = 100_000
"""Of a link over which large requests still arrive in time."""
KERNEL_BYTES_MAX: Final = 4 * 2**20  # of a request that were taken to be sent, and may still be here

_pack: Final[Any] = hiredis.pack_command


def _ignore(_run_id: str) -> None:
    """Of the server at the other end, for those who do not ask."""


class Cap(NamedTuple):
    """How long a reply may take once it has begun, and how large it may be."""

    s: float
    bytes: int


class Parser(_AsyncHiredisParser):
    """Waits for each piece of a reply as long as its connection allows."""

    def on_connect(self, connection: Any) -> None:
        """As redis-py does."""
        super().on_connect(connection)  # type: ignore[no-untyped-call]
        self._connection: HiredisMixin = connection

    async def read_from_socket(self) -> bool:
        """Wait for the next piece. Raises: TimeoutError."""
        connection = self._connection
        stream: Any = self._stream
        reader: Any = self._reader
        async with asyncio.timeout(connection.wait_s()):
            piece = await stream.read(self._read_size)
        if not piece:
            raise RedisConnectionError("Connection closed by server.")
        connection.received_bytes += len(piece)
        connection.pieces += 1
        reader.feed(piece)
        return True


class HiredisMixin:
    """Replaces packer, sending, waiting and the end of a connection; it stands before the connection's class.

    socket_timeout: for how long, in seconds, nothing may move. received_bytes: of the replies to what was sent last.
    pieces: of all replies that came.
    run_id: of the server process at the other end, empty when it does not say: a connection has one and the same from
    its begin to its end. met: told of it when the connection is made, before anything is sent on it.
    """

    received_bytes = 0
    pieces = 0
    run_id = ""
    met: Callable[[str], None] = staticmethod(_ignore)
    _reader: asyncio.StreamReader | None
    _writer: asyncio.StreamWriter | None

    def __init__(self, *args: Any, socket_timeout: float | None = None, **options: Any) -> None:
        self._silence_s = socket_timeout
        self._sent_bytes = 0
        self._cap: Cap | None = None
        self._cap_until_s = 0.0
        super().__init__(*args, socket_timeout=None, **options)  # type: ignore[call-arg]

    def set_parser(self, parser_class: Any) -> None:
        """One parser, whichever would be used."""
        super().set_parser(Parser)  # type: ignore[misc]

    def cap(self, cap: Cap | None) -> None:
        """Bound the reply to the next command."""
        self._cap = cap
        self._cap_until_s = 0.0

    def wait_s(self) -> float | None:
        """How long to wait for the next piece of a reply. Raises: TimeoutError when the reply is above its cap."""
        if self._silence_s is None:
            return None
        if not self.received_bytes:  # the server may not even have got all of what the kernel took
            return self._silence_s + min(self._sent_bytes, KERNEL_BYTES_MAX) / BYTES_A_SECOND_MIN
        if self._cap is None:
            return self._silence_s
        now_s = asyncio.get_running_loop().time()
        self._cap_until_s = self._cap_until_s or now_s + self._cap.s
        if self.received_bytes > self._cap.bytes or now_s >= self._cap_until_s:
            raise TimeoutError
        return min(self._silence_s, self._cap_until_s - now_s)

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """As redis-py does, and then ask who is at the other end."""
        try:
            await super().on_connect_check_health(check_health)  # type: ignore[misc]
        except ResponseError as error:
            if meaning_of(error) == "call":  # it is about the connection, and says nothing of the call that comes next
                raise NotAdmitted(words_of(error)) from error
            raise
        await self.send_packed_command(self.pack_command("INFO", "server"), check_health=False)
        try:
            answer = await self.read_response()  # type: ignore[attr-defined]
        except ResponseError as error:
            if meaning_of(error) == "later":
                raise
            answer = b""  # it may not be asked
        self.run_id = _run_id_of(bytes(answer))
        self.met(self.run_id)

    def pack_command(self, *args: Any) -> list[bytes]:
        """A command as bytes. Names of two words, such as CLIENT SETINFO, are two arguments. Raises: DataError."""
        if b" " in (args[0].encode() if isinstance(args[0], str) else args[0]):
            args = (*args[0].split(), *args[1:])
        try:
            return [_pack(args)]
        except TypeError:
            plain = tuple([bytes(each) if isinstance(each, bytearray | memoryview) else each for each in args])
        try:
            return [_pack(plain)]
        except TypeError as error:
            raise DataError(str(error)) from None

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send, and wait only for what the kernel did not take at once. Raises: as redis-py does."""
        reader, writer = self._reader, self._writer
        self.received_bytes = 0
        if not isinstance(command, list):
            command = [command.encode() if isinstance(command, str) else bytes(command)]
        self._sent_bytes = sum(map(len, command))
        if writer is None or writer.is_closing() or reader is None or reader.exception() is not None:
            await super().send_packed_command([], check_health)  # type: ignore[misc]
            writer = self._writer
            assert writer is not None
        # Not writelines: in Python 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 it does not tell the writer that the kernel
        # takes no more, and `drain` returns at once.
        writer.write(command[0] if len(command) == 1 else b"".join(command))
        if writer.transport.get_write_buffer_size():
            await self._drain(writer)

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        """Wait until the kernel has taken all but a little, for as long as it takes something."""
        left_bytes = writer.transport.get_write_buffer_size()
        try:
            while True:
                try:
                    async with asyncio.timeout(self._silence_s):
                        await writer.drain()
                    return
                except TimeoutError:
                    before_bytes, left_bytes = left_bytes, writer.transport.get_write_buffer_size()
                    if left_bytes >= before_bytes:
                        raise RedisTimeoutError("Timeout writing to socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"Error while writing to socket: {error}") from error
        except BaseException:
            await self.disconnect(nowait=True)
            raise

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """As redis-py does, but the socket is closed then, also with commands on their way to a server that hangs."""
        writer = self._writer
        try:
            await super().disconnect(*args, **kwargs)  # type: ignore[misc]
        finally:
            if writer is not None:
                writer.transport.abort()

    def abort(self) -> None:
        """Close the socket under whoever uses the connection."""
        if self._writer is not None:
            self._writer.transport.abort()


def _run_id_of(info: bytes) -> str:
    """Of an answer to INFO."""
    found = next((line for line in info.splitlines() if line.startswith(b"run_id:")), b"")
    return found.partition(b":")[2].decode(errors="replace").strip()


class _Tcp(HiredisMixin, Connection):
    pass


class _Tls(HiredisMixin, SSLConnection):
    pass


class _Unix(HiredisMixin, UnixDomainSocketConnection):
    pass


PACKING: Final[Mapping[Any, Any]] = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}
"""The class of a connection -> the same, packing with hiredis."""
