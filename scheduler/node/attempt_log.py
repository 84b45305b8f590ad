"""What a node logs of attempts that failed and of jobs that died with them: a WARNING each, the many of a kind counted.

The detail that is stored, and that a producer sees, is the first line; the traceback is in the log alone.
"""

from __future__ import annotations

import logging
import textwrap
from typing import Final

from scheduler.clock import Clock
from scheduler.errors import Reject, Retry
from scheduler.node.handlers import Job
from scheduler.node.retry import Ending
from scheduler.node.tracebacks import format_traceback, place_of, unfold
from scheduler.protocol.messages import ReleaseItem
from scheduler.repeats import Repeats
from scheduler.visible import visible, visible_lines

logger = logging.getLogger("scheduler.node")

_SAYS_ENOUGH: Final = (Reject, Retry)  # raised to say something: a traceback is only told of what led to it


class AttemptLog:
    """The log of one node.

    Args: node_id; clock, the process's own.
    """

    def __init__(self, node_id: str, clock: Clock) -> None:
        self._node_id = node_id
        self._repeats = Repeats(logger, clock)

    def ended(self, job: Job, ending: Ending) -> None:
        """An attempt has come to this; told if it failed, or ended its job as failed."""
        if ending.verdict == "retry" or ending.state == "failed":
            self._repeats.warn(self._kind_of(ending), lambda: self._line(job, ending), has_lines=True)

    def died(self, item: ReleaseItem) -> None:
        """The server has said that a job is dead with this ending."""
        job = f"{self._node_id}: job {item.job_id} of session {item.session_id}"
        line = f"{job} is dead; its last attempt: {visible(item.detail)}"
        self._repeats.warn(f"{self._node_id}: jobs are dead with their last attempt", lambda: line)

    def not_kept(self, why: str) -> None:
        """What would be stored of failed attempts was not."""
        self._repeats.warn(f"{self._node_id}: details are not kept", lambda: f"{self._node_id}: {why}")

    def step(self) -> None:
        """Tell what was counted, once its time is over."""
        self._repeats.step()

    def close(self) -> None:
        """Tell what was counted."""
        self._repeats.close()

    def _kind_of(self, ending: Ending) -> str:
        error = ending.error
        what = ending.reason if error is None else f"{type(error).__name__} ({place_of(error) or 'no place'})"
        return f"{self._node_id}: attempts failed, {what}"

    def _line(self, job: Job, ending: Ending) -> str:
        attempt = f"{self._node_id}: attempt {job.attempt} of job {job.job_id} of session {job.session_id}"
        outcome = f"ended it as failed, {ending.reason}" if ending.state == "failed" else "failed"
        trace = ""
        if ending.error is not None and not (isinstance(ending.error, _SAYS_ENOUGH) and len(unfold(ending.error)) == 1):
            trace = "\n" + textwrap.indent(format_traceback(ending.error), "  ")  # no line of it looks like a record
        return visible(f"{attempt} {outcome}: {ending.detail}") + visible_lines(trace)
