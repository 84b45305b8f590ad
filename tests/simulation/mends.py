"""What fakeredis lacks of what tests look at: XINFO STREAM FULL, MONITOR, and the errors that Lua code raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fakeredis._helpers import SimpleError

_LUA_ERROR: Final = b"""
local plain, with_text = error, ...
error = function(value, level)
  if type(value) == 'table' and value.err then with_text(value.err) end
  plain(value, level)
end
"""


def keep_error_texts(runtime: Any) -> None:
    """Let `error(reply)` in a script fail with the text of the reply: lupa forgets what stands in a table."""

    def fail(text: bytes) -> None:
        raise SimpleError(text.decode(errors="replace"))

    runtime.compile(_LUA_ERROR)(fail)


def full_stream_info(stream: Any) -> list[Any]:
    """The answer to XINFO STREAM FULL, flat: entries and counters, and of each group what it has pending."""
    return [
        *(b"length", len(stream)),
        *(b"last-generated-id", stream.last_id.encode()),
        *(b"max-deleted-entry-id", stream.max_deleted_id.encode()),
        *(b"entries-added", stream.entries_added),
        *(b"entries", list(stream)),
        *(b"groups", [_group_info(group) for group in stream._groups.values()]),
    ]


def _group_info(group: Any) -> list[Any]:
    pending = [
        [identifier.encode(), entry.consumer_name, entry.time_read, entry.times_delivered]
        for identifier, entry in sorted(group.pel.items())
    ]
    return [
        *(b"name", group.name),
        *(b"last-delivered-id", group.last_delivered_key.encode()),
        *(b"entries-read", group.entries_read),
        *(b"pel-count", len(pending)),
        *(b"pending", pending),
    ]


def monitor_line(now_s: float, who: bytes, command: Sequence[bytes]) -> bytes:
    """A line of MONITOR, as sent. who: `lua`, or the address of a client."""
    words = b" ".join(b'"%b"' % b"".join([_SHOWN[byte] for byte in each]) for each in command)
    return b"+%.6f [0 %b] %b\r\n" % (now_s, who, words)


_SHOWN: Final = [
    b"\\%c" % byte if byte in b'"\\' else b"%c" % byte if 32 <= byte < 127 else b"\\x%02x" % byte for byte in range(256)
]
