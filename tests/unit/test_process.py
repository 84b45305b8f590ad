"""What a command that ends asks its server, where no thread can start to ask in."""

from __future__ import annotations

import asyncio
import threading

import pytest

from scheduler.console import process
from scheduler.url import parse_url
from tests.unit.test_threads import refuse

NOBODY = parse_url("redis://127.0.0.1:1/0")
GONE_MS = 100


async def test_a_server_that_cannot_be_asked_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work comes to its end. Where there are threads, nobody is found, and it is cancelled."""
    monkeypatch.setattr(process, "GONE_MS", GONE_MS)
    monkeypatch.setattr(process, "POLL_MS", GONE_MS / 10)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert await process.unless_gone(NOBODY, asyncio.sleep(5 * GONE_MS / 1000))
    assert not await process.unless_gone(NOBODY, asyncio.sleep(60))


async def test_what_cannot_be_asked_for_want_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that waits for its clients to go takes it that one is there."""
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert await process.ask_aside(lambda: 0, 1) == 1
    assert await process.ask_aside(lambda: 0, 1) == 0
