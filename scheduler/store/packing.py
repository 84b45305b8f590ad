"""Connections that put commands on the wire with hiredis and at once, and leave nothing behind when they are closed.

A script call has a thousand arguments and more. redis-py parses answers with hiredis, but its asyncio connections still
join commands in Python, argument by argument, which was half of a dispatcher's time. And they send in a task of its
own, so that a timeout can end it: two more turns of the event loop a command, for what the kernel nearly always takes
at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import hiredis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import DataError, ResponseError

_pack: Final[Any] = hiredis.pack_command


def _ignore(_run_id: str) -> None:
    """Of the server at the other end, for those who do not ask."""


class HiredisMixin:
    """Replaces packer, sending and the end of a connection; it stands before the connection's class.

    Attributes: run_id, of the server process at the other end, empty when it does not say: a connection has one and the
    same from its begin to its end; met, told of it when the connection is made, before anything is sent on it.
    """

    run_id = ""
    met: Callable[[str], None] = staticmethod(_ignore)
    _reader: asyncio.StreamReader | None
    _writer: asyncio.StreamWriter | None

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        """As redis-py does, and then ask who is at the other end."""
        await super().on_connect_check_health(check_health)  # type: ignore[misc]
        await self.send_packed_command(self.pack_command("INFO", "server"), check_health=False)
        try:
            answer = await self.read_response()  # type: ignore[attr-defined]
        except ResponseError:
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
        is_open = writer is not None and not writer.is_closing() and reader is not None and reader.exception() is None
        if writer is not None and is_open and isinstance(command, list):
            writer.writelines(command)
            if not writer.transport.get_write_buffer_size():
                return
            command = []
        await super().send_packed_command(command, check_health)  # type: ignore[misc]

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
