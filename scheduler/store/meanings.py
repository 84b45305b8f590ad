"""What each error of a server means: the one table of it, by the server's own word or by the class that redis-py makes.

silent: there is no answer. later: it answers that it cannot do this now, and will. unfit: it answers what somebody has
to mend, in its configuration or in ours. denied: user and password are wrong. call: the server is in order, and the
call is at fault.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

Meaning = Literal["silent", "later", "unfit", "denied", "call"]

WORDS_LENGTH_MAX: Final = 300


class Row(msgspec.Struct, frozen=True):
    """One error. begins: what it begins with on the wire; made: the class that redis-py makes of it, empty when it
    stays a ResponseError. hint: what it means for people who do not know the word.
    """

    begins: str
    meaning: Meaning
    made: str = ""
    hint: str = ""


TABLE: Final = (
    Row("LOADING", "later", "BusyLoadingError"),
    Row("BUSY", "later"),
    Row("MISCONF", "later"),
    Row("OOM", "later", "OutOfMemoryError", "its memory is full"),
    Row("NOREPLICAS", "later"),
    Row("MOVED", "later", "MovedError"),
    Row("ASK", "later", "AskError"),
    Row("TRYAGAIN", "later", "TryAgainError"),
    Row("CLUSTERDOWN", "later", "ClusterDownError"),
    Row("UNBLOCKED", "later"),
    Row("NOSCRIPT", "later", "NoScriptError"),
    Row("ERR max number of clients", "later", "ConnectionError"),
    Row("ERR problem with LDAP service", "later", "ExternalAuthProviderError"),
    Row("READONLY", "unfit", "ReadOnlyError", "it is a replica"),
    Row("MASTERDOWN", "unfit", "MasterDownError"),
    Row("NOPERM", "unfit", "NoPermissionError"),
    Row("ERR ACL failure in script", "unfit"),
    Row("ERR The user executing the script", "unfit"),  # Redis 7.0 says so what others call an ACL failure
    Row("NOAUTH", "unfit", "AuthenticationError", "the URL has no password"),
    Row("DENIED", "unfit"),
    Row("CROSSSLOT", "unfit", "ClusterCrossSlotError"),
    Row("ERR AUTH <password> called without any password", "unfit", "AuthenticationError"),
    Row("ERR Client sent AUTH, but no password is set", "unfit", "AuthenticationError"),
    Row("ERR wrong number of arguments for 'auth' command", "unfit", "AuthenticationWrongNumberOfArgsError"),
    Row("WRONGPASS", "denied", "AuthenticationError"),
    Row("ERR invalid password", "denied", "AuthenticationError"),
    Row("EXECABORT", "call", "ExecAbortError"),
)
"""The errors of servers. Whatever is not here is an error of the call, or no error of a server at all."""

CLASSES: Final[dict[str, Meaning]] = {
    "ConnectionError": "silent",
    "TimeoutError": "silent",
    "MaxConnectionsError": "later",
    "AuthenticationError": "denied",
    "AuthorizationError": "unfit",
    "InvalidResponse": "unfit",
    "NotAdmitted": "unfit",
    "SlotNotCoveredError": "later",
}
"""What a class of redis-py, or of ours, means when no row tells."""


class NotAdmitted(RedisConnectionError):
    """The server refused what a connection begins with, such as its database: before any call of ours."""


def meaning_of(error: BaseException) -> Meaning:
    """What an error means."""
    row = _row_of(error)
    if row is not None:
        return row.meaning
    if any(_is_for_people(each) for each in _chain_of(error)):
        return "unfit"
    for each in type(error).__mro__:
        if each.__name__ in CLASSES and issubclass(each, RedisError):
            return CLASSES[each.__name__]
    return "silent" if isinstance(error, OSError) else "call"


def is_temporary(error: BaseException) -> bool:
    """Whether a failure says nothing about the call: the same call can succeed later."""
    return meaning_of(error) not in ("call", "denied")


def was_closed(error: BaseException) -> bool:
    """Whether a connection ended, as it does when the server takes nobody more."""
    ended = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)
    return any(isinstance(each, ended) or "Connection closed" in str(each) for each in _chain_of(error))


def words_of(error: BaseException) -> str:
    """An error in the server's own words, on one line, with the code that redis-py takes off."""
    text = str(error)
    code = getattr(error, "status_code", None)
    if not code and isinstance(error, RedisError):
        code = next((row.begins for row in TABLE if row.made == type(error).__name__ and " " not in row.begins), None)
        code = None if type(error).__name__ in CLASSES else code
    if code and code != "ERR" and not text.startswith(f"{code} "):
        text = f"{code} {text}"
    if not text and isinstance(error, TimeoutError | RedisTimeoutError):
        text = "nothing came in time"
    line = " ".join(text.split()).removesuffix(".") or type(error).__name__
    line = line if len(line) <= WORDS_LENGTH_MAX else f"{line[:WORDS_LENGTH_MAX]}..."
    row = _row_of(error)
    return f"{line} ({row.hint})" if row is not None and row.hint else line


def unfit_of(info: Mapping[str, Any]) -> str:
    """Why a server cannot be used, from what it says of itself; empty when it can."""
    if info.get("role") == "slave":
        of = f"{info.get('master_host')}:{info.get('master_port')}"
        return f"it is a replica (role:slave, of {of}): expected the server that takes writes"
    mode = str(info.get("redis_mode") or info.get("server_mode") or "standalone")
    if mode != "standalone" or int(info.get("cluster_enabled", 0)):
        return f"it runs in {'cluster' if mode == 'standalone' else mode} mode: expected a server without that"
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        return f"maxmemory-policy = {policy}: expected noeviction, or jobs would be evicted"
    name, floor = ("Valkey", 8) if "valkey_version" in info else ("Redis", 7)
    version = str(info.get(f"{name.lower()}_version", "0"))
    if int(version.split(".")[0]) < floor:
        return f"{name} {version}: expected Redis 7.0, Valkey 8 or later"
    return ""


def code_of(error: BaseException) -> str:
    """By what errors are told apart: what is silent is all one, other ones have a word of their own."""
    meaning = meaning_of(error)
    if meaning == "silent":
        return meaning
    row = _row_of(error)
    return row.begins if row is not None else words_of(error)


def _row_of(error: BaseException) -> Row | None:
    """The row of an error; the longest one that fits."""
    if not isinstance(error, RedisError):
        return None
    text, code, made = str(error), getattr(error, "status_code", None) or "", type(error).__name__
    fitting = [
        row
        for row in TABLE
        if _begins(text, row.begins)
        or (code and _begins(f"{code} {text}", row.begins))
        or _begins(f"ERR {text}", row.begins)
    ]
    if fitting:
        return max(fitting, key=lambda row: len(row.begins))
    return next((row for row in TABLE if row.made == made and made not in CLASSES), None)


def _begins(text: str, begins: str) -> bool:
    """Whether a text begins with a word, or with words."""
    return text.startswith(begins) if " " in begins else text == begins or text.startswith(f"{begins} ")


def _chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what is under it: what the socket or TLS said of which redis-py made its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_for_people(error: BaseException) -> bool:
    """Whether it is about certificates, or rights: waiting does not help. TLS that is cut off is an end like others."""
    if isinstance(error, ssl.SSLError):
        return not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
    return isinstance(error, NotAdmitted | PermissionError)
