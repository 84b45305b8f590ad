"""The load: jobs at set times, whatever became of those before them.

An open loop: a scheduler that is late gets no fewer jobs for that, and each job counts from the moment at which it was
due. So a stall is seen by all jobs that fell into it (no coordinated omission, Tene 2013), and so is a sender that was
late itself; how late is told beside.

The sender is a thread with a blocking client, because the timers of an event loop are rounded up to milliseconds.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Final

from redis import Redis

from benchmarks.measure import STALL_S
from benchmarks.watching import Sending

AT_ONCE_MAX: Final = 200
SOCKET_TIMEOUT_S: Final = 10.0
SWITCH_S: Final = 0.000_2
"""For how long the sender waits at most while this process runs something else."""
_NS: Final = 1_000_000_000


class OpenLoop:
    """One sender. `run` until all jobs were sent and have appeared, or until nothing moves any more.

    Args: url; jobs, in their order; payload of each. Attributes: due_ns, of each job that was sent; seen, (inbox, when)
    of each entry that appeared, both by the monotonic clock; late_ns, how late the latest job was sent.
    """

    def __init__(self, url: str, jobs: Sequence[Sending], payload: bytes) -> None:
        self.due_ns: list[int] = []
        self.seen: list[tuple[str, int]] = []
        self.late_ns = 0
        self._url = url
        self._jobs = jobs
        self._payload = payload
        self._stopping = False

    def appeared(self, inbox: str) -> None:
        """An entry is in an inbox now."""
        self.seen.append((inbox, time.perf_counter_ns()))

    async def run(self, per_s: float) -> None:
        """Send so many a second."""
        sending = asyncio.create_task(asyncio.to_thread(self._send_all, per_s))
        patience_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            await asyncio.wait([sending])
            sending.result()
            count, since_s = len(self.seen), time.monotonic()
            while len(self.seen) < len(self.due_ns) and time.monotonic() - since_s < STALL_S:
                await asyncio.sleep(0.01)
                if len(self.seen) > count:
                    count, since_s = len(self.seen), time.monotonic()
        finally:
            self._stopping = True
            sys.setswitchinterval(patience_s)

    def _send_all(self, per_s: float) -> None:
        gap_ns = _NS / per_s
        with Redis.from_url(self._url, protocol=2, socket_timeout=SOCKET_TIMEOUT_S) as client:
            client.ping()
            from_ns = time.perf_counter_ns()
            while len(self.due_ns) < len(self._jobs) and not self._stopping:
                sent, now_ns = len(self.due_ns), time.perf_counter_ns()
                due = min(len(self._jobs), int((now_ns - from_ns) / gap_ns) + 1, sent + AT_ONCE_MAX)
                if due <= sent:
                    time.sleep((from_ns + sent * gap_ns - now_ns) / _NS)
                    continue
                self.due_ns += [from_ns + round(number * gap_ns) for number in range(sent, due)]
                self.late_ns = max(self.late_ns, now_ns - self.due_ns[sent])
                pipeline = client.pipeline(transaction=False)
                for job in self._jobs[sent:due]:
                    pipeline.execute_command("XADD", job.stream, "*", "job", job.document, "payload", self._payload)
                pipeline.execute()
