"""Pure. Decides; never performs. Heartbeats are decoded once: nearly all say what their node said before.

A node that says the same writes the same bytes, but for the number of handlers that run, which nothing here depends on.
The SDK writes that last, so it is cut off before the bytes are looked up; other documents are as good, but cost more.
"""

from __future__ import annotations

from typing import Final

from scheduler.errors import InvalidInput
from scheduler.protocol.documents import NodeBeat, boot_order, decode_beat
from scheduler.protocol.keys import AHEAD_MS_MAX

NODES_MAX: Final = 200_000  # of which documents are remembered: with more all are forgotten, for many may be no more
BOOT_MAX: Final = 2**52  # no clock says more, and above it a boot could never be replaced
AHEAD_US: Final = 1_000 * AHEAD_MS_MAX  # of the clock; a boot further ahead needs somebody who has given it
_RUNNING: Final = b',"running":'
_DIGITS_MAX: Final = 9


class NotGiven(InvalidInput):
    """A boot that no clock gives. beat: whose it is, should it have been given by `boot` all the same."""

    def __init__(self, beat: NodeBeat, time_ms: int) -> None:
        super().__init__(
            f"boot = {beat.boot!r}, heard at {time_ms} ms: expected a number that the script boot gave, "
            f"below {BOOT_MAX}"
        )
        self.beat = beat


class HeartbeatDecoder:
    """What each node said last. boot_max: the highest boot that a clock gives now; others are NotGiven."""

    def __init__(self) -> None:
        self.boot_max = BOOT_MAX - 1
        self._beats: dict[bytes, NodeBeat] = {}
        self._said: dict[str, bytes] = {}

    def beat(self, document: bytes, time_ms: int) -> NodeBeat | None:
        """The heartbeat of a node, None when it is another one's.

        Args: document, as written; time_ms, when. Returns: the same object for documents that differ in `running` at
        most, which is then that of the first. Raises: InvalidInput; NotGiven.
        """
        said = without_running(document)
        beat = self._beats.get(said)
        return self._decode(document, said, time_ms) if beat is None else beat

    def _decode(self, document: bytes, said: bytes, time_ms: int) -> NodeBeat | None:
        beat = decode_beat(document)
        if not isinstance(beat, NodeBeat):
            return None
        if boot_order(beat.boot) > self.boot_max:
            raise NotGiven(beat, time_ms)
        self._keep(said, beat)
        return beat

    def believe(self, document: bytes, beat: NodeBeat) -> None:
        """Take a boot that was NotGiven for one that was."""
        self._keep(without_running(document), beat)

    def _keep(self, said: bytes, beat: NodeBeat) -> None:
        if len(self._said) >= NODES_MAX:
            self._said.clear()
            self._beats.clear()
        self._beats.pop(self._said.get(beat.node, b""), None)
        self._said[beat.node] = said
        self._beats[said] = beat


def without_running(document: bytes) -> bytes:
    """A JSON document without the number of running handlers, if that is the last field of the whole.

    What stands right before the end is a field of the whole, not of something within it. So what is left is valid, and
    says the same of everything else, exactly when the document is and does.
    """
    head, found, tail = document.rpartition(_RUNNING)
    number = tail[:-1]
    is_last = found and head.startswith(b"{") and tail.endswith(b"}") and number.isdigit()
    if not is_last or len(number) > _DIGITS_MAX or (number.startswith(b"0") and number != b"0"):
        return document
    return head + b"}"
