"""What a producer and a node in another language share: layout, keys, script calls.

Written from docs/PROTOCOL.md alone: nothing of the package is imported here or by the two clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

PROTOCOL: Final = 6
PAUSE_FIRST_S: Final = 0.02
PAUSE_LAST_S: Final = 0.5
PATIENCE_S: Final = 30.0
TEMPORARY: Final = (
    "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "ASK", "TRYAGAIN", "OOM", "BUSY", "NOREPLICAS",
    "MISCONF", "NOPERM", "UNBLOCKED",
)  # fmt: skip
# The library takes the code off some messages and turns it into a class.
TEMPORARY_CLASSES: Final = (
    "ReadOnlyError", "MasterDownError", "ClusterDownError", "MovedError", "AskError", "TryAgainError",
    "OutOfMemoryError", "NoPermissionError",
)  # fmt: skip

Argument = str | bytes | int


class Refused(Exception):
    """The server speaks another protocol, or has a layout that this client does not know."""


def is_temporary(error: Exception) -> bool:
    """Whether the same call can succeed later."""
    if isinstance(error, redis.ConnectionError | redis.TimeoutError | OSError):
        return not isinstance(error, redis.AuthenticationError)
    return type(error).__name__ in TEMPORARY_CLASSES or str(error).startswith(TEMPORARY)


class Server:
    """A server where a scheduler was started.

    Args: url; namespace. Raises: Refused.
    """

    def __init__(self, url: str, namespace: str = "sched") -> None:
        self._tag = namespace
        # What the library repeats by itself is off.
        self.client: Any = redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=5)
        self.reader: Any = redis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=10)
        stored = self.patiently(lambda: self.client.hgetall(self.control_key("layout")))
        self.layout: dict[str, str] = {name.decode(): value.decode() for name, value in stored.items()}
        self._check()
        self.sent_s = 0.0  # own monotonic time at which the last call that was answered was sent, of its tries the last
        self._shas: dict[str, str] = {}

    def _check(self) -> None:
        if not self.layout:
            raise Refused("no scheduler was started there")
        if self.layout["protocol"] != str(PROTOCOL):
            raise Refused(f"protocol {self.layout['protocol']} is in use there: expected {PROTOCOL}")
        if self.layout["cells"] != "1":
            raise Refused(f"{self.layout['cells']} cells: expected 1")

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        self.reader.close()

    def control_key(self, name: str) -> str:
        """A key of the control plane."""
        return f"{{{self._tag}}}:{name}"

    def key(self, name: str) -> str:
        """A key of the cell."""
        return f"{{{self._tag}:0}}:{name}"

    def results_key(self, reply_to: str) -> str:
        """The feed that an outcome goes to beside the common one; that one itself without `reply_to`."""
        return self.key(f"results:{reply_to}" if reply_to else "results")

    def call(self, script: str, keys: Sequence[str], arguments: Sequence[Argument]) -> list[Any]:
        """Call a script until it is answered."""
        self.sent_s, answer = self.patiently(lambda: self.call_once(script, keys, arguments))
        return list(answer)

    def call_once(self, script: str, keys: Sequence[str], arguments: Sequence[Argument]) -> tuple[float, Any]:
        """Call a script; loaded before its first use, and again by a server that has forgotten it.

        Returns: (own time when it was sent, its answer).
        """
        source = self.layout[f"script:{script}"]
        sent_s = time.clock_gettime(time.CLOCK_BOOTTIME)  # a lease runs on while the machine sleeps
        if script not in self._shas:
            self._shas[script] = self.client.script_load(source)
        call = ("EVALSHA", self._shas[script], len(keys), *keys, *arguments)
        try:
            return sent_s, self.client.execute_command(*call)
        except NoScriptError:
            self.client.script_load(source)
            return sent_s, self.client.execute_command(*call)

    def call_each(
        self, script: str, items: Sequence[Any], build: Callable[[Sequence[Any]], tuple[list[str], list[Argument]]]
    ) -> tuple[int, list[list[Any] | None]]:
        """Call a script for a batch; when it fails, for each item alone.

        Returns: (now_ms, answers); None is the answer for an item that fails alone.
        """
        try:
            answer = self.call(script, *build(items))
            return int(answer[0]), answer[1:]
        except redis.ResponseError as error:
            if is_temporary(error):
                raise
            if len(items) == 1:
                return 0, [None]
            answers = [self.call_each(script, [item], build) for item in items]
            return max(now_ms for now_ms, _ in answers), [answer for _, (answer,) in answers]

    def read(self, stream: str, after: str, block_ms: int, count: int = 128) -> list[tuple[str, dict[str, bytes]]]:
        """What came after an id; waits for it."""
        reply = self.patiently(lambda: self.reader.xread({stream: after}, block=block_ms, count=count))
        return [
            (identifier.decode(), {name.decode(): value for name, value in fields.items()})
            for _, entries in reply
            for identifier, fields in entries
        ]

    def last_id(self, stream: str) -> str:
        """The highest id that a stream has ever had, 0-0 when it is not there."""
        try:
            return str(self.patiently(lambda: self.client.xinfo_stream(stream))["last-generated-id"].decode())
        except redis.ResponseError:
            return "0-0"

    def run_id(self) -> str:
        """Of the server process that answers."""
        return str(self.patiently(lambda: self.client.info("server")).get("run_id", ""))

    def patiently(self, attempt: Callable[[], Any]) -> Any:
        """Repeat what fails for a while, for as long as patience lasts."""
        until, pause_s = time.monotonic() + PATIENCE_S, PAUSE_FIRST_S
        while True:
            try:
                return attempt()
            except (redis.RedisError, OSError) as error:
                if not is_temporary(error) or time.monotonic() > until:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_LAST_S)
