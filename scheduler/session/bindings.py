"""Pure. Decides; never performs. What a session is bound to, its stored form, and a bounded memory of what was written.

The truth is in the server, written by `reserve`; memory is a cache of it. The stored form is one string,
`pool src:tgt node variant`, with `:` for a job without languages and `-` for no variant.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from scheduler.protocol.documents import ANY_LANGUAGE

NO_VARIANT: Final = "-"
HIT_SCORE_MAX: Final = 64  # answers that outweigh each other: so soon is noticed that sessions are others than before


class Binding(msgspec.Struct, frozen=True, gc=False):
    """preferred_pool, bound_lang_pair (empty strings without languages), node, and a variant."""

    pool: str
    src_lang: str
    tgt_lang: str
    node: str
    variant: str = NO_VARIANT

    def fits(self, src_lang: str, tgt_lang: str) -> bool:
        """Whether the pair is the bound one; another pair resets the binding. `auto` is any source, on either side."""
        if self.tgt_lang != tgt_lang:
            return False
        return self.src_lang == src_lang or ANY_LANGUAGE in (self.src_lang, src_lang)


def source_to_bind(binding: Binding | None, src_lang: str, tgt_lang: str) -> str:
    """The source language of the binding that a job leaves behind: one that was known stays known after `auto`."""
    if src_lang == ANY_LANGUAGE and binding is not None and binding.fits(src_lang, tgt_lang):
        return binding.src_lang
    return src_lang


def binding_after(before: Binding | None, pool: str, src_lang: str, tgt_lang: str, node: str) -> Binding:
    """The binding of a session after a job was placed. before: until then; node: that the session is bound to now."""
    return Binding(pool, source_to_bind(before, src_lang, tgt_lang), tgt_lang, node)


def prefix(pool: str, src_lang: str, tgt_lang: str) -> str:
    """The part of the stored form that the dispatcher decides; `reserve` appends node and variant."""
    return f"{pool} {src_lang}:{tgt_lang}"


def parse(stored: bytes | None) -> Binding | None:
    """A binding from its stored form, None when there is none or when it is not one of ours."""
    if stored is None:
        return None
    words = stored.decode(errors="replace").split(" ")
    if len(words) != 4 or words[1].count(":") != 1:
        return None
    src_lang, tgt_lang = words[1].split(":")
    return Binding(words[0], src_lang, tgt_lang, words[2], words[3])


class _Remembered(msgspec.Struct, gc=False):
    binding: Binding | None
    written_ms: float


class Bindings:
    """A bounded cache, least recently used first out. `None` is remembered too: the session has no binding.

    Args: sessions_max; ttl_ms of the stored binding, which is written again when half of it has passed.
    """

    def __init__(self, sessions_max: int, ttl_ms: int) -> None:
        self._sessions_max = sessions_max
        self._ttl_ms = ttl_ms
        self._known: OrderedDict[str, _Remembered] = OrderedDict()
        self._hit_score = 0

    @property
    def should_prefetch(self) -> bool:
        """Whether of the sessions that were asked about of late more were bound than not, as after a take-over."""
        return self._hit_score > 0

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._known

    def get(self, session_id: str, now_ms: float) -> tuple[Binding | None, bool]:
        """The binding of a session, and whether what is stored is fresh enough to be left alone."""
        remembered = self._known.get(session_id)
        if remembered is None:
            return None, False
        self._known.move_to_end(session_id)
        return remembered.binding, now_ms - remembered.written_ms < self._ttl_ms / 2

    def peek(self, session_id: str) -> Binding | None:
        """The binding of a session, which is not used by that."""
        remembered = self._known.get(session_id)
        return remembered.binding if remembered is not None else None

    def learn(self, session_id: str, binding: Binding | None) -> None:
        """Remember what was read from the server; how old it is is not known."""
        self._put(session_id, _Remembered(binding, float("-inf")))
        self.record_lookup(binding is not None)

    def record_lookup(self, is_stored: bool) -> None:
        """Count a session that was not known, for `should_prefetch`."""
        if is_stored and self._hit_score < HIT_SCORE_MAX:
            self._hit_score += 1
        elif not is_stored and self._hit_score > -HIT_SCORE_MAX:
            self._hit_score -= 1

    def wrote(self, session_id: str, binding: Binding, now_ms: float) -> None:
        """Remember what `reserve` wrote, or what it found unchanged."""
        self._put(session_id, _Remembered(binding, now_ms))

    def sessions(self) -> list[str]:
        """The sessions that are remembered."""
        return list(self._known)

    def forget(self, session_ids: list[str]) -> None:
        """Drop sessions, such as those of a partition that was lost."""
        for session_id in session_ids:
            self._known.pop(session_id, None)

    def clear(self) -> None:
        """Drop everything."""
        self._known.clear()

    def _put(self, session_id: str, remembered: _Remembered) -> None:
        self._known[session_id] = remembered
        self._known.move_to_end(session_id)
        if len(self._known) > self._sessions_max:
            self._known.popitem(last=False)
