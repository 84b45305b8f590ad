"""What a namespace leaves in a server can be taken away, and nothing else with it."""

from __future__ import annotations

import msgspec

from scheduler.config import DEFAULTS
from scheduler.store.cleanup import remove_namespace
from scheduler.store.store import open_store


async def test_only_the_keys_of_one_namespace_are_removed(url: str) -> None:
    """Namespaces whose names look alike, or like a pattern, keep their keys."""
    settings = msgspec.structs.replace(DEFAULTS, namespace="demo-[a]*")
    ours = ["{demo-[a]*}:layout", *(f"{{demo-[a]*:0}}:job:{number}" for number in range(3_000))]
    others = ["{demo-a}:layout", "{demo-a:0}:owners", "{demo-[a]*1}:layout", "{demo-[a]*:1}:owners", "demo-[a]*"]
    async with await open_store(url, settings) as store:
        await store.connection.commands.mset(dict.fromkeys([*ours, *others], "x"))
        assert await remove_namespace(store) == len(ours)
        assert sorted(key.decode() for key in await store.connection.commands.keys("*")) == sorted(others)
        assert await remove_namespace(store, cells=2) == 1
