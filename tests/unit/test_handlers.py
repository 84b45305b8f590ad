"""What a handler is given, what becomes of what it gives back, and threads that nobody waits for any more."""

from __future__ import annotations

import asyncio
import functools
import re
import threading
from collections.abc import AsyncIterator
from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.config import DEFAULTS
from scheduler.errors import InvalidInput, Reject, Retry
from scheduler.node.handlers import Job, attempt, check_handler, is_async
from scheduler.node.node import Node
from scheduler.node.retry import Ending
from scheduler.protocol.record_fields import Policy, Reservation
from scheduler.protocol.results import BYTES, JSON, TEXT, decode_result, encode_result
from scheduler.threads import Threads

FIELDS = {b"job": b'{"session_id":"s1"}', b"job_id": b"j1", b"reservation": b"7 1-a 5000 3/1-1 1 1 1 4000"}
SIGNAL_S = 10  # how long a thread waits for what a test is about to do

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def a_job(**fields: bytes) -> Job:
    """A job as a node read it."""
    return Job("n1", "1000-0", FIELDS | {name.encode(): value for name, value in fields.items()})


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    """Threads for plain functions, one at a time."""
    threads = Threads(1, "test")
    yield threads
    threads.shutdown()


def tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event from a thread."""
    loop.call_soon_threadsafe(event.set)


async def judged(handler: Any, threads: Threads, job: Job | None = None) -> Ending:
    """What becomes of one attempt; delays are drawn alike each time."""
    return await attempt(handler, job or a_job(), threads, DEFAULTS, Random(1))


# ---- what it is given --------------------------------------------------------------------------------------


def test_a_job_as_its_handler_sees_it() -> None:
    """The document, the payload as it was sent, and what the reservation adds."""
    document = (
        b'{"session_id":"s1","job_id":"other","src_lang":"en","tgt_lang":"zh","tenant_id":"t1","routing_key":"r1",'
        b'"features":["gpu"],"priority":5,"deadline_ms":9000,"preferred_node":"n7"}'
    )
    job = a_job(
        job=document,
        payload=b"\x00\xff",
        reservation=b"7 1-a 5000 3/900-0 2 3 900 4000 more",
        reply_to=b"back",
        policy=b"fast 9000 3 5 70000 10 20 4 more",
        decision=b"full n2 4/4",
    )
    names = [name for name in dir(job) if not name.startswith("_") and name != "stopped"]
    assert {name: getattr(job, name) for name in names} == {
        "attempt": 2,
        "deadline_ms": 9_000,
        "decision": "full n2 4/4",
        "entry": "3/900-0",
        "features": ("gpu",),
        "inbox_id": "1000-0",
        "job_id": "j1",
        "key": ("j1", 7),
        "life": 3,
        "node": "n1",
        "partition": 3,
        "payload": b"\x00\xff",
        "policy": Policy("fast", 9000, 3, 5, 70_000, 10, 20, 4),
        "preferred_node": "n7",
        "priority": 5,
        "reply_to": "back",
        "reservation": Reservation(7, "1-a", 5_000, "3/900-0", 2, 3, 900, 4_000),
        "routing_key": "r1",
        "session_id": "s1",
        "src_lang": "en",
        "submitted_ms": 900,
        "tenant_id": "t1",
        "tgt_lang": "zh",
        "token": 7,
    }
    assert not job.stopped.is_set()
    assert repr(job) == "Job('j1', session='s1', attempt=2, token=7)"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({b"job": b"noise"}, InvalidInput),
        ({b"reservation": b"7 1-a 5000 3/1-1 1 1 1"}, ValueError),
        ({b"reservation": b"x 1-a 5000 3/1-1 1 1 1 4000"}, ValueError),
        ({b"reservation": b"7 1-a 5000 - 1 1 1 4000"}, ValueError),
        ({b"policy": b"a x"}, ValueError),
    ],
)
def test_what_is_no_assignment_raises(fields: dict[bytes, bytes], error: type[Exception]) -> None:
    """The node logs it and goes on."""
    with pytest.raises(error):
        Job("n1", "1000-0", FIELDS | fields)


# ---- what it gives back ------------------------------------------------------------------------------------


@given(plain | st.binary())
def test_a_result_is_read_as_it_was_returned(value: Any) -> None:
    """Bytes, text, nothing, and everything that JSON can hold."""
    assert decode_result(*encode_result(value)) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ("", b"")),
        (b"x", (BYTES, b"x")),
        (b"", (BYTES, b"")),
        (bytearray(b"x"), (BYTES, b"x")),
        (memoryview(b"x"), (BYTES, b"x")),
        ("é", (TEXT, b"\xc3\xa9")),
        ("", (TEXT, b"")),
        ({"a": (1, None)}, (JSON, b'{"a":[1,null]}')),
        (0, (JSON, b"0")),
        (False, (JSON, b"false")),
    ],
)
def test_the_stored_form_of_a_result(value: object, expected: tuple[str, bytes]) -> None:
    """A contract with other languages."""
    assert encode_result(value) == expected


async def raises(error: BaseException) -> None:
    """A handler that fails."""
    raise error


PLACE = f"{__file__}:{raises.__code__.co_firstlineno + 2} in raises"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(
            Reject("no such voice"),
            Ending("finish", "failed", 0, "rejected", "no such voice", TEXT, b"no such voice"),
            id="reject",
        ),
        pytest.param(
            Reject(),
            Ending("finish", "failed", 0, "rejected", "rejected by the handler", TEXT, b"rejected by the handler"),
            id="reject without a reason",
        ),
        pytest.param(
            Retry("busy", delay_ms=40), Ending("retry", "completed", 40, "handler_failed", "busy"), id="retry later"
        ),
        pytest.param(
            Retry(),
            Ending("retry", "completed", 854, "handler_failed", "the handler asked for it"),
            id="retry after the backoff",
        ),
        pytest.param(
            ValueError("bad audio"),
            Ending("retry", "completed", 854, "handler_failed", f"ValueError: bad audio ({PLACE})"),
            id="any exception",
        ),
        pytest.param(
            LookupError(),
            Ending("retry", "completed", 854, "handler_failed", f"LookupError ({PLACE})"),
            id="one without words",
        ),
    ],
)
async def test_verdicts(error: BaseException, expected: Ending, threads: Threads) -> None:
    """The same whether the handler is async or runs in a thread; what it raised is there for the log."""

    def plainly(job: Job) -> None:
        raises(error).send(None)

    for handler in (lambda job: raises(error), plainly):
        ending = await judged(handler, threads)
        assert ending.error is error
        assert msgspec.structs.replace(ending, error=None) == expected


async def test_a_later_attempt_waits_longer(threads: Threads) -> None:
    """Attempts lost with a node count as well."""
    ending = await judged(lambda job: raises(ValueError()), threads, a_job(reservation=b"7 1-a 5000 3/1-1 4 1 1 4000"))
    assert 8_000 * 0.8 <= ending.delay_ms <= 8_000 * 1.2


class Asynchronous:
    """A handler that is an object."""

    async def __call__(self, job: Job) -> str:
        return job.job_id


class Plain:
    """The same, for a thread."""

    def __call__(self, job: Job) -> str:
        return threading.current_thread().name


async def test_handlers_may_be_functions_or_objects_async_or_not(threads: Threads) -> None:
    """What is not async runs in a thread; what that gives to await is awaited."""

    async def asynchronous(job: Job) -> str:
        return job.job_id

    def plain(job: Job) -> str:
        return threading.current_thread().name

    async def later(job: Job) -> str:
        return "later"

    handlers: list[Any] = [asynchronous, Asynchronous(), plain, Plain(), lambda job: later(job)]
    assert [is_async(handler) for handler in handlers] == [True, True, False, False, False]
    assert [(await judged(handler, threads)).result for handler in handlers] == [
        b"j1",
        b"j1",
        b"test_0",
        b"test_0",
        b"later",
    ]


async def test_a_plain_function_that_raises_stop_iteration_has_failed(threads: Threads) -> None:
    """`next()` of nothing is a common slip; the slot must not be held until the pool's limit."""

    def slips(job: Job) -> object:
        return next(iter(()))

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with asyncio.timeout(0.2):
        assert (await judged(slips, threads)).reason == "handler_failed"


# ---- attempts that are stopped -----------------------------------------------------------------------------


async def test_an_async_handler_is_cancelled_and_nothing_is_left() -> None:
    """The cancellation passes through: the node decides what it means."""
    threads = Threads(1, "test")
    entered, cleaned = asyncio.Event(), []

    async def handler(job: Job) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    task = asyncio.create_task(judged(handler, threads))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ended: list[str] = []
    threads.when_ended(a_job(), lambda: ended.append("ended"))
    assert (cleaned, threads.runs_on(a_job()), ended) == ([True], False, ["ended"])


async def test_a_thread_that_is_left_behind_runs_on_until_it_ends(threads: Threads) -> None:
    """It still occupies what the slot stands for, and everybody who asked hears of its real end."""
    loop = asyncio.get_running_loop()
    entered, ended, observed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    may_leave = threading.Event()

    def handler(job: Job) -> None:
        loop.call_soon_threadsafe(entered.set)
        assert may_leave.wait(SIGNAL_S)

    task = asyncio.create_task(judged(handler, threads))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    threads.when_ended(a_job(), partial(tell, loop, observed))
    threads.when_ended(a_job(), partial(tell, loop, ended))
    before = [threads.runs_on(a_job()), observed.is_set(), ended.is_set()]
    may_leave.set()
    await observed.wait()
    await ended.wait()
    assert (before, threads.runs_on(a_job())) == ([True, False, False], False)


async def test_a_thread_that_had_not_begun_is_not_left_behind(threads: Threads) -> None:
    """It never runs: the pool was busy with another job."""
    loop = asyncio.get_running_loop()
    entered = asyncio.Event()
    may_leave = threading.Event()
    ran = []

    def busy(job: Job) -> str:
        loop.call_soon_threadsafe(entered.set)
        assert may_leave.wait(SIGNAL_S)
        return "done"

    first = asyncio.create_task(judged(busy, threads, a_job(token=b"1")))
    await entered.wait()
    second = asyncio.create_task(judged(lambda job: ran.append(job), threads, a_job(token=b"2")))
    queued = asyncio.Event()
    loop.call_soon(queued.set)
    await queued.wait()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    may_leave.set()
    assert ((await first).result, threads.runs_on(a_job(token=b"2")), ran) == (b"done", False, [])


async def test_a_handler_in_a_thread_can_see_that_it_should_stop(threads: Threads) -> None:
    """`stopped` is set by the node and read by the thread."""
    job = a_job()

    def handler(job: Job) -> str:
        return "stopped" if job.stopped.wait(SIGNAL_S) else "not told"

    task = asyncio.create_task(judged(handler, threads, job))
    job.stopped.set()
    assert (await task).result == b"stopped"


# ---- what is no handler ------------------------------------------------------------------------------------


def generates(job: Job) -> Any:
    """A generator."""
    yield job


async def streams(job: Job) -> Any:
    """An async one."""
    yield job


def needs_more(job: Job, database: object) -> None:
    """Takes two."""


def takes_nothing() -> None:
    """Takes none."""


def names_it(*, job: Job) -> None:
    """Takes one, by its name only."""


def wrapped(function: Any) -> Any:
    """What a decorator makes: it hands in what the function takes beside the job."""

    @functools.wraps(function)
    def call(job: Job) -> Any:
        return function(job, None)

    return call


class Generates:
    """A generator that is an object."""

    def __call__(self, job: Job) -> Any:
        yield job

    def run(self, job: Job) -> None:
        """Of an object."""


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (None, "handler: NoneType is a NoneType: expected a function of one job"),
        ("name", "handler: str is a str: expected"),
        (Plain, "handler: Plain is a class: expected a function of one job, or an object that can be called with one"),
        (generates, "handler: generates is a generator: expected"),
        (streams, "handler: streams is a generator: expected"),
        (partial(generates), "handler: partial is a generator: expected"),
        (Generates(), "handler: Generates is a generator: expected"),
        (needs_more, "handler: needs_more takes (job: 'Job', database: 'object') -> 'None': expected"),
        (takes_nothing, "handler: takes_nothing takes () -> 'None': expected"),
        (names_it, "handler: names_it takes (*, job: 'Job') -> 'None': expected"),
        (Generates.run, "this one belongs to a class: name that of an object"),
    ],
)
def test_what_can_run_no_job_is_refused_in_words(handler: Any, said: str) -> None:
    """Before the node is ready, instead of failing every job."""
    with pytest.raises(InvalidInput, match=re.escape(said)):
        check_handler(handler)
    with pytest.raises(InvalidInput, match=re.escape(said)):
        Node("redis://127.0.0.1:1", "n1", capacity=1, handler=handler, settings=DEFAULTS)


@pytest.mark.parametrize(
    "handler",
    [raises, Plain(), Asynchronous(), Generates().run, partial(needs_more, database=1), wrapped(needs_more), print, abs,
     lambda job, database=None: None, lambda *jobs: None],
)  # fmt: skip
def test_whatever_can_be_called_with_a_job_is_a_handler(handler: Any) -> None:
    """Functions, methods, objects, with whatever is bound or wrapped."""
    check_handler(handler)
