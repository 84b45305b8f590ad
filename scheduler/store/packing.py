"""Connections that put commands on the wire with hiredis: a script call has a thousand arguments and more.

redis-py parses answers with hiredis, but its asyncio connections still join commands in Python, argument by argument,
which was half of a dispatcher's time.
"""

from __future__ import annotations

from typing import Any, Final

import hiredis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import DataError

_pack: Final[Any] = hiredis.pack_command


class _Packing:
    """Replaces the packer of a connection; the mixin stands before the connection's class."""

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


class _Tcp(_Packing, Connection):
    pass


class _Tls(_Packing, SSLConnection):
    pass


class _Unix(_Packing, UnixDomainSocketConnection):
    pass


PACKING: Final[dict[Any, Any]] = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}
"""The class of a connection -> the same, packing with hiredis."""
