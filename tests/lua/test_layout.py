"""layout.lua: what every role agrees on."""

from __future__ import annotations

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.errors import ServerRefused
from scheduler.protocol import keys, messages
from scheduler.store.control import Control
from scheduler.store.scripts import load_scripts
from scheduler.store.store import Store
from tests.dumps import dump, unchanged

AGREED = {
    "partitions": "16",
    "cells": "1",
    "protocol": str(keys.PROTOCOL),
    "retention_ms": "3600000",
    "dead_retention_ms": "604800000",
}


def other(store: Store) -> Control:
    """The control plane as somebody sees it who wants another number of partitions."""
    return Control(store.connection, msgspec.structs.replace(DEFAULTS, partitions=8))


async def test_first_caller_writes_fields_and_sources(store: Store) -> None:
    """The first call writes the agreed fields and each script's source."""
    sources = {f"script:{script.name}": script.source for script in load_scripts().values()}

    layout = await store.control.write_layout()

    assert layout == messages.Layout(16, 1, keys.PROTOCOL, 3_600_000, 604_800_000)
    assert await dump(store) == {store.control.keys.layout: ("hash", AGREED | sources, False)}


async def test_answers_written_then_kept(store: Store) -> None:
    """The answer tells whether the layout was there before, and has the fields as stored."""
    arguments: list[str | int] = [1, "partitions", 16]

    first = await store.connection.call("layout", [store.control.keys.layout], arguments)
    second = await store.connection.call("layout", [store.control.keys.layout], arguments)

    assert (first, second) == ([b"written", b"partitions", b"16"], [b"kept", b"partitions", b"16"])


async def test_rule_28_repeat_changes_nothing(store: Store) -> None:
    """The same call after a lost reply gives the same layout and leaves everything as it is."""
    layout = await store.control.write_layout()

    async with unchanged(store):
        assert await store.control.write_layout() == layout


async def test_other_partitions_are_refused_and_change_nothing(store: Store) -> None:
    """A caller that disagrees in one field gets a clear error and writes neither fields nor sources."""
    await store.control.write_layout()
    await store.connection.commands.hdel(store.control.keys.layout, "script:beat")

    async with unchanged(store):
        with pytest.raises(ServerRefused, match="partitions = '16' is stored: expected 8"):
            await other(store).write_layout()


async def test_sources_follow_the_newest_caller_that_agrees(store: Store) -> None:
    """An older source is replaced by that of a caller with the same agreed fields."""
    await store.control.write_layout()
    expected = await dump(store)
    await store.connection.commands.hset(store.control.keys.layout, "script:beat", "older")

    await store.control.write_layout()

    assert await dump(store) == expected
