"""Servers for the whole suite: every test that asks for `server`, `url` or `store` runs once on each engine.

Each engine is started once, in memory. `SCHED_TEST_SERVERS=valkey,redis` restricts them. With pytest-xdist each worker
has servers of its own, and tests that keep every core busy have the machine for themselves.
"""

from __future__ import annotations

import fcntl
import gc
import inspect
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
import redis

from scheduler.store.server import EmbeddedServer, Engine, available_engines, start_embedded
from scheduler.store.store import Store, open_store

pytest.register_assert_rewrite("tests.seeds", "tests.dumps")

# A shell starts background jobs with SIGINT ignored, `nohup` everything with SIGHUP ignored, and children inherit that;
# tests send both to processes. What is handled here, even by nothing, is not ignored in a child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def _chosen_engines() -> list[str]:
    """The engines of this machine, or those of them that the environment names."""
    available = list(available_engines())
    wanted = [name.strip() for name in os.environ.get("SCHED_TEST_SERVERS", "").split(",") if name.strip()]
    missing = sorted(set(wanted) - set(available))
    if missing:
        raise pytest.UsageError(
            f"SCHED_TEST_SERVERS names {', '.join(missing)}: there is {', '.join(available) or 'none'} here"
        )
    return [name for name in available if not wanted or name in wanted]


# What looks at the project from outside, or at the client alone, learns nothing new from a second engine.
_ON_ONE_ENGINE = {"test_readme.py", "test_cli.py", "test_cli_jobs.py", "test_cli_listings.py", "test_cli_pools.py",
                  "test_cli_processes.py", "test_cli_server.py", "test_demo.py", "test_replay.py", "test_connection.py",
                  "test_closing.py", "test_bench.py", "test_bench_v2.py", "test_procfile.py", "test_roles.py",
                  "test_dispatchers.py", "test_managers.py", "test_pool_commands.py", "test_many_waiting.py",
                  "test_call_under_way.py"}  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of those files on every engine but the first."""
    first = _chosen_engines()[0]
    engines = [(item, getattr(item, "callspec", None)) for item in items]
    dropped = [
        item
        for item, call in engines
        if item.path.name in _ON_ONE_ENGINE and call is not None and call.params.get("server", first) != first
    ]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


def pytest_collection_finish() -> None:
    """What is there before the first test is no test's garbage, and looking through it each time would take long."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """A test that leaves a connection, a transport or a task behind fails, and not whichever test runs later."""
    yield
    if inspect.iscoroutinefunction(getattr(item, "function", None)) and (left := _garbage()):
        pytest.fail("left open:\n" + "\n".join(left), pytrace=False)


def _garbage() -> list[str]:
    """What complains while it is collected; only what is part of a cycle waits for that."""
    found: list[str] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda what: found.append(f"{what.object!r}: {what.exc_value!r}")
    try:
        gc.collect()
    finally:
        sys.unraisablehook = before
    return found


# They start so many processes at once that leases of tests beside them would lapse.
_ALONE = {"fault/test_chaos.py", "integration/test_procfile.py"}


@pytest.fixture(scope="session")
def _locks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path] | None:
    """Two files that the workers of a run share; None when there are no workers."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return None
    shared = tmp_path_factory.getbasetemp().parent
    return shared / "door.lock", shared / "room.lock"


@pytest.fixture(autouse=True)
def _room(request: pytest.FixtureRequest, _locks: tuple[Path, Path] | None) -> Iterator[None]:
    """A test of _ALONE waits until no other one runs, and keeps the others waiting meanwhile and while it runs."""
    if _locks is None:
        yield
        return
    with _locks[0].open("ab") as door, _locks[1].open("ab") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if "/".join(request.path.parts[-2:]) in _ALONE else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # a child that was forked may still have it open


@pytest.fixture(scope="session", params=_chosen_engines())
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A running server in memory; its data is that of whatever test was before (see `url`)."""
    with start_embedded(engine=cast(Engine, request.param)) as running:
        yield running


@pytest.fixture(scope="session")
def _flusher(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, protocol=2) as client:
        yield client


@pytest.fixture
def url(server: EmbeddedServer, _flusher: redis.Redis) -> str:
    """The URL of a server without any data; the scripts stay loaded."""
    _flusher.flushall()
    return server.url


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """An opened store on an empty server."""
    async with await open_store(url) as opened:
        yield opened
