"""What the tests of reserve.lua share: a job that can be placed, and answers in short."""

from __future__ import annotations

from scheduler.protocol import messages
from scheduler.store.store import Store
from tests.seeds import (
    seed_job,
    seed_node,
    seed_owner,
)

FULL, BEHIND, FENCED = messages.Refused("full"), messages.Refused("behind"), messages.Refused("fenced")


async def seed_all(store: Store, slots: int = 1) -> tuple[int, str]:
    """An owned partition, a node and a submitted job; returns epoch and entry id."""
    epoch = await seed_owner(store)
    await seed_node(store, slots=slots)
    return epoch, await seed_job(store)


def placed(answers: list[messages.Reserved | messages.Refused]) -> list[str]:
    """Each answer as a word, or as the node it was placed on."""
    return [answer.node if isinstance(answer, messages.Reserved) else answer.why for answer in answers]


def tokens(answers: list[messages.Reserved | messages.Refused]) -> list[int]:
    """The tokens given, in the order of the call."""
    return [answer.token for answer in answers if isinstance(answer, messages.Reserved)]
