"""Servers for the whole suite: every test that asks for `server`, `url`, `opening` or `store` runs once on each engine.

Each engine is started once, in memory. `SCHED_TEST_SERVERS=valkey,redis` restricts them. With `fake` no server is
started: `opening` and `store` are served in this process, and the others are refused. With pytest-xdist each worker has
servers of its own, and tests that keep every core busy have the machine for themselves.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import importlib
import inspect
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import coverage
import hypothesis
import pytest
import redis

from scheduler.server.embedded import EmbeddedServer, Engine, available_engines, start_embedded
from scheduler.store.store import Store, open_store

pytest.register_assert_rewrite("tests.seeds", "tests.dumps")
hypothesis.settings.register_profile("fast", hypothesis.settings(), max_examples=25)

# A shell starts background jobs with SIGINT ignored, `nohup` everything with SIGHUP ignored, and children inherit that;
# tests send both to processes. What is handled here, even by nothing, is not ignored in a child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


FAKE: Final = "fake"


def _chosen_engines() -> list[str]:
    """The engines of this machine, or those of them that the environment names; `fake` only if it is named."""
    available: list[str] = list(available_engines())
    wanted = [name.strip() for name in os.environ.get("SCHED_TEST_SERVERS", "").split(",") if name.strip()]
    if FAKE in wanted:
        available.append(FAKE)
    missing = sorted(set(wanted) - set(available))
    if missing:
        raise pytest.UsageError(
            f"SCHED_TEST_SERVERS names {', '.join(missing)}: there is {', '.join(available) or 'none'} here"
        )
    return [name for name in available if not wanted or name in wanted]


_ENGINES: Final = _chosen_engines()

# What looks at the project from outside, at the client or at roles alone learns little from a second engine, where the
# scripts, the main job and raw clients run as well. SCHED_TEST_SERVERS=redis ./tools/test runs all of it there.
_ON_ONE_ENGINE = {"test_readme.py", "test_cli.py", "test_cli_jobs.py", "test_cli_listings.py", "test_cli_pools.py",
                  "test_cli_processes.py", "test_cli_server.py", "test_demo.py", "test_replay.py", "test_connection.py",
                  "test_closing.py", "test_bench.py", "test_bench_v2.py", "test_procfile.py", "test_roles.py",
                  "test_dispatchers.py", "test_managers.py", "test_pool_commands.py", "test_many_waiting.py",
                  "test_call_under_way.py", "test_lost.py", "test_wrong_types.py", "test_failures.py",
                  "test_recovery.py", "test_slow_links.py", "test_sessions.py", "test_limits_in_mid_run.py",
                  "test_rules_waiting.py", "test_bad_input.py", "test_leaving.py", "test_absurd_ids.py",
                  "test_publication.py", "test_rules_management.py", "test_management.py", "test_dispatcher.py",
                  "test_rules_lives.py", "test_rules_nodes.py", "test_rules_ownership.py", "test_secrets.py",
                  "test_protocol_version.py", "test_location.py", "test_looks_at_streams.py",
                  "test_url.py"}  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of those files on every engine but the first, and skip on `fake` what it lacks."""
    first = _ENGINES[0]
    engines = [(item, getattr(item, "callspec", None)) for item in items]
    dropped = [
        item
        for item, call in engines
        if item.path.name in _ON_ONE_ENGINE and call is not None and call.params.get("engine_name", first) != first
    ]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]
    for item, call in engines:
        mark = item.get_closest_marker("needs_server")
        if mark is not None and call is not None and call.params.get("engine_name") == FAKE:
            item.add_marker(pytest.mark.skip(reason=f"{FAKE}: {mark.args[0]}"))


def pytest_collection_finish() -> None:
    """What is there before the first test is no test's garbage, and looking through it each time would take long."""
    if FAKE in _ENGINES:
        importlib.import_module("tests.fake")
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
    gc.freeze()  # reports and the like, of which there are more after each test
    return found


# They start so many processes at once that leases of tests beside them would lapse.
_ALONE = {"fault/test_chaos.py", "fault/test_shocks.py", "integration/test_procfile.py"}


def _is_alone(item: pytest.Item) -> bool:
    return "/".join(item.path.parts[-2:]) in _ALONE


# Code that is measured takes twice the time, and these run the same lines again and again.
_NOT_MEASURED = {"property", "simulation"}


def _is_measured(item: pytest.Item) -> bool:
    """Whether a test counts for the coverage: one engine is enough, and so are the tests of single things."""
    call = getattr(item, "callspec", None)
    engine = call.params.get("engine_name", _ENGINES[0]) if call is not None else _ENGINES[0]
    return engine == _ENGINES[0] and item.path.parent.name not in _NOT_MEASURED and not _is_alone(item)


class _Coverage:
    """That of this process and of those that it starts, when there is any."""

    def __init__(self) -> None:
        self._measures = True
        self._running = coverage.Coverage.current()

    def measure(self, measures: bool) -> None:
        """From now on, or no longer."""
        if self._running is None or measures == self._measures:
            return
        self._measures = measures
        if measures:
            self._running.start()
        else:
            self._running.stop()
            os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # which `start` sets


_COVERAGE: Final = _Coverage()


@contextlib.contextmanager
def _room(item: pytest.Item) -> Iterator[None]:
    """A test of _ALONE waits until no other one runs, and keeps the others waiting meanwhile and while it runs."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    shared = Path(item.config.option.basetemp).parent  # of all workers of a run
    with (shared / "door.lock").open("ab") as door, (shared / "room.lock").open("ab") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if _is_alone(item) else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # a child that was forked may still have it open


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure where it adds something, and wait for room before the time of the test begins."""
    _COVERAGE.measure(_is_measured(item))
    with _room(item):
        return (yield)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """No test hears less, or more, because of what an earlier one did to the loggers of the process."""
    root, own = logging.getLogger(), logging.getLogger("scheduler")
    handlers, level = list(root.handlers), own.level
    yield
    root.handlers[:] = handlers
    own.setLevel(level)


def _refuse_server(*_: object) -> NoReturn:
    pytest.fail(f"the test needs a server, and SCHED_TEST_SERVERS={FAKE} starts none", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _no_server() -> Iterator[None]:
    """With nothing but `fake`, no test starts a server by itself either."""
    with pytest.MonkeyPatch.context() as patch:
        if _ENGINES == [FAKE]:
            patch.setattr(EmbeddedServer, "start", _refuse_server)
        yield


@pytest.fixture(scope="session", params=_ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    """One of the engines."""
    return str(request.param)


@pytest.fixture(scope="session")
def server(engine_name: str) -> Iterator[EmbeddedServer]:
    """A running server in memory; its data is that of whatever test was before (see `url`)."""
    if engine_name == FAKE:
        _refuse_server()
    with start_embedded(engine=cast(Engine, engine_name)) as running:
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
def opening(engine_name: str, request: pytest.FixtureRequest) -> Callable[..., Coroutine[Any, Any, Store]]:
    """`open_store` for a server without any data; called again, it opens another store on the same one."""
    if engine_name == FAKE:
        from tests import fake

        return functools.partial(open_store, fake.URL, connect=fake.connecting(fake.start_fake()))
    return functools.partial(open_store, request.getfixturevalue("url"))


@pytest.fixture
async def store(opening: Callable[..., Coroutine[Any, Any, Store]]) -> AsyncIterator[Store]:
    """An opened store on an empty server."""
    async with await opening() as opened:
        yield opened
