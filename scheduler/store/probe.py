"""Whether the other end of a URL speaks TLS although the URL does not, or the reverse.

Neither says so: a server without TLS waits for the end of what it takes for a command, and one with TLS hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

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
                return await _misfit_of_tls(host, port, pool.connection_class(**pool.connection_kwargs))
            return await _misfit_of_plain(host, port)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return ""


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
