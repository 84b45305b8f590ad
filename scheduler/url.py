"""URLs of servers: read in one place, refused in words, and shown in one form that holds no secret.

    redis://user:password@host:6379/0    rediss://host:6379/0?ssl_ca_certs=ca.pem    unix:///run/redis.sock?db=0

A refusal shows nothing of the URL but the names of its options: in a URL that is wrong, a part of the password can
stand anywhere. A good one is shown as scheme, host, port and database, or as the path of a socket.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

import msgspec

from scheduler.errors import InvalidInput

FORMS: Final = "redis://host:port/0, rediss://host:port/0 or unix:///path"
ENCODING: Final = "user and password with @ written as %40, / as %2F, # as %23, ? as %3F and : as %3A"
PORT: Final = 6379
SOCKET_PATH_BYTES_MAX: Final = 107  # what a socket address of the kernel has space for

_SCHEMES: Final = ("redis", "rediss", "unix")
_COMMON_OPTIONS: Final = ("db", "username", "password")
_TLS_WORDS: Final[Mapping[str, Mapping[str, str | bool]]] = {
    "ssl_cert_reqs": {word: word for word in ("none", "optional", "required")},
    "ssl_check_hostname": {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False},
    "ssl_min_version": {"tlsv1.2": "TLSv1_2", "tlsv1.3": "TLSv1_3"},
}
"""Options of TLS that are one of a few words, and what each word means."""
_TLS_OPTIONS: Final = (
    "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_ciphers",
    *_TLS_WORDS,
)  # fmt: skip
_DATABASE: Final = re.compile(r"[0-9]{1,9}")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_HOST: Final = re.compile(r"[\w.-]{1,253}")
_OPTION: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


class ServerUrl(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server is, and how to enter it. As text it holds no credentials, whatever prints it.

    whole: the URL as it was given, to hand on and never to show.
    host, port: of a server that is reached over the network; path: of a socket of this machine.
    tls: options of redis-py, by their names.
    """

    whole: str
    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = ""
    tls: Mapping[str, str | bool] = {}

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}" + (f" (db {self.db})" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/{self.db}"

    def __repr__(self) -> str:
        return f"ServerUrl({self})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("server", str(self))]


class _Wrong(Exception):
    """A part that cannot be used."""

    def __init__(self, problem: str, expected: str = FORMS) -> None:
        super().__init__(f"{problem}: expected {expected}")


def parse_url(url: str | ServerUrl, what: str = "server URL") -> ServerUrl:
    """Read a URL; one that was read before is returned as it is.

    Args: url; what, names it in the message.
    Raises: InvalidInput, saying what is wrong and what was expected.
    """
    if isinstance(url, ServerUrl):
        return url
    try:
        return _parse(url)
    except _Wrong as error:
        raise InvalidInput(f"{what}: {error}") from None


def _parse(url: object) -> ServerUrl:
    if not isinstance(url, str):
        raise _Wrong(f"it is of type {type(url).__name__}", f"text, {FORMS}")
    whole = url.strip()
    scheme, rest = _split_scheme(whole)
    authority, path, query = _split_rest(rest, is_socket=scheme == "unix")
    credentials, at, address = authority.rpartition("@")
    username, _, password = credentials.partition(":")
    host, port, socket, db = "", 0, "", None
    if scheme == "unix":
        socket = _socket_path(address, path)
    else:
        host, port = _host_and_port(address)
        db = _database(path.removeprefix("/").removesuffix("/")) if path.strip("/") else None
    # Only now: where something before is wrong, what looks like the name of an option may be of a password.
    options = _options(query, scheme)
    if "db" in options:
        if db not in (None, _database(options["db"])):
            raise _Wrong("it names two databases", "one, such as redis://host:6379/0")
        db = _database(options["db"])
    if at and ("username" in options or "password" in options):
        raise _Wrong("user or password stand in it twice", "them before the host, or as options")
    return ServerUrl(
        whole=whole,
        scheme=scheme,
        host=host,
        port=port,
        path=socket,
        db=db or 0,
        username=options.get("username") or _decoded(username, "user"),
        password=options.get("password") or _decoded(password, "password"),
        tls={name: _tls_value(name, value) for name, value in options.items() if name in _TLS_OPTIONS},
    )


def _split_scheme(whole: str) -> tuple[str, str]:
    """(scheme, what follows `://`)."""
    if not whole:
        raise _Wrong("it is empty")
    if not whole.isprintable():
        raise _Wrong("it has a character that cannot be printed")
    scheme, separator, rest = whole.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise _Wrong("it has no scheme")
    if scheme not in _SCHEMES:
        near = difflib.get_close_matches(scheme[:20], _SCHEMES, n=1)
        raise _Wrong("its scheme is not known" + (f", the nearest is {near[0]}" if near else ""))
    return scheme, rest


def _split_rest(rest: str, *, is_socket: bool) -> tuple[str, str, str]:
    """(authority, path, query). A second @, one behind the authority and a # show a password that was not encoded."""
    begin = re.search(r"[/?#]|$", rest)
    end = begin.start() if begin else len(rest)
    authority, behind = rest[:end], rest[end:]
    is_path_alone = is_socket and (not authority or authority.endswith("@"))
    if authority.count("@") > 1 or "#" in behind or ("@" in behind and not is_path_alone):
        raise _Wrong("it has an @ or # where none can be, as if a password was not percent-encoded", ENCODING)
    path, _, query = behind.partition("?")
    return authority, path, query


def _options(query: str, scheme: str) -> dict[str, str]:
    """What stands behind the question mark, by name; an option without a value counts as not given."""
    allowed = (*_COMMON_OPTIONS, *(_TLS_OPTIONS if scheme == "rediss" else ()))
    options: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except (UnicodeDecodeError, ValueError):
        raise _Wrong("an option is no UTF-8 text") from None
    for name, value in pairs:
        if name in _TLS_OPTIONS and name not in allowed:
            raise _Wrong(f"its option {name} is for TLS", "it with rediss:// only")
        if name not in allowed:
            # What follows a password may be the rest of it.
            is_name = _OPTION.fullmatch(name) and value and not options.keys() & {"password", "ssl_password"}
            shown = f"its option {name}" if is_name else "one of its options"
            near = difflib.get_close_matches(name[:40], allowed, n=1, cutoff=0.0)[0]
            raise _Wrong(f"{shown} is not known, the nearest is {near}", f"one of {', '.join(allowed)}")
        if name in options:
            raise _Wrong(f"its option {name} stands in it twice", "it once")
        if value:
            options[name] = _printable(value, f"option {name}")
    return options


def _tls_value(name: str, value: str) -> str | bool:
    words = _TLS_WORDS.get(name)
    if words is None:
        return value
    if value.lower() not in words:
        expected = "TLSv1.2 or TLSv1.3" if name == "ssl_min_version" else ", ".join(words)
        raise _Wrong(f"its option {name} has a value that is not known", expected)
    return words[value.lower()]


def _host_and_port(address: str) -> tuple[str, int]:
    if address.startswith("["):
        host, bracket, port = address[1:].partition("]")
        host = _decoded(host, "host")
        if not bracket or not _is_ipv6(host) or not (port == "" or port.startswith(":")):
            raise _Wrong("its host is no IPv6 address in brackets", "one such as redis://[::1]:6379/0")
        return host, _port(port[1:])
    host, _, port = address.partition(":")
    if _is_ipv6(address):
        raise _Wrong("its host is an IPv6 address without brackets", "one such as redis://[::1]:6379/0")
    return _host(_decoded(host, "host")), _port(port)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return host.isprintable()


def _host(host: str) -> str:
    if not host:
        return "localhost"
    try:
        host.encode("idna")
    except UnicodeError:  # a part of the name is empty, or longer than a name can be
        raise _Wrong("its host is no name or address") from None
    if not _HOST.fullmatch(host):
        raise _Wrong("its host is no name or address")
    return host


def _port(text: str) -> int:
    if not text:
        return PORT
    if not _PORT.fullmatch(text) or not 0 < int(text) < 65_536:
        raise _Wrong("its port is no number from 1 to 65535, as if a password was not percent-encoded", ENCODING)
    return int(text)


def _database(text: str) -> int:
    if not _DATABASE.fullmatch(text):
        raise _Wrong("its database is no number", "one of the server's numbers, such as redis://host:6379/0")
    return int(text)


def _socket_path(address: str, path: str) -> str:
    path = _decoded(path, "path")
    if address or not path.strip("/"):
        raise _Wrong("it names no socket", "an absolute path after two slashes, unix:///path")
    if len(path.encode()) > SOCKET_PATH_BYTES_MAX:
        raise _Wrong("its path is too long for a socket", f"at most {SOCKET_PATH_BYTES_MAX} bytes")
    return path


def _decoded(text: str, part: str) -> str:
    try:
        return _printable(unquote(text, errors="strict"), part)
    except UnicodeDecodeError:
        raise _Wrong(f"its {part} is no UTF-8 text") from None


def _printable(text: str, part: str) -> str:
    """Refused is what a terminal could obey and no server, file or host is called. A password may hold anything."""
    if part not in ("password", "option password", "option ssl_ca_data") and not text.isprintable():
        raise _Wrong(f"its {part} has a character that cannot be printed")
    return text
