"""Looks with a connection of its own why another one ended without an answer.

A server that speaks TLS, and we do not, hangs up; one without TLS waits for the end of what it takes for a command. And
one that takes no more clients says so and hangs up, which is lost to who is about to write.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

from redis._parsers.base import BaseParser
from redis.asyncio import SSLConnection

ANSWER_MS_MAX: Final = 400
_ANSWERS: Final = (b"+", b"-")
_STRANGERS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")


async def misfit_of(pool: Any) -> str:
    """What is the matter, for people; empty when nothing is known to be.

    Args: pool, of the connections that get no answer.
    """
    host, port = pool.connection_kwargs.get("host"), pool.connection_kwargs.get("port")
    if host is None:  # the path of a socket
        return ""
    try:
        async with asyncio.timeout(ANSWER_MS_MAX / 1000):
            if issubclass(pool.connection_class, SSLConnection):
                return await _misfit_of_tls(host, port, pool.make_connection())
            return await _misfit_of_plain(host, port)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return ""


async def refusal_of(pool: Any) -> Exception | None:
    """What the server says to whoever connects, before it hangs up; None when it says nothing.

    Args: pool, of a connection that was closed.
    """
    kwargs = pool.connection_kwargs
    try:
        async with asyncio.timeout(ANSWER_MS_MAX / 1000):
            if "path" in kwargs:
                reader, writer = await asyncio.open_unix_connection(kwargs["path"])
            else:
                reader, writer = await asyncio.open_connection(kwargs["host"], kwargs["port"])
            try:
                line = await reader.readline()
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, ValueError):
        return None
    if not line.startswith(b"-"):
        return None
    said: Exception = BaseParser.parse_error(line[1:].decode(errors="replace").strip())  # type: ignore[no-untyped-call]
    return said


async def _misfit_of_plain(host: str, port: int) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with _opened(host, port, context):
            pass
    except ssl.SSLError as error:
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or error.reason in _STRANGERS:
            return ""
    return "it speaks TLS: expected rediss:// in place of redis://"


async def _misfit_of_tls(host: str, port: int, connection: Any) -> str:
    async with _opened(host, port) as (reader, writer):
        writer.write(b"PING\r\n")
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(ANSWER_MS_MAX / 2000):
                if (await reader.read(1)).startswith(_ANSWERS):
                    return "it speaks without TLS: expected redis:// in place of rediss://"
    try:
        async with _opened(host, port, connection.ssl_context.get()) as (reader, _):
            await reader.read(1)  # one who wants a certificate of ours says so only after the handshake
    except ssl.SSLError as error:
        return f"TLS: {error.reason or error}"
    return ""


@contextlib.asynccontextmanager
async def _opened(
    host: str, port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
