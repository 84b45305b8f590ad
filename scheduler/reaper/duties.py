"""Several things to do in a step: what goes wrong with one of them keeps no other from its turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from scheduler.store.meanings import is_temporary


async def each_in_turn(*duties: Callable[[], Awaitable[object]]) -> None:
    """Do them in their order, also after one that fails.

    Raises: the first failure, after the last of them; at once one that all others would have too: no server answers.
    """
    failed: Exception | None = None
    for duty in duties:
        try:
            await duty()
        except Exception as error:
            if is_temporary(error):
                raise
            failed = failed or error
    if failed is not None:
        raise failed
