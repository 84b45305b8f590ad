"""What each error means: the table against the names of the client library, and the words for people."""

from __future__ import annotations

import inspect
import ssl
from typing import Final

import pytest
import redis.exceptions
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scheduler.store.meanings import CLASSES, TABLE, Meaning, is_temporary, meaning_of, unfit_of, words_of

ON_THE_WIRE: Final[dict[str, Meaning]] = {
    "LOADING Redis is loading the dataset in memory": "later",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": "later",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": "later",
    "OOM command not allowed when used memory > 'maxmemory'.": "later",
    "NOREPLICAS Not enough good replicas to write.": "later",
    "MOVED 3999 127.0.0.1:6381": "later",
    "ASK 3999 127.0.0.1:6381": "later",
    "TRYAGAIN Multiple keys request during rehashing of slot": "later",
    "CLUSTERDOWN The cluster is down": "later",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)": "later",
    "NOSCRIPT No matching script. Please use EVAL.": "later",
    "ERR max number of clients reached": "later",
    "ERR max number of clients + cluster connections reached": "later",
    "READONLY You can't write against a read only replica. script: 5ca1, on @user_script:30.": "unfit",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "unfit",
    "NOPERM this user has no permissions to run the 'evalsha' command": "unfit",
    "ERR ACL failure in script: User u has no permissions to run the 'set' command": "unfit",
    "ERR The user executing the script can't run this command or subcommand script: 5ca1, on @user_script:22.": "unfit",
    "ERR The user executing the script can't access at least one of the keys mentioned in the command": "unfit",
    "NOAUTH Authentication required.": "unfit",
    "DENIED Redis is running in protected mode because protected mode is enabled": "unfit",
    "CROSSSLOT Keys in request don't hash to the same slot": "unfit",
    "ERR AUTH <password> called without any password configured for the default user. Are you sure your "
    "configuration is correct?": "unfit",
    "WRONGPASS invalid username-password pair or user is disabled.": "denied",
    "ERR invalid password": "denied",
    "EXECABORT Transaction discarded because of previous errors.": "call",
    "WRONGTYPE Operation against a key holding the wrong kind of value": "call",
    "ERR user_script:30: attempt to index a nil value script: 5ca1, on @user_script:30.": "call",
    "ERR busy with something of the script's own": "call",
}
NOT_OF_A_SERVER: Final = {
    # of the client's other features, or of programs that use it otherwise than we do
    "PubSubError", "WatchError", "DataError", "ModuleError", "NoSuchFieldsetError", "LockError", "LockNotOwnedError",
    "RedisClusterException", "ClusterError", "CrossSlotTransactionError", "InvalidPipelineStack", "IncorrectPolicyType",
    "ChildDeadlockedError", "RedisError", "ResponseError",
}  # fmt: skip


def said(line: str) -> RedisError:
    """What redis-py makes of an error of a server."""
    error: RedisError = BaseParser.parse_error(line)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize(("line", "meaning"), ON_THE_WIRE.items(), ids=lambda value: value.partition(" ")[0])
def test_what_an_error_means(line: str, meaning: Meaning) -> None:
    """RULES 29: as redis-py makes it, and as a plain error with the same text."""
    assert meaning_of(said(line)) == meaning
    assert meaning_of(redis.exceptions.ResponseError(line)) == meaning


@pytest.mark.parametrize("line", [line for line in ON_THE_WIRE if not line.startswith("ERR ")])
def test_an_error_is_told_in_the_servers_words(line: str) -> None:
    """With the code that redis-py takes off, and for some with what that means."""
    words, _, hint = words_of(said(line)).partition(line.removesuffix("."))
    assert (words, hint[:2]) in [("", ""), ("", " (")]


def test_full_memory_is_called_so() -> None:
    """In words that everybody knows."""
    assert words_of(said("OOM command not allowed.")) == "OOM command not allowed (its memory is full)"


def test_every_class_of_the_client_library_has_a_meaning() -> None:
    """A new version of it that knows another error is noticed here."""
    theirs = {
        name
        for name, each in vars(redis.exceptions).items()
        if inspect.isclass(each) and issubclass(each, Exception) and each.__module__ == "redis.exceptions"
    }
    known = {row.made for row in TABLE if row.made} | set(CLASSES) | NOT_OF_A_SERVER
    assert theirs - known == set()
    assert known - theirs == {"NotAdmitted"}


def test_every_code_of_the_client_library_is_in_the_table() -> None:
    """And it makes the class of it that the table says."""
    made = {row.begins: row.made for row in TABLE}
    for code, of_code in BaseParser.EXCEPTION_CLASSES.items():
        if isinstance(of_code, dict):
            assert code == "ERR"
        else:
            assert made[code] == getattr(of_code, "__name__", "")


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (RedisConnectionError("Connection refused"), "silent"),
        (RedisTimeoutError("Timeout reading"), "silent"),
        (ConnectionResetError(), "silent"),
        (FileNotFoundError("no socket"), "silent"),
        (PermissionError("the socket is somebody else's"), "unfit"),
        (ssl.SSLCertVerificationError("self-signed certificate"), "unfit"),
        (ssl.SSLEOFError("cut off"), "silent"),
        (redis.exceptions.InvalidResponse("<!DOCTYPE"), "unfit"),
        (redis.exceptions.AuthenticationError("Invalid Username or Password"), "denied"),
        (ValueError("a defect"), "call"),
    ],
    ids=repr,
)
def test_what_is_no_error_of_a_server_means(error: Exception, meaning: Meaning) -> None:
    """Also under what redis-py makes of it."""
    assert meaning_of(error) == meaning
    if isinstance(error, OSError):
        outer = RedisConnectionError("Error 1 connecting")
        outer.__cause__ = error
        assert meaning_of(outer) == meaning


def test_only_what_can_succeed_later_is_temporary() -> None:
    """What a reader need not be told with a traceback."""
    assert is_temporary(said("READONLY no"))
    assert not is_temporary(said("WRONGPASS no"))
    assert not is_temporary(said("WRONGTYPE no"))


def test_long_words_are_cut_and_stay_one_line() -> None:
    """A server in protected mode explains itself in a thousand letters."""
    words = words_of(said("DENIED one\ntwo " + 1_000 * "x"))
    assert words.startswith("DENIED one two xxx")
    assert (len(words), words[-3:]) == (303, "...")


@pytest.mark.parametrize(
    ("info", "why"),
    [
        ({"role": "master", "redis_version": "7.0.15"}, ""),
        ({"role": "master", "valkey_version": "8.0.1", "server_mode": "standalone"}, ""),
        ({"role": "slave", "master_host": "h", "master_port": 1}, "it is a replica (role:slave, of h:1)"),
        ({"redis_version": "7.0.15", "redis_mode": "cluster"}, "cluster mode"),
        ({"redis_version": "7.0.15", "cluster_enabled": 1}, "cluster mode"),
        ({"redis_version": "7.0.15", "redis_mode": "sentinel"}, "sentinel mode"),
        ({"redis_version": "7.0.15", "maxmemory_policy": "allkeys-lru"}, "maxmemory-policy = allkeys-lru"),
        ({"redis_version": "6.2.1"}, "Redis 6.2.1"),
    ],
)
def test_which_servers_cannot_be_used(info: dict[str, object], why: str) -> None:
    """From what they say of themselves."""
    assert unfit_of(info).startswith(why) or why in unfit_of(info)
    assert bool(unfit_of(info)) == bool(why)
