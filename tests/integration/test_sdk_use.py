"""Objects of the SDK that are used where or when they cannot be used say so, and neither wait nor fail in odd ways."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from scheduler import Node, Producer
from scheduler.config import DEFAULTS
from scheduler.errors import InvalidInput, ServerUnavailable
from scheduler.host import Host
from scheduler.lifetime import Lifetime
from scheduler.store.store import open_store
from tests import fake

NOWHERE = "redis://127.0.0.1:1"
Call = Callable[[Producer], Coroutine[Any, Any, Any]]

CALLS: dict[str, Call] = {
    "submit": lambda producer: producer.submit("s"),
    "result": lambda producer: producer.result("j"),
    "outcome": lambda producer: producer.outcome("j"),
    "results": lambda producer: anext(producer.results()),
}
every_call = pytest.mark.parametrize("name", CALLS)


async def a_host() -> Host:
    """Of a process beside which a scheduler was started, on a server without a port."""
    connect = fake.connecting(fake.start_fake())
    async with await open_store(fake.URL, DEFAULTS, connect=connect) as store:
        await store.control.write_layout()
    return Host(connect=connect)


async def entered() -> Producer:
    """A producer that is never left."""
    producer = Producer(fake.URL, settings=DEFAULTS, host=await a_host())
    await producer.__aenter__()
    return producer


def refusal(name: str, producer: Producer) -> str:
    """How a call in an event loop of its own is refused."""
    with pytest.raises(InvalidInput) as error:
        asyncio.run(CALLS[name](producer))
    return str(error.value)


def a_node(url: str = NOWHERE, **options: Any) -> Node:
    """A node that nobody has entered."""
    return Node(url, "n1", capacity=1, handler=print, settings=DEFAULTS, **options)


@every_call
def test_a_producer_that_was_not_entered(name: str) -> None:
    """The error shows how it is entered."""
    assert refusal(name, Producer(NOWHERE, settings=DEFAULTS)).endswith(
        ": it was not entered: expected `async with Producer(...) as ...:` around it"
    )


@every_call
def test_a_producer_in_a_second_event_loop(name: str) -> None:
    """Each asyncio.run has a loop of its own; the same error comes each time."""
    with asyncio.Runner() as first:
        producer = first.run(entered())
        for _ in range(2):
            assert "this is another event loop than the one that entered it" in refusal(name, producer)
        first.run(producer.__aexit__())


@every_call
def test_a_producer_in_another_thread(name: str) -> None:
    """The error says how it is done."""
    told: list[str] = []

    async def main() -> None:
        producer = await entered()
        thread = threading.Thread(target=lambda: told.append(refusal(name, producer)))
        thread.start()
        await asyncio.to_thread(thread.join)
        await producer.__aexit__()

    asyncio.run(main())
    assert "another thread than the one that entered it: expected asyncio.run_coroutine_threadsafe" in told[0]


def test_a_producer_that_another_thread_calls_in_its_event_loop() -> None:
    """Which is how it is done."""

    async def main() -> str:
        async with Producer(fake.URL, settings=DEFAULTS, host=await a_host()) as producer:
            loop = asyncio.get_running_loop()

            def submit() -> str:
                return asyncio.run_coroutine_threadsafe(producer.submit("s", job_id="j"), loop).result()

            return await asyncio.to_thread(submit)

    assert asyncio.run(main()) == "j"


@every_call
def test_a_producer_in_a_forked_process(name: str) -> None:
    """It would share its connections with its parent, and take answers of the other."""
    ours, theirs = os.pipe()
    with asyncio.Runner() as first:
        producer = first.run(entered())
        child = os.fork()
        if child == 0:
            try:
                os.write(theirs, refusal(name, producer).encode())
            finally:
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours) as answer:
            assert "this process was forked off after it was entered: expected a Producer of its own" in answer.read()
        os.waitpid(child, 0)
        first.run(producer.__aexit__())


@every_call
def test_a_producer_that_was_left(name: str) -> None:
    """Another one can be made; leaving once more does nothing."""

    async def main() -> None:
        producer = await entered()
        await producer.__aexit__()
        await producer.__aexit__()
        with pytest.raises(InvalidInput, match="it was left: expected a new Producer"):
            await CALLS[name](producer)
        with pytest.raises(InvalidInput, match="entering: it was left: expected a new Producer"):
            await producer.__aenter__()

    asyncio.run(main())


def test_a_producer_is_entered_once() -> None:
    """The first one goes on."""

    async def main() -> str:
        producer = await entered()
        with pytest.raises(InvalidInput, match="it was entered already: expected one `async with` for each Producer"):
            await producer.__aenter__()
        job_id = await producer.submit("s", job_id="j")
        await producer.__aexit__()
        return job_id

    assert asyncio.run(main()) == "j"


async def test_entering_can_be_tried_again() -> None:
    """A server that was not there yet may be there by now, also for another event loop."""
    producer = Producer(NOWHERE, settings=DEFAULTS, patience_ms=0)
    for _ in range(2):
        with pytest.raises(ServerUnavailable):
            await producer.__aenter__()
    with pytest.raises(InvalidInput, match="leaving: it was not entered"):
        await producer.__aexit__()


async def test_a_node_that_was_not_entered() -> None:
    """Nothing runs on it; it can be neither drained nor waited for."""
    node = a_node()
    assert node.running == 0
    for call in (node.drain, node.stopped, node.__aexit__):
        with pytest.raises(InvalidInput, match="it was not entered: expected `async with Node"):
            await call()


async def test_a_node_that_serves_or_was_left() -> None:
    """It is entered once; that it is drained and has stopped is so afterwards."""
    node = a_node(fake.URL, host=await a_host())
    async with node:
        with pytest.raises(InvalidInput, match="it was entered already"):
            await node.__aenter__()
        for call in (node.drain, node.stopped, node.__aexit__):
            refused = asyncio.to_thread(asyncio.run, call())
            with pytest.raises(InvalidInput, match="this is another thread"):
                await refused
    async with asyncio.timeout(5):
        await node.drain()
        await node.stopped()
        await node.__aexit__()
    with pytest.raises(InvalidInput, match="it was left: expected a new Node"):
        await node.__aenter__()


def test_outside_of_any_event_loop() -> None:
    """As under another library for asynchronous code."""
    with pytest.raises(InvalidInput, match="no event loop of asyncio runs here"):
        Lifetime("Node", os.getpid).enter()
