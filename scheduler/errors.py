"""Everything that can be raised on purpose. Expected outcomes of a script are values (see model.py), not errors.

SchedulerError
+-- InvalidInput          something that a caller or a file gave is wrong; names the thing, the value, the expectation
|   +-- InvalidConfig     the same, of a configuration key
+-- ServerUnavailable     no server, or none that answers
|   +-- ServerNotReady    a server answers, and for too long that it cannot do this now (loading, full, busy)
+-- ServerRefused         a server answers but cannot be used (eviction, protocol, layout, too old, a replica, rights)
|   +-- CredentialsRefused   the same: user or password are wrong
+-- Fenced                a newer leader or owner exists; the caller must stop acting on what it held
+-- ServerReplaced         another server process answers than the one that a call was made for
+-- Lost                  the server has not what was written last: it has lost writes, or somebody has changed them
+-- IllegalTransition     the transition table has no such step
+-- NotAccepted           a job was not accepted: its id is taken, or the backlog is full
+-- JobFailed             a job ended without completing (raised by Producer.result only)
+-- Retry                 raised by a handler: try this job again, after a delay of its choice
+-- Reject                raised by a handler: do not try this job again
"""

from __future__ import annotations

import re
from typing import Final

_CREDENTIALS: Final = re.compile(r"(\w://)[^/\s@]*@")


class SchedulerError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidInput(SchedulerError):
    """Input that cannot be used; the message names the thing, the value and what was expected."""


class InvalidConfig(InvalidInput):
    """A configuration key that cannot be used."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} = {value!r}: expected {expected}")
        self.key = key
        self.value = value
        self.expected = expected


def without_credentials(text: str) -> str:
    """Take user and password out of every URL in a text."""
    return _CREDENTIALS.sub(r"\1***@", text)


class ServerUnavailable(SchedulerError):
    """No server was found, or the one that was found does not answer. The message hides passwords in URLs."""

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class ServerNotReady(ServerUnavailable):
    """The server answers, in the words that the message ends with, that it cannot do now what was asked of it."""


class ServerReplaced(SchedulerError):
    """Another server process answers than the one that a call was made for; the call was not sent."""


class ServerRefused(SchedulerError):
    """The server answers but must not be used: its settings, version, layout or rights do not fit. Passwords are
    hidden.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class CredentialsRefused(ServerRefused):
    """The server knows no such user with such a password. Waiting does not help, not even a process that runs."""


class Fenced(SchedulerError):
    """A newer holder exists."""


class Lost(SchedulerError):
    """What was written last is not there any more, so that nothing can be built on it."""


class IllegalTransition(SchedulerError):
    """No row of the transition table allows this step."""


class NotAccepted(SchedulerError):
    """A job was not accepted.

    Attributes: job_id, why ("duplicate" | "job_id_taken" | "busy" | "refused" | "invalid"), detail.
    """

    def __init__(self, job_id: str, why: str, detail: str = "") -> None:
        super().__init__(f"job {job_id} is not accepted: {why}" + (f" ({detail})" if detail else ""))
        self.job_id = job_id
        self.why = why
        self.detail = detail


class JobFailed(SchedulerError):
    """A job ended as failed, dead or cancelled.

    Attributes: job_id, state ("failed" | "dead" | "cancelled"), reason, detail.
    """

    def __init__(self, job_id: str, state: str, reason: str, detail: str = "") -> None:
        super().__init__(f"job {job_id} ended as {state}: {reason}" + (f" ({detail})" if detail else ""))
        self.job_id = job_id
        self.state = state
        self.reason = reason
        self.detail = detail


class Retry(SchedulerError):
    """A handler asks for another attempt.

    Args: reason, shown to operators; delay_ms, None for the backoff of the node.
    """

    def __init__(self, reason: str = "the handler asked for it", delay_ms: int | None = None) -> None:
        super().__init__(reason)
        if delay_ms is not None and not isinstance(delay_ms, int | float):
            raise InvalidInput(f"Retry: delay_ms = {delay_ms!r}: expected milliseconds, or None")
        self.delay_ms = None if delay_ms is None else max(0, round(delay_ms))


class Reject(SchedulerError):
    """A handler says that another attempt is of no use: the job ends as failed."""
