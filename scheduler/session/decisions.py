"""Pure. Decides; never performs. Why a job is where it is: the field `decision`, written by `reserve`, and its words.

A decision is a word, then, with most of them, the node that the session was bound to and the slots that the script saw
there, and last a note of the node that the job asked for in vain: `full n1 8/8 preferred n7 gone`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

WORDS: Final[Mapping[str, str]] = {
    "new": "its session was not bound to a node",
    "stayed": "its session is bound to that node",
    "preferred": "it asked for that node",
    "full": "{node}, where its session was bound, had no room",
    "closed": "{node}, where its session was bound, takes no work",
    "gone": "{node}, where its session was bound, is gone",
    "suspect": "{node}, where its session was bound, is silent, as many others are",
    "avoid": "an earlier attempt at it failed on {node}",
    "unfit": "the node where its session was bound cannot serve it",
    "pool": "its session goes by another pool now",
    "pair": "its session changed its languages",
    "together": "it was placed in one call with the job before it, and asked for other nodes",
    "strategy": "the strategy of its pool binds no session to a node",
}


class Decision(msgspec.Struct, frozen=True):
    """why: one of WORDS; node: that the session was bound to, "" for none; used, slots: of that node at the decision,
    None where the script did not look; note: what became of the wish for a node, "" for nothing.
    """

    why: str
    node: str = ""
    used: int | None = None
    slots: int | None = None
    note: str = ""


def parse(text: str) -> Decision | None:
    """A decision from its stored form, None when it is not one of ours."""
    before, _, note = text.partition(" preferred ")
    words = before.split(" ")
    if words[0] not in WORDS or len(words) > 3:
        return None
    node = words[1] if len(words) > 1 else ""
    if len(words) < 3:
        return Decision(words[0], node, note=note)
    used, _, slots = words[2].partition("/")
    if not (used.isdigit() and slots.isdigit()):
        return None
    return Decision(words[0], node, int(used), int(slots), note)


def in_words(text: str) -> str:
    """A decision for a person; as it is when it is not one of ours."""
    decision = parse(text)
    if decision is None:
        return text
    said = WORDS[decision.why].format(node=decision.node)
    if decision.used is not None:
        said += f" ({decision.used} of {decision.slots} slots in use)"
    if decision.note:
        name, _, why = decision.note.partition(" ")
        said += f"; node {name}, which it asked for, {'is gone' if why == 'gone' else 'cannot serve it'}"
    return said
