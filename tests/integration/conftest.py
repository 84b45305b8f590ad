"""A server and a place for commands that run in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from scheduler.console import common, process
from scheduler.runtime import dispatcher
from scheduler.server.embedded import EmbeddedServer, start_embedded
from tests.integration.commands import on_server


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedServer]:
    """One server is enough: the commands run no script that is not tested on all of them."""
    with start_embedded() as server:
        yield server


@pytest.fixture
def empty_url(engine: EmbeddedServer) -> str:
    """The URL of a server without any data."""
    with redis.Redis.from_url(engine.url) as client:
        client.flushall()
    return engine.url


@pytest.fixture
def ready_url(empty_url: str) -> str:
    """The URL of a server where a manager has written the layout."""
    on_server(empty_url, lambda store: store.control.write_layout())
    return empty_url


@pytest.fixture
def frequent_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatchers of this process look ten times a second at jobs that no event helps."""
    monkeypatch.setattr(dispatcher, "SWEEP_MS", 100)


@pytest.fixture
def own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty current directory, no server in the environment, and little patience."""
    for name in ("SCHED_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(common, "PATIENCE_MS", 50)
    monkeypatch.setattr(common, "LAYOUT_WAIT_MS", 0)
    monkeypatch.setattr(process, "START_MS_MAX", 50)
