"""Short questions to a server from blocking code, for the start of a process and its end: PING and INFO only."""

from __future__ import annotations

from typing import Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from scheduler.errors import InvalidInput
from scheduler.store.address import blocking_connection_class, connection_options
from scheduler.store.meanings import meaning_of
from scheduler.url import ServerUrl, parse_url

ANSWER_MAX_S: Final = 1.0


def ping(url: str | ServerUrl, timeout_s: float = ANSWER_MAX_S) -> bool:
    """Whether the server answers PING within `timeout_s`; a refusal (loading, password) is no answer."""
    try:
        with _client(url, timeout_s) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError, InvalidInput):
        return False


def answers(url: str | ServerUrl, timeout_s: float = ANSWER_MAX_S) -> bool:
    """Whether the server says anything within `timeout_s`, and be it that it loads, is busy or wants a password."""
    try:
        with _client(url, timeout_s) as client:
            client.ping()
    except redis.RedisError as error:
        return meaning_of(error) != "silent"
    except (OSError, InvalidInput):
        return False
    return True


def count_clients(url: str | ServerUrl, timeout_s: float = ANSWER_MAX_S) -> int:
    """How many others are connected to the server; 0 when it does not answer within `timeout_s`."""
    try:
        with _client(url, timeout_s) as client:
            return int(client.info("clients")["connected_clients"]) - 1
    except (redis.RedisError, OSError):
        return 0


def _client(url: str | ServerUrl, timeout_s: float) -> redis.Redis:
    server = parse_url(url)
    pool = redis.ConnectionPool(
        connection_class=blocking_connection_class(server),
        **connection_options(server),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.Redis.from_pool(pool)
