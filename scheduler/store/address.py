"""What redis-py is told of a server URL. It never sees the URL: its own parser passes over what it does not know, and
shows in its errors what it cannot read.
"""

from __future__ import annotations

import ssl
from typing import Any

import redis
from redis.asyncio.connection import Connection, RedisSSLContext, SSLConnection, UnixDomainSocketConnection

from scheduler.errors import InvalidInput
from scheduler.url import ServerUrl


def connection_class(url: ServerUrl) -> type[Any]:
    """Of redis-py, for an event loop."""
    if url.path:
        return UnixDomainSocketConnection
    return SSLConnection if url.scheme == "rediss" else Connection


def blocking_connection_class(url: ServerUrl) -> type[Any]:
    """Of redis-py, without an event loop."""
    if url.path:
        return redis.UnixDomainSocketConnection
    return redis.SSLConnection if url.scheme == "rediss" else redis.Connection


def connection_options(url: ServerUrl) -> dict[str, Any]:
    """Arguments of those classes."""
    options: dict[str, Any] = {"path": url.path} if url.path else {"host": url.host, "port": url.port}
    options["db"] = url.db
    if url.username or url.password:
        options |= {"username": url.username or None, "password": url.password or None}
    return options | _tls_options(url)


def _tls_options(url: ServerUrl) -> dict[str, Any]:
    options: dict[str, Any] = dict(url.tls)
    if "ssl_min_version" in options:
        options["ssl_min_version"] = ssl.TLSVersion[options["ssl_min_version"]]
    if "ssl_certfile" in options or "ssl_keyfile" in options:
        options.setdefault("ssl_password", "")  # without one, OpenSSL would ask the terminal, and wait
    return options


def tls_context(url: ServerUrl) -> RedisSSLContext | None:
    """What all connections to the server share of TLS, None without TLS: to read it takes a tenth of a second or more.

    Raises: InvalidInput when a file cannot be used, or a connection would fail for ever. No value is shown.
    """
    if url.scheme != "rediss":
        return None
    options = _tls_options(url)
    context = SSLConnection(**options).ssl_context
    try:
        context.get()
    except (OSError, ValueError, TypeError) as error:  # an SSLError is an OSError
        named = ", ".join(sorted(options.keys() - {"ssl_password"}))
        why = getattr(error, "reason", None) or getattr(error, "strerror", None)  # of OpenSSL, and of the system
        raise InvalidInput(
            f"server URL: TLS cannot be set up with {named}: {why or type(error).__name__}: expected files that can be "
            "read, in PEM, with the key of the certificate and its password"
        ) from None
    return context
